"""The page: whole, valid, offline, escaped, the same every time."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyloom.core.registry import Paper, RoomCard
from polyloom.core.result import Artifact, Result, Scalar, Series, Table
from polyloom.reports import Figure, Section, render_html, render_tour_html
from polyloom.reports.html import MAX_POINTS
from tests.reports.conftest import provenance
from tests.reports.test_figures import hide_matplotlib

VOID = {"meta", "link", "br", "hr", "img", "input"}
ALLOWED = set(
    re.findall(
        r"\S+",
        "html head meta title style body a header p span h1 h2 h3 main section ul li dl div dt dd data figure "
        "figcaption details summary table caption thead tbody tr th td code pre nav ol strong cite footer svg g path "
        "rect text tspan defs clippath use desc",
    )
)


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order, identifiers are unique."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def check(self) -> None:
        assert {tag for tag, _ in self.elements} <= ALLOWED
        ids = {attributes.get("id") for _, attributes in self.elements}
        for tag, attributes in self.elements:
            assert not [name for name in attributes if name.startswith("on") or name in ("src", "style", "srcset")]
            href = attributes.get("href", "")
            assert tag == "a" or href.startswith("#") or not href
            assert href == "" or href[1:] in ids or href.startswith(("./", "../"))
            if tag == "th":
                assert attributes["scope"] in ("col", "row")
            if tag == "svg":
                assert {attributes["aria-labelledby"], attributes["aria-describedby"]} <= ids


def test_every_number_of_the_result_is_on_the_page(result: Result) -> None:
    page = Page(render_html(result))
    page.check()
    exact = {attributes["value"] for tag, attributes in page.elements if tag == "data"}
    numbers = [scalar.value for scalar in result.scalars.values()]
    numbers += [row[i] for row in result.tables["by_language"].rows for i in (1, 4)]
    numbers += [y for series in result.series.values() for y in series.y]
    checked = [n for n in numbers if isinstance(n, int | float) and not isinstance(n, bool)]
    assert len(checked) == 22
    assert {repr(number) for number in checked} <= exact
    text = "".join(page.text)
    for shown in ("1.473", "1.441 to 1.509", "[1.150, 1.260]", "45,678", "3.2e−7", "231.4 s", "402.8 s"):
        assert shown in text


def test_every_sentence_of_the_result_is_on_the_page(result: Result) -> None:
    text = "".join(Page(render_html(result)).text)
    for sentence in [
        *result.verdicts,
        *result.limitations,
        "Bits per byte on held-out text",
        "The weights.",
        "0123abc+",
    ]:
        assert sentence in text
    assert "polyloom rerun unregistered-study-1" in text
    assert "polyloom unregistered study --seed 7 --profile quick" in text


def test_the_same_result_gives_the_same_bytes(result: Result) -> None:
    again = Result.model_validate_json(result.model_dump_json())
    assert render_html(result) == render_html(again)


def test_nothing_is_loaded_and_nothing_runs(result: Result) -> None:
    html = render_html(result)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert policy
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy[1] == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "http" not in html.replace("http-equiv", "")


def test_links_to_files_stay_in_the_run_folder(result: Result) -> None:
    def linked(path: str) -> list[str]:
        artifacts = {"a": Artifact(path=path, media_type="", description="")}
        page = Page(render_html(result.model_copy(update={"artifacts": artifacts})))
        return [a["href"] for tag, a in page.elements if tag == "a" and not a["href"].startswith("#")]

    assert linked("artifacts/best model.bin") == ["./artifacts/best%20model.bin"]
    assert linked("javascript:alert(1)") == ["./javascript%3Aalert%281%29"]
    assert linked("/etc/hosts") == []
    assert linked("//a.example/b") == []
    assert linked("C:\\a") == []


HOSTILE = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "</style><script>",
            "]]>--><!--",
            "{{ 7 * 7 }}{% raw %}",
            "' onmouseover='a()",
            "\x00\x1b[31m\x7f",
            "\N{RIGHT-TO-LEFT OVERRIDE}abc",
            "&lt;b&gt;",
            "$\\frac{",
        ]
    ),
)


@settings(max_examples=6)
@given(st.lists(HOSTILE, min_size=26, max_size=26))
def test_hostile_text_in_every_field_is_only_text(words: list[str]) -> None:
    a = iter(words)
    table = Table(columns=[next(a), next(a)], rows=[[next(a), 1.5]], title=next(a))
    series = Series(
        x=[0.0, 1.0], y=[1.0, 2.0], x_label=next(a), y_label=next(a), group=next(a), x_names=[next(a), next(a)]
    )
    made = Result(
        room=next(a),
        verb=next(a),
        run=next(a),
        scalars={next(a): Scalar(value=next(a), unit=next(a))},
        tables={next(a): table},
        series={next(a): series},
        artifacts={"a": Artifact(path=next(a), media_type=next(a), description=next(a))},
        verdicts=[next(a)],
        limitations=[next(a)],
        provenance=provenance(**{"option": next(a)}),
    )
    card = RoomCard("a", next(a), next(a), (Paper(words[0], words[1], 2024, words[2]),), (), 1)
    Page(render_html(made, card=card)).check()
    section = Section(words[0], words[1], words[2], words[3], None, words[4], words[5])
    done = Section(words[0], words[1], words[2], words[3], made, None, words[5])
    Page(render_tour_html(made, [section, done], title=words[6], introduction=words[7])).check()


def test_key_figures_are_the_first_that_have_a_value(result: Result) -> None:
    scalars = {"none": Scalar(value=None), **{f"n{i}": Scalar(value=i) for i in range(8)}}
    html = render_html(result.model_copy(update={"scalars": scalars}))
    cards = re.search(r'<dl class="cards">(.*?)</dl>', html, re.DOTALL)
    assert cards
    assert re.findall(r"<dt>(.*?)</dt>", cards[1]) == [f"n{i}" for i in range(6)]
    assert '<th scope="row" dir="auto">none</th>' in html


def test_what_was_written_is_what_is_read(result: Result) -> None:
    verdict = "<b>\"&amp;'</b> {{ x }}"
    page = Page(render_html(result.model_copy(update={"verdicts": [verdict]})))
    assert verdict in page.text


def test_own_figures_take_the_place_of_the_default_ones(result: Result) -> None:
    own = Figure(
        "Own", "A caption.", '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><rect/></svg>', series=("loss",)
    )
    page = Page(render_html(result, figures=[own]))
    page.check()
    assert sum(tag == "svg" for tag, _ in page.elements) == 1
    text = "".join(page.text)
    # The numbers of series that it does not show are listed all the same.
    assert "Numbers of the figure: Bits per byte" in text
    assert "Numbers of the figure: Training" not in text


def test_without_matplotlib_the_numbers_stay_and_the_extra_is_named(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_matplotlib(monkeypatch)
    page = Page(render_html(result))
    page.check()
    assert 'pip install "polyloom[plots]"' in "".join(page.text)
    assert "svg" not in {tag for tag, _ in page.elements}
    assert {"9.0", "4.5", "0.3"} <= {attributes["value"] for tag, attributes in page.elements if tag == "data"}


def test_very_long_series_say_what_is_left_out(result: Result) -> None:
    long = Series(x=[float(i) for i in range(MAX_POINTS + 5)], y=[1.0] * (MAX_POINTS + 5))
    text = "".join(Page(render_html(result.model_copy(update={"series": {"a": long}}))).text)
    assert "5 more points are in result.json." in text


def test_a_result_of_nothing_is_a_page(result: Result) -> None:
    Page(render_html(Result(room="a", verb="b", run="c", provenance=result.provenance))).check()


def tour(result: Result) -> tuple[Result, list[Section]]:
    step = result.model_copy(update={"verdicts": ["Step verdict."], "limitations": ["Step limitation."]})
    whole = result.model_copy(
        update={
            "room": "tour",
            "verb": "run",
            "verdicts": ["Model verdict.", "one: Step verdict.", "two failed: no model."],
            "limitations": ["Model limitation.", "Step limitation."],
            "tables": {**result.tables, "steps": Table(columns=["hidden"], rows=[], title="Steps of the tour")},
            "scalars": {**result.scalars, "failed_steps": Scalar(value=1)},
        }
    )
    sections = [
        Section("one", "Room one", "Does it?", "tour-one", step, link="../tour-one/report.html"),
        Section("two", "Room two", "Or not?", "tour-two", error="train: no model. Train one."),
    ]
    return whole, sections


def test_the_tour_has_a_section_for_every_room(result: Result) -> None:
    page = Page(render_tour_html(*tour(result)))
    page.check()
    text = " ".join("".join(page.text).split())
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links[1:6] == ["#overview", "#model", "#room-1", "#room-2", "#provenance"]
    assert "./../tour-one/report.html" in links
    assert "One model through 2 rooms" in text
    assert "This room failed. train: no model. Train one." in text
    assert "polyloom runs resume tour-two" in text
    assert "polyloom unregistered study --seed 7 --profile quick" in text
    assert "1 failed" in text


def test_the_tour_says_each_sentence_in_its_place(result: Result) -> None:
    page = Page(render_tour_html(*tour(result)))
    assert page.text.count("Model verdict.") == 1
    assert page.text.count("Step verdict.") == 2  # the overview, and its section
    assert page.text.count("Step limitation.") == 1
    assert not any("one: Step" in text or "Steps of the tour" in text for text in page.text)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    lights = sorted((luminance(first), luminance(second)), reverse=True)
    return (lights[0] + 0.05) / (lights[1] + 0.05)


def test_colours_have_contrast_in_light_dark_and_print() -> None:
    css = (Path(__file__).parents[2] / "src/polyloom/reports/style.css").read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    ]
    assert len(schemes) == 3
    assert schemes[0].keys() >= schemes[1].keys() >= schemes[2].keys() - {"good"}
    for colours in schemes:
        for text in ("ink", "soft", "accent", "bad"):
            for ground in ("paper", "raised"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert contrast(colours["ink"], colours["accent-paper"]) >= 7
        assert contrast(colours["ink"], colours["bad-paper"]) >= 7
        for index in range(1, 7):
            assert contrast(colours[f"p{index}"], colours["paper"]) >= 3, index


def test_numbers_in_a_heat_map_can_be_read_on_the_darkest_cell() -> None:
    css = (Path(__file__).parents[2] / "src/polyloom/reports/style.css").read_text(encoding="utf-8")
    for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL):
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
        for role in ("p1", "p2"):
            cell = "#" + "".join(
                f"{round(0.5 * int(colours[role][i : i + 2], 16) + 0.5 * int(colours['paper'][i : i + 2], 16)):02x}"
                for i in (1, 3, 5)
            )
            assert contrast(colours["ink"], cell) >= 4.5
