"""Joules per token from the machine's counters, what it takes when idle subtracted; nothing is guessed without one."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from polyloom.methods.layerskip.bench import Decoder, texts_of

POWERCAP = Path("/sys/class/powercap")
IDLE_SECONDS = 1.0
Counter = Callable[[], float]


def open_counter(device: torch.device) -> tuple[str, Counter] | None:
    """Return the name of an energy counter and a function that reads its joules; None where there is none.

    Args:
        device: on a GPU NVML's counter of that GPU (needs nvidia-ml-py), else RAPL's of all processor packages.
    """
    return _nvml(device) if device.type == "cuda" else _rapl()


def _rapl() -> tuple[str, Counter] | None:
    files = [path / "energy_uj" for path in sorted(POWERCAP.glob("intel-rapl:?"))]

    def read() -> float:
        return sum(int(file.read_text()) for file in files) / 1e6

    try:
        return ("RAPL", read) if files and read() >= 0 else None
    except OSError:
        # Most systems let only the administrator read it.
        return None


def _nvml(device: torch.device) -> tuple[str, Counter] | None:
    try:
        pynvml: Any = import_module("pynvml")
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # The library raises its own errors for a missing driver and for old GPUs.
        return None
    return "NVML", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3


def joules_per_token(counter: Counter, decoder: Decoder, idle_watts: float) -> float | None:
    """Return the joules that a token takes beyond idling; None where the counter ran over.

    Args:
        counter: reads joules.
        decoder: decodes each prompt.
        idle_watts: `measure_idle_watts`.
    """
    joules, start = counter(), time.perf_counter()
    num_tokens = sum(map(len, texts_of(decoder)))
    spent = counter() - joules
    own = spent - idle_watts * (time.perf_counter() - start)
    return own / num_tokens if spent >= 0 and num_tokens else None


def measure_idle_watts(counter: Counter) -> float:
    """Return the watts that the machine takes while this process sleeps."""
    joules, start = counter(), time.perf_counter()
    time.sleep(IDLE_SECONDS)
    return max(0.0, counter() - joules) / (time.perf_counter() - start)
