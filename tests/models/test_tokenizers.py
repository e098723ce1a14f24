from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from polyloom.core.errors import UserError
from polyloom.models.load import load_tokenizer
from polyloom.models.tokenizers import (
    compression,
    encode,
    encode_all,
    sample_texts,
    temperature_weights,
    train_tokenizer,
)

TEXTS = ["the cat sat on the mat", "die Katze saß auf der Matte 2024", "猫はマットの上に座った。", "кошка сидела"] * 3
TOKENIZER = train_tokenizer(TEXTS, 320)
DIGITS = train_tokenizer(TEXTS, 320, split_digits=True)
# Every code point but the surrogates, which no UTF-8 text has.
CHARACTERS = st.characters(exclude_categories=["Cs"])


@given(st.text(CHARACTERS))
def test_any_text_comes_back(text: str) -> None:
    for tokenizer in (TOKENIZER, DIGITS):
        assert tokenizer.decode(encode(tokenizer, text)) == text


@given(st.lists(st.one_of(st.text(CHARACTERS), st.just("a </s><pad> b"))))
def test_many_texts_are_encoded_as_one_by_one(texts: list[str]) -> None:
    assert encode_all(TOKENIZER, texts) == [encode(TOKENIZER, text) for text in texts]


@pytest.mark.parametrize("plane", range(17))
def test_every_unicode_plane_comes_back(plane: int) -> None:
    points = range(plane * 0x10000, (plane + 1) * 0x10000, 7)
    text = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
    assert TOKENIZER.decode(encode(TOKENIZER, text)) == text


@pytest.mark.parametrize(
    "text", ["", "\0", "\u0301\u0308", "👩‍👩‍👧‍👦", " ,  . ' s n't", "</s><s><pad>", "\r\n\t  ", "\ufeffx"]
)
def test_hard_texts_come_back(text: str) -> None:
    assert TOKENIZER.decode(encode(TOKENIZER, text)) == text


def test_specials_have_fixed_ids_and_text_never_makes_them() -> None:
    assert TOKENIZER.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<s>", "</s>"]
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (0, 1, 2)
    assert TOKENIZER.unk_token is None
    assert min(encode(TOKENIZER, "a </s> and <s> in the text")) > 2


def test_the_smallest_vocabulary_is_bytes() -> None:
    tokenizer = train_tokenizer(TEXTS, 259)
    assert len(tokenizer) == 259
    assert len(encode(tokenizer, "猫 and ß")) == len("猫 and ß".encode())
    with pytest.raises(UserError, match="at least 259"):
        train_tokenizer(TEXTS, 258)


def test_training_repeats_and_merges_the_commonest_pair_first() -> None:
    again = train_tokenizer(iter(TEXTS), 320)
    assert again.get_vocab() == TOKENIZER.get_vocab()
    assert train_tokenizer(["abab abab ab"], 260).convert_ids_to_tokens(259) == "ab"


def test_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([], 300)


def test_digits_stand_alone() -> None:
    text = "1234 in 2024"
    longest = train_tokenizer([text] * 9, 300)
    split = train_tokenizer([text] * 9, 300, split_digits=True)
    assert len(encode(longest, "1234")) == 1
    assert [split.decode([i]) for i in encode(split, "1234")] == ["1", "2", "3", "4"]


def test_the_saved_folder_gives_the_same_tokens(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    for text in [*TEXTS, "don't  </s>", " x\n"]:
        assert encode(loaded, text) == encode(TOKENIZER, text)
        assert loaded.decode(encode(loaded, text)) == text


def test_temperature_weights_by_hand() -> None:
    assert temperature_weights({"a": 1, "b": 16}, alpha=0.5) == {"a": 0.2, "b": 0.8}
    assert temperature_weights({"a": 1, "b": 3}, alpha=1.0) == {"a": 0.25, "b": 0.75}
    assert temperature_weights({"a": 1, "b": 99, "c": 0}, alpha=0.0) == {"a": 0.5, "b": 0.5}


def test_samples_follow_the_weights_and_repeat_nothing() -> None:
    texts = {"big": [f"{i:04d}" for i in range(4000)], "small": [f"{i:04d}" for i in range(5000, 5250)]}
    sample = sample_texts(texts, 2000, alpha=0.5, seed=1)
    # sqrt(16000) : sqrt(1000) = 4 : 1 of 500 texts.
    assert [sum(text in set(texts[name]) for text in sample) for name in texts] == [400, 100]
    assert len(set(sample)) == len(sample)
    assert sample == sample_texts(texts, 2000, alpha=0.5, seed=1)
    assert sample != sample_texts(texts, 2000, alpha=0.5, seed=2)
    assert len(sample_texts(texts, 10**9)) == 4250


def test_compression_by_hand() -> None:
    tokenizer = train_tokenizer(["aaaa"] * 5, 261)
    result = compression(tokenizer, {"a": ["aaaa", "aaaa"], "b": ["bb"], "none": []})
    assert result.keys() == {"a", "b"}
    assert (result["a"].num_bytes, result["a"].num_tokens, result["a"].bytes_per_token) == (8, 2, 4.0)
    assert (result["b"].num_bytes, result["b"].num_tokens) == (2, 2)
    assert (result["a"].parity, result["b"].parity) == (1.0, 4.0)
    assert result["a"].round_trip
    assert result["b"].round_trip
