"""One catalogue, both languages, every text that a page asks for."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

import pytest

from polyloom.core.registry import card, rooms
from polyloom.web.i18n import LANGUAGES, catalogue, choose_language, moment, room_text, translate, verb_text

WEB = Path(__file__).parents[2] / "src" / "polyloom" / "web"
ASKED = re.compile(r"""\b(?:t|say\(request,|translate\(\w+,)\s*\(?\s*["']([a-z_]+\.[a-z0-9_.]+)["']""")


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


@pytest.mark.parametrize("key", [key for key in catalogue() if not key.startswith(("room.", "verb."))])
def test_every_text_is_there_in_every_language_with_the_same_places(key):
    texts = catalogue()[key]
    assert texts.keys() == LANGUAGES.keys()
    assert all(text.strip() for text in texts.values())
    assert len({frozenset(fields(text)) for text in texts.values()}) == 1
    assert not texts["zh"].isascii() or texts["zh"] == texts["en"]


def test_every_text_that_a_page_asks_for_exists():
    files = [*WEB.rglob("*.j2"), *WEB.rglob("*.py")]
    asked = {match for file in files for match in ASKED.findall(file.read_text()) if not match.endswith(".")}
    assert len(asked) > 100
    known = set(catalogue()) | {re.sub(r"\.(one|other)$", "", key) for key in catalogue()}
    # A key that ends in `_` is put together with the rest of its name when the page is made.
    missing = {key for key in asked - known if not (key.endswith("_") and any(k.startswith(key) for k in known))}
    assert missing == set()


def test_every_room_has_its_title_and_question_in_chinese():
    for room in (card("tour"), *rooms().values()):
        for part in ("title", "question"):
            assert re.search(r"[一-鿿]", room_text("zh", room, part)), room.name
            assert room_text("en", room, part) == getattr(room, part)


def test_every_verb_says_in_chinese_what_it_does_and_no_text_is_left_over():
    told = {f"verb.{room.name}.{verb.name}" for room in (card("tour"), *rooms().values()) for verb in room.verbs}
    assert {key for key in catalogue() if key.startswith("verb.")} == told
    verb = card("tour").verbs[0]
    assert verb_text("en", "tour", verb) == verb.summary
    assert re.search(r"[一-鿿]", verb_text("zh", "tour", verb))


def test_numbers_choose_their_form():
    assert translate("en", "runs.count", n=1) == "1 run"
    assert translate("en", "runs.count", n=3) == "3 runs"
    assert translate("zh", "runs.count", n=3) == "3 次运行"


@pytest.mark.parametrize(
    ("cookie", "accepted", "language"),
    [
        (None, "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en", "zh-CN", "en"),
        ("xx", "fr, zh;q=0.2", "zh"),
        (None, "", "en"),
        (None, "\n,;;q=,*", "en"),
    ],
)
def test_the_visitors_choice_comes_before_the_browsers(cookie, accepted, language):
    assert choose_language(cookie, accepted) == language


def test_a_time_that_is_none_is_shown_as_it_is():
    assert moment("en", "<b>") == "<b>"
    assert re.fullmatch(r"\d+ \w{3} 2026, \d\d:\d\d", moment("en", "2026-03-01T12:00:00+00:00"))
    assert "2026年" in moment("zh", "2026-03-01T12:00:00+00:00")
