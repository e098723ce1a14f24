import errno
import gzip
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core import files
from polyloom.core.errors import UserError


def _write_half(path):
    path.write_text("half")
    raise RuntimeError


def test_write_is_whole_or_absent(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.replace_atomically(path) as temporary:
        _write_half(temporary)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("number", files.DISK_FULL)
def test_full_disk_is_one_line_and_keeps_the_old_file(tmp_path, monkeypatch, number):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def full(self, data):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="the disk is full"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(UserError, match="cannot be written"):
        files.write_text(Path("/proc/nowhere/a.txt"), "x")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_round_trip(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("files") / "a.txt"
    files.write_text(path, text)
    assert files.read_text(path) == text.removeprefix("\ufeff")


def test_a_bad_byte_is_named_with_file_and_offset(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\xff")
    with pytest.raises(UserError, match=r"a\.txt: byte 0xff at offset 3 is not utf-8\. .*--encoding"):
        files.read_text(path)
    assert files.read_text(path, "latin-1") == "abcÿ"
    with pytest.raises(UserError, match="unknown encoding"):
        files.read_text(path, "klingon")


def test_absent_and_broken_json_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        files.read_json(tmp_path / "none.json")
    (tmp_path / "a.json").write_text('{"a":\n 1,}')
    with pytest.raises(UserError, match=r"a\.json:2:\d+: is not JSON"):
        files.read_json(tmp_path / "a.json")


VALUES = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9) | st.none(), max_size=3)


@given(st.lists(VALUES, max_size=5))
def test_json_lines_round_trip_whatever_separators_their_strings_hold(rows):
    text = files.json_lines(rows)
    assert [row for _, row in files.json_rows(text, "a")] == rows
    assert [n for n, _ in files.json_rows("\n" + text.replace("\n", "\r\n\n"), "a")] == [
        2 + 2 * i for i in range(len(rows))
    ]


@pytest.mark.parametrize(("text", "message"), [("{}\n\n{", "a:3: is not JSON"), ("[1]", "a:1: is no JSON object")])
def test_lines_that_are_no_objects_are_named(text, message):
    with pytest.raises(UserError, match=message):
        list(files.json_rows(text, "a"))


def test_gzip_is_known_by_its_bytes(tmp_path):
    packed = gzip.compress(b"text" * 99)
    assert files.unzipped(packed, tmp_path) == b"text" * 99
    assert files.unzipped(b"text", tmp_path) == b"text"
    with pytest.raises(UserError, match="is a damaged gzip file"):
        files.unzipped(packed[:-9], tmp_path)


def test_checksum_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def _hold(path, ready):
    with files.lock(path):
        ready.set()
        time.sleep(60)


def test_lock_excludes_another_process_and_dies_with_its_holder(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / ".lock", ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(UserError, match=f"in use by process {holder.pid}"), files.lock(tmp_path / ".lock"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with files.lock(tmp_path / ".lock"):
        pass


def test_errno_of_other_failures_is_kept_readable(tmp_path, monkeypatch):
    def broken(self, data):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(UserError, match="Input/output error"):
        files.write_text(tmp_path / "a", "x")
