"""The room's figures: edit steps and scores as bars, and the graph with each edge in the colour of its edit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from polyloom.core.result import Result, Table
from polyloom.core.seeding import numpy_generator
from polyloom.reports.figures import Figure, default_figures
from polyloom.reports.svg import ROLES

WIDTH, HEIGHT, MARGIN = 760, 560, 46
COLOURS = {"kept": "p1", "added": "p2", "removed": "p3"}
MAX_LABEL = 14
Positions = NDArray[np.float64]


def figures(result: Result) -> list[Figure]:
    """Draw a result of the room; the study has its graph besides.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    drawn = default_figures(result)
    if result.verb == "study" and result.tables["graph"].rows:
        return [graph_figure(result.tables["graph"]), *drawn]
    return drawn


def graph_figure(table: Table) -> Figure:
    """Draw the edges of a table (head, head type, relation, tail, tail type, edit, document) as a graph."""
    edges = [(str(row[0]), str(row[3]), str(row[2]), str(row[5])) for row in table.rows]
    names = list(dict.fromkeys(name for head, tail, *_ in edges for name in (head, tail)))
    counts = Counter(edit for *_, edit in edges)
    places = dict(zip(names, layout(names, edges), strict=True))
    parts = [_line(places[h], places[t], edit) for h, t, _, edit in edges]
    parts += [_node(name, places[name]) for name in names]
    parts += [_legend(i, edit, counts[edit]) for i, edit in enumerate(COLOURS)]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        + "".join(parts)
        + "</svg>"
    )
    told = ", ".join(f"{count} {edit}" for edit, count in counts.items())
    return Figure(
        "The documents' graph and its edits",
        "Relations of the first test documents: recommended and kept, missing and added, wrong and removed. "
        "The table below names every relation.",
        svg,
        f"A graph of {len(names)} entities with {len(edges)} relations: {told}.",
    )


def layout(names: Sequence[str], edges: Sequence[tuple[str, str, str, str]], num_steps: int = 200) -> Positions:
    """Return [names, 2] positions inside the drawing by Fruchterman and Reingold's forces; the same every time."""
    index = {name: i for i, name in enumerate(names)}
    links = np.array([[index[head], index[tail]] for head, tail, *_ in edges])
    places = numpy_generator(0, "graph layout").uniform(-1, 1, (len(names), 2))
    distance = 1.6 / math.sqrt(max(1, len(names)))
    for step in range(num_steps):
        gap = places[:, None] - places[None]
        length = np.maximum(np.linalg.norm(gap, axis=2), 1e-3)
        force = (gap * (distance / length)[..., None] ** 2).sum(1)
        pull = places[links[:, 1]] - places[links[:, 0]]
        pull *= np.linalg.norm(pull, axis=1, keepdims=True) / distance
        np.add.at(force, links[:, 0], pull)
        np.add.at(force, links[:, 1], -pull)
        force -= 0.3 * places
        size = np.maximum(np.linalg.norm(force, axis=1, keepdims=True), 1e-9)
        places += force / size * np.minimum(size, 0.12 * (1 - step / num_steps))
    low, high = places.min(0), places.max(0)
    scale = np.array([WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN - 20]) / np.maximum(high - low, 1e-9)
    placed: Positions = (places - low) * scale + [MARGIN, MARGIN + 20]
    return placed


def _line(start: Positions, end: Positions, edit: str) -> str:
    colour = ROLES[COLOURS[edit]]
    dash = ' stroke-dasharray="5 4"' if edit == "removed" else ""
    (a, b), (c, d) = start, end
    return (
        f'<line x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}" stroke="{colour}" '
        f'stroke-width="{1.2 if edit == "kept" else 2.2}"{dash}/>'
    )


def _node(name: str, place: Positions) -> str:
    label = name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "…"
    x, y = place
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{ROLES["ink"]}"/>'
        f'<text x="{x:.1f}" y="{y - 7:.1f}" text-anchor="middle" font-size="11" fill="{ROLES["ink"]}">'
        f"{escape(label)}</text>"
    )


def _legend(number: int, edit: str, count: int) -> str:
    x = MARGIN + 150 * number
    line = _line(np.array([x, 16.0]), np.array([x + 26.0, 16.0]), edit)
    return f'{line}<text x="{x + 32}" y="20" font-size="12" fill="{ROLES["soft"]}">{edit} ({count})</text>'


def bars_of(counts: Mapping[str, int]) -> list[float]:
    """Return counts as the heights of bars."""
    return [float(count) for count in counts.values()]
