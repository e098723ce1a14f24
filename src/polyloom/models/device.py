"""Device, precision, threads and random generators: each chosen in one place."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Literal

import torch

from polyloom.core.errors import UserError
from polyloom.core.seeding import derive_seed

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "float32", "bfloat16"]
# Parameters of glibc's mallopt, and the sizes from which memory goes back to the system (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _MAPPED_BYTES = 2**30, 2**28


def choose_device(name: DeviceName = "auto") -> torch.device:
    """Return the device to work on.

    Args:
        name: `auto` takes CUDA, then MPS, then the CPU. Under torchrun, CUDA means the process's own GPU.

    Raises:
        UserError: the device asked for is not there, or this process has no GPU of its own.
    """
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if found["cuda"] else "mps" if found["mps"] else "cpu"
    if not found[name]:
        raise UserError(f"this torch build sees no {name} device.", where="--device", hint="Use --device auto or cpu.")
    if name != "cuda":
        return torch.device(name)
    rank, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= num_gpus:
        hint = f"Start {num_gpus} a machine, or set CUDA_VISIBLE_DEVICES= to run on the CPU."
        raise UserError(f"process {rank} of this machine has no GPU of its own: it has {num_gpus}.", hint=hint)
    return torch.device("cuda", rank)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Say whether the device multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX on a CPU)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device, precision: Precision = "auto") -> AbstractContextManager[object]:
    """Return the context to run forward passes in; parameters stay float32 outside of it.

    Args:
        device: where the model is.
        precision: `auto` is bfloat16 where the device multiplies it in hardware, else float32.
    """
    if precision == "float32" or (precision == "auto" and not has_fast_bfloat16(device)):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def pin_threads(num_threads: int = 1) -> None:
    """Set torch's threads. One is fastest for tiny models, and makes CPU results repeat bit for bit."""
    torch.set_num_threads(num_threads)
    keep_freed_memory()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one torch thread, where the order of every sum, and so every bit, is fixed."""
    threads = torch.get_num_threads()
    pin_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def keep_freed_memory() -> None:
    """Let the C library keep up to a gigabyte that tensors freed, for the tensors of the next step.

    By default it gives tensors of some megabytes back to the system, which clears every page of the next ones anew: a
    twentieth of the CPU time of many small models that train together. Only glibc has the setting.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's global generators as `torch.manual_seed` does, on the CPU at a thousandth of its cost.

    That function also keeps a call and a stack trace for every kind of device that the process never used.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def clock(device: torch.device) -> Callable[[], float]:
    """Return what times work on a device: CPU seconds of the process; on a GPU wall seconds, its queue run empty."""
    if device.type == "cpu":
        return time.process_time

    def read() -> float:
        torch.get_device_module(device).synchronize()
        return time.perf_counter()

    return read


def clock_unit(device: torch.device) -> str:
    """Return what `clock` counts, in words."""
    return "CPU second" if device.type == "cpu" else "second"


def torch_generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return torch's generator for the named stream of `seed`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


def use_deterministic_algorithms() -> None:
    """Make torch take only algorithms whose results repeat; one that has none raises where it is called."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory serves debugging and costs every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
