"""CLDR through our own reader: independent of the order of look-ups, never writing to Babel's shared data."""

import subprocess
import sys

import babel
import pytest
from babel.core import Locale

from polyloom.core.errors import UserError
from polyloom.data.world import LANGUAGES, PHRASE_LANGUAGES
from polyloom.data.world.lexicon import lexicon
from polyloom.data.world.locale_data import plain, section

READ = """
import hashlib, sys
from polyloom.data.world.lexicon import lexicon
order = sys.argv[1].split()
seen = {}
for code in order:
    item = lexicon(code)
    dates = [item.date(2024, month, 5 + month, style) for month in range(1, 13) for style in ("full", "medium")]
    seen[code] = repr((item.names["month"], item.names["weekday"], dates, item.relative("day", 3)))
print(hashlib.sha256(repr(sorted(seen.items())).encode()).hexdigest())
"""


def _read(order: list[str], seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", READ, " ".join(order)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
    )
    return done.stdout


def test_names_do_not_depend_on_the_order_of_languages():
    order = list(LANGUAGES)
    assert _read(order, "1") == _read(order[::-1], "2")


def test_one_process_reads_the_same_in_two_orders():
    def read(order):
        section.cache_clear()
        return {code: (section(code, "months"), section(code, "days")) for code in order}

    order = ["zh", "sw", "it", "nl", "ko"]
    assert read(order) == read(order[::-1])
    assert section("it", "months")["stand-alone"]["wide"][5] == "maggio"
    assert section("nl", "days")["stand-alone"]["wide"][2] == "woensdag"


def test_babels_pollution_does_not_reach_us():
    for code in ("zh", "sw", "ja"):
        _ = [
            dict(Locale.parse(code).months["stand-alone"]["wide"]),
            dict(Locale.parse(code).days["stand-alone"]["wide"]),
        ]
    section.cache_clear()
    assert section("it", "months")["stand-alone"]["wide"][5] == "maggio"
    assert section("ko", "days")["stand-alone"]["wide"][2] == "수요일"


def test_babels_data_are_left_alone():
    before = repr(babel.localedata.load("it")["months"])
    section.cache_clear()
    section("it", "months")
    assert repr(babel.localedata.load("it")["months"]) == before


def test_plain_text_has_no_hidden_characters():
    assert plain("1\u202f234\u00a0km\u200f") == "1 234 km"
    for code in LANGUAGES:
        for names in lexicon(code).names.values():
            assert not any(char in name for name in names.values() for char in "\u00a0\u202f\u2009\u200e\u200f\u061c")


def test_raw_keeps_them():
    assert "".join(piece.text for piece in lexicon("ru", raw=True).date(2024, 3, 8)) == "пятница, 8 марта 2024\u202fг."


def test_the_languages_are_what_they_should_be():
    assert len(LANGUAGES) == 24
    assert len(PHRASE_LANGUAGES) == len(set(PHRASE_LANGUAGES)) >= 100
    assert set(LANGUAGES) <= set(PHRASE_LANGUAGES)


def test_an_unknown_locale_is_refused():
    with pytest.raises(UserError, match="no data"):
        lexicon("qqq")
