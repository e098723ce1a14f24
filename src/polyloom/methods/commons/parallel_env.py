"""The commons as a PettingZoo parallel environment, for learners of other libraries. An optional extra."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyloom.core.errors import MissingExtra
from polyloom.methods.commons.engine import Commons, Resource, check_resource


def make_parallel_env(resource: Resource | None = None, num_agents: int = 5) -> Any:
    """Return a `pettingzoo.ParallelEnv` of the game.

    Each agent observes [stock, f_a, month, what it obtained last] as float32, acts with a whole number in 0..K, and is
    rewarded with what it obtained. Collapse terminates all agents, the horizon truncates them.

    Args:
        resource: the numbers.
        num_agents: agents, called agent_0, agent_1, ...

    Raises:
        MissingExtra: pettingzoo is not installed.
        UserError: impossible numbers.
    """
    try:
        from gymnasium.spaces import Box, Discrete
        from pettingzoo import ParallelEnv
    except ImportError as error:
        raise MissingExtra("pettingzoo", extra="games") from error
    game_resource = resource or Resource()
    check_resource(game_resource, num_agents)
    names = [f"agent_{i}" for i in range(num_agents)]

    class CommonsEnv(ParallelEnv):  # type: ignore[misc]
        """The game; see `make_parallel_env`."""

        metadata = {"name": "commons_v0", "render_modes": []}  # noqa: RUF012
        possible_agents = names

        def __init__(self) -> None:
            self.agents: list[str] = []
            self.render_mode = None
            self.game = Commons(game_resource, num_agents, 0)
            self._seed = 0

        def observation_space(self, agent: str) -> Any:
            most = float(max(game_resource.capacity, game_resource.num_months))
            return Box(0.0, most, (4,), np.float32)

        def action_space(self, agent: str) -> Any:
            return Discrete(game_resource.capacity + 1)

        def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
            self._seed = self._seed + 1 if seed is None else seed
            self.game = Commons(game_resource, num_agents, self._seed)
            self.agents = list(names)
            return self._observe(), {name: {} for name in names}

        def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
            obtained = self.game.harvest([int(actions[name]) for name in names])
            collapsed = self.game.trajectory.collapsed
            rewards = {name: float(amount) for name, amount in zip(names, obtained, strict=True)}
            observations = self._observe()
            ends = dict.fromkeys(names, collapsed)
            truncated = dict.fromkeys(names, self.game.done and not collapsed)
            if self.game.done:
                self.agents = []
            return observations, rewards, ends, truncated, {name: {} for name in names}

        def _observe(self) -> dict[str, Any]:
            view = self.game.view
            last = view.last_obtained or [0] * num_agents
            return {
                name: np.array([view.stock, view.threshold, view.month, last[i]], dtype=np.float32)
                for i, name in enumerate(names)
            }

    return CommonsEnv()
