"""Many runs at once: minds opened once, logs kept as they are finished, nothing asked twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from polyloom.core.cluster import ray_map
from polyloom.core.errors import PolyloomError, UserError
from polyloom.core.files import read_text, write_text
from polyloom.generation.chat import Account, ChatModel
from polyloom.generation.responses import ResponseCache
from polyloom.methods.commons.config import GameConfig, MindsConfig
from polyloom.methods.commons.events import encode_events
from polyloom.methods.commons.minds import Answer, ChatMind, KeepingChat, Mind, ScriptedMind, spread
from polyloom.methods.commons.policies import greedy, is_policy, read_policy
from polyloom.methods.commons.simulation import Setting, Simulation, play_numbers

RUNS_AT_ONCE = 256
CHUNK = 200


@dataclass
class Ledger:
    """What models cost, by run, agent and phase; a cached reply costs nothing."""

    price_in: float = 0.0
    price_out: float = 0.0
    budget: float | None = None
    calls: dict[tuple[int, int, str], list[int]] = field(default_factory=dict)

    def spend(self, run: int) -> Callable[[int, str, Answer], None]:
        """Return the function that a run tells of its calls."""

        def note(agent: int, phase: str, answer: Answer) -> None:
            row = self.calls.setdefault((run, agent, phase), [0, 0, 0, 0])
            row[0] += 1
            row[1] += answer.cached
            row[2] += 0 if answer.cached else answer.prompt_tokens
            row[3] += 0 if answer.cached else answer.completion_tokens
            if self.budget is not None and self.cost > self.budget:
                raise PolyloomError(f"the budget of {self.budget:g} is spent.", hint="Raise --budget and resume.")

        return note

    @property
    def cost(self) -> float:
        """Money spent so far."""
        rows = self.calls.values()
        return sum(row[2] * self.price_in + row[3] * self.price_out for row in rows) / 1e6

    def by_phase(self) -> dict[str, list[int]]:
        """Return calls, cached calls, prompt and reply tokens by phase."""
        total: dict[str, list[int]] = {}
        for (_, _, phase), row in self.calls.items():
            total[phase] = [a + b for a, b in zip(total.get(phase, [0, 0, 0, 0]), row, strict=True)]
        return total


@dataclass
class Job:
    """One community to be played: its key names its log."""

    key: str
    setting: Setting
    specs: list[str]
    seed: int
    run: int


class Cast:
    """The models of a verb, each opened once however many agents it speaks for."""

    def __init__(self, config: MindsConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.models: dict[str, ChatModel] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Cast:
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.aclose()

    async def open(self, specs: Sequence[str]) -> None:
        """Open every model among the specifications."""
        for spec in dict.fromkeys(specs):
            if spec in self.models or is_policy(spec):
                continue
            model = await self._stack.enter_async_context(open_model(spec, self.config, self.folder))
            self.models[spec] = model

    def mind(self, spec: str, job: Job, *, greedily: bool = False) -> Mind:
        """Return the mind of a specification for a job."""
        words = job.setting.scenario.words
        if spec in self.models:
            c = self.config
            return ChatMind(spec, self.models[spec], max_tokens=c.max_tokens, temperature=c.temperature, seed=job.seed)
        return ScriptedMind(spec, words, greedy if greedily else read_policy(spec))

    def minds(self, job: Job) -> tuple[list[Mind], Mind]:
        """Return the agents' minds and the one that sums up."""
        specs = spread(job.specs, job.setting.num_agents)
        trait = job.setting.arm.trait is not None
        minds = [self.mind(spec, job, greedily=trait and i == len(specs) - 1) for i, spec in enumerate(specs)]
        models = [spec for spec in specs if spec in self.models]
        framework = self.config.framework or (models[0] if models else specs[0])
        return minds, self.mind(framework, job)

    @property
    def account(self) -> Account:
        """What all models cost together."""
        total = Account()
        for model in self.models.values():
            for name in (
                "num_sent",
                "num_replies",
                "num_cached",
                "num_without_usage",
                "prompt_tokens",
                "completion_tokens",
            ):
                setattr(total, name, getattr(total, name) + getattr(model.account, name))
        return total


def open_model(spec: str, config: MindsConfig, folder: Path) -> ChatModel:
    """Return a chat model, not entered, whose replies are kept on disk."""
    from polyloom.generation.endpoints import connect

    path = Path(config.cache) if config.cache else folder / "replies.sqlite"
    model = connect(spec, cache=path, seed=config.seed, max_in_flight=config.max_in_flight)
    if spec.startswith(("http://", "https://")):
        return model
    return KeepingChat(model, lambda: ResponseCache(path))


def check_specs(config: GameConfig, specs: Sequence[str], num_agents: int) -> None:
    """Refuse unfit minds before anything is played."""
    for spec in spread(specs, num_agents):
        if ":" in spec and not spec.startswith("http") and not is_policy(spec) and not Path(spec).exists():
            read_policy(spec)
        if is_policy(spec):
            read_policy(spec)


async def play_jobs(
    jobs: Sequence[Job],
    cast: Cast,
    folder: Path,
    *,
    ledger: Ledger,
    check_stop: Callable[[], None],
    progress: Callable[[int], None],
) -> list[str]:
    """Play jobs side by side and return their logs, in order.

    Args:
        jobs: what to play.
        cast: the minds.
        folder: where a finished run's log is kept; one that is there is not played again.
        ledger: told of every call.
        check_stop: raises between months when the verb is to stop.
        progress: called with 1 as a run ends.
    """
    slots = asyncio.Semaphore(RUNS_AT_ONCE)
    await cast.open(
        [spec for job in jobs for spec in [*job.specs, *([cast.config.framework] if cast.config.framework else [])]]
    )

    async def one(job: Job) -> str:
        path = folder / f"{job.key}.jsonl"
        costs = folder / f"{job.key}.calls.json"
        if path.exists() and costs.exists():
            for agent, phase, row in json.loads(read_text(costs)):
                ledger.calls[job.run, agent, phase] = row
            progress(1)
            return read_text(path)
        async with slots:
            minds, framework = cast.minds(job)
            simulation = Simulation(job.setting, minds, framework, job.seed, job.run, ledger.spend(job.run))
            text = encode_events(await simulation.play(check_stop))
        rows = [[agent, phase, row] for (run, agent, phase), row in ledger.calls.items() if run == job.run]
        write_text(costs, json.dumps(rows))
        write_text(path, text)
        progress(1)
        return text

    tasks = [asyncio.ensure_future(one(job)) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def play_chunk(setting: Setting, specs: list[str], seeds: list[tuple[int, int]]) -> str:
    """Play policies for some (seed, number) pairs; runs in a process of its own."""
    return "".join(encode_events(play_numbers(setting, specs, seed, run)) for seed, run in seeds)


def play_sweep(
    setting: Setting, specs: list[str], seeds: Sequence[int], *, workers: int, cluster: str, once: Callable[..., str]
) -> str:
    """Play policies for many seeds, in chunks that a resumed run does not repeat.

    Args:
        setting: what is played.
        specs: one policy per agent.
        seeds: one run each.
        workers: processes.
        cluster: `ray` spreads the chunks over a Ray cluster.
        once: `run.once`.
    """
    pairs = [(seed, run) for run, seed in enumerate(seeds)]
    chunks = [pairs[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)]
    if cluster == "ray":
        logs = ray_map(play_chunk, [(setting, specs, chunk) for chunk in chunks])
        return "".join(logs)
    if workers == 1:
        return "".join(once(f"runs from {c[0][1]}", lambda c=c: play_chunk(setting, specs, c)) for c in chunks)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(play_chunk, setting, specs, chunk) for chunk in chunks]
        return "".join(
            once(f"runs from {c[0][1]}", lambda f=f: f.result()) for c, f in zip(chunks, futures, strict=True)
        )


def estimate(setting: Setting, num_runs: int) -> dict[str, int]:
    """Return requests and tokens of complete runs, before anything is asked.

    Calls by the paper's phases; tokens by the paper's own estimate (680,000 in and 124,000 out for 612 requests).
    """
    n, months = setting.num_agents, setting.resource.num_months
    k = setting.num_insights
    talk = setting.max_turns - 1 if setting.arm.talk else 0
    if setting.calls == "lean":
        after, home = (1 + n if talk else 0), n
    else:
        after, home = (2 + 5 * n if talk else 0), n * (1 + k)
    if setting.rules == "reference" and not talk:
        home = 0
    votes = n if setting.arm.leader else 0
    requests = (n + talk + votes + after + home) * months * num_runs
    return {"requests": requests, "prompt_tokens": requests * 680_000 // 612, "reply_tokens": requests * 124_000 // 612}


def refuse_models_in_sweep(specs: Sequence[str]) -> None:
    """Refuse models where only policies can play."""
    for spec in specs:
        if not is_policy(spec):
            raise UserError(f"{spec!r} is no policy.", where="--detail numbers", hint="Models need --detail full.")
