"""The verbs on a corpus: index, search, dedupe."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyloom.core.errors import UserError
from polyloom.core.files import lock, read_text, write_json
from polyloom.core.result import Artifact, Cell, Result, Scalar, Table
from polyloom.methods.match.config import DedupeConfig, IndexConfig, SearchConfig
from polyloom.methods.match.data import Pair, read_pairs, read_texts
from polyloom.methods.match.folder import fingerprint, load
from polyloom.methods.match.index import (
    Index,
    Vectors,
    add,
    groups,
    load_index,
    make_index,
    near_duplicates,
    save_index,
)
from polyloom.methods.match.scores import threshold_for
from polyloom.methods.match.training import Trained, is_positive, match_scores
from polyloom.metrics.ranking import average_precision, mean_over_queries, ndcg, recall_at, reciprocal_rank
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

SHOWN = 20


def run_index(config: IndexConfig, run: Run) -> Result:
    """Encode a corpus and keep its vectors; on an existing index, add to it.

    Args:
        config: matcher, corpus, folder and kind.
        run: the run.

    Returns:
        The number of texts, the vectors' size, agreement of the index with brute force.

    Raises:
        UserError: an index of another matcher, ids that it holds already, a matcher without vectors.
        MissingExtra: `hnsw` without usearch.
    """
    pin_threads()
    trained, mark = load(Path(config.model)), fingerprint(Path(config.model))
    folder = Path(config.output)
    ids, texts = read_texts(Path(config.data))
    with lock(folder / ".lock"):
        exists = (folder / "index.json").is_file()
        index = load_index(folder, mark) if exists else None
        if index is not None and index.kind != config.kind:
            what = f"is of kind {index.kind}."
            raise UserError(what, where=str(folder), hint=f"Add with --kind {index.kind}, or build a new one.")
        with run.progress("encode", len(texts)) as advance:
            vectors = trained.vectors(texts)
            advance(len(texts))
        if index is None:
            index = make_index(ids, texts, vectors, mark, config.kind)
        else:
            add(index, ids, texts, vectors)
        save_index(index, folder)
    recall = _agreement(index)
    return run.result(
        scalars={
            "num_texts": Scalar(value=len(index.ids)),
            "num_added": Scalar(value=len(ids)),
            "vector_size": Scalar(value=int(index.vectors.shape[1])),
            "index_bytes": Scalar(value=int(index.vectors.nbytes), unit="B"),
            "recall_at_10_of_brute_force": Scalar(value=recall),
        },
        verdicts=[
            f"The index holds {len(index.ids)} texts, {len(ids)} of them new; its first 10 answers are "
            f"{recall:.1%} of brute force's."
        ],
    )


def _agreement(index: Index, k: int = 10, num_queries: int = 100) -> float:
    """Return the share of brute force's first k rows that the index finds, its own first texts as queries."""
    k = min(k, len(index.ids))
    queries = index.vectors[:num_queries]
    found, _ = index.search(queries, k)
    best = np.argsort(-(queries @ index.vectors.T), axis=1, kind="stable")[:, :k]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(found.tolist(), best.tolist(), strict=True)]))


def run_search(config: SearchConfig, run: Run) -> Result:
    """Find the nearest texts of an index.

    Args:
        config: index, matcher and queries; right answers where they are known.
        run: takes all answers as a file.

    Returns:
        The answers; MAP, MRR, nDCG@10 and recall@10 where right answers are given.

    Raises:
        UserError: no queries, an index of another matcher.
    """
    pin_threads()
    names, queries = [f"query {i + 1}" for i in range(len(config.query))], list(config.query)
    if config.queries:
        more_names, more = read_texts(Path(config.queries))
        names, queries = names + more_names, queries + more
    if not queries:
        raise UserError("there is nothing to look for.", where="--query", hint="Give texts, or a file with --queries.")
    trained, mark = load(Path(config.model)), fingerprint(Path(config.model))
    index = load_index(Path(config.index), mark)
    if config.rerank:
        rows, scores = rerank(load(Path(config.rerank)), index, trained.vectors(queries), queries, config)
    else:
        rows, scores = index.search(trained.vectors(queries), config.k)
    answers = [
        {"query": name, "text": query, "found": [[index.ids[j], index.texts[j], float(s)] for j, s in zip(line, cos)]}  # noqa: B905
        for name, query, line, cos in zip(names, queries, rows, scores, strict=True)
    ]
    write_json(run.artifact("answers.json"), answers)
    shown: list[list[Cell]] = [
        [query, rank + 1, index.ids[j], index.texts[j], float(score)]
        for query, line, cos in list(zip(queries, rows, scores, strict=True))[:SHOWN]
        for rank, (j, score) in enumerate(zip(line, cos, strict=True))
    ]
    scalars = {"num_queries": Scalar(value=len(queries)), "num_texts": Scalar(value=len(index.ids))}
    if config.relevant:
        scalars |= _ranking_scores(Path(config.relevant), names, [[index.ids[j] for j in line] for line in rows])
    best, measure = shown[0], "score" if config.rerank else "cosine"
    return run.result(
        scalars=scalars,
        tables={"answers": Table(columns=["query", "rank", "id", "text", measure], rows=shown, title="Nearest texts")},
        artifacts={
            "answers": Artifact(
                path="artifacts/answers.json", media_type="application/json", description="All answers."
            )
        },
        verdicts=[f"Nearest to {best[0]!r}: {best[3]!r}, {measure} {best[4]:.3f}."],
    )


def rerank(
    second: Trained, index: Index, vectors: Vectors, queries: list[str], config: SearchConfig
) -> tuple[NDArray[np.int64], Vectors]:
    """Return the k best rows and scores of each query by a second matcher, which reads the index's first candidates.

    Raises:
        UserError: the second matcher has no class that means a match.
    """
    rows, _ = index.search(vectors, max(config.k, config.candidates))
    pairs = [Pair(query, index.texts[j], "") for query, line in zip(queries, rows, strict=True) for j in line]
    match = match_scores(second, second.predict(pairs))
    if match is None:
        what = f"none of its classes {', '.join(second.classes)} says that texts match."
        raise UserError(what, where=config.rerank or "")
    scores = np.asarray(match, dtype=np.float32).reshape(rows.shape)
    order = np.argsort(-scores, axis=1, kind="stable")[:, : config.k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def _ranking_scores(path: Path, names: list[str], found: list[list[str]]) -> dict[str, Scalar]:
    right: dict[str, set[str]] = defaultdict(set)
    for number, row in enumerate(read_text(path).split("\n"), start=1):
        cells = row.split()
        if len(cells) in (2, 3, 4):
            # TREC's files have an iteration between the ids and the relevance behind them.
            if len(cells) < 3 or float(cells[-1]) > 0:
                right[cells[0]].add(cells[2] if len(cells) == 4 else cells[1])
        elif cells:
            raise UserError("is no query id and corpus id.", where=f"{path}:{number}")
    lists = []
    for name, line in zip(names, found, strict=True):
        if right[name]:
            # What was not found stands behind the last answer, where it adds nothing to a sum but is counted.
            hits = [float(answer in right[name]) for answer in line]
            lists.append((hits, len(right[name])))
    if not lists:
        raise UserError("knows none of the queries.", where=str(path), hint="Its first column holds their ids.")
    ap = [average_precision(hits) * sum(hits) / total if any(hits) else 0.0 for hits, total in lists]
    recall = [recall_at(hits, 10) * sum(hits) / total if any(hits) else 0.0 for hits, total in lists]
    gains = [ndcg([*hits, *([1.0] * int(total - sum(hits)))], 10) for hits, total in lists]
    return {
        "map": Scalar(value=mean_over_queries(ap)),
        "mrr": Scalar(value=mean_over_queries([reciprocal_rank(hits) for hits, _ in lists])),
        "ndcg_at_10": Scalar(value=mean_over_queries(gains)),
        "recall_at_10": Scalar(value=mean_over_queries(recall)),
        "num_judged": Scalar(value=len(lists)),
    }


def run_dedupe(config: DedupeConfig, run: Run) -> Result:
    """Group the texts of a file that say the same.

    Args:
        config: matcher, texts, and the threshold or the labelled pairs that choose it.
        run: takes the groups as a file.

    Returns:
        The groups and the threshold.

    Raises:
        UserError: no threshold gives the wanted precision.
    """
    pin_threads()
    trained = load(Path(config.model))
    ids, texts = read_texts(Path(config.data))
    threshold = config.threshold
    if config.pairs:
        labelled = read_pairs(Path(config.pairs))
        u = trained.vectors([pair.first for pair in labelled.items])
        v = trained.vectors([pair.second for pair in labelled.items])
        chosen = threshold_for((u * v).sum(1), [is_positive(pair.label) for pair in labelled.items], config.precision)
        if chosen is None:
            what = f"no threshold finds pairs with a precision of {config.precision:g}."
            raise UserError(what, where=config.pairs, hint="Lower --precision, or train a better matcher.")
        threshold = chosen
    pairs = near_duplicates(trained.vectors(texts), threshold)
    found = groups(len(texts), pairs)
    write_json(run.artifact("groups.json"), [[[ids[i], texts[i]] for i in group] for group in found])
    rows: list[list[Cell]] = [
        [number + 1, ids[i], texts[i]] for number, group in enumerate(found[:SHOWN]) for i in group[:SHOWN]
    ]
    surplus = sum(len(group) - 1 for group in found)
    return run.result(
        scalars={
            "num_texts": Scalar(value=len(texts)),
            "num_groups": Scalar(value=len(found)),
            "num_surplus": Scalar(value=surplus),
            "threshold": Scalar(value=threshold),
        },
        tables={"groups": Table(columns=["group", "id", "text"], rows=rows, title="Texts that say the same")},
        artifacts={
            "groups": Artifact(path="artifacts/groups.json", media_type="application/json", description="All groups.")
        },
        verdicts=[
            f"{surplus} of {len(texts)} texts repeat another one: {len(found)} groups at a cosine of {threshold:.3f}."
        ],
        limitations=["A group is a chain of near pairs: its ends may be farther apart than the threshold."],
    )
