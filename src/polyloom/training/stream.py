"""The sample stream of a long run: a pure function of the seed and one integer, over token files of several sources.

A source is what one name of the mixture stands for, such as a domain in a language. Sample i of the stream belongs to
a source by a fixed order of blocks of M = 65,536 samples, and is a window of it by a permutation of the epoch. Step t
of batch size B takes samples tB .. (t+1)B - 1, whoever computes it: the stream does not depend on the number of
processes, and resuming needs nothing but t.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from polyloom.core.errors import UserError
from polyloom.core.seeding import derive_seed
from polyloom.training.documents import Packing, pack_documents
from polyloom.training.packing import Batch
from polyloom.training.parallel import rows_of

BLOCK_SAMPLES = 65_536
FEISTEL_ROUNDS = 4
BITS_64 = 2**64 - 1
Integers = NDArray[np.int64]
Tokens = NDArray[np.integer]
OnExhausted = Literal["error", "renormalise"]


def mixture_units(weights: Mapping[str, float]) -> dict[str, int]:
    """Round shares to multiples of 1/65536 by the largest remainder: they add up to a block.

    Args:
        weights: of each source, any positive scale.

    Raises:
        UserError: no weight, a negative one, or one too small for a sample in a block.
    """
    total = sum(weights.values())
    bad = next((name for name, weight in weights.items() if not weight > 0), None)
    if not weights or bad is not None or not np.isfinite(total):
        raise UserError(f"the weight of {bad!r} is not above 0." if bad else "the mixture has no source.")
    exact = {name: weight / total * BLOCK_SAMPLES for name, weight in weights.items()}
    units = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (units[name] - exact[name], name))
    for name in by_remainder[: BLOCK_SAMPLES - sum(units.values())]:
        units[name] += 1
    empty = next((name for name, count in units.items() if count == 0), None)
    if empty is not None:
        what = f"the share of {empty!r} is below 1/{BLOCK_SAMPLES} of the mixture."
        raise UserError(what, hint="Raise its weight, or leave it out.")
    return units


def block_order(units: Sequence[int]) -> Integers:
    """Order a block by smooth weighted round robin: every prefix is within 1.5 samples of each share.

    Args:
        units: samples of each source in a block.

    Returns:
        The source of each sample of the smallest block that repeats: their sum over their greatest common divisor.
    """
    shares = np.array(units, dtype=np.int64) // gcd(*units)
    total = int(shares.sum())
    credit = np.zeros(len(shares), dtype=np.int64)
    order = np.empty(total, dtype=np.int64)
    for position in range(total):
        credit += shares
        chosen = int(credit.argmax())
        credit[chosen] -= total
        order[position] = chosen
    return order


def permuted(position: int, size: int, key: int) -> int:
    """Permute positions 0 .. size - 1 by a Feistel network, without a table.

    Args:
        position: in the original order.
        size: how many there are in all.
        key: 63 bits; another key gives another permutation.

    Returns:
        Its place; over all positions, each place once.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys, value = _round_keys(key), position
    # A network permutes a power of four; what lands outside of the size walks on along its cycle.
    while True:
        left, right = value >> half, value & mask
        for round_key in keys:
            left, right = right, left ^ (_mixed(right ^ round_key) & mask)
        value = (left << half) | right
        if value < size:
            return value


@lru_cache(maxsize=256)
def _round_keys(key: int) -> list[int]:
    return [derive_seed(key, "round", index) for index in range(FEISTEL_ROUNDS)]


@lru_cache(maxsize=256)
def _epoch_key(seed: int, source: str, epoch: int) -> int:
    return derive_seed(seed, "epoch", source, epoch)


def _mixed(x: int) -> int:
    """Return splitmix64's finaliser, a mixing function of 64 bits."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & BITS_64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & BITS_64
    return x ^ (x >> 31)


@dataclass(frozen=True)
class Segment:
    """A stretch of the stream with one mixture.

    `start` is its first sample; `sources` are indices into the stream's names; `order` is the block's; `before` holds,
    for each sample of a block, how many of its source came before it in the block; `per_block` the samples of each
    source in a block, `used` those before the segment.
    """

    start: int
    sources: Integers
    order: Integers
    before: Integers
    per_block: Integers
    used: Integers


def _segment(start: int, names: Sequence[str], weights: Mapping[str, float], used: Integers) -> Segment:
    units = mixture_units(weights)
    order = block_order(list(units.values()))
    per_block = np.bincount(order, minlength=len(units))
    before = np.empty(len(order), dtype=np.int64)
    for source in range(len(units)):
        before[order == source] = np.arange(per_block[source])
    sources = np.array([names.index(name) for name in units])
    return Segment(start, sources, order, before, per_block, used)


class SampleStream:
    """The stream: from a sample's number to its source and window, and from a step to its batch."""

    def __init__(
        self,
        tokens: Mapping[str, Tokens],
        weights: Mapping[str, float],
        *,
        documents: Mapping[str, Integers] | None = None,
        window_tokens: int,
        batch_size: int,
        seed: int = 0,
        max_epochs: Mapping[str, float] | float = float("inf"),
        on_exhausted: OnExhausted = "error",
    ) -> None:
        """Lay out the stream; nothing is read yet.

        Args:
            tokens: token ids [tokens] of each source; memory-mapped files stay on the disk.
            weights: share of each source in the samples, any scale.
            documents: where the documents of each source begin; given, a sample is a row of whole documents
                (best fit), else a window of their concatenation.
            window_tokens: T targets a sample; windows hold T + 1 tokens at stride T.
            batch_size: samples of a step.
            seed: of the permutations.
            max_epochs: how often a source may be seen, for all or by source.
            on_exhausted: what happens when a source has been seen so often: `error` raises at that sample,
                `renormalise` goes on with the others, their shares in proportion.

        Raises:
            UserError: a source that fills no window, weights of other sources than there are, a bad weight.
        """
        unknown = sorted(weights.keys() ^ tokens.keys())
        if unknown:
            raise UserError(f"the mixture and the corpus differ in {unknown[0]!r}.", hint="Name each source in both.")
        self.names = list(weights)
        self.tokens = [tokens[name] for name in self.names]
        self.window_tokens, self.batch_size, self.seed = window_tokens, batch_size, seed
        self.on_exhausted = on_exhausted
        self.packings: list[Packing] = []
        if documents is not None:
            self.packings = [pack_documents(documents[name], len(tokens[name]), window_tokens) for name in self.names]
            self.num_windows = np.array([packing.num_rows for packing in self.packings])
        else:
            self.num_windows = np.array([(len(values) - 1) // window_tokens for values in self.tokens])
        small = next((name for name, n in zip(self.names, self.num_windows, strict=True) if n < 1), None)
        if small is not None:
            size = len(tokens[small])
            what = f"the source {small!r} has {size} tokens, one window needs {window_tokens + 1}."
            raise UserError(what, hint="Give it more text, a shorter window, or leave it out.")
        limits = [max_epochs if isinstance(max_epochs, (int, float)) else max_epochs.get(n, np.inf) for n in self.names]
        self.limits = np.array(limits) * self.num_windows
        first = _segment(0, self.names, weights, np.zeros(len(self.names), dtype=np.int64))
        self.segments = [first]
        self.end = np.inf
        self._lay_out(dict(weights))

    def _lay_out(self, weights: dict[str, float]) -> None:
        """Add a segment wherever a source is exhausted, or find the stream's end there."""
        while True:
            segment = self.segments[-1]
            left = np.ceil(self.limits[segment.sources]) - segment.used[segment.sources]
            if not np.isfinite(left).any():
                return
            ends = [self._end_of(segment, s, n) if np.isfinite(n) else np.inf for s, n in enumerate(left)]
            soonest = int(np.argmin(ends))
            sample = int(ends[soonest])
            del weights[self.names[segment.sources[soonest]]]
            if self.on_exhausted == "error" or not weights:
                self.end = sample
                return
            used = self.counts(sample)
            self.segments.append(_segment(sample, self.names, weights, used))

    @staticmethod
    def _end_of(segment: Segment, source: int, left: float) -> int:
        """Return the first sample for which the source has nothing left."""
        block, rest = divmod(int(left), int(segment.per_block[source]))
        place = int(np.flatnonzero(segment.order == source)[rest])
        return segment.start + block * len(segment.order) + place

    def _segment_at(self, sample: int) -> Segment:
        return next(segment for segment in reversed(self.segments) if segment.start <= sample)

    def counts(self, num_samples: int) -> Integers:
        """Return how many of the first samples belong to each source."""
        segment = self._segment_at(num_samples)
        blocks, rest = divmod(num_samples - segment.start, len(segment.order))
        counts = segment.used.copy()
        counts[segment.sources] += blocks * segment.per_block
        counts[segment.sources] += np.bincount(segment.order[:rest], minlength=len(segment.sources))
        return counts

    def epochs(self, num_samples: int) -> dict[str, float]:
        """Return how often each source has been seen after so many samples."""
        return dict(zip(self.names, (self.counts(num_samples) / self.num_windows).tolist(), strict=True))

    def place(self, sample: int) -> tuple[int, int]:
        """Return the source and the window of a sample.

        Raises:
            UserError: a source has been seen as often as it may be.
        """
        if sample >= self.end:
            at = self._segment_at(sample)
            name = self.names[at.sources[at.order[(int(self.end) - at.start) % len(at.order)]]]
            raise UserError(
                f"the source {name!r} is exhausted at sample {int(self.end)}.",
                hint="Train fewer steps, allow more epochs, or renormalise the mixture there.",
            )
        segment = self._segment_at(sample)
        block, rest = divmod(sample - segment.start, len(segment.order))
        local = int(segment.order[rest])
        source = int(segment.sources[local])
        rank = int(segment.used[source] + block * segment.per_block[local] + segment.before[rest])
        epoch, position = divmod(rank, int(self.num_windows[source]))
        key = _epoch_key(self.seed, self.names[source], epoch)
        return source, permuted(position, int(self.num_windows[source]), key)

    def window(self, sample: int) -> Integers:
        """Return the tokens [T + 1] of a sample."""
        return self._read(*self.place(sample))

    def _read(self, source: int, index: int) -> Integers:
        if self.packings:
            return self.packings[source].read(self.tokens[source], index)[0]
        begin = index * self.window_tokens
        return np.asarray(self.tokens[source][begin : begin + self.window_tokens + 1], dtype=np.int64)

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step.

        Returns:
            `tokens` [batch_size, T + 1], `source` [batch_size], and where documents are packed `document`
            [batch_size, T + 1], the number of each token's document in its row.
        """
        places = [self.place(sample) for sample in range(step * self.batch_size, (step + 1) * self.batch_size)]
        sources = torch.tensor([source for source, _ in places])
        if self.packings:
            rows = [self.packings[source].read(self.tokens[source], index) for source, index in places]
            tokens, documents = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
            return {"tokens": tokens, "source": sources, "document": documents}
        tokens = torch.from_numpy(np.stack([self._read(source, index) for source, index in places]))
        return {"tokens": tokens, "source": sources}

    def digest(self, steps: Sequence[range], num_processes: int = 1) -> str:
        """Return the sha256 of the tokens of steps, each step's rows taken as that many processes share them.

        Args:
            steps: stretches of steps, such as those before and after a resume.
            num_processes: processes.
        """
        total = hashlib.sha256()
        for stretch in steps:
            for step in stretch:
                tokens = self(step)["tokens"]
                for rank in range(num_processes):
                    rows = rows_of(rank, num_processes, self.batch_size)
                    total.update(tokens[rows.start : rows.stop].numpy().tobytes())
        return total.hexdigest()
