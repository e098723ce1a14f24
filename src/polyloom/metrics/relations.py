"""Scores of extracted relations, as DocRED's official evaluation counts them, and the edits between sets of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from polyloom.core.seeding import numpy_generator
from polyloom.metrics.statistics import Interval

Fact = tuple[str, int, str, int]
"""Title, head entity, relation, tail entity."""
Smoothing = Literal["official", "atlop"]
ATLOP_EPSILON = 1e-5


class Prediction(NamedTuple):
    """One predicted relation with its evidence sentences and its score."""

    title: str
    head: int
    relation: str
    tail: int
    evidence: tuple[int, ...] = ()
    score: float = 0.0

    @property
    def fact(self) -> Fact:
        """The prediction without evidence and score."""
        return (self.title, self.head, self.relation, self.tail)


class Score(NamedTuple):
    """Precision, recall and their harmonic mean; all 0 where nothing was found."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class RelationScores:
    """The official figures.

    Attributes:
        relation: precision, recall, F1 of facts.
        ignored: the same without facts that training names (Ign F1); its recall is that of `relation`.
        evidence: of evidence sentences.
        num_correct: correct facts.
        num_predicted: unique predicted facts, those of unknown titles included.
        num_gold: gold facts.
        num_correct_in_train: correct facts that training names.
    """

    relation: Score
    ignored: Score
    evidence: Score
    num_correct: int
    num_predicted: int
    num_gold: int
    num_correct_in_train: int


def score_of(num_correct: float, num_predicted: float, num_gold: float) -> Score:
    """Return precision, recall and F1 from counts; a share of nothing is 0."""
    precision = num_correct / num_predicted if num_predicted else 0.0
    recall = num_correct / num_gold if num_gold else 0.0
    return Score(precision, recall, harmonic(precision, recall))


def harmonic(precision: float, recall: float) -> float:
    """Return the harmonic mean, 0 for two zeros."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def unique_predictions(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Sort by (title, head, tail, relation) and keep the first of equal facts, as the official scorer does."""
    kept: dict[Fact, Prediction] = {}
    for prediction in predictions:
        kept.setdefault(prediction.fact, prediction)
    return sorted(kept.values(), key=lambda one: (one.title, one.head, one.tail, one.relation))


def score_relations(
    gold: Mapping[Fact, Collection[int]],
    predictions: Iterable[Prediction],
    *,
    titles: Collection[str] | None = None,
    in_train: Collection[Fact] = (),
    smoothing: Smoothing = "official",
    keep: Callable[[Fact], bool] = lambda fact: True,
) -> RelationScores:
    """Score predicted relations.

    Args:
        gold: facts to evidence sentences.
        predictions: in any order, with repetitions.
        titles: of all documents; by default those that have gold facts.
        in_train: gold facts of which any pair of names stands in training with this relation.
        smoothing: `atlop` adds 1e-5 to the divisor of Ign precision, as ATLOP's and DREEAM's code does.
        keep: restricts gold and predictions alike, for slices.

    Source: Yao et al. (2019), DocRED's evaluation script.
    """
    facts = {fact: set(evidence) for fact, evidence in gold.items() if keep(fact)}
    known = {fact[0] for fact in gold} if titles is None else set(titles)
    found = [one for one in unique_predictions(predictions) if keep(one.fact)]
    correct = [one for one in found if one.fact in facts]
    seen = set(in_train)
    num_seen = sum(one.fact in seen for one in correct)
    relation = score_of(len(correct), len(found), len(facts))
    divisor = len(found) - num_seen + (ATLOP_EPSILON if smoothing == "atlop" else 0.0)
    precision = (len(correct) - num_seen) / divisor if divisor else 0.0
    evidence = score_of(
        sum(len(facts[one.fact] & set(one.evidence)) for one in correct),
        sum(len(set(one.evidence)) for one in found if one.title in known),
        sum(map(len, facts.values())),
    )
    return RelationScores(
        relation,
        Score(precision, relation.recall, harmonic(precision, relation.recall)),
        evidence,
        len(correct),
        len(found),
        len(facts),
        num_seen,
    )


def counts_by_title(
    gold: Collection[Fact], predictions: Iterable[Prediction], titles: Sequence[str]
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return [documents, 3] counts: correct, predicted, gold. Predictions of unknown titles are left out."""
    facts, rows = set(gold), {title: i for i, title in enumerate(titles)}
    counts = np.zeros((len(rows), 3))
    for title, *_ in facts:
        counts[rows[title], 2] += 1
    for one in unique_predictions(predictions):
        if one.title in rows:
            counts[rows[one.title], 1] += 1
            counts[rows[one.title], 0] += one.fact in facts
    return counts


def _f1(sums: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    divisor: np.ndarray[tuple[int], np.dtype[np.float64]] = sums[:, 1] + sums[:, 2]
    result: np.ndarray[tuple[int], np.dtype[np.float64]] = 2 * sums[:, 0] / np.maximum(divisor, 1.0)
    return result


def bootstrap_f1(
    counts: np.ndarray[tuple[int, int], np.dtype[np.float64]],
    baseline: np.ndarray[tuple[int, int], np.dtype[np.float64]] | None = None,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return micro F1, or its difference to a baseline's, with a 95 % interval from resampled documents.

    Args:
        counts: of `counts_by_title`.
        baseline: the same documents' counts of another system: they are drawn together.
        num_resamples: draws of documents with replacement.
        seed: of the draws.
    """
    drawn = numpy_generator(seed, "documents").integers(0, len(counts), (num_resamples, len(counts)))
    value = _f1(counts.sum(0, keepdims=True))
    draws = _f1(counts[drawn].sum(1))
    if baseline is not None:
        value, draws = value - _f1(baseline.sum(0, keepdims=True)), draws - _f1(baseline[drawn].sum(1))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(value[0]), float(low), float(high))


def edit_steps(recommended: Collection[Fact], final: Collection[Fact], *, composite: bool = False) -> int:
    """Count the edits that turn one set of facts into the other: |G \\ Q| + |Q \\ G|.

    Args:
        recommended: Q, what the annotator finds.
        final: G, what the annotator leaves.
        composite: a changed relation of a pair, and a changed direction, count once instead of twice.
    """
    missing, wrong = set(final) - set(recommended), set(recommended) - set(final)
    steps = len(missing) + len(wrong)
    if not composite:
        return steps
    for turned in (lambda fact: (fact[0], fact[3], fact[2], fact[1]), None):
        for fact in sorted(missing):
            partner = _partner(fact, wrong, turned)
            if partner is not None:
                wrong.discard(partner)
                missing.discard(fact)
                steps -= 1
    return steps


def _partner(fact: Fact, wrong: set[Fact], turned: Callable[[Fact], Fact] | None) -> Fact | None:
    if turned is not None:
        return turned(fact) if turned(fact) in wrong else None
    same = sorted(one for one in wrong if (one[0], one[1], one[3]) == (fact[0], fact[1], fact[3]))
    return same[0] if same else None
