"""The first pass over the input: read, repair, name the language, apply the rules, hash. A pure function a document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from polyloom.core.errors import PolyloomError
from polyloom.data.crawl import BadRow, RawDocument, Reading, read_part
from polyloom.data.duplicates import hash_text
from polyloom.data.scripts import count_letters, normalise
from polyloom.data.shards import write_shard
from polyloom.data.text import UNKNOWN
from polyloom.methods.pretrain.corpus.filters import reason_of, refuse, trim_lines
from polyloom.methods.pretrain.corpus.language import SHORTEST_LETTERS, identify, primary
from polyloom.methods.pretrain.corpus.quality import QualityModel
from polyloom.methods.pretrain.corpus.rules import Rules, rules_for
from polyloom.methods.pretrain.corpus.tally import Tally, cell_of
from polyloom.methods.pretrain.corpus.tasks import Plan, Summary
from polyloom.methods.pretrain.data_config import CorpusConfig

MAX_REPLACED = 0.01
DEFAULT_DOMAIN = "text"
NO_LICENSE = "unknown"
PARAGRAPH_CHARACTERS = 40
WHOLE = 0xFFFFFFFF
# One row for each document (paragraph = WHOLE) and each of its long paragraphs.
HASH_ROW = np.dtype(
    [("hash", "<u8"), ("key", "<u8"), ("id", "<u8"), ("task", "<u4"), ("row", "<u4"), ("paragraph", "<u4")]
)
NUM_PARTITIONS = 16


@dataclass(frozen=True)
class Dropped:
    """Why a document goes: the stage's rule, and the value that broke it."""

    reason: str
    note: str = ""


@dataclass(frozen=True)
class Clean:
    """A document after the rules of its own: it may still be a duplicate."""

    text: str
    language: str


@dataclass(frozen=True)
class Cleaner:
    """The steps that look at one document alone, with the thresholds of each language resolved once."""

    config: CorpusConfig
    quality: QualityModel | None = None
    _rules: dict[str, Rules] = field(default_factory=dict)

    def rules(self, language: str) -> Rules:
        """Return the thresholds of a language."""
        if language not in self._rules:
            self._rules[language] = rules_for(language, self.config.rules)
        return self._rules[language]

    @cached_property
    def wanted(self) -> frozenset[str]:
        """The languages that are kept; empty for all."""
        return frozenset(primary(code) for code in self.config.languages)

    def language(self, document: RawDocument, text: str) -> tuple[str, float]:
        """Return a document's language and its probability; the input's own tag is trusted."""
        if document.language and primary(document.language) != UNKNOWN:
            return primary(document.language), 1.0
        return identify(text, self.config.language_id)

    def clean(self, document: RawDocument, tally: Tally) -> Clean | Dropped:
        """Take one document through encoding, language, rules and quality, counting it after each.

        Args:
            document: as it was read.
            tally: where it is counted.
        """
        domain = document.domain or DEFAULT_DOMAIN
        text = normalise(document.text)
        language, probability = self.language(document, text)
        cell = cell_of(domain, language)
        tally.keep("read", cell, document.text)
        size = len(document.text.encode("utf-8", "replace"))
        if document.replaced > MAX_REPLACED * max(1, size):
            return Dropped("encoding", f"{document.replaced} of {size} bytes are in no encoding that was tried")
        if not text:
            return Dropped("empty")
        tally.keep("encoding", cell, text)
        if self.wanted and language not in self.wanted:
            return Dropped("other_language", language)
        known = self.config.language_id == "none" or language != UNKNOWN or count_letters(text) < SHORTEST_LETTERS
        if not known or (language != UNKNOWN and probability < self.config.min_language_probability):
            return Dropped("language_uncertain", f"{language} {probability:.2f}")
        tally.keep("language", cell, text)
        if self.config.heuristics:
            trimmed = trim_lines(text, self.rules(language))
            broken = refuse(trimmed, language, self.rules(language)) if trimmed else "empty"
            if broken:
                return Dropped(f"rule:{reason_of(broken)}", broken)
            text = trimmed
        tally.keep("rules", cell, text)
        if self.quality is not None:
            score = self.quality.score(text)
            if score < self.config.min_quality:
                return Dropped("quality", f"{score:.3f}")
            tally.keep("quality", cell, text)
        return Clean(text, language)


def clean_part(plan: Plan, task: int, folder: Path) -> Summary:
    """Do the first pass over one part of the input.

    Writes the documents that stay, and their hashes in `NUM_PARTITIONS` files by the hashes' range.
    """
    config = plan.config
    model = QualityModel.load(plan.output("quality", 0) / "model.npz") if config.quality_good else None
    cleaner = Cleaner(config, model)
    reading = Reading(config.text_key, tuple(config.encodings), config.max_document_bytes, config.extractor)
    tally = Tally()
    # An array a document: as Python's own numbers they would outweigh the text.
    hashes = [np.zeros(0, dtype=HASH_ROW)]

    def rows() -> Iterator[dict[str, Any]]:
        number = 0
        for found in read_part(plan.parts[task], reading):
            if isinstance(found, BadRow):
                tally.note(found.where, found.reason)
                continue
            row = _clean_row(cleaner, found, tally)
            if row is not None:
                found_rows = list(_hash_rows(row, task, number, paragraphs=config.paragraphs))
                hashes.append(np.array(found_rows, dtype=HASH_ROW))
                number += 1
                yield row

    num_documents = write_shard(folder / "documents.jsonl.zst", rows(), "jsonl.zst")
    table = np.concatenate(hashes)
    partition = table["hash"] >> np.uint64(60)
    for number in range(NUM_PARTITIONS):
        np.save(folder / f"hashes-{number:02d}.npy", table[partition == number], allow_pickle=False)
    if not tally.kept.get("read") and not tally.listed:
        tally.note(plan.parts[task].name, "empty file")
    return {"num_documents": num_documents, "tally": tally.as_json()}


def _clean_row(cleaner: Cleaner, document: RawDocument, tally: Tally) -> dict[str, Any] | None:
    """Clean one document; whatever goes wrong in it is counted and costs that document alone."""
    domain = document.domain or DEFAULT_DOMAIN
    try:
        found = cleaner.clean(document, tally)
    except PolyloomError:
        raise
    except Exception as error:
        tally.note(f"{document.source} id {document.id}", f"error: {type(error).__name__}: {error}"[:300])
        tally.drop("error", cell_of(domain, UNKNOWN), document.text, document.id, type(error).__name__)
        return None
    tally.count("licenses", document.license or NO_LICENSE)
    if isinstance(found, Dropped):
        language = primary(document.language)
        tally.drop(found.reason, cell_of(domain, language), document.text, document.id, found.note)
        return None
    return {
        "text": found.text,
        "id": document.id,
        "language": found.language,
        "domain": domain,
        "source": document.source,
        "license": document.license or NO_LICENSE,
        "metadata": dict(document.metadata),
    }


def _hash_rows(
    row: dict[str, Any], task: int, number: int, *, paragraphs: bool
) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yield the hash of the whole text and of each long paragraph; a text's key is the hash of the whole."""
    text, language = row["text"], row["language"]
    key, id_hash = hash_text(text, "document"), hash_text(row["id"])
    yield key, key, id_hash, task, number, WHOLE
    if paragraphs:
        for position, paragraph in enumerate(text.split("\n")):
            collapsed = " ".join(paragraph.lower().split())
            if len(collapsed) >= PARAGRAPH_CHARACTERS:
                yield hash_text(collapsed, f"p {language}"), key, id_hash, task, number, position
