from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.data.records import UPOS, Range, Sentence, surface
from polyloom.data.treebanks import (
    MISSING,
    attachment,
    conllu,
    join_trees,
    read_conllu,
    repair_heads,
    universal,
)


def rows(*words: tuple[str, str, str, str]) -> str:
    cells = (
        "\t".join((str(i), form, "_", upos, "_", "_", head, deprel, "_", "_"))
        for i, (form, upos, head, deprel) in enumerate(words, start=1)
    )
    return "\n".join(cells) + "\n\n"


GOOD = rows(("dogs", "NOUN", "2", "nsubj"), ("bark", "VERB", "0", "root"))


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("heads", "mended", "faults"),
    [
        ([2, 0], (2, 0), {}),
        ([0, 0, 1], (0, 0, 1), {"extra roots": 1}),
        ([2, 1, 0], (0, 1, 0), {"cycles": 1}),
        ([1, 0], (0, 0), {"cycles": 1}),
        ([2, 3, 1], (0, 3, 1), {"sentences without a root": 1, "cycles": 1}),
        ([9, 1], (0, 1), {"sentences without a root": 1, "heads out of range": 1}),
        ([MISSING, 0], (0, 0), {"missing heads": 1}),
        ([2, 1, 4, 3, 0], (0, 1, 0, 3, 0), {"cycles": 2}),
    ],
)
def test_faults_are_repaired_and_counted(heads: list[int], mended: tuple[int, ...], faults: dict[str, int]) -> None:
    assert repair_heads(heads) == (mended, faults)


@given(st.lists(st.integers(-3, 12), max_size=10))
def test_any_heads_become_a_forest_once(heads: list[int]) -> None:
    mended, faults = repair_heads(heads)
    for word in range(1, len(mended) + 1):
        at, steps = word, 0
        while at:
            at, steps = mended[at - 1], steps + 1
            assert steps <= len(mended)
    again, left = repair_heads(mended)
    assert again == mended
    assert set(left) <= {"extra roots"}
    if not faults:
        assert mended == tuple(heads)


@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: "\ufeff" + text.replace("\n", "\r\n")])
def test_multiword_tokens_and_empty_nodes_carry_no_head(tmp_path: Path, wrap: Callable[[str], str]) -> None:
    text = (
        "# sent_id = s1\n# text = im Haus\n1-2\tim\t_\t_\t_\t_\t_\t_\t_\t_\n"
        "1\tin\tin\tADP\t_\t_\t3\tcase\t_\t_\n2\tdem\tder\tDET\t_\t_\t3\tdet\t_\t_\n"
        "3\tHaus\tHaus\tNOUN\t_\t_\t0\troot\t_\t_\n3.1\tliegt\t_\tVERB\t_\t_\t_\t_\t0:root\t_\n"
    )
    (sentence,) = read_conllu(write(tmp_path / "t.conllu", wrap(text))).sentences
    assert (sentence.id, sentence.text) == ("s1", "im Haus")
    assert sentence.words == ("in", "dem", "Haus")
    assert sentence.heads == (3, 3, 0)
    assert sentence.ranges == (Range(1, 2, "im"),)


def test_repairs_are_named_and_strict_refuses_them(tmp_path: Path) -> None:
    cycle = rows(("a", "DET", "2", "det"), ("b", "NOUN", "1", "root"))
    path = write(tmp_path / "t.conllu", GOOD + "# sent_id = bad\n" + cycle)
    bank = read_conllu(path)
    assert bank.repairs == {"sentences without a root": 1, "cycles": 1}
    assert bank.sentences[1].heads == (0, 1)
    assert bank.places == (f"{path}:4 (bad): 1 sentences without a root, 1 cycles",)
    with pytest.raises(UserError, match=r"t\.conllu:4: .*1 cycles in sentence bad"):
        read_conllu(path, strict=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no sentence"),
        ("1\ta\n\n", r":1: has 2 columns"),
        (GOOD.replace("2\tbark", "3\tbark"), r":2: word 3 follows word 1"),
        ("x" + GOOD, r":1: 'x1' is no number"),
        ("1-2\tab" + "\t_" * 8 + "\n" + rows(("a", "X", "0", "root")), r"words 1-2 are not all there"),
        ("2-1\tab" + "\t_" * 8 + "\n" + GOOD, "is no range"),
        ("# sent_id = s\n\n" + GOOD, "sentence s has no word"),
        (rows(("dogs", "NNS", "0", "root")), r"another tag set \('NNS'\)"),
    ],
)
def test_what_is_no_treebank_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_conllu(write(tmp_path / "t.conllu", text))


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not utf-8"):
        read_conllu(write(tmp_path / "t.conllu", GOOD.replace("dogs", "Köter"), "latin-1"))


def test_words_without_a_tree_are_no_fault(tmp_path: Path) -> None:
    (sentence,) = read_conllu(write(tmp_path / "t.conllu", rows(("a", "_", "_", "_"), ("b", "_", "_", "_")))).sentences
    assert (sentence.upos, sentence.heads) == ((), ())


def test_an_odd_tag_is_counted(tmp_path: Path) -> None:
    text = rows(("a", "NOUN", "0", "root"), ("b", "NN", "1", "dep"), ("c", "ADJ", "1", "dep"))
    bank = read_conllu(write(tmp_path / "t.conllu", text))
    assert bank.repairs == {"unknown parts of speech": 1}
    assert bank.sentences[0].upos == ("NOUN", "_", "ADJ")


WORD = st.text(st.characters(whitelist_categories=("L", "N", "P")), min_size=1, max_size=6)


@st.composite
def trees(draw: st.DrawFn) -> Sentence:
    words = tuple(draw(st.lists(WORD, min_size=1, max_size=8)))
    heads = tuple(draw(st.integers(0, i)) if i else 0 for i in range(len(words)))
    upos = tuple(draw(st.sampled_from(UPOS)) for _ in words)
    ranges = (Range(1, 2, "both"),) if len(words) > 1 and draw(st.booleans()) else ()
    return Sentence(words, upos, heads, ("dep",) * len(words), text=" ".join(words), ranges=ranges)


@given(st.lists(trees(), min_size=1, max_size=5))
def test_any_tree_survives_the_file(tmp_path_factory: pytest.TempPathFactory, sentences: list[Sentence]) -> None:
    path = write(tmp_path_factory.mktemp("bank") / "t.conllu", conllu(sentences))
    for given_one, read in zip(sentences, read_conllu(path).sentences, strict=True):
        for name in ("words", "upos", "heads", "deprels", "text", "ranges"):
            assert getattr(read, name) == getattr(given_one, name)


def test_attachment_counts_words() -> None:
    gold = Sentence(("a", "b", "c", "d"), ("DET", "NOUN", "VERB", "ADV"), (2, 3, 0, 3), ("det", "nsubj", "root", "x"))
    other = Sentence(gold.words, ("DET", "NOUN", "NOUN", "ADV"), (2, 3, 0, 1), ("det", "nsubj:pass", "dep", "x"))
    assert attachment([gold], [other]) == (0.75, 0.5, 0.75, 4)
    assert attachment([gold], [gold]) == (1, 1, 1, 4)
    with pytest.raises(UserError, match="the words of the predicted tree are others"):
        attachment([gold], [Sentence(("a",), ("DET",), (0,), ("root",))])
    with pytest.raises(UserError, match="0 trees were predicted for 1"):
        attachment([gold], [])


def test_trees_are_joined_by_words_in_any_order() -> None:
    banks = [Sentence(("b",), ("X",), (0,), ("root",)), Sentence(("a",), ("NOUN",), (0,), ("root",))]
    labelled = [Sentence((word,), labels=("O",), id=word) for word in "abz"]
    joined, num_missing = join_trees(labelled, banks)
    assert [(one.id, one.upos, one.labels) for one in joined] == [("a", ("NOUN",), ("O",)), ("b", ("X",), ("O",))]
    assert num_missing == 1


def test_subtypes_are_cut() -> None:
    assert (universal("nmod:poss"), universal("root")) == ("nmod", "root")


@pytest.mark.parametrize("name", ["en_ewt-ud-test", "de_pud-ud-test", "es_pud-ud-test", "zh_pud-ud-test"])
def test_real_treebanks(real_data: Callable[[str], Path], name: str) -> None:
    bank = read_conllu(real_data("ud") / f"{name}.conllu", strict=True)
    assert len(bank.sentences) == (2077 if name.startswith("en") else 1000)
    for sentence in bank.sentences:
        merged = surface(sentence)
        assert "".join("".join(merged.words).split()) == "".join(sentence.text.split())
        assert not repair_heads(merged.heads)[1]
