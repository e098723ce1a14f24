"""What an activation costs, and what batching the seeds saves: CPU seconds of one thread, interleaved, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
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


def interleaved(work: dict[str, Callable[[], object]], rounds: int, repeats: int = 1) -> dict[str, float]:
    """Return the median CPU seconds of each piece of work; each round does every piece once, after one warm-up round.

    Args:
        work: name to what is timed.
        rounds: counted rounds.
        repeats: times in a row that a round does a piece.
    """
    times: dict[str, list[float]] = {name: [] for name in work}
    for counted in [False] + [True] * rounds:
        for name, function in work.items():
            started = time.process_time()
            for _ in range(repeats):
                function()
            if counted:
                times[name].append((time.process_time() - started) / repeats)
    return {name: statistics.median(values) for name, values in times.items()}


def saved_bytes(function: Callable[[Tensor], Tensor], num_elements: int = 4096) -> float:
    """Return the bytes per float32 element that a function keeps for its backward pass, its input included."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.linspace(-4, 4, num_elements).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x)
    return sum(storages.values()) / num_elements


def activation_costs(forms: Sequence[Form], rounds: int, num_elements: int = 1 << 16) -> dict[str, dict[str, float]]:
    """Measure the pointwise functions of the forms.

    Returns:
        Form name to `forward_ns`, `backward_ns` and `saved_bytes`, per element.
    """
    x = torch.randn(num_elements, generator=torch.Generator().manual_seed(0))
    upstream = torch.ones_like(x)
    leaf = x.clone().requires_grad_()
    work: dict[str, Callable[[], object]] = {}
    for form in forms:
        output = form.function(leaf)
        work[f"{form.name} forward"] = lambda f=form.function: f(x)  # type: ignore[misc]
        work[f"{form.name} backward"] = lambda y=output: torch.autograd.grad(y, leaf, upstream, retain_graph=True)  # type: ignore[misc]
    seconds = interleaved(work, rounds, repeats=10)
    return {
        form.name: {
            "forward_ns": seconds[f"{form.name} forward"] / num_elements * 1e9,
            "backward_ns": seconds[f"{form.name} backward"] / num_elements * 1e9,
            "saved_bytes": saved_bytes(form.function),
        }
        for form in forms
    }


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
    return {name: seconds / num_models for name, seconds in interleaved(work, rounds).items()}


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
        layers += [linear, *([_Function(form)] if index + 1 < len(weights) else [])]
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


class _Function(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.function = form.function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation."""
        return self.function(x)


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
