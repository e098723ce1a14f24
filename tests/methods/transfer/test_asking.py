from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.generation import FakeServer
from polyloom.methods.transfer.asking import MAX_WORDS, frequent_words, language_name, read_answer

WORDS = {"dog": "Hund", "house": "Haus", "river": "Fluss", "bank": "Bank", "to run": "laufen"}
BACK = {"Hund": "dog", "Haus": "house, home", "Fluss": "stream", "Bank": "bench; bank"}


def test_lines_are_read_in_the_forms_that_models_use() -> None:
    answer = (
        "Here are the translations:\n"
        "1. dog = Hund, Köter\n"
        "- House -> **Haus** (n.)\n"
        "* river: »Fluss«\n"
        "bank → die Bank / das Ufer\n"
        "cat = Katze\n"
        "dog = Katze\n"
        "tree = a large plant with a trunk, leaves and branches\n"
        "stone = ?\n"
    )
    found = read_answer(answer, ["dog", "house", "river", "bank", "tree", "stone"])
    assert found == {
        "dog": ("Hund", "Köter"),
        "house": ("Haus",),
        "river": ("Fluss",),
        "bank": ("die Bank", "das Ufer"),
    }


@given(st.text(), st.lists(st.text(min_size=1), max_size=4))
def test_any_answer_is_read_or_left_out(answer: str, words: list[str]) -> None:
    found = read_answer(answer, words)
    assert found.keys() <= set(words)
    assert all(one and len(one.split()) <= MAX_WORDS for translations in found.values() for one in translations)


def test_words_come_by_frequency_in_their_usual_case() -> None:
    assert frequent_words("The Dog saw the dog, the dog and 12 cats.", 3) == ["the", "dog", "saw"]


@pytest.mark.parametrize(("code", "name"), [("de", "German"), ("zh-Hant", "Chinese (Traditional)"), ("tlh", "Klingon")])
def test_languages_are_named(code: str, name: str) -> None:
    assert language_name(code) == name


def answer(body: dict[str, Any]) -> str:
    question, _, words = body["messages"][-1]["content"].partition("\n\n")
    known = WORDS if "into German" in question else BACK
    return "\n".join(f"{word} = {known.get(word, 'no idea')}" for word in words.splitlines())


def call(cli: Callable[..., Any], tmp_path: Path, server: FakeServer, *words: object) -> Any:
    text = tmp_path / "text.txt"
    text.write_text("the dog, the house and the river: a dog by the bank", encoding="utf-8")
    model = f"{server.base_url}#m"
    return cli("transfer", "dictionary", "--method", "ask", "--model", model, "--text", text, "--json", *words)


def test_what_comes_back_stays(cli: Callable[..., Any], tmp_path: Path) -> None:
    reference = tmp_path / "reference.txt"
    reference.write_text("dog Hund\nhouse Haus\n", encoding="utf-8")
    with FakeServer(answer, rates={"429": 0.3}) as server:
        result = call(cli, tmp_path, server, "--reference", reference, "--run", "asked")
    assert result.exit_code == 0, result.stderr
    found = {name: one["value"] for name, one in json.loads(result.stdout)["scalars"].items()}
    assert found["num_asked"] == 8
    assert found["num_confirmed"] == 3
    assert found["precision_at_1"] == 1.0
    lines = (tmp_path / "runs/asked/artifacts/dictionary.tsv").read_text(encoding="utf-8").splitlines()
    assert {tuple(line.split("\t")[:2]) for line in lines[1:]} == {("dog", "Hund"), ("house", "Haus"), ("bank", "Bank")}


def test_faults_of_the_user_and_of_the_model_are_one_line(cli: Callable[..., Any], tmp_path: Path) -> None:
    assert "--method ask: needs a model and words" in cli("transfer", "dictionary", "--method", "ask").stderr
    with FakeServer("I'd rather not.") as server:
        result = call(cli, tmp_path, server)
    assert result.exit_code == 2
    assert "--model: the model answered for 0 of 8 words, and none stayed" in result.stderr
    with FakeServer(answer) as server:
        result = call(cli, tmp_path, server, "--no-mutual")
    assert json.loads(result.stdout)["scalars"]["num_confirmed"]["value"] == 8
