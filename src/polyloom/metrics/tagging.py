"""Scores of tagging and semantic parsing: entity spans by the CoNLL rules, slots, intents and exact match.

Every score is a ratio of counts that add up over sentences, so that one bootstrap over sentences serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyloom.core.seeding import numpy_generator
from polyloom.metrics.statistics import Interval

Counts = NDArray[np.int64]
"""[sentences, 3]: correct, predicted and gold items; for an accuracy the last two are what was judged."""
Floats = NDArray[np.float64]


class Span(NamedTuple):
    """An entity: its type, its first word and its last word (inclusive)."""

    type: str
    start: int
    end: int


def spans(tags: Sequence[str]) -> list[Span]:
    """Return the entities of BIO tags by the CoNLL rules, as seqeval's default mode does.

    An `I-` behind `O` or behind another type begins a new entity.

    Args:
        tags: one tag a word: `O`, `B-TYPE` or `I-TYPE`.
    """
    found: list[Span] = []
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        continues = prefix == "I" and kind and own == kind
        if kind and not continues:
            found.append(Span(kind, start, place - 1))
            kind = ""
        if prefix != "O" and not continues:
            start, kind = place, own or "_"
    return found


def span_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Counts:
    """Count correct, predicted and gold entities of each sentence.

    Args:
        gold: tags of each sentence.
        predicted: as many, of equal lengths.

    Raises:
        ValueError: unequal numbers of sentences or words.
    """
    rows = []
    for right, said in zip(gold, predicted, strict=True):
        if len(right) != len(said):
            raise ValueError(f"{len(said)} predicted tags for {len(right)} words")
        a, b = set(spans(right)), set(spans(said))
        rows.append((len(a & b), len(b), len(a)))
    return np.asarray(rows, dtype=np.int64).reshape(-1, 3)


def word_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Counts:
    """Count words with the right tag, a row a sentence, for tag accuracy."""
    rows = [
        (sum(a == b for a, b in zip(right, said, strict=True)), len(right), len(right))
        for right, said in zip(gold, predicted, strict=True)
    ]
    return np.asarray(rows, dtype=np.int64).reshape(-1, 3)


def label_counts(gold: Sequence[str], predicted: Sequence[str]) -> Counts:
    """Count right labels, one a sentence, for accuracy."""
    rows = [(int(a == b), 1, 1) for a, b in zip(gold, predicted, strict=True)]
    return np.asarray(rows, dtype=np.int64).reshape(-1, 3)


def exact_counts(
    gold_intents: Sequence[str],
    intents: Sequence[str],
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
) -> Counts:
    """Count utterances whose intent and every slot tag are right: MTOP's exact match."""
    rows = [
        (int(a == b and list(right) == list(said)), 1, 1)
        for a, b, right, said in zip(gold_intents, intents, gold, predicted, strict=True)
    ]
    return np.asarray(rows, dtype=np.int64).reshape(-1, 3)


def score(counts: Counts) -> float:
    """Return micro F1 of summed counts in [0, 1]; for labels it is the accuracy. 0 where there is nothing.

    Args:
        counts: [sentences, 3].
    """
    correct, predicted, gold = counts.sum(0).tolist()
    return 2 * correct / (predicted + gold) if predicted + gold else 0.0


def _resampled(counts: Counts, weights: Floats) -> Floats:
    """Return the score of each resample: `counts` [sentences, 3], `weights` [resamples, sentences]."""
    sums = weights @ counts
    total = sums[:, 1] + sums[:, 2]
    return np.asarray(np.divide(2 * sums[:, 0], total, out=np.zeros(len(sums)), where=total > 0))


def bootstrap_score(counts: Sequence[Counts], *, num_resamples: int = 1000, seed: int = 0) -> Interval:
    """Return the mean score over seeds with its 95 % interval over the sentences.

    Args:
        counts: of each seed, [sentences, 3], of the same sentences.
        num_resamples: draws with replacement.
        seed: of the draws.
    """
    nothing = [np.zeros_like(one) for one in counts]
    return bootstrap_difference([(counts, nothing)], num_resamples=num_resamples, seed=seed)


def bootstrap_difference(
    groups: Sequence[tuple[Sequence[Counts], Sequence[Counts]]], *, num_resamples: int = 1000, seed: int = 0
) -> Interval:
    """Return the mean difference of two systems' scores with its 95 % interval over the sentences.

    The same sentences are drawn for both systems and for all of their seeds; groups (languages) are drawn apart and
    weigh the same.

    Args:
        groups: counts of the first and of the second system for each seed, [sentences, 3].
        num_resamples: draws with replacement.
        seed: of the draws.
    """
    draws, values = [], []
    for number, (first, second) in enumerate(groups):
        size = len(first[0])
        generator = numpy_generator(seed, "sentence bootstrap", number, size)
        weights = generator.multinomial(size, np.full(size, 1 / size), num_resamples).astype(np.float64)
        pairs = list(zip(first, second, strict=True))
        draws.append(np.mean([_resampled(a, weights) - _resampled(b, weights) for a, b in pairs], axis=0))
        values.append(float(np.mean([score(a) - score(b) for a, b in pairs])))
    low, high = np.quantile(np.mean(draws, axis=0), (0.025, 0.975)).tolist()
    return Interval(float(np.mean(values)), low, high)
