"""Sentences: templates, slots, tags and trees in all 24 languages."""

import pytest

from polyloom.core.errors import UserError
from polyloom.data.world import LANGUAGES, TASKS, Frame, World, records
from polyloom.data.world.labelled import FINE_TAGS
from polyloom.data.world.render import bio, compiled, template
from polyloom.data.world.templates import ROWS
from polyloom.data.world.trees import tree

ALL = list(LANGUAGES)
WORLD = World(ALL)
KINDS = [
    *[
        (kind, variant)
        for kind in ("P38", "P37", "P17", "P361", "P30", "diary", "summary", "ask P38")
        for variant in (0, 1)
    ],
    *[
        (kind, 0)
        for kind in ("ask P37", "ask P361", "ask P17", "history", "history open", "this P38", "this P37", "this P361")
    ],
]


def is_projective(heads: list[int]) -> bool:
    arcs = [(min(i, head), max(i, head)) for i, head in enumerate(heads, 1) if head]
    return not any(a < c < b < d for a, b in arcs for c, d in arcs)


def has_cycle(heads: list[int]) -> bool:
    for start in range(1, len(heads) + 1):
        at, steps = start, 0
        while at:
            at, steps = heads[at - 1], steps + 1
            if steps > len(heads):
                return True
    return False


@pytest.mark.parametrize("language", ALL)
def test_templates_are_trees(language):
    for kind, variant in KINDS:
        words = template(language, kind, variant)
        heads = [word.head for word in words]
        assert heads.count(0) == 1, (kind, variant)
        assert all(0 <= head <= len(words) for head in heads), (kind, variant)
        assert not has_cycle(heads), (kind, variant)
        assert is_projective(heads), (kind, variant, [(word.form, word.head) for word in words])
        assert [word.deprel for word in words].count("root") == 1


@pytest.mark.parametrize("language", ALL)
def test_every_template_has_its_slots(language):
    wanted = {
        "P38": "TC",
        "P37": "TL",
        "P17": "XT",
        "P361": "TR",
        "diary": "DXQM",
        "summary": "ABSQ",
        "ask P38": "T",
        "history": "TCAB",
    }
    for kind, slots in wanted.items():
        for variant in (0, 1):
            assert sorted(word.slot for word in template(language, kind, variant) if word.slot) == sorted(slots)


def test_a_word_without_part_of_speech_is_refused():
    with pytest.raises(ValueError, match="part of speech"):
        compiled("The {T}|PROPN|0")


@pytest.mark.parametrize("language", ALL)
def test_refusals_differ(language):
    texts = {WORLD.text(Frame("refusal", (i,)), language).text for i in range(3)}
    assert len(texts) == 3


@pytest.mark.parametrize("language", ALL)
def test_trees_of_records(language):
    for record in records(WORLD, "trees", [language], 60):
        heads = record["heads"]
        assert heads.count(0) == 1
        assert not has_cycle(heads), record
        assert is_projective(heads), record
        assert len(record["tokens"]) == len(heads) == len(record["upos"]) == len(record["deprels"])
        text = "".join(
            token + " " * space for token, space in zip(record["tokens"], record["space_after"], strict=True)
        )
        assert text == record["text"]


def test_dates_inside_trees():
    said = WORLD.text(WORLD.draw("t", 0).diary(Frame("date", (2024, 3, 8))), "de")
    nodes = tree(said)
    forms = [node.form for node in nodes]
    month = forms.index("März") + 1
    assert nodes[forms.index("8")].head == month
    assert nodes[forms.index("8")].deprel == "nummod"
    assert nodes[forms.index("2024")].head == month
    assert nodes[forms.index("Freitag")].deprel == "appos"


def test_han_units_head_their_numbers():
    said = WORLD.text(WORLD.draw("t", 0).diary(Frame("date", (2024, 3, 8))), "ja")
    nodes = tree(said)
    forms = [node.form for node in nodes]
    assert forms[:7] == ["2024", "年", "3", "月", "8", "日", "金曜日"]
    assert [nodes[i].head for i in (0, 2, 4)] == [2, 4, 6]


@pytest.mark.parametrize("language", ALL)
def test_tags_are_of_the_common_set_and_well_formed(language):
    for record in records(WORLD, "tagging", [language], 60):
        assert len(record["tokens"]) == len(record["ner_tags"])
        before = "O"
        for tag in record["ner_tags"]:
            assert tag == "O" or tag[2:] in FINE_TAGS
            assert not tag.startswith("I-") or before[2:] == tag[2:]
            before = tag


def test_tokens_are_cut_at_the_borders_of_names():
    said = WORLD.text(Frame("fact", ("P38", "LA", "LAK")), "ko")
    found = WORLD.tokens(said, "ko")
    assert [token.text for token in found][:2] == ["라오스", "의"]
    assert bio(said, found)[:2] == ["B-LOC", "O"]


def test_coarse_tags_merge_a_date():
    for record in records(WORLD, "tagging", ["de"], 40, coarse=True):
        assert {tag[2:] for tag in record["ner_tags"] if tag != "O"} <= {"LOC", "MISC", "NUM", "DATE"}


@pytest.mark.parametrize("language", ALL)
def test_slots_hold_their_arguments(language):
    item = WORLD.lexicons[language]
    for i in range(30):
        frame = WORLD.draw("slots", i).diary()
        for variant in (0, 1):
            said = WORLD.text(frame, language, variant=variant)
            slots = {slot.tag: (said.text[slot.start : slot.end], slot.value) for slot in said.slots}
            assert slots["CITY"] == (item.name("city", frame.args[1]), frame.args[1])
            assert slots["DATE"] == ("".join(piece.text for piece in item.phrase(frame.args[0])), frame.args[0].iso())
            assert slots["MONEY"][1] == frame.args[3].iso()


def test_a_language_without_templates_says_so():
    with pytest.raises(UserError, match="no sentence templates for 'am'"):
        template("am", "P38")
    with pytest.raises(UserError, match="templates for 'am'"):
        next(records(World(["am"]), "chat", ["am"], 1))
    assert next(records(World(["am"]), "parse", ["am"], 1))["utterance"]


def test_rows_name_their_task_fields():
    world = World(["en", "ja"])
    for name, task in TASKS.items():
        languages = ("en", "ja") if task.num_languages[0] == 2 else ("ja",)
        assert set(task.fields) == set(task.make(world, languages, 0)), name
    assert set(ROWS) == set(LANGUAGES)
