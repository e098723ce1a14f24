"""Ranking metrics: values by hand, and equality with scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from polyloom.metrics.ranking import (
    average_precision,
    dcg,
    mean_over_queries,
    ndcg,
    ranked_relevance,
    recall_at,
    reciprocal_rank,
)


def test_values_by_hand() -> None:
    assert average_precision([0, 1, 0, 1]) == pytest.approx((1 / 2 + 2 / 4) / 2, abs=1e-15)
    assert reciprocal_rank([0, 1, 0, 1]) == 0.5
    assert dcg([3, 2], 2) == pytest.approx(7 + 3 / math.log2(3), abs=1e-15)
    assert ndcg([0, 1], 2) == pytest.approx(1 / math.log2(3), abs=1e-15)
    assert recall_at([0, 1, 0, 1], 2) == 0.5


def test_a_query_without_relevant_candidates_is_left_out_of_map_and_counts_zero_in_mrr() -> None:
    assert math.isnan(average_precision([0, 0]))
    assert math.isnan(ndcg([0, 0], 2))
    assert reciprocal_rank([0, 0]) == 0
    assert mean_over_queries([math.nan, 0.5, 1.0]) == 0.75
    assert math.isnan(mean_over_queries([]))


def test_equal_scores_keep_their_order() -> None:
    assert ranked_relevance([1, 2, 1, 2], [1, 2, 3, 4]) == [2, 4, 1, 3]


@given(st.lists(st.booleans(), min_size=2, max_size=30).filter(any), st.integers(0, 99))
def test_agrees_with_scikit_learn(relevance: list[bool], seed: int) -> None:
    scores = np.random.default_rng(seed).permutation(len(relevance)).astype(float)
    ranked = ranked_relevance(scores, relevance)
    assert average_precision(ranked) == pytest.approx(average_precision_score(relevance, scores), abs=1e-12)
    assert ndcg(ranked, 5) == pytest.approx(ndcg_score([relevance], [scores], k=5), abs=1e-12)
