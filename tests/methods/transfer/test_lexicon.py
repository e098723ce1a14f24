from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from polyloom.core.errors import UserError
from polyloom.data.dictionaries import Dictionary, Translation, read_dictionary
from polyloom.data.records import Sentence
from polyloom.data.world import World
from polyloom.methods.transfer.lexicon import (
    count_hits,
    in_script,
    join_phrases,
    keep_script,
    lexicon_notices,
    open_lexicons,
    single_words,
    upos_of,
    world_lexicon,
)


@pytest.mark.parametrize(
    ("pos", "wanted"),
    [("n", "NOUN"), ("prop", "PROPN"), ("Noun", "NOUN"), ("article", "DET"), ("phrase", "X"), ("", ""), ("ADP", "ADP")],
)
def test_parts_of_speech(pos: str, wanted: str) -> None:
    assert upos_of(pos) == wanted


@pytest.mark.parametrize(
    ("text", "script", "yes"),
    [
        ("露营", "Hans", True),
        ("露營", "Hans", False),
        ("露營", "Hant", True),
        ("露营", "Hant", False),
        ("Köter 7!", "Latn", True),
        ("собака", "Latn", False),
        ("собака", "Cyrillic", True),
    ],
)
def test_scripts(text: str, script: str, yes: bool) -> None:
    assert in_script(text, script) == yes


def test_a_script_is_kept_and_an_unknown_one_refused() -> None:
    camp = Dictionary({"camp": (Translation("露營"), Translation("露营")), "cat": (Translation("貓"),)})
    assert keep_script(camp, "Hans").entries == {"camp": (Translation("露营"),)}
    with pytest.raises(UserError, match="there is no script 'Klingon'"):
        keep_script(camp, "Klingon")
    with pytest.raises(UserError, match="no translation is written in Cyrl"):
        keep_script(camp, "Cyrl")


def test_reference_lines_and_commas_of_muse(tmp_path: Path) -> None:
    lines = tmp_path / "en-de.json"
    lines.write_text(json.dumps({"dog": ["Hund", "Köter"]}) + "\n" + json.dumps({"cat": ["Katze"]}) + "\n")
    muse = tmp_path / "muse.txt"
    muse.write_text("word, Wort\nthe der\nthe die\n, ,\n")
    assert [one.text for one in read_dictionary(lines).entries["dog"]] == ["Hund", "Köter"]
    found = read_dictionary(muse)
    assert [one.text for one in found.entries["word"]] == ["Wort"]
    assert [(one.text, one.place) for one in found.entries["the"]] == [("der", "line 2"), ("die", "line 3")]
    assert "," in found.entries


def test_labels_and_affixes_of_wiktionary_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "w.txt"
    path.write_text("adverb {n} (x) :: Adverb {n}, dated: Adverbium {n}\nover {prefix} :: über-, -über, über\n")
    found = read_dictionary(path)
    assert [one.text for one in found.entries["adverb"]] == ["Adverb", "Adverbium"]
    assert [one.text for one in found.entries["over"]] == ["über"]


def test_several_files(tmp_path: Path) -> None:
    (tmp_path / "de.txt").write_text("dog Hund\n")
    (tmp_path / "zh.txt").write_text("camp 露營\ncamp 露营\n")
    (tmp_path / "names.tsv").write_text("dog\tHund\ndog\tKöter\nNew York\tNeu York\n")
    found = open_lexicons([f"de={tmp_path}/de.txt", f"zh={tmp_path}/zh.txt"], scripts=["zh=Hans"])
    assert found["zh"].entries["camp"] == (Translation("露营"),)
    assert open_lexicons([f"de={tmp_path}/de.txt"], reverse=True)["de"].entries["Hund"][0].text == "dog"
    both = open_lexicons([f"de={tmp_path}/de.txt", f"de={tmp_path}/names.tsv"])["de"].entries
    assert [(one.text, one.place) for one in both["dog"]] == [("Hund", "line 1"), ("Köter", "names.tsv line 2")]
    assert both["New York"][0].text == "Neu York"
    for specs, scripts, message in (
        (["x"], [], "names no language"),
        ([f"de={tmp_path}/de.txt"], ["fr=Latn"], "fits no dictionary"),
        ([f"de={tmp_path}/no.txt"], [], "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            open_lexicons(specs, scripts=scripts)


def test_notices_for_missing_thin_and_reversed_dictionaries() -> None:
    good = Dictionary({"dog": (Translation("Hund"),), "cat": (Translation("Katze"),)})
    words = [["the", "dog", "and", "cat", "7"]]
    assert count_hits("de", good, words).rate == 0.5
    assert lexicon_notices([count_hits("de", good, words)], ["de"]) == []
    (text,) = lexicon_notices([count_hits("de", good.inverted(), words)])
    assert "runs the other way" in text
    assert "--reverse" in text
    (thin,) = lexicon_notices([count_hits("de", Dictionary({"x": (Translation("y"),)}), words)])
    assert "has 0.0% of the words" in thin
    (missing,) = lexicon_notices([], ["fr"])
    assert missing == "There are no entries into fr; the lex arm will not switch into fr (0 % coverage)."


def test_phrases_become_one_node_and_cut_no_span() -> None:
    lexicons = {"es": Dictionary({"New York": (Translation("Nueva York"),), "give up": (Translation("rendirse"),)})}
    sentence = Sentence(
        ("I", "give", "up", "new", "York"),
        ("PRON", "VERB", "ADP", "PROPN", "PROPN"),
        (2, 0, 2, 5, 2),
        ("nsubj", "root", "compound:prt", "compound", "obj"),
        ("O", "O", "O", "B-LOC", "I-LOC"),
    )
    joined = join_phrases(sentence, lexicons)
    assert joined.words == ("I", "give up", "new York")
    assert joined.heads == (2, 0, 2)
    assert joined.upos == ("PRON", "VERB", "PROPN")
    assert joined.labels == ("O", "O", "B-LOC")
    for labels in (("O", "O", "O", "O", "B-LOC"), ("O", "O", "O", "I-LOC", "I-LOC")):
        assert join_phrases(replace(sentence, labels=labels), lexicons).words == ("I", "give up", "new", "York")
    longer = Sentence(("New", "York", "City"), labels=("B-LOC", "I-LOC", "I-LOC"))
    assert join_phrases(longer, lexicons) == longer
    assert join_phrases(Sentence(("a",)), lexicons) == Sentence(("a",))


def test_registers_and_regions_are_left_out_or_preferred(tmp_path: Path) -> None:
    lines = ("potato {n} (x) :: papa [Latin America], patata [Spain]", "car {n} (x) :: coche, nave [slang]")
    text = "\n".join((*lines, "bus {n} (x) :: guagua [slang]\n"))
    (tmp_path / "es.txt").write_text(text)
    spec = f"es={tmp_path / 'es.txt'}"

    def heads(**options: list[str]) -> dict[str, list[str]]:
        found = open_lexicons([spec], **options)["es"].entries
        return {head: [one.text for one in own] for head, own in found.items()}

    assert heads(avoid=["SLANG"]) == {"potato": ["papa", "patata"], "car": ["coche"]}
    assert heads(prefer=["america"]) == {"potato": ["papa"], "car": ["coche", "nave"], "bus": ["guagua"]}
    assert heads(prefer=["es=spain", "de=x"], avoid=["slang"]) == {"potato": ["patata"], "car": ["coche"]}
    for option in ("avoid", "prefer"):
        with pytest.raises(UserError, match=rf"--{option}: no translation is labelled 'dated'. Most common: slang, "):
            heads(**{option: ["dated"]})


def test_the_world_has_a_dictionary() -> None:
    found = world_lexicon(World(["en", "de"], seed=0), "en", "de")
    assert found.lookup("Monday")[0].text == "Montag"
    assert len(found.entries) > 300


@pytest.mark.parametrize(("language", "least"), [("de", 54_000), ("cmn", 50_900), ("sv", 30_000)])
def test_real_wiktionary_yields_as_many_words_as_it_has(
    real_data: Callable[[str], Path], language: str, least: int
) -> None:
    found = read_dictionary(real_data("wiktionary") / f"en-{language}-enwiktionary.txt.gz")
    words = single_words(found).entries
    assert sum(map(len, words.values())) >= least
    assert all(" " not in one.text for own in words.values() for one in own)
    tagged = [upos_of(one.pos) for own in words.values() for one in own]
    assert tagged.count("NOUN") > 0.4 * len(tagged)
