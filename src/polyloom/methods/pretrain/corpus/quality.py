"""A quality classifier trained on the spot: logistic regression on hashed character n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyloom.core.errors import UserError
from polyloom.core.files import replace_atomically
from polyloom.core.seeding import numpy_generator
from polyloom.data.duplicates import hash_text, span_hashes
from polyloom.metrics.agreement import auroc

NUM_BUCKETS = 1 << 20
NGRAMS = (2, 3, 4, 5)
SMALLEST_CLASS = 20
_CHARACTERS = 4000


@dataclass(frozen=True)
class QualityModel:
    """Weights [buckets] of hashed n-grams and an offset."""

    weights: NDArray[np.float32]
    offset: float

    def score(self, text: str) -> float:
        """Return the probability that the text is of the good kind."""
        buckets, values = features(text)
        return float(1.0 / (1.0 + np.exp(-(self.weights[buckets] @ values + self.offset))))

    def save(self, path: Path) -> None:
        """Write the model to an .npz file, atomically."""
        with replace_atomically(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, weights=self.weights, offset=np.float64(self.offset))

    @classmethod
    def load(cls, path: Path) -> QualityModel:
        """Read a model that `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(stored["weights"], float(stored["offset"]))


def features(text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the buckets of a text's character 2- to 5-grams and their log counts, scaled to length 1.

    The first `_CHARACTERS` characters are looked at, lower-cased, white space collapsed.
    """
    points = np.frombuffer(" ".join(text[:_CHARACTERS].lower().split()).encode("utf-32-le"), dtype=np.uint32)
    parts = []
    for n in NGRAMS:
        starts = np.arange(max(0, len(points) - n + 1))
        parts.append(span_hashes(points, starts, starts + n) >> np.uint64(64 - 20))
    buckets, counts = np.unique(np.concatenate(parts).astype(np.int64), return_counts=True)
    values = np.log1p(counts).astype(np.float32)
    norm = float(np.sqrt(np.square(values).sum()))
    return buckets, values / max(norm, 1e-12)


@dataclass(frozen=True)
class Fitted:
    """A model and how well it tells the two kinds apart on texts that it did not see."""

    model: QualityModel
    auc: float | None
    num_train: int
    num_held_out: int


def fit_quality(good: Sequence[str], other: Sequence[str], seed: int = 0, num_epochs: int = 4) -> Fitted:
    """Train on four fifths of the texts and measure on the fifth that the texts' hashes choose.

    Args:
        good: texts of the kind that is wanted.
        other: texts of the usual kind.
        seed: of the order of the texts.
        num_epochs: passes of AdaGrad.

    Raises:
        UserError: too few texts of a kind.
    """
    for name, texts in (("good", good), ("random", other)):
        if len(set(texts)) < SMALLEST_CLASS:
            raise UserError(
                f"{len(set(texts))} different texts are too few for a quality model.",
                where=f"--quality-{name}",
                hint=f"Give at least {SMALLEST_CLASS}, better thousands.",
            )
    labelled = [(text, label) for label, texts in ((1, good), (0, other)) for text in sorted(set(texts))]
    held_out = [item for item in labelled if hash_text(item[0], "held out") % 5 == 0]
    train = [item for item in labelled if hash_text(item[0], "held out") % 5]
    examples = [(*features(text), label) for text, label in train]
    model = _train(examples, seed, num_epochs)
    scores = [model.score(text) for text, _ in held_out]
    area = auroc([label for _, label in held_out], scores) if held_out else None
    return Fitted(model, area, len(train), len(held_out))


def _train(
    examples: Sequence[tuple[NDArray[np.int64], NDArray[np.float32], int]], seed: int, num_epochs: int
) -> QualityModel:
    weights = np.zeros(NUM_BUCKETS, dtype=np.float32)
    squares = np.full(NUM_BUCKETS, 1e-6, dtype=np.float32)
    offset, offset_square = 0.0, 1e-6
    share = sum(label for *_, label in examples) / len(examples)
    for epoch in range(num_epochs):
        for i in numpy_generator(seed, "quality", epoch).permutation(len(examples)):
            buckets, values, label = examples[i]
            probability = 1.0 / (1.0 + np.exp(-(weights[buckets] @ values + offset)))
            # Both kinds weigh the same, whatever their numbers.
            error = float(probability - label) * (0.5 / share if label else 0.5 / (1 - share))
            gradient = error * values
            squares[buckets] += np.square(gradient)
            weights[buckets] -= 0.5 * gradient / np.sqrt(squares[buckets])
            offset_square += error * error
            offset -= 0.1 * error / float(np.sqrt(offset_square))
    return QualityModel(weights, offset)
