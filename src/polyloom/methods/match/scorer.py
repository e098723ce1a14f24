"""A trained matcher without torch: numpy alone. This file stands for itself and is copied beside the exported weights.

from scorer import Scorer
scorer = Scorer("matcher.npz")
scorer.score("a text", "another")      # class probabilities, or the cosine
scorer.encode("a text")                # the vector
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# Scripts written without blanks are cut into characters: Thai, Lao, Myanmar, Khmer, kana and Han.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
UNSPACED += "\U00020000-\U0003ffff"
# Below the combining marks nothing is unspaced, and a plain rule is fifteen times as fast.
PLAIN_END, PLAIN = "\u0300", re.compile(r"\w+|[^\w\s]")


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    """Return the rule: one character of an unspaced script, letters and digits with their marks, or one sign."""
    marks = "".join(chr(i) for i in range(0x300, 0x1F000) if unicodedata.category(chr(i)).startswith("M"))
    return re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[\w{marks}])+|[^\w\s]")


@lru_cache(maxsize=65_536)
def words(text: str, lowercase: bool = True) -> tuple[str, ...]:
    """Cut a text into words, signs, and (in scripts without blanks) single characters.

    Args:
        text: any text.
        lowercase: casefold first.
    """
    if lowercase:
        text = text.casefold()
    if not (text.isascii() or max(text) < PLAIN_END):
        return tuple(_pattern().findall(text))
    # Letters, digits and blanks alone need no rule.
    return tuple(text.split() if text.replace(" ", "").isalnum() else PLAIN.findall(text))


def bucket(word: str, num_buckets: int) -> int:
    """Return the bucket that an unknown word is hashed into."""
    return zlib.crc32(word.encode("utf-8", "replace")) % num_buckets


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


class Scorer:
    """The exported matcher: one text or pair at a time."""

    def __init__(self, path: str) -> None:
        """Read the file that `polyloom match export` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            self.w: dict[str, Array] = {name: stored[name] for name in stored.files}
        self.meta: dict[str, Any] = json.loads(self.w.pop("meta").tobytes().decode())
        self.rows = self.w.pop("embedding.weight")
        self.row_scale = self.w.pop("embedding.scale", None)
        self.known = {word: 1 + i for i, word in enumerate(self.meta["known"])}

    def number(self, text: str) -> list[int]:
        """Return the numbers of the text's words."""
        pieces = words(text, self.meta["lowercase"]) or ("",)
        first = 1 + len(self.known)
        kept = pieces[: self.meta["max_length"]]
        return [self.known.get(word) or first + bucket(word, self.meta["num_buckets"]) for word in kept]

    def _linear(self, name: str, x: Array) -> Array:
        return np.asarray(x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"])

    def _norm(self, name: str, x: Array) -> Array:
        """Apply batch normalisation by its running statistics, or layer normalisation where there are none."""
        mean = self.w.get(f"{name}.running_mean")
        variance = self.w.get(f"{name}.running_var")
        if mean is None or variance is None:
            mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return np.asarray((x - mean) / np.sqrt(variance + 1e-6) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"])

    def _gru(self, name: str, X: Array) -> Array:
        """Run one direction over [tokens, dim]."""
        w, b = self.w[f"{name}.weight_hh_l0"], self.w[f"{name}.bias_hh_l0"]
        inputs = X @ self.w[f"{name}.weight_ih_l0"].T + self.w[f"{name}.bias_ih_l0"]
        size = w.shape[1]
        h = np.zeros(size, dtype=X.dtype)
        outputs = []
        for row in inputs:
            state = w @ h + b
            gates = _sigmoid(row[: 2 * size] + state[: 2 * size])
            fresh = np.tanh(row[2 * size :] + gates[:size] * state[2 * size :])
            h = fresh + gates[size:] * (h - fresh)
            outputs.append(h)
        return np.stack(outputs)

    def _bigru(self, name: str, X: Array) -> Array:
        return np.concatenate([self._gru(f"{name}.ahead", X), self._gru(f"{name}.back", X[::-1])[::-1]], 1)

    def _conv(self, name: str, X: Array) -> Array:
        kernel = self.w[f"{name}.conv.weight"]
        reach = kernel.shape[2] // 2
        padded = np.pad(X, ((reach, reach), (0, 0)))
        parts = [padded[i : i + len(X)] @ kernel[:, :, i].T for i in range(kernel.shape[2])]
        return np.asarray(np.sum(parts, 0) + self.w[f"{name}.conv.bias"])

    def _sfa(self, X: Array) -> Array:
        previous = self._linear("block.bottleneck_in", X)
        branches = []
        for n in range(self.meta["num_branches"]):
            previous = self._bigru(f"block.branches.{n}", previous)
            branches.append(previous)
        F = np.stack(branches)
        z = np.tanh(self._linear("block.squeeze", F.mean((0, 1)) + F.max((0, 1))))
        heads = [self._norm(f"block.norms.{n}", self._linear(f"block.heads.{n}", z)) for n in range(len(F))]
        powers = np.exp(_sigmoid(np.stack(heads)))
        v = powers / powers.sum(0)
        return self._linear("block.bottleneck_out", (v[:, None] * F).sum(0))

    def encode(self, text: str) -> Array:
        """Return the vector [size] of a text: mean and maximum (or the mean alone) over its words, after the block."""
        ids = self.number(text)
        X = self.rows[ids]
        if self.row_scale is not None:
            X = X.astype(np.float32) * self.row_scale[ids, None]
        if self.meta["base"] == "gru":
            X = self._bigru("encoder.layers.0", X)
        elif self.meta["base"] == "cnn":
            X = np.maximum(np.concatenate([self._conv(f"encoder.layers.{n}", X) for n in range(3)], 1), 0)
        if self.meta["block"] == "sfa":
            X = self._sfa(X)
        mean = X.mean(0)
        parts = [mean] if self.meta["pooling"] == "mean" else [mean, X.max(0)]
        pooled = np.concatenate(parts)
        if self.meta["block"] == "fa":
            z = np.tanh(self._linear("block.squeeze", mean))
            e = _sigmoid(self._norm("block.norm", self._linear("block.excite", z)))
            pooled *= np.concatenate([e] * len(parts))
        return np.asarray(pooled)

    def compare(self, u: Array, v: Array) -> Array:
        """Judge two vectors: class probabilities, a score on the data's scale, or the cosine."""
        if self.meta["loss"] not in ("softmax", "regression"):
            return np.asarray(u @ v / max(float(np.linalg.norm(u) * np.linalg.norm(v)), 1e-8))
        both = [np.abs(u - v), u * v]
        seen = np.concatenate(both if self.meta["symmetric"] else [u, v, *both])
        logits = self._linear("head.4", np.tanh(self._linear("head.1", seen)))
        if self.meta["loss"] == "regression":
            low, high = self.meta["scale"]
            return np.asarray(low + (high - low) * _sigmoid(logits[0]))
        powers = np.exp((logits - logits.max()) / self.meta["temperature"])
        return np.asarray(powers / powers.sum())

    def score(self, first: str, second: str) -> Array:
        """Judge two texts; see `compare`. The classes' names are in `meta["classes"]`."""
        return self.compare(self.encode(first), self.encode(second))
