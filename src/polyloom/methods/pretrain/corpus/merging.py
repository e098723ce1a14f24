"""The passes over many documents: exact copies, repeated paragraphs, near duplicates. Memory is bounded by one part.

What is kept never depends on how the input was cut or in which order it was read: of equal texts the one whose
id has the smallest hash stays, of near duplicates the one whose text has the smallest hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyloom.data.duplicates import (
    band_hashes,
    connected_components,
    hash_text,
    jaccard,
    minhash,
    permutations,
    shingles,
)
from polyloom.data.scripts import is_space_free
from polyloom.data.shards import read_shard, write_shard
from polyloom.methods.pretrain.corpus.cleaning import NUM_PARTITIONS, WHOLE
from polyloom.methods.pretrain.corpus.tally import Tally, cell_of
from polyloom.methods.pretrain.corpus.tasks import Plan, Summary

# In a group of candidates each is compared with at most so many that are already known to differ.
MAX_REPRESENTATIVES = 64
_DROP = np.dtype([("task", "<u4"), ("row", "<u4"), ("paragraph", "<u4")])
_NEAR = np.dtype([("task", "<u4"), ("row", "<u4"), ("kept", "<i8")])


def merge_hashes(plan: Plan, partition: int, folder: Path) -> Summary:
    """Find every hash of one range that occurs more than once; all but its first owner lose it."""
    name = f"hashes-{partition:02d}.npy"
    rows = np.concatenate([np.load(plan.output("clean", task) / name) for task in range(len(plan.parts))])
    whole = rows["paragraph"] == WHOLE
    order = np.lexsort((rows["paragraph"], rows["id"], rows["key"], ~whole, rows["hash"]))
    rows = rows[order]
    again = np.zeros(len(rows), dtype=bool)
    # A whole text and a paragraph never share a hash but by a collision, which is no repetition.
    again[1:] = (rows["hash"][1:] == rows["hash"][:-1]) & (
        (rows["paragraph"][1:] == WHOLE) == (rows["paragraph"][:-1] == WHOLE)
    )
    dropped = np.zeros(int(again.sum()), dtype=_DROP)
    for field in ("task", "row", "paragraph"):
        dropped[field] = rows[field][again]
    np.save(folder / "dropped.npy", np.sort(dropped, order=["task", "row", "paragraph"]), allow_pickle=False)
    return {"num_hashes": len(rows), "num_dropped": len(dropped)}


def _dropped_of(plan: Plan, task: int, num_partitions: int) -> dict[int, set[int]]:
    """Return for each row of a task the paragraphs that it loses; `WHOLE` for the document."""
    found: dict[int, set[int]] = {}
    for partition in range(num_partitions):
        table = np.load(plan.output("merge", partition) / "dropped.npy", mmap_mode="r")
        first, last = np.searchsorted(table["task"], [task, task + 1])
        for row, paragraph in zip(table["row"][first:last], table["paragraph"][first:last], strict=True):
            found.setdefault(int(row), set()).add(int(paragraph))
    return found


def sign_part(plan: Plan, task: int, folder: Path) -> Summary:
    """Take exact copies and repeated paragraphs out of one part, and compute its signatures."""
    config = plan.config
    losses = _dropped_of(plan, task, NUM_PARTITIONS)
    tally = Tally()
    signer = _Signer(plan)

    def rows() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(read_shard(plan.output("clean", task) / "documents.jsonl.zst")):
            cell = cell_of(row["domain"], row["language"])
            lost = losses.get(number, set())
            if WHOLE in lost:
                tally.drop("exact_duplicate", cell, row["text"], row["id"])
                continue
            tally.keep("exact", cell, row["text"])
            key = hash_text(row["text"], "document")
            if lost:
                kept = [line for i, line in enumerate(row["text"].split("\n")) if i not in lost]
                row["text"], original = "\n".join(kept).strip("\n"), row["text"]
                tally.count("paragraphs", "dropped", len(lost))
                if not row["text"].strip():
                    tally.drop("repeated_paragraphs", cell, original, row["id"])
                    continue
            tally.keep("paragraphs", cell, row["text"])
            signer.add(row["text"], key, hash_text(row["id"]))
            yield row

    num_documents = write_shard(folder / "documents.jsonl.zst", rows(), "jsonl.zst")
    signer.save(folder, with_shingles=config.near_duplicates and config.min_jaccard > 0)
    return {"num_documents": num_documents, "tally": tally.as_json()}


class _Signer:
    """Collects keys, band hashes and shingles of one part's documents."""

    def __init__(self, plan: Plan) -> None:
        self.config = plan.config
        self.a, self.b = permutations(plan.config.num_bands * plan.config.num_rows)
        self.keys: list[tuple[int, int]] = []
        self.bands: list[NDArray[np.uint64]] = []
        self.shingles: list[NDArray[np.uint32]] = []

    def add(self, text: str, key: int, id_hash: int) -> None:
        """Sign one document."""
        self.keys.append((key, id_hash))
        if not self.config.near_duplicates:
            return
        found = shingles(text, self.config.shingle_words, space_free=is_space_free(text))
        self.bands.append(band_hashes(minhash(found, self.a, self.b), self.config.num_bands))
        self.shingles.append(np.unique(found.astype(np.uint32)))

    def save(self, folder: Path, *, with_shingles: bool) -> None:
        """Write the arrays."""
        np.save(folder / "keys.npy", np.array(self.keys, dtype=np.uint64).reshape(-1, 2), allow_pickle=False)
        if not self.config.near_duplicates:
            return
        bands = np.array(self.bands, dtype=np.uint64).reshape(-1, self.config.num_bands)
        # One band is one stretch of the file: who reads it reads no other.
        np.save(folder / "bands.npy", np.ascontiguousarray(bands.T), allow_pickle=False)
        if with_shingles:
            sizes = np.cumsum([0, *map(len, self.shingles)])
            joined = np.concatenate(self.shingles) if self.shingles else np.zeros(0, dtype=np.uint32)
            np.save(folder / "shingles.npy", joined, allow_pickle=False)
            np.save(folder / "offsets.npy", sizes, allow_pickle=False)


def first_numbers(plan: Plan) -> NDArray[np.int64]:
    """Return the number of each part's first document when all are counted through, and their total at the end."""
    sizes = [plan.summary("sign", task)["num_documents"] for task in range(len(plan.parts))]
    return np.cumsum([0, *sizes])


def compare_band(plan: Plan, band: int, folder: Path) -> Summary:
    """Group the documents with equal hashes in one band, and confirm each candidate by its exact Jaccard index."""
    tasks = range(len(plan.parts))
    hashes = np.concatenate([np.load(plan.output("sign", t) / "bands.npy", mmap_mode="r")[band] for t in tasks])
    keys = np.concatenate([np.load(plan.output("sign", t) / "keys.npy", mmap_mode="r") for t in tasks])
    order = np.lexsort((keys[:, 1], keys[:, 0], hashes))
    ordered = hashes[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if len(ordered) else np.zeros(0, int)
    ends = np.append(starts[1:], len(ordered))
    sets = _Shingles(plan)
    edges: list[tuple[int, int]] = []
    num_candidates = 0
    for first, last in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
        members = order[first:last].tolist()
        num_candidates += len(members) - 1
        edges += _confirmed(members, sets, plan.config.min_jaccard)
    np.save(folder / "edges.npy", np.array(edges, dtype=np.int64).reshape(-1, 2), allow_pickle=False)
    return {"num_candidates": num_candidates, "num_edges": len(edges)}


def _confirmed(members: list[int], sets: _Shingles, least: float) -> list[tuple[int, int]]:
    """Join each member to the first representative that it resembles; members come by their keys."""
    if least <= 0:
        return [(members[0], other) for other in members[1:]]
    edges = []
    representatives = [members[0]]
    for member in members[1:]:
        mine = sets[member]
        near = next((r for r in representatives if jaccard(sets[r], mine) >= least), None)
        if near is not None:
            edges.append((near, member))
        elif len(representatives) < MAX_REPRESENTATIVES:
            representatives.append(member)
    return edges


class _Shingles:
    """The shingle sets of all documents by their running numbers, read from the disk where they are asked for."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.first = first_numbers(plan)
        self.opened: dict[int, tuple[NDArray[np.uint32], NDArray[np.int64]]] = {}

    def __getitem__(self, number: int) -> NDArray[np.uint32]:
        task = int(np.searchsorted(self.first, number, side="right")) - 1
        if task not in self.opened:
            folder = self.plan.output("sign", task)
            self.opened[task] = np.load(folder / "shingles.npy", mmap_mode="r"), np.load(folder / "offsets.npy")
        joined, offsets = self.opened[task]
        row = number - int(self.first[task])
        return np.asarray(joined[offsets[row] : offsets[row + 1]])


def join_duplicates(plan: Plan, task: int, folder: Path) -> Summary:
    """Join the confirmed pairs of all bands to clusters; of each the document with the smallest key stays."""
    first = first_numbers(plan)
    bands = range(plan.config.num_bands)
    edges = np.concatenate([np.load(plan.output("bands", band) / "edges.npy") for band in bands])
    edges = np.unique(edges, axis=0)
    keys = np.concatenate([np.load(plan.output("sign", t) / "keys.npy") for t in range(len(plan.parts))])
    numbers = np.unique(edges)
    # Nodes are ranked by key, so that the smallest node of a component is the document that stays.
    by_key = numbers[np.lexsort((keys[numbers, 1], keys[numbers, 0]))]
    rank = np.empty(len(numbers), dtype=np.int64)
    rank[np.searchsorted(numbers, by_key)] = np.arange(len(numbers))
    root = connected_components(len(numbers), rank[np.searchsorted(numbers, edges)])
    lost = np.flatnonzero(root != np.arange(len(root)))
    table = np.zeros(len(lost), dtype=_NEAR)
    table["task"] = np.searchsorted(first, by_key[lost], side="right") - 1
    table["row"] = by_key[lost] - first[table["task"]]
    table["kept"] = by_key[root[lost]]
    np.save(folder / "near.npy", np.sort(table, order=["task", "row"]), allow_pickle=False)
    sizes = np.unique(root[lost], return_counts=True)[1] + 1
    return {"num_pairs": len(edges), "num_clusters": len(sizes), "largest_cluster": int(sizes.max(initial=0))}


def near_duplicates_of(plan: Plan, task: int) -> set[int]:
    """Return the rows of a part that near duplicates with smaller keys replace."""
    if not plan.config.near_duplicates:
        return set()
    table = np.load(plan.output("join", 0) / "near.npy", mmap_mode="r")
    first, last = np.searchsorted(table["task"], [task, task + 1])
    return set(table["row"][first:last].tolist())
