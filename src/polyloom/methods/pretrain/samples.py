"""Texts for the tokenizer and for evaluation: held-out documents and bounded samples of each domain and language."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from polyloom.core.errors import UserError
from polyloom.data.crawl import RawDocument, Reading, list_parts, read_part
from polyloom.data.duplicates import hash_text
from polyloom.data.text import UNKNOWN
from polyloom.methods.pretrain.corpus.cleaning import DEFAULT_DOMAIN
from polyloom.methods.pretrain.corpus.language import identify, primary
from polyloom.models.tokenizers import temperature_weights

WORLD = "world"


def is_held_out(text: str) -> bool:
    """Say whether a document is held out: one in ten, by the hash of its text, the same ones wherever they are read."""
    return hash_text(text, "held out") % 10 == 0


@dataclass
class _Reservoir:
    """The texts with the smallest hashes, up to a number of bytes: a sample that the order of reading cannot change."""

    num_bytes: int
    heap: list[tuple[int, str]] = field(default_factory=list)
    size: int = 0

    def add(self, text: str) -> None:
        """Take a text in, and let those with the largest hashes go while the others are enough."""
        key = hash_text(text, "sample")
        if any(-key == have and text == kept for have, kept in self.heap[:1]):
            return
        heapq.heappush(self.heap, (-key, text))
        self.size += len(text.encode())
        while self.size - len(self.heap[0][1].encode()) >= self.num_bytes:
            self.size -= len(heapq.heappop(self.heap)[1].encode())

    def texts(self) -> list[str]:
        """Return the sample by its hashes, each text once."""
        return list(dict.fromkeys(text for _, text in sorted(self.heap, reverse=True)))


@dataclass(frozen=True)
class Samples:
    """Texts of each cell (domain, language): to train on and held out; `sizes` are the bytes of all training text."""

    train: dict[tuple[str, str], list[str]]
    held_out: dict[tuple[str, str], list[str]]
    sizes: dict[tuple[str, str], int]


def gather(documents: Iterable[tuple[str, str, str]], train_bytes: int, test_bytes: int) -> Samples:
    """Split documents into training and held-out samples of bounded size for each cell.

    Args:
        documents: (domain, language, text).
        train_bytes: at most about so many bytes a cell to train on.
        test_bytes: and held out.
    """
    train: dict[tuple[str, str], _Reservoir] = {}
    test: dict[tuple[str, str], _Reservoir] = {}
    sizes: dict[tuple[str, str], int] = {}
    for domain, language, text in documents:
        cell = (domain, language)
        held_out = is_held_out(text)
        kept, limit = (test, test_bytes) if held_out else (train, train_bytes)
        kept.setdefault(cell, _Reservoir(limit)).add(text)
        if not held_out:
            sizes[cell] = sizes.get(cell, 0) + len(text.encode())
    return Samples(
        {cell: kept.texts() for cell, kept in sorted(train.items())},
        {cell: kept.texts() for cell, kept in sorted(test.items())},
        dict(sorted(sizes.items())),
    )


def read_cells(inputs: Sequence[str], languages: Sequence[str] = ()) -> Iterable[tuple[str, str, str]]:
    """Yield (domain, language, text) of a user's files; a language that is not named is identified where it can be.

    Args:
        inputs: files and folders, as `pretrain corpus` reads or writes them.
        languages: keep these alone; all where none is given.

    Raises:
        UserError: no file, or nothing in them.
    """
    wanted = {primary(code) for code in languages}
    number = 0
    problem = ""
    for part in list_parts(inputs):
        for found in read_part(part, Reading()):
            if not isinstance(found, RawDocument):
                problem = problem or f"{found.where}: {found.reason}"
                continue
            language = primary(found.language)
            if language == UNKNOWN:
                language = identify(found.text)[0]
            if found.text.strip() and (not wanted or language in wanted):
                number += 1
                yield found.domain or DEFAULT_DOMAIN, language, found.text
    if not number:
        raise UserError(
            f"holds no document{' of these languages' if wanted else ''}.",
            where=", ".join(inputs),
            hint=f"First problem: {problem}." if problem else "Check the path and the languages.",
        )


def world_cells(languages: Sequence[str], num_characters: int, seed: int, split: str) -> list[tuple[str, str, str]]:
    """Return (domain, language, text) of the embedded world."""
    from polyloom.data import world

    texts = world.text_corpus(languages, num_characters, seed, split)
    return [(WORLD, language, text) for language, items in texts.items() for text in items]


def fill_shares(sizes: Mapping[tuple[str, str], int], num_bytes: int, alpha: float) -> dict[tuple[str, str], float]:
    """Return the bytes to take of each cell: p ~ n^alpha of `num_bytes`, what a small cell lacks shared by the others.

    Args:
        sizes: bytes of each cell.
        num_bytes: wanted in all.
        alpha: 1 keeps the mixture as it is, 0 makes all cells equal.
    """
    wanted: dict[tuple[str, str], float] = {}
    names = {str(cell): cell for cell in sizes}
    weights = {names[name]: p for name, p in temperature_weights({str(c): s for c, s in sizes.items()}, alpha).items()}
    left = float(num_bytes)
    open_cells = dict(weights)
    while open_cells:
        total = sum(open_cells.values())
        full = [cell for cell, weight in open_cells.items() if sizes[cell] <= weight / total * left]
        if not full:
            return wanted | {cell: weight / total * left for cell, weight in open_cells.items()}
        for cell in full:
            wanted[cell] = float(sizes[cell])
            left -= sizes[cell]
            del open_cells[cell]
    return wanted
