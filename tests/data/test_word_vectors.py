from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.data.word_vectors import read_word_vectors

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Any sign but the ASCII blanks, and the mark that a file may begin with.
WORDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=" \t\n\r\v\f\ufeff"), min_size=1, max_size=6
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "words.vec"


def test_a_header_blanks_duplicates_and_empty_lines_by_hand(path: Path) -> None:
    path.write_text("a 1 2 3\n. . . 4 5 6\n\nb\t7\t8\t9 \na 0 0 0\n")
    found = read_word_vectors(path)
    assert (found.words, found.width) == (("a", ". . .", "b"), 3)
    assert found.matrix.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert (found.num_lines, found.num_blanks, found.num_duplicates) == (4, 1, 1)
    path.write_text("9 3\n1 2 3 4\n")
    assert read_word_vectors(path).words == ("1",)
    path.write_text("1995 3\n")
    with pytest.raises(UserError, match="holds no word vectors"):
        read_word_vectors(path)


def test_words_are_chosen_by_name_and_by_number(path: Path) -> None:
    path.write_text("a 1 2\nb x 4\na 9 9\nc 5 6\nd 7 8\n")
    found = read_word_vectors(path, wanted={"c", "a", "z"}, most=3)
    assert (found.words, found.matrix.tolist()) == (("a", "c"), [[1, 2], [5, 6]])
    assert (found.num_lines, found.num_duplicates) == (4, 1)
    none = read_word_vectors(path, wanted=set())
    assert (none.words, none.width, none.num_lines) == ((), 2, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 1 2 3\nb 4 5\n", ":2: has 2 numbers where the vectors have 3"),
        ("2 3\na 1 2 3\n\nb 4 5 6 7\n", ":4: has 4 numbers where the vectors have 3"),
        ("2 2\na 1 2\n1 2\n", ":3: has 1 numbers"),
        ("2 3\na 1 x 3\n", ":2: holds a cell that is no number"),
        ("a 1 2\nb nan 2\n", ":2: holds a number that is not finite"),
        ("a 1 2\nb 1 1e99\n", ":2: holds a number that is not finite"),
        ("2 3\n", "holds no word vectors"),
        ("a\nb\n", "holds no word vectors"),
        ("2 0\na\n", "holds no word vectors"),
        ("", "holds no word vectors"),
    ],
)
def test_bad_files_are_refused_with_their_line(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_word_vectors(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_opened(path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_word_vectors(path)
    path.write_bytes(gzip.compress(b"a 1 2\n" * 999)[:-9])
    with pytest.raises(UserError, match="is a damaged gzip file"):
        read_word_vectors(path)


@given(
    rows=st.lists(st.tuples(WORDS, st.lists(NUMBERS, min_size=2, max_size=2)), min_size=1, max_size=9),
    header=st.booleans(),
    zipped=st.booleans(),
    separator=st.sampled_from(" \t"),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, list[float]]],
    header: bool,
    zipped: bool,
    separator: str,
) -> None:
    path = tmp_path_factory.mktemp("vectors") / "words"
    lines = [separator.join([word, *map(repr, numbers)]) for word, numbers in rows]
    data = "".join(f"{line}\n" for line in [f"{len(rows)} 2"] * header + lines).encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    wanted: dict[str, list[float]] = {}
    for word, numbers in rows:
        wanted.setdefault(word, numbers)
    found = read_word_vectors(path)
    assert dict(zip(found.words, found.matrix.tolist(), strict=True)) == wanted
    assert list(found.words) == list(wanted)
    assert found.num_duplicates == len(rows) - len(wanted)


@given(st.binary(max_size=200) | st.text(" \n0123456789.ae-\x85\u2028", max_size=80).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("vectors") / "words"
    path.write_bytes(data)
    try:
        found = read_word_vectors(path)
    except UserError:
        return
    assert found.matrix.shape == (len(set(found.words)), found.width)
    assert all(math.isfinite(x) for row in found.matrix.tolist() for x in row)
