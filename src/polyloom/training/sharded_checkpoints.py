"""Checkpoints of a sharded model: torch's distributed checkpoints in safetensors, which any layout can load.

A folder `step-00000100` holds one or more safetensors files a process (`model.NAME`, `exp_avg.NAME`,
`exp_avg_sq.NAME` under the model's own names, each with its place in the whole tensor), `state.json`, and
`manifest.json` (the sha256 of every file). Nothing in it is pickled.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.optim import Optimizer

from polyloom.core.errors import UserError
from polyloom.core.files import read_json, sha256_file, write_json
from polyloom.models.load import replace_folder
from polyloom.training.parallel import World

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Saving:
    """A checkpoint that is written, or being written: `future` is of this process's part, `complete` makes it whole."""

    future: Future[Any] | None
    complete: Callable[[], None]

    @property
    def done(self) -> bool:
        """Whether this process's part is written, or has failed."""
        return self.future is None or self.future.done()


def save_sharded(
    folder: Path,
    step: int,
    parameters: Mapping[str, Tensor],
    optimizer: Optimizer,
    state: Mapping[str, Any],
    world: World,
    keep: int,
    group: dist.ProcessGroup | None = None,
) -> Saving:
    """Begin to save a checkpoint; every process writes what it holds, and `complete` lets the first make it whole.

    Args:
        folder: the run's folder of checkpoints, the same for all processes.
        step: optimiser steps done.
        parameters: this process's parameters by the whole model's names.
        optimizer: AdamW over them.
        state: what else to restore; JSON.
        world: the processes.
        keep: checkpoints that stay.
        group: processes' own channel of the CPU, over which the writing goes on behind the training; without one all
            is written on return.

    Raises:
        UserError: it cannot be written; the one before stays. Raised by `complete` where it is written behind.
    """
    target, temporary = folder / f"step-{step:08d}", folder / f".saving-{step:08d}"
    if world.is_main:
        for torn in folder.glob(".saving-*"):
            shutil.rmtree(torn, ignore_errors=True)
        temporary.mkdir(parents=True)
    world.wait()
    tensors, steps = _held_tensors(parameters, optimizer)
    writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
    future: Future[Any] | None = None
    with _writing(target), quiet():
        if group is None:
            save(tensors, storage_writer=writer)
        else:
            future = cast("Future[Any]", async_save(tensors, storage_writer=writer, process_group=group))

    def complete() -> None:
        with _writing(target):
            if future is not None:
                future.result()
        world.wait()
        if world.is_main:
            write_json(temporary / "state.json", {"optimizer_steps": steps, "step": step, **state})
            parts = sorted(path.name for path in temporary.iterdir() if path.is_file())
            write_json(temporary / "manifest.json", {name: sha256_file(temporary / name) for name in parts})
            replace_folder(temporary, target)
            for old in sorted(folder.glob("step-*"), reverse=True)[keep:]:
                shutil.rmtree(old, ignore_errors=True)
        world.wait()

    return Saving(future, complete)


def _held_tensors(parameters: Mapping[str, Tensor], optimizer: Optimizer) -> tuple[dict[str, Tensor], int]:
    """Return this process's parameters and moments by their names in a checkpoint, and the optimiser's steps."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in parameters.items()}
    steps = 0
    for name, parameter in parameters.items():
        moments = optimizer.state.get(parameter, {})
        tensors |= {f"{part}.{name}": moments[part] for part in MOMENTS if part in moments}
        steps = int(moments.get("step", steps))
    return tensors, steps


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, CheckpointException) as error:
        reason = " ".join(str(error).split())[-200:]
        raise UserError(
            f"cannot be written ({reason}).", where=str(target), hint="Free some space, then resume."
        ) from error


def load_sharded(
    folder: Path, parameters: Mapping[str, Tensor], optimizer: Optimizer, world: World
) -> dict[str, Any] | None:
    """Restore the newest whole checkpoint into this process's part of the model and the optimiser.

    Returns:
        The state that was saved with it; None where there is no checkpoint.

    Raises:
        UserError: it is of another model, or there are checkpoints but none is whole.
    """
    path = newest_whole(folder, world)
    if path is None:
        return None
    state: dict[str, Any] = read_json(path / "state.json")
    steps = state.pop("optimizer_steps")
    tensors = {f"model.{name}": parameter.detach() for name, parameter in parameters.items()}
    if steps:
        for name, parameter in parameters.items():
            optimizer.state[parameter] = {part: torch.zeros_like(parameter) for part in MOMENTS}
            optimizer.state[parameter]["step"] = torch.tensor(float(steps))
            tensors |= {f"{part}.{name}": optimizer.state[parameter][part] for part in MOMENTS}
    saved = saved_tensors(path)
    for name, tensor in tensors.items():
        if name not in saved or saved[name].size != tensor.shape:
            found = list(saved[name].size) if name in saved else "nothing"
            what = f"holds {found} for {name}, the model {list(tensor.shape)}."
            raise UserError(what, where=str(path), hint="Resume with the configuration it was made with.")
    with quiet():
        load(tensors, storage_reader=HuggingFaceStorageReader(str(path)))
    return state


def read_whole(folder: Path) -> dict[str, Tensor]:
    """Read the newest whole checkpoint's parameters into one process.

    Args:
        folder: the run's folder of checkpoints.

    Returns:
        Every parameter of the model, float32, on the CPU.

    Raises:
        UserError: there is none.
    """
    path = newest_whole(folder, World())
    if path is None:
        raise UserError("holds no checkpoint.", where=str(folder))
    return {name.removeprefix("model."): tensor for name, tensor in read_parts(path, ("model",)).items()}


def read_parts(path: Path, parts: Sequence[str]) -> dict[str, Tensor]:
    """Read whole tensors of one checkpoint whose names begin with one of the words before a dot."""
    tensors = {
        name: torch.empty(metadata.size, dtype=metadata.properties.dtype)
        for name, metadata in saved_tensors(path).items()
        if name.partition(".")[0] in parts
    }
    with quiet():
        load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    return tensors


def saved_tensors(path: Path) -> dict[str, TensorStorageMetadata]:
    """Return the sizes and kinds of a checkpoint's tensors by name."""
    found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    return {name: entry for name, entry in found.items() if isinstance(entry, TensorStorageMetadata)}


def newest_whole(folder: Path, world: World) -> Path | None:
    """Return the newest checkpoint whose files are all there and unaltered; the first process decides for all.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    saved = sorted(folder.glob("step-*"), reverse=True)
    chosen = torch.full((), -1.0)
    if world.is_main:
        chosen.fill_(next((index for index, path in enumerate(saved) if is_whole(path)), len(saved)))
    else:
        chosen.zero_()
    device = "cuda" if world.size > 1 and torch.distributed.get_backend() == "nccl" else "cpu"
    index = int(world.sum(chosen.to(device)))
    if not saved:
        return None
    if index == len(saved):
        raise UserError("every checkpoint is torn.", where=str(folder), hint="Remove the folder and start again.")
    return saved[index]


def is_whole(path: Path) -> bool:
    """Say whether every file of a checkpoint is there and has the sha256 of its manifest."""
    try:
        manifest: dict[str, str] = read_json(path / "manifest.json")
        return "state.json" in manifest and all(sha256_file(path / name) == digest for name, digest in manifest.items())
    except (UserError, OSError, AttributeError):
        return False


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's notes on planning and on one process off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
