"""The coordinate check: do activations grow with width after a few steps, in muP and in the standard form?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev
from typing import Any

import torch
from torch import Tensor, nn

from polyloom.core.result import Cell, Result, Scalar, Series, Table
from polyloom.methods.pretrain.architecture import build, parameter_groups
from polyloom.methods.pretrain.config import CoordinateCheckConfig
from polyloom.methods.pretrain.method import Scaling, slope
from polyloom.methods.pretrain.proxies import BASE_WIDTH, Family, world_family
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train

MUP_LIMIT = 0.15
STANDARD_LIMIT = 1.0


def scalings(lr: float, *, muon: bool = False) -> dict[str, Scaling]:
    """Return the two parametrisations, equal at the base width."""
    mup = Scaling(lr=lr, matrix_lr=lr, base_width=BASE_WIDTH, muon=muon)
    return {"muP": mup, "standard": mup.standard()}


def measure(family: Family, width: int, scaling: Scaling, steps: int, seed: int) -> dict[str, list[float]]:
    """Train a few steps without clipping and take the mean |activation| after each.

    Args:
        family: the proxies.
        width: the member's.
        scaling: its parametrisation.
        steps: optimiser steps.
        seed: of weights and data.

    Returns:
        Name of the coordinate (embedding, each block's output, logits) -> value at initialisation and after each step,
        on the first batch; logits are taken behind output_mult / m, which is inside the folded head.
    """
    pin_threads()
    shape = family.shape(width)
    model = build(shape, family.window_tokens, scaling, seed)
    batch_at = family.batches(seed)
    probe = batch_at(0)["tokens"][:, :-1]
    taps: dict[str, nn.Module] = {"embedding": model.model.embed_tokens}
    taps |= {f"block {i}": layer for i, layer in enumerate(model.model.layers, start=1)}
    taps["logits"] = model.lm_head
    found: dict[str, list[float]] = {name: [] for name in taps}

    def look() -> None:
        hooks = [module.register_forward_hook(_tap(found[name])) for name, module in taps.items()]
        with torch.no_grad():
            model(input_ids=probe, use_cache=False)
        for hook in hooks:
            hook.remove()

    config = TrainConfig(
        steps=steps, batch_size=family.batch_size, warmup_steps=0, schedule="constant", clip_norm=0.0,
        precision="float32", seed=seed, optimizer="muon" if scaling.muon else "adamw",
    )  # fmt: skip
    look()
    train(model, batch_at, config, groups=parameter_groups(model, shape, scaling), on_step=lambda _: look())
    return found


def _tap(values: list[float]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        values.append(float(tensor.abs().mean()))

    return hook


def run_coordinate_check(config: CoordinateCheckConfig, run: Run) -> Result:
    """Measure how activations grow with width, in muP and in the standard parametrisation.

    Args:
        config: widths, learning rate, steps, seeds.
        run: keeps each member's values.

    Returns:
        The slope of log mean |activation| against log width of every coordinate after the last step.
    """
    widths = sorted(set(config.widths))
    family = world_family(("en", "de", "tr"), config.seed, 60_000)
    muon = config.optimizer == "muon"
    values: dict[str, dict[int, list[dict[str, list[float]]]]] = {}
    with run.progress("coordinate check", 2 * len(widths) * config.num_seeds) as advance:
        for name, scaling in scalings(config.lr, muon=muon).items():
            for width in widths:
                seeds = []
                for seed in range(config.seed, config.seed + config.num_seeds):
                    key = f"coordinates {config.optimizer} {name} {width} {seed}"
                    seeds.append(run.once(key, lambda: measure(family, width, scaling, config.steps, seed)))  # noqa: B023
                    advance(1)
                values.setdefault(name, {})[width] = seeds
    by_seed = {
        name: {
            tap: [slope(widths, [by_width[w][i][tap][-1] for w in widths]) for i in range(config.num_seeds)]
            for tap in by_width[widths[0]][0]
        }
        for name, by_width in values.items()
    }
    means = {name: {width: _mean(seeds) for width, seeds in by_width.items()} for name, by_width in values.items()}
    return _as_result(run, widths, means, by_seed)


def _mean(seeds: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    return {
        tap: [sum(column) / len(seeds) for column in zip(*(one[tap] for one in seeds), strict=True)] for tap in seeds[0]
    }


def judge(slopes: Sequence[float]) -> str:
    """Say whether a muP slope is flat: its mean over seeds within the limit, or too near to it to tell.

    Args:
        slopes: one a seed.
    """
    mean = abs(sum(slopes) / len(slopes))
    if mean <= MUP_LIMIT:
        return "holds"
    error = stdev(slopes) / len(slopes) ** 0.5 if len(slopes) > 1 else math.inf
    return "is undecided" if mean - 2 * error <= MUP_LIMIT else "does not hold"


def _as_result(
    run: Run,
    widths: Sequence[int],
    values: dict[str, dict[int, dict[str, list[float]]]],
    by_seed: dict[str, dict[str, list[float]]],
) -> Result:
    slopes = {name: {tap: sum(s) / len(s) for tap, s in taps.items()} for name, taps in by_seed.items()}
    worst_tap = max(slopes["muP"], key=lambda tap: abs(slopes["muP"][tap]))
    worst = abs(slopes["muP"][worst_tap])
    steepest = max(slopes["standard"].values())
    rows: list[list[Cell]] = [
        [name, tap, *(by_width[w][tap][-1] for w in widths), slopes[name][tap]]
        for name, by_width in values.items()
        for tap in by_width[widths[0]]
    ]
    series = {
        f"{name}, {tap}": Series(
            x=[float(w) for w in widths],
            y=[by_width[w][tap][-1] for w in widths],
            x_label="width",
            y_label="mean |activation|",
            group=f"{name}: mean |activation| by width",
        )
        for name, by_width in values.items()
        for tap in by_width[widths[0]]
    }
    contrast = "grows" if steepest >= STANDARD_LIMIT else "does not grow as expected"
    return run.result(
        scalars={
            "max_mup_slope": Scalar(value=worst),
            "max_standard_slope": Scalar(value=steepest),
            **{
                f"slope_{name.lower()}_{tap.replace(' ', '_')}": Scalar(
                    value=value, low=min(by_seed[name][tap]), high=max(by_seed[name][tap])
                )
                for name, by_tap in slopes.items()
                for tap, value in by_tap.items()
            },
        },
        tables={
            "coordinates": Table(
                columns=["parametrisation", "coordinate", *(f"width {w}" for w in widths), "slope"],
                rows=rows,
                title="Mean |activation| after the last step",
            )
        },
        series=series,
        verdicts=[
            f"muP {judge(by_seed['muP'][worst_tap])}: the steepest of its slopes, {worst_tap}'s, is {worst:.2f} "
            f"(limit {MUP_LIMIT}); the standard parametrisation {contrast} with width (slope {steepest:.2f})."
        ],
        limitations=[
            "Two layers on bytes of the world's text, a few steps: the check finds a wrong class or factor.",
            "The interval of a slope is the range over seeds.",
        ],
    )
