"""The second stage of `rank`, which looks at examples: influence, Fisher information, harm."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from polyloom.core.errors import UserError
from polyloom.core.result import Scalar, Series, Table
from polyloom.methods.select.config import RankConfig
from polyloom.methods.select.data import Pool, PoolTask
from polyloom.methods.select.gradients import INSTANCES, fisher_diagonal, influences, row_batch, task_rows
from polyloom.methods.select.learner import Learner, make_learner
from polyloom.methods.select.method import fisher_similarity, kendall_tau
from polyloom.methods.select.target import Target, aim_of, with_some_examples
from polyloom.methods.select.tuning import answer_loss, tune_arm
from polyloom.metrics.statistics import paired_t_interval, t_interval
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

DEPTH = 4
WARM_UP_STEPS, PROBE_STEPS, PROBE_SEEDS = 60, 50, 3
SMALL = (
    "The examples were looked at by a decoder of 0.3 M parameters that had trained on these tasks for 50 or 60 steps, "
    "whose second stage is on the embedded world no better than instructions alone; name your own model with --model."
)


@dataclass(frozen=True)
class SecondStage:
    """What the second stage says: candidates in the order of the first stage, their values, and what a result shows."""

    places: list[int]
    values: list[float]
    scalars: dict[str, Scalar]
    tables: dict[str, Table]
    series: dict[str, Series]
    verdict: str


def second_stage(config: RankConfig, run: Run, target: Target, pool: Pool, order: Sequence[int]) -> SecondStage:
    """Order the first 4 k tasks that have examples anew.

    Args:
        config: k, the kind of second stage, and the model.
        run: keeps the values, so that a resumed run goes on behind them.
        target: with examples.
        pool: the tasks.
        order: of the first stage, best first.

    Raises:
        UserError: the target or all tasks are without examples.
    """
    pin_threads()
    aim = aim_of(config, target, f"--rerank {config.rerank}")
    places = [int(i) for i in order if config.pool == "world" or pool.tasks[i].examples][: DEPTH * config.k]
    if not places:
        raise UserError("no task has examples.", where=pool.where, hint="Drop --rerank, or add input and output.")
    full = with_some_examples(config, pool, places, INSTANCES)
    candidates = [full.tasks[i] for i in places]
    measure = partial(_measure, config, run, candidates, aim)
    found: list[list[float]] = run.once(f"second stage {config.rerank}", measure)
    return _told(config, candidates, places, found)


def _measure(config: RankConfig, run: Run, candidates: Sequence[PoolTask], aim: PoolTask) -> list[list[float]]:
    """Return the values of every candidate: one an instance for gradients, one for Fisher information."""
    learner = make_learner(config.model, candidates, WARM_UP_STEPS)
    model = warmed(learner, candidates, config.seed)
    with run.progress("second stage", len(candidates)) as advance:
        if config.rerank == "gradient":
            return influences(model, learner.tokenizer, candidates, aim, learner.prompt, advance)
        own = fisher_diagonal(model, learner.tokenizer, aim, learner.prompt)
        values = []
        for one in candidates:
            values.append([fisher_similarity(own, fisher_diagonal(model, learner.tokenizer, one, learner.prompt))])
            advance(1)
        return values


def warmed(learner: Learner, tasks: Sequence[PoolTask], seed: int) -> PreTrainedModel:
    """Return the model to ask: a pretrained one as it is, the tiny one after a short training on the candidates."""
    model = learner.make(seed)
    if learner.source == "tiny":
        warm = learner.config.model_copy(update={"seed": seed})
        everything = Pool(tuple(tasks), "candidates")
        tune_arm(model, learner.tokenizer, everything, range(len(tasks)), warm, "warm-up", prompt=learner.prompt)
    return model


def _told(
    config: RankConfig, candidates: Sequence[PoolTask], places: list[int], found: Sequence[Sequence[float]]
) -> SecondStage:
    values = [float(np.mean(each)) for each in found]
    bounds = [t_interval(each) if len(each) > 1 else None for each in found]
    ranking = sorted(range(len(values)), key=lambda i: (-values[i], i))
    rows: list[list[Any]] = [
        [rank, candidates[i].id, i + 1, values[i], *((one.low, one.high) if (one := bounds[i]) else (None, None))]
        for rank, i in enumerate(ranking, 1)
    ]
    k = config.k
    came = [candidates[i].id for i in ranking[:k] if i >= k]
    left = [candidates[i].id for i in range(min(k, len(places))) if i not in ranking[:k]]
    tau = kendall_tau(-np.arange(len(values), dtype=np.float64), np.array(values))
    what = "gradients" if config.rerank == "gradient" else "Fisher information"
    moved = f"{', '.join(came)} replace {', '.join(left)}" if came else "the chosen tasks stay the same"
    first = ranking[:20]
    return SecondStage(
        places,
        values,
        {
            "num_candidates": Scalar(value=len(places)),
            "num_replaced": Scalar(value=len(came)),
            "rerank_tau": Scalar(value=tau),
        },
        {
            "second_stage": Table(
                columns=["rank", "task", "rank by instructions", str(config.rerank), "low", "high"],
                rows=rows,
                title=f"The first {len(places)} tasks by {what}",
            )
        },
        {
            "second stage": Series(
                x=[float(i) for i in range(len(first))],
                y=[values[i] for i in first],
                low=None if None in bounds else [one.low for i in first if (one := bounds[i])],
                high=None if None in bounds else [one.high for i in first if (one := bounds[i])],
                x_names=[candidates[i].id for i in first],
                kind="bar",
                x_label="task",
                y_label=str(config.rerank),
            )
        },
        f"By {what} of examples {moved}; the two orders of {len(places)} candidates agree with tau {tau:+.2f}.",
    )


# ---- the search for harm


def probe(
    config: RankConfig, run: Run, target: Target, pool: Pool, order: Sequence[int], chosen: Sequence[int]
) -> tuple[dict[str, Scalar], Table, str]:
    """Train with and without each task at the edge of the selection, and compare the loss on the target's examples.

    Half of the tasks are the last chosen ones, half the first that were not chosen. Both sides of a comparison take 50
    steps of 16 examples from the same weights; 3 seeds.

    Args:
        config: how many tasks, and the model.
        run: keeps every trial.
        target: with examples.
        pool: the tasks.
        order: the final ranking.
        chosen: the selection.

    Returns:
        Scalars, the table of tasks, and a verdict.

    Raises:
        UserError: the target or the chosen tasks are without examples.
    """
    pin_threads()
    aim = aim_of(config, target, "--num-probes")
    near = [*chosen, *(int(i) for i in order[: len(chosen) + config.num_probes])]
    full = with_some_examples(config, pool, near, 4 * INSTANCES)
    ranked = [int(i) for i in order if full.tasks[i].examples]
    inside = [i for i in ranked if i in chosen]
    outside = [i for i in ranked if i not in chosen][: config.num_probes // 2]
    edge = inside[1:][-(config.num_probes - len(outside)) :]
    if not inside:
        hint = "Drop the option, or add input and output."
        raise UserError("the chosen tasks have no examples.", where="--num-probes", hint=hint)
    learner = make_learner(config.model, [full.tasks[i] for i in (*inside, *outside)], PROBE_STEPS)
    mixtures = {i: [j for j in inside if j != i] if i in edge else [*inside, i] for i in (*edge, *outside)}
    seeds = [config.seed + i for i in range(PROBE_SEEDS)]
    losses: list[dict[str, float]] = []
    with run.progress("probes", len(seeds)) as advance:
        for seed in seeds:
            trial = partial(_trial, learner, full, inside, mixtures, aim, seed)
            losses.append(run.once(f"probe seed {seed}", trial))
            advance(1)
    rows: list[list[Any]] = []
    for place in (*edge, *outside):
        other, base = ([loss[key] for loss in losses] for key in (str(place), "base"))
        effect = paired_t_interval(base, other) if place in edge else paired_t_interval(other, base)
        word = "harms" if effect.low > 0 else "helps" if effect.high < 0 else "undecided"
        rank = ranked.index(place) + 1
        rows.append([pool.tasks[place].id, rank, place in edge, effect.value, effect.low, effect.high, word])
    columns = ["task", "rank", "chosen", "loss with it less loss without it (nats)", "low", "high", "says"]
    harmful = [row[0] for row in rows if row[-1] == "harms"]
    helpful = [row[0] for row in rows if row[-1] == "helps"]
    scalars = {
        "num_probed": Scalar(value=len(rows)),
        "num_harmful": Scalar(value=len(harmful)),
        "num_helpful": Scalar(value=len(helpful)),
    }
    told = [f"{', '.join(names)} {word}" for names, word in ((harmful, "harm"), (helpful, "help")) if names]
    verdict = f"Of {len(rows)} tasks at the edge, {' and '.join(told) if told else 'none is sure to harm or help'}."
    return scalars, Table(columns=columns, rows=rows, title="Training with and without each task at the edge"), verdict


def _trial(
    learner: Learner, pool: Pool, inside: Sequence[int], mixtures: dict[int, list[int]], aim: PoolTask, seed: int
) -> dict[str, float]:
    """Return the target's loss after training on the selection, and on each other mixture, all from equal weights."""
    start = warmed(learner, [pool.tasks[i] for i in inside], seed)
    budget = learner.config.model_copy(update={"seed": seed, "steps": PROBE_STEPS})
    losses = {}
    for name, mixture in {"base": list(inside), **{str(i): one for i, one in mixtures.items()}}.items():
        model = copy.deepcopy(start)
        tune_arm(model, learner.tokenizer, pool, mixture, budget, "probe", prompt=learner.prompt)
        losses[name] = _loss(model, learner, aim)
    return losses


@torch.inference_mode()
def _loss(model: PreTrainedModel, learner: Learner, aim: PoolTask) -> float:
    loss, count = answer_loss(model, row_batch(model, learner.tokenizer, task_rows(aim), learner.prompt))
    return float(loss) / count
