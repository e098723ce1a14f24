"""The verb `search`: which learning rate is best at each width, and hyper-parameters by successive halving."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from polyloom.core.errors import UserError
from polyloom.core.result import Cell, Result, Scalar, Series, Table
from polyloom.methods.pretrain.config import SearchConfig
from polyloom.methods.pretrain.method import Scaling, parabola_minimum
from polyloom.methods.pretrain.proxies import Family, as_bytes, final_loss, held_out_loss, train_member, world_family
from polyloom.methods.pretrain.samples import gather, read_cells
from polyloom.runs.folder import Run

FORMS = ("muP", "standard")
MUP_LIMIT, STANDARD_LIMIT = 1.0, 2.0
KEEP = 3
SHORT = 4
# A gradient norm that has grown so much since the warm-up climbs.
CLIMB = 3.0
Losses = dict[str, dict[int, list[list[float | None]]]]


def run_search(config: SearchConfig, run: Run) -> Result:
    """Find the best learning rate of each width in both parametrisations, or the best cell of a grid.

    Args:
        config: widths, learning rates, steps, seeds; or a grid of hyper-parameters.
        run: keeps each cell's loss.

    Returns:
        By how many octaves the best learning rate moves from the first width to the last; or the ranked cells.

    Raises:
        UserError: a width that is no multiple of 32, or text that fills no window.
    """
    family = _family(config)
    if config.grid:
        return grid_search(config, run, family)
    losses = transfer_losses(config, run, family)
    return _transfer_result(config, run, losses)


def _family(config: SearchConfig) -> Family:
    if not config.data:
        return world_family(config.languages, config.seed)
    samples = gather(read_cells(config.data), 4_000_000, 400_000)
    if not samples.held_out:
        raise UserError("too little text to hold some back.", where="--data", hint="Give more documents.")
    return Family(as_bytes(samples.train.values()), as_bytes(samples.held_out.values()))


def base_scaling(base_width: int) -> Scaling:
    """Return the proxies' settings with muP's base at a width."""
    return Scaling(base_width=base_width)


def transfer_losses(config: SearchConfig, run: Run, family: Family) -> Losses:
    """Train every form, width, learning rate and seed; the order of the data is a seed's own.

    Returns:
        form -> width -> [learning rate][seed] held-out loss; None where a run diverged.
    """
    exponents = range(config.lowest_exponent, config.highest_exponent + 1)
    seeds = range(config.seed, config.seed + config.num_seeds)
    found: Losses = {}
    total = len(FORMS) * len(config.widths) * len(exponents) * len(seeds)
    with run.progress("search: runs", total) as advance:
        for form, width in product(FORMS, config.widths):
            base = base_scaling(config.widths[0])
            scaling = base if form == "muP" else base.standard()
            rows = []
            for exponent in exponents:
                lr = 2.0**exponent
                row = []
                for seed in seeds:
                    # At the base width both forms are one.
                    name = "both" if width == config.widths[0] else form
                    key = f"search {name} {width} {exponent} {seed} {config.steps}"
                    settings = replace(scaling, lr=lr, matrix_lr=lr)
                    row.append(run.once(key, lambda: final_loss(family, width, settings, config.steps, seed)))  # noqa: B023
                    advance(1)
                rows.append(row)
            found.setdefault(form, {})[width] = rows
    return found


def best_exponent(exponents: Sequence[int], losses: Sequence[float | None]) -> tuple[float, bool, float]:
    """Return where the loss is lowest, whether that is at the grid's edge, and how much it rises an octave away.

    A parabola goes through the best grid point and its neighbours.

    Args:
        exponents: log2 of the learning rates, ascending by one.
        losses: at each; None where a run diverged.
    """
    values = np.array([math.inf if loss is None else loss for loss in losses])
    best = int(values.argmin())
    if best in (0, len(values) - 1):
        return float(exponents[best]), True, math.nan
    near = values[best - 1 : best + 2]
    rise = float(np.mean([near[0], near[2]]) - near[1])
    if not np.isfinite(near).all():
        return float(exponents[best]), False, rise
    x = np.array(exponents[best - 1 : best + 2], dtype=float)
    return parabola_minimum(x, near), False, rise


def shifts(config: SearchConfig, losses: Losses, form: str) -> tuple[float, list[float], bool]:
    """Return by how many octaves the best rate falls from the first width to the last: of the mean loss, by seed.

    The third value says whether a best rate lies at the grid's edge.
    """
    exponents = list(range(config.lowest_exponent, config.highest_exponent + 1))
    ends = [losses[form][width] for width in (config.widths[0], config.widths[-1])]
    means = [[_mean(row) for row in rows] for rows in ends]
    (small, edge_small, _), (wide, edge_wide, _) = (best_exponent(exponents, row) for row in means)
    by_seed = []
    for seed in range(config.num_seeds):
        one, two = (best_exponent(exponents, [row[seed] for row in rows])[0] for rows in ends)
        by_seed.append(one - two)
    return small - wide, by_seed, edge_small or edge_wide


def _mean(row: Sequence[float | None]) -> float | None:
    values = [value for value in row if value is not None]
    return sum(values) / len(values) if len(values) == len(row) else None


def _transfer_result(config: SearchConfig, run: Run, losses: Losses) -> Result:
    exponents = list(range(config.lowest_exponent, config.highest_exponent + 1))
    scalars: dict[str, Scalar] = {}
    rows: list[list[Cell]] = []
    series = {}
    edges, found = [], []
    for form in FORMS:
        shift, by_seed, edge = shifts(config, losses, form)
        scalars[f"{form.lower()}_shift_octaves"] = Scalar(
            value=shift, low=min(by_seed), high=max(by_seed), unit="octaves"
        )
        edges += [form] if edge else []
        found.append(shift)
        for width, table in losses[form].items():
            means = [_mean(row) for row in table]
            best, _, rise = best_exponent(exponents, means)
            scalars[f"{form.lower()}_best_log2_lr_{width}"] = Scalar(value=best)
            rows.append([form, width, best, rise if math.isfinite(rise) else None, *means])
            series[f"{form}, width {width}"] = Series(
                x=[float(e) for e in exponents], y=means, x_label="log2 of the learning rate",
                y_label="held-out nats per byte", group=f"{form}: loss by learning rate",
            )  # fmt: skip
    # muP divides the matrices' rate by m, so that the two forms should part by log2 m whatever this family prefers.
    scalars["form_gap_octaves"] = Scalar(value=found[1] - found[0], unit="octaves")
    scalars["expected_gap_octaves"] = Scalar(value=math.log2(config.widths[-1] / config.widths[0]), unit="octaves")
    columns = ["form", "width", "best log2 lr", "rise an octave away", *(f"2^{e}" for e in exponents)]
    return run.result(
        scalars=scalars,
        tables={"losses": Table(columns=columns, rows=rows, title="Held-out loss, mean over seeds")},
        series=series,
        verdicts=[_transfer_verdict(config, scalars, edges)],
        limitations=[
            f"Two layers on bytes, {config.steps} steps: what transfers here is shown for this family alone.",
            "The interval of a shift is the range over seeds.",
        ],
    )


def _transfer_verdict(config: SearchConfig, scalars: Mapping[str, Scalar], edges: Sequence[str]) -> str:
    mup, standard = (float(scalars[f"{form.lower()}_shift_octaves"].value or 0.0) for form in FORMS)
    span = f"from width {config.widths[0]} to {config.widths[-1]}"
    if abs(mup) <= MUP_LIMIT and standard >= STANDARD_LIMIT:
        word = f"The best learning rate transfers under muP ({mup:+.1f} octaves {span}) and falls without it"
    elif abs(mup) < abs(standard):
        word = f"The best learning rate moves less under muP ({mup:+.1f} octaves {span}) than without it"
    else:
        word = f"No advantage of muP was found ({mup:+.1f} octaves {span}) over the standard form"
    note = f" At the grid's edge: {', '.join(edges)}; widen it." if edges else ""
    few = " Too few seeds or steps to decide." if config.num_seeds < 3 or config.steps < 60 else ""
    return f"{word} ({standard:+.1f} octaves).{note}{few}"


def grid_search(config: SearchConfig, run: Run, family: Family) -> Result:
    """Search a grid on the first width: short runs of all cells, the best third long, three seeds for the last ones.

    A cell whose gradient norm climbs is out, whatever its loss.
    """
    names = list(config.grid)
    cells = [dict(zip(names, values, strict=True)) for values in product(*config.grid.values())]
    width = config.widths[0]
    short = max(8, config.steps // SHORT)
    ranked = _rung(run, family, width, cells, short, [config.seed], "short")
    kept = [cell for cell, loss, climbs in ranked if loss is not None and not climbs]
    if not kept:
        raise UserError("every cell diverged or its gradient norm climbs.", where="grid", hint="Lower the lr values.")
    kept = kept[: max(1, math.ceil(len(kept) / KEEP))]
    seeds = list(range(config.seed, config.seed + config.num_seeds))
    final = _rung(run, family, width, kept, config.steps, seeds, "long")
    best, loss, climbs = final[0]
    rows: list[list[Cell]] = [[*(c[n] for n in names), "long", value, bad] for c, value, bad in final]
    rows += [[*(c[n] for n in names), "short", value, bad] for c, value, bad in ranked if c not in kept]
    edges = [n for n in names if len(config.grid[n]) > 1 and best[n] in (min(config.grid[n]), max(config.grid[n]))]
    note = f" At the edge of the grid: {', '.join(edges)}." if edges else ""
    words = ", ".join(f"{name} {value:g}" for name, value in best.items())
    doubt = " Its gradient norm climbs." if climbs else ""
    return run.result(
        scalars={f"best_{name}": Scalar(value=value) for name, value in best.items()}
        | {"best_loss": Scalar(value=loss, unit="nats/byte"), "num_cells": Scalar(value=len(cells))},
        tables={"cells": Table(columns=[*names, "rung", "loss", "norm climbs"], rows=rows, title="Cells by loss")},
        verdicts=[f"Best of {len(cells)} cells at width {width}: {words}.{note}{doubt}"],
        limitations=["The losers saw short runs alone: a cell that is slow at first can be lost."],
    )


Ranked = list[tuple[dict[str, float], float | None, bool]]


def _rung(
    run: Run, family: Family, width: int, cells: Sequence[dict[str, float]], steps: int, seeds: Sequence[int], name: str
) -> Ranked:
    ranked: Ranked = []
    with run.progress(f"search: {name} runs", len(cells)) as advance:
        for cell in cells:
            found = [
                run.once(f"grid {sorted(cell.items())} {steps} {seed}", lambda: _cell(family, width, cell, steps, seed))  # noqa: B023
                for seed in seeds
            ]
            ranked.append((cell, _mean([one["loss"] for one in found]), any(one["climbs"] for one in found)))
            advance(1)
    return sorted(ranked, key=lambda item: (item[2], math.inf if item[1] is None else item[1]))


def _cell(family: Family, width: int, cell: Mapping[str, float], steps: int, seed: int) -> dict[str, Any]:
    values: dict[str, Any] = dict(cell)
    values.setdefault("matrix_lr", values.get("lr", Scaling.matrix_lr))
    norms: list[float] = []
    scaling = replace(base_scaling(width), **values)
    model, state = train_member(
        family, width, scaling, steps, seed, lambda **line: norms.append(line.get("gradient_norm", 0.0))
    )
    # After the warm-up, a tenth of the steps, the norm should fall.
    climbs = len(norms) > 2 and norms[-1] > CLIMB * norms[1]
    return {"loss": None if state is None else held_out_loss(family, model), "climbs": climbs}
