"""What can be seen of a run while it is at work: how far it came, its curves, and the last lines it wrote."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from polyloom.reports.tables import format_number
from polyloom.reports.text import human
from polyloom.web.jobs import LOG_FILE

TAIL_BYTES = 64 * 2**10
METRICS_BYTES = 4 * 2**20
MAX_BARS = 12
MAX_CURVES = 12
MAX_POINTS = 240
WIDTH, HEIGHT = 240, 64
_PROGRESS = re.compile(r"(?P<label>.+): (?P<done>\d{1,15})/(?P<total>\d{1,15})")
# What places a point rather than being measured there.
PLACES = ("step", "epoch", "seed", "time", "round", "month")


@dataclass(frozen=True)
class Bar:
    """How far one part of the work came."""

    label: str
    done: int
    total: int

    @property
    def percent(self) -> int:
        """Done hundredths."""
        return min(100, 100 * self.done // max(1, self.total))


@dataclass(frozen=True)
class Curve:
    """One logged quantity over the lines of `metrics.jsonl`, ready to be drawn in `WIDTH` by `HEIGHT`."""

    name: str
    points: str
    last: str
    low: str
    high: str
    num_points: int


def read_log(folder: Path) -> tuple[list[Bar], list[str]]:
    """Return the bars of progress and the last other lines of a run's log.

    Args:
        folder: the run's folder.
    """
    bars: dict[str, Bar] = {}
    lines: list[str] = []
    for line in _tail(folder / LOG_FILE, TAIL_BYTES).splitlines():
        match = _PROGRESS.fullmatch(line.strip())
        if match:
            bars.pop(match["label"], None)
            bars[match["label"]] = Bar(match["label"], int(match["done"]), int(match["total"]))
        elif line.strip():
            lines.append(line.rstrip())
    return list(bars.values())[-MAX_BARS:], lines[-20:]


def read_curves(folder: Path) -> list[Curve]:
    """Return the curves of what a run logged; of very long logs the last part.

    Args:
        folder: the run's folder.
    """
    values: dict[str, list[float]] = {}
    for line in _tail(folder / "metrics.jsonl", METRICS_BYTES).splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict):
            continue
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                values.setdefault(name, []).append(float(value))
    found = [draw(name, series) for name, series in values.items() if name not in PLACES and len(series) > 1]
    return found[:MAX_CURVES]


def draw(name: str, series: list[float]) -> Curve:
    """Place a series in the drawing, of many points every so many-th and the last."""
    stride = -(-len(series) // MAX_POINTS)
    kept = [*series[:-1:stride], series[-1]]
    low, high = min(kept), max(kept)
    span = (high - low) or 1.0
    across = WIDTH / max(1, len(kept) - 1)
    places = (f"{i * across:.1f},{HEIGHT - (y - low) / span * HEIGHT:.1f}" for i, y in enumerate(kept))
    last, least, greatest = (format_number(value) for value in (series[-1], low, high))
    return Curve(human(name), " ".join(places), last, least, greatest, len(series))


def _tail(path: Path, limit: int) -> str:
    """Return the end of a text file, without the line that the limit cuts and without one that is being written."""
    if not path.exists():
        return ""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - limit))
        data = stream.read()
    if size > limit:
        data = data[data.find(b"\n") + 1 :]
    return data[: data.rfind(b"\n") + 1].decode("utf-8", "replace")
