"""The verb `tune`: your model, your pool and your test, each mixture at the same budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from polyloom.core.errors import UserError
from polyloom.core.result import Artifact, Result, Scalar
from polyloom.data.world import NOTICE
from polyloom.methods.select.baselines import instance_votes
from polyloom.methods.select.config import TuneConfig
from polyloom.methods.select.data import Pair, Pool, read_rows
from polyloom.methods.select.gradients import gradient_similarity
from polyloom.methods.select.lab import (
    BY_DESIGN,
    Job,
    arm_scalars,
    arm_series,
    arm_table,
    difference_scalars,
    mixtures,
    run_jobs,
    study_verdicts,
    true_relatedness,
    world_test,
)
from polyloom.methods.select.learner import Learner, make_learner, with_examples
from polyloom.methods.select.method import order_by
from polyloom.methods.select.study import ranking_table, score
from polyloom.methods.select.target import Target, resolve
from polyloom.methods.select.tuning import (
    TestItem,
    leaked_items,
    read_test,
    tune_arm,
)
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run


def run_tune(config: TuneConfig, run: Run) -> Result:
    """Tune a model on the selection and its rivals at one budget, and judge all on the target.

    Args:
        config: pool, target, model, arms and budget.
        run: stores every training, and the model tuned on the selection.

    Raises:
        UserError: no test examples, or an arm that the pool cannot serve.
    """
    pin_threads()
    world = config.pool == "world" and config.target_task is not None
    if not world and not config.test_file:
        hint = "Give JSON lines with input and output; with options, rank accuracy is measured too."
        raise UserError("the target has no test examples.", where="--test-file", hint=hint)
    target, pool = resolve(config, 0 if config.pool == "world" else 5000)
    found = score(config, target, pool)
    seeds = [config.seed + i for i in range(config.num_seeds)]
    languages = list(config.languages) if config.pool == "world" else None
    tiny = config.model == "tiny"
    tasks = with_examples(pool, range(len(pool.tasks)), languages, config.seed).tasks if languages else pool.tasks
    learner = make_learner(config.model, tasks, config.steps, config.batch_size, config.lr)
    items, few = _tune_test(config, target, learner)
    truth = _truth(config, target, pool)
    chosen = mixtures(config.arms, found, pool, config.k, seeds, truth)
    full = Pool(tasks, pool.where, pool.notes)
    chosen |= _model_mixtures(config, full, target, few, learner, seeds, run)
    rows = run_jobs([Job(target, items, few, chosen)], pool, learner, seeds, languages, run)
    order = order_by(found.fused)
    scalars = {"num_tasks": Scalar(value=len(pool.tasks)), "num_test": Scalar(value=len(items))}
    leaked = leaked_items(items, full, [int(i) for i in order[: config.k]])
    scalars["num_leaked_test"] = Scalar(value=len(leaked))
    scalars |= arm_scalars(rows) | difference_scalars(rows)
    artifacts = {}
    if not tiny and "selected" in config.arms:
        artifacts["model"] = Artifact(
            path="artifacts/model", media_type="inode/directory", description="The model tuned on the selection."
        )
    return run.result(
        scalars=scalars,
        tables={
            "arms": arm_table(rows),
            "neighbours": ranking_table(target, pool, found, found.fused, order, {int(i) for i in order[: config.k]}),
        },
        series=arm_series(rows),
        artifacts=artifacts,
        verdicts=study_verdicts(rows, scalars, len(pool.tasks), len(seeds))
        or [f"The selection reaches {scalars.get('selected_exact_match', Scalar(value=None)).value} exact match."],
        limitations=[
            *pool.notes,
            *found.notes,
            *_leak_notes(leaked, items),
            *([NOTICE + ".", BY_DESIGN] if languages else []),
            *([] if len(seeds) > 1 else ["One seed is too little to decide."]),
        ],
    )


def _leak_notes(leaked: Mapping[int, str], items: Sequence[TestItem]) -> list[str]:
    if not leaked:
        return []
    first = min(leaked)
    return [
        f"{len(leaked)} of {len(items)} test inputs are repeated, or nearly, by examples of the selected tasks (first "
        f"{items[first].given[:60]!r} in {leaked[first]}): the test flatters the selection."
    ]


def _tune_test(config: TuneConfig, target: Target, learner: Learner) -> tuple[list[TestItem], list[Pair]]:
    if not config.test_file:
        items, few = world_test(target.name, target, config.languages, config.num_test, config.seed)
        if learner.source == "tiny":
            return items, few
        items = [replace(item, prompt=learner.prompt(*_parts(item.prompt))) for item in items]
        return items, few
    return read_test(read_rows(Path(config.test_file)), target.instructions, learner.prompt), []


def _parts(prompt: str) -> tuple[str, str]:
    instruction, _, given = prompt.rstrip("\n").partition("\n")
    return instruction, given


def _truth(config: TuneConfig, target: Target, pool: Pool) -> np.ndarray | None:
    if "oracle" not in config.arms:
        return None
    if config.pool != "world" or config.target_task is None:
        hint = "Drop it, or use a task of the world as the target."
        raise UserError("the true relatedness of this pool is not known.", where="--arms oracle", hint=hint)
    return true_relatedness(target.name, pool, config.languages)


def _model_mixtures(
    config: TuneConfig,
    pool: Pool,
    target: Target,
    few: Sequence[Pair],
    learner: Learner,
    seeds: Sequence[int],
    run: Run,
) -> dict[tuple[str, int], tuple[int, ...]]:
    """Return the tasks of the arms that look at instances of the target."""
    wanted = [arm for arm in config.arms if arm in ("instances", "gradients")]
    if wanted and not few:
        raise UserError("needs labelled examples of the target.", where=f"--arms {wanted[0]}", hint="Drop the arm.")
    chosen: dict[tuple[str, int], tuple[int, ...]] = {}
    for arm in wanted:
        for seed in seeds:
            if arm == "instances":
                compute = partial(_top, instance_votes, pool, few, seed, config.k)
            else:
                compute = partial(_gradient_choice, config.k, pool, target, few, learner, seed)
            chosen[arm, seed] = tuple(sorted(run.once(f"{arm} seed {seed}", compute)))
    return chosen


def _top(votes: Any, pool: Pool, few: Sequence[Pair], seed: int, k: int) -> list[int]:
    return [int(i) for i in order_by(votes(pool, few, seed))[:k]]


def _gradient_choice(k: int, pool: Pool, target: Target, few: Sequence[Pair], learner: Learner, seed: int) -> list[int]:
    model = learner.make(seed)
    warm = learner.config.model_copy(update={"steps": max(1, learner.config.steps // 4), "seed": seed})
    tune_arm(model, learner.tokenizer, pool, range(len(pool.tasks)), warm, "warm-up", prompt=learner.prompt)
    scores = gradient_similarity(model, learner.tokenizer, pool, few, target.instructions, learner.prompt)
    return [int(i) for i in order_by(scores)[:k]]
