"""A result as Markdown, to paste into an issue or a pull request, and as JSON."""

from __future__ import annotations

import re

from polyloom.core.result import Result
from polyloom.reports.commands import find_card, repeat_commands
from polyloom.reports.figures import series_groups
from polyloom.reports.tables import Grid, Shown, grid, scalars_table, series_table
from polyloom.reports.text import clean, human, one_line

# Underscores inside words are no markup; text never starts a line, so list marks are none either.
_SPECIAL = re.compile(r"[\\`*\[\]|~$#!]|(?<![^\W_])_|_(?![^\W_])")


def render_json(result: Result) -> str:
    """Return the text of `result.json`."""
    return result.model_dump_json(indent=1) + "\n"


def render_markdown(result: Result) -> str:
    """Return the result as GitHub-flavoured Markdown, without figures but with their numbers."""
    card = find_card(result.room)
    parts = [f"# {escape(card.title if card else human(result.room))}: {escape(human(result.verb))}"]
    if card:
        parts.append(f"*{escape(card.question)}*")
    parts.append("\n".join(f"- **{escape(verdict)}**" for verdict in result.verdicts))
    if result.scalars:
        parts.append("## Figures\n\n" + table_markdown(scalars_table(result.scalars)))
    for name, table in result.tables.items():
        parts.append(f"## {escape(table.title or human(name))}\n\n{table_markdown(grid(table))}")
    for name, group in series_groups(result).items():
        parts.append(f"## Numbers of the figure: {escape(name)}\n\n{table_markdown(series_table(group))}")
    if result.artifacts:
        lines = (f"- {code(item.path)}: {escape(item.description)}" for item in result.artifacts.values())
        parts.append("## Files of the run\n\n" + "\n".join(lines))
    if result.limitations:
        parts.append("## Limitations\n\n" + "\n".join(f"- {escape(line)}" for line in result.limitations))
    parts.append(_provenance(result))
    return "\n\n".join(part for part in parts if part) + "\n"


def table_markdown(shown: Grid) -> str:
    """Return a table as Markdown; numbers are aligned to the right."""
    rule = "| " + " | ".join("---:" if numeric else "---" for numeric in shown.numeric) + " |"
    lines = [_row([escape(header) for header in shown.headers]), rule]
    lines += [_row([_cell(cell) for cell in row]) for row in shown.rows]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Return text on one line in which nothing is markup: it shows as it is, in a table's cell too."""
    safe = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(lambda match: "\\" + match[0], safe)


def code(text: str) -> str:
    """Return text as a code span, with a fence longer than any run of backticks in it."""
    plain = one_line(text).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    fence = "`" * (longest + 1)
    gap = " " if longest else ""
    return f"{fence}{gap}{plain}{gap}{fence}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(cell: Shown) -> str:
    return escape(cell.text) if cell.exact is None else f"{cell.text} {cell.interval}".strip()


def _provenance(result: Result) -> str:
    given = result.provenance
    rows = [("run", result.run), ("started", given.started), ("seed", str(given.seed))]
    rows += [("elapsed", f"{given.elapsed_seconds:.1f} s"), ("processor time", f"{given.cpu_seconds:.1f} s")]
    rows += [("git revision", given.git_revision or "unknown")]
    rows += [(name, str(value)) for name, value in given.machine.items()]
    rows += [(f"version of {name}", version) for name, version in given.versions.items()]
    lines = [f"- {escape(human(name))}: {escape(value)}" for name, value in rows]
    fence = "```"
    commands = "\n".join(clean(command) for _, command in repeat_commands(result))
    while fence in commands:
        fence += "`"
    return "## Provenance\n\n" + "\n".join(lines) + f"\n\n{fence}sh\n{commands}\n{fence}"
