"""The lab's trainer: many seeds and learning rates of one activation in one batched model, and the tuning protocol."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from polyloom.core.seeding import derive_seed
from polyloom.methods.silu.lab_models import (
    BatchedAdamW,
    Form,
    Network,
    Parameters,
    no_probe,
    scale_by_data,
    stack_models,
)
from polyloom.methods.silu.lab_tasks import Predict, Split, Task
from polyloom.models.device import torch_generator

Init = Literal["he", "lsuv"]
Advance = Callable[[int], None]
CHUNK_EXAMPLES = 64
WARMUP_SHARE = 0.05
FINAL_RATE = 0.1
DEAD_GRADIENT = 1e-6
MAX_WIDENINGS = 3


@dataclass(frozen=True)
class Plan:
    """How a task is trained.

    Attributes:
        num_steps: optimiser steps of every model.
        batch_size: examples of a step.
        num_evaluations: points of the learning curves.
        learning_rates: ascending grid, at least 5 points of a constant factor.
        num_tuning_seeds: seeds that choose the learning rate and are not tested.
        num_seeds: paired test seeds.
        inits: initialisation policies.
        forms: activations, the baseline first.
        every_rate: train the test seeds at every rate of the grid, not at the best alone.
    """

    num_steps: int
    batch_size: int
    num_evaluations: int
    learning_rates: tuple[float, ...]
    num_tuning_seeds: int
    num_seeds: int
    inits: tuple[Init, ...]
    forms: tuple[str, ...]
    every_rate: bool

    def seeds(self, seed: int, task: str, kind: Literal["tuning", "test"]) -> list[int]:
        """Return the seeds of a kind; the two kinds share none, and every activation gets the same."""
        count = self.num_tuning_seeds if kind == "tuning" else self.num_seeds
        return [derive_seed(seed, "silu", "lab", task, kind, index) for index in range(count)]


@dataclass(frozen=True)
class Trained:
    """Models trained together: parameters [models, ...], curves [models][points], who diverged, CPU seconds."""

    parameters: Parameters
    steps: list[int]
    curves: dict[Split, list[list[float]]]
    diverged: list[bool]
    cpu_seconds: float


def batch_indices(task: Task, seed: int, num_steps: int, batch_size: int) -> Tensor:
    """Draw the examples of every step: shuffled epochs, the last partial batch of each dropped; [steps, batch]."""
    stream = torch_generator(seed, "batches")
    per_epoch = max(1, task.num_train // batch_size)
    epochs = [
        torch.randperm(task.num_train, generator=stream)[: per_epoch * batch_size]
        for _ in range(math.ceil(num_steps / per_epoch))
    ]
    return torch.cat(epochs).view(-1, batch_size)[:num_steps]


def schedule(step: int, num_steps: int) -> float:
    """Return the factor of the learning rate at a step: linear warm-up over 5 %, then cosine down to a tenth."""
    warmup = max(1, round(WARMUP_SHARE * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def predictor(network: Network, parameters: Parameters) -> Predict:
    """Return the function that maps inputs [models, examples, ...] to outputs, some examples at a time."""

    @torch.no_grad()
    def predict(inputs: Tensor) -> Tensor:
        parts = [network.forward(parameters, part, no_probe) for part in torch.split(inputs, CHUNK_EXAMPLES, dim=1)]
        return torch.cat(parts, dim=1)

    return predict


def initial_parameters(task: Task, network: Network, init: Init, seeds: Sequence[int], batch_size: int) -> Parameters:
    """Draw the models' parameters; `lsuv` scales them on each seed's own first batches."""
    parameters = stack_models(network, seeds)
    if init == "lsuv":
        inputs = [task.fetch(batch_indices(task, seed, 4, batch_size).flatten())[0] for seed in seeds]
        scale_by_data(network, parameters, torch.stack(inputs))
    return parameters


def training_step(
    task: Task, network: Network, optimiser: BatchedAdamW, inputs: Tensor, targets: Tensor, factor: float
) -> Tensor:
    """Take one step of all models; their losses are added, so that no gradient crosses models. Returns [models]."""
    loss = task.loss(network.forward(optimiser.parameters, inputs, no_probe), targets)
    optimiser.step(torch.autograd.grad(loss.sum(), list(optimiser.parameters.values())), factor)
    return loss.detach()


def train_models(
    task: Task,
    form: Form,
    init: Init,
    models: Sequence[tuple[int, float]],
    plan: Plan,
    *,
    splits: Sequence[Split] = ("validation",),
    advance: Advance | None = None,
) -> Trained:
    """Train models together with AdamW.

    Args:
        task: what to learn.
        form: its activation.
        init: initialisation policy.
        models: seed and learning rate of each.
        plan: steps, batch size and evaluations.
        splits: where to take learning curves.
        advance: called with 1 after each step.

    Returns:
        The models; each equals what it would be if trained alone, up to rounding.
    """
    started = time.process_time()
    network = task.network(form)
    seeds = [seed for seed, _ in models]
    distinct = list(dict.fromkeys(seeds))
    which = torch.tensor([distinct.index(seed) for seed in seeds])
    indices = torch.stack([batch_indices(task, seed, plan.num_steps, plan.batch_size) for seed in distinct])
    rates = torch.tensor([rate for _, rate in models], dtype=torch.float64)
    optimiser = BatchedAdamW(initial_parameters(task, network, init, seeds, plan.batch_size), rates)
    parameters = optimiser.parameters
    predict = predictor(network, parameters)
    moments = {round((i + 1) * plan.num_steps / plan.num_evaluations) for i in range(plan.num_evaluations)}
    curves: dict[Split, list[list[float]]] = {split: [] for split in splits}
    first, recent = torch.zeros(len(models)), torch.zeros(len(models))
    for step in range(plan.num_steps):
        inputs, targets = task.fetch(indices[:, step])
        if len(distinct) < len(seeds):
            inputs, targets = inputs[which], targets[which]
        value = training_step(task, network, optimiser, inputs, targets, schedule(step, plan.num_steps))
        first, recent = (value, value) if step == 0 else (first, 0.9 * recent + 0.1 * value)
        if step + 1 in moments:
            for split, curve in curves.items():
                curve.append(task.score(predict, split, len(models)))
        if advance:
            advance(1)
    return Trained(
        parameters={name: value.detach() for name, value in parameters.items()},
        steps=sorted(moments),
        curves={split: [list(line) for line in zip(*curve, strict=True)] for split, curve in curves.items()},
        diverged=[not (math.isfinite(b) and b <= a) for a, b in zip(first.tolist(), recent.tolist(), strict=True)],
        cpu_seconds=time.process_time() - started,
    )


def dead_units(network: Network, form: Form, parameters: Parameters, inputs: Tensor) -> list[float]:
    """Return each model's share of units whose activation has no gradient on any of the inputs, [models].

    Args:
        network: the architecture.
        form: its activation.
        parameters: [models, ...].
        inputs: [models, examples, ...].
    """
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        network.forward(parameters, inputs, lambda name, z: found.update({name: z.clone()}))
    dead = []
    for name in network.hidden:
        z = found[name].requires_grad_()
        (slope,) = torch.autograd.grad(form.function(z).sum(), z)
        largest = slope.abs().transpose(1, 2).flatten(2).amax(2)
        dead.append(largest < DEAD_GRADIENT)
    return [float(value) for value in torch.cat(dead, dim=1).double().mean(1)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def best_rate(task: Task, validation: dict[float, list[float]]) -> float:
    """Return the learning rate with the best mean validation score over the tuning seeds; the smaller one on a tie."""
    sign = 1.0 if task.metrics[task.primary].higher_is_better else -1.0
    return max(sorted(validation), key=lambda rate: sign * _mean(validation[rate]))


@dataclass
class _Tuning:
    """What the tuning seeds have shown: final scores, curves and divergence by learning rate."""

    scores: dict[float, list[float]]
    curves: dict[float, list[list[float]]]
    diverged: dict[float, list[bool]]
    widened: int = 0


def _tune(task: Task, form: Form, init: Init, plan: Plan, seeds: Sequence[int], advance: Advance | None) -> _Tuning:
    """Try the grid on the tuning seeds; while the best rate is at an edge, add the next rate beyond it."""
    found = _Tuning({}, {}, {})
    factor = plan.learning_rates[1] / plan.learning_rates[0]
    wanted = list(plan.learning_rates)
    while wanted:
        models = [(seed, rate) for rate in wanted for seed in seeds]
        trained = train_models(task, form, init, models, plan, advance=advance)
        for i, rate in enumerate(wanted):
            part = slice(i * len(seeds), (i + 1) * len(seeds))
            found.curves[rate] = trained.curves["validation"][part]
            found.scores[rate] = [curve[-1] for curve in found.curves[rate]]
            found.diverged[rate] = trained.diverged[part]
        rates, best = sorted(found.scores), best_rate(task, found.scores)
        at_edge = {rates[0]: best / factor, rates[-1]: best * factor}
        wanted = [at_edge[best]] if best in at_edge and found.widened < MAX_WIDENINGS else []
        found.widened += len(wanted)
    return found


def run_unit(
    task: Task, form: Form, init: Init, plan: Plan, seed: int, advance: Advance | None = None
) -> dict[str, Any]:
    """Tune the learning rate, train the test seeds, and measure: one activation on one task.

    Args:
        task: what to learn.
        form: its activation.
        init: initialisation policy.
        plan: protocol.
        seed: of the study.
        advance: called with 1 after each step.

    Returns:
        What JSON can hold: `best_rate`, `validation` (rate to tuning scores), `tuning_curves` and `test_curves` (rate
        to curves on validation data), `learning_curves` (on test data, best rate), `metrics` (name to values of the
        test seeds), `diverged` (rate to share), `dead_units`, `num_parameters`, `steps`, `widened`, `cpu_seconds`.
    """
    started = time.process_time()
    tuning = _tune(task, form, init, plan, plan.seeds(seed, task.name, "tuning"), advance)
    best = best_rate(task, tuning.scores)
    test_seeds = plan.seeds(seed, task.name, "test")
    rates = [best, *(rate for rate in sorted(tuning.scores) if plan.every_rate and rate != best)]
    models = [(s, rate) for rate in rates for s in test_seeds]
    trained = train_models(task, form, init, models, plan, splits=("validation", "test"), advance=advance)
    count, network = len(test_seeds), task.network(form)
    chosen = {name: value[:count].contiguous() for name, value in trained.parameters.items()}
    held_out = task.held_out[:200].expand(count, *task.held_out[:200].shape)
    diverged = {rate: list(found) for rate, found in tuning.diverged.items()}
    for i, rate in enumerate(rates):
        diverged[rate] += trained.diverged[i * count : (i + 1) * count]
    return {
        "best_rate": best,
        "widened": tuning.widened,
        "validation": {f"{rate:.4g}": tuning.scores[rate] for rate in sorted(tuning.scores)},
        "tuning_curves": {f"{rate:.4g}": tuning.curves[rate] for rate in sorted(tuning.curves)},
        "test_curves": {
            f"{rate:.4g}": trained.curves["validation"][i * count : (i + 1) * count] for i, rate in enumerate(rates)
        },
        "learning_curves": trained.curves["test"][:count],
        "steps": trained.steps,
        "metrics": task.measure(predictor(network, chosen), test_seeds),
        "diverged": {f"{rate:.4g}": sum(found) / len(found) for rate, found in sorted(diverged.items())},
        "dead_units": dead_units(network, form, chosen, held_out),
        "num_parameters": sum(value[0].numel() for value in chosen.values()),
        "cpu_seconds": time.process_time() - started,
    }
