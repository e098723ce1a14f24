"""The verb `rank`, and what the other verbs share with it: scoring a pool, tables, measured transfers."""

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
from polyloom.core.files import read_text
from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.core.seeding import numpy_generator
from polyloom.methods.select.choice import Choice, write_selection
from polyloom.methods.select.config import RankConfig
from polyloom.methods.select.data import MAX_EXAMPLES, Pool
from polyloom.methods.select.method import (
    aggregate,
    kendall_tau,
    mix_prior,
    overlap,
    popularity,
    ranks_of,
)
from polyloom.methods.select.scoring import Scored, cache_folder, nearness_of, rank_ids, score_pool
from polyloom.methods.select.target import FEW_EXAMPLES, Target, language_notes, resolve, without_source
from polyloom.runs.folder import Run

SHOWN_ROWS = 20
SHOWN_CHARACTERS = 140
NULL_TASKS = 10
PROBED_EXAMPLES = 80
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
    target, pool = resolve(config, _num_read(config))
    if config.exclude_same_source:
        pool = without_source(pool, target)
    found = score(config, target, pool)
    notes = [*pool.notes, *found.notes, *language_notes(target, pool, config.scorers)]
    scores = _with_prior(config, target, pool, found, notes) if config.transfers else found.fused
    if config.k > len(pool.tasks):
        notes.append(f"k = {config.k} is more than the pool holds: all {len(pool.tasks)} tasks are returned.")
    seconds = time.process_time() - started
    shown = {"ranking_cpu_seconds": Scalar(value=round(seconds, 3), unit="s")}
    choice = Choice.first(config, pool, scores)
    tables: dict[str, Table] = {}
    series = _rank_series(pool, scores, choice.order)
    verdicts: list[str] = []
    if config.rerank or config.num_probes:
        choice = _look_at_examples(config, run, target, pool, choice, (shown, tables, series, verdicts, notes))
    artifacts = write_selection(config, run, target, pool, scores, choice, notes)
    same = [pool.tasks[i].id for i in choice.chosen if target.source and pool.tasks[i].source == target.source]
    if same:
        notes.append(f"{len(same)} chosen tasks are of the target's own data set ({target.source}): {', '.join(same)}.")
    above, limit = _above_null(config, pool, found)
    names = [pool.tasks[i].id for i in choice.chosen]
    return run.result(
        scalars={
            "num_tasks": Scalar(value=len(pool.tasks)),
            "num_instructions": Scalar(value=len(pool.texts)),
            "num_target_instructions": Scalar(value=len(target.instructions)),
            "num_chosen": Scalar(value=len(choice.chosen)),
            "num_encoded": Scalar(value=found.num_encoded),
            **choice.gaps(),
            "num_above_null": Scalar(value=above),
            "null_limit": Scalar(value=limit),
            **shown,
            "peak_memory": Scalar(value=round(peak_megabytes(), 1), unit="MB"),
            **agreement(found, pool.ids, config.k),
        },
        tables={"ranking": ranking_table(target, pool, found, scores, choice.order, set(choice.chosen)), **tables},
        series=series,
        artifacts=artifacts,
        verdicts=[
            f"Of {len(pool.tasks)} tasks, {', '.join(names[:SHOWN_ROWS])} are "
            + ("chosen for" if config.rerank else "nearest to")
            + f" {target.name!r} ({' + '.join([*found.names, *filter(None, [config.rerank])])}, {config.aggregation}).",
            f"{above} tasks are nearer than 99 % of random pairs of tasks"
            + (" of different categories." if len({task.category for task in pool.tasks}) > 1 else "."),
            *verdicts,
        ],
        limitations=[*notes, INSTRUCTIONS_ALONE],
    )


def _num_read(config: RankConfig) -> int:
    """Return how many examples of each task the options need.

    Raises:
        UserError: a way to pick examples is given, and not how many.
    """
    if config.pick == "weighted" and not config.num_examples:
        raise UserError("needs --num-examples.", where="--pick weighted", hint="Say how many of each chosen task.")
    if config.pick == "weighted":
        return MAX_EXAMPLES
    few = PROBED_EXAMPLES if config.num_probes else FEW_EXAMPLES if config.rerank else 0
    return max(few, min(config.num_examples, MAX_EXAMPLES))


def _with_prior(config: RankConfig, target: Target, pool: Pool, found: Scored, notes: list[str]) -> np.ndarray:
    """Return the scores with measured gains mixed in."""
    gains = read_transfers(str(config.transfers))
    near = nearness_of(target.compared, pool, list(gains), config.scorers[0], cache_folder(config.cache))
    prior = popularity(gains, target.name, pool.ids, near if config.prior == "pivots" else None)
    if not np.isfinite(prior).any():
        raise UserError("measures no task of the pool.", where=str(config.transfers), hint="Its sources are task ids.")
    notes.append(f"{int(np.isfinite(prior).sum())} of {len(pool.tasks)} tasks have a measured prior.")
    return mix_prior(found.fused, prior, config.prior_weight)


Shown = tuple[dict[str, Scalar], dict[str, Table], dict[str, Series], list[str], list[str]]


def _look_at_examples(config: RankConfig, run: Run, target: Target, pool: Pool, choice: Choice, shown: Shown) -> Choice:
    """Return the choice of the second stage, and add what it and the probes say to what is shown."""
    from polyloom.methods.select.reranking import SMALL, probe, second_stage

    scalars, tables, series, verdicts, notes = shown
    if config.rerank:
        stage = second_stage(config, run, target, pool, [int(i) for i in choice.order])
        choice = Choice.among(config, pool, choice.order, stage.places, stage.values)
        scalars |= stage.scalars
        tables |= stage.tables
        series |= stage.series
        verdicts.append(stage.verdict)
    if config.num_probes:
        more, tables["probes"], verdict = probe(
            config, run, target, pool, [int(i) for i in choice.order], choice.chosen
        )
        scalars |= more
        verdicts.append(verdict)
    if config.model == "tiny":
        notes.append(SMALL)
    return choice


def score(config: Any, target: Target, pool: Pool) -> Scored:
    """Score a pool as a configuration with scorers, aggregation, cache and head says."""
    return score_pool(
        target.compared,
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
