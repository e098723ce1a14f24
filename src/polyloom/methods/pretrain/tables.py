"""A user's own runs as CSV: rows, and the numbers in them."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyloom.core.errors import UserError
from polyloom.core.files import read_text

Row = dict[str, str]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV by its head."""
    return list(csv.DictReader(io.StringIO(read_text(path))))


def need_columns(path: Path, rows: Sequence[Row], needed: Collection[str], hint: str) -> None:
    """Refuse a table that lacks columns.

    Raises:
        UserError: one is lacking, or there are no rows.
    """
    if not rows or not set(needed) <= set(rows[0]):
        raise wrong_columns(path, rows, hint)


def wrong_columns(path: Path, rows: Sequence[Row], hint: str) -> UserError:
    """Return the error that says which columns there are."""
    found = ", ".join(rows[0]) if rows else "nothing"
    return UserError(f"has the columns {found}.", where=str(path), hint=hint)


def numbers(path: Path, rows: Sequence[Row], columns: Sequence[str], what: str) -> NDArray[np.float64]:
    """Return columns as numbers [rows, columns].

    Args:
        path: where the rows are from.
        rows: of `read_rows`.
        columns: which.
        what: what they hold, for the error.

    Raises:
        UserError: a value that is no number; its line is named.
    """
    values = []
    for line, row in enumerate(rows, start=2):
        try:
            values.append([float(row[column]) for column in columns])
        except (TypeError, ValueError):
            raise UserError(f"holds no number for {what}.", where=f"{path}:{line}") from None
    return np.array(values)
