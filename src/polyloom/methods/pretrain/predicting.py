"""The verb `predict`: the loss of a larger model from smaller ones, with an interval and with doubts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyloom.core.errors import UserError
from polyloom.core.result import Cell, Result, Scalar, Series, Table
from polyloom.methods.pretrain.config import PredictConfig
from polyloom.methods.pretrain.laws import FAR, LEAST_SIZES, PUBLISHED, TARGET_FACTOR, PowerLaw, Prediction, predict
from polyloom.methods.pretrain.method import Scaling, count_parameters
from polyloom.methods.pretrain.predicting_steps import predict_over_steps
from polyloom.methods.pretrain.proxies import BASE_WIDTH, final_loss, world_family
from polyloom.methods.pretrain.tables import need_columns, numbers, read_rows
from polyloom.runs.folder import Run

# The sets whose publication is about prediction with muP.
JUDGED = ("mu-scaling-gpt2", "nanolm-mup-7k")
Losses = dict[float, list[float]]


def run_predict(config: PredictConfig, run: Run) -> Result:
    """Predict the loss of a larger model.

    Args:
        config: a CSV of one's own runs, a family to train here, or the published arrays.
        run: keeps each run's loss.

    Returns:
        The predicted loss with its 5-95 % band and the law; `resolved` says whether it may be believed.

    Raises:
        UserError: fewer than 4 sizes, unequal steps, equal losses, or a file that is no such table.
    """
    if config.published:
        return _published(run)
    if config.target_steps:
        return predict_over_steps(config, run)
    losses = read_runs(config.table) if config.table else trained_losses(config, run)
    return _own(config, run, losses)


def read_runs(path: Path) -> Losses:
    """Read losses by size from a CSV with the columns parameters and loss; seeds of a size are gathered.

    Raises:
        UserError: no such columns, a value that is no number, or steps that differ (only equal ones compare).
    """
    rows = read_rows(path)
    need_columns(path, rows, ("parameters", "loss"), "It needs parameters and loss; seed, step are read too.")
    steps = {row["step"] for row in rows if row.get("step")}
    if len(steps) > 1:
        what = f"mixes losses of steps {', '.join(sorted(steps))}, which do not compare."
        raise UserError(what, where=str(path), hint="Keep the rows of one step, or give --target-steps.")
    losses: Losses = {}
    for size, loss in numbers(path, rows, ("parameters", "loss"), "parameters or loss").tolist():
        losses.setdefault(size, []).append(loss)
    return losses


def trained_losses(config: PredictConfig, run: Run) -> Losses:
    """Train the widths alike and return held-out losses by number of parameters."""
    family = world_family(config.languages, config.seed)
    widths = sorted(set(config.widths))
    if len(widths) < LEAST_SIZES:
        raise UserError(f"{len(widths)} widths are too few.", where="--widths", hint="Give at least 4.")
    scaling = Scaling(lr=config.lr, matrix_lr=config.lr, base_width=BASE_WIDTH)
    losses: Losses = {}
    with run.progress("predict: runs", len(widths) * config.num_seeds) as advance:
        for width in widths:
            size = float(count_parameters(family.shape(width)))
            for seed in range(config.seed, config.seed + config.num_seeds):
                key = f"predict {width} {seed} {config.steps} {config.lr}"
                loss = run.once(key, lambda: _finite(final_loss(family, width, scaling, config.steps, seed), width))  # noqa: B023
                losses.setdefault(size, []).append(loss)
                advance(1)
    return losses


def _finite(loss: float | None, width: int) -> float:
    if loss is None:
        raise UserError(f"the run of width {width} diverged.", where="--lr", hint="Lower it.")
    return loss


def judge(losses: Losses, target: float, seed: int) -> tuple[PowerLaw, Prediction]:
    """Fit mean losses, weighted by their variance over seeds where there are several, and predict."""
    sizes = sorted(losses)
    means = [float(np.mean(losses[size])) for size in sizes]
    weights = None
    if all(len(losses[size]) > 2 for size in sizes):
        # A single lucky pair of seeds must not outweigh the rest: the pooled variance is mixed in.
        pooled = float(np.mean([np.var(losses[size], ddof=1) for size in sizes]))
        if pooled > 0:
            weights = [2 / (float(np.var(losses[size], ddof=1)) + pooled) for size in sizes]
    return predict(sizes, means, target, weights=weights, seed=seed)


def _own(config: PredictConfig, run: Run, losses: Losses) -> Result:
    sizes = sorted(losses)
    target = config.target or TARGET_FACTOR * sizes[-1]
    law, found = judge(losses, target, config.seed)
    means = [float(np.mean(losses[size])) for size in sizes]
    reasons = "; ".join(found.doubts)
    if found.doubts:
        verdict = f"The power law is not resolved: {reasons}. The curve would give {found.loss:.3f} at {target:.3g}."
    else:
        verdict = (
            f"At {target:.3g} parameters expect a loss of {found.loss:.3f} (5-95 %: {found.low:.3f} to {found.high:.3f}"
            f"), by L = {law.a:.3g} C^{law.b:.3f} + {law.c:.3f}."
        )
    if target > FAR * sizes[-1]:
        verdict += f" The target is {target / sizes[-1]:.0f} times the largest size: too far to trust."
    rows: list[list[Cell]] = [
        [size, mean, law.loss(size), len(losses[size])] for size, mean in zip(sizes, means, strict=True)
    ]
    return run.result(
        scalars={
            "resolved": Scalar(value=not found.doubts),
            "predicted_loss": Scalar(value=found.loss, low=found.low, high=found.high, unit="nats"),
            "target_parameters": Scalar(value=target),
            **{name: Scalar(value=getattr(law, name)) for name in ("a", "b", "c", "rmse")},
        },
        tables={"runs": Table(columns=["parameters", "loss", "fitted", "seeds"], rows=rows, title="Losses by size")},
        series=_curves(law, sizes, means, found),
        verdicts=[verdict],
        limitations=[
            "The band covers the scatter of the fitted points, not a change of regime beyond them.",
            "The same settings, data and steps for all sizes are assumed; muP is what makes them comparable.",
        ],
    )


def _curves(law: PowerLaw, sizes: Sequence[float], means: Sequence[float], found: Prediction) -> dict[str, Series]:
    x = np.geomspace(sizes[0], found.size, 40)
    labels = {"x_label": "parameters", "y_label": "held-out loss in nats", "group": "Loss by size"}
    return {
        "fit": Series(x=x.tolist(), y=[law.loss(size) for size in x], **labels),
        "measured": Series(x=list(sizes), y=list(means), kind="scatter", **labels),
        "predicted": Series(
            x=[found.size], y=[found.loss], low=[found.low], high=[found.high], kind="scatter", **labels
        ),
    }


def _published(run: Run) -> Result:
    rows: list[list[Cell]] = []
    scalars: dict[str, Scalar] = {}
    worst = 0.0
    for one in PUBLISHED:
        errors = []
        for size, actual in zip(one.target_sizes, one.target_losses, strict=True):
            law, found = predict(one.sizes, one.losses, size)
            errors.append(100 * (found.loss / actual - 1))
            inside = found.low <= actual <= found.high
            rows.append([one.name, size, actual, found.loss, found.low, found.high, errors[-1], inside, one.source])
        scalars[f"error_{one.name.replace('-', '_')}"] = Scalar(value=max(errors, key=abs), unit="%")
        scalars[f"rmse_{one.name.replace('-', '_')}"] = Scalar(value=law.rmse)
        if one.name in JUDGED:
            worst = max(worst, *map(abs, errors))
    columns = ["set", "size", "published", "predicted", "low", "high", "error %", "inside the band", "source"]
    standard, mup = scalars["rmse_nanolm_standard_7k"].value, scalars["rmse_nanolm_mup_7k"].value
    return run.result(
        scalars={"max_published_error_percent": Scalar(value=worst, unit="%"), **scalars},
        tables={
            "published": Table(columns=columns, rows=rows, title="Published losses, predicted from smaller models")
        },
        verdicts=[
            f"Losses up to 9.4 times the largest fitted size are predicted within {worst:.2f} %; the nanoLM runs "
            f"under muP scatter {mup:.4f} around its law, the standard form {standard:.4f}."
        ],
        limitations=[
            "The error of 0.30 % is judged on the two sets about muP; the other published sets stand in the table."
        ],
    )
