"""One self-contained page: no scripts, nothing loaded, readable in light and dark, on paper and on a phone."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from polyloom.core.errors import MissingExtra
from polyloom.core.registry import RoomCard
from polyloom.core.result import Provenance, Result, Scalar, Series, Table
from polyloom.reports.commands import command_line, find_card, repeat_commands
from polyloom.reports.figures import Figure, describe, figures_for, series_groups
from polyloom.reports.svg import embed
from polyloom.reports.tables import Grid, Shown, grid, scalars_table, series_table, show_scalar, unit_gap
from polyloom.reports.text import clean, human, one_line, sentence

TEMPLATES = Path(__file__).parent / "templates"
NUM_CARDS = 6
MAX_POINTS = 400


@dataclass(frozen=True)
class Section:
    """One part of the tour's page: a room's step, done or failed.

    Attributes:
        name: the room's name.
        title: the room's title.
        question: what the room answers.
        run: the step's run.
        result: what it found; None when it failed.
        error: the line that says why it failed.
        link: the path of the step's own report, relative to the page.
        figures: its figures; by default those of `figures_for`.
    """

    name: str
    title: str
    question: str = ""
    run: str = ""
    result: Result | None = None
    error: str | None = None
    link: str | None = None
    figures: Sequence[Figure] | None = None


@dataclass(frozen=True)
class _Drawn:
    """A figure as the page shows it: its markup, and the numbers behind it."""

    anchor: str
    name: str
    caption: str
    markup: Markup | None
    description: str = ""
    numbers: Grid | None = None
    left_out: int = 0


@dataclass(frozen=True)
class _Content:
    """What the page shows of one result."""

    verdicts: list[str] = field(default_factory=list)
    cards: list[dict[str, Any]] = field(default_factory=list)
    more: Grid | None = None
    figures: list[_Drawn] = field(default_factory=list)
    tables: list[tuple[str, Grid]] = field(default_factory=list)
    limitations: list[str] = field(default_factory=list)
    note: str = ""


def render_html(result: Result, *, card: RoomCard | None = None, figures: Sequence[Figure] | None = None) -> str:
    """Render a result as one page.

    Args:
        result: the result.
        card: the room's card; by default the one that is registered.
        figures: the figures; by default those of `figures_for`.

    Returns:
        The page; the same result gives the same bytes.
    """
    card = card or find_card(result.room)
    verbs = [verb.summary for verb in card.verbs if verb.name == result.verb] if card else []
    return _render(
        "report.html.j2",
        title=f"{card.title if card else human(result.room)}: {human(result.verb)}",
        card=card,
        summary=verbs[0] if verbs else "",
        result=result,
        content=_content(result, "figure", figures),
        headline_first=False,
        provenance=_provenance(result),
    )


def render_findings(result: Result, *, prefix: str = "figure", figures: Sequence[Figure] | None = None) -> str:
    """Render what a result found as a part of a page: headline, key figures, figures, verdicts, tables and limitations.

    The page that takes it needs the style sheet of `stylesheet`.

    Args:
        result: the result.
        prefix: what the figures' identifiers start with; no two results of a page share it.
        figures: the figures; by default those of `figures_for`.
    """
    content = _content(result, prefix, figures)
    parts = (_environment().get_template(name) for name in ("findings.html.j2", "limits.html.j2"))
    return "".join(part.render(content=content, headline_first=True) for part in parts)


def stylesheet() -> str:
    """Return the reports' style sheet."""
    return str(_style()[0])


def render_tour_html(result: Result, sections: Sequence[Section], *, title: str = "", introduction: str = "") -> str:
    """Render many results as one page with a table of contents.

    Args:
        result: the tour's own result: its figures make the section of the model, its provenance ends the page.
        sections: the rooms' parts, in their order.
        title: the page's title.
        introduction: a sentence below it.

    Returns:
        The page; a section without a result shows its error.
    """
    own = _own_part(result, sections)
    parts = [_part(section, f"room-{number}") for number, section in enumerate(sections, 1)]
    rooms = f"{len(sections)} room{'' if len(sections) == 1 else 's'}"
    return _render(
        "tour.html.j2",
        title=title or f"One model through {rooms}",
        introduction=introduction,
        result=result,
        model=_content(own, "model-figure", None),
        parts=parts,
        num_failed=sum(section.result is None for section in sections),
        provenance=_provenance(result),
    )


def _own_part(result: Result, sections: Sequence[Section]) -> Result:
    """Return the tour's result without what the rooms' sections say: their verdicts, limitations and the step table."""
    names = [section.name for section in sections]
    theirs = {line for section in sections if section.result for line in section.result.limitations}
    return result.model_copy(
        update={
            "verdicts": [v for v in result.verdicts if not any(v.startswith((f"{n}: ", f"{n} failed")) for n in names)],
            "limitations": [line for line in result.limitations if line not in theirs],
            "tables": {name: table for name, table in result.tables.items() if name != "steps"},
            "scalars": {n: s for n, s in result.scalars.items() if n not in ("num_steps", "failed_steps")},
        }
    )


def _part(section: Section, anchor: str) -> dict[str, Any]:
    result = section.result
    card = find_card(section.name)
    summaries = [verb.summary for verb in card.verbs if result and verb.name == result.verb] if card else []
    return {
        "anchor": anchor,
        "section": section,
        "link": _relative(section.link) if section.link else None,
        "content": _content(result, f"{anchor}-figure", section.figures) if result else _Content(),
        "command": command_line(result) if result else "",
        "ran": summaries[0] if summaries else "",
        "seconds": result.provenance.cpu_seconds if result else None,
        "profile": result.provenance.config.get("profile") if result else None,
    }


def _content(result: Result, prefix: str, figures: Sequence[Figure] | None) -> _Content:
    drawn, note = _figures(result, prefix, figures)
    given = [(name, scalar) for name, scalar in result.scalars.items() if scalar.value is not None]
    first = dict(given[:NUM_CARDS])
    rest = {name: scalar for name, scalar in result.scalars.items() if name not in first}
    return _Content(
        verdicts=result.verdicts,
        cards=[_card(name, scalar) for name, scalar in first.items()],
        more=scalars_table(rest, "More figures") if rest else None,
        figures=drawn,
        tables=[_titled(name, table) for name, table in result.tables.items()],
        limitations=result.limitations,
        note=note,
    )


def _card(name: str, scalar: Scalar) -> dict[str, Any]:
    shown = show_scalar(scalar)
    is_number = shown.exact is not None
    return {
        "label": human(name),
        "shown": shown,
        "gap": unit_gap(scalar.unit or ""),
        "unit": one_line(scalar.unit or ""),
        "words": not is_number and len(shown.text) > 12,
    }


def _titled(name: str, table: Table) -> tuple[str, Grid]:
    return sentence(one_line(table.title) or human(name)), grid(table)


def _figures(result: Result, prefix: str, figures: Sequence[Figure] | None) -> tuple[list[_Drawn], str]:
    """Return the figures with their numbers, then the numbers that no figure shows; and why figures are missing."""
    note = ""
    try:
        given = list(figures_for(result) if figures is None else figures)
    except MissingExtra as missing:
        given, note = [], f"Figures are left out, their numbers are below: {missing}"
    drawn = [_drawn(figure, f"{prefix}-{number}", result) for number, figure in enumerate(given, 1)]
    covered = {name for figure in given for name in figure.series}
    for name, group in series_groups(result).items():
        rest = {key: series for key, series in group.items() if key not in covered}
        if rest:
            numbers, left_out = _numbers(rest, name)
            anchor = f"{prefix}-{len(drawn) + 1}"
            drawn.append(_Drawn(anchor, name, "", None, describe(rest), numbers, left_out))
    return drawn, note


def _drawn(figure: Figure, anchor: str, result: Result) -> _Drawn:
    description = figure.description or figure.caption
    markup = Markup(embed(figure.svg, anchor, figure.name, description))
    shown = {name: result.series[name] for name in figure.series if name in result.series}
    numbers, left_out = _numbers(shown, figure.name) if shown else (None, 0)
    return _Drawn(anchor, figure.name, figure.caption, markup, description, numbers, left_out)


def _numbers(series: dict[str, Series], name: str) -> tuple[Grid, int]:
    """Lay out the numbers of a figure; of very many only the first, with how many are left out."""
    laid_out = series_table(series, f"Numbers of the figure: {one_line(name)}")
    kept = laid_out.rows[:MAX_POINTS]
    return Grid(laid_out.headers, laid_out.numeric, kept, laid_out.title), len(laid_out.rows) - len(kept)


def _provenance(result: Result) -> dict[str, Any]:
    given: Provenance = result.provenance
    return {
        "commands": repeat_commands(result),
        "groups": [
            ("Run", _run_facts(result)),
            ("Configuration", [(key, _plain(value)) for key, value in given.config.items()]),
            ("Versions", list(given.versions.items())),
            ("Machine", list(given.machine.items())),
        ],
        "started": _moment(given.started),
        "duration": _duration(given.elapsed_seconds),
    }


def _run_facts(result: Result) -> list[tuple[str, str]]:
    given = result.provenance
    return [
        ("run", result.run),
        ("room and verb", f"{result.room} {result.verb}"),
        ("seed", str(given.seed)),
        ("started", given.started),
        ("elapsed", f"{given.elapsed_seconds:,.1f} s"),
        ("processor time", f"{given.cpu_seconds:,.1f} s"),
        ("git revision", given.git_revision or "unknown"),
        ("result schema", str(result.schema_version)),
    ]


def _plain(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _moment(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return one_line(text)
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()


def _duration(seconds: float) -> str:
    gap = "\N{NO-BREAK SPACE}"
    if seconds < 60:
        return f"{seconds:.1f}{gap}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{gap}h {minutes}{gap}min" if hours else f"{minutes}{gap}min {rest}{gap}s"


def _relative(path: str) -> str | None:
    """Return a path as a link that stays relative, or None where it would lead elsewhere."""
    plain = one_line(path).replace("\\", "/")
    return None if not plain or plain.startswith("/") or re.match(r"[A-Za-z]:/", plain) else "./" + quote(plain)


def _show(cell: Shown) -> Markup:
    """Return a cell's markup: the number as it is read, the exact one for machines, and the interval beside it."""
    if cell.exact is None:
        return Markup("{}").format(cell.text)
    number = Markup('<data value="{}">{}</data>').format(cell.exact, _typographic(cell.text))
    if not cell.interval:
        return number
    return number + Markup(' <span class="interval">{}</span>').format(_typographic(cell.interval))


def _typographic(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def _interval_words(interval: str) -> str:
    low, _, high = interval.strip("[]").partition(", ")
    return f"{_typographic(low)} to {_typographic(high)}"


def environment(*folders: Path) -> Environment:
    """Return what renders the templates of `folders` and the reports' own: everything escaped, nothing undefined.

    Args:
        folders: where templates are looked for first.
    """
    made = Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    made.filters |= {"show": _show, "human": human, "interval": _interval_words, "relative": _relative}
    made.filters["duration"] = _duration
    return made


@cache
def _environment() -> Environment:
    return environment()


@cache
def _style() -> tuple[Markup, str]:
    """Return the style sheet, and the hash that lets the page's policy allow it and nothing else."""
    css = "\n".join(_lines((Path(__file__).parent / "style.css").read_text(encoding="utf-8")))
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return Markup(css), f"sha256-{digest}"


def _lines(css: str) -> Iterable[str]:
    without_comments = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    return (line.strip() for line in without_comments.splitlines() if line.strip())


def _render(template: str, **values: Any) -> str:
    style, digest = _style()
    html = _environment().get_template(template).render(style=style, style_hash=digest, **values)
    return html if html.endswith("\n") else html + "\n"
