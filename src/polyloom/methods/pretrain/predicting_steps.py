"""`predict --target-steps`: the whole loss curve of a larger model, to hold its training against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyloom.core.files import write_json
from polyloom.core.result import Artifact, Cell, Result, Scalar, Series, Table
from polyloom.methods.pretrain.config import PredictConfig
from polyloom.methods.pretrain.joint_laws import Curve, Floats, JointLaw, predict_curve
from polyloom.methods.pretrain.laws import FAR, TARGET_FACTOR
from polyloom.methods.pretrain.method import Scaling, count_parameters
from polyloom.methods.pretrain.proxies import BASE_WIDTH, Family, held_out_loss, make_member, settings, world_family
from polyloom.methods.pretrain.tables import need_columns, numbers, read_rows
from polyloom.methods.pretrain.tracking import FILE
from polyloom.runs.folder import Run
from polyloom.training.loop import train

NUM_POINTS = 8
CURVE_POINTS = 40


@dataclass(frozen=True)
class Points:
    """Losses of several runs at several steps: one entry a point."""

    runs: list[str]
    sizes: Floats
    steps: Floats
    losses: Floats


def predict_over_steps(config: PredictConfig, run: Run) -> Result:
    """Predict a larger model's loss curve.

    Args:
        config: a CSV of one's own runs with a column step, or a family to train here at a constant rate.
        run: keeps each run's losses, and `prediction.json`, which `train --prediction` reads.

    Raises:
        UserError: fewer than 4 sizes or steps, or a file that is no such table.
    """
    assert config.target_steps is not None
    points = read_points(config.table) if config.table else _trained(config, run)
    target = config.target or TARGET_FACTOR * float(points.sizes.max())
    at = np.geomspace(points.steps.min(), max(config.target_steps, points.steps.min() + 1), CURVE_POINTS)
    law, curve = predict_curve(points.runs, points.sizes, points.steps, points.losses, target, at, config.seed)
    values: dict[str, Any] = {
        "parameters": target,
        "steps": at.tolist(),
        **{name: getattr(curve, name).tolist() for name in ("loss", "low", "high")},
        "resolved": not curve.doubts,
    }
    write_json(run.artifact(FILE), values)
    return _as_result(run, points, law, curve)


def read_points(path: Path) -> Points:
    """Read a CSV with the columns parameters, step, loss, and seed where runs of a size differ.

    Raises:
        UserError: no such columns, or a value that is no number.
    """
    rows, columns = read_rows(path), ("parameters", "step", "loss")
    need_columns(path, rows, columns, "--target-steps needs parameters, step and loss; seed is read too.")
    table = numbers(path, rows, columns, "parameters, step or loss")
    runs = [f"{row['parameters']} {row.get('seed') or ''}" for row in rows]
    return Points(runs, table[:, 0], table[:, 1], table[:, 2])


def _trained(config: PredictConfig, run: Run) -> Points:
    """Train the widths alike at a constant rate and take held-out losses along the way."""
    family = world_family(config.languages, config.seed)
    scaling = Scaling(lr=config.lr, matrix_lr=config.lr, base_width=BASE_WIDTH)
    widths = sorted(set(config.widths))
    rows: list[tuple[str, float, float, float]] = []
    with run.progress("predict: runs", len(widths) * config.num_seeds) as advance:
        for width in widths:
            for seed in range(config.seed, config.seed + config.num_seeds):
                key = f"curve {width} {seed} {config.steps} {config.lr}"
                found = run.once(key, lambda: loss_curve(family, width, scaling, config.steps, seed))  # noqa: B023
                size = float(count_parameters(family.shape(width)))
                rows += [(f"{width} {seed}", size, float(step), loss) for step, loss in found]
                advance(1)
    sizes, steps, losses = np.array([row[1:] for row in rows]).T
    return Points([row[0] for row in rows], sizes, steps, losses)


def loss_curve(family: Family, width: int, scaling: Scaling, steps: int, seed: int) -> list[list[float]]:
    """Train a member at a constant rate; return held-out losses at some 8 steps, evenly apart, the warm-up left out."""
    model, groups = make_member(family, width, scaling, seed)
    # Along a schedule that falls, a loss says how far the rate has fallen as well.
    changes = {"schedule": "constant", "eval_every": max(1, steps // (NUM_POINTS + 1))}
    config = settings(steps, seed, family.batch_size).model_copy(update=changes)
    found: list[list[float]] = []

    def note(**line: Any) -> None:
        if "held_out" in line and line["step"] > config.warmup_steps:
            found.append([line["step"], line["held_out"]])

    train(
        model, family.batches(seed), config, groups=groups, on_log=note,
        evaluate=lambda: {"held_out": held_out_loss(family, model)},
    )  # fmt: skip
    return found


def _as_result(run: Run, points: Points, law: JointLaw, curve: Curve) -> Result:
    last = {"value": float(curve.loss[-1]), "low": float(curve.low[-1]), "high": float(curve.high[-1])}
    if curve.doubts:
        verdict = f"The law is not resolved: {'; '.join(curve.doubts)}. It would give {last['value']:.3f}."
    else:
        verdict = (
            f"At {curve.size:.3g} parameters and step {curve.steps[-1]:.0f} expect a loss of {last['value']:.3f} "
            f"(5-95 %: {last['low']:.3f} to {last['high']:.3f}), "
            f"by L = {law.a:.3g} C^{law.b:.3f} + {law.d:.3g} t^{law.e:.3f} + {law.c:.3f}."
        )
    for what, factor in (("size", curve.size / points.sizes.max()), ("step", curve.steps[-1] / points.steps.max())):
        if factor > FAR:
            verdict += f" The target is {factor:.0f} times the largest {what}: too far to trust."
    rows: list[list[Cell]] = [
        [size, step, loss, float(law.losses(size, np.array([step]))[0])]
        for size, step, loss in zip(points.sizes.tolist(), points.steps.tolist(), points.losses.tolist(), strict=True)
    ]
    about = "the curve with its band, for pretrain train --prediction"
    return run.result(
        scalars={
            "resolved": Scalar(value=not curve.doubts),
            "predicted_loss": Scalar(**last, unit="nats"),
            "target_parameters": Scalar(value=curve.size),
            "target_steps": Scalar(value=round(float(curve.steps[-1]))),
            **{name: Scalar(value=getattr(law, name)) for name in ("a", "b", "d", "e", "c", "rmse")},
        },
        tables={"runs": Table(columns=["parameters", "step", "loss", "fitted"], rows=rows, title="Losses")},
        series=_curves(points, curve),
        artifacts={"prediction": Artifact(path=f"artifacts/{FILE}", media_type="application/json", description=about)},
        verdicts=[verdict],
        limitations=[
            "The losses along a run compare at a constant rate; a schedule that falls ends below the curve.",
            "A run is held against the curve of the same kind of loss: training losses in the table for `train`.",
        ],
    )


def _curves(points: Points, curve: Curve) -> dict[str, Series]:
    labels: dict[str, Any] = {"x_label": "step", "y_label": "loss in nats", "group": "Loss by step"}
    found = {
        f"{size:.3g} parameters": Series(
            x=points.steps[points.sizes == size].tolist(), y=points.losses[points.sizes == size].tolist(),
            kind="scatter", **labels,
        )
        for size in np.unique(points.sizes)
    }  # fmt: skip
    predicted = Series(
        x=curve.steps.tolist(), y=curve.loss.tolist(), low=curve.low.tolist(), high=curve.high.tolist(), **labels
    )
    return found | {f"predicted for {curve.size:.3g}": predicted}
