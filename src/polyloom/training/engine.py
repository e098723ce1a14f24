"""How one optimiser step is spread over processes: `Replicated`, where each holds the whole model.

The loop decides when; an engine does the passes, the sums over processes, the norm and the checkpoints. Sharded models
have their own engine in `polyloom.training.sharded`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polyloom.core.seeding import derive_seed
from polyloom.models.device import autocast, seed_generators
from polyloom.training.checkpoints import load_checkpoint, save_checkpoint, snapshot, write_checkpoint
from polyloom.training.config import TrainConfig
from polyloom.training.packing import Batch
from polyloom.training.parallel import World, rows_of

Loss = Callable[[nn.Module, Batch], tuple[Tensor, int]]
# Looks at logits [rows, T, vocabulary], targets [rows, T] and sources [rows] of a forward pass.
See = Callable[[Tensor, Tensor, Tensor | None], None]
ParameterGroup = dict[str, Any]


class Engine(Protocol):
    """What the loop needs of a model that is trained by one process or by many."""

    world: World
    device: torch.device
    # What a process's loss counts for in the sum over all: less than 1 where others have the same rows.
    loss_share: float

    def start(self, optimizer: Optimizer) -> None:
        """Take the optimiser, and make the processes' parameters agree."""

    def named_parameters(self) -> dict[str, Tensor]:
        """Return this process's parameters by the whole model's names."""

    def accumulate(self, batch: Batch, step: int) -> tuple[float, float]:
        """Do the passes of a batch; the gradients are then sums over all processes, and so is what is returned.

        Returns:
            The summed loss in nats and the number of targets.
        """

    def scale_gradients(self, factor: float) -> Tensor:
        """Multiply the gradients and return their global norm, each group's times its `gradient_scale`."""

    def clip(self, norm: Tensor, limit: float) -> None:
        """Scale the gradients down where their norm is over the limit."""

    def totals(self, parts: Sequence[Sequence[tuple[Tensor, float]]]) -> list[float]:
        """Return, for each part, the sum of squares of its tensors times their factors, over the whole model."""

    def save(self, folder: Path, step: int, state: Mapping[str, Any], keep: int) -> None:
        """Save a checkpoint; all processes call it."""

    def settle(self, *, wait: bool) -> None:
        """Finish a checkpoint that is being written, if all of it is there; or wait for it. All processes call it."""

    def load(self, folder: Path) -> dict[str, Any] | None:
        """Restore the newest whole checkpoint and return its state."""


class Replicated:
    """One process, or several of which each holds the whole model and takes its share of a batch's rows."""

    def __init__(self, model: nn.Module, loss: Loss, config: TrainConfig, world: World) -> None:
        """Take the model, the loss that is summed over targets, and the processes."""
        self.model, self.loss, self.config, self.world = model, loss, config, world
        self.device = next(model.parameters()).device
        self.loss_share = 1.0
        self.writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.saving: Future[Path] | None = None

    def start(self, optimizer: Optimizer) -> None:
        """Take the optimiser and give every process the first one's parameters."""
        self.optimizer = optimizer
        self.groups = optimizer.param_groups
        self.parameters = [parameter for group in self.groups for parameter in group["params"]]
        self.world.share([parameter.detach() for parameter in self.model.parameters()])

    def named_parameters(self) -> dict[str, Tensor]:
        """Return the model's parameters by name."""
        return dict(self.model.named_parameters())

    def accumulate(self, batch: Batch, step: int) -> tuple[float, float]:
        """Run this process's rows in micro-batches and sum over the processes."""
        seed_generators(derive_seed(self.config.seed, "step", step, self.world.rank), self.device)
        total = torch.zeros(2, dtype=torch.float64)
        for part in micro_batches(batch, self.config, self.world):
            on_device = {name: tensor.to(self.device, non_blocking=True) for name, tensor in part.items()}
            with autocast(self.device, self.config.precision):
                summed, num_targets = self.loss(self.model, on_device)
            summed.backward()  # type: ignore[no-untyped-call]
            total += torch.tensor([summed.item(), num_targets], dtype=torch.float64)
        if self.world.size > 1:
            total = self.world.sum(total.to(self.device)).cpu()
        self.world.sum_gradients(self.parameters)
        loss, num_tokens = total.tolist()
        return loss, num_tokens

    def scale_gradients(self, factor: float) -> Tensor:
        """Multiply the gradients; return their norm."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, factor)
        return group_norm(self.groups)

    def clip(self, norm: Tensor, limit: float) -> None:
        """Scale the gradients down to the limit."""
        torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)

    def totals(self, parts: Sequence[Sequence[tuple[Tensor, float]]]) -> list[float]:
        """Return each part's sum of squares."""
        return [
            sum((float(norm) * factor) ** 2 for norm, (_, factor) in zip(_norms(part), part, strict=True))
            for part in parts
        ]

    def save(self, folder: Path, step: int, state: Mapping[str, Any], keep: int) -> None:
        """Let the first process save, while training goes on where that is asked for."""
        self.settle(wait=True)
        if self.world.is_main and self.config.async_checkpoints:
            tensors = snapshot(self.model, self.optimizer, copy=True)
            self.saving = self.writer.submit(write_checkpoint, folder, step, tensors, state, keep)
        elif self.world.is_main:
            save_checkpoint(folder, step, self.model, self.optimizer, state, keep)
        self.world.wait()

    def settle(self, *, wait: bool) -> None:
        """Raise what went wrong while a checkpoint was written."""
        if self.saving and (wait or self.saving.done()):
            saving, self.saving = self.saving, None
            saving.result()

    def load(self, folder: Path) -> dict[str, Any] | None:
        """Restore the newest whole checkpoint."""
        return load_checkpoint(folder, self.model, self.optimizer)


def _norms(part: Sequence[tuple[Tensor, float]]) -> list[Tensor]:
    return list(torch._foreach_norm([tensor for tensor, _ in part])) if part else []


def group_norm(groups: Sequence[ParameterGroup]) -> Tensor:
    """Return the norm of all gradients, each group's multiplied by its `gradient_scale` (1 where it has none).

    Rows are summed first: over two million numbers at once a float32 norm on a CPU is off by 3e-5, by rows by 3e-10.
    """
    rows = [
        torch.linalg.vector_norm(parameter.grad, dim=-1).flatten() * group.get("gradient_scale", 1.0)
        for group in groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    norm: Tensor = torch.linalg.vector_norm(torch.cat(rows).cpu().double())
    return norm


def micro_batches(batch: Batch, config: TrainConfig, world: World) -> list[Batch]:
    """Cut this process's rows out of the batch, and those into micro-batches."""
    rows = rows_of(world.rank, world.size, config.batch_size)
    size = config.micro_batch_size or len(rows)
    starts = range(rows.start, rows.stop, size) if rows else []
    return [{name: tensor[i : min(i + size, rows.stop)] for name, tensor in batch.items()} for i in starts]
