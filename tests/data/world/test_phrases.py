"""Phrases: known values, exact spans, no raw keys, no two meanings with one text."""

import datetime
import re

import pytest
from babel import dates, numbers
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.data.world import LANGUAGES, PHRASE_KINDS, PHRASE_LANGUAGES, Frame, World
from polyloom.data.world.frames import UNITS
from polyloom.data.world.lexicon import lexicon

ALL = list(LANGUAGES)


def said(pieces) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    ("language", "frame", "text"),
    [
        ("de", Frame("date", (2024, 3, 8)), "Freitag, 8. März 2024"),
        ("ja", Frame("date", (2024, 3, 8)), "2024年3月8日金曜日"),
        ("ru", Frame("measure", (5, "length-kilometer")), "5 километров"),
        ("ru", Frame("measure", (3, "length-kilometer")), "3 километра"),
        ("ru", Frame("measure", (21, "length-kilometer")), "21 километр"),
        ("pl", Frame("measure", (5, "duration-day")), "5 dni"),
        ("sw", Frame("relative", ("day", 3)), "baada ya siku 3"),
        ("zh", Frame("measure", (5, "duration-day")), "5天"),
        ("pt", Frame("measure", (5, "duration-day")), "5 dias"),
        ("uk", Frame("money", (3, "UAH")), "3 українські гривні"),
        ("de", Frame("relative", ("day", -8)), "vor 8 Tagen"),
        ("hi", Frame("number", (1234567,)), "12,34,567"),
        ("tr", Frame("percent", (78,)), "%78"),
        ("de", Frame("compact", (5_000_000,)), "5 Millionen"),
        ("ja", Frame("compact", (897_000_000_000,)), "8,970億"),
        ("ar", Frame("measure", (5, "length-kilometer")), "5 كيلومترات"),
    ],
)
def test_known_phrases(language, frame, text):
    assert said(lexicon(language).phrase(frame)) == text


def test_known_number():
    assert lexicon("fr").number_text(1234567.5, 1) == "1 234 567,5"


def test_arabic_lists_are_joined_by_waw():
    items = tuple(Frame("name", ("territory", code)) for code in ("SN", "TM", "TN"))
    assert said(lexicon("ar").phrase(Frame("list", ("and", items)))) == "السنغال وتركمانستان وتونس"


def test_native_digits():
    assert said(lexicon("hi", "native").number(1234)) == "१,२३४"
    assert said(lexicon("fa", "native").date(2024, 3, 8, "long")) == "۸ مارس ۲۰۲۴"
    assert said(lexicon("de", "native").number(1234)) == "1.234"


@pytest.mark.parametrize("language", ALL)
def test_dates_and_numbers_agree_with_babel(language):
    """Babel's own formatter, asked about one locale in a fresh look-up of formats that hold no aliases, is the peer."""
    item = lexicon(language, raw=True)
    for date in (datetime.date(2024, 3, 8), datetime.date(1999, 12, 31)):
        for style in ("full", "long", "short"):
            pattern = dates.get_date_format(style, locale=language)
            if "c" in pattern.pattern:
                continue
            assert said(item.date(date.year, date.month, date.day, style)) == dates.format_date(
                date, style, locale=language
            )
    for value in (7, 999, 1234, 1234567):
        assert item.number_text(value) == numbers.format_decimal(value, locale=language)


@given(st.sampled_from(ALL), st.integers(1, 2_000_000))
def test_every_unit_has_words_for_every_number(language, value):
    item = lexicon(language)
    for unit in UNITS:
        pieces = item.measure(value, unit)
        assert unit not in said(pieces)
        assert [piece.value for piece in pieces if piece.tag == "NUM"] in ([str(value)], [])


@pytest.mark.parametrize("language", ALL)
def test_no_text_holds_a_raw_key(language):
    world = World([language, "en"] if language != "en" else ["en"])
    for i in range(150):
        draw = world.draw("raw", i)
        for kind in PHRASE_KINDS:
            frame = draw.phrase(kind)
            text = world.text(frame, language).text
            assert text.strip(), frame
            assert not re.search(r"[\ue000-\uf8ff]|M0\d|\{\d\}|¤", text), (frame, text)
            assert not any(unit in text for unit in UNITS)
            if kind == "money":
                styled = world.text(frame, language, style="symbol").text
                assert str(frame.args[1]) not in text + styled, (frame, text, styled)


@pytest.mark.parametrize("language", ALL)
def test_no_two_meanings_share_a_text(language):
    world = World([language])
    seen: dict[str, str] = {}
    for i in range(1500):
        draw = world.draw("ambiguity", i)
        kind = ("date", "relative", "money", "measure", "list", "name", "interval", "percent", "time", "number")[i % 10]
        frame = draw.phrase(kind)
        text = f"{kind if kind == 'name' else ''}{world.text(frame, language).text}"
        if kind == "name":
            text = f"{frame.args[0]} {text}"
        assert seen.setdefault(text, frame.iso()) == frame.iso(), text


@given(st.sampled_from(ALL), st.integers(0, 10_000), st.sampled_from(PHRASE_KINDS))
def test_spans_are_exact_and_ordered(language, index, kind):
    world = WORLDS.setdefault(language, World([language]))
    frame = world.draw("spans", index).phrase(kind)
    text = world.text(frame, language)
    end = 0
    for span in text.spans:
        assert end <= span.start < span.end <= len(text.text)
        assert text.text[span.start : span.end].strip() == text.text[span.start : span.end]
        end = span.end
    assert "".join(text.text.split()) == "".join(token.text for token in world.tokens(text, language)).replace(" ", "")
    values = {span.tag: span.value for span in text.spans}
    if kind == "date":
        assert f"{values['YEAR']}-{values['MONTH']}-{values['DAY']}" == frame.iso()


WORLDS: dict[str, World] = {}


def test_phrase_languages_say_phrases():
    for code in PHRASE_LANGUAGES:
        item = lexicon(code)
        for frame in (
            Frame("date", (2024, 3, 8)),
            Frame("relative", ("day", 3)),
            Frame("measure", (5, "length-kilometer")),
        ):
            text = said(item.phrase(frame))
            assert text
            assert "+3" not in text
            assert "length" not in text


def test_roots_relative_phrases_are_refused():
    with pytest.raises(UserError, match="relative"):
        lexicon("yo").relative("day", 3)


def test_a_missing_name_is_refused_not_printed():
    with pytest.raises(UserError, match="XXQ"):
        lexicon("de").name("currency", "XXQ")


def test_spelled_numbers_name_the_missing_library(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install num2words"):
        lexicon("de").spelled(5)
