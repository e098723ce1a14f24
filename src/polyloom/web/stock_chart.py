"""The chart of a replayed run: each month's stock as it was found, what each took of it, and the path not taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polyloom.methods.commons.story import Story

WIDTH, HEIGHT = 760, 210
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 12, 26
NUM_COLOURS = 6
# Of fewer months columns would be wide.
LEAST_COLUMNS = 6


@dataclass(frozen=True)
class Piece:
    """A rectangle: what an agent took, or what was left (agent None)."""

    agent: int | None
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Column:
    """A month's column: its pieces, its middle, and the level at which everybody takes the sustainable share."""

    number: int
    middle: float
    left: float
    width: float
    pieces: list[Piece]
    level: float


@dataclass(frozen=True)
class Chart:
    """What the template draws, in its own coordinates; ticks are value and height, `other` is a line."""

    columns: list[Column]
    ticks: list[tuple[int, float]]
    other: list[tuple[float, float]]


def draw(story: Story, other: Sequence[float | None] = ()) -> Chart:
    """Lay out a run's chart.

    Args:
        story: the run.
        other: stock at the start of each month of the run that this one branched from.
    """
    months = [*story.chapters]
    known = [value for value in other if value is not None]
    top = max([chapter.stock for chapter in months] + [1] + [int(value) for value in known])
    num_columns = max(len(months), len(other), LEAST_COLUMNS)
    room = (WIDTH - LEFT - RIGHT) / num_columns
    inner = HEIGHT - TOP - BOTTOM

    def y(value: float) -> float:
        return round(TOP + inner * (1 - min(value, top) / top), 1)

    columns = []
    for index, chapter in enumerate(months):
        left, width = LEFT + index * room + room * 0.12, room * 0.76
        pieces, floor = [], float(chapter.stock)
        for catch in chapter.catches:
            ceiling = max(0.0, floor - catch.obtained)
            if floor > ceiling:
                pieces.append(_piece(catch.agent, left, width, y(floor), y(ceiling)))
            floor = ceiling
        if floor > 0:
            pieces.append(_piece(None, left, width, y(floor), y(0)))
        level = y(chapter.stock - chapter.share * len(chapter.catches))
        columns.append(
            Column(chapter.number, round(left + width / 2, 1), round(left, 1), round(width, 1), pieces, level)
        )
    line = [
        (round(LEFT + index * room + room / 2, 1), y(value)) for index, value in enumerate(other) if value is not None
    ]
    ticks = [(value, y(value)) for value in (0, top // 2, top)]
    return Chart(columns, ticks, line)


def _piece(agent: int | None, left: float, width: float, upper: float, lower: float) -> Piece:
    return Piece(agent, round(left, 1), upper, round(width, 1), round(max(lower - upper, 0), 1))
