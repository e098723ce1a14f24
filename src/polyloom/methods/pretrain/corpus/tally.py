"""Counting what each stage keeps and drops, by domain and language, with samples of what was dropped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from polyloom.data.duplicates import hash_text
from polyloom.data.scripts import count_words

Cell = str
NUM_SAMPLES = 20
NUM_LISTED = 200
_EXCERPT = 200
STAGES = ("read", "encoding", "language", "rules", "quality", "exact", "paragraphs", "minhash", "decontaminate")


def cell_of(domain: str, language: str) -> Cell:
    """Return the name of a cell: domain/language."""
    return f"{domain}/{language}"


@dataclass
class Tally:
    """Documents, UTF-8 bytes and words kept after each stage by cell; what was dropped by reason.

    `samples` holds for each reason the dropped documents with the smallest hashes, so that the choice does not depend
    on who counted first. `listed` names what could not be read or went wrong.
    """

    kept: dict[str, dict[Cell, list[float]]] = field(default_factory=dict)
    dropped: dict[str, dict[Cell, list[float]]] = field(default_factory=dict)
    samples: dict[str, list[list[Any]]] = field(default_factory=dict)
    listed: list[list[str]] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def keep(self, stage: str, cell: Cell, text: str) -> None:
        """Count a document that a stage keeps."""
        _add(self.kept.setdefault(stage, {}), cell, _sizes(text))

    def drop(self, reason: str, cell: Cell, text: str, id: str, note: str = "") -> None:
        """Count a document that is dropped, and sample it."""
        _add(self.dropped.setdefault(reason, {}), cell, _sizes(text))
        samples = self.samples.setdefault(reason, [])
        samples.append([hash_text(id), id, cell, note, text[:_EXCERPT]])
        if len(samples) > 4 * NUM_SAMPLES:
            self.samples[reason] = sorted(samples)[:NUM_SAMPLES]

    def count(self, kind: str, name: str, number: int = 1) -> None:
        """Count something by name, for example licences."""
        group = self.counts.setdefault(kind, {})
        group[name] = group.get(name, 0) + number

    def note(self, where: str, what: str) -> None:
        """List a place of the input that was left out, and count it by the kind of trouble."""
        self.count("problems", what)
        if len(self.listed) < NUM_LISTED:
            self.listed.append([where, what])

    def as_json(self) -> dict[str, Any]:
        """Return what `merge` reads."""
        samples = {reason: sorted(found)[:NUM_SAMPLES] for reason, found in sorted(self.samples.items())}
        return {
            "kept": self.kept,
            "dropped": self.dropped,
            "samples": samples,
            "listed": self.listed,
            "counts": self.counts,
        }


def _sizes(text: str) -> list[float]:
    return [1, len(text.encode("utf-8", "replace")), count_words(text)]


def _add(table: dict[Cell, list[float]], cell: Cell, sizes: Iterable[float]) -> None:
    table[cell] = [a + b for a, b in zip(table.get(cell, [0, 0, 0.0]), sizes, strict=True)]


def merge(parts: Iterable[Mapping[str, Any]]) -> Tally:
    """Add up tallies; the order of the parts decides nothing but the order of what is listed."""
    total = Tally()
    for part in parts:
        for name, mine in (("kept", total.kept), ("dropped", total.dropped)):
            for key, cells in part[name].items():
                for cell, sizes in cells.items():
                    _add(mine.setdefault(key, {}), cell, sizes)
        for reason, found in part["samples"].items():
            total.samples[reason] = sorted([*total.samples.get(reason, []), *map(list, found)])[:NUM_SAMPLES]
        total.listed = [*total.listed, *part["listed"]][:NUM_LISTED]
        for kind, group in part["counts"].items():
            for name, number in group.items():
                total.count(kind, name, number)
    return total
