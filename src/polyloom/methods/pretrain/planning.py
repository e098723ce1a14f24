"""The verb `plan`: what a model costs, and which layouts fit, before anything is paid for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from polyloom.core.errors import UserError
from polyloom.core.result import Cell, Result, Scalar, Table
from polyloom.methods.pretrain.config import PlanConfig
from polyloom.methods.pretrain.method import Shape, count_parameters, decoder, training_flops_per_token
from polyloom.runs.folder import Run

GIGA = 1e9
# float32 weights, gradients and two moments.
STATE_BYTES = 16
HALF_BYTES = 2
MAX_ROWS = 12


@dataclass(frozen=True)
class Plan:
    """A layout and what one device holds in it, in bytes; `bubble` is the share of a step that a pipeline waits."""

    pp: int
    dp: int
    tp: int
    num_micro_batches: int
    state_bytes: float
    activation_bytes: float
    logit_bytes: float
    bubble: float

    @property
    def total_bytes(self) -> float:
        """All of it."""
        return self.state_bytes + self.activation_bytes + self.logit_bytes


def activation_bytes(shape: Shape, config: PlanConfig, tp: int) -> float:
    """Return bytes that one layer keeps for the backward pass of a micro-batch, norms and residuals split over tp.

    With checkpointing its input alone; else inputs of both norms, of the matrices, q k v, the attention's output, and
    4, 3 or 2 units of the inner width.
    """
    tokens = config.micro_batch_size * config.window_tokens
    if config.activation_checkpointing:
        return HALF_BYTES * tokens * shape.width / tp
    units = {"off": 4, "A": 3, "B": 2}[config.memory_saving_swiglu]
    return HALF_BYTES * tokens * (8 * shape.width + units * shape.ffn) / tp


def layouts(shape: Shape, config: PlanConfig) -> list[Plan]:
    """Return every layout that divides the model and the batch, the one that waits least first."""
    found = []
    for tp in _divisors(config.num_devices, config.max_tp):
        if shape.heads % tp or shape.ffn % tp or shape.vocab % tp:
            continue
        for pp in _divisors(config.num_devices // tp, shape.layers):
            dp = config.num_devices // tp // pp
            if config.batch_size % (dp * config.micro_batch_size):
                continue
            count = config.batch_size // dp // config.micro_batch_size
            found.append(_plan(shape, config, pp, dp, tp, count))
    # Less waiting first, then fewer processes that have to speak in every layer.
    return sorted(found, key=lambda plan: (plan.bubble + 0.02 * (plan.tp > 1) * plan.tp**0.5, plan.total_bytes))


def _plan(shape: Shape, config: PlanConfig, pp: int, dp: int, tp: int, count: int) -> Plan:
    per_stage = -(-shape.layers // pp)
    layer = (count_parameters(replace(shape, layers=2)) - count_parameters(replace(shape, layers=1))) / tp
    ends = shape.vocab * shape.width * (2 if pp == 1 else 1) / tp
    whole = per_stage * layer + ends
    # FSDP shards the state over dp; one layer at a time is gathered in half precision.
    state = STATE_BYTES * whole / dp + HALF_BYTES * (whole if pp > 1 else layer + ends)
    alive = min(pp, count)
    activations = alive * per_stage * activation_bytes(shape, config, tp)
    logits = 6 * config.micro_batch_size * config.window_tokens * shape.vocab / tp
    bubble = (pp - 1) / (count + pp - 1)
    return Plan(pp, dp, tp, count, state, activations, logits, bubble)


def _divisors(number: int, limit: int) -> list[int]:
    return [n for n in range(1, min(number, limit) + 1) if number % n == 0]


def run_plan(config: PlanConfig, run: Run) -> Result:
    """Work out parameters, FLOPs, days and memory, and rank the layouts that fit.

    Args:
        config: model, devices, tokens, batch.
        run: the run.

    Raises:
        UserError: no layout divides the model and the batch, or none fits the memory (the nearest is named).
    """
    from polyloom.methods.pretrain.architecture import find_preset

    shape = find_preset(config.preset).shape
    if config.width:
        shape = decoder(config.width, shape.layers, shape.head_size, shape.vocab)
    shape = replace(shape, layers=config.layers or shape.layers)
    plans = layouts(shape, config)
    if not plans:
        what = f"no layout of {config.num_devices} devices divides {shape.heads} heads, {shape.layers} layers and "
        raise UserError(what + f"{config.batch_size} rows.", hint="Change --num-devices or --batch-size.")
    fitting = [plan for plan in plans if plan.total_bytes <= config.device_gigabytes * GIGA]
    smallest = min(plans, key=lambda plan: plan.total_bytes)
    flops = training_flops_per_token(shape, config.window_tokens)
    seconds = config.num_tokens * flops / (config.num_devices * config.device_teraflops * 1e12 * config.mfu)
    best = fitting[0] if fitting else smallest
    rows: list[list[Cell]] = [
        [p.tp, p.pp, p.dp, p.num_micro_batches, p.bubble, p.state_bytes / GIGA, p.activation_bytes / GIGA,
         p.logit_bytes / GIGA, p.total_bytes / GIGA] for p in (fitting or [smallest])[:MAX_ROWS]
    ]  # fmt: skip
    columns = ["tp", "pp", "dp", "micro-batches", "bubble", "state GB", "activations GB", "logits GB", "total GB"]
    fits = "fits" if fitting else f"does not fit {config.device_gigabytes:g} GB"
    verdict = (
        f"{count_parameters(shape) / 1e9:.2f} B parameters, {seconds / 86400:.1f} days; "
        f"tp {best.tp} x pp {best.pp} x dp {best.dp} with {best.total_bytes / GIGA:.1f} GB a device {fits}."
    )
    return run.result(
        scalars={
            "num_parameters": Scalar(value=count_parameters(shape)),
            "flops_per_token": Scalar(value=flops),
            "days": Scalar(value=seconds / 86400, unit="days"),
            "num_steps": Scalar(value=round(config.num_tokens / (config.batch_size * config.window_tokens))),
            "num_layouts": Scalar(value=len(plans)),
            "num_fitting_layouts": Scalar(value=len(fitting)),
            **{name: Scalar(value=getattr(best, name)) for name in ("tp", "pp", "dp")},
            "bubble": Scalar(value=best.bubble, unit="share"),
            "gigabytes": Scalar(value=best.total_bytes / GIGA, unit="GB/device"),
        },
        tables={"layouts": Table(columns=columns, rows=rows, title="Layouts")},
        verdicts=[verdict],
        limitations=[
            "Bytes are counted, not measured: buffers of communication and fragments come on top, about a tenth.",
            "The order weighs waiting in the pipeline and talk in every layer by rule; measure the first few.",
        ],
    )
