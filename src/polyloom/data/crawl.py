"""Reading large collections of documents as a stream: a bad row, file or encoding is reported and never ends the run.

Formats: txt, jsonl, csv, tsv and parquet (also .gz and .zst), HTML, WARC and WET, and the UDHR's XML. Rows are those of
datatrove too: `text`, `id`, and the rest in `metadata` or beside it.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, cast

from polyloom.core.errors import MissingExtra, UserError
from polyloom.data.text import PASSAGE_CHARACTERS, read_documents
from polyloom.data.web import Extractor, WebRecord, extract_html, page_encoding, read_warc

SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet", ".html", ".htm", ".warc", ".wet", ".xml")
COMPRESSED = (".gz", ".zst")
KEYS = {"language": ("language", "lang"), "domain": ("domain",), "license": ("license", "licence")}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class RawDocument:
    """A document as it was read.

    `replaced` counts the bytes that are in no encoding that was tried; `language`, `domain` and `license` are None
    where the source names none.
    """

    text: str
    id: str
    source: str
    language: str | None = None
    domain: str | None = None
    license: str | None = None
    replaced: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BadRow:
    """A place in the input from which no document could be made, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Part:
    """A file, or the lines of one that begin in [begin, end): what one task reads."""

    path: str
    name: str
    domain: str | None
    begin: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Reading:
    """How documents are read.

    Args:
        text_key: the key or column of the text.
        encodings: tried in this order; bytes that fit none are replaced in the first.
        max_document_bytes: a longer line, passage or record is left out, and memory stays below a few times this.
        extractor: what takes the text out of web pages.
    """

    text_key: str = "text"
    encodings: tuple[str, ...] = ("utf-8",)
    max_document_bytes: int = 64 << 20
    extractor: Extractor = "auto"


def list_parts(inputs: Sequence[str], *, split_bytes: int = 256 << 20) -> list[Part]:
    """List what there is to read, in the order of names, large JSON lines cut into parts.

    Args:
        inputs: files and folders, each with `domain=` before it where all of it is of one domain; below a folder, the
            name of the first subfolder is the domain.
        split_bytes: size of a part of an uncompressed .jsonl file.

    Raises:
        UserError: a path that is absent, or a folder without a file that can be read.
    """
    parts: list[Part] = []
    for given in inputs:
        domain, root = _domain_and_path(given)
        files = [root] if root.is_file() else _files(root)
        for file in files:
            inner = file.relative_to(root) if root.is_dir() else Path(file.name)
            folder = inner.parts[0] if len(inner.parts) > 1 else None
            name = f"{root.name}/{inner.as_posix()}" if root.is_dir() else inner.as_posix()
            parts += _cut(Part(str(file), name, domain or folder), split_bytes)
    return parts


def _domain_and_path(given: str) -> tuple[str | None, Path]:
    domain, equals, rest = given.partition("=")
    if equals and not Path(given).exists():
        domain_name: str | None = domain
    else:
        domain_name, rest = None, given
    path = Path(rest)
    if not path.exists():
        raise UserError("there is no such file or folder.", where=rest, hint="Check the path.")
    return domain_name, path


def _files(root: Path) -> list[Path]:
    files = sorted(f for f in root.rglob("*") if f.is_file() and _kind(f)[0] in SUFFIXES)
    visible = [f for f in files if not any(part.startswith(".") for part in f.relative_to(root).parts)]
    if not visible:
        raise UserError(
            f"holds no file in {', '.join(SUFFIXES)} (also {' and '.join(COMPRESSED)}).",
            where=str(root),
            hint="Name files or their folder.",
        )
    return visible


def _kind(path: Path) -> tuple[str, str]:
    """Return the suffixes of format and compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        return (suffixes[-2] if len(suffixes) > 1 else ".txt"), suffixes[-1]
    return (suffixes[-1] if suffixes else ".txt"), ""


def _cut(part: Part, split_bytes: int) -> list[Part]:
    path = Path(part.path)
    size = path.stat().st_size
    if _kind(path) != (".jsonl", "") or size <= split_bytes:
        return [part]
    edges = [*range(0, size, split_bytes), size]
    return [Part(part.path, part.name, part.domain, a, b) for a, b in pairwise(edges)]


def read_part(part: Part, reading: Reading) -> Iterator[RawDocument | BadRow]:
    """Read one part; what cannot be read comes as a `BadRow`.

    Args:
        part: a file or lines of it.
        reading: how.

    Raises:
        MissingExtra: a library for the format is absent.
    """
    kind, _ = _kind(Path(part.path))
    try:
        for number, found in enumerate(_READERS.get(kind, _read_text)(part, reading)):
            yield found if isinstance(found, BadRow) else _finish(found, part, number)
    except MissingExtra:
        raise
    except UserError as error:
        yield BadRow(part.name, f"damaged file: {str(error).removeprefix(part.path + ': ')}")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        yield BadRow(part.name, f"damaged file: {str(error) or type(error).__name__}")


@dataclass(frozen=True)
class _Row:
    """A row before it has a name: its text, its place in the file, and what else the file said of it."""

    text: str
    place: int | None = None
    replaced: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)


def _finish(row: _Row, part: Part, number: int) -> RawDocument:
    nested = row.fields.get("metadata")
    if isinstance(nested, str):
        # Parquet shards of ours hold it as JSON.
        with suppress(json.JSONDecodeError):
            nested = json.loads(nested)
    fields = {**(nested if isinstance(nested, dict) else {}), **row.fields}
    fields.pop("metadata", None)
    given = fields.pop("id", None)
    place = number if row.place is None else row.place
    name = hashlib.sha256(f"{part.name}\0{place}".encode()).hexdigest()[:32]
    tags: dict[str, str | None] = {}
    for key, spellings in KEYS.items():
        values = [fields.pop(spelling, None) for spelling in spellings]
        tags[key] = next((value for value in values if isinstance(value, str) and value), None)
    source = fields.pop("source", None)
    return RawDocument(
        row.text,
        str(given) if isinstance(given, str | int) and str(given) else name,
        source if isinstance(source, str) and source else part.name,
        tags["language"],
        tags["domain"] or part.domain,
        tags["license"],
        row.replaced,
        fields,
    )


def open_stream(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed where its name ends in .gz or .zst.

    Raises:
        MissingExtra: zstandard is not installed.
    """
    _, compression = _kind(path)
    if compression == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if compression == ".zst":
        try:
            import zstandard
        except ImportError:
            raise MissingExtra("zstandard", extra="corpus") from None
        return io.BufferedReader(_ZstandardStream(path.open("rb"), zstandard), 1 << 18)
    return path.open("rb")


class _ZstandardStream(io.RawIOBase):
    """The frames of a .zst file; unlike the library's own reader it notices a file that was cut."""

    def __init__(self, source: IO[bytes], zstandard: Any) -> None:
        self.source = source
        self.zstandard = zstandard
        self.frame: Any = None
        self.rest = b""
        self.ready = b""

    def readable(self) -> bool:
        """Say that the stream is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what comes next; 0 at the end."""
        while not self.ready:
            data = self.rest or self.source.read(1 << 17)
            self.rest = b""
            if not data:
                if self.frame is not None:
                    raise EOFError("the file ends inside a frame")
                return 0
            try:
                self.frame = self.frame or self.zstandard.ZstdDecompressor().decompressobj()
                self.ready = self.frame.decompress(data)
            except self.zstandard.ZstdError as error:
                raise OSError(str(error)) from error
            if self.frame.eof:
                self.rest, self.frame = self.frame.unused_data, None
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size

    def close(self) -> None:
        """Close the file."""
        self.source.close()
        super().close()


def decode(data: bytes, encodings: Sequence[str]) -> tuple[str, int]:
    """Decode bytes by the first encoding that fits, else by the first with replacement.

    Returns:
        The text, and how many bytes were replaced.

    Raises:
        UserError: an encoding that Python does not know.
    """
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    for encoding in (marks.get(data[:2]), *encodings):
        if encoding is None:
            continue
        try:
            return data.decode(encoding).removeprefix("\ufeff"), 0
        except UnicodeDecodeError:
            continue
        except LookupError:
            hint = "Name Python's codecs, for example utf-8, gb18030, shift_jis or cp1252."
            raise UserError(f"unknown encoding {encoding!r}.", where="--encodings", hint=hint) from None
    text = data.decode(encodings[0], "replace")
    return text, text.count("\ufffd")


def read_lines(stream: IO[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield the offset and bytes of each line; None in place of a line that is longer than `max_bytes`."""
    offset = 0
    while line := stream.readline(max_bytes + 2):
        size = len(line)
        if len(line.rstrip(b"\r\n")) <= max_bytes:
            yield offset, line
        else:
            while not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
                size += len(line)
            yield offset, None
        offset += size


def _lines(part: Part, reading: Reading) -> Iterator[tuple[int, bytes | None]]:
    """Yield the lines that begin inside the part."""
    with open_stream(Path(part.path)) as stream:
        start = 0
        if part.begin:
            # The line that holds the byte before the part belongs to the part before.
            stream.seek(part.begin - 1)
            while (piece := stream.readline(1 << 20)) and not piece.endswith(b"\n"):
                pass
            start = stream.tell()
        for offset, line in read_lines(stream, reading.max_document_bytes):
            if part.end is not None and start + offset >= part.end:
                return
            yield start + offset, line


def _read_json_lines(part: Part, reading: Reading) -> Iterator[_Row | BadRow]:
    for offset, line in _lines(part, reading):
        where = f"{part.name} byte {offset}"
        if line is None:
            yield BadRow(where, f"line over {reading.max_document_bytes} bytes")
            continue
        if not line.strip():
            continue
        decoded, replaced = decode(line, reading.encodings)
        try:
            row = json.loads(decoded)
            if _SURROGATE.search(decoded):
                # JSON can spell half a character, which no encoding can write again.
                row = json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            yield BadRow(where, "no JSON")
            continue
        text = row.get(reading.text_key) if isinstance(row, dict) else None
        if not isinstance(text, str):
            yield BadRow(where, f"no text under {reading.text_key!r}")
            continue
        del row[reading.text_key]
        yield _Row(text, offset, replaced, row)


def _read_text(part: Part, reading: Reading) -> Iterator[_Row | BadRow]:
    """Cut plain text at blank lines into passages of at least `PASSAGE_CHARACTERS`."""
    paragraph: list[bytes] = []
    passage: list[bytes] = []
    for offset, line in _lines(part, reading):
        if line is None:
            yield BadRow(f"{part.name} byte {offset}", f"line over {reading.max_document_bytes} bytes")
        elif line.strip():
            paragraph.append(line)
            if sum(map(len, paragraph)) > reading.max_document_bytes:
                yield BadRow(f"{part.name} byte {offset}", f"passage over {reading.max_document_bytes} bytes")
                paragraph = []
        elif paragraph:
            passage += [*paragraph, b"\n"]
            paragraph = []
            if sum(len(piece.decode("utf-8", "ignore")) for piece in passage) >= PASSAGE_CHARACTERS:
                yield _passage(passage, reading)
                passage = []
    if passage or paragraph:
        yield _passage([*passage, *paragraph], reading)


def _passage(pieces: list[bytes], reading: Reading) -> _Row:
    text, replaced = decode(b"".join(pieces), reading.encodings)
    return _Row(text.strip("\r\n"), None, replaced)


def _read_table(part: Part, reading: Reading) -> Iterator[_Row | BadRow]:
    delimiter = "\t" if _kind(Path(part.path))[0] == ".tsv" else ","
    csv.field_size_limit(reading.max_document_bytes)
    with open_stream(Path(part.path)) as stream:
        encoding = "utf-8-sig" if reading.encodings[0] in ("utf-8", "utf8") else reading.encodings[0]
        rows = csv.DictReader(io.TextIOWrapper(stream, encoding, "replace", newline=""), delimiter=delimiter)
        try:
            for number, row in enumerate(rows, start=2):
                text = row.pop(reading.text_key, None)
                if text is None:
                    yield BadRow(f"{part.name} row {number}", f"no column {reading.text_key!r}")
                else:
                    yield _Row(text, number, text.count("\ufffd"), {k: v for k, v in row.items() if k})
        except csv.Error as error:
            yield BadRow(part.name, f"damaged file: {error}")


def _read_parquet(part: Part, reading: Reading) -> Iterator[_Row | BadRow]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", extra="corpus") from None
    with pyarrow.parquet.ParquetFile(part.path) as table:
        if reading.text_key not in table.schema_arrow.names:
            yield BadRow(part.name, f"no column {reading.text_key!r}")
            return
        number = 0
        for batch in table.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                text = row.pop(reading.text_key)
                where = f"{part.name} row {number}"
                yield _Row(text, number, 0, row) if isinstance(text, str) else BadRow(where, "no text in the row")
                number += 1


def _page(body: bytes, content_type: str, url: str, reading: Reading) -> _Row:
    page, replaced = decode(body, (page_encoding(body, content_type), *reading.encodings))
    return _Row(extract_html(page, reading.extractor), None, replaced, {"url": url} if url else {})


def _read_html(part: Part, reading: Reading) -> Iterator[_Row | BadRow]:
    with open_stream(Path(part.path)) as stream:
        body = stream.read(reading.max_document_bytes + 1)
    if len(body) > reading.max_document_bytes:
        yield BadRow(part.name, f"page over {reading.max_document_bytes} bytes")
    else:
        yield _page(body, "", "", reading)


def _read_warc(part: Part, reading: Reading) -> Iterator[_Row | BadRow]:
    with open_stream(Path(part.path)) as stream:
        for record in read_warc(stream, reading.max_document_bytes):
            if isinstance(record, str):
                yield BadRow(part.name, record)
            elif record.content_type.startswith("text/plain"):
                text, replaced = decode(record.body, ("utf-8", *reading.encodings))
                yield _Row(text, None, replaced, {"url": record.url})
            else:
                yield _try_page(record, part, reading)


def _try_page(record: WebRecord, part: Part, reading: Reading) -> _Row | BadRow:
    try:
        return _page(record.body, record.content_type, record.url, reading)
    except UserError:
        # A page that names an encoding that does not exist is read as one that names none.
        return _page(record.body, "charset=utf-8", record.url, reading)


def _read_xml(part: Part, reading: Reading) -> Iterator[_Row | BadRow]:
    """Read a translation of the UDHR as one document."""
    articles = read_documents([Path(part.path)])
    text = "\n\n".join(article.text for article in articles)
    yield _Row(text, 0, 0, {"language": articles[0].language})


_READERS: dict[str, Callable[[Part, Reading], Iterator[_Row | BadRow]]] = {
    ".jsonl": _read_json_lines,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
    ".html": _read_html,
    ".htm": _read_html,
    ".warc": _read_warc,
    ".wet": _read_warc,
    ".xml": _read_xml,
}
