"""Span F1 against seqeval, exact match by hand, and the bootstrap over sentences."""

from __future__ import annotations

import pytest

from polyloom.core.seeding import numpy_generator
from polyloom.metrics.tagging import (
    Span,
    bootstrap_difference,
    bootstrap_score,
    exact_counts,
    label_counts,
    score,
    span_counts,
    spans,
    word_counts,
)


def test_spans_by_hand():
    assert spans(["B-PER", "I-PER", "O", "B-LOC"]) == [Span("PER", 0, 1), Span("LOC", 3, 3)]
    assert spans(["I-PER", "I-LOC", "O", "I-LOC", "B-LOC"]) == [
        Span("PER", 0, 0),
        Span("LOC", 1, 1),
        Span("LOC", 3, 3),
        Span("LOC", 4, 4),
    ]
    assert spans([]) == []


def test_f1_by_hand():
    counts = span_counts([["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "O", "O", "B-LOC"]])
    assert counts.tolist() == [[1, 2, 2]]
    assert score(counts) == 0.5
    assert score(span_counts([["O"]], [["O"]])) == 0.0


@pytest.mark.filterwarnings("ignore")
def test_f1_equals_seqeval_on_a_thousand_random_sequences():
    from seqeval.metrics import f1_score

    rng = numpy_generator(0, "tags")
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-a-b", "I-a-b"]
    for _ in range(1000):
        size = int(rng.integers(1, 12))
        gold, said = rng.choice(names, (2, size)).tolist()
        assert score(span_counts([gold], [said])) == pytest.approx(f1_score([gold], [said], zero_division=0))


def test_exact_match_and_accuracies():
    assert exact_counts(["IN:A"], ["IN:A"], [["O", "O"]], [["O", "O"]]).tolist() == [[1, 1, 1]]
    assert exact_counts(["IN:A"], ["IN:B"], [["O"]], [["O"]]).tolist() == [[0, 1, 1]]
    assert exact_counts(["IN:A"], ["IN:A"], [["B-x"]], [["O"]]).tolist() == [[0, 1, 1]]
    assert score(label_counts(["a", "b", "c"], ["a", "b", "a"])) == pytest.approx(2 / 3)
    assert score(word_counts([["NOUN", "VERB"], ["DET"]], [["NOUN", "NOUN"], ["DET"]])) == pytest.approx(2 / 3)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="1 predicted tags for 2 words"):
        span_counts([["O", "O"]], [["O"]])


def test_the_bootstrap_holds_a_certain_difference_and_nothing_between_equals():
    right = label_counts(["a"] * 50, ["a"] * 50)
    wrong = label_counts(["a"] * 50, ["b"] * 50)
    certain = bootstrap_difference([([right, right], [wrong, wrong])])
    assert (certain.value, certain.low, certain.high) == (1.0, 1.0, 1.0)
    half = label_counts(["a"] * 50, ["a", "b"] * 25)
    nothing = bootstrap_difference([([half], [half])])
    assert (nothing.low, nothing.high) == (0.0, 0.0)
    shaky = bootstrap_difference([([right], [half])])
    assert shaky.value == 0.5
    assert 0.3 < shaky.low < 0.5 < shaky.high < 0.7
    mean = bootstrap_difference([([right], [half]), ([half], [half])])
    assert mean.value == 0.25
    assert bootstrap_score([half]).value == 0.5
