"""The reader of static word vectors in text: GloVe, word2vec's text form and fastText, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from polyloom.core.errors import UserError
from polyloom.core.files import GZIP_MAGIC

Matrix = NDArray[np.float32]
Lines = Iterator[tuple[int, bytes]]
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Without a line of sizes the most usual width of so many lines counts: a first word may hold blanks.
NUM_LOOKED_AT = 20
HINT = "Write a word and its numbers a line, all vectors of one width."


@dataclass(frozen=True)
class WordVectors:
    """Words in the order of the file, their vectors [words, width], and what was odd about the lines that were read."""

    words: tuple[str, ...]
    matrix: Matrix
    num_lines: int
    num_blanks: int
    num_duplicates: int

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.matrix.shape[1])


def read_word_vectors(path: Path, *, wanted: Container[str] | None = None, most: int | None = None) -> WordVectors:
    """Read word vectors: `word x1 ... xd` a line, blanks or tabs between.

    A first line of two whole numbers is a header, whose second one is d. A word may hold blanks (GloVe 840B has some):
    the last d cells are the vector, unless a number stands before them. Of a word that stands twice the first vector
    counts. Empty lines are passed over; bytes that are not UTF-8 cost their word alone.

    Args:
        path: the file; gzip is opened, whatever its name.
        wanted: words to keep; all by default. Numbers of the others are not looked at.
        most: words to read at most; files list them by frequency.

    Raises:
        UserError: unreadable, no vectors, or a line of another width or with a cell that is no finite number (file and
            line are named).
    """
    with _opened(path) as stream:
        width, lines = _measured(_filled(stream), path)
        seen: set[str] = set()
        words: list[str] = []
        rows: list[Matrix] = []
        num_lines = num_blanks = 0
        for number, line in lines:
            num_lines += 1
            word, cells = _cut(line, width, f"{path}:{number}")
            num_blanks += " " in word
            if word not in seen and (wanted is None or word in wanted):
                words.append(word)
                rows.append(_numbers(cells, f"{path}:{number}"))
            seen.add(word)
            if len(seen) == most:
                break
    matrix = np.stack(rows) if rows else np.zeros((0, width), dtype=np.float32)
    return WordVectors(tuple(words), matrix, num_lines, num_blanks, num_lines - len(seen))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == GZIP_MAGIC
            file.seek(0)
            yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if zipped else file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"is a damaged gzip file ({error}).", where=str(path)) from error
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror}).", where=str(path), hint="Check the path.") from error


def _filled(stream: BinaryIO) -> Lines:
    """Yield the lines that are not empty, with their numbers; they end at line feeds alone, which no word holds."""
    for number, line in enumerate(stream, start=1):
        text = (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).strip()
        if text:
            yield number, text


def _measured(lines: Lines, path: Path) -> tuple[int, Lines]:
    """Return the width of the vectors and the lines that hold them."""
    first = list(islice(lines, NUM_LOOKED_AT))
    sizes = first[0][1].split() if first else []
    if len(sizes) == 2 and all(size.isdigit() for size in sizes):
        width, first = int(sizes[1]), first[1:]
    else:
        widths = Counter(len(line.split()) - 1 for _, line in first)
        width = widths.most_common(1)[0][0] if first else 0
    if not first or width < 1:
        raise UserError("holds no word vectors.", where=str(path), hint=HINT)
    return width, chain(first, lines)


def _cut(line: bytes, width: int, where: str) -> tuple[str, list[bytes]]:
    """Return the word of a line and the cells of its vector."""
    word, *cells = line.rsplit(None, width)
    parts = word.split()
    if len(cells) < width or (len(parts) > 1 and _is_number(parts[-1])):
        what = f"has {len(line.split()) - 1} numbers where the vectors have {width}."
        raise UserError(what, where=where, hint=HINT)
    return word.decode("utf-8", "replace"), cells


def _numbers(cells: list[bytes], where: str) -> Matrix:
    try:
        # What float32 cannot hold becomes infinite, which is refused below.
        with np.errstate(over="ignore"):
            row = np.asarray(cells, dtype=np.float32)
    except ValueError as error:
        raise UserError(f"holds a cell that is no number: {error}.", where=where, hint=HINT) from error
    if not np.isfinite(row).all():
        raise UserError("holds a number that is not finite.", where=where, hint="Take the line out.")
    return row


def _is_number(cell: bytes) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
