from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.data.duplicates import (
    band_hashes,
    candidate_probability,
    character_shingles,
    connected_components,
    hash_text,
    jaccard,
    minhash,
    permutations,
    shingles,
    span_hashes,
    word_shingles,
)

WORDS = st.lists(st.text("abcé猫", min_size=1, max_size=4), max_size=12)


@given(WORDS, st.integers(1, 6))
def test_equal_shingles_have_equal_hashes_and_others_differ(words: list[str], n: int) -> None:
    found = word_shingles(" ".join(words), n)
    width = min(n, len(words))
    runs = [tuple(words[i : i + width]) for i in range(len(words) - width + 1)] if words else []
    assert len(found) == len(runs)
    for (i, a), (j, b) in itertools.combinations(enumerate(runs), 2):
        assert (found[i] == found[j]) == (a == b)


@given(st.text(max_size=40), st.integers(1, 7))
def test_a_character_shingle_does_not_depend_on_where_it_stands(text: str, n: int) -> None:
    text = text.encode("utf-8", "replace").decode()
    shifted = character_shingles("x" * 11 + text, n)
    assert set(character_shingles(text, n).tolist()) <= set(shifted.tolist()) or len(text) < n


def test_a_span_is_hashed_like_the_same_symbols_alone() -> None:
    data = np.frombuffer(b"one two one", dtype=np.uint8)
    a, b, alone = (
        span_hashes(data, np.array([0]), np.array([3])),
        span_hashes(data, np.array([8]), np.array([11])),
        span_hashes(data[:3], np.array([0]), np.array([3])),
    )
    assert a == b == alone


def test_leading_zeros_are_not_lost() -> None:
    data = np.array([0, 0, 1], dtype=np.uint8)
    whole, part = span_hashes(data, np.array([0, 1]), np.array([3, 3]))
    assert whole != part


@given(WORDS, WORDS)
def test_jaccard_is_that_of_the_sets_of_runs(a: list[str], b: list[str]) -> None:
    sets = [{tuple(w[i : i + 2]) for i in range(len(w) - 1)} if len(w) > 1 else {tuple(w)} - {()} for w in (a, b)]
    expected = len(sets[0] & sets[1]) / len(sets[0] | sets[1]) if sets[0] | sets[1] else 1.0
    found = jaccard(*(shingles(" ".join(w), 2, space_free=False) for w in (a, b)))
    assert found == pytest.approx(expected)


def test_the_signature_is_datasketchs() -> None:
    datasketch = pytest.importorskip("datasketch")
    a, b = permutations(112)
    hashes = word_shingles(" ".join(f"w{i % 37}" for i in range(200)), 5)
    peer = datasketch.MinHash(
        num_perm=112, permutations=(a, b), scheme="legacy", hashfunc=lambda value: int.from_bytes(value, "little")
    )
    peer.update_batch([int(h & np.uint64(0xFFFFFFFF)).to_bytes(8, "little") for h in hashes])
    assert minhash(hashes, a, b).tolist() == peer.hashvalues.tolist()


def test_the_signature_by_python_integers() -> None:
    a, b = permutations(16)
    hashes = np.array([3, 2**63 + 5, 12345678901234567], dtype=np.uint64)
    prime = (1 << 61) - 1
    expected = [
        min(((int(x) & 0xFFFFFFFF) * int(p) + int(q)) % 2**64 % prime & 0xFFFFFFFF for x in hashes)
        for p, q in zip(a, b, strict=True)
    ]
    assert minhash(hashes, a, b).tolist() == expected
    # Long documents go through in blocks.
    many = np.arange(5000, dtype=np.uint64)
    halves = [minhash(part, a, b) for part in (many[:2100], many[2100:])]
    assert minhash(many, a, b).tolist() == np.minimum(*halves).tolist()


def test_bands_depend_on_their_rows_alone() -> None:
    a, b = permutations(112)
    signature = minhash(np.arange(50, dtype=np.uint64), a, b)
    bands = band_hashes(signature, 14)
    other = signature.copy()
    other[3] ^= np.uint64(1)
    assert (band_hashes(other, 14) != bands).tolist() == [True] + [False] * 13
    # The same rows in another band, or in another order, are not the same band.
    turned = band_hashes(np.concatenate([signature[8:16], signature[:8], signature[16:]]), 14)
    assert not set(turned[:2].tolist()) & set(bands[:2].tolist())


@pytest.mark.parametrize(
    ("level", "expected"),
    [(0.5, 0.053), (0.6, 0.211), (0.7, 0.565), (0.8, 0.924), (0.9, 1.000), (1.0, 1.0), (0.0, 0.0)],
)
def test_the_candidate_table(level: float, expected: float) -> None:
    assert candidate_probability(level, 14, 8) == pytest.approx(expected, abs=5e-4)


@given(st.integers(1, 30), st.randoms(use_true_random=False))
def test_components_do_not_depend_on_the_order_of_edges(num_nodes: int, rng: random.Random) -> None:
    edges = [(rng.randrange(num_nodes), rng.randrange(num_nodes)) for _ in range(rng.randrange(40))]
    found = connected_components(num_nodes, edges).tolist()
    # By repeated relabelling.
    labels = list(range(num_nodes))
    for _ in range(num_nodes):
        for x, y in edges:
            labels[x] = labels[y] = min(labels[x], labels[y])
    assert found == labels
    rng.shuffle(edges)
    assert connected_components(num_nodes, [(y, x) for x, y in edges]).tolist() == found


def test_hashes_of_texts_have_a_salt() -> None:
    assert hash_text("a") == hash_text("a") != hash_text("a", "b")
