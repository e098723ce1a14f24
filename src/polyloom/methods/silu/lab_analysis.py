"""From the lab's raw values to tested statements: every test of the report in one family, words by rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyloom.core.seeding import numpy_generator
from polyloom.methods.silu.lab_tasks import Metric, Task
from polyloom.methods.silu.lab_training import Init, Plan
from polyloom.metrics.statistics import Comparison, Word, compare_paired, correct_family, holm
from polyloom.metrics.survival import log_rank, median_survival

Units = Mapping[tuple[str, str, str], dict[str, Any]]
EQUAL_SECONDS = "at equal seconds"
SECONDARY_INIT_METRICS = 2


@dataclass(frozen=True)
class Tested:
    """One comparison with the baseline, its p-value corrected over the whole report."""

    task: str
    init: str
    metric: str
    form: str
    unit: str
    comparison: Comparison


@dataclass(frozen=True)
class Convergence:
    """Steps to the target on validation data: of one form at one learning rate.

    Attributes:
        task: of the lab.
        form: the activation.
        rate: learning rate.
        own_best: whether it is the form's tuned rate.
        target: validation score to reach.
        reached: models that reached it.
        num_models: all models; the others are censored at the budget.
        median_steps: Kaplan-Meier; None when fewer than half arrive.
        baseline_median_steps: of the baseline, at its own best rate or at this one.
        p: log-rank against the baseline, corrected over the report; None where not tested.
    """

    task: str
    form: str
    rate: float
    own_best: bool
    target: float
    reached: int
    num_models: int
    median_steps: float | None
    baseline_median_steps: float | None
    p: float | None


def value_at_step(curve: Sequence[float], steps: Sequence[int], wanted: float) -> float:
    """Interpolate a learning curve at a step; before the first point it is the first value."""
    return float(np.interp(wanted, steps, curve))


def steps_at_equal_seconds(step_seconds: Mapping[str, float], num_steps: int) -> dict[str, float]:
    """Return how many steps each form takes in the time that the cheapest one needs for all of its steps."""
    budget = min(step_seconds.values()) * num_steps
    return {form: min(float(num_steps), budget / seconds) for form, seconds in step_seconds.items()}


def _margin(metric: Metric, margins: Mapping[str, float]) -> float:
    return margins[metric.unit]


def compare_units(
    task: Task,
    init: Init,
    forms: Sequence[str],
    units: Units,
    margins: Mapping[str, float],
    step_seconds: Mapping[str, float] | None,
    num_steps: int,
    all_metrics: bool,
) -> list[Tested]:
    """Compare every form with the first one on the metrics of a task (not yet corrected).

    Args:
        task: of the lab.
        init: initialisation policy.
        forms: the baseline first.
        units: raw values by (task, form, init).
        margins: by unit, `accuracy` and `loss`.
        step_seconds: of each form; None leaves the comparison at equal seconds out.
        num_steps: of a full training.
        all_metrics: false for the primary metric and the noise area alone.
    """
    baseline = units[task.name, forms[0], init]
    names = list(task.metrics)[: None if all_metrics else SECONDARY_INIT_METRICS]
    found = []
    for form in forms[1:]:
        unit = units[task.name, form, init]
        pairs = [(name, task.metrics[name], unit["metrics"][name], baseline["metrics"][name]) for name in names]
        if step_seconds:
            steps = steps_at_equal_seconds(step_seconds, num_steps)
            values = [
                [value_at_step(curve, source["steps"], steps[name]) for curve in source["learning_curves"]]
                for name, source in ((form, unit), (forms[0], baseline))
            ]
            metric = task.metrics[task.primary]
            pairs.append((f"{task.primary} {EQUAL_SECONDS}", metric, values[0], values[1]))
        for name, metric, a, b in pairs:
            comparison = compare_paired(a, b, margin=_margin(metric, margins), higher_is_better=metric.higher_is_better)
            found.append(Tested(task.name, init, name, form, metric.unit, comparison))
    return found


def arrival(
    curves: Sequence[Sequence[float]], steps: Sequence[int], target: float, higher_is_better: bool
) -> tuple[list[float], list[bool]]:
    """Return each model's first evaluated step that meets the target, and whether one did (else: the budget).

    Args:
        curves: [models][points] validation scores.
        steps: of the points.
        target: score to reach.
        higher_is_better: false for losses.
    """
    times, reached = [], []
    for curve in curves:
        meets = [value >= target if higher_is_better else value <= target for value in curve]
        reached.append(any(meets))
        times.append(float(steps[meets.index(True)] if any(meets) else steps[-1]))
    return times, reached


def convergence_target(task: Task, baseline: dict[str, Any]) -> float:
    """Return what the baseline's tuning seeds score on average after three quarters of the steps, at its best rate."""
    curves = np.asarray(baseline["tuning_curves"][f"{baseline['best_rate']:.4g}"])
    return float(curves[:, int(np.ceil(0.75 * curves.shape[1])) - 1].mean())


def _curves_at(unit: dict[str, Any], rate: str) -> list[list[float]] | None:
    """Return the test seeds' validation curves at a rate, or the tuning seeds' where those alone were trained."""
    found: list[list[float]] | None = unit["test_curves"].get(rate, unit["tuning_curves"].get(rate))
    return found


def compare_convergence(task: Task, forms: Sequence[str], units: Units, init: Init) -> list[Convergence]:
    """Compare steps to the target with the baseline's, at each one's own best rate and at every common rate."""
    baseline = units[task.name, forms[0], init]
    target, higher = convergence_target(task, baseline), task.metrics[task.primary].higher_is_better
    found = []
    for form in forms:
        unit = units[task.name, form, init]
        own, other = f"{unit['best_rate']:.4g}", f"{baseline['best_rate']:.4g}"
        common = [rate for rate in unit["validation"] if rate in baseline["validation"]]
        for rate, baseline_rate, best in [(own, other, True), *((rate, rate, False) for rate in common)]:
            curves, reference = _curves_at(unit, rate), _curves_at(baseline, baseline_rate)
            if curves is None or reference is None:
                continue
            times, reached = arrival(curves, unit["steps"], target, higher)
            base_times, base_reached = arrival(reference, baseline["steps"], target, higher)
            tested = best and form != forms[0]
            found.append(
                Convergence(
                    task=task.name,
                    form=form,
                    rate=float(rate),
                    own_best=best,
                    target=target,
                    reached=sum(reached),
                    num_models=len(reached),
                    median_steps=median_survival(times, reached),
                    baseline_median_steps=median_survival(base_times, base_reached),
                    p=log_rank(times, reached, base_times, base_reached) if tested else None,
                )
            )
    return found


def correct_report(
    tested: Sequence[Tested], convergence: Sequence[Convergence]
) -> tuple[list[Tested], list[Convergence]]:
    """Correct all p-values of the report together (Holm) and choose the words again."""
    log_rank_p = [item.p for item in convergence if item.p is not None]
    comparisons = correct_family([item.comparison for item in tested], log_rank_p)
    adjusted = holm([item.comparison.p for item in tested] + log_rank_p)[len(tested) :]
    remaining = iter(adjusted)
    return (
        [replace(item, comparison=comparison) for item, comparison in zip(tested, comparisons, strict=True)],
        [replace(item, p=float(next(remaining))) if item.p is not None else item for item in convergence],
    )


@dataclass(frozen=True)
class Calibration:
    """What the rules say where nothing is to be found.

    Attributes:
        largest_difference: between two copies of the baseline under different names; 0 when pairing works.
        num_comparisons: of disjoint seeds of one activation, drawn many times.
        rates: share of each word among them.
    """

    largest_difference: float
    num_comparisons: int
    rates: dict[Word, float]


def planted_null(
    task: Task,
    baseline: dict[str, Any],
    copy: dict[str, Any],
    margins: Mapping[str, float],
    seed: int,
    num_draws: int = 100,
) -> Calibration:
    """Compare the baseline with its copy, and with itself on other seeds.

    Args:
        task: of both units.
        baseline: a unit.
        copy: the unit of the same activation under another name.
        margins: by unit.
        seed: of the draws.
        num_draws: splits of the seeds into two halves, each compared on every metric.
    """
    differences = [
        abs(a - b)
        for name, values in baseline["metrics"].items()
        for a, b in zip(values, copy["metrics"][name], strict=True)
    ]
    random = numpy_generator(seed, "planted null")
    words: dict[Word, int] = {
        "better": 0,
        "worse": 0,
        "no difference larger than the margin": 0,
        "undecided": 0,
    }
    for _ in range(num_draws):
        for name, metric in task.metrics.items():
            values = random.permutation(np.asarray(baseline["metrics"][name]))
            half = len(values) // 2
            comparison = compare_paired(
                values[:half], values[half : 2 * half], margin=_margin(metric, margins), num_resamples=2
            )
            words[comparison.word] += 1
    total = num_draws * len(task.metrics)
    return Calibration(max(differences), total, {word: count / total for word, count in words.items()})


def smallest_possible_p(num_pairs: int) -> float:
    """Return the smallest p-value that the sign-flip test gives with so many pairs."""
    return max(2.0 ** (1 - num_pairs), 1 / 20_001)


def analyse(
    tasks: Sequence[Task],
    plans: Mapping[str, Plan],
    units: Units,
    margins: Mapping[str, float],
    step_seconds: Mapping[str, Mapping[str, float]],
) -> tuple[list[Tested], list[Convergence]]:
    """Test everything that the report says, in one family.

    The first initialisation policy is tested on every metric; the others on the primary one and the noise area.
    """
    tested: list[Tested] = []
    convergence: list[Convergence] = []
    for task in tasks:
        plan = plans[task.name]
        for index, init in enumerate(plan.inits):
            seconds = step_seconds[task.name] if index == 0 else None
            tested += compare_units(task, init, plan.forms, units, margins, seconds, plan.num_steps, index == 0)
        convergence += compare_convergence(task, plan.forms, units, plan.inits[0])
    return correct_report(tested, convergence)
