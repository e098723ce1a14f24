from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.data.text import SPLITS, Document, by_language, first_texts, read_documents, split_documents

UDHR = """<?xml version="1.0" encoding="UTF-8"?>
<udhr xml:lang='{language}' xmlns="http://efele.net/udhr">
  <title>Title</title>
  <note><para>A note.</para></note>
  <preamble><title>Preamble</title><para>Whereas
     one,</para></preamble>
  <article number='1'><title>Article 1</title><para>All.</para>
    <orderedlist><listitem><para>First.</para></listitem></orderedlist></article>
  <article number='2'/>
</udhr>
"""


def test_plain_text_is_cut_at_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    long = "x" * 1200
    file.write_text(f"{long}\n\n one\ntwo\n \n\nthree\r\n\r\n{long}\n\nend\n")
    texts = [d.text for d in read_documents([file])]
    assert texts == [long, f" one\ntwo\n\nthree\n\n{long}", "end"]
    assert read_documents([file])[0] == Document(long, "und", str(file))


def test_a_short_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffa\n\nb\n")
    assert [d.text for d in read_documents([tmp_path / "a.txt"])] == ["a\n\nb"]


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"text": "uno", "language": "es"}, {"text": "ein\u2028s", "lang": "de"}, {"text": "?"}, {"text": " "}]
    file.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert [(d.text, d.language) for d in read_documents([file])] == [("uno", "es"), ("ein\u2028s", "de"), ("?", "und")]


def test_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "b"}')
    assert read_documents([tmp_path / "a.jsonl"], field="body")[0].text == "b"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a.jsonl:2: is not JSON"),
        ("[]", "a.jsonl:2: is no JSON object"),
        ('{"txt": "x"}', "a.jsonl:2: has no text under 'text'"),
        ('{"text": 3}', "a.jsonl:2: has no text under 'text'"),
        (r'{"text": "a\ud83d"}', "a.jsonl:2: holds half of a surrogate pair"),
        ('{"text": "x", "language": 3}', "a.jsonl:2: its language is no code"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(UserError, match=message):
        read_documents([tmp_path / "a.jsonl"])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1).filter(lambda t: any(map(str.strip, t))))
def test_json_lines_come_back(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.jsonl"
        file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
        assert [d.text for d in read_documents([file])] == [text for text in texts if text.strip()]


@pytest.mark.parametrize(("tag", "language"), [("fr", "fr"), ("de-1996", "de"), ("zh-Hans", "zh-Hans")])
def test_the_udhr_files(tmp_path: Path, tag: str, language: str) -> None:
    file = tmp_path / "udhr.xml"
    file.write_text(UDHR.format(language=tag))
    documents = read_documents([file])
    assert [d.text for d in documents] == ["Preamble\nWhereas one,", "Article 1\nAll.\nFirst."]
    assert {d.language for d in documents} == {language}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<a", "is not XML"),
        ("<rss><item/></rss>", "is no UDHR file"),
        ("<udhr/>", "holds no text"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><udhr/>', "declares a document type"),
    ],
)
def test_other_xml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_documents([tmp_path / "a.xml"])


def test_bytes_in_another_encoding_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt: byte 0xef at offset 2 is not utf-8\..*--encoding"):
        read_documents([tmp_path / "a.txt"])
    assert read_documents([tmp_path / "a.txt"], encoding="latin-1")[0].text == "naïve"


def test_folders_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b/z.txt", "a.jsonl", "c.txt", ".hidden/x.txt", "image.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "json"}' if name == "a.jsonl" else name)
    assert [d.text for d in read_documents([tmp_path])] == ["json", "b/z.txt", "c.txt"]


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text was given"):
        read_documents([])
    with pytest.raises(UserError, match="holds no file in"):
        read_documents([tmp_path])
    with pytest.raises(UserError, match=r"absent\.txt: cannot be read"):
        read_documents([tmp_path / "absent.txt"])
    (tmp_path / "blank.txt").write_text(" \n\n\t")
    with pytest.raises(UserError, match=r"blank\.txt: holds no text"):
        read_documents([tmp_path / "blank.txt"])


DOCUMENTS = st.lists(
    st.builds(Document, st.text("ab", min_size=1, max_size=4), st.sampled_from(["de", "en"]), st.just("file"))
)


@given(DOCUMENTS, st.randoms())
def test_splits_leak_nothing_and_ignore_the_order(documents: list[Document], random: object) -> None:
    split = split_documents(documents)
    assert sorted(repr(d) for part in split.values() for d in part) == sorted(map(repr, documents))
    texts = [{d.text for d in split[name]} for name in SPLITS]
    assert sum(map(len, texts)) == len({d.text for d in documents})
    shuffled = list(documents)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert [{d.text for d in part} for part in split_documents(shuffled).values()] == texts


def test_shares_are_exact_in_each_language() -> None:
    documents = [Document(f"{language} {i}", language, "") for language in ("de", "en") for i in range(100)]
    split = split_documents(documents, validation=0.1, test=0.2)
    for name, size in (("train", 70), ("validation", 10), ("test", 20)):
        assert {k: len(v) for k, v in by_language(split[name]).items()} == {"de": size, "en": size}


@pytest.mark.parametrize(("number", "sizes"), [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1])])
def test_small_languages_keep_training_text(number: int, sizes: list[int]) -> None:
    split = split_documents([Document(str(i), "de", "") for i in range(number)])
    assert [len(part) for part in split.values()] == sizes


def test_the_real_udhr(real_data: Callable[[str], Path]) -> None:
    documents = read_documents([real_data("udhr")])
    texts = by_language(documents)
    assert list(texts) == ["cs", "de", "en", "es", "fr", "it", "ja", "pl", "ru", "zh"]
    assert {len(items) for items in texts.values()} == {31}
    assert all("  " not in d.text and "<" not in d.text for d in documents)
    assert texts["en"][1].startswith("Article 1\nAll human beings are born free and equal in dignity and rights.")
    test = by_language(split_documents(documents)["test"])
    assert [len(items) for items in test.values()] == [3] * 10


def test_the_real_shakespeare(real_data: Callable[[str], Path]) -> None:
    file = real_data("tinyshakespeare") / "input.txt"
    documents = read_documents([file])
    assert "\n\n".join(d.text for d in documents) == re.sub(r"\n{2,}", "\n\n", file.read_text().strip())
    assert all(len(d.text) >= 1000 for d in documents[:-1])


def test_the_first_texts_fill_a_budget_and_are_never_none() -> None:
    assert first_texts(["ab", "cd", "e", "f"], 4) == ["ab", "cd"]
    assert first_texts(["abcdef", "g"], 1) == ["abcd"]
    assert first_texts([], 4) == []
