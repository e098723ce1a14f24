"""Documents with planted duplicates, and what the engine finds of them under different cuts of the input."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyloom.core.seeding import python_random
from polyloom.data.duplicates import band_hashes, candidate_probability, jaccard, minhash, permutations, shingles

NUM_WORDS = 200
_VOCABULARY = 20_000
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Pair:
    """Two planted documents and their exact Jaccard index of shingles."""

    first: int
    second: int
    jaccard: float


@dataclass(frozen=True)
class Planted:
    """Documents, and which of them were made from which.

    `exact` copies a base word for word; `near` pairs have a Jaccard index of at least 0.9, `far` ones at most 0.3.
    """

    texts: list[str]
    exact: list[tuple[int, int]]
    near: list[Pair]
    far: list[Pair]


def make_words(seed: int) -> list[str]:
    """Return invented words of 2 to 9 letters."""
    rng = python_random(seed, "planted words")
    return ["".join(rng.choices(_ALPHABET, k=rng.randint(2, 9))) for _ in range(_VOCABULARY)]


def edited(words: Sequence[str], vocabulary: Sequence[str], num_edits: int, rng: random.Random) -> list[str]:
    """Return the words with `num_edits` of them, spread evenly, replaced: each breaks up to 5 shingles."""
    result = list(words)
    step = len(words) / max(1, num_edits)
    for i in range(num_edits):
        result[int((i + 0.5) * step)] = rng.choice(vocabulary)
    return result


def with_jaccard(words: Sequence[str], vocabulary: Sequence[str], level: float, rng: random.Random) -> list[str]:
    """Return a text whose beginning is that of `words`, with about the Jaccard index `level` of 5-word shingles."""
    size = len(words)
    kept = round(size * 2 * level / (1 + level))
    return [*words[:kept], *(rng.choice(vocabulary) for _ in range(size - kept))]


def plant(num_base: int, seed: int) -> Planted:
    """Make base documents; a third of them get an exact copy, a third a near copy, a third a distant relative."""
    rng = python_random(seed, "planted")
    vocabulary = make_words(seed)
    base = [[rng.choice(vocabulary) for _ in range(NUM_WORDS)] for _ in range(num_base)]
    texts = [" ".join(words) for words in base]
    exact, near, far = [], [], []
    for i, words in enumerate(base):
        if i % 3 == 0:
            exact.append((i, len(texts)))
            texts.append(texts[i])
            continue
        if i % 3 == 1:
            copy = edited(words, vocabulary, rng.randint(1, 2), rng)
        else:
            copy = with_jaccard(words, vocabulary, rng.uniform(0.05, 0.3), rng)
        pair = Pair(i, len(texts), exact_jaccard(texts[i], " ".join(copy)))
        texts.append(" ".join(copy))
        if pair.jaccard >= 0.9:
            near.append(pair)
        elif pair.jaccard <= 0.3:
            far.append(pair)
    return Planted(texts, exact, near, far)


def exact_jaccard(first: str, second: str) -> float:
    """Return the Jaccard index of two texts' 5-word shingles."""
    return jaccard(shingles(first, 5, space_free=False), shingles(second, 5, space_free=False))


def planted_id(number: int) -> str:
    """Return the id of a planted document."""
    return f"planted-{number:06d}"


def write_planted(planted: Planted, folder: Path, num_files: int, *, backwards: bool) -> None:
    """Write the documents as JSON lines over `num_files` files, in their order or the other way round."""
    order = range(len(planted.texts))
    chosen = list(reversed(order)) if backwards else list(order)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        rows = [
            {"text": planted.texts[i], "id": planted_id(i), "source": "planted", "domain": "planted"}
            for i in chosen[number::num_files]
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"part-{number:03d}.jsonl").write_text(lines, encoding="utf-8")


def candidate_rate(level: float, num_pairs: int, num_bands: int, num_rows: int, seed: int) -> tuple[int, float]:
    """Count how many of made pairs with a given Jaccard index share a band.

    Args:
        level: the Jaccard index of the shingle sets, met to half a hundredth.
        num_pairs: pairs.
        num_bands: b.
        num_rows: r.
        seed: of the pairs.

    Returns:
        The number of candidates, and the mean probability that the formula gives for the pairs' exact indices.
    """
    generator = np.random.Generator(np.random.PCG64([seed, round(1000 * level)]))
    a, b = permutations(num_bands * num_rows)
    union = 200
    both = round(level * union)
    num_candidates = 0
    for _ in range(num_pairs):
        values = generator.integers(0, 1 << 64, size=union, dtype=np.uint64)
        left = both + (union - both) // 2
        first, second = values[:left], np.concatenate([values[:both], values[left:]])
        same = band_hashes(minhash(first, a, b), num_bands) == band_hashes(minhash(second, a, b), num_bands)
        num_candidates += bool(same.any())
    return num_candidates, candidate_probability(both / union, num_bands, num_rows)
