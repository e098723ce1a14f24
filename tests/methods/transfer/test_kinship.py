"""Kinship, script and word order of languages, and gains by groups of them, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from polyloom.data.records import Example, Sentence
from polyloom.methods.transfer.data import Data
from polyloom.methods.transfer.kinship import (
    FAMILIES,
    kinship,
    language_report,
    order_distance,
    order_of,
    script_of,
)
from polyloom.methods.transfer.protocol import Outcome


def said(words: str, heads: tuple[int, ...], deprels: str, language: str = "en") -> Example:
    parts = tuple(words.split())
    sentence = Sentence(parts, heads=heads, deprels=tuple(deprels.split()), labels=("O",) * len(parts))
    return Example(words, (sentence,), language=language)


@pytest.mark.parametrize(
    ("target", "kin"),
    [
        ("de", "same branch"),
        ("es", "same family"),
        ("hi", "same family"),
        ("zh-TW", "other family"),
        ("pt_BR", "same family"),
        ("xx", "unknown family"),
    ],
)
def test_kinship(target: str, kin: str) -> None:
    assert kinship("en", target) == kin


def test_every_code_has_one_family() -> None:
    assert len(FAMILIES) > 100
    assert all(family and branch and 2 <= len(code) <= 3 for code, (family, branch) in FAMILIES.items())


def test_the_script_of_most_letters() -> None:
    assert script_of([said("dog 99 !", (0, 1, 1), "root x x")]) == "LATIN"
    assert script_of([said("狗 跑 IBM", (0, 1, 1), "root x x"), said("猫 在 家", (0, 1, 1), "root x x")]) == "CJK"
    assert script_of([]) == "none"


def test_the_distance_of_word_order_by_hand() -> None:
    # Adjectives before nouns and subjects before verbs; then adjectives behind nouns.
    english = order_of([said("red dog runs .", (2, 3, 0, 3), "amod nsubj root punct")] * 5)
    spanish = order_of([said("perro rojo corre .", (3, 1, 0, 3), "nsubj amod root punct")] * 5)
    assert english.counts == {"amod": (5, 5), "nsubj": (5, 5)}
    assert spanish.counts == {"amod": (0, 5), "nsubj": (5, 5)}
    assert order_distance(english, spanish) == pytest.approx(0.5)
    assert order_distance(english, english) == 0
    assert order_distance(english, order_of([])) is None
    # Two subjects for each adjective: the weight of the relation that differs is the mean of 1/2 and 1/3.
    heavier = order_of([said("perro rojo y gato corren", (5, 1, 0, 5, 0), "nsubj amod cc nsubj root")] * 5)
    assert order_distance(english, heavier) == pytest.approx((1 / 2 + 1 / 3) / 2)


def outcome(arm: str, right: dict[str, int]) -> Outcome:
    counts = {
        code: {"span F1": np.asarray([(1, 1, 1)] * number + [(0, 1, 1)] * (10 - number))}
        for code, number in right.items()
    }
    return Outcome(arm, 0, counts, 0.0, 1, 0, 0.0, 1, {})


def test_gains_are_grouped_by_kinship_and_script() -> None:
    words = {"en": "a dog", "de": "ein hund", "sv": "en hund", "es": "un perro", "zh": "一 狗"}
    orders = {"en": 0, "de": 0, "sv": 1, "es": 2, "zh": 5}
    examples = {
        code: [said(text, (2, 0), "det root", code)] * (5 - orders[code])
        + [said(" ".join(reversed(text.split())), (0, 1), "root det", code)] * orders[code]
        for code, text in words.items()
    }
    targets = {code: examples[code] for code in ("de", "sv", "es", "zh")}
    base = outcome("base", dict.fromkeys(targets, 2))
    lex = outcome("lex", {"de": 8, "sv": 6, "es": 5, "zh": 3})
    data = Data("en", examples["en"], [], targets)
    tables, scalars = language_report({"base": [base], "lex": [lex]}, data, "span F1", 0)
    rows = {row[0]: row[1:] for row in tables["languages"].rows}
    assert rows["de"][:5] == ["Indo-European", "Germanic", "same branch", "LATIN", 0.0]
    assert rows["zh"] == ["Sino-Tibetan", "Sinitic", "other family", "CJK", 1.0, pytest.approx(10)]
    assert scalars["lex_gain_same_branch_span_f1"].value == pytest.approx(50)
    assert scalars["lex_gain_same_family_span_f1"].value == pytest.approx(30)
    assert scalars["lex_gain_same_script_span_f1"].value == pytest.approx((60 + 40 + 30) / 3)
    assert scalars["lex_gain_other_script_span_f1"].value == pytest.approx(10)
    low, high = scalars["lex_gain_same_branch_span_f1"].low, scalars["lex_gain_same_branch_span_f1"].high
    assert low is not None
    assert high is not None
    assert low < 50 < high
    # The farther the order, the smaller the gain.
    assert scalars["lex_gain_word_order_rank_correlation"].value == pytest.approx(-1)
    assert ["same branch", "de, sv", "lex"] in [row[:3] for row in tables["language_groups"].rows]
    assert language_report({"lex": [lex]}, data, "span F1", 0) == ({}, {})
