"""What an activation costs, and what batching the seeds saves: CPU seconds of one thread, interleaved, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyloom.methods.silu.lab_models import BatchedAdamW, Form
from polyloom.methods.silu.lab_tasks import Task
from polyloom.methods.silu.lab_training import (
    Plan,
    batch_indices,
    initial_parameters,
    schedule,
    train_models,
    training_step,
)
from polyloom.methods.silu.timing import interleaved_ratios
from polyloom.models.activations import Pointwise, saved_bytes


def activation_costs(
    forms: Sequence[Form], rounds: int, num_elements: int = 1 << 16, repeats: int = 10
) -> dict[str, dict[str, float]]:
    """Measure the pointwise functions of the forms.

    Args:
        forms: the first is what the others' times are paired with.
        rounds: interleaved timing rounds.
        num_elements: of the float32 tensor, small enough for the cache.
        repeats: calls in a row that a round times together.

    Returns:
        Form name to `forward_ns`, `backward_ns` and `saved_bytes`, per element.
    """
    x = torch.randn(num_elements, generator=torch.Generator().manual_seed(0))
    upstream = torch.ones_like(x)
    leaf = x.clone().requires_grad_()
    forward = {form.name: repeated(partial(form.function, x), repeats) for form in forms}
    backward = {
        form.name: repeated(partial(torch.autograd.grad, form.function(leaf), leaf, upstream, True), repeats)
        for form in forms
    }
    scale = 1e9 / num_elements / repeats
    seconds = [paired_seconds(work, rounds) for work in (forward, backward)]
    return {
        form.name: {
            "forward_ns": seconds[0][form.name] * scale,
            "backward_ns": seconds[1][form.name] * scale,
            "saved_bytes": saved_bytes(partial(form.function, leaf)) / num_elements,
        }
        for form in forms
    }


def repeated(work: Callable[[], object], repeats: int) -> Callable[[], object]:
    """Return the function that does the work several times in a row."""

    def run() -> None:
        for _ in range(repeats):
            work()

    return run


def paired_seconds(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the CPU seconds of each piece of work: the first one's median, times the others' paired ratios to it."""
    first = next(iter(work))
    ratios = interleaved_ratios(work, first, rounds)
    return {name: ratio.value * ratios[first].seconds for name, ratio in ratios.items()}


def step_costs(task: Task, forms: Sequence[Form], plan: Plan, rounds: int, num_models: int = 4) -> dict[str, float]:
    """Return the CPU seconds of one training step of one model, for each form."""
    work: dict[str, Callable[[], object]] = {}
    seeds = list(range(num_models))
    indices = torch.stack([batch_indices(task, seed, 1, plan.batch_size)[0] for seed in seeds])
    inputs, targets = task.fetch(indices)
    for form in forms:
        network = task.network(form)
        parameters = initial_parameters(task, network, "he", seeds, plan.batch_size)
        optimiser = BatchedAdamW(parameters, torch.full((num_models,), plan.learning_rates[0], dtype=torch.float64))

        def step(network: Any = network, optimiser: BatchedAdamW = optimiser) -> object:
            return training_step(task, network, optimiser, inputs, targets, 1.0)

        work[form.name] = step
    return {name: seconds / num_models for name, seconds in paired_seconds(work, rounds).items()}


def train_alone(task: Task, form: Form, plan: Plan, seed: int, rate: float) -> tuple[list[Tensor], float]:
    """Train one multilayer perceptron of the digits task as a plain PyTorch module with `torch.optim.AdamW`.

    Returns:
        Its parameters in the batched model's layout, and the CPU seconds of the loop.
    """
    drawn = initial_parameters(task, task.network(form), "he", [seed], plan.batch_size)
    layers: list[nn.Module] = []
    linears = []
    weights = [value[0] for name, value in drawn.items() if name.endswith("weight")]
    for index, weight in enumerate(weights):
        linear = nn.Linear(*weight.shape)
        with torch.no_grad():
            linear.weight.copy_(weight.T)
            linear.bias.zero_()
        linears.append(linear)
        layers += [linear, *([Pointwise(form.function)] if index + 1 < len(weights) else [])]
    model = nn.Sequential(*layers)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    indices = batch_indices(task, seed, plan.num_steps, plan.batch_size)
    started = time.process_time()
    for step in range(plan.num_steps):
        inputs, targets = task.fetch(indices[step])
        loss = F.cross_entropy(model(inputs), targets)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.param_groups[0]["lr"] = rate * schedule(step, plan.num_steps)
        optimiser.step()
    seconds = time.process_time() - started
    return [value for linear in linears for value in (linear.weight.detach().T, linear.bias.detach())], seconds


def batched_speedup(
    task: Task, form: Form, plan: Plan, *, num_models: int, num_alone: int, rounds: int, rate: float = 0.01
) -> dict[str, float]:
    """Compare batched training with a loop over seeds that trains plain PyTorch modules one after the other.

    Args:
        task: the digits task.
        form: a pointwise activation.
        plan: steps and batch size; the evaluations are left out of both.
        num_models: models of the batch.
        num_alone: models that each round trains alone.
        rounds: batched and alone runs take turns.
        rate: learning rate of all.

    Returns:
        `speedup` (CPU seconds per model, loop over batched, median of the rounds), the two times in milliseconds per
        model, and `max_difference` over the parameters of the models that were trained both ways.
    """
    quiet = Plan(plan.num_steps, plan.batch_size, 0, (rate,), 0, num_models, ("he",), (form.name,), False)
    ratios, batched_times, alone_times, differences = [], [], [], [0.0]
    for index in range(rounds):
        trained = train_models(task, form, "he", [(seed, rate) for seed in range(num_models)], quiet, splits=())
        alone_seconds = 0.0
        for seed in range(index * num_alone, (index + 1) * num_alone):
            values, seconds = train_alone(task, form, quiet, seed % num_models, rate)
            alone_seconds += seconds / num_alone
            batched = [value[seed % num_models] for value in trained.parameters.values()]
            differences += [float((a - b).abs().max()) for a, b in zip(values, batched, strict=True)]
        ratios.append(alone_seconds / (trained.cpu_seconds / num_models))
        batched_times.append(trained.cpu_seconds / num_models * 1e3)
        alone_times.append(alone_seconds * 1e3)
    return {
        "speedup": statistics.median(ratios),
        "batched_ms": statistics.median(batched_times),
        "alone_ms": statistics.median(alone_times),
        "max_difference": max(differences),
    }
