"""The verb `study`: policies against their exact values, allocation, learners, languages, speed, and the machinery."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from polyloom.core.errors import MissingExtra
from polyloom.core.files import write_text
from polyloom.core.result import Artifact, Result, Scalar, Series, Table
from polyloom.core.seeding import numpy_generator, python_random
from polyloom.methods.commons.arms import ARMS
from polyloom.methods.commons.batch import allocate_batch, play_batch, read_batch_policy
from polyloom.methods.commons.config import CommonsStudyConfig
from polyloom.methods.commons.engine import Resource, allocate, allocation_pmf, optimum, play
from polyloom.methods.commons.events import encode_events, read_events
from polyloom.methods.commons.learning import Learning, learn, play_greedily
from polyloom.methods.commons.logs import LoggedRun, read_logs
from polyloom.methods.commons.machinery import Part, languages_part, plumbing_part, server_part
from polyloom.methods.commons.metrics import score
from polyloom.methods.commons.minds import ScriptedMind
from polyloom.methods.commons.play import conversation_table, transcript
from polyloom.methods.commons.policies import read_policy
from polyloom.methods.commons.scenario import load_scenario
from polyloom.methods.commons.scoring import (
    ETHICS,
    group_scalars,
    mean_interval,
    runs_table,
    stock_series,
    survival_series,
)
from polyloom.methods.commons.simulation import Setting, Simulation, play_numbers
from polyloom.metrics.statistics import wilson_interval
from polyloom.runs.folder import Run

# policy, months, total, efficiency %, over-usage % (None: depends on the shortage's draw); five equal agents, K = 100,
# T = 12, worked out by hand from the rules.
CASES: tuple[tuple[str, int, int, float, float | None], ...] = (
    ("sustainable", 12, 600, 100.0, 0.0),
    ("constant:9", 12, 540, 90.0, 0.0),
    ("constant:11", 4, 195, 32.5, None),
    ("constant:12", 3, 160, 80 / 3, None),
    ("constant:15", 2, 125, 125 / 6, None),
    ("constant:19", 2, 105, 17.5, None),
    ("constant:20", 1, 100, 50 / 3, 100.0),
    ("constant:0", 12, 0, 0.0, 0.0),
    ("proportional:0.11", 12, 550, 275 / 3, 25 / 3),
    ("proportional:0.12", 12, 350, 175 / 3, 125 / 3),
    ("proportional:0.15", 12, 185, 185 / 6, 100 / 3),
    ("defect-at-end", 12, 650, 100.0, None),
    ("greedy", 1, 100, 50 / 3, None),
)
SHORTAGES = (((3, 1), 3), ((2, 2), 2), ((4, 4, 4), 4), ((4, 2, 2), 5))
POLICY_ARMS = (
    "sustainable",
    "proportional:0.12",
    "constant:11",
    "noisy:0.05:sustainable",
    "tit-for-tat",
    "random",
    "greedy",
)


def policies_part(config: CommonsStudyConfig, run: Run) -> Part:
    """Check every analytic case, and draw the survival curves of policy arms."""
    resource, rows, exact = Resource(), [], 0
    for spec, months, total, efficiency, over in CASES:
        one = score(play(resource, [read_policy(spec)] * 5, config.seed))
        right = (one.months, one.total) == (months, total) and abs(one.efficiency - efficiency) < 1e-9
        right = right and (over is None or (one.over_usage is not None and abs(one.over_usage - over) < 1e-9))
        exact += right
        rows.append(
            [spec, one.months, one.total, one.efficiency, one.equality, one.over_usage, one.collapsed_at_end, right]
        )
    columns = [
        "policy of all five",
        "months",
        "total",
        "efficiency %",
        "equality %",
        "over-usage %",
        "collapsed at end",
        "as worked out",
    ]
    series, num_runs = {}, 200
    for spec in POLICY_ARMS:
        specs = [spec] * 5 if spec != "tit-for-tat" else ["noisy:0.05:sustainable", *["tit-for-tat"] * 4]
        label = "tit-for-tat with one noisy" if spec == "tit-for-tat" else spec
        runs = [
            LoggedRun(label, play(resource, [read_policy(one) for one in specs], config.seed + i), list("ABCDE"))
            for i in range(num_runs)
        ]
        for kind, made in (("survival", survival_series(runs)), ("stock", stock_series(runs))):
            if made is not None:
                series[f"{kind} {label}"] = made
    best, kept = optimum(resource, 12), optimum(resource, 12, resource.collapse)
    return Part(
        scalars={
            "num_policy_cases": Scalar(value=len(CASES)),
            "policy_cases_exact": Scalar(value=exact),
            "optimum": Scalar(value=best, unit="units"),
            "optimum_leaving_5": Scalar(value=kept, unit="units"),
        },
        tables={"policies": Table(columns=columns, rows=rows, title="Policies with exact values")},
        series=series,
        verdicts=[
            f"{exact} of {len(CASES)} analytic policy cases come out exactly; the optimum of 12 months is {best}."
        ],
        limitations=["Scripts keep no promises and hold no opinions: their curves show the game, not agents."],
    )


def allocation_part(config: CommonsStudyConfig, run: Run) -> Part:
    """Compare both samplers with the exact distribution of a shortage, by total variation at 100,000 draws."""
    draws, rows, worst = 100_000, [], {"engine": 0.0, "batch": 0.0}
    for asks, stock in SHORTAGES:
        pmf = allocation_pmf(asks, stock)
        uniform = python_random(config.seed, "shortage", *asks).random
        ones = Counter(tuple(allocate(asks, stock, uniform)) for _ in range(draws))
        many = allocate_batch(
            np.tile(asks, (draws, 1)), np.full(draws, stock), numpy_generator(config.seed, "shortage")
        )
        counts = {"engine": ones, "batch": Counter(map(tuple, many.tolist()))}
        for name, seen in counts.items():
            distance = 0.5 * sum(abs(pmf.get(key, 0.0) - seen[key] / draws) for key in pmf.keys() | seen.keys())
            worst[name] = max(worst[name], distance)
            rows.append([f"{asks} of {stock}", name, len(pmf), distance])
    columns = ["asks and stock", "sampler", "outcomes", "total variation"]
    return Part(
        scalars={f"allocation_total_variation_{name}": Scalar(value=value) for name, value in worst.items()},
        tables={
            "allocation": Table(columns=columns, rows=rows, title=f"Shortage, {draws} draws against the exact chances")
        },
        verdicts=[f"Both samplers lie within {max(worst.values()):.4f} total variation of the exact chances."],
    )


def learners_part(config: CommonsStudyConfig, run: Run) -> Part:
    """Train independent and universalizing learners in 16 worlds each, and play greedily."""
    resource, seeds = Resource(), 16
    settings = Learning(num_episodes=4000 if config.profile == "full" else 2500)
    rates, series, outcome = {}, {}, {}
    began = time.process_time()
    for rule in ("independent", "universalizing"):
        with run.progress(f"{rule} learners", settings.num_episodes) as advance:
            q = learn(resource, rule, seeds, config.seed, settings, advance)
        played = play_greedily(resource, q, config.seed)
        metrics = played.metrics(resource)
        survived = (played.months == resource.num_months).astype(float)
        outcome[rule] = (survived, metrics["efficiency"])
        rate = wilson_interval(int(survived.sum()), seeds)
        rates[f"learners_{rule}_survival"] = Scalar.of(rate)
        for name in ("months", "efficiency", "over_usage"):
            mean = mean_interval(metrics[name].tolist())
            rates[f"learners_{rule}_{name}"] = Scalar.of(mean)
        stocks = np.stack([*played.stocks, *[np.zeros(seeds)] * (resource.num_months - len(played.stocks))])
        series[f"stock {rule} learners"] = Series(
            x=list(range(1, resource.num_months + 1)),
            y=stocks.mean(1).tolist(),
            x_label="month",
            y_label="stock at the start of the month",
            group="Learners",
        )
    cpu = time.process_time() - began
    scalars = {}
    for place, name in enumerate(("survival", "efficiency")):
        difference = mean_interval((outcome["universalizing"][place] - outcome["independent"][place]).tolist())
        scalars[f"learners_{name}_difference"] = Scalar.of(difference)
    scalars |= rates | {"learners_cpu_seconds": Scalar(value=cpu, unit="s")}
    gap = scalars["learners_survival_difference"]
    points = scalars["learners_efficiency_difference"]
    return Part(
        scalars=scalars,
        series=series,
        verdicts=[
            f"Learners that imagine all acting alike survive {gap.value:+.2f} more often and are {points.value:+.0f} "
            f"points more efficient than independent ones, over {seeds} worlds."
        ],
        limitations=[
            "Tabular learners show the principle of universalization; they say nothing about language models.",
            "A universalizing learner is given the rule of growth, which an independent one has to find.",
        ],
    )


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Return months a CPU second of repeated work."""
    work()
    began, months = time.process_time(), 0
    while time.process_time() - began < seconds:
        months += work()
    return months / (time.process_time() - began)


def speed_part(config: CommonsStudyConfig, run: Run) -> Part:
    """Count simulated months a CPU second of one thread: with the event log, without it, and in numpy."""
    rates = speeds(2.0 if config.profile == "full" else 1.0)
    return Part(
        scalars={name: Scalar(value=value, unit="months/s") for name, value in rates.items()},
        verdicts=[
            f"{rates['months_per_second_with_events']:,.0f} months a CPU second with the event log, "
            f"{rates['months_per_second']:,.0f} without, {rates['batch_months_per_second_noisy']:,.0f} in numpy."
        ],
        limitations=[
            "Months a second are of this machine, one thread, CPU time; _short has a shortage in most months."
        ],
    )


def speeds(seconds: float) -> dict[str, float]:
    """Measure months a CPU second of every way to play, `seconds` each."""
    setting, resource = Setting(load_scenario("fishery"), ARMS["no-talk"]), Resource()
    specs = ["sustainable"] * 5

    def logged() -> int:
        return sum(bool(encode_events(play_numbers(setting, specs, seed))) * 12 for seed in range(20))

    def bare(names: Sequence[str]) -> Callable[[], int]:
        chosen = [read_policy(name) for name in names]
        return lambda: sum(play(resource, chosen, seed).num_months for seed in range(100))

    def batch(name: str) -> Callable[[], int]:
        return lambda: int(play_batch(resource, [read_batch_policy(name)] * 5, 4096, 0).months.sum())

    return {
        "months_per_second_with_events": _rate(logged, seconds),
        "months_per_second": _rate(bare(specs), seconds),
        "months_per_second_short": _rate(bare(["constant:12"] * 5), seconds),
        "batch_months_per_second": _rate(batch("sustainable"), seconds),
        "batch_months_per_second_noisy": _rate(batch("noisy:0.1:sustainable"), seconds),
        "batch_months_per_second_short": _rate(batch("greedy"), seconds),
    }


PARTS: dict[str, Callable[[CommonsStudyConfig, Run], Part]] = {
    "policies": policies_part,
    "allocation": allocation_part,
    "learners": learners_part,
    "languages": languages_part,
    "speed": speed_part,
    "server": server_part,
    "plumbing": plumbing_part,
}


def run_study(config: CommonsStudyConfig, run: Run) -> Result:
    """Study the commons on the embedded default: scripts, learners and the tiny model for plumbing.

    Raises:
        UserError: unknown language.
    """
    load_scenario("fishery", config.language)
    whole = Part()
    with run.progress("parts", len(config.parts)) as advance:
        for name in config.parts:
            found = _part(name, config, run)
            whole = Part(
                scalars=whole.scalars | found.scalars,
                tables=whole.tables | found.tables,
                series=whole.series | found.series,
                verdicts=whole.verdicts + found.verdicts,
                limitations=whole.limitations + found.limitations,
            )
            advance(1)
    conversation = _conversation(config, run)
    tables = {"conversation": conversation, **whole.tables}
    scalars = dict(whole.scalars)
    if config.logs is not None:
        logged = read_logs([config.logs])
        tables["published_logs"] = runs_table(logged)
        scalars |= group_scalars(logged, "logs.")
    return run.result(
        scalars=scalars,
        tables=tables,
        series=whole.series,
        artifacts={
            "transcript": Artifact(
                path="artifacts/transcript.md",
                media_type="text/markdown",
                description="A community of scripts, month by month",
            )
        },
        verdicts=whole.verdicts,
        limitations=[*dict.fromkeys(whole.limitations), *_too_little(config), ETHICS],
    )


def _part(name: str, config: CommonsStudyConfig, run: Run) -> Part:
    try:
        value = run.once(f"{name} {config.profile}", lambda: PARTS[name](config, run).model_dump(mode="json"))
    except MissingExtra as missing:
        return Part(limitations=[f"The part {name!r} was left out: {missing}"])
    return Part.model_validate(value)


def _too_little(config: CommonsStudyConfig) -> list[str]:
    if config.profile == "full":
        return []
    return [
        "The quick profile asks a server of 12 runs and trains learners for fewer episodes; it is too little to decide "
        "how fast a server study is. Nothing here decides anything about a language model: use run and compare."
    ]


def _conversation(config: CommonsStudyConfig, run: Run) -> Table:
    """Play one community that meets a noisy fisher, keep its transcript, and return its most telling month."""
    scenario = load_scenario("fishery", config.language)
    specs = ["limit-follower", "limit-follower", "tit-for-tat", "list:10,10,10,24,12,10", "sustainable"]
    minds = [ScriptedMind(spec, scenario.words) for spec in specs]
    simulation = Simulation(Setting(scenario, ARMS["universalization"]), minds, minds[0], config.seed)
    path = run.artifact("events.jsonl")
    write_text(path, encode_events(asyncio.run(simulation.play())))
    events = read_events(path)
    write_text(run.artifact("transcript.md"), transcript(events))
    return conversation_table(events, 3)
