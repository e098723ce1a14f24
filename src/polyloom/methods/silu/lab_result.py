"""The lab's result: tables, curves and sentences from tested values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.methods.silu.lab_analysis import (
    Calibration,
    Convergence,
    Tested,
    Units,
    smallest_possible_p,
    steps_at_equal_seconds,
    value_at_step,
)
from polyloom.methods.silu.lab_tasks import Task
from polyloom.methods.silu.lab_training import Plan
from polyloom.metrics.statistics import mean_sd, t_interval
from polyloom.runs.folder import Run

INIT_TITLES = {"he": "He", "lsuv": "data-scaled"}


@dataclass(frozen=True)
class Study:
    """Everything that the lab has measured.

    Attributes:
        tasks: those that were run.
        plans: protocol by task.
        units: raw values by (task, form, init).
        tested: comparisons, corrected.
        convergence: steps to the target.
        step_seconds: CPU seconds of a training step by task and form.
        activation_costs: per element, by form.
        calibration: of the rules on planted nulls.
        speedup: of batching the seeds.
        notes: what was skipped or failed.
        profile: quick or full.
        embedded: false for a user's own task.
    """

    tasks: Sequence[Task]
    plans: Mapping[str, Plan]
    units: Units
    tested: Sequence[Tested]
    convergence: Sequence[Convergence]
    step_seconds: Mapping[str, Mapping[str, float]]
    activation_costs: Mapping[str, Mapping[str, float]]
    calibration: Calibration | None
    speedup: Mapping[str, float] | None
    notes: Sequence[str]
    profile: str
    embedded: bool = True

    @property
    def num_tests(self) -> int:
        """Size of the family that is corrected together."""
        return len(self.tested) + sum(item.p is not None for item in self.convergence)

    def unit(self, task: Task, form: str) -> dict[str, Any]:
        """Return the raw values under the first initialisation policy."""
        return self.units[task.name, form, self.plans[task.name].inits[0]]

    def find(self, task: Task, metric: str, form: str) -> Tested | None:
        """Return a comparison under the first initialisation policy."""
        init = self.plans[task.name].inits[0]
        wanted = (task.name, init, metric, form)
        return next((t for t in self.tested if (t.task, t.init, t.metric, t.form) == wanted), None)


def study_result(study: Study, run: Run) -> Result:
    """Assemble the result."""
    tables = {f"{task.name}_comparisons": _comparisons(study, task) for task in study.tasks}
    tables |= {
        "activations": _overview(study),
        "learning_rates": _learning_rates(study),
        "convergence": _convergence(study),
        "cost": _cost(study),
        "power": _power(study),
    }
    if study.calibration:
        tables["calibration"] = _calibration(study.calibration)
    if study.speedup:
        tables["batching"] = _batching(study.speedup)
    return run.result(
        scalars=_scalars(study),
        tables=tables,
        series={**_noise_curves(study), **_learning_curves(study), **_difference_bars(study)},
        verdicts=verdicts(study),
        limitations=limitations(study),
    )


def _comparisons(study: Study, task: Task) -> Table:
    columns = [
        *(
            "initialisation",
            "metric",
            "activation",
            "seeds",
            "mean",
            "sd",
            "baseline mean",
            "difference",
            "low",
            "high",
        ),
        *("BCa low", "BCa high", "p", "corrected p", "d_z", "equivalence p", "word"),
    ]
    rows: list[list[Any]] = []
    for item in study.tested:
        if item.task == task.name:
            c = item.comparison
            values = study.units[item.task, item.form, item.init]["metrics"].get(item.metric)
            sd = mean_sd(values)[1] if values else None
            rows.append(
                [
                    *(INIT_TITLES[item.init], item.metric, item.form, c.num_pairs, c.mean_a, sd, c.mean_b),
                    *(c.difference.value, c.difference.low, c.difference.high, c.bootstrap.low, c.bootstrap.high),
                    *(c.p, c.corrected_p, c.effect_size, c.equivalence_p, c.word),
                ]
            )
    baseline = study.plans[task.name].forms[0]
    return Table(
        columns=columns,
        rows=rows,
        title=f"{task.name}: every activation against {baseline}, paired by seed; p corrected over {study.num_tests} "
        "tests of the report (Holm)",
    )


def _overview(study: Study) -> Table:
    columns = [
        *("task", "initialisation", "activation", "metric", "best learning rate", "mean", "sd"),
        *("mean at equal seconds", "steps at equal seconds", "diverged share", "dead units share", "parameters"),
    ]
    rows: list[list[Any]] = []
    for task in study.tasks:
        plan = study.plans[task.name]
        steps = steps_at_equal_seconds(study.step_seconds[task.name], plan.num_steps)
        for init in plan.inits:
            for form in plan.forms:
                unit = study.units[task.name, form, init]
                mean, sd = mean_sd(unit["metrics"][task.primary])
                at_seconds = [value_at_step(curve, unit["steps"], steps[form]) for curve in unit["learning_curves"]]
                rows.append(
                    [
                        *(task.name, INIT_TITLES[init], form, task.primary, unit["best_rate"], mean, sd),
                        *(mean_sd(at_seconds)[0], steps[form], _mean(unit["diverged"].values())),
                        *(_mean(unit["dead_units"]), unit["num_parameters"]),
                    ]
                )
    return Table(
        columns=columns, rows=rows, title="Each activation at its tuned learning rate, at equal steps and time"
    )


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def _learning_rates(study: Study) -> Table:
    rows: list[list[Any]] = []
    for task in study.tasks:
        plan = study.plans[task.name]
        for init in plan.inits:
            for form in plan.forms:
                unit = study.units[task.name, form, init]
                for rate, scores in unit["validation"].items():
                    chosen = rate == f"{unit['best_rate']:.4g}"
                    row = [task.name, INIT_TITLES[init], form, float(rate), _mean(scores)]
                    rows.append([*row, unit["diverged"][rate], chosen])
    columns = ["task", "initialisation", "activation", "learning rate", "validation mean", "diverged share", "chosen"]
    return Table(columns=columns, rows=rows, title="Learning rates, chosen by the tuning seeds on validation data")


def _convergence(study: Study) -> Table:
    columns = [
        *("task", "activation", "learning rate", "at its own best", "target", "reached", "models"),
        *("median steps", "baseline median steps", "log-rank corrected p"),
    ]
    rows: list[list[Any]] = [
        [
            *(c.task, c.form, c.rate, c.own_best, c.target, c.reached, c.num_models),
            *(c.median_steps, c.baseline_median_steps, c.p),
        ]
        for c in study.convergence
    ]
    title = "Steps to the target; models that never arrive are censored at the budget (Kaplan-Meier, log-rank)"
    return Table(columns=columns, rows=rows, title=title)


def _cost(study: Study) -> Table:
    tasks = [task.name for task in study.tasks]
    columns = ["activation", "forward ns per element", "backward ns per element", "saved bytes per element"]
    columns += [f"{name}: step time over the baseline's" for name in tasks]
    rows: list[list[Any]] = []
    for form in dict.fromkeys(form for plan in study.plans.values() for form in plan.forms):
        cost = study.activation_costs.get(form, {})
        ratios = []
        for name in tasks:
            seconds = study.step_seconds[name]
            ratios.append(seconds[form] / seconds[study.plans[name].forms[0]] if form in seconds else None)
        rows.append([form, *(cost.get(key) for key in ("forward_ns", "backward_ns", "saved_bytes")), *ratios])
    return Table(columns=columns, rows=rows, title="Cost on this machine: CPU time of one thread, interleaved medians")


def _power(study: Study) -> Table:
    rows: list[list[Any]] = []
    for task in study.tasks:
        for metric in task.metrics:
            found = [t.comparison for form in study.plans[task.name].forms if (t := study.find(task, metric, form))]
            if found:
                widest = max(found, key=lambda c: c.sd)
                row = [task.name, metric, widest.num_pairs, widest.sd, widest.minimum_detectable, widest.margin]
                rows.append([*row, smallest_possible_p(widest.num_pairs) * study.num_tests])
    columns = [
        *("task", "metric", "seeds", "largest paired sd", "smallest detectable difference", "margin"),
        "smallest possible p, corrected",
    ]
    return Table(columns=columns, rows=rows, title="What so many seeds can find (80 % power, 5 % level, one test)")


def _calibration(calibration: Calibration) -> Table:
    rows: list[list[Any]] = [["copies of the baseline: largest difference", calibration.largest_difference]]
    rows += [[f"disjoint seeds of the baseline: share of '{word}'", rate] for word, rate in calibration.rates.items()]
    return Table(columns=["planted null", "value"], rows=rows, title="The rules where there is nothing to find")


def _batching(speedup: Mapping[str, float]) -> Table:
    rows: list[list[Any]] = [
        ["loop over seeds, plain PyTorch: CPU ms per model", speedup["alone_ms"]],
        ["batched seeds: CPU ms per model", speedup["batched_ms"]],
        ["speed-up (median of interleaved rounds)", speedup["speedup"]],
        ["largest difference of a parameter", speedup["max_difference"]],
    ]
    return Table(columns=["measure", "value"], rows=rows, title="Training the seeds together against one after another")


def _scalars(study: Study) -> dict[str, Scalar]:
    scalars = {"num_tests": Scalar(value=study.num_tests)}
    for task in study.tasks:
        plan, details = study.plans[task.name], []
        for form in plan.forms:
            item = study.find(task, task.primary, form)
            if item is None:
                continue
            interval = item.comparison.difference
            scalars[f"{task.name}_{form}_difference"] = Scalar(
                value=interval.value, low=interval.low, high=interval.high, unit=_unit(item)
            )
            details.append(item.comparison)
        widest = max(details, key=lambda c: c.minimum_detectable)
        scalars[f"{task.name}_seeds"] = Scalar(value=widest.num_pairs)
        scalars[f"{task.name}_smallest_detectable"] = Scalar(value=widest.minimum_detectable)
    if study.calibration:
        rates = study.calibration.rates
        scalars["planted_null_difference"] = Scalar(value=study.calibration.largest_difference)
        scalars["planted_null_false_rate"] = Scalar(value=rates["better"] + rates["worse"])
        scalars["planted_null_no_difference_rate"] = Scalar(value=rates["no difference larger than the margin"])
    if study.speedup:
        scalars["batched_speedup"] = Scalar(value=study.speedup["speedup"], unit="x")
        scalars["batched_max_difference"] = Scalar(value=study.speedup["max_difference"])
    return scalars


def _unit(item: Tested) -> str:
    return "nats" if item.unit == "loss" else "share"


def _noise_curves(study: Study) -> dict[str, Series]:
    series = {}
    for task in study.tasks:
        for form in study.plans[task.name].forms if task.noise_levels else ():
            metrics = study.unit(task, form)["metrics"]
            values = [metrics[task.primary], *(metrics[f"noise {level:g}"] for level in task.noise_levels)]
            intervals = [t_interval(column) for column in values]
            series[f"{task.name} noise {form}"] = Series(
                x=[0.0, *task.noise_levels],
                y=[i.value for i in intervals],
                low=[i.low for i in intervals],
                high=[i.high for i in intervals],
                x_label="share of replaced characters" if task.name == "text" else "standard deviation of the noise",
                y_label=task.primary,
                group=f"{task.name}: under noise",
            )
    return series


def _learning_curves(study: Study) -> dict[str, Series]:
    series = {}
    for task in study.tasks:
        for form in study.plans[task.name].forms:
            unit = study.unit(task, form)
            intervals = [t_interval(column) for column in zip(*unit["learning_curves"], strict=True)]
            series[f"{task.name} learning {form}"] = Series(
                x=[float(step) for step in unit["steps"]],
                y=[i.value for i in intervals],
                low=[i.low for i in intervals],
                high=[i.high for i in intervals],
                x_label="steps",
                y_label=task.primary,
                group=f"{task.name}: learning curves",
            )
    return series


def _difference_bars(study: Study) -> dict[str, Series]:
    series = {}
    for task in study.tasks:
        plan = study.plans[task.name]
        items = [item for form in plan.forms if (item := study.find(task, task.primary, form))]
        intervals = [item.comparison.difference for item in items]
        series[f"{task.name} difference"] = Series(
            x=[float(i) for i in range(len(items))],
            y=[i.value for i in intervals],
            low=[i.low for i in intervals],
            high=[i.high for i in intervals],
            x_names=[item.form for item in items],
            x_label="activation",
            y_label=f"{task.primary}, difference to {plan.forms[0]}",
            group=f"{task.name}: difference to {plan.forms[0]}",
            kind="bar",
        )
    return series


def verdicts(study: Study) -> list[str]:
    """Return the sentences that the rules give."""
    sentences = []
    for task in study.tasks:
        for form in study.plans[task.name].forms[1:]:
            item = study.find(task, task.primary, form)
            if item:
                sentences.append(_say(item, study.plans[task.name].forms[0]))
    for form in dict.fromkeys(form for plan in study.plans.values() for form in plan.forms[1:]):
        sentences += _say_robustness(study, form)
    sentences += [_say_convergence(c) for c in study.convergence if c.p is not None and c.p <= 0.05]
    sentences += [sentence for task in study.tasks for sentence in _say_power(study, task)]
    if study.calibration:
        rates, difference = study.calibration.rates, study.calibration.largest_difference
        sentences.append(
            f"Planted null: two copies of the baseline differ by {difference:g}; on disjoint seeds of one activation "
            f"the rules said better or worse in {rates['better'] + rates['worse']:.1%} and no difference in "
            f"{rates['no difference larger than the margin']:.1%} of {study.calibration.num_comparisons} comparisons."
        )
    if study.speedup:
        sentences.append(
            f"Training the seeds together is {study.speedup['speedup']:.1f} times as fast as a loop over seeds in "
            f"plain PyTorch; parameters differ by at most {study.speedup['max_difference']:.1g}."
        )
    return [*study.notes, *sentences]


def _amount(value: float, unit: str, sign: bool = True) -> str:
    scaled, name = (value, "nats") if unit == "loss" else (100 * value, "points")
    return f"{scaled:{'+' if sign else ''}.{3 if unit == 'loss' else 2}f} {name}"


def _say(item: Tested, baseline: str) -> str:
    c = item.comparison
    low, high = (_amount(value, item.unit).split()[0] for value in (c.difference.low, c.difference.high))
    margin = f" ({_amount(c.margin, item.unit, False)})" if "margin" in c.word else ""
    return (
        f"{item.task}, {item.form} against {baseline} ({c.num_pairs} paired seeds): {item.metric} {c.mean_a:.4f} "
        f"against {c.mean_b:.4f}, {_amount(c.difference.value, item.unit)} [{low}, {high}], "
        f"corrected p {c.corrected_p:.2g}: {c.word}{margin}."
    )


def _say_robustness(study: Study, form: str) -> list[str]:
    """Say whether an activation is more robust to noise: only if every task of the report finds it better."""
    words = {}
    for task in study.tasks:
        item = study.find(task, "noise_area", form)
        if item:
            words[task.name] = item.comparison.word
    if not words:
        return []
    told = ", ".join(f"{word} on {task}" for task, word in words.items())
    if all(word == "better" for word in words.values()):
        return [f"Noise robustness of {form}: {told}. In these tasks it holds; it was not tested elsewhere."]
    if all(word == "undecided" for word in words.values()):
        return [f"Noise robustness of {form}: {told}. It is not shown."]
    return [f"Noise robustness is not a property of {form}: {told}."]


def _say_convergence(c: Convergence) -> str:
    def steps(value: float | None) -> str:
        return "never by half of the models" if value is None else f"at a median of {value:g} steps"

    return (
        f"{c.task}: {c.form} reaches {c.target:.3f} on validation data {steps(c.median_steps)}, the baseline "
        f"{steps(c.baseline_median_steps)}, each at its own best learning rate (log-rank corrected p {c.p:.2g})."
    )


def _say_power(study: Study, task: Task) -> list[str]:
    found = [t for form in study.plans[task.name].forms if (t := study.find(task, task.primary, form))]
    widest = max(found, key=lambda t: t.comparison.minimum_detectable)
    num_pairs = widest.comparison.num_pairs
    amount = _amount(widest.comparison.minimum_detectable, widest.unit, False)
    sentence = f"{task.name}: with {num_pairs} seeds the smallest detectable difference is {amount}"
    if smallest_possible_p(num_pairs) * study.num_tests > 0.05:
        sentence += (
            f"; so few seeds can call no difference better or worse among {study.num_tests} tests, "
            f"as their smallest p is {smallest_possible_p(num_pairs):.2g}"
        )
        sentence += ". Use --profile full or --num-seeds" if study.profile == "quick" else ". Use --num-seeds"
    return [f"{sentence}."]


def limitations(study: Study) -> list[str]:
    """Return what the report must not be taken for."""
    found = [
        "The models are small (3 to 70 thousand parameters) and train for seconds; large models may order otherwise."
        if study.embedded
        else "The runs are short; longer training may order otherwise.",
        "Holm's correction covers all difference and log-rank tests of the report; equivalence tests stand alone.",
        "Intervals are about the seeds (initial draws, batch order, corruptions) on one fixed data split, not about "
        "other data.",
        "At unequal learning rates convergence mixes the activation with the rate; the table shows every common rate "
        "too, without a test.",
        "Values at equal seconds depend on CPU times measured on this machine.",
    ]
    if study.embedded and any(len(plan.inits) == 1 for plan in study.plans.values()):
        names = ", ".join(name for name, plan in study.plans.items() if len(plan.inits) == 1)
        found.append(f"Data-scaled initialisation was left out for {names} in this profile; --profile full has it.")
    few = {name: plan.num_tuning_seeds for name, plan in study.plans.items() if plan.num_tuning_seeds < 3}
    if few:
        told = ", ".join(f"{count} on {name}" for name, count in few.items())
        found.append(f"Few seeds chose the learning rates ({told}).")
    widened = [
        f"{task.name}/{form}"
        for task in study.tasks
        for form in study.plans[task.name].forms
        if study.unit(task, form)["widened"]
    ]
    if widened:
        found.append(
            f"The best learning rate was at the edge of the grid, which was widened, for {', '.join(widened)}."
        )
    return [*found, *(note for task in study.tasks for note in task.notes)]
