"""Rows of tokens of different lengths as one matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_rows(
    rows: Sequence[Sequence[int]], device: torch.device | str = "cpu", *, filler: int = 0, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Pad rows of token ids to the longest one.

    Args:
        rows: token ids.
        device: of both tensors.
        filler: id of the padding.
        left: put the padding in front; else behind.

    Returns:
        The ids, and 1 where a token stands and 0 where padding does; both int64 [rows, longest row].
    """
    width = max(map(len, rows))

    def padded(row: Sequence[int], value: int) -> list[int]:
        padding = [value] * (width - len(row))
        return [*padding, *row] if left else [*row, *padding]

    tokens = [padded(row, filler) for row in rows]
    mask = [padded([1] * len(row), 0) for row in rows]
    return (
        torch.tensor(tokens, dtype=torch.int64, device=device),
        torch.tensor(mask, dtype=torch.int64, device=device),
    )
