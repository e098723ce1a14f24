"""The drawing of figures with matplotlib: plain axes, texts that stay texts, the same bytes every time."""

from __future__ import annotations

import io
import itertools
import math
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from polyloom.core.errors import MissingExtra
from polyloom.core.result import Series
from polyloom.reports.svg import ROLES, replace_texts
from polyloom.reports.tables import format_number
from polyloom.reports.text import human, one_line

WIDTH_INCHES, HEIGHT_INCHES = 5.2, 3.1
LEGEND_ROW_INCHES = 0.2
LEGEND_CHARACTERS = 60
NUM_COLOURS = 6
MAX_VALUE_LABELS = 12
MAX_MARKED_POINTS = 40
MAX_UPRIGHT_NAMES = 7
LABEL_CHARACTERS = 40
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_INK, _SOFT, _RULE = ROLES["ink"], ROLES["soft"], ROLES["rule"]
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "polyloom",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "text.color": _INK,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "legend.frameon": False,
    "legend.fontsize": 10.0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


class Canvas:
    """A figure being drawn. Texts stand in it as plain letters of like width until it is SVG.

    The library measures texts with a font of its own that lacks most scripts; the reader's browser has them.
    """

    def __init__(self, height_inches: float) -> None:
        """Make a figure with one pair of axes."""
        from matplotlib.figure import Figure as Drawing

        self.drawing = Drawing(figsize=(WIDTH_INCHES, height_inches), layout="constrained", facecolor="none")
        self.axes: Any = self.drawing.add_subplot(facecolor="none")
        self.texts: dict[str, str] = {}

    def text(self, text: str, limit: int = LABEL_CHARACTERS) -> str:
        """Return what to draw in the place of `text`."""
        shown = one_line(text, limit)
        # The library takes a leading underscore for a label to leave out of the legend.
        if shown.isascii() and not shown.startswith("_"):
            return shown or " "
        # Each stand-in is made unique by invisible letters, so that the right text is put back.
        stand_in = "".join(map(_letter, shown)) + "\N{ZERO WIDTH SPACE}" * (len(self.texts) + 1)
        self.texts[stand_in] = shown
        return stand_in

    def svg(self) -> str:
        """Return the drawing as SVG."""
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        buffer = io.StringIO()
        # `savefig` draws the same bytes, twice: once to lay the figure out, which drawing does by itself.
        canvas = FigureCanvasSVG(self.drawing)
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
        return replace_texts(buffer.getvalue(), self.texts)


def _letter(char: str) -> str:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return ""
    return "W" if unicodedata.east_asian_width(char) in "WF" else "n" if not char.isspace() else " "


@contextmanager
def _drawing_style() -> Iterator[None]:
    try:
        import matplotlib
    except ImportError:
        raise MissingExtra("matplotlib", extra="plots") from None
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A layout too tight for its labels is drawn all the same.
        warnings.simplefilter("ignore", UserWarning)
        yield


def draw_curves(series: Mapping[str, Series], log_x: bool | None) -> str:
    """Draw lines with bands and points with whiskers; returns SVG."""
    labels = short_labels(list(series))
    with _drawing_style():
        canvas = Canvas(HEIGHT_INCHES + LEGEND_ROW_INCHES * (_legend_rows(labels) - 1))
        for index, (label, curve) in enumerate(zip(labels, series.values(), strict=True)):
            _draw_curve(canvas, index, label, curve)
        axes = canvas.axes
        curves = list(series.values())
        if any(curve.x_names for curve in curves):
            _name_ticks(canvas, curves)
        else:
            if _is_logarithmic(curves) if log_x is None else log_x:
                axes.set_xscale("log")
                axes.xaxis.set_minor_formatter(lambda *_: "")
            axes.xaxis.set_major_formatter(_tick)
        axes.yaxis.set_major_formatter(_tick)
        axes.grid(axis="y")
        axes.margins(x=0.02)
        _label(canvas, curves[0].x_label, curves[0].y_label)
        _legend(canvas, len(series))
        return canvas.svg()


def short_labels(names: Sequence[str]) -> list[str]:
    """Return names for people, without the words that all of them begin with."""
    words = [human(name).split(" ") for name in names]
    shared = 0
    while len(words) > 1 and all(len(one) > shared + 1 for one in words) and len({one[shared] for one in words}) == 1:
        shared += 1
    return [" ".join(one[shared:]) for one in words]


def _draw_curve(canvas: Canvas, index: int, label: str, curve: Series) -> None:
    colour = ROLES[f"p{index % NUM_COLOURS + 1}"]
    x, y = _numbers(curve.x), _numbers(curve.y)
    low, high = _numbers(curve.low or curve.y), _numbers(curve.high or curve.y)
    bounded = curve.low is not None or curve.high is not None
    axes = canvas.axes
    marker = _MARKERS[index % len(_MARKERS)]
    if curve.kind == "scatter":
        if bounded:
            axes.vlines(x, low, high, color=colour, linewidth=1.2, alpha=0.7)
        axes.plot(x, y, linestyle="none", marker=marker, color=colour, alpha=0.85, label=canvas.text(label))
        return
    if bounded:
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    few = len(x) <= MAX_MARKED_POINTS
    style = _LINES[index // NUM_COLOURS % len(_LINES)]
    axes.plot(x, y, style, marker=marker if few else "", color=colour, label=canvas.text(label))


def draw_bars(series: Mapping[str, Series]) -> str:
    """Draw bars from zero with whiskers, beside each other by name: upright, or lying where names are many or long.

    Args:
        series: the bars by name; those without names are named by their x.

    Returns:
        SVG.
    """
    curves = list(series.values())
    names = _bar_names(curves)
    lying = len(names) > MAX_UPRIGHT_NAMES or sum(map(len, names)) > 48
    num_bars = len(names) * len(curves)
    with _drawing_style():
        height = max(HEIGHT_INCHES * 0.6, 0.9 + num_bars * 0.16 + len(names) * 0.12) if lying else HEIGHT_INCHES
        canvas = Canvas(min(height, 14.0))
        thickness = 0.8 / len(curves)
        for index, (label, curve) in enumerate(zip(short_labels(list(series)), curves, strict=True)):
            offset = (index - (len(curves) - 1) / 2) * thickness
            shown = canvas.text(label)
            _draw_bars(canvas, ROLES[f"p{index % NUM_COLOURS + 1}"], shown, curve, names, offset, thickness, lying)
        axes = canvas.axes
        ticks, labels = range(len(names)), [canvas.text(name) for name in names]
        if lying:
            axes.set_yticks(ticks, labels)
            axes.invert_yaxis()
        else:
            axes.set_xticks(ticks, labels)
        (axes.yaxis if lying else axes.xaxis).set_tick_params(length=0)
        (axes.xaxis if lying else axes.yaxis).set_major_formatter(_tick)
        axes.grid(axis="x" if lying else "y")
        (axes.axvline if lying else axes.axhline)(0, color=_SOFT, linewidth=0.8)
        if num_bars <= MAX_VALUE_LABELS:
            _label_bars(canvas, curves, names, thickness, lying)
        labels_of = (curves[0].y_label, "") if lying else (curves[0].x_label, curves[0].y_label)
        _label(canvas, *labels_of)
        _legend(canvas, len(series))
        return canvas.svg()


def _bar_names(curves: Sequence[Series]) -> list[str]:
    return list(dict.fromkeys(name for curve in curves for name in _names(curve)))


def _names(curve: Series) -> list[str]:
    return curve.x_names or [format_number(x) if x is not None else "" for x in curve.x]


def _draw_bars(
    canvas: Canvas,
    colour: str,
    label: str,
    curve: Series,
    names: list[str],
    offset: float,
    thickness: float,
    lying: bool,
) -> None:
    places = [names.index(name) + offset for name in _names(curve)]
    axes = canvas.axes
    draw: Callable[..., Any] = axes.barh if lying else axes.bar
    draw(places, _numbers(curve.y), thickness * 0.92, color=colour, label=label, linewidth=0)
    if curve.low is not None or curve.high is not None:
        bounds = _numbers(curve.low or curve.y), _numbers(curve.high or curve.y)
        lines: Callable[..., Any] = axes.hlines if lying else axes.vlines
        lines(places, *bounds, color=_INK, linewidth=1.2)


def _label_bars(canvas: Canvas, curves: Sequence[Series], names: list[str], thickness: float, lying: bool) -> None:
    """Write the number at the end of each bar, beyond its whisker."""
    for index, curve in enumerate(curves):
        offset = (index - (len(curves) - 1) / 2) * thickness
        bounds = (curve.low or curve.y, curve.high or curve.y)
        for i, (name, y) in enumerate(zip(_names(curve), curve.y, strict=True)):
            if y is None:
                continue
            end = bounds[0][i] if y < 0 else bounds[1][i]
            place, end = names.index(name) + offset, y if end is None else end
            sign = -1 if y < 0 else 1
            sides = {"ha": "left" if sign > 0 else "right", "va": "center"}
            if not lying:
                sides = {"ha": "center", "va": "bottom" if sign > 0 else "top"}
            canvas.axes.annotate(
                _tick(y, digits=3),
                (end, place) if lying else (place, end),
                xytext=(4 * sign, 0) if lying else (0, 3 * sign),
                textcoords="offset points",
                fontsize=9.0,
                **sides,
            )
    canvas.axes.margins(**{"x" if lying else "y": 0.12})


def draw_heat_map(rows: list[str], columns: list[str], values: list[list[float | None]]) -> str:
    """Draw a table of numbers as shaded cells; returns SVG."""
    sizes = [abs(value) for line in values for value in line if value is not None and math.isfinite(value)]
    given = [value for line in values for value in line if value is not None and math.isfinite(value)]
    signed = any(value < 0 for value in given) and any(value > 0 for value in given)
    floor = 0.0 if signed else min(sizes, default=0.0)
    span = max(sizes, default=0.0) - floor
    decimals = _cell_decimals(given)
    with _drawing_style():
        from matplotlib.patches import Rectangle

        canvas = Canvas(min(14.0, 0.9 + 0.3 * len(rows)))
        axes = canvas.axes
        for i, line in enumerate(values):
            for j, value in enumerate(line):
                if value is None or not math.isfinite(value):
                    continue
                depth = (abs(value) - floor) / span if span else 0.5
                colour = ROLES["p2"] if signed and value < 0 else ROLES["p1"]
                axes.add_patch(
                    Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, color=colour, alpha=0.06 + 0.44 * depth, lw=0)
                )
                if len(columns) <= 12:
                    axes.text(
                        j,
                        i,
                        f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}"),
                        ha="center",
                        va="center",
                        fontsize=9.0,
                    )
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        slanted = sum(map(len, columns)) > 48
        axes.set_xticks(range(len(columns)), [canvas.text(name, 24) for name in columns], rotation=35 if slanted else 0)
        axes.set_yticks(range(len(rows)), [canvas.text(name, 24) for name in rows])
        if slanted:
            for tick in axes.get_xticklabels():
                tick.set_ha("right")
                tick.set_rotation_mode("anchor")
        axes.tick_params(length=0, labelcolor=_INK)
        axes.spines[:].set_visible(False)
        return canvas.svg()


def _cell_decimals(values: Sequence[float]) -> int:
    """Return the decimals that give the greatest number three digits; none for whole numbers."""
    if all(float(value).is_integer() for value in values):
        return 0
    largest = max(abs(value) for value in values)
    return min(6, max(0, 2 - math.floor(math.log10(largest))))


def _label(canvas: Canvas, x_label: str, y_label: str) -> None:
    """Label the axes; the vertical one above itself, so that nobody has to turn their head."""
    canvas.axes.set_xlabel(canvas.text(x_label, 56))
    canvas.axes.set_title(canvas.text(y_label, 56), loc="left", color=_SOFT)


def _legend_columns(labels: Sequence[str]) -> int:
    widths = [6 + len(label) for label in labels]
    if sum(widths) <= LEGEND_CHARACTERS:
        return len(labels)
    return max(1, min(len(labels), LEGEND_CHARACTERS // max(widths)))


def _legend_rows(labels: Sequence[str]) -> int:
    return math.ceil(len(labels) / _legend_columns([one_line(label, LABEL_CHARACTERS) for label in labels]))


def _legend(canvas: Canvas, num_series: int) -> None:
    if num_series < 2:
        return
    handles, labels = canvas.axes.get_legend_handles_labels()
    columns = _legend_columns([label.rstrip("\N{ZERO WIDTH SPACE}") for label in labels])
    # Row by row, as people read, where the library fills columns.
    order = list(itertools.chain.from_iterable(range(start, num_series, columns) for start in range(columns)))
    canvas.drawing.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="outside upper left", ncols=columns
    )


def _name_ticks(canvas: Canvas, curves: Sequence[Series]) -> None:
    places: dict[float, str] = {}
    for curve in curves:
        for x, name in zip(curve.x, curve.x_names or (), strict=False):
            if x is not None:
                places.setdefault(x, name)
    slanted = sum(len(name) + 1 for name in places.values()) > 60
    canvas.axes.set_xticks(
        list(places), [canvas.text(name, 24) for name in places.values()], rotation=40 if slanted else 0
    )


def _is_logarithmic(curves: Sequence[Series]) -> bool:
    """Whether the points lie evenly on a logarithmic axis: all positive, over two powers of ten, most of them small."""
    places = sorted({x for curve in curves for x in curve.x if x is not None})
    if len(places) < 4 or places[0] <= 0 or places[-1] / places[0] < 50:
        return False
    return places[len(places) // 2] < places[-1] / 5


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _tick(value: float, _position: object = None, digits: int = 6) -> str:
    return format_number(value, digits).replace("-", "\N{MINUS SIGN}")
