"""The game against values that were worked out by hand, and its invariants."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.core.seeding import python_random
from polyloom.methods.commons.arms import ARMS, hint, note_text
from polyloom.methods.commons.engine import (
    Commons,
    Resource,
    allocate,
    allocate_proportionally,
    allocation_pmf,
    check_resource,
    optimum,
    play,
)
from polyloom.methods.commons.policies import greedy, noisy, read_policy, sustainable
from polyloom.methods.commons.scenario import load_scenario

RESOURCE = Resource()
ASKS = st.lists(st.integers(0, 120), min_size=1, max_size=7)


def stocks(*specs: str, seed: int = 0) -> list[int]:
    return play(RESOURCE, [read_policy(spec) for spec in specs], seed).stocks


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("sustainable", [100] * 12),
        ("constant:11", [100, 90, 70, 30]),
        ("constant:12", [100, 80, 40]),
        ("constant:15", [100, 50]),
        ("constant:20", [100]),
        ("proportional:0.11", [100] + [90] * 11),
        ("proportional:0.12", [100, 80, 70, 60, 50, 40, 40, 40, 40, 40, 40, 40]),
        ("proportional:0.15", [100, 50, 30, 20, 10, 10, 10, 10, 10, 10, 10, 10]),
        ("list:9,9,9,9,9,9,9,9,9,9,9,9", [100] * 12),
    ],
)
def test_stocks_of_equal_policies(policy, expected):
    assert stocks(*[policy] * 5) == expected


def test_constant_group_harvest_has_its_closed_form():
    for each in (11, 12, 13, 14):
        group = 5 * each
        path = stocks(*[f"constant:{each}"] * 5)
        closed = [2 * group - (2 * group - 100) * 2**t for t in range(len(path))]
        assert path == [h for h in closed if h > 0][: len(path)]


def test_exactly_five_survives_and_four_does_not():
    assert not RESOURCE.is_collapsed(5)
    assert RESOURCE.is_collapsed(4)
    assert RESOURCE.grow(5) == 10
    assert RESOURCE.per_agent(10, 5) == 1


def test_thresholds_follow_growth_by_search():
    assert all(RESOURCE.thresholds[h] == h // 2 for h in range(101))
    for g in (1.5, 3.0, 1.1):
        resource = Resource(growth=g)
        # ceil(h/g) must be left, and no growth may be lost to the floor.
        for h in range(1, 101):
            assert resource.grow(h - resource.thresholds[h]) >= h
            assert resource.thresholds[h] == h - math.ceil(h / g - 1e-9)


def test_optimum_by_dynamic_programming():
    assert [optimum(RESOURCE, months) for months in range(1, 13)] == [50 * months + 50 for months in range(1, 13)]
    assert optimum(RESOURCE, 12, 5) == 645


@pytest.mark.parametrize(
    ("asks", "stock", "outcome", "chance"),
    [
        ((3, 1), 3, (3, 0), 1 / 8),
        ((3, 1), 3, (2, 1), 7 / 8),
        ((2, 2), 2, (2, 0), 1 / 4),
        ((2, 2), 2, (1, 1), 1 / 2),
        ((4, 4, 4), 4, (4, 0, 0), 1 / 81),
    ],
)
def test_shortage_has_its_exact_chances(asks, stock, outcome, chance):
    assert allocation_pmf(asks, stock)[outcome] == pytest.approx(chance, abs=1e-12)


def test_means_of_an_unequal_shortage():
    pmf = allocation_pmf((4, 2, 2), 5)
    means = [sum(outcome[i] * chance for outcome, chance in pmf.items()) for i in range(3)]
    assert means == pytest.approx([1.9743, 1.5129, 1.5129], abs=1e-4)


@given(ASKS, st.integers(0, 100), st.integers(0, 5))
def test_allocation_gives_whole_stocks_and_never_more_than_asked(asks, stock, seed):
    for share in (allocate, allocate_proportionally):
        obtained = share(asks, stock, python_random(seed, "test").random)
        assert all(0 <= got <= ask for got, ask in zip(obtained, asks, strict=True))
        assert sum(obtained) == min(stock, sum(asks))


@given(ASKS, st.integers(1, 20), st.integers(0, 6))
def test_a_larger_ask_never_leaves_more(asks, more, which):
    game, other = (Commons(RESOURCE, len(asks), 3) for _ in range(2))
    game.harvest(asks)
    other.harvest([ask + (more if i == which % len(asks) else 0) for i, ask in enumerate(asks)])
    assert other.trajectory.rests[0] <= game.trajectory.rests[0]


@given(st.integers(1, 9), st.integers(0, 1000))
def test_obedient_agents_never_lower_the_stock(num_agents, seed):
    path = play(RESOURCE, [sustainable] * num_agents, seed).stocks
    assert path == sorted(path)


@pytest.mark.parametrize("ask", [-1, 2.0, float("nan"), "ten", True, None])
def test_an_ask_that_is_no_number_is_refused_with_agent_and_month(ask):
    with pytest.raises(UserError, match=r"agent 1 asked for .* in month 1"):
        Commons(RESOURCE, 2, 0).harvest([3, ask])


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        ({"capacity": 4}, "capacity"),
        ({"growth": 1.0}, "growth"),
        ({"growth": float("nan")}, "growth"),
        ({"num_months": 0}, "num_months"),
        ({"collapse": -1}, "collapse"),
        ({"initial": 101}, "initial"),
        ({"growth": 2.0, "growth_high": 1.0}, "growth_high"),
    ],
)
def test_impossible_numbers_are_refused(numbers, word):
    with pytest.raises(UserError, match=word):
        check_resource(Resource(**numbers), 5)
    with pytest.raises(UserError, match="agent"):
        check_resource(RESOURCE, 0)


def test_streams_are_named_so_that_what_went_before_changes_nothing():
    first = play(RESOURCE, [greedy] * 5, 7).obtained
    play(RESOURCE, [noisy(sustainable, 0.5)] * 5, 3)
    assert play(RESOURCE, [greedy] * 5, 7).obtained == first
    assert play(RESOURCE, [greedy] * 5, 8).obtained != first


def test_newcomer_is_shown_what_holds_or_what_the_published_code_showed():
    for rules, numbers, months in (
        ("paper", [12, 12, 12] + [10] * 12, [100] * 15),
        ("reference", [10, 12, 12, 12, 10, 7, 6, 5, 3], [100, 100, 100, 100, 80, 60, 50, 40, 30]),
    ):
        game = Commons(Resource(num_months=15), 4, 0, joins={3: 1})
        shown = []
        while not game.done:
            shown.append(hint(game.view, rules, joins=True))
            game.harvest([shown[-1]] * game.view.num_agents)
        if rules == "reference":
            # Ten each of four in month 1, then twelve: 100 100 100 100 80 60 50 40 30.
            assert game.trajectory.stocks[:9] == months
        else:
            assert game.trajectory.stocks == months
        assert shown[: len(numbers)] == numbers


def test_a_note_about_nothing_is_grammatical():
    words = load_scenario("fishery").words
    assert "any" in (note_text(ARMS["universalization"], words, "John", 0) or "")
    assert "10" in (note_text(ARMS["universalization"], words, "John", 10) or "")


def test_unknown_policies_are_named():
    with pytest.raises(UserError, match="greedy"):
        read_policy("gredy")
    with pytest.raises(UserError, match="constant:AMOUNT"):
        read_policy("constant:ten")
    with pytest.raises(UserError, match="noisy"):
        read_policy("noisy:2:greedy")
