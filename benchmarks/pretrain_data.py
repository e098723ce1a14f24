"""MinHash signatures beside datasketch: documents a CPU second, and their ratio.

One thread, one process, the two interleaved; each round gives a ratio, of which the median and the quartiles are
printed. Both make 112 hashes of 5-word shingles; `legacy` is datasketch's scheme with our arithmetic, whose signatures
are first checked to estimate the same Jaccard indices.

    python benchmarks/pretrain_data.py [--rounds 9] [--documents 300]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

from polyloom.data.duplicates import band_hashes, minhash, permutations, shingles

NUM_BANDS, NUM_ROWS = 14, 8
NUM_HASHES = NUM_BANDS * NUM_ROWS
A, B = permutations(NUM_HASHES)


def make_documents(number: int, num_words: int) -> list[str]:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]
    return [" ".join(rng.choices(vocabulary, k=num_words)) for _ in range(number)]


def ours(documents: list[str]) -> list[NDArray[np.uint64]]:
    return [minhash(shingles(text, 5, space_free=False), A, B) for text in documents]


def theirs(documents: list[str], scheme: str) -> list[NDArray[np.uint64]]:
    found = []
    for text in documents:
        words = text.lower().split()
        signature = MinHash(num_perm=NUM_HASHES, seed=1, scheme=scheme)
        signature.update_batch([" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)])
        found.append(signature.hashvalues)
    return found


def check_estimates(documents: list[str]) -> None:
    """Stop where the two would disagree on a pair: half of a text and the whole."""
    half = [" ".join(text.split()[: len(text.split()) // 2]) for text in documents[:30]]
    for sign in (ours, lambda texts: theirs(texts, "legacy")):
        pairs = zip(sign(documents[:30]), sign(half), strict=True)
        mean = float(np.mean([np.mean(a == b) for a, b in pairs]))
        if abs(mean - 0.5) > 0.05:
            raise SystemExit(f"the signatures estimate a Jaccard index of {mean:.3f} where it is about 0.5")


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(documents: list[str], scheme: str, num_rounds: int) -> str:
    mine, peer = [], []
    for _ in range(num_rounds):
        mine.append(cpu_seconds(lambda: ours(documents)))
        peer.append(cpu_seconds(lambda: theirs(documents, scheme)))
    low, middle, high = statistics.quantiles([b / a for a, b in zip(mine, peer, strict=True)], n=4)
    rates = f"{len(documents) / statistics.median(mine):.0f} | {len(documents) / statistics.median(peer):.0f}"
    return f"{rates} | {middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--documents", type=int, default=300)
    options = parser.parse_args()
    band_hashes(ours(make_documents(1, 50))[0], NUM_BANDS)
    print("| words a document | datasketch scheme | ours, documents per CPU second | datasketch | ratio (quartiles) |")
    print("| --- | --- | --- | --- | --- |")
    for num_words in (50, 200, 1000):
        documents = make_documents(max(10, options.documents * 200 // num_words // 4), num_words)
        check_estimates(documents)
        for scheme in ("affine32", "legacy"):
            print(f"| {num_words} | {scheme} | {compare(documents, scheme, options.rounds)} |", flush=True)


if __name__ == "__main__":
    main()
