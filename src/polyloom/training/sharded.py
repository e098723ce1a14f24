"""The engine of a model that lies on many processes: pipeline schedules, FSDP2, split matrices, sharded checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import loss_parallel
from torch.optim import Optimizer

from polyloom.core.seeding import derive_seed
from polyloom.models.device import autocast, seed_generators
from polyloom.training.config import TrainConfig
from polyloom.training.documents import targets_inside
from polyloom.training.engine import See
from polyloom.training.layouts import Layout, Stage
from polyloom.training.packing import Batch
from polyloom.training.parallel import World, rows_of
from polyloom.training.sharded_checkpoints import Saving, load_sharded, save_sharded

SCHEDULES = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}


class Sharded:
    """A model on the processes of a mesh (pp, dp, tp)."""

    def __init__(self, stages: list[Stage], layout: Layout, mesh: DeviceMesh, config: TrainConfig) -> None:
        """Take this process's stages.

        Args:
            stages: made by `assemble`.
            layout: the layout.
            mesh: its processes.
            config: the training configuration.
        """
        self.model = nn.ModuleList(stages)
        self.layout, self.mesh, self.config = layout, mesh, config
        self.world = World(dist.get_rank(), dist.get_world_size())
        self.device = torch.device(mesh.device_type)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        # Every process of a tensor group has the same loss.
        self.loss_share = 1 / layout.tp
        self.see: See | None = None
        self.saving: Saving | None = None
        self.group: dist.ProcessGroup | None = None
        self.rows = rows_of(mesh.get_local_rank("dp"), layout.dp, config.batch_size)
        self.is_last = any(stage.last for stage in stages)
        self.schedule = self._schedule(stages) if layout.pp > 1 else None
        # A pipeline's first step begins with a pass over memory that was not written to, to learn shapes.
        self.knows_shapes = self.schedule is None

    def _schedule(self, stages: list[Stage]) -> Any:
        layout, group = self.layout, self.mesh["pp"].get_group()
        first = self.mesh.get_local_rank("pp")
        parts: list[Any] = [
            PipelineStage(stage, first + layout.pp * turn, layout.num_stages, self.device, group=group)
            for turn, stage in enumerate(stages)
        ]
        # The loss is a sum over targets: micro-batches add up, and the loop divides by all targets at once.
        options: dict[str, Any] = {
            "n_microbatches": layout.num_micro_batches,
            "loss_fn": self._loss,
            "scale_grads": False,
        }
        if layout.stages_per_process > 1:
            return ScheduleInterleaved1F1B(parts, **options)
        return SCHEDULES[layout.schedule](parts[0], **options)

    def start(self, optimizer: Optimizer) -> None:
        """Take the optimiser; every process drew its part of the same values already."""
        self.optimizer = optimizer
        self.parameters = [(p, group) for group in optimizer.param_groups for p in group["params"]]

    def named_parameters(self) -> dict[str, Tensor]:
        """Return this process's parameters by the whole model's names."""
        return {name.partition(".")[2]: parameter for name, parameter in self.model.named_parameters()}

    def accumulate(self, batch: Batch, step: int) -> tuple[float, float]:
        """Run this process's part of the batch and sum loss and targets over the processes."""
        seed_generators(derive_seed(self.config.seed, "step", step, self.world.rank), self.device)
        own = {name: tensor[self.rows.start : self.rows.stop].to(self.device) for name, tensor in batch.items()}
        tokens, documents = own["tokens"], own.get("document")
        inputs = {"x": tokens[:, :-1]}
        targets = tokens[:, 1:]
        if documents is not None:
            inputs["documents"] = documents[:, :-1]
            targets = targets_inside(tokens, documents)
        sources = own.get("source", torch.zeros(len(tokens), dtype=torch.int64, device=self.device))
        marked = torch.cat([sources[:, None], targets], dim=1)
        with self._loss_context(), autocast(self.device, self.config.precision):
            loss = self._pipeline(inputs, marked) if self.schedule else self._plain(inputs, marked)
        share = self.loss_share if self.is_last else 0.0
        total = torch.tensor([loss * share, int((targets >= 0).sum()) * share], dtype=torch.float64)
        summed_loss, num_tokens = self.world.sum(total.to(self.device)).tolist()
        return summed_loss, num_tokens

    def _loss_context(self) -> AbstractContextManager[Any]:
        return loss_parallel() if self.layout.tp > 1 else nullcontext()

    def _loss(self, logits: Tensor, marked: Tensor) -> Tensor:
        """Return the summed cross entropy of logits [rows, T, vocabulary / tp].

        Args:
            logits: of a micro-batch.
            marked: [rows, T + 1], each row's source before its targets: a pipeline cuts one tensor along with the rows.
        """
        sources, targets = marked[:, 0], marked[:, 1:]
        logits = logits.float()
        if self.layout.tp > 1:
            logits = DTensor.from_local(logits, self.mesh["tp"], [Shard(-1)], run_check=False)
        if self.see and self.knows_shapes:
            self.see(logits, targets, sources)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        return loss.to_local() if isinstance(loss, DTensor) else loss

    def _plain(self, inputs: Mapping[str, Tensor], marked: Tensor) -> float:
        (stage,) = self.model
        assert isinstance(stage, FSDPModule)
        size = self.config.micro_batch_size or len(marked)
        total = 0.0
        for begin in range(0, len(marked), size):
            stage.set_requires_gradient_sync(begin + size >= len(marked))
            part = {name: tensor[begin : begin + size] for name, tensor in inputs.items()}
            loss = self._loss(stage(**part), marked[begin : begin + size])
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _pipeline(self, inputs: Mapping[str, Tensor], marked: Tensor) -> float:
        losses: list[Tensor] = []
        given: dict[str, Any] = {"target": marked, "losses": losses} if self.is_last else {}
        # Each stage gets the documents; the hidden states come from the stage before.
        given |= {name: tensor for name, tensor in inputs.items() if name != "x"}
        first = any(stage.first for stage in self.model)
        assert self.schedule is not None
        self.schedule.step(*([inputs["x"]] if first else []), **given)
        self.knows_shapes = True
        return sum(float(loss.detach()) for loss in losses)

    def scale_gradients(self, factor: float) -> Tensor:
        """Multiply the gradients, which FSDP has averaged over `dp`, and return their norm over all processes."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for parameter, group in self.parameters:
            gradient = _local(parameter.grad)
            gradient.mul_(factor * self.layout.dp)
            # A parameter that tp does not split is on each of its processes.
            copies = 1 if _is_split(parameter, "tp") else self.layout.tp
            scale = group.get("gradient_scale", 1.0)
            total += gradient.double().square().sum() * (scale * scale / copies)
        return self.world.sum(total).sqrt()

    def clip(self, norm: Tensor, limit: float) -> None:
        """Scale the gradients down to the limit."""
        factor = min(1.0, limit / (float(norm) + 1e-6))
        for parameter, _ in self.parameters:
            _local(parameter.grad).mul_(factor)

    def totals(self, parts: Sequence[Sequence[tuple[Tensor, float]]]) -> list[float]:
        """Return each part's sum of squares over all processes."""
        total = torch.zeros(len(parts), dtype=torch.float64, device=self.device)
        for index, part in enumerate(parts):
            for tensor, factor in part:
                copies = 1 if _is_split(tensor, "tp") else self.layout.tp
                total[index] += _local(tensor).double().square().sum() * (factor * factor / copies)
        found: list[float] = self.world.sum(total).tolist()
        return found

    def save(self, folder: Path, step: int, state: Mapping[str, Any], keep: int) -> None:
        """Save a checkpoint that any other layout can load, while training goes on where that is asked for."""
        self.settle(wait=True)
        if self.config.async_checkpoints and self.group is None:
            # The writing's own channel: on the training's, both would wait for each other.
            self.group = dist.new_group(backend="gloo")
        self.saving = save_sharded(
            folder, step, self.named_parameters(), self.optimizer, state, self.world, keep, self.group
        )
        if self.group is None:
            self.settle(wait=True)

    def settle(self, *, wait: bool) -> None:
        """Make a checkpoint whole whose parts are written by all processes; or wait for it."""
        if self.saving is None:
            return
        if not wait:
            missing = torch.tensor(float(not self.saving.done), device=self.device)
            if self.world.sum(missing) > 0:
                return
        saving, self.saving = self.saving, None
        saving.complete()

    def load(self, folder: Path) -> dict[str, Any] | None:
        """Restore the newest whole checkpoint, whatever layout saved it."""
        return load_sharded(folder, self.named_parameters(), self.optimizer, self.world)


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _is_split(parameter: Tensor, dimension: str) -> bool:
    if not isinstance(parameter, DTensor):
        return False
    names = parameter.device_mesh.mesh_dim_names or ()
    return dimension in names and parameter.placements[names.index(dimension)].is_shard()
