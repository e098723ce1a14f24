"""Tabular learners in the commons: independent ones, and ones that imagine that all act as they do.

This shows a principle with learners. It says nothing about language models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polyloom.core.seeding import numpy_generator
from polyloom.methods.commons.batch import BatchResult, Whole, allocate_batch
from polyloom.methods.commons.engine import Policy, Resource, View

Rule = Literal["independent", "universalizing"]
BIN_UNITS = 5


@dataclass(frozen=True)
class Learning:
    """Q-learning of all agents at once: 12-month episodes, exploration falling linearly."""

    num_agents: int = 5
    num_actions: int = 41
    num_episodes: int = 4000
    step: float = 0.1
    discount: float = 0.95
    first_exploration: float = 1.0
    last_exploration: float = 0.02


def learn(
    resource: Resource,
    rule: Rule,
    num_seeds: int,
    seed: int,
    settings: Learning | None = None,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Train learners of `num_seeds` separate worlds side by side.

    An `independent` learner updates with what it obtained and the stock that came. A `universalizing` one updates
    with what it would have obtained, and the stock that would have come, had all agents taken its action.

    Args:
        resource: the game.
        rule: how a learner updates.
        num_seeds: worlds.
        seed: of exploration and allocation.
        settings: sizes and rates.
        progress: called with 1 as an episode ends.

    Returns:
        Q [worlds, agents, stock bins, actions].
    """
    s = settings or Learning()
    random = numpy_generator(seed, "learning", rule)
    num_bins = resource.capacity // BIN_UNITS + 1
    q = np.zeros((num_seeds, s.num_agents, num_bins, s.num_actions))
    grown = np.array([resource.grow(rest) for rest in range(resource.capacity + 1)], dtype=np.int64)
    agents = np.arange(s.num_agents)[None, :]
    for episode in range(s.num_episodes):
        share = episode / max(1, s.num_episodes - 1)
        explore = s.first_exploration + share * (s.last_exploration - s.first_exploration)
        worlds = np.arange(num_seeds)
        stock = np.full(num_seeds, resource.initial, dtype=np.int64)
        for month in range(resource.num_months):
            bins = (stock // BIN_UNITS)[:, None]
            here = q[worlds[:, None], agents, bins]
            actions = _choose(here, explore, random)
            obtained = allocate_batch(actions, stock, random)
            rest = stock - obtained.sum(1)
            reward, left = _experience(rule, actions, obtained, stock, rest)
            following = grown[left]
            future = q[worlds[:, None], agents, following // BIN_UNITS].max(-1)
            goes_on = (left >= resource.collapse) & (month < resource.num_months - 1)
            at = (worlds[:, None], agents, bins, actions)
            q[at] += s.step * (reward + s.discount * future * goes_on - q[at])
            alive = rest >= resource.collapse
            worlds, stock = worlds[alive], grown[rest[alive]]
            if worlds.size == 0:
                break
        if progress is not None:
            progress(1)
    return q


def learned(rule: Rule) -> Policy:
    """Return the policy of learners who trained together, on the spot, for the game that they are put in.

    Each agent plays its own values greedily. They are trained once for a game and number of agents, by the rule's own
    stream, so that runs with other seeds meet the same learners.
    """

    def ask(view: View, agent: int) -> int:
        values = _trained(view.resource, rule, view.num_agents)
        return min(view.stock, int(values[agent % len(values), view.stock // BIN_UNITS].argmax()))

    return ask


@lru_cache(maxsize=16)
def _trained(resource: Resource, rule: Rule, num_agents: int) -> NDArray[np.float64]:
    values: NDArray[np.float64] = learn(resource, rule, 1, 0, Learning(num_agents=num_agents))[0]
    return values


def _choose(values: NDArray[np.float64], explore: float, random: np.random.Generator) -> Whole:
    """Return the best action of each agent, or a random one with probability `explore`."""
    shape = values.shape[:2]
    best: Whole = values.argmax(-1)
    if explore <= 0:
        return best
    drawn = random.integers(0, values.shape[-1], shape)
    return np.where(random.random(shape) < explore, drawn, best)


def _experience(rule: Rule, actions: Whole, obtained: Whole, stock: Whole, rest: Whole) -> tuple[Whole, Whole]:
    """Return the reward and the stock left that each learner learns from, both [worlds, agents]."""
    if rule == "independent":
        return obtained, np.broadcast_to(rest[:, None], obtained.shape)
    num_agents = actions.shape[1]
    fair = np.minimum(actions, stock[:, None] // num_agents)
    return fair, np.maximum(0, stock[:, None] - num_agents * actions)


def play_greedily(resource: Resource, q: NDArray[np.float64], seed: int) -> BatchResult:
    """Play one game per world with the learned values, without exploration."""
    num_seeds, n = q.shape[:2]
    random = numpy_generator(seed, "greedy play")
    agents = np.arange(n)[None, :]
    result = BatchResult(
        np.zeros(num_seeds, dtype=np.int64),
        np.zeros(num_seeds, dtype=bool),
        np.zeros((num_seeds, n), dtype=np.int64),
        np.zeros(num_seeds, dtype=np.int64),
        np.zeros(num_seeds, dtype=np.int64),
    )
    worlds, stock = np.arange(num_seeds), np.full(num_seeds, resource.initial, dtype=np.int64)
    for month in range(resource.num_months):
        result.stocks.append(np.bincount(worlds, weights=stock, minlength=num_seeds).astype(np.int64))
        actions = q[worlds[:, None], agents, (stock // BIN_UNITS)[:, None]].argmax(-1)
        obtained = allocate_batch(actions, stock, random)
        rest = stock - obtained.sum(1)
        thresholds = np.array([resource.per_agent(int(h), n) for h in stock])
        result.months[worlds] = month + 1
        result.totals[worlds] += obtained
        result.num_over[worlds] += (obtained > thresholds[:, None]).sum(1)
        result.num_harvests[worlds] += n
        ended = rest < resource.collapse
        result.collapsed[worlds] = ended
        worlds, stock = worlds[~ended], np.array([resource.grow(int(r)) for r in rest[~ended]], dtype=np.int64)
        if worlds.size == 0:
            break
    return result
