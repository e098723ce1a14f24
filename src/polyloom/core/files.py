"""Files that are whole or absent: atomic writes, strict reads, checksums and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError

GZIP_MAGIC = b"\x1f\x8b"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
ENCODING_HINT = "Save it as UTF-8, or name its encoding where the verb has --encoding."


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed over it, on failure removed.

    Raises:
        UserError: the disk is full or the folder cannot be written; what stood at `path` stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _write_error(path, error) from error


def _write_error(path: Path, error: OSError) -> UserError:
    if error.errno in DISK_FULL:
        return UserError("the disk is full.", where=str(path), hint="Free some space, then resume the run.")
    return UserError(f"cannot be written ({error.strerror}).", where=str(path))


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON with sorted keys left as given, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_bytes(path: Path) -> bytes:
    """Read a file whole.

    Raises:
        UserError: it is absent, a folder or not readable.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror}).", where=str(path), hint="Check the path.") from error


def unzipped(data: bytes, path: Path) -> bytes:
    """Return what a gzip file (dictzip too) holds, and any other file's bytes as they are.

    Raises:
        UserError: the file is damaged.
    """
    if not data.startswith(GZIP_MAGIC):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"is a damaged gzip file ({error}).", where=str(path)) from error


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a text file strictly; a byte-order mark is dropped.

    Raises:
        UserError: unreadable, an unknown encoding, or a byte that is not in it (the offset is named).
    """
    return decode(read_bytes(path), path, encoding)


def decode(data: bytes, path: Path, encoding: str = "utf-8") -> str:
    """Decode what a file held; a byte-order mark is dropped.

    Raises:
        UserError: an unknown encoding, or a byte that is not in it (the offset is named).
    """
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except LookupError as error:
        raise UserError(f"unknown encoding {encoding!r}.", where="--encoding", hint="Try utf-8 or latin-1.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte {data[error.start]:#04x} at offset {error.start} is not {encoding}.",
            where=str(path),
            hint=ENCODING_HINT,
        ) from error


def read_json(path: Path, as_object: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        as_object: makes an object of its pairs, where a repeated key is to be seen.

    Raises:
        UserError: unreadable or not JSON (line and column are named).
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=as_object)
    except json.JSONDecodeError as error:
        raise UserError(f"is not JSON: {error.msg}.", where=f"{path}:{error.lineno}:{error.colno}") from error


def json_rows(text: str, where: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read JSON lines: yield the number of each line that is not empty, and its object.

    Args:
        text: lines end at line feeds alone; JSON strings may hold every other separator.
        where: the file, for messages.

    Raises:
        UserError: a line that is no JSON object (file and line are named).
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"is not JSON: {error.msg}.", where=f"{where}:{number}") from error
        if not isinstance(row, dict):
            hint = "Each line is one object, in braces."
            raise UserError("is no JSON object.", where=f"{where}:{number}", hint=hint)
        yield number, row


def json_lines(rows: Iterable[Any]) -> str:
    """Return values as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def sha256_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` between processes; the kernel frees it when the holder dies.

    Raises:
        UserError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            raise UserError(
                f"is in use by process {stream.read().strip() or 'unknown'}.",
                where=str(path.parent),
                hint="Wait for it to end, or stop it.",
            ) from error
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                stream.truncate(0)
