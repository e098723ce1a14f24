"""A corpus as vectors on the disk: exact or graph search, adding, and groups of near duplicates."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from polyloom.core.errors import MissingExtra, UserError
from polyloom.core.files import json_lines, read_json, read_text, replace_atomically, write_json, write_text
from polyloom.data.duplicates import connected_components

Kind = Literal["exact", "hnsw"]
Vectors = NDArray[np.float32]
BLOCK_ROWS = 2048


@dataclass
class Index:
    """Texts with ids, and their vectors of length 1 [texts, size]."""

    ids: list[str]
    texts: list[str]
    vectors: Vectors
    fingerprint: str
    kind: Kind = "exact"
    graph: Any = None

    def search(self, queries: Vectors, k: int) -> tuple[NDArray[np.int64], Vectors]:
        """Return the rows and cosines [queries, k] of the nearest texts, the nearest first."""
        k = min(k, len(self.ids))
        if self.kind == "exact":
            return exact_search(self.vectors, queries, k)
        found = self.graph.search(queries, k)
        rows = np.asarray(found.keys, dtype=np.int64).reshape(len(queries), k)
        scores = np.asarray(1 - found.distances, dtype=np.float32).reshape(len(queries), k)
        return rows, scores


def exact_search(vectors: Vectors, queries: Vectors, k: int) -> tuple[NDArray[np.int64], Vectors]:
    """Return the k rows with the largest inner product for each query; equal ones in the order of their rows.

    Args:
        vectors: [texts, size].
        queries: [queries, size].
        k: at most the number of texts.
    """
    rows = np.zeros((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), BLOCK_ROWS):
        scores = queries[start : start + BLOCK_ROWS] @ vectors.T
        if k < scores.shape[1]:
            # Everything above the k-th largest value, and the first rows that equal it.
            edge = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
            for i, line in enumerate(scores):
                near = np.flatnonzero(line >= edge[i])
                rows[start + i] = near[np.lexsort((near, -line[near]))[:k]]
        else:
            order = np.arange(scores.shape[1])
            for i, line in enumerate(scores):
                rows[start + i] = np.lexsort((order, -line))
    return rows, np.asarray(np.einsum("qd,qkd->qk", queries, vectors[rows]), dtype=np.float32)


def _graph(size: int) -> Any:
    try:
        from usearch.index import Index as Graph
    except ImportError as error:
        raise MissingExtra("usearch", extra="search") from error
    return Graph(ndim=size, metric="cos", dtype="f32")


def _extend(graph: Any, keys: NDArray[np.int64], vectors: Vectors) -> None:
    # One thread: several race for the links of a young graph, which then differs from run to run and can lose a node.
    graph.add(keys, vectors, threads=1)


def make_index(ids: Sequence[str], texts: Sequence[str], vectors: Vectors, fingerprint: str, kind: Kind) -> Index:
    """Build an index.

    Raises:
        MissingExtra: `hnsw` without usearch.
    """
    index = Index(list(ids), list(texts), vectors, fingerprint, kind)
    if kind == "hnsw":
        index.graph = _graph(vectors.shape[1])
        _extend(index.graph, np.arange(len(ids)), vectors)
    return index


def add(index: Index, ids: Sequence[str], texts: Sequence[str], vectors: Vectors) -> None:
    """Add texts to an index.

    Raises:
        UserError: an id that it holds already.
    """
    held = set(index.ids)
    twice = [name for name in ids if name in held]
    if twice:
        what = f"the index holds the id {twice[0]!r} already ({len(twice)} such ids)."
        raise UserError(what, hint="Give the new texts ids of their own: id<tab>text.")
    if index.graph is not None:
        _extend(index.graph, np.arange(len(index.ids), len(index.ids) + len(ids)), vectors)
    index.ids += ids
    index.texts += texts
    index.vectors = np.concatenate([index.vectors, vectors])


def save_index(index: Index, folder: Path) -> None:
    """Write an index; the manifest comes last, so that a torn one is not read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)
    with replace_atomically(folder / "vectors.safetensors") as temporary:
        save_file({"vectors": index.vectors}, str(temporary))
    write_text(folder / "texts.jsonl", json_lines(zip(index.ids, index.texts, strict=True)))
    if index.graph is not None:
        with replace_atomically(folder / "graph.usearch") as temporary:
            index.graph.save(str(temporary))
    size = int(index.vectors.shape[1])
    write_json(folder / "index.json", {"model": index.fingerprint, "kind": index.kind, "size": size})


def load_index(folder: Path, fingerprint: str) -> Index:
    """Read an index back for the matcher with this fingerprint.

    Raises:
        UserError: no index there, or one that another matcher built.
        MissingExtra: a graph without usearch.
    """
    if not (folder / "index.json").is_file():
        raise UserError("holds no index.", where=str(folder), hint="Build one with: polyloom match index")
    value = read_json(folder / "index.json")
    if value["model"] != fingerprint:
        what = "was built by another matcher: its vectors mean something else."
        raise UserError(what, where=str(folder), hint="Name the matcher that built it, or build the index anew.")
    lines = [json.loads(line) for line in read_text(folder / "texts.jsonl").split("\n") if line]
    vectors = load_file(folder / "vectors.safetensors")["vectors"]
    index = Index([a for a, _ in lines], [b for _, b in lines], vectors, fingerprint, value["kind"])
    if index.kind == "hnsw":
        index.graph = _graph(value["size"])
        index.graph.load(str(folder / "graph.usearch"))
    return index


def near_duplicates(vectors: Vectors, threshold: float) -> list[tuple[int, int, float]]:
    """Return all pairs of rows i < j whose inner product is at least the threshold."""
    pairs = []
    for start in range(0, len(vectors), BLOCK_ROWS):
        scores = vectors[start : start + BLOCK_ROWS] @ vectors.T
        for i, j in zip(*np.nonzero(scores >= threshold), strict=True):
            if start + i < j:
                pairs.append((int(start + i), int(j), float(scores[i, j])))
    return pairs


def groups(size: int, pairs: Sequence[tuple[int, int, float]]) -> list[list[int]]:
    """Return the connected groups of at least two rows, in the order of their first rows."""
    members: dict[int, list[int]] = defaultdict(list)
    for i, root in enumerate(connected_components(size, [(i, j) for i, j, _ in pairs]).tolist()):
        members[root].append(i)
    return [group for _, group in sorted(members.items()) if len(group) > 1]
