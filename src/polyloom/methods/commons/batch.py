"""The same game for thousands of runs at once, in numpy: for studies of policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from polyloom.core.errors import UserError, closest
from polyloom.core.seeding import numpy_generator
from polyloom.methods.commons.engine import Resource

Whole = NDArray[np.int64]


@dataclass
class BatchView:
    """What the agents of all runs may know: arrays over runs (and agents)."""

    resource: Resource
    random: np.random.Generator
    month: int
    num_agents: int
    stock: Whole
    threshold: Whole
    last_obtained: Whole
    last_threshold: Whole
    offended: NDArray[np.bool_]


BatchPolicy = Callable[[BatchView, int], Whole]


def _tit_for_tat(view: BatchView, agent: int) -> Whole:
    others = np.delete(view.last_obtained, agent, axis=1)
    largest = others.max(1) if others.shape[1] else np.zeros_like(view.stock)
    return np.where(largest <= view.last_threshold, view.threshold, np.minimum(view.stock, largest))


def _rebuild(view: BatchView, agent: int) -> Whole:
    return np.maximum(0, (view.stock - view.resource.capacity // 2) // view.num_agents)


def _last(view: BatchView) -> bool:
    return view.month == view.resource.num_months - 1


PLAIN: dict[str, BatchPolicy] = {
    "sustainable": lambda view, agent: view.threshold,
    "universalizing": lambda view, agent: view.threshold,
    "greedy": lambda view, agent: view.stock,
    "random": lambda view, agent: view.random.integers(0, view.stock + 1),
    "rebuild": _rebuild,
    "defect-at-end": lambda view, agent: view.stock if _last(view) else view.threshold,
    "tit-for-tat": _tit_for_tat,
    "grim": lambda view, agent: np.where(view.offended, view.stock, view.threshold),
    "limit-follower": lambda view, agent: view.threshold,
    "optimal-universalizer": lambda view, agent: (
        view.stock // view.num_agents if _last(view) else _rebuild(view, agent)
    ),
}


def read_batch_policy(spec: str) -> BatchPolicy:
    """Return the policy that a string names, as `policies.read_policy` does, over arrays of runs."""
    name, _, argument = spec.partition(":")
    if name in PLAIN:
        return PLAIN[name]
    if name == "constant":
        return lambda view, agent: np.minimum(int(argument), view.stock)
    if name == "proportional":
        return lambda view, agent: np.minimum(view.stock, np.floor(float(argument) * view.stock + 1e-9).astype(int))
    if name == "noisy":
        chance, _, inner = argument.partition(":")
        policy = read_batch_policy(inner)

        def ask(view: BatchView, agent: int) -> Whole:
            noise = view.random.random(view.stock.size) < float(chance)
            return np.where(noise, view.random.integers(0, view.stock + 1), policy(view, agent))

        return ask
    raise UserError(f"there is no batch policy {spec!r}.", hint=closest(name, [*PLAIN, "constant", "proportional"]))


def allocate_batch(asks: Whole, stock: Whole, random: np.random.Generator) -> Whole:
    """Share stocks that may be too small, for many runs at once, with the distribution of `engine.allocate`.

    All units left are thrown on the agents still waiting, with equal chances; what falls on an agent beyond its ask
    is thrown again. A throw that misses changes nothing about the next, so this is one-at-a-time dealing without
    the order.

    Args:
        asks: [runs, agents].
        stock: [runs].
        random: of the throws.

    Returns:
        [runs, agents] what each obtains.
    """
    obtained = asks.copy()
    rows = np.flatnonzero(asks.sum(1) > stock)
    if rows.size == 0:
        return obtained
    wanted, left = asks[rows], stock[rows].copy()
    given = np.zeros_like(wanted)
    busy = np.flatnonzero(left > 0)
    while busy.size:
        waiting = given[busy] < wanted[busy]
        thrown = random.multinomial(left[busy], waiting / waiting.sum(1, keepdims=True))
        new = np.minimum(given[busy] + thrown, wanted[busy])
        left[busy] -= (new - given[busy]).sum(1)
        given[busy] = new
        busy = busy[left[busy] > 0]
    obtained[rows] = given
    return obtained


@dataclass
class BatchResult:
    """What became of all runs: arrays over runs."""

    months: Whole
    collapsed: NDArray[np.bool_]
    totals: Whole
    num_over: Whole
    num_harvests: Whole
    stocks: list[Whole] = field(default_factory=list)

    def metrics(self, resource: Resource) -> dict[str, NDArray[np.float64]]:
        """Return months, gain, efficiency, equality (NaN where nobody gained) and over-usage of every run."""
        total = self.totals.sum(1)
        most = resource.num_months * resource.thresholds[resource.initial]
        n = self.totals.shape[1]
        spread = np.abs(self.totals[:, :, None] - self.totals[:, None, :]).sum((1, 2))
        with np.errstate(invalid="ignore", divide="ignore"):
            equality = 100.0 * (1.0 - spread / (2.0 * n * total))
        return {
            "months": self.months.astype(float),
            "gain": total / n,
            "efficiency": 100.0 * (1.0 - np.maximum(0, most - total) / most),
            "equality": np.where(total > 0, equality, np.nan),
            "over_usage": 100.0 * self.num_over / self.num_harvests,
        }


def play_batch(
    resource: Resource, policies: Sequence[BatchPolicy], num_runs: int, seed: int, *, keep_stocks: bool = False
) -> BatchResult:
    """Play `num_runs` games at once.

    Args:
        resource: the numbers, a `take` game.
        policies: one per agent.
        num_runs: games.
        seed: of all of them together.
        keep_stocks: keep the stock of every month (0 after the end).
    """
    n = len(policies)
    random = numpy_generator(seed, "batch")
    table = np.array(resource.thresholds, dtype=np.int64) // n
    grown = np.array([resource.grow(rest) for rest in range(resource.capacity + 1)], dtype=np.int64)
    alive = np.arange(num_runs)
    stock = np.full(num_runs, resource.initial, dtype=np.int64)
    result = BatchResult(
        np.zeros(num_runs, dtype=np.int64),
        np.zeros(num_runs, dtype=bool),
        np.zeros((num_runs, n), dtype=np.int64),
        np.zeros(num_runs, dtype=np.int64),
        np.zeros(num_runs, dtype=np.int64),
    )
    zeros = np.zeros((num_runs, n), dtype=np.int64)
    view = BatchView(resource, random, 0, n, stock, table[stock], zeros, stock * 0, np.zeros(num_runs, dtype=bool))
    for month in range(resource.num_months):
        view.month = month
        if keep_stocks:
            result.stocks.append(np.bincount(alive, weights=view.stock, minlength=num_runs).astype(np.int64))
        asks = np.stack([np.asarray(policy(view, agent)) for agent, policy in enumerate(policies)], axis=1)
        obtained = allocate_batch(asks, view.stock, random)
        rest = view.stock - obtained.sum(1)
        over = obtained > view.threshold[:, None]
        result.months[alive] = month + 1
        result.totals[alive] += obtained
        result.num_over[alive] += over.sum(1)
        result.num_harvests[alive] += n
        ended = rest < resource.collapse
        result.collapsed[alive] = ended
        if ended.any():
            alive, obtained, rest, over = (array[~ended] for array in (alive, obtained, rest, over))
            view.threshold, view.offended = view.threshold[~ended], view.offended[~ended]
        if alive.size == 0:
            break
        view.offended = view.offended | over.any(1)
        view.last_obtained, view.last_threshold = obtained, view.threshold
        if resource.growth_high is None:
            view.stock = grown[rest]
        else:
            rates = random.uniform(resource.growth, resource.growth_high, rest.size)
            view.stock = np.minimum(resource.capacity, np.floor(rates * rest + 1e-9)).astype(np.int64)
        view.threshold = table[view.stock]
    return result
