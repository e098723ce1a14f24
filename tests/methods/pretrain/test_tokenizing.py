from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.methods.pretrain.data_config import TokenizerConfig
from polyloom.methods.pretrain.samples import fill_shares, gather
from polyloom.methods.pretrain.tokenizing import measure, run_tokenizer, unicode_texts
from polyloom.models.load import load_tokenizer
from polyloom.models.tokenizers import encode, train_tokenizer
from polyloom.runs.folder import Run

BYTES = train_tokenizer(["x"], 259)
TRAINED = train_tokenizer(["the cat sat on the mat, the cat ate the rat"] * 3, 300)


def test_the_hard_texts_reach_every_plane_and_come_back() -> None:
    texts = unicode_texts()
    assert {ord(c) >> 16 for text in texts for c in text} == set(range(17))
    assert "\0" in texts
    for tokenizer in (BYTES, TRAINED):
        assert tokenizer.unk_token is None
        assert [tokenizer.decode(encode(tokenizer, text)) for text in texts] == texts


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back(text: str) -> None:
    assert TRAINED.decode(encode(TRAINED, text)) == text


def test_measures_by_hand() -> None:
    found = measure(BYTES, ["aß", "猫"])
    assert (found.num_bytes, found.num_characters, found.num_tokens) == ([3, 3], [2, 1], [3, 3])
    assert (found.num_single_bytes, found.round_trip, found.tokens_per_byte) == (6, True, 1.0)
    merged = measure(TRAINED, [" cat"])
    assert (merged.num_tokens, merged.num_single_bytes) == ([1], 0)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 1000), min_size=1), st.integers(1, 4000), st.floats(0, 1)
)
def test_what_a_small_language_lacks_goes_to_the_others(sizes: dict[str, int], budget: int, alpha: float) -> None:
    cells = {("d", language): size for language, size in sizes.items()}
    taken = fill_shares(cells, budget, alpha)
    assert set(taken) == set(cells)
    assert all(0 <= taken[cell] <= cells[cell] + 1e-9 for cell in cells)
    assert sum(taken.values()) == pytest.approx(min(budget, sum(sizes.values())))


def test_shares_follow_the_temperature() -> None:
    cells = {("d", "a"): 10_000, ("d", "b"): 100}
    taken = fill_shares(cells, 100, 0.5)
    assert taken["d", "a"] / taken["d", "b"] == pytest.approx(10.0)
    assert fill_shares(cells, 20_000, 0.5) == {("d", "a"): 10_000.0, ("d", "b"): 100.0}


@given(st.randoms(use_true_random=False))
def test_samples_do_not_depend_on_the_order(rng: random.Random) -> None:
    documents = [("d", "en", f"text number {i} of some length") for i in range(60)]
    first = gather(documents, 400, 100)
    rng.shuffle(documents)
    assert gather(documents, 400, 100) == first
    train, held_out = set(first.train["d", "en"]), set(first.held_out["d", "en"])
    assert not train & held_out
    assert 400 <= sum(map(len, train)) < 440
    assert first.sizes["d", "en"] + sum(map(len, held_out)) <= sum(len(text) for *_, text in documents)


def write(path: Path, texts: dict[str, list[str]]) -> Path:
    rows = [{"text": text, "language": language} for language, items in texts.items() for text in items]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_verb_on_a_users_files(cli: Callable[..., Any], tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = {
        language: [" ".join(rng.choices(words.split(), k=40)) for _ in range(number)]
        for language, words, number in (("aa", "lorem ipsum dolor sit amet", 200), ("bb", "kissa koira talo auto", 20))
    }
    data = write(tmp_path / "a.jsonl", texts)
    BYTES.save_pretrained(tmp_path / "bytes")
    words = ["--data", data, "--vocab-size", 300, "--compare", tmp_path / "bytes", "--out", tmp_path / "tok", "--json"]
    called = cli("pretrain", "tokenizer", *words)
    assert called.exit_code == 0, called.stderr
    result = json.loads(called.stdout)
    rows = result["tables"]["compression"]["rows"]
    assert {row[1] for row in rows} == {"ours", "as mixed (alpha 1)", "aa only", "bytes"}
    assert all(row[2] == 1.0 for row in rows if row[1] == "bytes")
    assert all(row[7] is True for row in rows)
    assert result["scalars"]["round_trip_failures"]["value"] == 0
    assert result["scalars"]["parity"]["value"] < result["scalars"]["parity_2"]["value"]
    tokenizer = load_tokenizer(tmp_path / "tok")
    assert 259 < len(tokenizer) == result["scalars"]["vocabulary"]["value"] <= 300
    shares = {row[1]: row[3:] for row in result["tables"]["sample"]["rows"]}
    assert shares["bb"][1] > shares["bb"][0]


def test_balancing_helps_the_worst_language_of_the_world(run: Run) -> None:
    result = run_tokenizer(TokenizerConfig(languages=["en", "ja"], vocab_size=1024), run)
    assert result.scalars["round_trip_failures"].value == 0
    assert any(name.startswith("CLDR world") for name in result.limitations)
    assert result.scalars["tokens_per_byte"].value < 0.6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vocab-size", "100"], "greater than or equal to 259"),
        (["--data", "absent"], "there is no such file"),
        (["--data", "{one}"], "too little text to hold some back"),
        (["--data", "{one}", "--languages", "fr"], "holds no document of these languages"),
        (["--compare", "{one}"], "is a file, not a model folder"),
    ],
)
def test_bad_input(cli: Callable[..., Any], tmp_path: Path, words: list[str], message: str) -> None:
    one = write(tmp_path / "one.jsonl", {"en": ["only one text"]})
    called = cli("pretrain", "tokenizer", *(word.format(one=one) for word in words))
    assert called.exit_code == 2
    assert message in " ".join(called.stderr.split())


def test_a_vocabulary_that_the_text_cannot_fill_is_said(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", {"en": [f"short text {i}" for i in range(40)]})
    result = run_tokenizer(TokenizerConfig(data=[str(data)], vocab_size=5000, baselines=False), run)
    assert any("of the 5000 tokens asked for" in note for note in result.limitations)
