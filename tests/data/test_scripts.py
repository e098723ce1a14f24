from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.data.scripts import count_letters, count_words, is_space_free, normalise, run_characters

TEXT = st.text(st.characters(exclude_categories=()), max_size=200)


@given(TEXT)
def test_normalised_text_is_stable_clean_and_nfc(text: str) -> None:
    clean = normalise(text)
    assert normalise(clean) == clean
    assert unicodedata.is_normalized("NFC", clean)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in clean)
    assert "\n\n\n" not in clean


def test_normalise_by_hand() -> None:
    assert normalise("\ufeffe\u0301a\r\nb\rc\u2028d \t\n\n\n\n\x00e\n") == "éa\nb\nc\nd\n\ne"


def test_compatibility_forms_and_joiners_stay() -> None:
    # NFKC would write "fi", "1/2" and a plain space; Persian needs its joiners.
    for text in ("ﬁ ½ Ⅷ", "می\u200cخواهم", "ｱｲｳ", "👩‍👩‍👧"):
        assert normalise(text) == text


@pytest.mark.parametrize(
    ("text", "words", "space_free"),
    [
        ("one two three", 3, False),
        ("", 0, False),
        ("人类社会的", 5 / 1.5, True),
        ("人类，社会。", 4 / 1.5, True),
        ("ภาษาไทย", 7 / 1.5, True),
        ("GPT 模型 runs", 2 + 2 / 1.5, False),
        ("모든 사람은 자유롭다", 3, False),
        ("Все люди рождаются", 3, False),
    ],
)
def test_words_are_counted_in_every_script(text: str, words: float, space_free: bool) -> None:
    assert count_words(text) == pytest.approx(words)
    assert is_space_free(text) is space_free


def test_length_of_a_words_run_follows_the_script() -> None:
    assert run_characters("人类社会的") == 1.5
    assert run_characters("すべての人間は") == 2.0
    assert run_characters("มนุษย์ทั้งหลาย") == 4.0


def test_letters_of_any_script() -> None:
    assert count_letters("aß1, 人ก़") == 4
