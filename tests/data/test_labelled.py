from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.data.labelled import from_record, mtop_tags, read_labelled
from polyloom.data.treebanks import join_trees, read_conllu


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


IOB2 = "# sent_id = s1\n# text = In New York\n1\tIn\tO\t-\t-\n2\tNew\tB-LOC\t-\tx\n3\tYork\tI-LOC\t-\tx\n\n"
FACEBOOK = "# text: Wake me at 7\n# intent: alarm/set\n# slots: 8:12:datetime\n1\twake\talarm/set\tNoLabel\n"
FACEBOOK += "2\tme\talarm/set\tNoLabel\n3\tat\talarm/set\tB-datetime\n4\t7\talarm/set\tI-datetime\n\n"
MTOP_JSON = json.dumps(
    {"tokens": ["call", "my", "mum"], "tokenSpans": [{"start": s, "length": n} for s, n in ((0, 4), (5, 2), (8, 3))]}
)
MTOP = f"7\tIN:CREATE_CALL\t5:11:SL:CONTACT\tcall my mum\tcalling\tde_XX\t[IN:CREATE_CALL ]\t{MTOP_JSON}\n"
PANX = "en:New\tB-LOC\nen:York\tI-LOC\nen:::\tO\n\nen:x\tO\n"
XNLI = "language\tgold_label\tsentence1\tsentence2\tpairID\nde\tneutral\tEin Satz.\tNoch einer.\t1\nde\t-\ta\tb\t2\n"
XNLI_MT = "premise\thypo\tlabel\nA b.\tC d.\tcontradictory\n"
PAWS_X = "id\tsentence1\tsentence2\tlabel\n1\tA b\tb A\t1\n2\tNS\tc\t0\n"


@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: "\ufeff" + text.replace("\n", "\r\n")])
@pytest.mark.parametrize(
    ("text", "format", "words", "labels", "label", "language"),
    [
        (IOB2, "iob2", ("In", "New", "York"), ("O", "B-LOC", "I-LOC"), "", "xx"),
        (FACEBOOK, "facebook", ("wake", "me", "at", "7"), ("O", "O", "B-datetime", "I-datetime"), "alarm/set", "xx"),
        (MTOP, "mtop", ("call", "my", "mum"), ("O", "B-CONTACT", "I-CONTACT"), "IN:CREATE_CALL", "de"),
        (PANX, "panx", ("New", "York", "::"), ("B-LOC", "I-LOC", "O"), "", "xx"),
        (XNLI, "xnli", ("Ein", "Satz", "."), (), "neutral", "de"),
        (XNLI_MT, "xnli-mt", ("A", "b", "."), (), "contradiction", "xx"),
        (PAWS_X, "paws-x", ("A", "b"), (), "1", "xx"),
        ("A b\tC d\tcontradictory\n", "pairs", ("A", "b"), (), "contradiction", "xx"),
    ],
)
def test_each_format_is_known_and_read(
    tmp_path: Path,
    wrap: Callable[[str], str],
    text: str,
    format: str,
    words: tuple[str, ...],
    labels: tuple[str, ...],
    label: str,
    language: str,
) -> None:
    found = read_labelled(write(tmp_path / "f.txt", wrap(text)), language="xx")
    assert found.format == format
    first = found.examples[0]
    assert (first.sentences[0].words, first.sentences[0].labels) == (words, labels)
    assert (first.label, first.language) == (label, language)


def test_dropped_rows_are_counted(tmp_path: Path) -> None:
    assert read_labelled(write(tmp_path / "x.tsv", XNLI)).notices == {"pairs without a gold label, dropped": 1}
    found = read_labelled(write(tmp_path / "p.tsv", PAWS_X))
    assert found.notices == {"pairs with an untranslated sentence (NS), dropped": 1}
    assert len(found.examples) == 1


def test_an_inside_tag_that_continues_nothing_begins_its_span(tmp_path: Path) -> None:
    text = "1\ta\tI-LOC\n2\tb\tI-LOC\n3\tc\tI-PER\n4\td\tO\n5\te\tI-PER\n"
    found = read_labelled(write(tmp_path / "f.iob2", text))
    assert found.examples[0].sentences[0].labels == ("B-LOC", "I-LOC", "B-PER", "O", "B-PER")
    assert found.notices == {"I- tags that continue no span, read as B-": 3}


@pytest.mark.parametrize(
    ("text", "format", "message"),
    [
        ("1\ta\n", "iob2", r":1: has 2 columns"),
        ("1\ta\tLOC\n", "iob2", r":1: 'LOC' is no BIO tag"),
        ("en:a\tO\tx\n", "panx", r":1: has 3 columns"),
        (FACEBOOK.replace("# intent: alarm/set\n", ""), "facebook", "no intent"),
        (FACEBOOK.replace("\tNoLabel", "", 1), "facebook", r":4: has 3 columns"),
        (MTOP.replace("SL:CONTACT", "CONTACT"), "mtop", "is no slot"),
        (MTOP.replace('"tokens"', '"t"'), "mtop", "holds no tokens"),
        (MTOP.replace('"my", ', ""), "mtop", "2 tokens and 3 spans"),
        ("a\tb\n", "mtop", "has 2 columns"),
        ("a\tb\n", "pairs", "has 2 columns"),
        ("a\tb\n", "xnli", "has no column 'gold_label'"),
        (XNLI + "x\ty\n", "xnli", r":4: has 2 columns for 5 names"),
        ("{]\n", "jsonl", "is not JSON"),
        ("[]\n", "jsonl", "is no JSON object"),
        ('{"a": 1}\n', "jsonl", "has no words and no text"),
        ('{"words": ["a", "b"], "labels": ["O"]}\n', "jsonl", "has 1 labels for 2 words"),
        ('{"words": ["a"], "heads": ["x"]}\n', "jsonl", "heads are no numbers"),
        ('{"words": ["a"], "heads": "x"}\n', "jsonl", "its heads are no list"),
        ("\n", "jsonl", "holds no example"),
        ("a b c\n", "auto", "its format is not known"),
        ("a\n", "pax", "Did you mean"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, format: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_labelled(write(tmp_path / "f.txt", text), format=format)  # type: ignore[arg-type]


def test_records_of_many_shapes() -> None:
    tagged = from_record({"tokens": ["a", "b"], "ner_tags": ["O", "B-X"], "language": "de"}, "here", "3")
    assert (tagged.id, tagged.language, tagged.sentences[0].labels) == ("3", "de", ("O", "B-X"))
    text = from_record({"text": "Two words.", "label": 1}, "here")
    assert (text.label, text.sentences[0].words) == ("1", ("Two", "words", "."))
    pair = from_record(
        {
            "premise": {
                "text": "A b",
                "tokens": ["A", "b"],
                "upos": ["X", "X"],
                "head": [2, 0],
                "deprel": ["x", "root"],
            },
            "hypothesis": {"text": "C", "tokens": ["C"], "upos": ["X"], "head": [0], "deprel": ["root"]},
            "label": "neutral",
        },
        "here",
    )
    assert [one.heads for one in pair.sentences] == [(2, 0), (0,)]
    panx = from_record({"tokens": ["a"], "head": [0], "deptag": ["root"], "postag": ["NOUN"], "label": ["O"]}, "here")
    assert (panx.label, panx.sentences[0].labels, panx.sentences[0].upos) == ("", ("O",), ("NOUN",))


def test_a_folder_of_classes(tmp_path: Path) -> None:
    write(tmp_path / "pos.txt", "\ufeffGood food.\r\n\r\nNice.\r\n")
    write(tmp_path / "neg.txt", "Bad.\n")
    found = read_labelled(tmp_path, language="en")
    assert [(one.id, one.label) for one in found.examples] == [("neg-1", "neg"), ("pos-1", "pos"), ("pos-3", "pos")]
    assert found.examples[1].sentences[0].words == ("Good", "food", ".")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.txt file"):
        read_labelled(tmp_path / "empty")


def test_mtop_tags_by_hand() -> None:
    spans = [(0, 4), (5, 7), (8, 11), (12, 15)]
    assert mtop_tags(spans, [(5, 11, "A"), (12, 15, "A")]) == ["O", "B-A", "I-A", "B-A"]
    # A token inside a slot whose beginning no token has stays outside.
    assert mtop_tags(spans, [(6, 11, "A")]) == ["O", "O", "O", "O"]


WORD = st.text(st.characters(whitelist_categories=("L", "N")), min_size=1, max_size=6)


@given(st.lists(st.lists(st.tuples(WORD, st.sampled_from(("O", "B-X", "B-Y"))), min_size=1, max_size=6), min_size=1))
def test_any_tags_survive_the_files(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[list[tuple[str, str]]]
) -> None:
    folder = tmp_path_factory.mktemp("tags")
    blocks = ["".join(f"{i}\t{w}\t{t}\n" for i, (w, t) in enumerate(one, 1)) for one in sentences]
    files = {
        "iob2": "\n".join(blocks),
        "panx": "\n".join("".join(f"en:{w}\t{t}\n" for w, t in one) for one in sentences),
        "jsonl": "".join(
            json.dumps({"words": [w for w, _ in one], "labels": [t for _, t in one]}) + "\n" for one in sentences
        ),
    }
    for name, text in files.items():
        found = read_labelled(write(folder / name, text), format=name)  # type: ignore[arg-type]
        got = [list(zip(e.sentences[0].words, e.sentences[0].labels, strict=True)) for e in found.examples]
        assert got == sentences


@pytest.mark.parametrize(
    ("name", "number", "missing"),
    [("de_pud-ud-test", 1000, 4), ("zh_pud-ud-test", 1000, 0), ("en_ewt-ud-dev", 2001, 3)],
)
def test_real_entities_meet_their_trees(real_data: Callable[[str], Path], name: str, number: int, missing: int) -> None:
    found = read_labelled(real_data("uner") / f"{name}.iob2")
    assert len(found.examples) == number
    trees = read_conllu(real_data("ud") / f"{name}.conllu").sentences
    joined, num_missing = join_trees([one.sentences[0] for one in found.examples], trees)
    assert num_missing == missing
    assert all(one.heads and len(one.labels) == len(one.heads) for one in joined)


def test_real_intents(real_data: Callable[[str], Path]) -> None:
    sizes = {"en/test-en": (8621, 2), "en/eval-en": (4181, 0), "es/test-es": (3043, 16)}
    for name, (number, repaired) in sizes.items():
        found = read_labelled(real_data("xtds") / f"{name}.conllu")
        assert (found.format, len(found.examples)) == ("facebook", number)
        assert found.notices.total() == repaired
        assert len({example.label for example in found.examples}) <= 12


def test_trees_of_json_lines_are_repaired_and_counted_or_refused(tmp_path: Path) -> None:
    rows = ([2, 1, 0], [0, 0, 1], [2, 0, 9], [-1, 0, 2])
    text = "".join(f'{{"words": ["a", "b", "c"], "heads": {heads}, "upos": ["X", "X", "X"]}}\n' for heads in rows)
    path = write(tmp_path / "f.jsonl", text)
    found = read_labelled(path)
    assert [one.sentences[0].heads for one in found.examples] == [(0, 1, 0), (0, 0, 1), (2, 0, 0), (0, 0, 2)]
    kinds = ("cycles", "extra roots", "heads out of range", "missing heads")
    assert found.notices == {f"{kind} in trees, repaired": 1 for kind in kinds}
    with pytest.raises(UserError, match=r"f\.jsonl:1: 1 cycles in trees in sentence 1"):
        read_labelled(path, strict=True)
