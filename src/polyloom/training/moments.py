"""AdamW's moments apart from a checkpoint: read from one, written beside a model, and begun with.

A folder of moments holds `moments.safetensors` (`exp_avg.NAME`, `exp_avg_sq.NAME`) and `moments.json` (the optimiser's
steps of each parameter). Any layout can load it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.optim import Optimizer

from polyloom.core.errors import UserError
from polyloom.core.files import read_json, write_json
from polyloom.models.load import replace_folder
from polyloom.training import checkpoints, sharded_checkpoints
from polyloom.training.sharded_checkpoints import MOMENTS, quiet, read_parts, saved_tensors

TENSORS, STEPS = "moments.safetensors", "moments.json"


def read_moments(folder: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Read the moments of the newest whole checkpoint of a run, whatever layout saved it.

    Args:
        folder: the run's folder, or its checkpoints'.

    Returns:
        Tensors by `exp_avg.NAME` and `exp_avg_sq.NAME`, and the optimiser's steps by parameter.

    Raises:
        UserError: there is no whole checkpoint, or its optimiser is not AdamW.
    """
    inside = folder / "checkpoints"
    for path in sorted((inside if inside.is_dir() else folder).glob("step-*"), reverse=True):
        if (path / "optimizer.safetensors").is_file() and checkpoints.is_whole(path):
            tensors = load_file(path / "optimizer.safetensors")
            steps = {k.removeprefix("step."): int(v) for k, v in tensors.items() if k.startswith("step.")}
        elif sharded_checkpoints.is_whole(path):
            tensors = read_parts(path, MOMENTS)
            count = int(read_json(path / "state.json")["optimizer_steps"])
            steps = {key.removeprefix("exp_avg."): count for key in tensors if key.startswith("exp_avg.")}
        else:
            continue
        if not steps or any(key.startswith("momentum_buffer.") for key in tensors):
            raise UserError("holds no moments of AdamW.", where=str(path), hint="Grow without --moments.")
        return {key: value for key, value in tensors.items() if key.partition(".")[0] in MOMENTS}, steps
    raise UserError("holds no whole checkpoint.", where=str(folder), hint="Name the run folder of pretrain train.")


def write_moments(folder: Path, names: Mapping[str, int], tensor: Callable[[str], Tensor]) -> None:
    """Write a folder of moments, whole or not at all.

    Args:
        folder: where to; what stands there is replaced.
        names: each parameter's name and the optimiser's steps.
        tensor: from `exp_avg.NAME` or `exp_avg_sq.NAME` to its values.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        tensors = {f"{part}.{name}": tensor(f"{part}.{name}").contiguous() for part in MOMENTS for name in names}
        save_file(tensors, temporary / TENSORS)
        write_json(temporary / STEPS, {"steps": dict(names)})
        replace_folder(temporary, folder)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror}).", where=str(folder)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def has_moments(folder: Path) -> bool:
    """Say whether a folder of moments is there."""
    return (folder / STEPS).is_file()


def load_moments(folder: Path, parameters: Mapping[str, Tensor], optimizer: Optimizer) -> None:
    """Give an AdamW that has not stepped yet the moments of a folder.

    Args:
        folder: written by `write_moments`.
        parameters: this process's parameters by the whole model's names.
        optimizer: over them.

    Raises:
        UserError: the moments are of another model.
    """
    steps, saved = read_json(folder / STEPS)["steps"], saved_tensors(folder)
    wanted: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        moments = {part: torch.zeros_like(parameter, requires_grad=False) for part in MOMENTS}
        sizes = [saved[f"{part}.{name}"].size if f"{part}.{name}" in saved else None for part in MOMENTS]
        if any(size != parameter.shape for size in sizes):
            hint = "Delete the folder to begin without."
            raise UserError(f"holds no moments of the size of {name}.", where=str(folder), hint=hint)
        # A fused optimiser keeps its step counter beside the parameter, the plain one on the CPU.
        device = parameter.device if optimizer.defaults["fused"] else "cpu"
        count = torch.tensor(float(steps[name]), device=device)
        optimizer.state[parameter] = {"step": count, **moments}
        wanted |= {f"{part}.{name}": tensor for part, tensor in moments.items()}
    with quiet():
        alone = not torch.distributed.is_initialized()
        load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
