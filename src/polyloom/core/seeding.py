"""Named random streams from one seed: the same name gives the same stream in any process and any order."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy


def derive_seed(seed: int, *names: str | int) -> int:
    """Derive the seed of a named stream.

    Args:
        seed: the one seed of a run.
        names: the stream's name, as many parts as it needs.

    Returns:
        63 bits of sha256, so that it fits every library's signed 64-bit seed; independent of `PYTHONHASHSEED`.
    """
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def python_random(seed: int, *names: str | int) -> random.Random:
    """Return the standard library's generator for the named stream."""
    return random.Random(derive_seed(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> numpy.random.Generator:
    """Return numpy's generator for the named stream."""
    import numpy

    return numpy.random.default_rng(derive_seed(seed, *names))
