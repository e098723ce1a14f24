"""Markdown, JSON, the terminal and the command that repeats a result."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from polyloom.core.result import Result, Scalar, Table
from polyloom.reports import command_line, print_summary, render_json, render_markdown
from polyloom.reports.markdown import code, escape, table_markdown
from polyloom.reports.tables import format_scalar, grid
from tests.reports.conftest import provenance


def test_every_figure_and_sentence_is_in_the_markdown(result: Result) -> None:
    text = render_markdown(result)
    for shown in ("| bits per byte | 1.473 bits/byte [1.441, 1.509] |", "| share | 12.5% |", "| p value | 3.2e-7 |"):
        assert shown in text
    assert "| English | 1.200 [1.150, 1.260] | 6012 |" in text
    for sentence in [*result.verdicts, *result.limitations]:
        assert sentence in text
    assert "| model | 中文（简体） | 1.430 [1.380, 1.480] |" in text
    assert "polyloom rerun unregistered-study-1\npolyloom unregistered study --seed 7 --profile quick" in text


def test_json_is_the_result(result: Result) -> None:
    assert Result.model_validate(json.loads(render_json(result))) == result


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5), st.text(min_size=1))
def test_a_cell_never_breaks_its_table(rows: list[tuple[str, str]], header: str) -> None:
    text = table_markdown(grid(Table(columns=[header, "b"], rows=[list(row) for row in rows])))
    lines = text.split("\n")
    assert len(lines) == len(rows) + 2
    for line in lines:
        assert line.replace("\\\\", "").replace("\\|", "").count("|") == 3
        assert "<" not in line


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("snake_case stays", "snake_case stays"),
        ("_marked_ *bold*", r"\_marked\_ \*bold\*"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("[a](b) `c` ~d~ $e$", r"\[a\](b) \`c\` \~d\~ \$e\$"),
        ("two\nlines", "two lines"),
        ("1.47 of 2.00", "1.47 of 2.00"),
    ],
)
def test_markup_is_escaped(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_code_spans_hold_backticks() -> None:
    assert code("a") == "`a`"
    assert code("a``b") == "``` a``b ```"


def print_to_text(result: Result, width: int = 100, report: Path | None = None) -> str:
    stream = io.StringIO()
    print_summary(result, Console(file=stream, width=width, color_system=None), report=report)
    return stream.getvalue()


def test_the_terminal_shows_verdicts_first_and_the_report_last(result: Result) -> None:
    text = print_to_text(result, report=Path("runs") / ("a" * 120) / "report.html")
    assert text.index("The model spends 1.47") < text.index("1.473 bits/byte [1.441, 1.509]")
    assert text.rstrip().endswith(f"Report: runs/{'a' * 120}/report.html")
    assert "1 limitation: see the report." in text


def test_the_terminal_is_given_no_escape_codes_and_no_markup(result: Result) -> None:
    verdicts = ["\x1b[2J[red]cleared[/red] [/] \x07"]
    text = print_to_text(result.model_copy(update={"verdicts": verdicts, "scalars": {"[a": Scalar(value="[/b]")}}))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]cleared[/red] [/]" in text
    assert "[/b]" in text


def test_long_tables_stay_in_the_report(result: Result) -> None:
    table = Table(columns=["n"], rows=[[10_000 + i] for i in range(40)], title="Long")
    text = print_to_text(result.model_copy(update={"tables": {"long": table}}))
    assert "In the report: Long" in text
    assert "10,039" not in text


def test_the_command_has_every_option_that_is_set() -> None:
    config = {"text": ["a b", "c"], "model": None, "fast": True, "slow": False, "rate": 0.5, "map": {"a": 1}}
    result = Result(room="room", verb="verb", run="r", provenance=provenance(**config))
    words = shlex.split(command_line(result))
    expected = ["polyloom", "room", "verb", "--seed", "7", "--profile", "quick", "--text", "a b", "--text", "c"]
    assert words == [*expected, "--fast", "--no-slow", "--rate", "0.5", "--map", '{"a": 1}']


def test_the_command_leaves_defaults_out() -> None:
    result = Result(room="tour", verb="run", run="r", provenance=provenance(languages=["en", "sw"]))
    assert command_line(result) == "polyloom tour --seed 7 --languages en --languages sw"


@given(st.text(), st.text())
def test_the_command_is_one_line_for_a_shell(value: str, run: str) -> None:
    result = Result(room="room", verb="verb", run=run, provenance=provenance(option=value))
    line = command_line(result)
    assert "\n" not in line
    assert shlex.split(line)[:3] == ["polyloom", "room", "verb"]


def test_scalars_read_the_same_everywhere(result: Result) -> None:
    assert format_scalar(result.scalars["bits_per_byte"]) == "1.473 [1.441, 1.509] bits/byte"
