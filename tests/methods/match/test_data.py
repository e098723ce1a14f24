"""Readers: every format of the field from a small file, and every bad row named."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.methods.match.data import (
    Pair,
    Pairs,
    Reading,
    check_classes,
    leaks,
    read_pairs,
    read_texts,
    split_pairs,
    world_pairs,
)

FILES = {
    "snli.jsonl": '{"gold_label": "neutral", "sentence1": "a b", "sentence2": "c", "captionID": "1"}\n',
    "snli.txt": "gold_label\tsentence1_parse\tsentence1\tsentence2\nneutral\t(ROOT)\ta b\tc\n",
    "sick.txt": "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n1\ta b\tc\t4.5\tneutral\n",
    "mrpc.tsv": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\nneutral\t7\t8\ta b\tc\n",
    "qqp.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta b\tc\tneutral\n",
    "lcqmc.tsv": "a b\tc\tneutral\n",
    "paws.tsv": "id\tsentence1\tsentence2\tlabel\n1\ta b\tc\tneutral\n",
    "scitail.tsv": "a b\tc\tneutral\n",
    "kornli.tsv": "sentence1\tsentence2\tgold_label\na b\tc\tneutral\n",
    "ocnli.json": '{"sentence1": "a b", "sentence2": "c", "label": "neutral", "label0": "entailment"}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_formats_are_recognised(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(FILES[name])
    pairs = read_pairs(path)
    assert [(pair.first, pair.second, pair.label) for pair in pairs.items] == [("a b", "c", "neutral")]
    assert pairs.task == "classes"


def test_a_file_without_a_header_and_with_odd_quotes(tmp_path: Path) -> None:
    path = tmp_path / "msr.tsv"
    path.write_text('1\t10\t11\t"He said\tit is\n0\t12\t13\ta "quote\tb"\n')
    pairs = read_pairs(path)
    assert [(pair.first, pair.second, pair.label) for pair in pairs.items] == [
        ('"He said', "it is", "1"),
        ('a "quote', 'b"', "0"),
    ]


def test_scores_of_quoted_csv_and_korsts(tmp_path: Path) -> None:
    path = tmp_path / "sts.csv"
    path.write_text('"A plane, taking off.","An ""air"" plane.",5.0\nx,y,2.4\n')
    pairs = read_pairs(path)
    assert (pairs.task, pairs.scale) == ("scores", (0.0, 5.0))
    assert pairs.items[0].first == "A plane, taking off."
    assert pairs.items[0].second == 'An "air" plane.'
    path = tmp_path / "korsts.tsv"
    path.write_text("genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2\nnews\tf\t2012\t1\t3.2\ta\tb\n")
    assert [(p.first, p.label, p.category) for p in read_pairs(path).items] == [("a", "3.2", "news")]


def test_unlabelled_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "snli.jsonl"
    path.write_text(FILES["snli.jsonl"] + FILES["snli.jsonl"].replace("neutral", "-"))
    pairs = read_pairs(path)
    assert len(pairs.items) == 1
    assert "1 rows are labelled '-'" in pairs.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\tx\nc\t\tx\nd\n", "2 rows lack a text or the label: lines 2, 3"),
        ("sentence1\tsentence2\tscore\na\tb\tmany\n", r"no number: lines 2 \('many'\)"),
        ("sentence1\tsentence2\tscore\na\tb\tnan\n", r"no number: lines 2 \('nan'\)"),
        ("sentence1\tsentence2\tscore\na\tb\t7\nc\td\t1\n", r"outside the scale 0 to 5: lines 2 \('7'\)"),
        ("a\tb\tc\td\te\tf\n", "6 columns and no header"),
        ("sentence1\tsentence2\tsomething\na\tb\tc\n", "no column that is known to hold the label"),
        ("", "holds no pairs"),
        ('{"sentence1": \n', "is not JSON"),
        ("[1]\n{}", "columns and no header"),
    ],
)
def test_bad_files_are_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.tsv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value)


def test_bad_rows_can_be_left_out_and_are_still_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.tsv"
    path.write_text("a\tb\tx\nc\t\tx\n")
    pairs = read_pairs(path, Reading(skip_bad=True))
    assert len(pairs.items) == 1
    assert "lines 2" in pairs.notes[0]


def test_flags_override_what_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    path.write_text("left\tright\tsentence2\tgrade\na\tb\tz\t7\n")
    reading = Reading("left", "right", "grade", task="scores", scale=(0.0, 10.0))
    assert read_pairs(path, reading).items[0].second == "b"
    with pytest.raises(UserError, match=r"no column 'grad'.*'grade'"):
        read_pairs(path, Reading("left", "right", "grad"))


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(UserError, match="all rows are labelled 'x'"):
        check_classes(Pairs([Pair("a", "b", "x")], "classes"))


def test_a_split_shares_no_text() -> None:
    items = [Pair(f"a{i // 3}", f"b{i}", str(i % 2)) for i in range(300)]
    splits = split_pairs(Pairs(items, "classes"))
    assert sum(len(pairs.items) for pairs in splits.values()) == 300
    assert len(splits["test"].items) >= 30
    for other in ("valid", "test"):
        assert leaks(splits["train"], splits[other]) == (0, 0)


def test_leaks_count_swapped_pairs_and_shared_texts() -> None:
    train = Pairs([Pair("a", "b", "1"), Pair("c", "d", "1")], "classes")
    test = Pairs([Pair("b", "a", "1"), Pair("c", "x", "1"), Pair("y", "z", "1")], "classes")
    assert leaks(train, test) == (1, 2)


def test_world_pairs_of_two_splits_share_no_pair() -> None:
    train, test = world_pairs(400, "train"), world_pairs(200, "test")
    assert leaks(train, test)[0] == 0
    assert {pair.category for pair in train.items} == {f"hardness {i}" for i in range(4)}
    both = world_pairs(16, "train", languages=["de-en"])
    assert len(both.items) == 16


def test_jsick_in_both_languages(real_data: Callable[[str], Path]) -> None:
    path = real_data("jsick") / "jsick.tsv"
    english, japanese = read_pairs(path), read_pairs(path, Reading(side="ja"))
    assert {name: len(p.items) for name, p in split_pairs(english).items()} == {
        "train": 4500,
        "valid": 500,
        "test": 4927,
    }
    assert english.classes() == ["contradiction", "entailment", "neutral"]
    assert english.items[0].first.startswith("A group of kids")
    assert japanese.items[0].first.startswith("子供たち")
    scores = read_pairs(path, Reading(task="scores"))
    assert (scores.task, scores.scale, scores.items[0].label) == ("scores", (0.0, 5.0), "4.5")


@pytest.mark.parametrize("language", ["de", "en", "es", "ja", "zh"])
def test_stsb_in_five_languages(language: str, real_data: Callable[[str], Path]) -> None:
    pairs = read_pairs(real_data("stsb") / f"stsb-{language}-test.csv")
    assert (len(pairs.items), pairs.task, pairs.scale) == (1379, "scores", (0.0, 5.0))


def test_jsts(real_data: Callable[[str], Path]) -> None:
    pairs = read_pairs(real_data("jsts") / "valid-v1.3.json")
    assert (len(pairs.items), pairs.task, pairs.items[1].label) == (1457, "scores", "2.4")


def test_a_corpus_has_ids_of_its_own_or_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "corpus.tsv"
    path.write_text("x\tone text\n\nanother\n")
    assert read_texts(path) == (["x", "3"], ["one text", "another"])
    path.write_text("x\ta\nx\tb\n")
    with pytest.raises(UserError, match="the id 'x' twice"):
        read_texts(path)
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": 7, "text": "a"}\n')
    assert read_texts(path) == (["7"], ["a"])


LINE_ENDS = "\t\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\ufeff"
CELL = st.text(st.characters(exclude_characters=LINE_ENDS, codec="utf-8"), min_size=1)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_any_text_comes_back_from_a_table(rows: list[tuple[str, str]]) -> None:
    from tempfile import TemporaryDirectory

    kept = [(a, b) for a, b in rows if a.strip() and b.strip()]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.tsv"
        body = "".join(f"{a}\t{b}\tyes\n" for a, b in kept)
        path.write_text("sentence1\tsentence2\tlabel\n" + body, encoding="utf-8", newline="")
        if not kept:
            return
        assert [(p.first, p.second) for p in read_pairs(path).items] == [(a.strip(), b.strip()) for a, b in kept]
