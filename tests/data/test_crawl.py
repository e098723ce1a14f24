from __future__ import annotations

import gzip
import io
import json
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.data.crawl import BadRow, RawDocument, Reading, decode, list_parts, read_lines, read_part
from polyloom.data.shards import read_corpus, read_shard, shard_files, write_shard

READING = Reading(extractor="plain")


def documents(path: Path, reading: Reading = READING, split_bytes: int = 1 << 30) -> list[RawDocument | BadRow]:
    return [found for part in list_parts([str(path)], split_bytes=split_bytes) for found in read_part(part, reading)]


def texts(path: Path, **options: int) -> list[str]:
    return [found.text for found in documents(path, **options) if isinstance(found, RawDocument)]


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def test_json_lines_of_many_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        lines(
            {"text": "plain", "lang": "de", "domain": "law", "licence": "CC0", "url": "u"},
            {"text": "datatrove", "id": "7", "metadata": {"language": "fr", "license": "MIT", "n": 1}},
            {"body": "x"},
            ["text"],
            {"text": 3},
        )
        + b"{broken\n\n"
        + lines({"text": "last"})
    )
    found = documents(tmp_path)
    first, second = found[0], found[1]
    assert isinstance(first, RawDocument)
    assert isinstance(second, RawDocument)
    assert (first.text, first.language, first.domain, first.license, dict(first.metadata)) == (
        "plain",
        "de",
        "law",
        "CC0",
        {"url": "u"},
    )
    assert (second.id, second.language, second.license, dict(second.metadata)) == ("7", "fr", "MIT", {"n": 1})
    assert [row.reason for row in found if isinstance(row, BadRow)] == ["no text under 'text'"] * 3 + ["no JSON"]
    assert isinstance(found[-1], RawDocument)
    assert found[-1].text == "last"


def test_domains_come_from_the_option_the_row_or_the_folder(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.jsonl").write_bytes(lines({"text": "a"}, {"text": "b", "domain": "own"}))
    (tmp_path / "c.jsonl").write_bytes(lines({"text": "c"}))

    def domains(given: str) -> list[str | None]:
        return [d.domain for p in list_parts([given]) for d in read_part(p, READING) if isinstance(d, RawDocument)]

    assert domains(str(tmp_path)) == [None, "web", "own"]
    assert domains(f"books={tmp_path}") == ["books", "books", "own"]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_shards_round_trip_and_repeat_byte_for_byte(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("zstandard")
    pytest.importorskip("pyarrow")
    rows = [
        {
            "text": text,
            "id": str(i),
            "language": "x",
            "domain": "d",
            "source": "s",
            "license": "CC0",
            "metadata": {"k": i},
        }
        for i, text in enumerate(["a\nb", "猫\u2028\0", "", "🏳️‍🌈 \r\n"])
    ]
    for name in ("one", "two"):
        assert write_shard(tmp_path / name / f"0.{ending}", rows, ending) == 4  # type: ignore[arg-type]
    one, two = (tmp_path / name / f"0.{ending}" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert list(read_shard(one)) == rows
    assert list(read_corpus(tmp_path / "two")) == rows
    again = documents(tmp_path / "one")
    assert [d.text for d in again if isinstance(d, RawDocument)] == [row["text"] for row in rows]
    assert all(isinstance(d, RawDocument) and d.license == "CC0" and "k" in json.dumps(dict(d.metadata)) for d in again)


def test_a_folder_without_shards_and_a_torn_shard(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no shard"):
        shard_files(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"te')
    with pytest.raises(UserError, match=r"a\.jsonl:2: is not JSON"):
        list(read_corpus(tmp_path))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=8), st.integers(1, 60))
def test_parts_of_a_file_hold_each_line_once(rows: list[str], split_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.jsonl"
        file.write_bytes(lines(*({"text": row} for row in rows)))
        whole = documents(file)
        parts = documents(file, split_bytes=split_bytes)
        # The same rows with the same ids: a line's place is its offset, however the file was cut.
        assert parts == whole
        assert [d.text for d in parts if isinstance(d, RawDocument)] == rows


@given(st.binary(max_size=300), st.integers(1, 50))
def test_lines_cover_the_stream_and_long_ones_are_left_out(data: bytes, limit: int) -> None:
    found = list(read_lines(io.BytesIO(data), limit))
    edges = [offset for offset, _ in found] + [len(data)]
    for (offset, line), end in zip(found, edges[1:], strict=True):
        whole = data[offset:end]
        assert line == (whole if len(whole.rstrip(b"\r\n")) <= limit else None)


def test_one_huge_line_costs_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    size = 40 << 20
    with file.open("wb") as stream:
        stream.write(lines({"text": "before"}) + b'{"text": "')
        for _ in range(size >> 20):
            stream.write(b"x" * (1 << 20))
        stream.write(b'"}\n' + lines({"text": "after"}))
    tracemalloc.start()
    found = documents(file, Reading(max_document_bytes=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [d.text for d in found if isinstance(d, RawDocument)] == ["before", "after"]
    assert [d.reason for d in found if isinstance(d, BadRow)] == ["line over 1048576 bytes"]
    assert peak < 8 << 20


@pytest.mark.parametrize("cut", [10, 40, -8])
def test_a_damaged_archive_gives_what_it_has_and_is_named(tmp_path: Path, cut: int) -> None:
    data = gzip.compress(lines(*({"text": "x" * i} for i in range(1, 400))))
    (tmp_path / "a.jsonl.gz").write_bytes(data[:cut])
    found = documents(tmp_path)
    assert isinstance(found[-1], BadRow)
    assert found[-1].reason.startswith("damaged file")
    assert found[-1].where.endswith("a.jsonl.gz")


@pytest.mark.parametrize("cut", [4, 30, 200, -3])
def test_a_cut_zstandard_file_is_noticed(tmp_path: Path, cut: int) -> None:
    zstandard = pytest.importorskip("zstandard")
    frames = [zstandard.compress(lines(*({"text": f"{k} {i}"} for i in range(300)))) for k in range(2)]
    (tmp_path / "whole.jsonl.zst").write_bytes(b"".join(frames))
    assert len(texts(tmp_path)) == 600
    (tmp_path / "whole.jsonl.zst").write_bytes(b"".join(frames)[:cut])
    found = documents(tmp_path)
    assert isinstance(found[-1], BadRow)
    assert found[-1].reason == "damaged file: the file ends inside a frame"


def test_an_archive_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    pytest.importorskip("pyarrow")
    for name in ("a.jsonl.gz", "b.jsonl.zst", "c.parquet"):
        (tmp_path / name).write_bytes(b"no archive at all")
    found = documents(tmp_path)
    assert [isinstance(row, BadRow) and row.reason.startswith("damaged file") for row in found] == [True] * 3


def test_plain_text_is_cut_at_blank_lines(tmp_path: Path) -> None:
    long = "x" * 1200
    (tmp_path / "a.txt").write_text(f"{long}\n\none\ntwo\n \n\nthree\r\n\r\n{long}\n\nend\n")
    assert texts(tmp_path) == [long, f"one\ntwo\n\nthree\r\n\n{long}", "end"]


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\ufefftext,language\n"one, two",en\nün,de\n')
    (tmp_path / "b.tsv").write_text("id\ttext\n7\tthree\n")
    (tmp_path / "c.csv").write_text("body\nx\n")
    found = documents(tmp_path)
    assert [(d.text, d.language) for d in found[:2] if isinstance(d, RawDocument)] == [("one, two", "en"), ("ün", "de")]
    assert isinstance(found[2], RawDocument)
    assert (found[2].text, found[2].id) == ("three", "7")
    assert isinstance(found[3], BadRow)
    assert found[3].reason == "no column 'text'"


def test_mixed_encodings_are_tried_in_order(tmp_path: Path) -> None:
    rows = ["déjà vu", "日本語の文"]
    parts = [
        json.dumps({"text": t}, ensure_ascii=False).encode(e) for t, e in zip(rows, ("utf-8", "shift_jis"), strict=True)
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(parts))
    found = documents(tmp_path, Reading(encodings=("utf-8", "shift_jis")))
    assert [(d.text, d.replaced) for d in found if isinstance(d, RawDocument)] == [(text, 0) for text in rows]
    alone = documents(tmp_path)
    assert isinstance(alone[1], RawDocument)
    assert alone[1].replaced > 3


def test_decoding() -> None:
    assert decode("é".encode("utf-16"), ("utf-8",)) == ("é", 0)
    assert decode(b"a\xff\xffb", ("utf-8",)) == ("a\ufffd\ufffdb", 2)
    with pytest.raises(UserError, match="unknown encoding 'utf-9'"):
        decode(b"a", ("utf-9",))


def test_web_pages_and_archives(tmp_path: Path) -> None:
    page = b"<html><body><p>One.</p><p>Two.</p></body></html>"
    (tmp_path / "a.html").write_bytes(page)
    body = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=nonsense\r\n\r\n" + page
    record = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://e.org/\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    (tmp_path / "b.warc.gz").write_bytes(gzip.compress(record + body) * 2)
    found = documents(tmp_path)
    assert [d.text for d in found if isinstance(d, RawDocument)] == ["One.\nTwo."] * 3
    assert isinstance(found[1], RawDocument)
    assert found[1].metadata == {"url": "http://e.org/"}


@given(st.binary(max_size=400), st.sampled_from(["jsonl", "txt", "csv", "html", "warc", "xml", "parquet", "jsonl.gz"]))
def test_no_bytes_end_a_reader(data: bytes, ending: str) -> None:
    pytest.importorskip("pyarrow")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"a.{ending}"
        file.write_bytes(data)
        assert all(isinstance(found, RawDocument | BadRow) for found in documents(file))


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file or folder"):
        list_parts([str(tmp_path / "absent")])
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="holds no file in"):
        list_parts([str(tmp_path)])


def test_a_declaration_is_one_document(real_data: Callable[[str], Path]) -> None:
    found = documents(real_data("udhr/udhr_jpn.xml"))
    assert len(found) == 1
    assert isinstance(found[0], RawDocument)
    assert found[0].language == "ja"
    assert found[0].text.count("\n\n") == 30
