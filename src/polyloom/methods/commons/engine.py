"""The resource and its months: asks, exact allocation under shortage, collapse, growth, thresholds and the optimum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

from polyloom.core.errors import UserError
from polyloom.core.seeding import python_random

Growth = Literal["multiply", "logistic", "add"]
Sense = Literal["take", "remove"]
Allocation = Literal["one_by_one", "proportional"]
Uniform = Callable[[], float]


@dataclass(frozen=True)
class Resource:
    """The numbers of a common resource, in whole units.

    Attributes:
        capacity: K, the most that there can be.
        initial: stock of the first month.
        growth: g of `multiply` (next = g rest), rate of `logistic`, units a month of `add`.
        growth_high: with it, g is drawn uniformly from [growth, growth_high] each month.
        kind: how the rest grows; the result is floored and capped at K.
        collapse: C. A `take` game ends when less than C is left, a `remove` game when more than C is left.
        sense: whether units are taken from something good, or removed from something bad (rubbish).
        allocation: how a shortage is shared.
        num_months: T, the horizon.
    """

    capacity: int = 100
    initial: int = 100
    growth: float | int = 2.0
    growth_high: float | int | None = None
    kind: Growth = "multiply"
    collapse: int = 5
    sense: Sense = "take"
    allocation: Allocation = "one_by_one"
    num_months: int = 12

    def grow(self, rest: int, rate: float | int | None = None) -> int:
        """Return next month's stock of `rest` units left (section 2.6 of the game's rules: min(K, g rest))."""
        rate = self.mean_growth if rate is None else rate
        if self.kind == "multiply":
            grown = rate * rest
        elif self.kind == "add":
            grown = rest + rate
        else:
            grown = rest + rate * rest * (1 - rest / self.capacity)
        # A hair above, so that 1.1 * 10 is 11 although its nearest double lies below.
        return min(self.capacity, math.floor(grown + 1e-9))

    @property
    def mean_growth(self) -> float | int:
        """The growth that thresholds count with: the mean where it is drawn."""
        return self.growth if self.growth_high is None else (self.growth + self.growth_high) / 2

    def month_growth(self, seed: int, month: int) -> float | int:
        """Return the growth of one month; drawn from the run's own stream where it is random."""
        if self.growth_high is None:
            return self.growth
        return python_random(seed, "growth", month).uniform(self.growth, self.growth_high)

    def is_collapsed(self, rest: int) -> bool:
        """Say whether `rest` units left end the game; exactly C survives."""
        return rest < self.collapse if self.sense == "take" else rest > self.collapse

    @cached_property
    def thresholds(self) -> tuple[int, ...]:
        """f(h) for h = 0..K: the most that all may take together without a smaller stock next month."""
        return tuple(self._threshold(stock) for stock in range(self.capacity + 1))

    def _threshold(self, stock: int) -> int:
        amounts = range(stock + 1)
        if self.sense == "take":
            return max((x for x in amounts if self.grow(stock - x) >= stock), default=0)
        # What must be removed: the least amount after which the pile is no larger next month, whatever the cap.
        return min(stock, math.ceil(self.mean_growth))

    def per_agent(self, stock: int, num_agents: int) -> int:
        """Return f_a: the share of the threshold of each of `num_agents` (rounded up where it must be removed)."""
        group = self.thresholds[min(stock, self.capacity)]
        return group // num_agents if self.sense == "take" else -(-group // num_agents)


def check_resource(resource: Resource, num_agents: int, where: str = "scenario") -> None:
    """Refuse impossible numbers before anything is played.

    Raises:
        UserError: names the number and the rule.
    """
    r = resource
    problems = (
        (num_agents < 1, f"needs at least 1 agent, not {num_agents}."),
        (r.num_months < 1, f"num_months must be at least 1, not {r.num_months}."),
        (r.collapse < 0, f"collapse must not be negative, not {r.collapse}."),
        (r.capacity < max(1, r.collapse), f"capacity {r.capacity} is below collapse {r.collapse}."),
        (not 0 < r.initial <= r.capacity, f"initial must be in 1..{r.capacity}, not {r.initial}."),
        (not math.isfinite(r.growth), "growth must be a finite number."),
        (r.kind == "multiply" and r.growth <= 1 and r.growth_high is None, f"growth must exceed 1, not {r.growth}."),
        (r.kind != "multiply" and r.growth <= 0, f"growth must be above 0, not {r.growth}."),
        (r.growth_high is not None and r.growth_high < r.growth, "growth_high must not be below growth."),
    )
    for broken, what in problems:
        if broken:
            raise UserError(what, where=where, hint="Nothing was played.")


def allocate(asks: Sequence[int], stock: int, uniform: Uniform) -> list[int]:
    """Share a stock that may be too small: units go one at a time to one of those whose ask is not filled.

    Args:
        asks: one whole, non-negative ask per agent.
        stock: units there are.
        uniform: draws from [0, 1); not called without a shortage.

    Returns:
        One amount per agent; together min(stock, sum of asks).

    Source: GovSim (arXiv 2404.16698), simultaneous harvest with random assignment.
    """
    if sum(asks) <= stock:
        return list(asks)
    obtained = [0] * len(asks)
    waiting = [agent for agent, ask in enumerate(asks) if ask > 0]
    for _ in range(stock):
        at = int(uniform() * len(waiting))
        agent = waiting[at]
        obtained[agent] += 1
        if obtained[agent] == asks[agent]:
            del waiting[at]
    return obtained


def allocate_proportionally(asks: Sequence[int], stock: int, uniform: Uniform) -> list[int]:
    """Share floor(h w_i / sum w); left-over units go at random, weighted by what is still wanted."""
    total = sum(asks)
    if total <= stock:
        return list(asks)
    obtained = [stock * ask // total for ask in asks]
    for _ in range(stock - sum(obtained)):
        draw = uniform() * (total - sum(obtained))
        for agent, ask in enumerate(asks):
            draw -= ask - obtained[agent]
            if draw < 0:
                break
        obtained[agent] += 1
    return obtained


def allocation_pmf(asks: Sequence[int], stock: int) -> dict[tuple[int, ...], float]:
    """Return the exact distribution of `allocate` by following every draw.

    Args:
        asks: asks per agent; small, since the states grow with their product.
        stock: units there are.

    Returns:
        Probability by outcome.
    """
    states = {(0,) * len(asks): 1.0}
    for _ in range(min(stock, sum(asks))):
        following: dict[tuple[int, ...], float] = {}
        for state, chance in states.items():
            waiting = [agent for agent, ask in enumerate(asks) if state[agent] < ask]
            for agent in waiting:
                new = (*state[:agent], state[agent] + 1, *state[agent + 1 :])
                following[new] = following.get(new, 0.0) + chance / len(waiting)
        states = following
    return states


@lru_cache(maxsize=64)
def optimum(resource: Resource, num_months: int, leave: int = 0) -> int:
    """Return the largest total that all agents together can take in `num_months`, by dynamic programming.

    Args:
        resource: a `take` game without random growth.
        num_months: T.
        leave: least stock that must remain at the end.
    """
    value = [0] * (resource.capacity + 1)
    for month in range(num_months, 0, -1):
        following, value = value, []
        for stock in range(resource.capacity + 1):
            best = 0
            for taken in range(stock + 1):
                rest = stock - taken
                if month == num_months and rest < leave:
                    continue
                ends = month == num_months or resource.is_collapsed(rest)
                best = max(best, taken + (0 if ends else following[resource.grow(rest)]))
            value.append(best)
    return value[resource.initial]


@dataclass
class Trajectory:
    """What happened to the stock: one entry per month played, one number per agent present.

    `joined` maps a month (from 0) to the agents who join then; they come last.
    """

    resource: Resource
    stocks: list[int] = field(default_factory=list)
    rests: list[int] = field(default_factory=list)
    thresholds: list[int] = field(default_factory=list)
    asks: list[list[int]] = field(default_factory=list)
    obtained: list[list[int]] = field(default_factory=list)
    collapsed: bool = False

    @property
    def num_months(self) -> int:
        """Months played."""
        return len(self.stocks)


@dataclass(slots=True)
class View:
    """What an agent may know at the start of a month (from 0)."""

    resource: Resource
    seed: int
    month: int
    stock: int
    num_agents: int
    threshold: int
    limit: int | None = None
    last_obtained: list[int] = field(default_factory=list)
    last_threshold: int = 0
    offenders: set[int] = field(default_factory=set)


class Commons:
    """A game in progress: `view` shows the month, `harvest` plays it."""

    def __init__(
        self, resource: Resource, num_agents: int, seed: int, *, joins: Mapping[int, int] | None = None
    ) -> None:
        """Start a game.

        Args:
            resource: its numbers, checked.
            num_agents: agents at the start.
            seed: of allocation and growth; every month has streams of its own.
            joins: how many agents join at the start of a month (from 0).
        """
        self.resource, self.seed, self.joins = resource, seed, dict(joins or {})
        self.trajectory = Trajectory(resource)
        self.done = False
        self.view = View(resource, seed, 0, resource.initial, num_agents, 0)
        self._share = allocate if resource.allocation == "one_by_one" else allocate_proportionally
        self._arrive()

    def _arrive(self) -> None:
        view = self.view
        view.num_agents += self.joins.get(view.month, 0)
        view.threshold = self.resource.per_agent(view.stock, view.num_agents)

    def harvest(self, asks: Sequence[Any]) -> list[int]:
        """Play the month with these asks and return what each agent obtained.

        Raises:
            UserError: an ask that is no whole number of 0 or more.
        """
        view, resource, record = self.view, self.resource, self.trajectory
        for agent, ask in enumerate(asks):
            if type(ask) is not int or ask < 0:
                what = f"agent {agent} asked for {ask!r} in month {view.month + 1}."
                raise UserError(what, hint="An ask is a whole number of 0 or more.")
        stock = view.stock
        if sum(asks) <= stock:
            obtained = list(asks)
        else:
            obtained = self._share(asks, stock, python_random(self.seed, "allocation", view.month).random)
        rest = stock - sum(obtained)
        record.stocks.append(stock)
        record.rests.append(rest)
        record.thresholds.append(view.threshold)
        record.asks.append(list(asks))
        record.obtained.append(obtained)
        record.collapsed = resource.is_collapsed(rest)
        view.offenders.update(agent for agent, amount in enumerate(obtained) if amount > view.threshold)
        view.last_obtained, view.last_threshold = obtained, view.threshold
        view.stock = resource.grow(rest, resource.month_growth(self.seed, view.month))
        view.month += 1
        self.done = record.collapsed or view.month >= resource.num_months
        if not self.done:
            self._arrive()
        return obtained


Policy = Callable[[View, int], int]


def play(
    resource: Resource,
    policies: Sequence[Policy],
    seed: int,
    *,
    num_at_start: int | None = None,
    joins: Mapping[int, int] | None = None,
) -> Trajectory:
    """Play a whole game by policies, without talk.

    Args:
        resource: the numbers.
        policies: one per agent; those beyond `num_at_start` join by `joins`.
        seed: of the run.
        num_at_start: agents of the first month; all by default.
        joins: how many join at the start of a month.
    """
    game = Commons(resource, len(policies) if num_at_start is None else num_at_start, seed, joins=joins)
    view = game.view
    while not game.done:
        game.harvest([policy(view, agent) for agent, policy in enumerate(policies[: view.num_agents])])
    return game.trajectory
