"""Keeping test sets out of training text: 13-grams of what is protected, and where they occur."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from polyloom.core.errors import UserError
from polyloom.data.crawl import BadRow, Reading, list_parts, open_stream, read_part
from polyloom.data.duplicates import ngram_hashes
from polyloom.data.scripts import is_space_free, normalise, run_characters
from polyloom.methods.pretrain.corpus.tasks import Plan, Summary

NGRAM_WORDS = 13
_NO_WORD = regex.compile(r"[^\p{L}\p{N}\p{M}]+")


def plain_words(text: str) -> str:
    """Return a text's words in lower case, without punctuation, single spaces between them."""
    return " ".join(_NO_WORD.sub(" ", normalise(text).lower()).split())


def grams(text: str) -> NDArray[np.uint64]:
    """Return the hashes of a text's 13-grams of plain words (runs of characters without spaces); none if shorter."""
    words = plain_words(text)
    space_free = is_space_free(words)
    size = len(words.replace(" ", "")) if space_free else words.count(" ") + bool(words)
    least = round(run_characters(words) * NGRAM_WORDS) if space_free else NGRAM_WORDS
    return ngram_hashes(words, NGRAM_WORDS, space_free=space_free) if size >= least else np.zeros(0, dtype=np.uint64)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def protected_texts(path: str) -> Iterator[tuple[str, str]]:
    """Yield (file, text) of what a file or folder holds: of JSON lines every string, of other formats the documents.

    Raises:
        UserError: a path that is absent, or a row that cannot be read: a test set must be protected whole.
    """
    for part in list_parts([path], split_bytes=1 << 62):
        if ".jsonl" in part.path:
            with open_stream(Path(part.path)) as stream:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield from ((part.name, text) for text in _strings(_row(part.path, number, line)))
            continue
        for found in read_part(part, Reading()):
            if isinstance(found, BadRow):
                raise UserError(f"cannot be protected: {found.reason}.", where=f"--protect {found.where}")
            yield part.name, found.text


def _row(path: str, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UserError("cannot be protected: no JSON.", where=f"--protect {path}:{number}") from error


def collect_protected(plan: Plan, task: int, folder: Path) -> Summary:
    """Hash all 13-grams of the protected files, each with the file that it is from."""
    found: dict[str, list[NDArray[np.uint64]]] = {}
    num_texts = num_short = 0
    for path in plan.config.protect:
        for name, text in protected_texts(path):
            num_texts += 1
            hashes = grams(text)
            num_short += not len(hashes)
            found.setdefault(name, []).append(hashes)
    names = sorted(found)
    hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *(h for name in names for h in found[name])])
    files = np.concatenate([np.full(sum(map(len, found[name])), i) for i, name in enumerate(names)] or [np.zeros(0)])
    hashes, first = np.unique(hashes, return_index=True)
    np.save(folder / "hashes.npy", hashes, allow_pickle=False)
    np.save(folder / "files.npy", files[first].astype(np.int64), allow_pickle=False)
    return {"names": names, "num_texts": num_texts, "num_short": num_short, "num_ngrams": len(hashes)}


@dataclass(frozen=True)
class Protected:
    """Sorted hashes of protected 13-grams, and the file of each."""

    hashes: NDArray[np.uint64]
    files: NDArray[np.int64]
    names: list[str]

    @classmethod
    def load(cls, plan: Plan) -> Protected:
        """Read what `collect_protected` wrote."""
        folder = plan.output("protect", 0)
        names = plan.summary("protect", 0)["names"]
        return cls(np.load(folder / "hashes.npy"), np.load(folder / "files.npy"), names)

    def hit(self, text: str) -> str | None:
        """Return the first protected file (by name) that shares a 13-gram with a text, or None."""
        mine = grams(text)
        if not len(mine) or not len(self.hashes):
            return None
        at = np.minimum(np.searchsorted(self.hashes, mine), len(self.hashes) - 1)
        found = at[self.hashes[at] == mine]
        return self.names[int(self.files[found].min())] if len(found) else None

    def cut(self, text: str) -> str:
        """Return a text without the paragraphs that are hit; empty where a hit runs over their borders."""
        kept = "\n".join(line for line in text.split("\n") if self.hit(line) is None)
        return "" if self.hit(kept) else kept.strip("\n")
