"""Make the pages of `docs/generated` from the code: rooms, commands, configurations, results, papers."""

from __future__ import annotations

import json
import os
import re
import shutil
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from cyclopts import App
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from polyloom.cli.app import build_app
from polyloom.core.config import Config
from polyloom.core.registry import RoomCard, card, rooms
from polyloom.core.result import Result

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
OUT = DOCS / "generated"
METHODS = ROOT / "src" / "polyloom" / "methods"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def escape(cell: object) -> str:
    """Escape the bars of a table's cell; the site's Markdown needs that outside code only."""
    parts = str(cell).split("`")
    return "`".join(part if index % 2 else part.replace("|", "\\|") for index, part in enumerate(parts))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(escape, line)) + " |" for line in lines) + "\n"


def type_name(annotation: Any) -> str:
    """Say in words what an option takes."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(part) for part in arguments if part is not type(None))
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin in (tuple, list):
        return f"{type_name(arguments[0])}, repeated"
    names = {str: "text", int: "integer", float: "number", bool: "yes or no", Path: "path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def bounds(field: FieldInfo) -> str:
    """Say the limits of an option's value."""
    words = []
    for limit in field.metadata:
        match limit:
            case Ge(ge=value):
                words.append(f"at least {value}")
            case Gt(gt=value):
                words.append(f"above {value}")
            case Le(le=value):
                words.append(f"at most {value}")
            case Lt(lt=value):
                words.append("below 2^63" if value == 2**63 else f"below {value}")
            case MinLen(min_length=value):
                words.append(f"at least {value} of them")
            case MaxLen(max_length=value):
                words.append(f"at most {value} of them")
            case _:
                pass
    return ", ".join(words)


def default(field: FieldInfo) -> str:
    """Write an option's default, as one would type it."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None or value == ():
        return "none"
    if isinstance(value, (tuple, list)):
        return " ".join(f"`{item}`" for item in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def options_table(model: type[Config]) -> str:
    """Tabulate the fields of a configuration."""
    rows = []
    for name, field in model.model_fields.items():
        kind = ", ".join(part for part in (type_name(field.annotation), bounds(field)) if part)
        rows.append((f"`{name}`", kind, default(field), field.description or ""))
    return table(("key", "takes", "default", "meaning"), rows)


def relink(markdown: str, source: Path, page: Path) -> str:
    """Turn the relative links of a file into links of the page that includes it.

    Args:
        markdown: the text of `source`.
        source: the file that the links are relative to.
        page: the page of the site.

    Returns:
        The text: links into `docs/` point there from `page`, links to other files of the repository become their label.
    """

    def replace(match: re.Match[str]) -> str:
        bang, label, target = match.groups()
        path, hash_mark, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return match[0]
        file = Path(os.path.normpath(source.parent / path))
        if file.is_relative_to(DOCS):
            return f"{bang}[{label}]({os.path.relpath(file, page.parent)}{hash_mark}{anchor})"
        return label

    return LINK.sub(replace, markdown)


def demote(markdown: str) -> str:
    """Drop the first heading and put the others one level down, outside code blocks."""
    lines, fenced, dropped = [], False, False
    for line in markdown.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if not fenced and line.startswith("# ") and not dropped:
            dropped = True
            continue
        lines.append("#" + line if not fenced and re.match(r"#{2,5} ", line) else line)
    return "\n".join(lines).strip() + "\n"


def paper_link(arxiv: str) -> str:
    """Link an arXiv number."""
    return f"[arXiv {arxiv}](https://arxiv.org/abs/{arxiv})"


def room_page(room: RoomCard, page: Path) -> str:
    """Write a room's page: its card, its README, its options and its equation map."""
    verbs = [(f"`polyloom {room.name} {verb.name}`", verb.summary) for verb in room.verbs]
    parts = [f"# {room.title}\n", f"*{room.question}*\n", table(("command", "what it does"), verbs)]
    if room.tour:
        parts.append(f"Its step of the tour is `{room.name} {room.tour.verb}`.\n")
    readme = METHODS / room.name / "README.md"
    if readme.exists():
        parts += ["## The room\n", demote(relink(readme.read_text(encoding="utf-8"), readme, page))]
    parts.append("## Options\n")
    for verb in room.verbs:
        parts += [f"### `{room.name} {verb.name}`\n", options_table(verb.load_config())]
    if room.equations:
        rows = [(f"`{row.name}`", row.meaning, f"`{row.function}`") for row in room.equations]
        parts += ["## Equations and where they are computed\n", table(("equation", "meaning", "function"), rows)]
    papers = [(paper.title, paper.authors, paper.year, paper_link(paper.arxiv)) for paper in room.papers]
    parts += ["## Papers\n", table(("paper", "authors", "year", ""), papers)]
    return "\n".join(parts)


def rooms_page() -> str:
    """Write the index of rooms."""
    rows = [(f"[`{room.name}`]({room.name}.md)", room.title, room.question) for room in rooms().values()]
    return f"# Rooms\n\n{table(('room', 'title', 'the question it answers'), rows)}"


def configurations_page() -> str:
    """Write the table of every verb's configuration."""
    parts = [
        "# Configurations\n",
        "The keys of each verb: options on the command line (`--` and dashes for underscores), keys of a YAML file, "
        "arguments of `polyloom.run`.\n",
    ]
    for room in (card("tour"), *rooms().values()):
        for verb in room.verbs:
            parts += [f"## `{room.name}.{verb.name}`\n", f"{verb.summary}\n", options_table(verb.load_config())]
    return "\n".join(parts)


def papers_page() -> str:
    """Write the index of papers over all rooms, newest first."""
    found = [(paper, room.name) for room in rooms().values() for paper in room.papers]
    found.sort(key=lambda pair: (-pair[0].year, pair[0].title))
    rows = [
        (paper.title, paper.authors, paper.year, paper_link(paper.arxiv), f"[`{room}`](rooms/{room}.md)")
        for paper, room in found
    ]
    return f"# Papers\n\nWhat the rooms stand on.\n\n{table(('paper', 'authors', 'year', 'where', 'room'), rows)}"


def commands_page() -> str:
    """Write the reference of the command line from the application itself."""
    intro = (
        "Every verb of a room takes the keys of its [configuration](configurations.md) as options, and "
        "`--config`, `--runs`, `--run`, `--json`. `--debug` anywhere shows a traceback instead of one line. "
        "Exit codes: 0 done, 1 failed, 2 refused input, 75 stopped and resumable.\n"
    )
    text = reference(build_app([]), heading_level=1)
    for name in rooms():
        # The whole application holds a room's summary only; its verbs are built when the room is named.
        section = reference(build_app([name])[name], heading_level=2)
        section = re.sub(rf"^(#+) {name}\b", rf"\1 polyloom {name}", section, flags=re.MULTILINE)
        section = section.replace(f"](#{name}-", f"](#polyloom-{name}-")
        start = text.index(f"## polyloom {name}\n")
        end = text.find("\n## ", start)
        text = text[:start] + section + (text[end:] if end >= 0 else "")
    return text.replace("# polyloom\n", f"# Commands\n\n{intro}", 1)


def reference(app: App, heading_level: int) -> str:
    """Return the Markdown that cyclopts writes for an application and its commands."""
    usage = "polyloom" if heading_level == 1 else f"polyloom {app.name[0]}"
    return plain_headings(app.generate_docs("markdown", heading_level=heading_level, usage_name=usage))


def plain_headings(markdown: str) -> str:
    """Drop the table of contents and the anchors that cyclopts writes; the site makes its own."""
    text = re.sub(r"^#+ Table of Contents\n(?:\s*[-*] .*\n|\n)*", "", markdown, flags=re.MULTILINE)
    return re.sub(r'<a id="[^"]*"></a>\n?', "", text)


def schema_type(schema: Mapping[str, Any]) -> str:
    """Say in words what a property of the JSON schema holds."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(schema_type(part) for part in schema["anyOf"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of ({schema_type(schema['items'])})"
    if schema.get("type") == "object":
        inner = schema.get("additionalProperties")
        return f"object of ({schema_type(inner)})" if isinstance(inner, dict) else "object"
    return str(schema.get("type", "anything"))


def results_page(schema: Mapping[str, Any]) -> str:
    """Write the page of `result.json` from the model's JSON schema."""
    parts = [
        "# Results and reports\n",
        "Every verb returns one `Result`. The run's `result.json` holds it, `--json` prints exactly it, `polyloom.run` "
        "returns it, and `report.html` is drawn from it. NaN and infinities are written as `null`. The JSON schema is "
        "[result.schema.json](result.schema.json). A file of a newer schema version is refused, not guessed at.\n",
        "`report.html` is one file that works offline: title and question, figures, tables, verdicts, limitations, "
        "provenance and the command that repeats the run. `polyloom report RUN --format markdown` prints the same "
        "without figures.\n",
    ]
    for name, part in {"Result": schema, **schema["$defs"]}.items():
        rows = [
            (f"`{key}`", schema_type(value), f"`{json.dumps(value['default'])}`" if "default" in value else "")
            for key, value in part["properties"].items()
        ]
        parts += [
            f"## {name}\n",
            f"{part.get('description', '')}\n",
            table(("key", "holds", "where nothing is given"), rows),
        ]
    return "\n".join(parts)


def write_pages(out: Path) -> int:
    """Write all pages anew into `out` and return their number."""
    shutil.rmtree(out, ignore_errors=True)
    schema = Result.model_json_schema()
    pages = {
        "rooms/index.md": rooms_page(),
        "configurations.md": configurations_page(),
        "papers.md": papers_page(),
        "commands.md": commands_page(),
        "results.md": results_page(schema),
        "result.schema.json": json.dumps(schema, indent=1) + "\n",
    }
    pages |= {f"rooms/{name}.md": room_page(room, OUT / "rooms" / f"{name}.md") for name, room in rooms().items()}
    for name, text in pages.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return len(pages)


if __name__ == "__main__":
    print(f"{write_pages(OUT)} files in {OUT.relative_to(ROOT)}")
