"""The room's verbs `facts`, `memory` and `advise`. The lab behind `study` lives in `lab.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.methods.silu.advice import advise_sizes, read_blocks
from polyloom.methods.silu.config import AdviseConfig, FactsConfig, MemoryConfig
from polyloom.methods.silu.memory import (
    FORMS,
    MODES,
    double_backward_passes,
    equal_bits,
    make_block,
    measure_units,
    prove_on_model,
    time_forms,
)
from polyloom.methods.silu.method import Function, edge_of_chaos, init_gain, mean_field, variance_map
from polyloom.methods.silu.sheet import FactSheet, facts
from polyloom.methods.silu.timing import interleaved_ratios
from polyloom.models.activations import relu, resolve_activation
from polyloom.models.device import one_thread
from polyloom.models.load import load_model
from polyloom.models.tiny import build_tiny
from polyloom.runs.folder import Run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TINY_MODEL = "llama-4x128"
TINY_VOCABULARY = 512
COST_REPEATS = 32


def run_facts(config: FactsConfig, run: Run) -> Result:
    """Work out the fact sheet of one activation.

    Args:
        config: names the activation.
        run: the run to store steps in.

    Returns:
        The constants as scalars, half-precision errors and signal propagation as tables, curves as series.

    Raises:
        UserError: the activation does not exist or cannot serve as one.
    """
    f = resolve_activation(config.activation)
    sheet = facts(f)
    breaks = sheet.breaks
    costs = run.once("cost", lambda: _costs(f))
    return run.result(
        scalars=_fact_scalars(sheet, init_gain(f, breaks), costs),
        tables={"half_precision": _half_table(sheet), "signal": _signal_table(f, breaks), "places": _places(sheet)},
        series=_fact_series(f, breaks),
        verdicts=_fact_verdicts(config.activation, f, sheet, breaks),
        limitations=[
            "Extrema are searched on [-1e4, 1e4]; a dip narrower than 1/128 near 0, or than the grid's step far out, "
            "can be missed.",
            "Times are ratios to ReLU on 65,536 float32 elements in cache, one thread: an upper bound, since out of "
            "cache both wait for memory, and in a model both are small beside matrix products.",
        ],
    )


def _fact_scalars(sheet: FactSheet, gain: float, costs: Mapping[str, Mapping[str, float]]) -> dict[str, Scalar]:
    bfloat16, float16 = sheet.half_precision
    values = {
        "minimum_value": sheet.minimum.value,
        "minimum_location": sheet.minimum.location,
        "maximum_value": sheet.maximum.value,
        "maximum_location": sheet.maximum.location,
        "lipschitz_constant": sheet.lipschitz_constant,
        "derivative_minimum": sheet.derivative_minimum.value,
        "derivative_minimum_location": sheet.derivative_minimum.location,
        "derivative_maximum": sheet.derivative_maximum.value,
        "derivative_maximum_location": sheet.derivative_maximum.location,
        "derivative_lipschitz_constant": sheet.derivative_lipschitz_constant,
        "limit_left": sheet.limit_left,
        "limit_right": sheet.limit_right,
        "is_monotone": sheet.is_monotone,
        "mean": sheet.moments.mean,
        "second_moment": sheet.moments.second,
        "variance": sheet.moments.variance,
        "derivative_second_moment": sheet.moments.derivative_second,
        "init_gain": gain,
        "saved_tensors": sheet.saved_tensors,
        "nan_at_minus_infinity": sheet.nan_at_minus_infinity,
        "nan_at_plus_infinity": sheet.nan_at_plus_infinity,
        "nan_from": sheet.nan_from,
        "bfloat16_max_relative_error": bfloat16.max_relative_error,
        "float16_max_relative_error": float16.max_relative_error,
    }
    ratios = {f"{name}_time_ratio": Scalar(**ratio, unit="x ReLU") for name, ratio in costs.items()}
    return {name: Scalar(value=value) for name, value in values.items()} | ratios


def _costs(f: Function) -> dict[str, dict[str, float]]:
    x = torch.linspace(-4, 4, 2**16)
    with one_thread():
        forward = {name: _forward(g, x) for name, g in (("f", f), ("relu", relu))}
        backward = {name: _backward(g, x) for name, g in (("f", f), ("relu", relu))}
        ratios = {
            "forward": interleaved_ratios(forward, "relu", 15)["f"],
            "backward": interleaved_ratios(backward, "relu", 15)["f"],
        }
    return {name: {"value": r.value, "low": r.low, "high": r.high} for name, r in ratios.items()}


def _forward(f: Function, x: torch.Tensor) -> Callable[[], object]:
    return lambda: [f(x) for _ in range(COST_REPEATS)]


def _backward(f: Function, x: torch.Tensor) -> Callable[[], object]:
    leaf = x.clone().requires_grad_()
    y, ones = f(leaf), torch.ones_like(x)
    return lambda: [torch.autograd.grad(y, leaf, ones, retain_graph=True) for _ in range(COST_REPEATS)]


def _half_table(sheet: FactSheet) -> Table:
    rows = [list(asdict(half).values()) for half in sheet.half_precision]
    columns = ["type", "max relative error", "at x", "share correctly rounded", "flushed to 0", "NaN", "overflow"]
    return Table(columns=columns, rows=rows, title="Error over all 65,536 patterns of each half type")


def _signal_table(f: Function, breaks: tuple[float, ...]) -> Table:
    rows: list[list[str | float | None]] = []
    for name, gain in (("He", math.sqrt(2)), ("1 / sqrt(E f^2)", init_gain(f, breaks)), ("LeCun", 1.0)):
        end = mean_field(f, gain, breaks=breaks)
        rows.append([name, gain, end.q, end.slope, end.chi, end.depth_scale])
    columns = ["init", "gain sigma_w", "fixed point q*", "slope V'(q*)", "chi", "depth scale (layers)"]
    return Table(columns=columns, rows=rows, title="Signal propagation without biases, from q = 1")


def _places(sheet: FactSheet) -> Table:
    kinds = {"zero": sheet.zeros, "jump": sheet.jumps, "kink": sheet.kinks}
    rows: list[list[str | float]] = [[kind, x] for kind, places in kinds.items() for x in places]
    return Table(columns=["kind", "x"], rows=list(rows), title="Zeros, jumps and kinks")


def _fact_series(f: Function, breaks: tuple[float, ...]) -> dict[str, Series]:
    x = torch.linspace(-6, 6, 241, dtype=torch.float64, requires_grad=True)
    y = f(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    curve = {"x": x.tolist(), "x_label": "x", "group": "curve"}
    q = [0.05 * step for step in range(1, 61)]
    edge = [point for value in q if (point := edge_of_chaos(f, value, breaks)) is not None]
    series = {
        "f": Series(**curve, y=y.tolist(), y_label="f(x)"),
        "derivative": Series(**curve, y=slope.tolist(), y_label="f'(x)"),
        "variance_map": Series(
            x=q,
            y=[variance_map(f, value, math.sqrt(2), breaks=breaks) for value in q],
            x_label="q",
            y_label="V(q) at He's gain",
            group="variance",
        ),
    }
    if edge:
        x_edge, y_edge = zip(*edge, strict=True)
        labels = {"x_label": "sigma_w", "y_label": "sigma_b", "group": "edge of chaos"}
        series["edge_of_chaos"] = Series(x=list(x_edge), y=list(y_edge), **labels)
    return series


def _fact_verdicts(name: str, f: Function, sheet: FactSheet, breaks: tuple[float, ...]) -> list[str]:
    mean = sheet.moments.mean
    centred = "zero mean" if abs(mean) < 1e-9 else f"mean {mean:.4f}, so it is not zero-centred"
    end = mean_field(f, math.sqrt(2), breaks=breaks).q
    fate = "grows without end" if end is None else f"settles at variance {end:.4f}" if end else "dies"
    lines = [
        f"{name} is {'monotone' if sheet.is_monotone else 'not monotone'}; for x ~ N(0, 1) it has {centred}.",
        f"At He's gain and without normalisation the signal of a deep network {fate}.",
    ]
    if sheet.nan_at_minus_infinity or sheet.nan_at_plus_infinity:
        lines.append(f"{name} gives NaN at an infinity: one overflow upstream spreads.")
    return lines


def run_memory(config: MemoryConfig, run: Run) -> Result:
    """Measure what the exact forms keep for backward and prove that they change no bit.

    Args:
        config: sizes of the measured block, and the model to prove the patch on.
        run: the run to store steps in.

    Returns:
        Saved units, equality, double backward and time ratio of each form; bytes and equality on the model.

    Raises:
        UserError: the model cannot be loaded or patched.
    """
    size = (config.hidden_size, config.intermediate_size, config.num_tokens)
    with run.progress("memory", 4) as advance:
        model = run.once("model", lambda: _model_proof(config))
        advance(1)
        units = run.once("units", lambda: measure_units(*make_block(*size, torch.float32, config.seed)))
        equal = run.once("bits", lambda: _equal_bits(size, config.seed))
        advance(1)
        double = run.once("gradgradcheck", lambda: double_backward_passes(config.seed))
        advance(1)
        times = run.once("times", lambda: _times(size, config.rounds, config.seed))
        advance(1)
    scalars = _memory_scalars(units, equal, double, times) | _model_scalars(model)
    names = {"a": "A", "b": "B"}
    rows = [
        [names.get(form, form), units[form], *(equal[dtype][form] for dtype in DTYPES), *times[form].values()]
        for form in FORMS
    ]
    columns = ["form", "saved units", *(f"bits equal, {dtype}" for dtype in DTYPES), "time ratio", "low", "high"]
    model_rows = [list(proof.values()) for proof in model]
    return run.result(
        scalars=scalars,
        tables={
            "forms": Table(columns=columns, rows=rows, title="One SwiGLU block, forward and backward"),
            "model": Table(
                columns=["form", "saved bytes", "loss", "loss equal", "gradients equal", "blocks patched"],
                rows=model_rows,
                title=f"One training step of the model: {config.model}",
            ),
        },
        series={
            "saved_units": Series(
                x=[0, 1, 2, 3],
                y=[units[form] for form in FORMS],
                x_names=[names.get(form, form) for form in FORMS],
                y_label="kept for backward, [tokens, ffn] tensors",
                group="saved units",
                kind="bar",
            )
        },
        verdicts=_memory_verdicts(scalars),
        limitations=[
            "Saved bytes count what autograd keeps for backward, not the peak of the whole step, in which weights, "
            "gradients and optimiser state have their share.",
            "Equality of bits is shown on this machine, on one thread; the model is loaded in float32 for it, and only "
            "the block is tried in bfloat16 too.",
            "Time ratios hold for this machine and block; wider blocks have relatively cheaper recomputation.",
        ],
    )


def _model_proof(config: MemoryConfig) -> list[dict[str, Any]]:
    if config.model == "tiny":
        proofs = prove_on_model(build_tiny(TINY_MODEL, TINY_VOCABULARY, config.seed), 1, 512, config.seed)
    else:
        model = load_model(config.model)
        longest = model.config.to_dict().get("max_position_embeddings") or 128
        proofs = prove_on_model(model, 2, min(128, longest), config.seed)
    return [asdict(proof) for proof in proofs]


def _equal_bits(size: tuple[int, int, int], seed: int) -> dict[str, dict[str, bool]]:
    with one_thread():
        return {name: equal_bits(*make_block(*size, dtype, seed)) for name, dtype in DTYPES.items()}


def _times(size: tuple[int, int, int], rounds: int, seed: int) -> dict[str, dict[str, float]]:
    ratios = time_forms(*make_block(*size, torch.float32, seed), rounds)
    return {name: {"value": r.value, "low": r.low, "high": r.high} for name, r in ratios.items()}


def _memory_scalars(
    units: Mapping[str, float],
    equal: Mapping[str, Mapping[str, bool]],
    double: Mapping[str, bool],
    times: Mapping[str, Mapping[str, float]],
) -> dict[str, Scalar]:
    scalars = {f"saved_units_{form}": Scalar(value=units[form], unit="[tokens, ffn]") for form in FORMS}
    for form in ("a", "b"):
        for dtype in DTYPES:
            scalars[f"bits_equal_{dtype}_{form}"] = Scalar(value=equal[dtype][form])
        scalars[f"gradgradcheck_{form}"] = Scalar(value=double[form])
    for form in FORMS[1:]:
        scalars[f"time_ratio_{form}"] = Scalar(**times[form], unit="x plain")
    return scalars


def _model_scalars(model: list[dict[str, Any]]) -> dict[str, Scalar]:
    plain = model[0]["saved_bytes"]
    scalars = {f"model_saved_bytes_{proof['form']}": Scalar(value=proof["saved_bytes"], unit="B") for proof in model}
    for proof in model[1:]:
        scalars[f"model_saved_less_{proof['form']}"] = Scalar(value=1 - proof["saved_bytes"] / plain, unit="share")
        scalars[f"model_equal_{proof['form']}"] = Scalar(value=proof["loss_equal"] and proof["gradients_equal"])
    return scalars


def _memory_verdicts(scalars: Mapping[str, Scalar]) -> list[str]:
    lines = []
    for mode in MODES:
        form = mode.lower()
        flags = [f"bits_equal_float32_{form}", f"bits_equal_bfloat16_{form}", f"model_equal_{form}"]
        exact = all(scalars[flag].value for flag in flags)
        time, less = scalars[f"time_ratio_{form}"], scalars[f"model_saved_less_{form}"].value
        kept = scalars[f"saved_units_{form}"].value
        lines.append(
            f"Form {mode} keeps {kept:.2f} of {scalars['saved_units_plain'].value:.2f} units at {time.value:.3f} "
            f"[{time.low:.3f}, {time.high:.3f}] of plain's time; on the model it keeps {less:.1%} less. "
            + ("No bit of loss or gradients changed." if exact else "Bits changed: do not use it here.")
        )
    return lines


def run_advise(config: AdviseConfig, run: Run) -> Result:
    """Say how many bytes each form saves on a model and batch, and what it costs in time on this machine.

    Args:
        config: the model (only its configuration is read), the batch and the sequence length.
        run: the run to store steps in.

    Returns:
        Bytes and time ratio of each form.

    Raises:
        UserError: no such model, no gated blocks, or another activation than SiLU.
    """
    blocks = read_blocks(config.model)
    advice = advise_sizes(blocks, config.batch_size * config.sequence_length)
    times = run.once("times", lambda: _times(advice.measured_size, config.rounds, config.seed))
    scalars = {
        "num_blocks": Scalar(value=blocks.num_blocks),
        "unit_bytes": Scalar(value=advice.unit_bytes, unit="B"),
        "bytes_plain": Scalar(value=4 * advice.all_units_bytes, unit="B"),
    }
    rows: list[list[str | float | int]] = []
    for form, units in (("a", 1), ("b", 2), ("checkpoint", 4)):
        saved = units * advice.all_units_bytes
        scalars[f"bytes_saved_{form}"] = Scalar(value=saved, unit="B")
        scalars[f"time_ratio_{form}"] = Scalar(**times[form], unit="x plain")
        name = form.upper() if len(form) == 1 else form
        rows.append([name, units * advice.unit_bytes / 2**20, saved / 2**30, *times[form].values()])
    columns = ["form", "saved per block (MiB)", "saved in all (GiB)", "time ratio of the block", "low", "high"]
    hidden, ffn, tokens = advice.measured_size
    b = scalars["time_ratio_b"]
    return run.result(
        scalars=scalars,
        tables={"forms": Table(columns=columns, rows=rows, title=f"{config.model}: {blocks.num_blocks} gated blocks")},
        verdicts=[
            f"Form B saves {2 * advice.all_units_bytes / 2**30:.3f} GiB of activations at {b.value:.3f} "
            f"[{b.low:.3f}, {b.high:.3f}] of a block's time; checkpointing saves twice that at "
            f"{scalars['time_ratio_checkpoint'].value:.3f}."
        ],
        limitations=[
            f"Times are measured on a block of {hidden} x {ffn} with {tokens} tokens on one CPU thread; in a wider "
            "block recomputing is a smaller share.",
            "Bytes are of kept activations; form B needs plain, unsharded down projections.",
        ],
    )
