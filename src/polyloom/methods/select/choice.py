"""What is chosen of a ranking, and the files that say so: ranking, mixture, examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from polyloom.core.errors import UserError
from polyloom.core.files import json_lines, write_json, write_text
from polyloom.core.result import Artifact, Scalar
from polyloom.core.seeding import python_random
from polyloom.methods.select.config import RankConfig
from polyloom.methods.select.data import MAX_EXAMPLES, Pool, sample_examples
from polyloom.methods.select.instances import ALIKE, pick_examples
from polyloom.methods.select.lexical import build_index
from polyloom.methods.select.method import diversify, order_by
from polyloom.methods.select.target import Target, aim_of, with_some_examples
from polyloom.runs.folder import Run

GAP_DEPTH = 4
WEIGHTED_FROM = 20
MIXTURE_TEMPERATURE = 0.1


@dataclass(frozen=True)
class Choice:
    """A ranking and what is chosen of it.

    Attributes:
        order: all tasks, best first.
        chosen: the tasks to train on.
        values: what the first tasks of the order are ranked by: scores, or what a second stage says of its candidates.
    """

    order: np.ndarray
    chosen: list[int]
    values: dict[int, float]

    @classmethod
    def first(cls, config: RankConfig, pool: Pool, scores: np.ndarray) -> Choice:
        """Choose by the scores of all tasks."""
        return cls.among(config, pool, order_by(scores), range(len(scores)), scores)

    @classmethod
    def among(
        cls, config: RankConfig, pool: Pool, order: np.ndarray, places: Sequence[int], values: ArrayLike
    ) -> Choice:
        """Choose the k tasks among `places` with the largest values; the others follow in their old order."""
        merit = np.asarray(values)
        best = [int(places[i]) for i in order_by(merit)]
        chosen = best[: config.k]
        if config.diversify:
            near = _task_similarity(pool)[np.ix_(places, places)]
            chosen = [int(places[i]) for i in diversify(merit, near, config.k)]
        ranked = set(best)
        whole = np.array([*best, *(int(i) for i in order if int(i) not in ranked)])
        return cls(whole, chosen, {int(i): float(value) for i, value in zip(places, merit, strict=True)})

    def gaps(self) -> dict[str, Scalar]:
        """Return the fall of the value behind the chosen tasks, and where among the first ranks it falls most."""
        falls = -np.diff([self.values[int(i)] for i in self.order[: len(self.values)]])
        k = len(self.chosen)
        return {
            "gap_after_k": Scalar(value=float(falls[k - 1]) if k - 1 < len(falls) else None),
            "largest_gap_rank": Scalar(value=int(falls[: GAP_DEPTH * k].argmax()) + 1 if len(falls) else None),
        }


def _task_similarity(pool: Pool) -> np.ndarray:
    """Return cosines of the tasks' mean TF-IDF vectors, each task told by its first instruction."""
    first = [task.instructions[0] for task in pool.tasks]
    if len(first) > 3000:
        raise UserError("takes at most 3,000 tasks.", where="--diversify", hint="Drop the option.")
    return build_index(first, "tfidf").score_all(first)


def write_selection(
    config: RankConfig,
    run: Run,
    target: Target,
    pool: Pool,
    scores: np.ndarray,
    choice: Choice,
    notes: list[str],
) -> dict[str, Artifact]:
    """Write the whole ranking, the mixture of the chosen tasks, and their examples where asked for."""
    chosen, values = choice.chosen, choice.values
    ranking = [
        {"task": pool.tasks[i].id, "score": float(scores[i])}
        | ({config.rerank: values[int(i)]} if config.rerank and int(i) in values else {})
        for i in choice.order
    ]
    write_json(run.artifact("ranking.json"), ranking)
    strength = np.array([values[i] for i in chosen])
    spread = max(float(np.ptp(list(values.values()))), 1e-9)
    weights = np.exp((strength - strength.max()) / (MIXTURE_TEMPERATURE * spread))
    sizes = np.array([min(len(pool.tasks[i].examples), MAX_EXAMPLES) or 1 for i in chosen])
    weights = weights * sizes / (weights * sizes).sum()
    mixture = {pool.tasks[i].id: round(float(weight), 6) for i, weight in zip(chosen, weights, strict=True)}
    write_json(run.artifact("mixture.json"), {"dataset_lists": list(mixture), "weights": mixture})
    artifacts = {
        "ranking": Artifact(path="artifacts/ranking.json", media_type="application/json", description="All tasks."),
        "mixture": Artifact(
            path="artifacts/mixture.json", media_type="application/json", description="Chosen tasks and their weights."
        ),
    }
    if config.num_examples:
        rows = _subset(config, target, pool, chosen, notes)
        write_text(run.artifact("subset.jsonl"), json_lines(rows))
        artifacts["subset"] = Artifact(
            path="artifacts/subset.jsonl", media_type="application/jsonl", description="Training examples."
        )
    return artifacts


def _subset(
    config: RankConfig, target: Target, pool: Pool, chosen: Sequence[int], notes: list[str]
) -> list[dict[str, Any]]:
    """Return examples of the chosen tasks in a form that `tune` reads as a pool."""
    aim = aim_of(config, target, "--pick weighted") if config.pick == "weighted" else None
    many = WEIGHTED_FROM * config.num_examples if aim else config.num_examples
    full = with_some_examples(config, pool, chosen, min(many, MAX_EXAMPLES))
    if not any(full.tasks[i].examples for i in chosen):
        raise UserError("the chosen tasks have no examples.", where="--num-examples", hint="Drop the option.")
    wanted = config.num_examples * len(chosen)
    if aim is None:
        drawn = sample_examples(full, chosen, wanted, config.seed)
        return [{"task": a, "instruction": b, "input": c, "output": d} for a, b, c, d in drawn]
    picked = pick_examples(full, chosen, aim.examples, config.num_examples, config.seed)
    if len(picked) < wanted:
        notes.append(f"Only {len(picked)} of {wanted} examples are unlike each other (cosine below {ALIKE}).")
    rng = python_random(config.seed, "wordings")
    return [
        {
            "task": full.tasks[one.task].id,
            "instruction": rng.choice(full.tasks[one.task].instructions),
            "input": one.pair[0],
            "output": one.pair[1],
            "log_weight": round(one.log_weight, 4),
        }
        for one in picked
    ]
