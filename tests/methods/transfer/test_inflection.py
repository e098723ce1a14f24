"""Translations in the form that the sentence asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyloom.core.errors import UserError
from polyloom.methods.transfer.inflection import Form, Inflector, agreement, read_inflector


def treebank(path: Path, rows: str) -> Path:
    lines = []
    for number, row in enumerate(rows.split(";"), start=1):
        form, lemma, upos, features = row.split()
        lines.append("\t".join([str(number), form, lemma, upos, "_", features, str(number - 1), "dep", "_", "_"]))
    path.write_text("\n".join(lines) + "\n\n")
    return path


@pytest.fixture
def banks(tmp_path: Path) -> tuple[Path, Path]:
    english = "Dogs dog NOUN Number=Plur;dog dog NOUN Number=Sing;ran run VERB Tense=Past|VerbForm=Fin;the the DET _"
    german = (
        "Hunde Hund NOUN Case=Nom|Number=Plur",
        "Hunden Hund NOUN Case=Dat|Number=Plur",
        "Hunde Hund NOUN Case=Nom|Number=Plur",
        "Hund Hund NOUN Case=Nom|Number=Sing",
        "lief laufen VERB Tense=Past|VerbForm=Fin",
        "laufen laufen VERB VerbForm=Inf",
    )
    return treebank(tmp_path / "en.conllu", english), treebank(tmp_path / "de.conllu", ";".join(german))


def test_forms_agree_in_what_both_languages_have(banks: tuple[Path, Path]) -> None:
    inflect = read_inflector([banks[0]], {"de": [banks[1]]})
    assert inflect("dogs", "NOUN", "de", "Hund") == "Hunde"
    assert inflect("Dog", "NOUN", "de", "Hund") == "Hund"
    assert inflect("ran", "VERB", "de", "laufen") == "lief"
    for word, upos, code, translation in (
        ("the", "DET", "de", "der"),
        ("dogs", "VERB", "de", "Hund"),
        ("dogs", "NOUN", "sv", "hund"),
        ("dogs", "NOUN", "de", "Katze"),
    ):
        assert inflect(word, upos, code, translation) == translation


def test_what_contradicts_is_not_taken() -> None:
    only = {("hund", "NOUN"): [Form("hund", {"Number": "Sing"}, 9)]}
    inflect = Inflector({("dogs", "NOUN"): {"Number": "Plur"}}, {"de": only})
    assert inflect("dogs", "NOUN", "de", "Hunde!") == "Hunde!"
    assert inflect("dogs", "NOUN", "de", "Hund") == "Hund"
    assert agreement({"Number": "Plur", "Tense": "Past"}, {"Number": "Sing", "Tense": "Past", "Case": "Dat"}) == 0


def test_a_treebank_without_features_is_refused(tmp_path: Path) -> None:
    bare = treebank(tmp_path / "x.conllu", "a _ X _;b _ X _")
    with pytest.raises(UserError, match="has no lemmas and features"):
        read_inflector([bare], {})


def test_switched_words_are_inflected_by_the_verb(
    cli: Callable[..., Any], banks: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "d.txt").write_text("dog Hund\ndogs Hund\nran laufen\n")
    (tmp_path / "x.jsonl").write_text(json.dumps({"words": ["Dogs", "dog", "ran", "the"], "label": "a"}) + "\n")
    given = ["--data", tmp_path / "x.jsonl", "--dictionaries", f"de={tmp_path / 'd.txt'}", "--rate", 1]
    inflect = ["--inflect", f"de={banks[1]}"]
    refused = cli("transfer", "switch", *given, *inflect)
    assert refused.exit_code == 2
    assert "features of the source's trees" in refused.stderr
    found = cli("transfer", "switch", *given, *inflect, "--trees", banks[0], "--run", "s", "--json")
    assert found.exit_code == 0, found.stderr
    row = json.loads((tmp_path / "runs" / "s" / "artifacts" / "switched.jsonl").read_text())
    assert row["words"] == ["Hunde", "Hund", "lief", "the"]
