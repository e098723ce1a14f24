"""The verb `study`, and what `tune` shares with it: every mixture gets the same budget and the same test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.data.world import NOTICE, instruction_tasks, relatedness
from polyloom.methods.select.aligning import HEAD, align_latent
from polyloom.methods.select.baselines import choose_random
from polyloom.methods.select.config import SelectStudyConfig, TargetConfig
from polyloom.methods.select.data import Pair, Pool
from polyloom.methods.select.learner import Learner, make_learner, with_examples
from polyloom.methods.select.method import order_by
from polyloom.methods.select.scoring import LATENT, Scored
from polyloom.methods.select.study import INSTRUCTIONS_ALONE, ranking_table, score
from polyloom.methods.select.target import Target, resolve
from polyloom.methods.select.tuning import (
    TestItem,
    evaluate,
    make_test,
    means,
    plain_prompt,
    tune_arm,
)
from polyloom.methods.select.world_pool import world_examples
from polyloom.metrics.statistics import Interval, paired_t_interval, t_interval, wilson_interval
from polyloom.models.device import pin_threads
from polyloom.models.load import save_model
from polyloom.runs.folder import Run

MEASURES = ("rank_accuracy", "exact_match", "rouge_l")
RIVALS = ("all", "random", "worst", "oracle", "instances", "gradients")
STUDY_ARMS = {"quick": ("selected", "all", "random"), "full": ("selected", "all", "random", "worst", "oracle")}
STUDY_TARGETS = {"quick": 1, "full": 2}
# What `benchmarks/select_tasks.py targets` finds to be learnt best, looking at neither selector nor rivals.
STUDY_OPERATIONS = ("classify_kind_list_{}", "normalise_date_{}")
STUDY_SEEDS = {"quick": 1, "full": 3}
STUDY_STEPS = 120
NUM_TEST = 64
STUDY_K = 5
BY_DESIGN = (
    "The pool holds close relatives of the target by design (the same operation in other languages); a pool without "
    "any would show less."
)


@dataclass(frozen=True)
class Job:
    """A target with its ranking, its test, and the mixtures to tune on by arm."""

    target: Target
    items: Sequence[TestItem]
    few: Sequence[Pair]
    chosen: Mapping[tuple[str, int], tuple[int, ...]]


def world_test(
    name: str, target: Target, languages: Sequence[str], num: int, seed: int
) -> tuple[list[TestItem], list[Pair]]:
    """Return the test items of a world task and a few examples of it for the rivals that need some."""
    pairs = world_examples(name, languages, "test", num, seed)
    train = world_examples(name, languages, "train", 200, seed)
    items = make_test(pairs, [answer for _, answer in train], target.instructions, plain_prompt, seed)
    return items, list(train[:32])


def true_relatedness(target: str, pool: Pool, languages: Sequence[str]) -> np.ndarray:
    """Return the world's true relatedness of a target to every task of a pool."""
    tasks = instruction_tasks(languages)
    names = [task.name for task in tasks]
    row = relatedness(tasks)[names.index(target)]
    same = [task.category == tasks[names.index(target)].operation for task in pool.tasks]
    # Of equally related tasks those of the same operation come first: another does not show what to do.
    return np.array([row[names.index(name)] for name in pool.ids]) + 1e-6 * np.array(same)


def mixtures(
    arms: Sequence[str], found: Scored, pool: Pool, k: int, seeds: Sequence[int], truth: np.ndarray | None
) -> dict[tuple[str, int], tuple[int, ...]]:
    """Return the tasks of every arm and seed that need no model."""
    order = [int(i) for i in order_by(found.fused)]
    chosen: dict[tuple[str, int], tuple[int, ...]] = {}
    for seed in seeds:
        sets: dict[str, Sequence[int]] = {
            "selected": order[:k],
            "all": range(len(pool.tasks)),
            "random": choose_random(pool, k, seed),
            "worst": order[-k:],
        }
        if truth is not None:
            sets["oracle"] = [int(i) for i in order_by(truth)[:k]]
        chosen |= {(arm, seed): tuple(sorted(sets[arm])) for arm in arms if arm in sets}
    return chosen


def run_jobs(
    jobs: Sequence[Job], pool: Pool, learner: Learner, seeds: Sequence[int], languages: Sequence[str] | None, run: Run
) -> list[dict[str, Any]]:
    """Tune one model for every different mixture and seed, and judge it on every target that asked for it.

    Args:
        jobs: the targets.
        pool: the tasks; of the world where `languages` is given, whose examples are then made.
        learner: model, tokenizer and budget.
        seeds: of the trainings.
        languages: of the world, or None for a pool with its own examples.
        run: stores every training, so that a resumed run goes on behind it.

    Returns:
        One row per target, arm and seed with its measures.
    """
    work: dict[tuple[int, tuple[int, ...]], list[tuple[Job, str]]] = {}
    for job in jobs:
        for (arm, seed), chosen in job.chosen.items():
            work.setdefault((seed, chosen), []).append((job, arm))
    rows = []
    with run.progress("tune", len(work)) as advance:
        for (seed, chosen), uses in work.items():
            name = f"tune seed {seed} on {digest([pool.ids[i] for i in chosen])}"
            values = run.once(name, partial(_tune_and_judge, uses, pool, chosen, learner, seed, languages, run, name))
            rows += [
                {"target": job.target.name, "arm": arm, "seed": seed, **values[job.target.name]} for job, arm in uses
            ]
            advance(1)
    return rows


def digest(names: Sequence[str]) -> str:
    """Return a short hash of a set of tasks."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def _tune_and_judge(
    uses: Sequence[tuple[Job, str]],
    pool: Pool,
    chosen: Sequence[int],
    learner: Learner,
    seed: int,
    languages: Sequence[str] | None,
    run: Run,
    name: str,
) -> dict[str, dict[str, Any]]:
    full = with_examples(pool, chosen, languages, learner.config.seed) if languages else pool
    model = learner.make(seed)
    config = learner.config.model_copy(update={"seed": seed})
    state = tune_arm(
        model,
        learner.tokenizer,
        full,
        chosen,
        config,
        digest([pool.ids[i] for i in chosen]),
        prompt=learner.prompt,
        checkpoints=run.checkpoints / name.replace(" ", "-"),
        check_stop=run.check_stop,
    )
    if learner.source != "tiny" and any(arm == "selected" for _, arm in uses):
        save_model(model, run.artifact("model"), learner.tokenizer)
    found: dict[str, dict[str, Any]] = {}
    for job in {one.target.name: one for one, _ in uses}.values():
        values = evaluate(model, learner.tokenizer, job.items)
        found[job.target.name] = means(values) | {"num_test": len(job.items), "loss": state.loss}
    return found


# ---- study


def run_study(config: SelectStudyConfig, run: Run) -> Result:
    """Rank the world's tasks for one or two targets, and tune at one budget on what was and was not chosen.

    Args:
        config: languages, scorers and profile.
        run: stores every training.

    Returns:
        Neighbours, accuracies of all arms, and the differences of the selection to all and to random tasks.
    """
    pin_threads()
    languages = list(config.languages)
    seeds = [config.seed + i for i in range(config.num_seeds or STUDY_SEEDS[config.profile])]
    usual = [one.format(languages[-1]) for one in STUDY_OPERATIONS[: STUDY_TARGETS[config.profile]]]
    names = list(dict.fromkeys(config.targets)) or usual
    head = run.artifact("head.safetensors") if LATENT in config.scorers else None
    resolved = [_world_target(name, names, config, run, head) for name in names]
    pool = resolved[0][1]
    if head:
        align_latent(pool, head, config.seed)
    found = [score(one[2], one[0], pool) for one in resolved]
    jobs = []
    for (target, _, _), scored in zip(resolved, found, strict=True):
        items, few = world_test(target.name, target, languages, NUM_TEST, config.seed)
        truth = true_relatedness(target.name, pool, languages)
        arms = STUDY_ARMS[config.profile]
        jobs.append(Job(target, items, few, mixtures(arms, scored, pool, STUDY_K, seeds, truth)))
    tasks = with_examples(pool, range(len(pool.tasks)), languages, config.seed).tasks
    learner = make_learner("tiny", tasks, STUDY_STEPS)
    rows = run_jobs(jobs, pool, learner, seeds, languages, run)
    kinship = [_kinship(job, pool, languages) for job in jobs]
    tables = {
        f"neighbours_{i + 1}": ranking_table(
            job.target, pool, scored, scored.fused, order_by(scored.fused), set(job.chosen["selected", seeds[0]])
        )
        for i, (job, scored) in enumerate(zip(jobs, found, strict=True))
    }
    # The report shows the first scalars large: the answer comes before what it is made of.
    scalars = difference_scalars(rows) | arm_scalars(rows)
    scalars["num_tasks"] = Scalar(value=len(pool.tasks))
    scalars["num_trainings"] = Scalar(value=len({(r["seed"], r["target"], r["arm"]) for r in rows}))
    for key in ("selected", "random"):
        scalars[f"{key}_relatedness"] = Scalar(value=float(np.mean([one[key] for one in kinship])))
    return run.result(
        scalars=scalars,
        tables={"arms": arm_table(rows), **tables},
        series=arm_series(rows) | _kinship_series(jobs[0], found[0], pool, languages),
        artifacts={"head": HEAD} if head else {},
        verdicts=study_verdicts(rows, scalars, len(pool.tasks), len(seeds)),
        limitations=[
            NOTICE + ".",
            BY_DESIGN,
            f"A decoder of 0.3 M parameters from random weights, {learner.config.steps} steps of 16 examples for every "
            "arm: the effect of a mixture on a large pretrained model is another.",
            *(
                []
                if len(seeds) > 1
                else ["One seed is too little to decide; --profile full runs three on two targets."]
            ),
            INSTRUCTIONS_ALONE,
        ],
    )


def _world_target(
    name: str, names: Sequence[str], config: SelectStudyConfig, run: Run, head: Path | None
) -> tuple[Target, Pool, TargetConfig]:
    settings = TargetConfig(
        pool="world",
        languages=list(config.languages),
        target_task=name,
        scorers=config.scorers,
        k=STUDY_K,
        cache=str(run.path / "cache"),
        head=str(head) if head else None,
    )
    target, pool = resolve(settings)
    # One pool for all targets: what is tuned on all or on random tasks then serves every target.
    return target, pool.without([i for i, task in enumerate(pool.tasks) if task.id in names]), settings


def _kinship(job: Job, pool: Pool, languages: Sequence[str]) -> dict[str, float]:
    truth = true_relatedness(job.target.name, pool, languages)
    selected = next(chosen for (arm, _), chosen in job.chosen.items() if arm == "selected")
    return {"selected": float(truth[list(selected)].mean()), "random": float(truth.mean())}


def _kinship_series(job: Job, found: Scored, pool: Pool, languages: Sequence[str]) -> dict[str, Series]:
    truth = true_relatedness(job.target.name, pool, languages)[order_by(found.fused)]
    edges = np.array_split(truth, 20)
    return {
        "true relatedness": Series(
            x=[(i + 0.5) * 5 for i in range(len(edges))],
            y=[float(part.mean()) for part in edges],
            x_label="rank by instructions (% of the pool)",
            y_label="true relatedness to the target",
            group="does the ranking by instructions find what is related?",
        )
    }


def arm_scalars(rows: Sequence[Mapping[str, Any]]) -> dict[str, Scalar]:
    """Return the mean of every measure by arm, and rank accuracy by target and arm."""
    scalars = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        for measure in MEASURES:
            if all(measure in row for row in mine):
                scalars[f"{arm}_{measure}"] = Scalar(value=float(np.mean([row[measure] for row in mine])))
        for name in dict.fromkeys(row["target"] for row in mine):
            interval = _interval([row for row in mine if row["target"] == name])
            if interval and len({row["target"] for row in rows}) > 1:
                scalars[f"{arm}_rank_accuracy_{name}"] = Scalar.of(interval)
    return scalars


def _interval(rows: Sequence[Mapping[str, Any]]) -> Interval | None:
    """Return mean rank accuracy: its t interval over seeds, or over the test's items where there is one seed."""
    values = [row["rank_accuracy"] for row in rows if "rank_accuracy" in row]
    if len(values) > 1:
        return t_interval(values)
    return wilson_interval(round(values[0] * rows[0]["num_test"]), rows[0]["num_test"]) if values else None


def main_measure(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rank accuracy, or exact match where the test has no options."""
    return "rank_accuracy" if all("rank_accuracy" in row for row in rows) else "exact_match"


def difference_scalars(rows: Sequence[Mapping[str, Any]]) -> dict[str, Scalar]:
    """Return the selection minus every other arm, paired by target and seed; and by target."""
    measure = main_measure(rows)
    by_arm: dict[str, dict[tuple[str, int], float]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {})[row["target"], row["seed"]] = row[measure]
    own = by_arm.get("selected", {})
    scalars = {}
    names = list(dict.fromkeys(row["target"] for row in rows))
    for arm in (name for name in RIVALS if name in by_arm and own):
        values = by_arm[arm]
        for name in ["", *(names if len(names) > 1 else [])]:
            keys = [key for key in own if not name or key[0] == name]
            a, b = [own[key] for key in keys], [values[key] for key in keys]
            suffix = f"_{name}" if name else ""
            key = f"selected_minus_{arm}{suffix}"
            scalars[key] = Scalar.of(paired_t_interval(a, b)) if len(a) > 1 else Scalar(value=a[0] - b[0])
    return scalars


def arm_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return every arm of every target and seed."""
    measures = [name for name in MEASURES if any(name in row for row in rows)]
    cells: list[list[Any]] = [
        [row["target"], row["arm"], row["seed"], *(row.get(name) for name in measures), row["loss"]]
        for row in sorted(rows, key=lambda row: (row["target"], -float(row.get(measures[0], 0)), row["seed"]))
    ]
    return Table(
        columns=["target", "arm", "seed", *measures, "training loss"], rows=cells, title="Equal budget, all arms"
    )


def arm_series(rows: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Return rank accuracy of the arms as bars, one series a target."""
    measure = main_measure(rows)
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    series = {}
    for name in dict.fromkeys(row["target"] for row in rows):
        each = [[row for row in rows if row["target"] == name and row["arm"] == arm] for arm in arms]
        intervals = [_interval(mine) for mine in each]
        values = [float(np.mean([row[measure] for row in mine])) for mine in each]
        known = all(intervals) and measure == "rank_accuracy"
        series[name] = Series(
            x=[float(i) for i in range(len(arms))],
            y=values,
            low=[max(0.0, one.low) for one in intervals if one] if known else None,
            high=[min(1.0, one.high) for one in intervals if one] if known else None,
            x_names=arms,
            kind="bar",
            x_label="tasks that were tuned on",
            y_label=measure.replace("_", " "),
            group="equal budget",
        )
    return series


def study_verdicts(
    rows: Sequence[Mapping[str, Any]], scalars: Mapping[str, Scalar], num_tasks: int, num_seeds: int
) -> list[str]:
    """Say what the arms show: the selection against all tasks and against random ones."""
    measure = main_measure(rows).replace("_", " ")
    mean = {
        arm: np.mean([row[main_measure(rows)] for row in rows if row["arm"] == arm]) for arm in {r["arm"] for r in rows}
    }
    lines = []
    for arm in ("all", "random"):
        if f"selected_minus_{arm}" not in scalars:
            continue
        one = scalars[f"selected_minus_{arm}"]
        value = float(one.value or 0)
        which = f"all {num_tasks}" if arm == "all" else "random"
        told = f"{mean['selected']:.2f} against {mean[arm]:.2f} with {which} tasks"
        if one.low is None or one.high is None:
            word = "undecided with one seed"
        else:
            word = "better" if one.low > 0 else "worse" if one.high < 0 else "undecided"
            word += f" [{one.low:+.2f}, {one.high:+.2f}]"
        lines.append(f"Tuned on tasks chosen by instructions: {measure} {told} at one budget ({value:+.2f}, {word}).")
    if "selected_relatedness" in scalars:
        lines.append(
            f"The chosen tasks' true relatedness to the target is {scalars['selected_relatedness'].value:.2f}; the "
            f"pool's mean is {scalars['random_relatedness'].value:.2f}."
        )
    return lines
