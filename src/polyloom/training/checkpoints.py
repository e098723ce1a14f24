"""Checkpoints of a training run: safetensors and JSON, whole or absent, a torn one passed over.

A folder `step-00000100` holds `model.safetensors` (parameters and buffers under the model's own names),
`optimizer.safetensors` (`exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`), `state.json` and `manifest.json` (the sha256
of each of them). No random state is stored: the loop derives every stream from the seed and the step.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from polyloom.core.errors import UserError
from polyloom.core.files import read_json, sha256_file, write_json
from polyloom.models.load import replace_folder

PARTS = ("model.safetensors", "optimizer.safetensors", "state.json")
log = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Save a checkpoint, then remove all but the newest `keep`.

    Args:
        folder: the run's folder of checkpoints.
        step: optimiser steps done.
        model: the model.
        optimizer: AdamW over the model's parameters.
        state: what else to restore; JSON.
        keep: checkpoints that stay.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: it cannot be written; what stood there stays.
    """
    return write_checkpoint(folder, step, snapshot(model, optimizer), state, keep)


def snapshot(model: nn.Module, optimizer: Optimizer, *, copy: bool = False) -> dict[str, dict[str, Tensor]]:
    """Return what a checkpoint holds, by file, on the CPU; a copy stays as it is while training goes on."""
    tensors = {PARTS[0]: _model_tensors(model), PARTS[1]: _optimizer_tensors(model, optimizer)}
    return {
        part: {name: value.clone() if copy else value for name, value in _contiguous(values).items()}
        for part, values in tensors.items()
    }


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, dict[str, Tensor]], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write a snapshot as a checkpoint, whole or not at all; see `save_checkpoint`."""
    target = folder / f"step-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What a killed process was writing is of no use.
        for torn in folder.glob(".saving-*"):
            shutil.rmtree(torn, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        try:
            for part, values in tensors.items():
                save_file(values, temporary / part)
            write_json(temporary / PARTS[2], {"step": step, **state})
            write_json(temporary / "manifest.json", {name: sha256_file(temporary / name) for name in PARTS})
            replace_folder(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror}).", where=str(target), hint="Free some space, then resume the run."
        ) from error
    for old in _saved(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(folder: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any] | None:
    """Restore the newest whole checkpoint into the model and the optimiser.

    Args:
        folder: the run's folder of checkpoints.
        model: receives the parameters, in place.
        optimizer: receives the moments.

    Returns:
        The state that was saved with it, `step` among it; None where there is no checkpoint.

    Raises:
        UserError: the checkpoint is of another model, or there are checkpoints but none is whole.
    """
    saved = _saved(folder)
    for path in saved:
        if not is_whole(path):
            log.warning("%s is torn: the checkpoint before it is used.", path)
            continue
        _restore_model(path, model)
        _restore_optimizer(path, model, optimizer)
        state: dict[str, Any] = read_json(path / "state.json")
        return state
    if saved:
        raise UserError("every checkpoint is torn.", where=str(folder), hint="Remove the folder and start again.")
    return None


def is_whole(path: Path) -> bool:
    """Say whether every part of a checkpoint is there and has the sha256 of its manifest."""
    try:
        manifest = read_json(path / "manifest.json")
        return all(sha256_file(path / name) == manifest[name] for name in PARTS)
    except (UserError, OSError, KeyError, TypeError):
        return False


def _saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and saved buffers by name, one that is shared once."""
    unique: dict[int, str] = {}
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        unique.setdefault(tensor.data_ptr() if tensor.numel() else id(tensor), name)
    return {name: tensors[name] for name in unique.values()}


def _optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": value
        for name, parameter in model.named_parameters()
        for part, value in optimizer.state.get(parameter, {}).items()
    }


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _restore_model(path: Path, model: nn.Module) -> None:
    saved, own = load_file(path / PARTS[0]), _model_tensors(model)
    if saved.keys() != own.keys() or any(saved[name].shape != own[name].shape for name in own):
        raise UserError("is of another model.", where=str(path), hint="Resume with the configuration it was made with.")
    with torch.no_grad():
        for name, tensor in saved.items():
            own[name].copy_(tensor)


def _restore_optimizer(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    saved = load_file(path / PARTS[1])
    for name, parameter in model.named_parameters():
        parts = {key.removesuffix(f".{name}"): value for key, value in saved.items() if key.endswith(f".{name}")}
        # A fused optimiser keeps its step counter beside the parameter, the plain one on the CPU.
        moves = {key for key in parts if key != "step" or optimizer.defaults["fused"]}
        if parts:
            optimizer.state[parameter] = {k: v.to(parameter.device) if k in moves else v for k, v in parts.items()}
