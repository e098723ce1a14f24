"""The verbs `explain` and `stability`: why the chosen tasks were chosen, and how firmly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.core.seeding import python_random
from polyloom.methods.select.config import ExplainConfig, StabilityConfig
from polyloom.methods.select.data import Pool
from polyloom.methods.select.lexical import LEXICAL, Lexical, build_index, latent_project, latent_vectors, words
from polyloom.methods.select.method import aggregate, fuse, jaccard, order_by, principal_plane, unit_rows
from polyloom.methods.select.scoring import Scored, rank_ids
from polyloom.methods.select.study import INSTRUCTIONS_ALONE, SHOWN_ROWS, score, shorten
from polyloom.methods.select.target import Target, resolve
from polyloom.runs.folder import Run

MOST_DRAWN, COLOURED, REST = 1500, 3, "other tasks"


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
    kind, rows = _deciding_pairs(target, pool, found, chosen)
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
    drawn, share = pool_map(target.compared, pool, chosen)
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
            "map_variance": Scalar(value=share, unit="share"),
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
            ),
            **drawn,
        },
        verdicts=[
            f"{first[0]} comes first because {first[2]!r} is near {first[3]!r}; shared: {first[4] or 'no term'}.",
            _leave_out_verdict(changes, least),
        ],
        limitations=[*pool.notes, *found.notes, _map_note(share), INSTRUCTIONS_ALONE],
    )


def _deciding_pairs(
    target: Target, pool: Pool, found: Scored, chosen: Sequence[int]
) -> tuple[Lexical, list[list[Any]]]:
    """Return for each chosen task its best pair of wordings and the terms that they share, and by which scorer."""
    owners = np.array(pool.owners)
    kind: Lexical = next((name for name in LEXICAL if name in found.names), "tfidf")
    index = build_index(pool.texts, kind)
    rows: list[list[Any]] = []
    for number in chosen:
        places = np.flatnonzero(owners == number)
        best = found.pairs[0][:, places]
        row, column = np.unravel_index(int(best.argmax()), best.shape)
        asked, answered = target.instructions[int(row)], pool.texts[int(places[int(column)])]
        shared = ", ".join(
            f"{name} {share:.2f}" for name, share in index.shared_terms(target.compared[int(row)], answered)
        )
        rows.append([pool.tasks[number].id, float(best.max()), shorten(asked), shorten(answered), shared])
    return kind, rows


def pool_map(target: Sequence[str], pool: Pool, chosen: Sequence[int]) -> tuple[dict[str, Series], float]:
    """Return the pool as points of a plane, near where instructions are alike, and the share of variance it shows.

    The target, the chosen tasks and the largest categories have a colour each. Of more than 1500 tasks evenly spaced
    ones are drawn, and the chosen.

    Args:
        target: its wordings; they are one point.
        pool: the tasks.
        chosen: numbers of the chosen tasks.
    """
    step = len(pool.tasks) // MOST_DRAWN + 1
    shown = sorted({*range(0, len(pool.tasks), step), *chosen})
    said = [" ".join(pool.tasks[i].instructions) for i in shown]
    if not any(words(text) for text in said):
        return {}, 0.0
    vectors = latent_project([*said, " ".join(target)], *latent_vectors(said))
    points, share = principal_plane(unit_rows(vectors))
    counts = Counter(pool.tasks[i].category for i in shown if pool.tasks[i].category)
    coloured = [name for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:COLOURED]]
    places: dict[str, list[int]] = {name: [] for name in (*coloured, REST)}
    for number, i in enumerate(shown):
        if i not in chosen:
            name = pool.tasks[i].category
            places[name if name in coloured else REST].append(number)
    places |= {"chosen": [shown.index(i) for i in chosen], "target": [len(shown)]}
    return {
        f"map: {name}": Series(
            x=[float(points[i, 0]) for i in rows],
            y=[float(points[i, 1]) for i in rows],
            kind="scatter",
            x_label="first principal axis of the instructions",
            y_label="second principal axis",
            group="the selection among the pool",
        )
        for name, rows in places.items()
        if rows
    }, share


def _map_note(share: float) -> str:
    return f"The map shows {share:.0%} of the instructions' variance: points that lie together may be apart elsewhere."


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
    values, every = [], []
    m = len(target.instructions)
    for number in range(config.num_drops):
        rng = python_random(config.seed, "drop", number)
        rows = sorted(rng.sample(range(m), max(1, m // 2)))
        columns = _half(owners, rng)
        every.append(subset_scores(found, rows, owners, len(ids), config, columns))
        other = rank_ids(every[-1], ids)[: config.k]
        values.append(jaccard(top, other))
        for name in other:
            kept_counts[name] += 1
    low, high = (float(np.quantile(values, q)) for q in (0.025, 0.975))
    single = m == 1 and len(set(owners.tolist())) == len(owners)
    bands, noisy = noise_bands(found.fused, np.stack(every), config.k)
    rows_out = _stability_rows(ids, found.fused, kept_counts, config, bands, noisy)
    mean = float(np.mean(values))
    notes = ["Every task and the target have one wording each: there is nothing to drop."] if single else []
    shaky = [name for name in top if kept_counts[name] < 0.5 * config.num_drops]
    return run.result(
        scalars={
            "jaccard": Scalar(value=mean, low=low, high=high),
            "least_jaccard": Scalar(value=float(min(values))),
            "num_unstable": Scalar(value=len(shaky)),
            "num_in_noise": Scalar(value=int(noisy.sum())),
        },
        tables={
            "tasks": Table(
                columns=[
                    "task",
                    "chosen with all wordings",
                    "share of halves that choose it",
                    "score",
                    "low",
                    "high",
                    "in the noise about the cut",
                ],
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
            + (f"in less than half of the draws: {', '.join(shaky)}." if shaky else "every chosen task stays in most."),
            f"{int(noisy.sum())} tasks lie in the noise about the cut: other wordings could move them over it.",
        ],
        limitations=[*pool.notes, *found.notes, *notes],
    )


def _stability_rows(
    ids: Sequence[str],
    scores: np.ndarray,
    kept_counts: Mapping[str, int],
    config: StabilityConfig,
    bands: np.ndarray,
    noisy: np.ndarray,
) -> list[list[Any]]:
    """Return the tasks that most halves choose, with their score, its interval, and whether the cut lies in it."""
    top = rank_ids(scores, ids)[: config.k]
    place = {name: number for number, name in enumerate(ids)}
    return [
        [
            name,
            name in top,
            kept_counts[name] / config.num_drops,
            float(scores[place[name]]),
            *(float(value) for value in bands[:, place[name]]),
            "yes" if noisy[place[name]] else "",
        ]
        for name in sorted(kept_counts, key=lambda name: (-kept_counts[name], name))[:SHOWN_ROWS]
    ]


def noise_bands(scores: np.ndarray, halves: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each task's score interval over other wordings, and whether it holds the cut behind the first k.

    A random half of n wordings varies as much about the mean of all as that mean varies from sample to sample
    (delete-half jackknife), so that the quantiles of the halves are the interval.

    Args:
        scores: [T] with all wordings.
        halves: [draws, T] with random halves.
        k: how many are chosen.

    Returns:
        [2, T] quantiles 0.025 and 0.975, and [T] whether the middle between the k-th score and the next lies inside;
        none where all tasks are chosen.

    Source: Shao, Wu (1989); spec 7.
    """
    bands = np.quantile(halves, [0.025, 0.975], axis=0)
    falling = np.sort(scores)[::-1]
    if k >= len(falling):
        return bands, np.zeros(len(scores), dtype=bool)
    cut = (falling[k - 1] + falling[k]) / 2
    return bands, (bands[0] <= cut) & (cut <= bands[1])


def _half(owners: np.ndarray, rng: Any) -> np.ndarray:
    """Return a random half of every task's instructions, one at least."""
    kept: list[int] = []
    starts = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
    for start, stop in zip(starts, [*starts[1:], len(owners)], strict=True):
        size = int(stop - start)
        kept += [int(start) + i for i in sorted(rng.sample(range(size), max(1, size // 2)))]
    return np.array(kept)
