"""How much of a device's arithmetic a training run uses (MFU)."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from polyloom.models.device import Precision, has_fast_bfloat16

# Dense bfloat16 FLOP/s from the makers' data sheets, by a word of the device's name.
BFLOAT16_PEAKS = {"H200": 989e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "L40": 181e12}
MATRIX_SIZE = 768
PROBE_SECONDS = 0.2


@lru_cache(maxsize=4)
def peak_flops(device: torch.device, precision: Precision = "auto") -> tuple[float, str]:
    """Return a device's FLOP/s and where the figure comes from: a data sheet, or matrix products timed here.

    Args:
        device: the device of one process, with its threads.
        precision: of the training; `auto` as the loop resolves it.
    """
    half = precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device))
    if device.type == "cuda" and half:
        name = torch.cuda.get_device_name(device)
        for word, peak in BFLOAT16_PEAKS.items():
            if word in name:
                return peak, f"data sheet of {word}"
    a = torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device, dtype=torch.bfloat16 if half else torch.float32)
    best, deadline = 0.0, time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < deadline or not best:
        # Forward and backward passes multiply in all three ways; where bfloat16 is emulated they differ tenfold.
        for left, right in ((a, a), (a, a.t()), (a.t(), a)):
            start = time.perf_counter()
            product = left @ right
            # Reading a value waits for the device.
            product[0, 0].item()
            best = max(best, 2 * MATRIX_SIZE**3 / (time.perf_counter() - start))
    return best, "matrix products timed here"
