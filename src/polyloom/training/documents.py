"""Whole documents in rows: best-fit packing, and attention, positions and targets that stay inside a document."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]
Tokens = NDArray[np.integer]
# A token that stands where a row has none left; it is no target and no document's context.
PADDING = -1
NO_TARGET = -100


@dataclass(frozen=True)
class Packing:
    """Which pieces of a source lie in which row.

    `begins` and `lengths` of the pieces, row by row; row r holds the pieces `starts[r]` to `starts[r + 1]`. `num_cut`
    documents are longer than a row.
    """

    begins: Integers
    lengths: Integers
    starts: Integers
    row_tokens: int
    num_cut: int

    @property
    def num_rows(self) -> int:
        """Rows."""
        return len(self.starts) - 1

    @property
    def fill(self) -> float:
        """The share of the rows' tokens that is text."""
        return float(self.lengths.sum() / max(1, self.num_rows * self.row_tokens))

    def read(self, tokens: Tokens, row: int) -> tuple[Integers, Integers]:
        """Return a row's tokens [T + 1] and the number of each one's document in the row, -1 where it is padding."""
        found = np.zeros(self.row_tokens, dtype=np.int64)
        documents = np.full(self.row_tokens, PADDING, dtype=np.int64)
        at = 0
        for number, piece in enumerate(range(self.starts[row], self.starts[row + 1])):
            begin, length = int(self.begins[piece]), int(self.lengths[piece])
            found[at : at + length] = tokens[begin : begin + length]
            documents[at : at + length] = number
            at += length
        return found, documents


def pack_documents(offsets: Sequence[int] | Integers, num_tokens: int, window_tokens: int) -> Packing:
    """Pack a source's documents into rows of T + 1 tokens.

    A document longer than a row is cut at stride T, so that each of its tokens but the first is a target once.

    Args:
        offsets: where each document begins, ascending.
        num_tokens: of all documents.
        window_tokens: T.
    """
    begins = np.asarray(offsets, dtype=np.int64)
    sizes = np.diff(np.append(begins, num_tokens))
    counts = np.maximum(0, -(-(sizes - 1) // window_tokens))
    first = np.repeat(np.cumsum(counts) - counts, counts)
    inside = (np.arange(counts.sum()) - first) * window_tokens
    piece_begins = np.repeat(begins, counts) + inside
    lengths = np.minimum(np.repeat(sizes, counts) - inside, window_tokens + 1)
    rows = best_fit(lengths, window_tokens + 1)
    order = np.argsort(rows, kind="stable")
    num_rows = int(rows.max()) + 1 if len(rows) else 0
    starts = np.searchsorted(rows[order], np.arange(num_rows + 1))
    return Packing(piece_begins[order], lengths[order], starts, window_tokens + 1, int((counts > 1).sum()))


def best_fit(lengths: Integers, capacity: int) -> Integers:
    """Return the row of each piece by best fit, longest first: the row with the least room that is enough.

    Args:
        lengths: of the pieces, 2 to `capacity`.
        capacity: of a row.
    """
    rows = np.empty(len(lengths), dtype=np.int64)
    rooms: list[int] = []
    waiting: dict[int, list[int]] = {}
    num_rows = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[index])
        place = bisect_left(rooms, size)
        if place == len(rooms):
            row, room = num_rows, capacity
            num_rows += 1
        else:
            room = rooms[place]
            row = waiting[room].pop()
            if not waiting[room]:
                del rooms[place]
        rows[index] = row
        left = room - size
        # A single token is no document: it has no target.
        if left > 1:
            if not waiting.setdefault(left, []):
                insort(rooms, left)
            waiting[left].append(row)
    return rows


def inside_documents(documents: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions [rows, T] that begin anew with each document, and the attention mask [rows, 1, T, T].

    Args:
        documents: the number of each token's document in its row [rows, T]; padding is a document of its own.
    """
    length = documents.shape[1]
    places = torch.arange(length, device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    positions = places - torch.where(begins, places, 0).cummax(dim=1).values
    same = documents[:, :, None] == documents[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return positions, (same & causal)[:, None]


def targets_inside(tokens: Tensor, documents: Tensor) -> Tensor:
    """Return the targets [rows, T] of tokens [rows, T + 1]; -100 where the next token is of another document."""
    stays = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] != PADDING)
    return torch.where(stays, tokens[:, 1:], NO_TARGET)
