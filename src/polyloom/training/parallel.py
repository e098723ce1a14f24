"""Processes that train together: torchrun's environment, one process group, sums over all.

Gradients are summed by one all-reduce a step. DistributedDataParallel would hide some of its time behind the backward
pass, but with gloo its destructor can wait for ever for a thread that waits for Python's lock (seen in torch 2.13).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process's rank among `size` processes."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over all processes, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its maximum over all processes, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace the parameters' gradients by their sums over all processes; an absent gradient counts as zero."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, torch.split(flat, sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the tensors of the first one, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


def rows_of(rank: int, size: int, batch_size: int) -> range:
    """Return the rows of a batch that process `rank` of `size` takes."""
    return range(batch_size * rank // size, batch_size * (rank + 1) // size)


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun started (NCCL on GPUs, gloo on CPUs); alone, yield a world of one.

    Args:
        device: the process's own device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    opened = not dist.is_initialized()
    if opened:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        if opened:
            dist.destroy_process_group()
