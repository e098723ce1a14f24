"""ROUGE-L against hand values and the reference library."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.metrics.rouge import longest_common_subsequence, rouge_l, word_tokens

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
WORDS = st.lists(st.sampled_from(["the", "cat", "Sat", "down", "on", "42", "-", "!"]), max_size=12).map(" ".join)


def test_hand_value() -> None:
    assert rouge_l("the cat sat", "the cat sat down") == pytest.approx(0.857142857, abs=1e-9)


def test_empty_sides_score_zero() -> None:
    assert rouge_l("", "a") == rouge_l("a", "") == rouge_l("", "") == rouge_l("a", []) == 0.0


@given(WORDS, WORDS)
def test_equals_the_reference_library(hypothesis: str, reference: str) -> None:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    expected = scorer.score(reference, hypothesis)["rougeL"].fmeasure
    assert rouge_l(hypothesis, reference) == pytest.approx(expected, abs=1e-12)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_the_best_reference_counts(hypothesis: str, references: list[str]) -> None:
    assert rouge_l(hypothesis, references) == max(rouge_l(hypothesis, one) for one in references)


def test_other_scripts_vanish_under_the_published_tokens_and_not_under_ours() -> None:
    assert rouge_l("Привет мир", "Привет мир") == 0.0
    assert rouge_l("Привет мир", "Привет мир", word_tokens) == 1.0
    assert word_tokens("東京 is Tokyo東") == ["東", "京", "is", "tokyo", "東"]
    assert rouge_l("東京都", "東京", word_tokens) == pytest.approx(0.8)


def test_subsequence_is_symmetric_and_allows_gaps() -> None:
    assert longest_common_subsequence("abcde", "ace") == longest_common_subsequence("ace", "abcde") == 3
