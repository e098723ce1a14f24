"""Which examples of the chosen tasks to train on: importance weights by hashed n-grams, then only unlike ones."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyloom.core.seeding import numpy_generator
from polyloom.methods.select.data import Pair, Pool
from polyloom.methods.select.lexical import build_index, term_hashes

NUM_BUCKETS = 10_000
ALIKE = 0.9
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]|[^\W\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]+|[^\w\s]+")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Picked:
    """An example that was picked: its task's number, input and output, and the logarithm of its importance weight."""

    task: int
    pair: Pair
    log_weight: float


def ngram_buckets(text: str) -> NDArray[np.int64]:
    """Return the buckets, 10,000 in all, of a text's lower-cased words and marks and of pairs of neighbours."""
    tokens = _TOKEN.findall(text.lower())
    names = tokens + [f"{a} {b}" for a, b in itertools.pairwise(tokens)]
    return (term_hashes(names) % NUM_BUCKETS).astype(np.int64) if names else np.zeros(0, dtype=np.int64)


def log_importance(raw: Sequence[NDArray[np.int64]], target: Sequence[NDArray[np.int64]]) -> Floats:
    """Return log p_target(z) - log p_raw(z) of every raw text, both as bags of hashed n-grams.

    p_raw holds the raw texts' shares of the buckets; p_target is half the target texts' shares and half p_raw: of a few
    examples most buckets are unseen, which says nothing against a text that falls into them.

    Args:
        raw: buckets of every text that can be picked.
        target: buckets of the target's texts.

    Source: Xie et al. (2023), DSIR, section 4, where the target's distribution is not smoothed by the raw one.
    """
    wanted, have = (_shares(texts) for texts in (target, raw))
    if not wanted.any():
        return np.zeros(len(raw))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(have > 0, np.log((wanted + have) / (2 * have)), 0.0)
    return np.array([float(ratios[buckets].sum()) for buckets in raw])


def _shares(texts: Sequence[NDArray[np.int64]]) -> Floats:
    counts = np.bincount(np.concatenate([*texts, np.zeros(0, dtype=np.int64)]), minlength=NUM_BUCKETS)
    return np.asarray(counts / max(1, counts.sum()))


def drawn_order(log_weights: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the texts in the order of drawing without replacement, each by its weight: the Gumbel top-k draw."""
    return np.argsort(-(log_weights + rng.gumbel(size=len(log_weights))), kind="stable")


def unlike(order: Sequence[int], texts: Sequence[str], num: int, limit: float = ALIKE) -> list[int]:
    """Take texts in an order, those left out that are like one already taken.

    Args:
        order: numbers of the texts, the wanted ones first.
        texts: all texts.
        num: how many to take at most.
        limit: a cosine (TF-IDF of pieces of words) of this or more is too like.

    Source: Liu et al. (2024), DEITA, the filter by distance, with a lexical vector in place of a model's.
    """
    index = build_index(texts, "char")
    nearest = np.zeros(len(texts))
    taken: list[int] = []
    for i in order:
        if len(taken) == num:
            break
        if nearest[i] < limit:
            taken.append(int(i))
            nearest = np.maximum(nearest, index.score(texts[i]))
    return taken


def pick_examples(pool: Pool, chosen: Sequence[int], target: Sequence[Pair], num: int, seed: int) -> list[Picked]:
    """Pick examples of each chosen task: those most like the target's, and unlike each other.

    Args:
        pool: tasks with examples.
        chosen: numbers of the tasks.
        target: examples of the target.
        num: examples of each task, at most; a task with few different ones gives fewer.
        seed: of the draw by weights.
    """
    places = [(i, pair) for i in chosen for pair in pool.tasks[i].examples]
    texts = [" ".join(pair) for _, pair in places]
    weights = log_importance([ngram_buckets(text) for text in texts], [ngram_buckets(" ".join(one)) for one in target])
    picked = []
    for task in chosen:
        own = [number for number, (i, _) in enumerate(places) if i == task and texts[number].strip()]
        if not own:
            continue
        order = drawn_order(weights[own], numpy_generator(seed, "pick", pool.tasks[task].id))
        taken = unlike([int(i) for i in order], [texts[i] for i in own], num)
        picked += [Picked(task, places[own[i]][1], float(weights[own[i]])) for i in taken]
    return picked
