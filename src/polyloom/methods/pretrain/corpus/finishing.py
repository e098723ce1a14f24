"""The last passes: decontamination, placeholders, shares, and shards in an order that nothing but the texts decides."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from polyloom.core.errors import UserError, closest
from polyloom.data.duplicates import hash_text, mix
from polyloom.data.shards import read_shard, write_shard
from polyloom.methods.pretrain.corpus.merging import near_duplicates_of
from polyloom.methods.pretrain.corpus.private_data import replace_private
from polyloom.methods.pretrain.corpus.protecting import Protected
from polyloom.methods.pretrain.corpus.tally import Tally, cell_of
from polyloom.methods.pretrain.corpus.tasks import Plan, Summary

_ALL = float(1 << 64)


def finish_part(plan: Plan, task: int, folder: Path) -> Summary:
    """Take near duplicates and contaminated documents out of one part, put placeholders in, sort into buckets."""
    config = plan.config
    near = near_duplicates_of(plan, task)
    protected = Protected.load(plan) if config.protect else None
    tally = Tally()
    with ExitStack() as stack:
        # Line-buffered text is small beside the shard it becomes; buckets are read back once.
        buckets = [
            stack.enter_context((folder / f"bucket-{n:05d}.jsonl").open("w", encoding="utf-8"))
            for n in range(plan.num_buckets)
        ]
        for number, row in enumerate(read_shard(plan.output("sign", task) / "documents.jsonl.zst")):
            cell = cell_of(row["domain"], row["language"])
            if number in near:
                tally.drop("near_duplicate", cell, row["text"], row["id"])
                continue
            if config.near_duplicates:
                tally.keep("minhash", cell, row["text"])
            if protected is not None and not _decontaminate(row, protected, config.contaminated, tally, cell):
                continue
            if config.private:
                row["text"], found = replace_private(row["text"])
                for kind, times in found.items():
                    tally.count("placeholders", kind, times)
            key = hash_text(row["text"], "order")
            tally.count("documents", cell)
            tally.count("bytes", cell, len(row["text"].encode()))
            bucket = key * plan.num_buckets >> 64
            buckets[bucket].write(json.dumps({"key": key, **row}, ensure_ascii=False) + "\n")
    return {"tally": tally.as_json()}


def _decontaminate(row: dict[str, Any], protected: Protected, how: str, tally: Tally, cell: str) -> bool:
    """Drop or cut a document that shares a 13-gram with a protected file; returns whether something stays."""
    name = protected.hit(row["text"])
    if name is not None:
        tally.count("contamination", name)
        left = protected.cut(row["text"]) if how == "cut" else ""
        if not left.strip():
            tally.drop("contaminated", cell, row["text"], row["id"], name)
            return False
        row["text"] = left
    tally.keep("decontaminate", cell, row["text"])
    return True


def normalised_shares(shares: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """Return the share of each cell that there is, adding to 1.

    A share of a domain is divided among its languages by their bytes; a share of domain/language stands for itself.

    Args:
        shares: domain or domain/language -> share.
        sizes: bytes of each cell.

    Raises:
        UserError: a name that no document has, or nothing above 0.
    """
    if not shares:
        total = sum(sizes.values())
        return {cell: size / total for cell, size in sizes.items()}
    result = dict.fromkeys(sizes, 0.0)
    domains = {cell.rpartition("/")[0] for cell in sizes}
    for name, share in shares.items():
        cells = [name] if name in sizes else [c for c in sizes if c.rpartition("/")[0] == name and c not in shares]
        if not cells:
            raise UserError(
                f"no document of {name!r} is left to take a share from.",
                where="--shares",
                hint=closest(name, [*sizes, *domains]),
            )
        weight = sum(sizes[cell] for cell in cells)
        for cell in cells:
            result[cell] += share * sizes[cell] / weight
    total_share = sum(result.values())
    if total_share <= 0:
        raise UserError("all shares are 0.", where="--shares", hint="Give at least one domain a share.")
    return {cell: share / total_share for cell, share in result.items()}


def kept_fractions(shares: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """Return what fraction of each cell to keep so that the shares hold and as much text as possible stays.

    No text is repeated here: the cell that is scarcest for its share is kept whole and bounds the total.
    """
    total = min(sizes[cell] / share for cell, share in shares.items() if share > 0)
    return {cell: min(1.0, share * total / sizes[cell]) for cell, share in shares.items()}


def decide_shares(plan: Plan, task: int, folder: Path) -> Summary:
    """Decide what fraction of each cell is written."""
    sizes: dict[str, int] = {}
    for part in range(len(plan.parts)):
        for cell, size in plan.summary("finish", part)["tally"]["counts"].get("bytes", {}).items():
            sizes[cell] = sizes.get(cell, 0) + size
    sizes = dict(sorted(sizes.items()))
    if not sizes:
        return {"sizes": {}, "shares": {}, "fractions": {}}
    shares = normalised_shares(plan.config.shares, sizes)
    fractions = kept_fractions(shares, sizes) if plan.config.shares else dict.fromkeys(sizes, 1.0)
    return {"sizes": sizes, "shares": shares, "fractions": fractions}


@dataclass(frozen=True)
class _Chooser:
    """Keeps a fraction of each cell by a hash of the text, so that the choice is the same however it is counted."""

    fractions: Mapping[str, float]

    def keeps(self, cell: str, key: int) -> bool:
        """Whether a document is inside its cell's fraction."""
        fraction = self.fractions[cell]
        return fraction >= 1.0 or int(mix(np.array([key], dtype=np.uint64))[0]) < fraction * _ALL


class _Tokens:
    """Counts tokens where a tokenizer is given."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @cached_property
    def tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        file = (self.folder or Path()) / "tokenizer.json"
        if not file.is_file():
            raise UserError("holds no tokenizer.json.", where=str(self.folder), hint="Name a tokenizer's folder.")
        return Tokenizer.from_file(str(file))

    def count(self, texts: list[str]) -> int:
        """Return the tokens of texts; 0 without a tokenizer."""
        if self.folder is None:
            return 0
        return sum(len(e.ids) for e in self.tokenizer.encode_batch(texts, add_special_tokens=False))


def shard_name(cell: str, bucket: int, format: str) -> str:
    """Return a shard's path below the output folder: domain/language/number.format.

    Names come from the input: one that could leave the folder, or that no file system takes, is written in safe
    characters with a hash that keeps it apart from others.
    """
    return "/".join([*map(_safe, cell.split("/")), f"{bucket:05d}.{format}"])


def _safe(name: str) -> str:
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".")[:60]
    return safe if safe == name and safe else f"{safe}-{hash_text(name):016x}"


def write_bucket(plan: Plan, bucket: int, folder: Path) -> Summary:
    """Write the shards of one bucket: for each cell its documents in the order of their hashes."""
    chooser = _Chooser(plan.summary("shares", 0)["fractions"])
    cells: dict[str, list[dict[str, Any]]] = {}
    for row in _bucket_rows(plan, bucket):
        cell = cell_of(row["domain"], row["language"])
        if chooser.keeps(cell, row["key"]):
            cells.setdefault(cell, []).append(row)
    tokens = _Tokens(plan.config.tokenizer)
    written: dict[str, dict[str, Any]] = {}
    for cell, rows in sorted(cells.items()):
        rows.sort(key=lambda row: (row.pop("key"), row["id"]))
        name = shard_name(cell, bucket, plan.config.format)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_shard(folder / name, rows, plan.config.format)
        texts = [row["text"] for row in rows]
        written[name] = {
            "cell": cell,
            "documents": len(rows),
            "bytes": sum(len(text.encode()) for text in texts),
            "tokens": tokens.count(texts),
        }
    return {"written": written}


def _bucket_rows(plan: Plan, bucket: int) -> Iterator[dict[str, Any]]:
    for task in range(len(plan.parts)):
        yield from read_shard(plan.output("finish", task) / f"bucket-{bucket:05d}.jsonl")
