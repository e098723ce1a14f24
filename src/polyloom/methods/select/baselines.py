"""Rivals of the selection: instance retrieval (RoE), and random choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyloom.core.errors import UserError
from polyloom.core.seeding import numpy_generator, python_random
from polyloom.methods.select.data import Pair, Pool
from polyloom.methods.select.lexical import build_index

STORED_INSTANCES, QUERY_INSTANCES = 100, 32


def choose_random(pool: Pool, k: int, seed: int) -> list[int]:
    """Return k tasks at random."""
    return sorted(int(i) for i in numpy_generator(seed, "random tasks").permutation(len(pool.tasks))[:k])


def instance_votes(pool: Pool, target: Sequence[Pair], seed: int = 0) -> np.ndarray:
    """Return each task's votes by instance retrieval.

    Of every task up to 100 instances (input and output) are stored; each of up to 32 target instances votes for the
    task of its nearest stored one (TF-IDF over pieces of words, so that digits and names count). Ties in votes are
    broken by the mean score.

    Args:
        pool: tasks with examples; a task without one gets no vote.
        target: input and output of target instances.
        seed: of the sampling.

    Raises:
        UserError: no task has examples.

    Source: spec 2.7, retrieval of experts, with a lexical score in place of an encoder's.
    """
    stored: list[str] = []
    owners: list[int] = []
    for number, task in enumerate(pool.tasks):
        rng = python_random(seed, "stored", task.id)
        pairs = rng.sample(task.examples, min(STORED_INSTANCES, len(task.examples)))
        stored += [f"{given} {answer}" for given, answer in pairs]
        owners += [number] * len(pairs)
    if not stored:
        raise UserError("has no examples to retrieve.", where=pool.where, hint="Drop the arm `instances`.")
    index = build_index(stored, "char")
    votes = np.zeros(len(pool.tasks))
    place = np.array(owners)
    counts = np.maximum(1, np.bincount(place, minlength=len(votes)))
    for given, answer in list(target)[:QUERY_INSTANCES]:
        scores = index.score(f"{given} {answer}")
        votes[place[int(scores.argmax())]] += 1
        votes += 1e-3 * np.bincount(place, weights=scores, minlength=len(votes)) / counts
    return votes
