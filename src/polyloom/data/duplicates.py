"""Duplicates at scale: shingle hashes, MinHash signatures and bands, union-find. numpy only, deterministic."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from polyloom.data.scripts import run_characters

U64 = NDArray[np.uint64]
Ints = NDArray[np.int64]
PRIME = (1 << 61) - 1
_BASE = 0x9E3779B97F4A7C15 | 1
_MAX32 = np.uint64(0xFFFFFFFF)
# Shingles that go through the permutations together: their two tables of 112 rows stay in the second cache.
_BLOCK = 256


def hash_text(text: str, salt: str = "") -> int:
    """Return the 64-bit blake2b hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, salt=salt.encode()[:16]).digest(), "little")


def mix(x: U64) -> U64:
    """Return the finaliser of splitmix64: every bit of `x` reaches every bit of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=8)
def _powers(size: int) -> tuple[U64, U64]:
    """Return B^0 .. B^(size-1) and their inverses modulo 2^64 (an odd number has one)."""
    forward = np.full(size, _BASE, dtype=np.uint64)
    backward = np.full(size, pow(_BASE, -1, 1 << 64), dtype=np.uint64)
    forward[0] = backward[0] = 1
    return np.multiply.accumulate(forward), np.multiply.accumulate(backward)


def span_hashes(symbols: NDArray[np.integer], starts: Ints, ends: Ints) -> U64:
    """Hash many spans of one sequence at once; equal spans have equal hashes.

    The polynomial hash of symbols[i:j] is (H_j - H_i) B^-i modulo 2^64 with prefix sums H, so that a span costs three
    operations whatever its length.

    Args:
        symbols: [n] bytes or code points.
        starts: [m] first symbol of each span.
        ends: [m] one past the last.

    Returns:
        [m] 64-bit hashes.
    """
    size = 1 << max(10, len(symbols).bit_length())
    forward, backward = _powers(size)
    sums = np.zeros(len(symbols) + 1, dtype=np.uint64)
    np.cumsum((symbols.astype(np.uint64) + np.uint64(1)) * forward[: len(symbols)], out=sums[1:])
    return mix((sums[ends] - sums[starts]) * backward[starts])


def word_shingles(text: str, num_words: int) -> U64:
    """Return the hashes of all runs of `num_words` words, or of the whole text where it has fewer.

    Args:
        text: words between single spaces.
        num_words: n.
    """
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    if not len(data):
        return np.zeros(0, dtype=np.uint64)
    gaps = np.flatnonzero(data == 32)
    starts = np.concatenate(([0], gaps + 1))
    ends = np.concatenate((gaps, [len(data)]))
    n = min(num_words, len(starts))
    return span_hashes(data, starts[: len(starts) - n + 1], ends[n - 1 :])


def character_shingles(text: str, num_characters: int) -> U64:
    """Return the hashes of all runs of `num_characters` characters, or of the whole text where it has fewer."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    if not len(points):
        return np.zeros(0, dtype=np.uint64)
    n = min(num_characters, len(points))
    starts = np.arange(len(points) - n + 1)
    return span_hashes(points, starts, starts + n)


def shingles(text: str, num_words: int, *, space_free: bool) -> U64:
    """Return the distinct shingle hashes of a text, case and spacing aside.

    Args:
        text: the text.
        num_words: words of a shingle; characters of one where no spaces are written.
        space_free: the text's script writes no spaces.

    Returns:
        Sorted hashes.
    """
    words = text.lower().split()
    found = character_shingles("".join(words), num_words) if space_free else word_shingles(" ".join(words), num_words)
    return np.unique(found)


def ngram_hashes(text: str, num_words: int, *, space_free: bool) -> U64:
    """Return the hashes of all n-grams of words; of as many characters where no spaces are written.

    Args:
        text: normalised text; words stand between white space.
        num_words: n.
        space_free: the text's script writes no spaces.

    Returns:
        Hashes in the order of the text; a text shorter than n gives the one of the whole.
    """
    words = text.split()
    if space_free:
        return character_shingles("".join(words), round(run_characters(text) * num_words))
    return word_shingles(" ".join(words), num_words)


def permutations(num_hashes: int, seed: int = 1) -> tuple[U64, U64]:
    """Return the factors a in [1, 2^61-1) and offsets b in [0, 2^61-1) of the hash family."""
    generator = np.random.RandomState(seed)
    a = generator.randint(1, PRIME, size=num_hashes, dtype=np.uint64)
    b = generator.randint(0, PRIME, size=num_hashes, dtype=np.uint64)
    return a, b


def minhash(hashes: U64, a: U64, b: U64) -> U64:
    """Return the MinHash signature: for each permutation the smallest (a x + b) mod (2^61-1), its low 32 bits.

    Products wrap at 2^64 before the modulus, and x is the low half of a shingle's hash: the arithmetic of datasketch
    and datatrove, bit for bit.

    Args:
        hashes: [n] shingle hashes, n >= 1.
        a: [k] factors.
        b: [k] offsets.

    Returns:
        [k] the minima.

    Source: Broder (1997); the family of Carter and Wegman (1979).
    """
    if not len(hashes):
        raise ValueError("a text without shingles has no signature")
    x = hashes & _MAX32
    prime, shift = np.uint64(PRIME), np.uint64(61)
    factors, offsets = a[:, None], b[:, None]
    values = np.empty((len(a), min(_BLOCK, len(x))), dtype=np.uint64)
    spare = np.empty_like(values)
    low = np.full(len(a), _MAX32)
    for first in range(0, len(x), _BLOCK):
        block = x[first : first + _BLOCK]
        v, high = values[:, : len(block)], spare[:, : len(block)]
        np.multiply(factors, block, out=v)
        v += offsets
        np.right_shift(v, shift, out=high)
        v &= prime
        v += high
        # v < p + 8: one subtraction reduces it, and wraps where none is due.
        np.minimum(v, np.subtract(v, prime, out=high), out=v)
        v &= _MAX32
        np.minimum(low, v.min(axis=1), out=low)
    return low


def band_hashes(signature: U64, num_bands: int) -> U64:
    """Return one 64-bit hash for each band of equally many rows of a signature."""
    rows = signature.reshape(num_bands, -1)
    salts = np.arange(signature.size, dtype=np.uint64).reshape(rows.shape) << np.uint64(32)
    return mix(mix(rows | salts).sum(axis=1))


def candidate_probability(jaccard: float, num_bands: int, num_rows: int) -> float:
    """Return P(candidate | s) = 1 - (1 - s^r)^b."""
    return float(1.0 - (1.0 - jaccard**num_rows) ** num_bands)


def jaccard(a: NDArray[np.integer], b: NDArray[np.integer]) -> float:
    """Return the Jaccard index of two sets given as sorted arrays without repetition; 1 for two empty sets."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - both
    return both / union if union else 1.0


def connected_components(num_nodes: int, edges: Iterable[tuple[int, int]] | Sequence[tuple[int, int]] | Ints) -> Ints:
    """Return for each node the smallest node of its component (union-find by the smaller root, path halving).

    Args:
        num_nodes: nodes 0 .. n-1.
        edges: pairs of nodes; their order does not matter.
    """
    parent = list(range(num_nodes))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for left, right in edges:
        a, b = find(int(left)), find(int(right))
        if a != b:
            parent[max(a, b)] = min(a, b)
    return np.array([find(node) for node in range(num_nodes)], dtype=np.int64)
