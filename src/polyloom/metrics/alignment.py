"""Word alignment against sure and possible links."""

from __future__ import annotations

from collections.abc import Iterable

Links = set[tuple[int, int]]


def read_links(line: str, *, first: int = 0) -> tuple[Links, Links]:
    """Read one line of links, `i-j` sure and `ipj` possible.

    Args:
        line: links between spaces.
        first: the number of the first word, 0 or 1; the result counts from 0.

    Returns:
        Sure links, and all of them (a sure link is possible too).

    Raises:
        ValueError: a piece that is no link.
    """
    sure: Links = set()
    possible: Links = set()
    for piece in line.split():
        left, mark, right = piece.partition("-") if "-" in piece else piece.partition("p")
        link = (int(left) - first, int(right) - first)
        possible.add(link)
        if mark == "-":
            sure.add(link)
    return sure, possible


def alignment_error_rate(rows: Iterable[tuple[Links, Links, Links]]) -> float:
    """Return AER = 1 - (|A & S| + |A & P|) / (|A| + |S|), summed over sentences.

    Args:
        rows: per sentence the predicted links A, the sure links S and the possible links P (S among them).

    Source: Och and Ney (2003).
    """
    hits = total = 0
    for predicted, sure, possible in rows:
        hits += len(predicted & sure) + len(predicted & possible)
        total += len(predicted) + len(sure)
    return 1.0 - hits / total if total else 0.0
