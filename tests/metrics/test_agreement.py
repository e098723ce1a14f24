"""Agreement: hand values, scikit-learn to 1e-12, order of the ensembles, shares that add up, coverage of corrected
rates."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.metrics import agreement as ag

LABELS = [1, 1, 1, 1, 0, 0, 0, 0]
A, B, C = [1, 1, 1, 0, 0, 0, 1, 0], [1, 1, 0, 1, 0, 0, 0, 1], [1, 0, 1, 1, 0, 1, 0, 0]


def test_three_judges_by_hand() -> None:
    for judge in (A, B, C):
        assert ag.accuracy(LABELS, judge) == ag.f1(LABELS, judge) == ag.auroc(LABELS, judge) == 0.75
    rows = [tuple(bool(v) for v in row) for row in zip(A, B, C, strict=True)]
    expected = {"majority": (1, 1, 1), "approval": (0.625, 0.625, 0.7273), "veto": (0.625, 0.625, 0.4)}
    for rule, (accuracy, auroc, f1) in expected.items():
        joint = [bool(ag.aggregate(row, rule)) for row in rows]
        assert ag.accuracy(LABELS, joint) == accuracy
        assert ag.auroc(LABELS, joint) == auroc
        assert ag.f1(LABELS, joint) == pytest.approx(f1, abs=5e-5)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_equals_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle")
    rng = np.random.default_rng(0)
    for n in (5, 20, 400):
        for _ in range(20):
            y, v, s = rng.integers(0, 2, n), rng.integers(0, 2, n), rng.integers(0, 9, n) / 8
            y[:2] = v[:2] = 0, 1
            assert ag.accuracy(y, v) == pytest.approx(metrics.accuracy_score(y, v), abs=1e-12)
            assert ag.f1(y, v) == pytest.approx(metrics.f1_score(y, v), abs=1e-12)
            assert ag.precision(y, v) == pytest.approx(metrics.precision_score(y, v), abs=1e-12)
            assert ag.recall(y, v) == pytest.approx(metrics.recall_score(y, v), abs=1e-12)
            assert ag.cohen_kappa(y, v) == pytest.approx(metrics.cohen_kappa_score(y, v), abs=1e-12)
            assert ag.auroc(y, s) == pytest.approx(metrics.roc_auc_score(y, s), abs=1e-12)
            assert ag.brier_score(y, s) == pytest.approx(metrics.brier_score_loss(y, s), abs=1e-12)


def test_one_class_has_no_auroc_and_nothing_positive_has_f1_zero() -> None:
    assert ag.auroc([1, 1], [0.2, 0.4]) is None
    assert ag.f1([0, 0], [0, 0]) == 0
    assert math.isnan(ag.cohen_kappa([1, 1], [1, 1]))


votes = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=6)


@given(votes)
def test_veto_is_below_majority_is_below_approval(row: list[bool | None]) -> None:
    veto, majority, approval = (ag.aggregate(row, rule) for rule in ("veto", "majority", "approval"))
    decided = [v for v in row if v is not None]
    if len(decided) < min(2, len(row)):
        assert veto is majority is approval is None
    else:
        assert veto is not None
        assert majority is not None
        assert approval is not None
        assert veto <= majority <= approval


@given(st.lists(st.tuples(st.booleans(), votes.map(lambda v: (v * 3)[:3])), min_size=2, max_size=12))
def test_shares_add_up_and_fit_symmetry(items: list[tuple[bool, list[bool | None]]]) -> None:
    labels = [label for label, _ in items]
    first, second, _ = (list(column) for column in zip(*(row for _, row in items), strict=True))
    members = {"a": first, "b": second, "twin": list(second), "silent": [None] * len(labels)}
    shares = ag.shapley_values(members, labels)
    prior = max(np.mean(labels), 1 - np.mean(labels))
    joint = [sum((v is True) - (v is False) for v in row) for row in zip(*members.values(), strict=True)]
    whole = np.mean([(s > 0 if s else np.mean(labels) >= 0.5) == y for s, y in zip(joint, labels, strict=True)])
    assert sum(shares.values()) == pytest.approx(whole - prior, abs=1e-12)
    assert shares["twin"] == pytest.approx(shares["b"], abs=1e-12)
    assert shares["silent"] == pytest.approx(0, abs=1e-12)


def test_krippendorff_by_hand() -> None:
    # Two raters, ten items: coincidences 00: 12, 11: 4, off the diagonal 4 (Krippendorff's binary example has alpha
    # 0.095).
    one = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    two = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    rows = [[bool(a), bool(b)] for a, b in zip(one, two, strict=True)]
    assert ag.krippendorff_alpha(rows) == pytest.approx(0.095, abs=5e-4)
    assert ag.krippendorff_alpha([[True, None], [False, False], [True, True]]) == 1.0
    assert math.isnan(ag.krippendorff_alpha([[True, True]]))


def test_corrected_rate_covers_the_truth() -> None:
    covered = 0
    for k in range(100):
        rng = np.random.default_rng(k)
        truth, tpr, fpr = rng.uniform(0.1, 0.9), rng.uniform(0.75, 1.0), rng.uniform(0.0, 0.25)

        def judge(y: np.ndarray, tpr: float = tpr, fpr: float = fpr, rng: np.random.Generator = rng) -> np.ndarray:
            return rng.random(y.size) < np.where(y, tpr, fpr)

        labels, items = rng.random(120) < 0.5, rng.random(150) < truth
        found = ag.corrected_rate(judge(items), labels, judge(labels), seed=k)
        assert found is not None
        covered += found.low <= truth <= found.high
    assert covered >= 90


def test_corrected_rate_of_a_perfect_judge_is_what_was_seen() -> None:
    found = ag.corrected_rate([1, 1, 0, 0], [1, 0] * 50, [1, 0] * 50)
    assert found is not None
    assert found.value == 0.5
    assert ag.corrected_rate([1, 0], [1, 0], [0, 1]) is None
    assert ag.corrected_rate([1, 0], [1, 1], [1, 0]) is None


def test_threshold_and_rate_at_a_bound() -> None:
    scores = [0.1, 0.2, 0.3, 0.6, 0.7, 0.8]
    labels = [0, 0, 1, 0, 1, 1]
    assert ag.youden_threshold(labels, scores) == pytest.approx(0.25)
    assert ag.true_positive_rate_at(labels, scores, 0.0) == pytest.approx(2 / 3)
    assert ag.true_positive_rate_at(labels, scores, 0.34) == pytest.approx(1.0)


def test_weighted_vote_and_mcnemar() -> None:
    heavy, light = ag.log_odds_weights([0.95, 0.6], 100)
    assert heavy > light > 0
    assert ag.weighted_vote([True, False], [heavy, light]) is True
    assert ag.weighted_vote([None, None], [1, 1]) is None
    assert ag.weighted_vote([True, False], [1, 1]) is None
    # 6 against 1 discordant pairs: 2 (C(7,0) + C(7,1)) / 2^7.
    assert ag.mcnemar_p([1] * 6 + [0], [0] * 6 + [1]) == 2 * 8 / 128
    assert ag.mcnemar_p([1, 0], [1, 0]) == 1


def test_interval_holds_the_value() -> None:
    found = ag.agreement_interval(LABELS * 5, A * 5, ag.accuracy)
    assert found is not None
    assert found.low <= 0.75 <= found.high
    assert ag.agreement_interval([1, 1], [1, 0], ag.auroc) is None


@pytest.mark.parametrize("bad", [[], [2, 0], [[0, 1]]])
def test_what_is_no_label_is_refused(bad: list[int]) -> None:
    with pytest.raises(ValueError, match="each 0 or 1"):
        ag.accuracy(bad, bad)


def test_all_coalitions_of_three_are_counted() -> None:
    shares = ag.shapley_values({"a": [True], "b": [True], "c": [False]}, [True])
    assert sum(shares.values()) == pytest.approx(0.0)
    assert len(list(itertools.permutations(shares))) == 6
