"""The verbs `rank`, `explain` and `stability`."""

from __future__ import annotations

import csv
import io
import resource
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from polyloom.core.errors import UserError
from polyloom.core.files import json_lines, read_text, write_json, write_text
from polyloom.core.result import Artifact, Result, Scalar, Series, Table
from polyloom.core.seeding import numpy_generator, python_random
from polyloom.methods.select.config import ExplainConfig, RankConfig, StabilityConfig
from polyloom.methods.select.data import MAX_EXAMPLES, Pool, sample_examples
from polyloom.methods.select.lexical import LEXICAL, Lexical, build_index
from polyloom.methods.select.method import (
    aggregate,
    diversify,
    fuse,
    jaccard,
    kendall_tau,
    mix_prior,
    order_by,
    overlap,
    popularity,
    ranks_of,
)
from polyloom.methods.select.scoring import Scored, cache_folder, nearness_of, rank_ids, score_pool
from polyloom.methods.select.target import Target, language_notes, resolve, without_source
from polyloom.runs.folder import Run

SHOWN_ROWS = 20
SHOWN_CHARACTERS = 140
NULL_TASKS = 10
MIXTURE_TEMPERATURE = 0.1
INSTRUCTIONS_ALONE = (
    "Instructions alone predict transfer only weakly; a measured gain (--transfers), where you have one, tells more."
)


def run_rank(config: RankConfig, run: Run) -> Result:
    """Rank the tasks of a pool for a target by their instructions.

    Args:
        config: pool, target, scorers and k.
        run: the run to write the ranking, the mixture and the subset to.

    Returns:
        The ranking with the best instruction pair of every task, agreement of the scorers, notes.

    Raises:
        UserError: the pool or the target cannot be read or compared.
    """
    started = time.process_time()
    target, pool = resolve(config, min(config.num_examples, MAX_EXAMPLES))
    if config.exclude_same_source:
        pool = without_source(pool, target)
    found = score(config, target, pool)
    scores = found.fused
    notes = [*pool.notes, *found.notes, *language_notes(target, pool, config.scorers)]
    if config.transfers:
        gains = read_transfers(config.transfers)
        cache = cache_folder(config.cache)
        near = nearness_of(target.instructions, pool, list(gains), config.scorers[0], cache)
        prior = popularity(gains, target.name, pool.ids, near if config.prior == "pivots" else None)
        if not np.isfinite(prior).any():
            raise UserError("measures no task of the pool.", where=config.transfers, hint="Its sources are task ids.")
        scores = mix_prior(scores, prior, config.prior_weight)
        notes.append(f"{int(np.isfinite(prior).sum())} of {len(pool.tasks)} tasks have a measured prior.")
    order = order_by(scores)
    chosen = [int(i) for i in order[: config.k]]
    if config.diversify:
        chosen = diversify(scores, _task_similarity(pool), config.k)
    if config.k > len(pool.tasks):
        notes.append(f"k = {config.k} is more than the pool holds: all {len(pool.tasks)} tasks are returned.")
    seconds = time.process_time() - started
    artifacts = _write_selection(config, run, pool, scores, order, chosen)
    same = [pool.tasks[i].id for i in chosen if target.source and pool.tasks[i].source == target.source]
    if same:
        notes.append(f"{len(same)} chosen tasks are of the target's own data set ({target.source}): {', '.join(same)}.")
    above, limit = _above_null(config, pool, found)
    names = [pool.tasks[i].id for i in chosen]
    gap = float(scores[order[len(chosen) - 1]] - scores[order[len(chosen)]]) if len(chosen) < len(order) else None
    return run.result(
        scalars={
            "num_tasks": Scalar(value=len(pool.tasks)),
            "num_instructions": Scalar(value=len(pool.texts)),
            "num_target_instructions": Scalar(value=len(target.instructions)),
            "num_chosen": Scalar(value=len(chosen)),
            "num_encoded": Scalar(value=found.num_encoded),
            "gap_after_k": Scalar(value=gap),
            "num_above_null": Scalar(value=above),
            "null_limit": Scalar(value=limit),
            "ranking_cpu_seconds": Scalar(value=round(seconds, 3), unit="s"),
            "peak_memory": Scalar(value=round(peak_megabytes(), 1), unit="MB"),
            **agreement(found, pool.ids, config.k),
        },
        tables={"ranking": ranking_table(target, pool, found, scores, order, set(chosen))},
        series=_rank_series(pool, scores, order),
        artifacts=artifacts,
        verdicts=[
            f"Of {len(pool.tasks)} tasks, {', '.join(names[:SHOWN_ROWS])} are nearest to {target.name!r} "
            f"({' + '.join(found.names)}, {config.aggregation}).",
            f"{above} tasks are nearer than 99 % of random pairs of tasks"
            + (" of different categories." if len({task.category for task in pool.tasks}) > 1 else "."),
        ],
        limitations=[*notes, INSTRUCTIONS_ALONE],
    )


def score(config: Any, target: Target, pool: Pool) -> Scored:
    """Score a pool as a configuration with scorers, aggregation, cache and head says."""
    return score_pool(
        target.instructions,
        pool,
        config.scorers,
        config.aggregation,
        cache=cache_folder(config.cache),
        head=Path(config.head) if config.head else None,
    )


def peak_megabytes() -> float:
    """Return the most memory that this process has held, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():
        # What getrusage says begins with the memory of the process that started this one.
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def agreement(found: Scored, ids: Sequence[str], k: int) -> dict[str, Scalar]:
    """Return how much several scorers agree: mean overlap of their first k, and mean Kendall tau of all ranks."""
    if len(found.names) < 2:
        return {}
    tops = [rank_ids(scores, ids)[:k] for scores in found.scores]
    overlaps = [overlap(a, b) for a, b in combinations(tops, 2)]
    taus = [kendall_tau(a, b) for a, b in combinations(found.scores, 2)] if len(ids) <= 2000 else []
    scalars = {"agreement_overlap": Scalar(value=float(np.mean(overlaps)))}
    return scalars | ({"agreement_tau": Scalar(value=float(np.mean(taus)))} if taus else {})


def ranking_table(
    target: Target, pool: Pool, found: Scored, scores: np.ndarray, order: np.ndarray, chosen: set[int]
) -> Table:
    """Return the first tasks with their score, ranks by scorer and best instruction pair."""
    owners = np.array(pool.owners)
    ranks = [ranks_of(one) for one in found.scores]
    rows: list[list[Any]] = []
    for rank, number in enumerate(order[: max(SHOWN_ROWS, len(chosen))], 1):
        task = pool.tasks[number]
        places = np.flatnonzero(owners == number)
        best = found.pairs[0][:, places]
        row, column = np.unravel_index(int(best.argmax()), best.shape)
        pair = (target.instructions[int(row)], pool.texts[int(places[int(column)])])
        several = [int(one[number]) for one in ranks] if len(ranks) > 1 else []
        mark = "yes" if number in chosen else ""
        cells = [rank, task.id, mark, float(scores[number]), *several, task.category, *(shorten(text) for text in pair)]
        rows.append(cells)
    several_names = [f"rank {name}" for name in found.names] if len(ranks) > 1 else []
    columns = ["rank", "task", "chosen", "score", *several_names, "category", "target's wording", "its nearest wording"]
    return Table(columns=columns, rows=rows, title=f"Nearest tasks to {target.name}")


def shorten(text: str) -> str:
    """Return a text that fits a table cell."""
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def _rank_series(pool: Pool, scores: np.ndarray, order: np.ndarray) -> dict[str, Series]:
    first = order[:SHOWN_ROWS]
    curve = order[:200]
    return {
        "nearest": Series(
            x=[float(i) for i in range(len(first))],
            y=[float(scores[i]) for i in first],
            x_names=[pool.tasks[i].id for i in first],
            kind="bar",
            x_label="task",
            y_label="score",
            group="nearest tasks",
        ),
        "score curve": Series(
            x=[float(i + 1) for i in range(len(curve))],
            y=[float(scores[i]) for i in curve],
            x_label="rank",
            y_label="score",
            group="score by rank: a steep fall is a good place to cut",
        ),
    }


def _above_null(config: RankConfig, pool: Pool, found: Scored) -> tuple[int, float]:
    """Count tasks nearer to the target than 99 % of random pairs of tasks are to each other.

    The first scorer is asked. Random tasks, two of their instructions each, play the target; where the pool names
    categories, the two tasks of a pair have different ones.
    """
    rng = numpy_generator(config.seed, "null")
    several = len({task.category for task in pool.tasks}) > 1
    queries = rng.choice(len(pool.tasks), size=min(NULL_TASKS, len(pool.tasks)), replace=False)
    said = [pool.tasks[int(i)].instructions[:2] for i in queries]
    pairs = score_pool(
        [text for texts in said for text in texts],
        pool,
        found.names[:1],
        cache=cache_folder(config.cache),
        head=Path(config.head) if config.head else None,
    ).pairs[0]
    owners, start, values = np.array(pool.owners), 0, []
    for query, texts in zip(queries, said, strict=True):
        scores = aggregate(pairs[start : start + len(texts)], owners, len(pool.tasks), config.aggregation)
        start += len(texts)
        own = pool.tasks[int(query)].category
        kept = [i for i, task in enumerate(pool.tasks) if i != query and not (several and task.category == own)]
        values.append(scores[kept])
    limit = float(np.quantile(np.concatenate(values), 0.99))
    return int((found.scores[0] > limit).sum()), limit


def _task_similarity(pool: Pool) -> np.ndarray:
    """Return cosines of the tasks' mean TF-IDF vectors, each task told by its first instruction."""
    first = [task.instructions[0] for task in pool.tasks]
    if len(first) > 3000:
        raise UserError("takes at most 3,000 tasks.", where="--diversify", hint="Drop the option.")
    return build_index(first, "tfidf").score_all(first)


def _write_selection(
    config: RankConfig, run: Run, pool: Pool, scores: np.ndarray, order: np.ndarray, chosen: Sequence[int]
) -> dict[str, Artifact]:
    """Write the whole ranking, the mixture of the chosen tasks, and their examples where asked for."""
    ranking = [{"task": pool.tasks[i].id, "score": float(scores[i])} for i in order]
    write_json(run.artifact("ranking.json"), ranking)
    values = np.array([scores[i] for i in chosen])
    weights = np.exp((values - values.max()) / (MIXTURE_TEMPERATURE * max(float(np.ptp(scores)), 1e-9)))
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
        if not any(pool.tasks[i].examples for i in chosen):
            raise UserError("the chosen tasks have no examples.", where="--num-examples", hint="Drop the option.")
        rows = sample_examples(pool, chosen, config.num_examples * len(chosen), config.seed)
        lines = json_lines({"instruction": a, "input": b, "output": c} for a, b, c in rows)
        write_text(run.artifact("subset.jsonl"), lines)
        artifacts["subset"] = Artifact(
            path="artifacts/subset.jsonl", media_type="application/jsonl", description="Training examples."
        )
    return artifacts


def read_transfers(path: str) -> dict[str, dict[str, float]]:
    """Read measured gains: a CSV with source, target and gain. Returns target -> source -> gain.

    Raises:
        UserError: a column is missing or a gain is no number; the line is named.
    """
    reader = csv.DictReader(io.StringIO(read_text(Path(path)), newline=""))
    lacking = {"source", "target", "gain"} - set(reader.fieldnames or ())
    if lacking:
        raise UserError(f"has no column {sorted(lacking)[0]!r}.", where=path, hint="Needed: source,target,gain.")
    gains: dict[str, dict[str, float]] = {}
    for number, row in enumerate(reader, 2):
        try:
            gain = float(row["gain"])
        except (TypeError, ValueError):
            raise UserError(f"the gain {row['gain']!r} is no number.", where=f"{path}:{number}") from None
        if not np.isfinite(gain):
            raise UserError(f"the gain {row['gain']!r} is not finite.", where=f"{path}:{number}")
        gains.setdefault(row["target"], {})[row["source"]] = gain
    if not gains:
        raise UserError("holds no gain.", where=path)
    return gains


def run_explain(config: ExplainConfig, run: Run) -> Result:
    """Say why the chosen tasks were chosen: deciding pairs, shared terms, and the ranking without each wording.

    Args:
        config: pool, target, scorers and k.
        run: the run.
    """
    target, pool = resolve(config)
    found = score(config, target, pool)
    ids, owners = pool.ids, np.array(pool.owners)
    order = order_by(found.fused)
    chosen = [int(i) for i in order[: config.k]]
    kind: Lexical = next((name for name in LEXICAL if name in found.names), "tfidf")
    index = build_index(pool.texts, kind)
    rows: list[list[Any]] = []
    for number in chosen:
        places = np.flatnonzero(owners == number)
        best = found.pairs[0][:, places]
        row, column = np.unravel_index(int(best.argmax()), best.shape)
        asked, answered = target.instructions[int(row)], pool.texts[int(places[int(column)])]
        shared = ", ".join(f"{name} {share:.2f}" for name, share in index.shared_terms(asked, answered))
        rows.append([ids[number], float(best.max()), shorten(asked), shorten(answered), shared])
    drops = leave_one_out(found, owners, len(ids), config)
    top = [ids[i] for i in chosen]
    lost = [
        (text, [ids[i] for i in order_by(scores)[: config.k]])
        for text, scores in zip(target.instructions, drops, strict=True)
    ]
    changes: list[list[Any]] = [
        [shorten(text), jaccard(top, other), ", ".join(sorted(set(top) - set(other))) or "none"] for text, other in lost
    ]
    categories: dict[str, int] = {}
    for number in chosen:
        name = pool.tasks[number].category or "(none)"
        categories[name] = categories.get(name, 0) + 1
    least = min((row[1] for row in changes), default=1.0)
    first = rows[0]
    tables = {
        "pairs": Table(
            columns=["task", "score", "target's wording", "its nearest wording", f"shared terms ({kind})"],
            rows=rows,
            title="The pair of wordings that decides for each chosen task",
        ),
        "categories": Table(columns=["category", "chosen"], rows=[[a, b] for a, b in categories.items()]),
    }
    if len(target.instructions) > 1:
        tables["without"] = Table(
            columns=["left-out wording", "Jaccard of the first k", "tasks that drop out"],
            rows=changes,
            title="The selection without each of the target's wordings",
        )
    return run.result(
        scalars={
            "num_tasks": Scalar(value=len(ids)),
            "least_leave_one_out_jaccard": Scalar(value=least if len(changes) > 1 else None),
        },
        tables=tables,
        series={
            "chosen categories": Series(
                x=[float(i) for i in range(len(categories))],
                y=[float(value) for value in categories.values()],
                x_names=list(categories),
                kind="bar",
                x_label="category",
                y_label="chosen tasks",
            )
        },
        verdicts=[
            f"{first[0]} comes first because {first[2]!r} is near {first[3]!r}; shared: {first[4] or 'no term'}.",
            _leave_out_verdict(changes, least),
        ],
        limitations=[*pool.notes, *found.notes, INSTRUCTIONS_ALONE],
    )


def _leave_out_verdict(changes: Sequence[Sequence[Any]], least: float) -> str:
    if len(changes) < 2:
        return "The target has one wording, so none can be left out; give more with --target."
    if least == 1.0:
        return "No single wording of the target decides the selection."
    worst = min(changes, key=lambda row: row[1])
    return f"Without {worst[0]!r} the selection keeps a Jaccard of {least:.2f}."


def leave_one_out(found: Scored, owners: np.ndarray, num_tasks: int, config: Any) -> list[np.ndarray]:
    """Return the fused scores without each of the target's wordings (with all of them where there is one)."""
    m = len(found.pairs[0])
    return [
        subset_scores(found, [i for i in range(m) if i != out or m == 1], owners, num_tasks, config) for out in range(m)
    ]


def subset_scores(
    found: Scored,
    rows: Sequence[int],
    owners: np.ndarray,
    num_tasks: int,
    config: Any,
    columns: np.ndarray | None = None,
) -> np.ndarray:
    """Return fused scores from some of the wordings of target (`rows`) and pool (`columns`) alone."""
    kept = np.arange(len(owners)) if columns is None else columns
    scores = [
        aggregate(pairs[list(rows)][:, kept], owners[kept], num_tasks, config.aggregation) for pairs in found.pairs
    ]
    return scores[0] if len(scores) == 1 else fuse(scores)


def run_stability(config: StabilityConfig, run: Run) -> Result:
    """Measure how much of the selection stays when a random half of all wordings is dropped.

    Args:
        config: pool, target, scorers, k and how many halves to try.
        run: the run.
    """
    target, pool = resolve(config)
    found = score(config, target, pool)
    ids, owners = pool.ids, np.array(pool.owners)
    top = rank_ids(found.fused, ids)[: config.k]
    kept_counts = dict.fromkeys(ids, 0)
    values = []
    m = len(target.instructions)
    for number in range(config.num_drops):
        rng = python_random(config.seed, "drop", number)
        rows = sorted(rng.sample(range(m), max(1, m // 2)))
        columns = _half(owners, rng)
        other = rank_ids(subset_scores(found, rows, owners, len(ids), config, columns), ids)[: config.k]
        values.append(jaccard(top, other))
        for name in other:
            kept_counts[name] += 1
    low, high = (float(np.quantile(values, q)) for q in (0.025, 0.975))
    single = m == 1 and len(set(owners.tolist())) == len(owners)
    rows_out: list[list[Any]] = [
        [name, name in top, kept_counts[name] / config.num_drops]
        for name in sorted(kept_counts, key=lambda name: (-kept_counts[name], name))[:SHOWN_ROWS]
    ]
    mean = float(np.mean(values))
    notes = ["Every task and the target have one wording each: there is nothing to drop."] if single else []
    shaky = [name for name in top if kept_counts[name] < 0.5 * config.num_drops]
    return run.result(
        scalars={
            "jaccard": Scalar(value=mean, low=low, high=high),
            "least_jaccard": Scalar(value=float(min(values))),
            "num_unstable": Scalar(value=len(shaky)),
        },
        tables={
            "tasks": Table(
                columns=["task", "chosen with all wordings", "share of halves that choose it"],
                rows=rows_out,
                title=f"{config.num_drops} random halves of the wordings",
            )
        },
        series={
            "kept": Series(
                x=[float(i) for i in range(len(rows_out))],
                y=[float(row[2]) for row in rows_out],
                x_names=[str(row[0]) for row in rows_out],
                kind="bar",
                x_label="task",
                y_label="share of halves that choose it",
            )
        },
        verdicts=[
            f"Half of the wordings choose with a Jaccard of {mean:.2f} [{low:.2f}, {high:.2f}] to the choice of all; "
            + (f"in less than half of the draws: {', '.join(shaky)}." if shaky else "every chosen task stays in most.")
        ],
        limitations=[*pool.notes, *found.notes, *notes],
    )


def _half(owners: np.ndarray, rng: Any) -> np.ndarray:
    """Return a random half of every task's instructions, one at least."""
    kept: list[int] = []
    starts = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
    for start, stop in zip(starts, [*starts[1:], len(owners)], strict=True):
        size = int(stop - start)
        kept += [int(start) + i for i in sorted(rng.sample(range(size), max(1, size // 2)))]
    return np.array(kept)
