"""Shards of clean documents: written whole or not at all, read back as a stream, and readable by datatrove."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, cast

from polyloom.core.errors import MissingExtra, UserError
from polyloom.core.files import replace_atomically
from polyloom.data.crawl import open_stream

Format = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet"]
COLUMNS = ("text", "id", "language", "domain", "source", "license")


def write_shard(path: Path, rows: Iterable[Mapping[str, Any]], format: Format) -> int:
    """Write rows of documents to one file, atomically; equal rows give equal bytes.

    Args:
        path: the file; its name ends in the format.
        rows: mappings with the keys of `COLUMNS`, and `metadata` (a mapping).
        format: JSON lines (plain, gzip or zstandard), or parquet with `metadata` as a JSON string.

    Returns:
        The number of rows.

    Raises:
        MissingExtra: pyarrow or zstandard is not installed.
        UserError: the disk is full or the folder cannot be written.
    """
    with replace_atomically(path) as temporary:
        if format == "parquet":
            return _write_parquet(temporary, list(rows))
        number = 0
        with _open_writer(temporary, format) as stream:
            for row in rows:
                # Metadata of other formats may hold dates or decimals: they are written as text.
                stream.write(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")
                number += 1
        return number


@contextmanager
def _open_writer(path: Path, format: Format) -> Iterator[IO[bytes]]:
    with path.open("wb") as raw:
        if format == "jsonl":
            yield raw
        elif format == "jsonl.gz":
            # Without name and time, so that equal rows give equal bytes.
            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream:
                yield cast(IO[bytes], stream)
        else:
            try:
                import zstandard
            except ImportError:
                raise MissingExtra("zstandard", extra="corpus") from None
            with zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False) as stream:
                yield stream


def _write_parquet(path: Path, rows: list[Mapping[str, Any]]) -> int:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", extra="corpus") from None
    columns = {name: [row.get(name) for row in rows] for name in COLUMNS}
    columns["metadata"] = [
        json.dumps(row.get("metadata", {}), ensure_ascii=False, sort_keys=True, default=str) for row in rows
    ]
    schema = pyarrow.schema([(name, pyarrow.string()) for name in columns])
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), path, compression="zstd")
    return len(rows)


def shard_files(folder: Path) -> list[Path]:
    """Return the shards below a folder in the order of their names; hidden files and folders are passed over.

    Raises:
        UserError: there is none.
    """
    kinds = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
    found = sorted(f for f in folder.rglob("*") if f.name.endswith(kinds))
    found = [f for f in found if not any(part.startswith(".") for part in f.relative_to(folder).parts)]
    if not found:
        raise UserError("holds no shard.", where=str(folder), hint="Name a folder that `pretrain corpus` wrote.")
    return found


def read_shard(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of one shard.

    Raises:
        MissingExtra: pyarrow or zstandard is not installed.
        UserError: a line that is no JSON (file and line).
    """
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet
        except ImportError:
            raise MissingExtra("pyarrow", extra="corpus") from None
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield {**row, "metadata": json.loads(row.get("metadata") or "{}")}
        return
    with open_stream(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError("is not JSON.", where=f"{path}:{number}", hint="Build the corpus again.") from error


def read_corpus(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the documents of all shards below `folder`, in the order of files and rows.

    Raises:
        UserError: there is no shard, or one is damaged.
    """
    for file in shard_files(folder):
        yield from read_shard(file)
