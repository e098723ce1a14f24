from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.data.records import Range, Sentence, split_sentences, split_words, surface
from polyloom.data.treebanks import repair_heads


def test_a_column_that_does_not_fit_is_refused_with_its_place() -> None:
    with pytest.raises(UserError, match=r"f\.txt:3: sentence 's1' has 2 labels for 3 words"):
        Sentence(("a", "b", "c"), labels=("O", "O"), id="s1", source="f.txt:3")


def test_words_signs_and_scripts_without_blanks() -> None:
    text = "Don't pay $1,000.50 — 東京へ, e-mail!"
    assert split_words(text) == ("Don't", "pay", "$", "1,000.50", "—", "東", "京", "へ", ",", "e-mail", "!")


@given(st.text(max_size=60))
def test_no_character_is_lost(text: str) -> None:
    assert "".join(split_words(text)) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Mr. Smith came. He left!", ["Mr . Smith came .", "He left !"]),
        ('"No." She left... Why?! 7 did.', ['" No . "', "She left . . .", "Why ? !", "7 did ."]),
        ("e.g. this is one", ["e . g . this is one"]),
        ("好。不好", ["好 。", "不 好"]),
        ("", []),
    ],
)
def test_sentences_of_a_text(text: str, sentences: list[str]) -> None:
    words = split_words(text)
    assert [" ".join(words[a:b]) for a, b in split_sentences(words)] == sentences


@given(st.lists(st.sampled_from(("a", "B", ".", "!", '"', "Mr", "。")), max_size=12))
def test_sentences_hold_all_words(words: list[str]) -> None:
    spans = split_sentences(words)
    assert [word for a, b in spans for word in words[a:b]] == words
    assert all(a < b for a, b in spans)


def test_the_surface_keeps_one_node_for_a_multiword_token() -> None:
    # "in dem Haus liegt": im = in + dem, both under Haus.
    sentence = Sentence(
        ("in", "dem", "Haus", "liegt"),
        ("ADP", "DET", "NOUN", "VERB"),
        (3, 3, 4, 0),
        ("case", "det", "obl", "root"),
        ("O", "O", "B-LOC", "O"),
        text="im Haus liegt",
        ranges=(Range(1, 2, "im"),),
    )
    merged = surface(sentence)
    assert merged.words == ("im", "Haus", "liegt")
    assert merged.heads == (2, 3, 0)
    assert merged.upos == ("ADP", "NOUN", "VERB")
    assert merged.labels == ("O", "B-LOC", "O")
    assert merged.ranges == ()


def test_the_node_nearest_the_root_stands_for_the_token() -> None:
    # "dámelo" = da + me + lo with da the root; a clitic that comes first must not lead back into its own token.
    merged = surface(Sentence(("x", "da", "lo"), heads=(2, 0, 2), ranges=(Range(1, 3, "xdalo"),)))
    assert merged.heads == (0,)


@given(st.data())
def test_the_surface_of_any_tree_is_a_tree(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 9))
    order = data.draw(st.permutations(range(1, size + 1)))
    heads = [0] * size
    for i, word in enumerate(order[1:], start=1):
        heads[word - 1] = order[data.draw(st.integers(0, i - 1))]
    start = data.draw(st.integers(1, size - 1))
    end = data.draw(st.integers(start + 1, size))
    words = tuple(f"w{i}" for i in range(size))
    merged = surface(Sentence(words, heads=tuple(heads), ranges=(Range(start, end, "merged"),)))
    assert len(merged.words) == size - (end - start)
    assert not repair_heads(merged.heads)[1]
