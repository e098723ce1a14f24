"""Readers of a user's text: plain text, JSON lines, the UDHR's XML files, folders of them; and splits without leaks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from polyloom.core.errors import UserError
from polyloom.core.files import json_rows, read_bytes, read_text

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SUFFIXES = (".txt", ".jsonl", ".xml")
UNKNOWN = "und"
# Plain text is cut at blank lines into passages of at least this size: one file can then be split into train and test.
PASSAGE_CHARACTERS = 1000
XML_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


@dataclass(frozen=True)
class Document:
    """A text, its language (BCP 47, `und` where unknown) and the file that it came from."""

    text: str
    language: str
    source: str


def read_documents(paths: Sequence[Path], *, encoding: str = "utf-8", field: str = "text") -> list[Document]:
    """Read documents from files and folders.

    Args:
        paths: `.jsonl` (one object a line; `language` or `lang` is read where present), `.xml` (the Universal
            Declaration of Human Rights, one document an article), anything else as plain text (cut at blank lines into
            passages); of a folder, all its files with these suffixes and `.txt`, in the order of their names.
        encoding: of plain text and JSON lines; bytes that are not in it are refused.
        field: the key of a JSON line's text.

    Raises:
        UserError: a path that is absent, unreadable or empty, bytes in another encoding (file and offset), a bad line.
    """
    documents = []
    for path in paths:
        for file in _files(path):
            found = _read_file(file, encoding, field)
            if not found:
                raise UserError("holds no text.", where=str(file), hint="Name files that hold some.")
            documents += found
    if not documents:
        raise UserError("no text was given.", hint="Name at least one file or folder.")
    return documents


def split_documents(
    documents: Iterable[Document], *, validation: float = 0.1, test: float = 0.1
) -> dict[Split, list[Document]]:
    """Split documents by the hash of their text: the same for any order of reading, equal texts always together.

    Within each language the texts are ranked by hash, and the first shares are held out. A language with two texts
    has a validation text, with three or more also a test text.

    Args:
        documents: the documents.
        validation: share of each language's texts for validation.
        test: share for the test.

    Returns:
        The documents of each split, in the order given.
    """
    documents = list(documents)
    languages: dict[str, set[str]] = {}
    for document in documents:
        languages.setdefault(document.language, set()).add(document.text)
    assigned: dict[str, Split] = {}
    for _, texts in sorted(languages.items()):
        # A text that another language holds as well keeps its place.
        ranked = sorted(texts - assigned.keys(), key=lambda text: hashlib.sha256(text.encode()).digest())
        num_validation = _share(validation, len(ranked), least=2)
        num_test = _share(test, len(ranked), least=3)
        for rank, text in enumerate(ranked):
            held_out: Split = "validation" if rank < num_validation else "test"
            assigned[text] = held_out if rank < num_validation + num_test else "train"
    return {split: [d for d in documents if assigned[d.text] == split] for split in SPLITS}


def by_language(documents: Iterable[Document]) -> dict[str, list[str]]:
    """Group the documents' texts by language, languages in the order of their codes."""
    groups: dict[str, list[str]] = {}
    for document in documents:
        groups.setdefault(document.language, []).append(document.text)
    return dict(sorted(groups.items()))


def first_texts(texts: Sequence[str], num_characters: int) -> list[str]:
    """Return the first texts up to about `num_characters`, at least one, none much longer than that."""
    kept: list[str] = []
    for text in texts:
        if kept and sum(map(len, kept)) + len(text) > num_characters:
            break
        kept.append(text[: 4 * num_characters])
    return kept


def _share(fraction: float, size: int, least: int) -> int:
    return max(1, round(fraction * size)) if fraction > 0 and size >= least else 0


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    visible = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not visible:
        raise UserError(f"holds no file in {', '.join(SUFFIXES)}.", where=str(path), hint="Name files or their folder.")
    return visible


def _read_file(file: Path, encoding: str, field: str) -> list[Document]:
    if file.suffix == ".xml":
        return _read_udhr(file)
    text = read_text(file, encoding)
    if file.suffix == ".jsonl":
        return _read_json_lines(file, text, field)
    return [Document(passage, UNKNOWN, str(file)) for passage in _passages(text)]


def _passages(text: str) -> list[str]:
    passages: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip()):
        if passages and len(passages[-1]) < PASSAGE_CHARACTERS:
            passages[-1] += "\n\n" + paragraph
        elif paragraph:
            passages.append(paragraph)
    return passages


def _read_json_lines(file: Path, text: str, field: str) -> list[Document]:
    documents = []
    for number, row in json_rows(text, file):
        value, where = row.get(field), f"{file}:{number}"
        if not isinstance(value, str):
            raise UserError(f"has no text under {field!r}.", where=where, hint="Each line is an object with that key.")
        # JSON can spell half a character (\ud800), which no encoding can write again.
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError("holds half of a surrogate pair.", where=where, hint="Write the whole character.")
        language = row.get("language", row.get("lang", UNKNOWN))
        if not isinstance(language, str):
            raise UserError("its language is no code.", where=where)
        if value.strip():
            documents.append(Document(value, language, str(file)))
    return documents


def _read_udhr(file: Path) -> list[Document]:
    """Read one translation of the UDHR: its preamble and each article are a document."""
    data = read_bytes(file)
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise UserError("declares a document type, which is not read.", where=str(file))
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise UserError(f"is not XML: {error}.", where=str(file)) from error
    namespace, _, name = root.tag.rpartition("}")
    if name != "udhr":
        raise UserError(f"is no UDHR file (its root is <{name}>).", where=str(file), hint="Convert it to plain text.")
    # Orthography and other variants are dropped: de-1996 is German.
    tags = [part for part in root.get(XML_LANGUAGE, UNKNOWN).split("-") if len(part) <= 4 and not part.isdigit()]
    closing = f"{namespace}}}" if namespace else ""
    documents = []
    for section in root:
        if section.tag.removeprefix(closing) in ("preamble", "article"):
            lines = [" ".join(part.split()) for part in section.itertext()]
            text = "\n".join(line for line in lines if line)
            if text:
                documents.append(Document(text, "-".join(tags), str(file)))
    return documents
