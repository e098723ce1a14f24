"""Metrics against hand values, Gini by another formula, and the batch engine against the plain one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.methods.commons.batch import allocate_batch, play_batch, read_batch_policy
from polyloom.methods.commons.engine import Resource, Trajectory, allocation_pmf, play
from polyloom.methods.commons.learning import Learning, learn, play_greedily
from polyloom.methods.commons.metrics import equality, score
from polyloom.methods.commons.policies import read_policy
from polyloom.methods.commons.study import CASES

RESOURCE = Resource()


@pytest.mark.parametrize(("spec", "months", "total", "efficiency", "over"), CASES)
def test_policies_with_exact_values(spec, months, total, efficiency, over):
    found = score(play(RESOURCE, [read_policy(spec)] * 5, 1))
    assert (found.months, found.total) == (months, total)
    assert found.efficiency == pytest.approx(efficiency, abs=1e-9)
    if over is not None:
        assert found.over_usage == pytest.approx(over, abs=1e-9)


def test_nobody_gains_nothing_equally():
    found = score(play(RESOURCE, [read_policy("constant:0")] * 5, 0))
    assert found.equality is None
    assert found.survived
    assert found.over_usage == 0


def test_collapse_in_the_last_month_is_said():
    found = score(play(RESOURCE, [read_policy("list:10,10,10,10,10,10,10,10,10,10,10,20")] * 5, 0))
    assert found.survived
    assert found.collapsed_at_end
    assert (found.total, found.efficiency, found.regret) == (650, 100.0, 0)
    assert found.over_usage == pytest.approx(100 / 12)


def test_one_taker_has_the_least_equality():
    assert equality([0, 0, 7, 0, 0]) == pytest.approx(20.0)
    assert equality([10, 10, 10, 10, 60]) == pytest.approx(60.0)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=9).filter(any))
def test_equality_is_one_minus_gini(gains):
    x = np.sort(np.array(gains, dtype=float))
    shares = np.concatenate([[0], np.cumsum(x) / x.sum()])
    gini = 1 - float(((shares[1:] + shares[:-1]) / len(x)).sum())
    assert equality(gains) == pytest.approx(100 * (1 - gini), abs=1e-9)
    assert 100 / len(gains) - 1e-9 <= equality(gains) <= 100 + 1e-9


@given(st.permutations(range(5)), st.integers(0, 50))
def test_the_order_of_agents_changes_no_metric(order, seed):
    record = play(
        RESOURCE, [read_policy(s) for s in ("sustainable", "constant:14", "random", "rebuild", "greedy")], seed
    )
    turned = Trajectory(RESOURCE, record.stocks, record.rests, record.thresholds, collapsed=record.collapsed)
    turned.asks = [[month[i] for i in order] for month in record.asks]
    turned.obtained = [[month[i] for i in order] for month in record.obtained]
    assert score(turned) == score(record)


def test_all_units_scaled_leave_the_shares():
    # 5 agents, no shortage, an even capacity: percentages do not see the unit.
    for factor in (2, 3):
        large = Resource(100 * factor, 100 * factor, collapse=5 * factor)
        a = score(play(RESOURCE, [read_policy("list:8,9,10,9")] * 5, 0))
        amounts = ",".join(str(factor * amount) for amount in (8, 9, 10, 9))
        b = score(play(large, [read_policy(f"list:{amounts}")] * 5, 0))
        assert (a.efficiency, a.equality, a.months) == pytest.approx((b.efficiency, b.equality, b.months))


def test_diluted_over_usage_is_that_of_the_published_tables():
    one = play(RESOURCE, [read_policy("constant:25")] * 5, 0)
    found = score(one, num_utterances=9)
    assert found.over_usage == pytest.approx(100 * sum(a > 10 for a in one.obtained[0]) / 5)
    assert found.over_usage_diluted == pytest.approx(found.over_usage * 5 / 14)


@pytest.mark.parametrize(
    "spec", ["sustainable", "constant:10", "constant:0", "proportional:0.12", "proportional:0.07", "rebuild"]
)
def test_batch_equals_the_plain_engine(spec):
    plain = score(play(RESOURCE, [read_policy(spec)] * 5, 0))
    batch = play_batch(RESOURCE, [read_batch_policy(spec)] * 5, 3, 0).metrics(RESOURCE)
    assert batch["months"].tolist() == [plain.months] * 3
    assert batch["gain"] == pytest.approx([plain.gain] * 3)
    assert batch["efficiency"] == pytest.approx([plain.efficiency] * 3)
    assert batch["over_usage"] == pytest.approx([plain.over_usage] * 3)


def test_greedy_runs_have_the_multinomials_mean_equality():
    found = play_batch(RESOURCE, [read_batch_policy("greedy")] * 5, 20_000, 1).metrics(RESOURCE)
    assert found["equality"].mean() == pytest.approx(89.93, abs=0.15)
    assert found["over_usage"].mean() == pytest.approx(99.44, abs=0.1)


@pytest.mark.parametrize(("asks", "stock"), [((3, 1), 3), ((4, 4, 4), 4), ((4, 2, 2), 5), ((5, 0, 1), 3)])
def test_batch_shortage_has_the_exact_distribution(asks, stock):
    draws = 100_000
    got = allocate_batch(np.tile(asks, (draws, 1)), np.full(draws, stock), np.random.default_rng(0))
    assert (got.sum(1) == stock).all()
    outcomes, counts = np.unique(got, axis=0, return_counts=True)
    pmf = allocation_pmf(asks, stock)
    seen = {tuple(o): c / draws for o, c in zip(outcomes.tolist(), counts.tolist(), strict=True)}
    assert 0.5 * sum(abs(pmf.get(k, 0) - seen.get(k, 0)) for k in pmf.keys() | seen.keys()) < 0.01


def test_learners_that_imagine_all_alike_survive():
    settings = Learning(num_episodes=1500)
    survived = {}
    for rule in ("independent", "universalizing"):
        played = play_greedily(RESOURCE, learn(RESOURCE, rule, 8, 0, settings), 0)
        survived[rule] = (played.months == 12).mean()
    assert survived["independent"] == 0
    assert survived["universalizing"] >= 0.5
