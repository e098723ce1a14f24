"""The verb `score`, and what every verb says of a group of runs: means with intervals, survival curves, states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from polyloom.core.errors import UserError
from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.methods.commons.config import ScoreConfig
from polyloom.methods.commons.logs import LoggedRun, read_logs
from polyloom.methods.commons.recount import largest_difference
from polyloom.metrics.statistics import Interval, t_interval, wilson_interval
from polyloom.metrics.survival import kaplan_meier
from polyloom.runs.folder import Run

UNITS = {
    "months": "months",
    "gain": "units",
    "efficiency": "%",
    "equality": "%",
    "over_usage": "%",
    "over_ask": "%",
    "over_usage_diluted": "%",
    "sustainability": "months",
    "exploitation_gap": "%",
    "regret": "units",
    "agreement_rate": "%",
    "compliance": "%",
}
SHOWN_RUNS = 200
SHOWN_SCALARS = 20
SHOWN = ("months", "gain", "efficiency", "equality", "over_usage", "over_usage_diluted")
ETHICS = "Transcripts of models are synthetic. What agents do here must not stand in for decisions about people."


def mean_interval(values: Sequence[float | int]) -> Interval:
    """Return a mean with its t interval; for one value, or equal ones, without width."""
    if len(values) < 2 or min(values) == max(values):
        mean = sum(values) / len(values)
        return Interval(mean, mean, mean)
    return t_interval(values)


def group_scalars(runs: Sequence[LoggedRun], prefix: str = "") -> dict[str, Scalar]:
    """Return the scalars of a group of runs: means of every metric, and how many runs did not count.

    INVALID and INCOMPLETE runs are counted and left out.
    """
    counted = [run for run in runs if run.counts]
    scores = [run.score() for run in counted]
    scalars: dict[str, Scalar] = {
        "num_runs": Scalar(value=len(runs)),
        "num_invalid": Scalar(value=sum(run.invalid for run in runs)),
        "num_incomplete": Scalar(value=sum(not run.complete for run in runs)),
        "num_defaulted": Scalar(value=sum(run.defaulted for run in runs)),
        "num_collapsed_at_end": Scalar(value=sum(one.collapsed_at_end for one in scores)),
    }
    if scores:
        rate = wilson_interval(sum(one.survived for one in scores), len(scores))
        scalars["survival_rate"] = Scalar(value=100 * rate.value, low=100 * rate.low, high=100 * rate.high, unit="%")
    for name, unit in UNITS.items():
        values = [float(value) for one in scores if (value := getattr(one, name)) is not None]
        if values:
            mean = mean_interval(values)
            known = len(values) > 1
            scalars[name] = Scalar(
                value=mean.value, low=mean.low if known else None, high=mean.high if known else None, unit=unit
            )
        elif name in ("equality", "gain"):
            scalars[name] = Scalar(value=None, unit=unit)
    return {prefix + name: scalar for name, scalar in scalars.items()}


def runs_table(runs: Sequence[LoggedRun]) -> Table:
    """Return one row per run with its state and metrics."""
    names = (
        "months",
        "collapsed_at_end",
        "total",
        "gain",
        "efficiency",
        "equality",
        "over_usage",
        "over_ask",
        "over_usage_diluted",
    )
    columns = [
        "run",
        "arm",
        "minds",
        "state",
        *(name.replace("_", " ") for name in names),
        "over usage as taking",
        "agent utterances",
        "defaulted",
    ]
    rows = []
    for run in runs[:SHOWN_RUNS]:
        values = asdict(run.score())
        facts = [run.facts.get("arm", ""), run.facts.get("minds", "")]
        metrics = [values[name] for name in names]
        extra = [run.over_usage_as_taking(), len(run.turns), f"{run.defaulted}/{run.decisions}"]
        rows.append([run.name, *facts, run.status, *metrics, *extra])
    return Table(columns=columns, rows=rows, title="Runs" if len(runs) <= SHOWN_RUNS else f"First {SHOWN_RUNS} runs")


def survival_series(runs: Sequence[LoggedRun]) -> Series | None:
    """Return the Kaplan-Meier curve of a group: collapse is the event, the horizon censors."""
    counted = [run for run in runs if run.counts]
    if not counted:
        return None
    horizon = max(run.trajectory.resource.num_months for run in counted)
    times, share = kaplan_meier(
        [run.trajectory.num_months for run in counted], [run.trajectory.collapsed for run in counted]
    )
    steps = dict(zip(times.tolist(), share.tolist(), strict=True))
    alive, y = 1.0, [1.0]
    for month in range(1, horizon + 1):
        alive = steps.get(float(month), alive)
        y.append(alive)
    return Series(
        x=list(range(horizon + 1)), y=y, x_label="month", y_label="share of communities not collapsed", group="Survival"
    )


def stock_series(runs: Sequence[LoggedRun]) -> Series | None:
    """Return the mean stock at the start of each month with its interval; 0 after a collapse."""
    counted = [run for run in runs if run.counts]
    if not counted:
        return None
    horizon = max(run.trajectory.resource.num_months for run in counted)
    means = []
    for month in range(horizon):
        means.append(
            mean_interval(
                [float(run.trajectory.stocks[month]) if month < run.trajectory.num_months else 0.0 for run in counted]
            )
        )
    banded = len(counted) > 1
    return Series(
        x=list(range(1, horizon + 1)),
        y=[one.value for one in means],
        low=[one.low for one in means] if banded else None,
        high=[one.high for one in means] if banded else None,
        x_label="month",
        y_label="stock at the start of the month",
        group="Stock",
    )


def why(run: LoggedRun) -> str:
    """Say in a sentence how a run ended, and who took what in the month of its collapse."""
    record = run.trajectory
    if not record.collapsed:
        return f"{run.status}: after {record.num_months} months {record.rests[-1]} units were left."
    taken = sum(record.obtained[-1])
    over = [
        f"{run.agents[i]} {amount}" for i, amount in enumerate(record.obtained[-1]) if amount > record.thresholds[-1]
    ]
    word = "removed" if record.resource.sense == "remove" else "taken"
    share = f"{record.thresholds[-1]} each would have kept it"
    beyond = f"; beyond it: {', '.join(over)}" if over and word == "taken" else ""
    return (
        f"collapsed in month {record.num_months}: of {record.stocks[-1]} units {taken} were {word} and "
        f"{record.rests[-1]} left ({share}{beyond})."
    )


def limitations(runs: Sequence[LoggedRun]) -> list[str]:
    """Return what a reader must know of a group of runs."""
    said = [note for run in runs for note in run.notes]
    invalid = [run for run in runs if run.invalid]
    if invalid:
        shown = "; ".join(repr(text[-80:]) for text in invalid[0].examples)
        said.append(
            f"{len(invalid)} runs are INVALID: more than 10% of their decisions held no usable number ({shown})."
        )
    incomplete = sum(not run.complete for run in runs)
    if incomplete:
        said.append(f"{incomplete} runs are INCOMPLETE (neither collapsed nor at their horizon) and count nowhere.")
    if any(run.trajectory.resource.sense == "remove" for run in runs):
        said.append("In a game of removing, over-usage counts shares below what must be removed.")
    counted = [run.score() for run in runs if run.counts]
    if any(one.equality is None for one in counted):
        said.append("Equality is not defined where nobody gained anything, and such runs are left out of its mean.")
    if any(one.over_usage_diluted != one.over_usage for one in counted):
        said.append(
            "The diluted over-usage (utterances among the rows) is what the paper's tables hold; compare by the other."
        )
    return said


def _short(name: str) -> str:
    """Return what tells a log from others: its folder, or its file and number."""
    path = Path(name)
    return path.parent.name if path.name == "log_env.json" else path.name


def run_score(config: ScoreConfig, run: Run) -> Result:
    """Score logs: every metric by its formula, the diluted variant, and the state of incomplete or invalid runs.

    Raises:
        UserError: no log, or a log of another schema.
    """
    runs = read_logs(config.logs, None if config.sense == "auto" else config.sense)
    if not any(one.trajectory.num_months for one in runs):
        raise UserError("no log holds a whole month.", where=", ".join(config.logs))
    runs = [one for one in runs if one.trajectory.num_months]
    series = {}
    for name, made in (("all_runs", survival_series(runs)), ("mean_stock", stock_series(runs))):
        if made is not None:
            series[name] = made
    scalars = group_scalars(runs)
    for one in runs[:SHOWN_SCALARS]:
        values = asdict(one.score())
        scalars |= {f"{_short(one.name)}.{name}": Scalar(value=values[name], unit=UNITS.get(name)) for name in SHOWN}
    whole = [one for one in runs if one.name.endswith(".json") and not one.notes]
    if whole:
        differences = [largest_difference(one, Path(one.name)) for one in whole]
        scalars["largest_difference_from_recount"] = Scalar(value=max(differences))
        scalars["num_recounted"] = Scalar(value=len(whole))
    return run.result(
        scalars=scalars,
        tables={"runs": runs_table(runs)},
        series=series,
        verdicts=[f"{one.name}: {why(one)}" for one in runs[:20]],
        limitations=limitations(runs),
    )
