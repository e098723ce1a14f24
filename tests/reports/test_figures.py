"""Figures: texts stay texts in every script, the same bytes every time, and nothing in them acts."""

from __future__ import annotations

import builtins
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyloom.core.errors import MissingExtra, PolyloomError
from polyloom.core.result import Result, Series
from polyloom.reports.figures import default_figures, describe, heat_figure, series_figure
from polyloom.reports.svg import ROLES, embed
from tests.reports.conftest import NAMES, bars


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")]


def test_one_figure_a_group(result: Result) -> None:
    figures = default_figures(result)
    assert [figure.name for figure in figures] == ["Bits per byte", "Training", "Points"]
    assert [figure.series for figure in figures] == [("model", "gzip"), ("loss",), ("points",)]
    assert figures[0].caption == "Bits per byte by language. The whiskers are intervals."


@pytest.mark.parametrize(
    ("y_label", "caption"),
    [
        ("loss", "Loss by x."),
        ("f(x)", "f(x) by x."),
        ("q", "q by x."),
        ("日本語", "日本語 by x."),
        ("", "My curve by x."),
    ],
)
def test_captions_are_sentences_but_symbols_stay(result: Result, y_label: str, caption: str) -> None:
    series = {"my_curve": Series(x=[0.0, 1.0], y=[0.0, 1.0], x_label="x", y_label=y_label)}
    assert [figure.caption for figure in default_figures(result.model_copy(update={"series": series}))] == [caption]


def test_labels_of_every_script_stay_text(result: Result) -> None:
    drawn = texts(default_figures(result)[0].svg)
    for name in [*NAMES, "model", "gzip", "bits per byte", "language"]:
        assert name in drawn


def test_marks_that_look_like_formulas_are_drawn_as_they_are() -> None:
    line = Series(x=[1.0, 2.0], y=[1.0, 2.0], x_label="$x_", y_label="\\frac{ & <b>")
    drawn = texts(series_figure("a", "", {"$a$": line, "b": line}).svg)
    assert {"$x_", "\\frac{ & <b>", "$a$"} <= set(drawn)


def test_series_whose_names_read_alike_are_all_drawn() -> None:
    line = Series(x=[1.0, 2.0], y=[1.0, 2.0])
    drawn = texts(series_figure("a", "", {"a_b": line, "a b": line, "_hidden": line}).svg)
    assert drawn.count("a b") == 2
    assert "hidden" in drawn


def test_the_same_series_give_the_same_bytes_in_another_process(result: Result) -> None:
    code = "import sys; from polyloom.core.result import Result; from polyloom.reports import default_figures;"
    code += (
        "r = Result.model_validate_json(sys.stdin.read()); print('|'.join(f.svg for f in default_figures(r)), end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=result.model_dump_json(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "|".join(figure.svg for figure in default_figures(result))


def test_colours_are_classes_and_no_style_is_left(result: Result) -> None:
    for figure in default_figures(result):
        page = embed(figure.svg, "f", figure.name, figure.description)
        assert "style" not in page
        assert not any(colour in page for colour in ROLES.values())
        colours = re.findall(r'(?:fill|stroke)="([^"]+)"', page)
        assert set(colours) <= {"none"}
    assert 'class="fill-p1"' in embed(default_figures(result)[0].svg, "f", "a", "b")


def test_identifiers_of_two_figures_never_meet(result: Result) -> None:
    pages = [embed(figure.svg, f"f{i}", "a", "b") for i, figure in enumerate(default_figures(result))]
    found = [set(re.findall(r'\bid="([^"]+)"', page)) for page in pages]
    assert not found[0] & found[1]
    for page, ids in zip(pages, found, strict=True):
        used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page))
        assert {a or b for a, b in used} <= ids


def test_a_figure_has_a_name_and_a_description(result: Result) -> None:
    root = ElementTree.fromstring(embed(default_figures(result)[1].svg, "f", "A & B", "what <it> shows"))
    assert root.get("role") == "img"
    named = {node.get("id"): node.text for node in root if node.tag in ("title", "desc")}
    assert named[root.get("aria-labelledby")] == "A & B"
    assert named[root.get("aria-describedby")] == "what <it> shows"


HOSTILE = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink" viewBox="0 0 1 1"
onload="a()"><script>a()</script><foreignObject><b/></foreignObject><image href="http://a.example/b.png"/><style>*{}</style>
<a href="javascript:a()"><text>t</text></a><use x:href="http://a.example/#b"/><rect fill="url(http://a.example)"
style="fill: url('http://a.example/x'); stroke: red" onclick="a()" clip-path="url(#c)"/><animate/><set/></svg>"""


def test_what_acts_or_loads_is_left_out_of_a_figure() -> None:
    page = embed(HOSTILE, "f", "a", "b")
    for word in (
        "script",
        "onload",
        "onclick",
        "foreignObject",
        "image",
        "example",
        "javascript",
        "animate",
        "set",
        "style",
    ):
        assert word not in page
    assert 'stroke="red"' in page


@pytest.mark.parametrize("text", ["", "<p/>", "<svg>", '<!DOCTYPE s [<!ENTITY a "b">]><svg>&a;</svg>'])
def test_what_is_not_svg_is_refused(text: str) -> None:
    with pytest.raises(PolyloomError, match="a figure"):
        embed(text, "f", "a", "b")


@settings(max_examples=10)
@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(-1e6, 1e6),
            st.none() | st.floats(-1e6, 1e6),
            st.text(max_size=12),
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["line", "bar", "scatter"]),
    st.booleans(),
    st.text(max_size=10),
)
def test_any_series_is_drawn(points: list[tuple], kind: str, named: bool, label: str) -> None:  # type: ignore[type-arg]
    x, y, names = map(list, zip(*points, strict=True))
    series = Series.model_validate({"x": x, "y": y, "low": y, "kind": kind, "x_names": names if named else None})
    figure = series_figure("a", "b", {label: series, "b": series})
    assert embed(figure.svg, "f", figure.name, figure.description).startswith("<svg")


def test_many_bars_become_a_heat_map() -> None:
    names = [f"language {i}" for i in range(13)]
    many = {
        f"method_{k}": Series(
            x=[float(i) for i in range(13)], y=[i / 13 - k / 8 for i in range(13)], x_names=names, kind="bar"
        )
        for k in range(4)
    }
    provenance = {"config": {}, "seed": 0, "versions": {}, "git_revision": None, "machine": {}, "started": ""}
    times = {"elapsed_seconds": 0, "cpu_seconds": 0}
    series = {key: value.model_copy(update={"group": "F1"}) for key, value in many.items()}
    result = Result(room="a", verb="b", run="c", series=series, provenance={**provenance, **times})  # type: ignore[arg-type]
    figure = default_figures(result)[0]
    assert figure.description.startswith("Shaded table of 13 rows and 4 columns.")
    assert {"method 0", "language 12", "−0.375"} <= set(texts(figure.svg))


def test_empty_cells_of_a_heat_map_stay_empty() -> None:
    figure = heat_figure("a", "b", ["r"], ["c", "d"], [[None, 2.0]])
    assert "r: d 2." in figure.description
    assert "None" not in figure.svg


def test_descriptions_tell_short_series_whole_and_long_ones_by_their_ends() -> None:
    assert describe({"num_a": bars([1.0, 2.5])}) == "number of a: English 1, 中文（简体） 2.5."
    y = [3.0, 5.0, *([4.0] * 18), 1.0, 2.0]
    long = Series(x=[float(i) for i in range(22)], y=y)
    assert describe({"b": long}) == "b: 22 points, first 3 at 0, least 1 at 20, greatest 5 at 1, last 2 at 21."


def test_without_matplotlib_the_extra_is_named(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_matplotlib(monkeypatch)
    with pytest.raises(MissingExtra, match=r'pip install "polyloom\[plots\]"'):
        default_figures(result)


def hide_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def importer(name: str, *args: object, **kwargs: object) -> object:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", importer)


def test_importing_reports_loads_nothing_heavy() -> None:
    code = "import sys, polyloom.reports, polyloom.reports.html, polyloom.reports.summary, polyloom.reports.markdown;"
    code += "print(sorted({'matplotlib', 'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
