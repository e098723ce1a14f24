from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.data.dictionaries import Dictionary, Translation, read_dictionary
from polyloom.methods.transfer.induction import (
    InductionOptions,
    Pair,
    align,
    argmax_links,
    distort,
    held_out_hits,
    ibm1,
    induce,
    induce_from_links,
    itermax_links,
    lower,
    precision_at_1,
    read_parallel,
    tsv,
    words_to_align,
)

WORDS = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=5, unique=True).map(tuple)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=12), st.integers(1, 5))
def test_model_1_is_that_of_nltk(pairs: list[Pair], iterations: int) -> None:
    """NLTK counts a repeated target word of a sentence twice in its normaliser, so words are unique here."""
    translate = pytest.importorskip("nltk.translate")
    tables = ibm1(pairs, iterations)
    for flip, probabilities in ((False, tables.forward), (True, tables.backward)):
        corpus = [translate.AlignedSent(list(a if flip else b), list(b if flip else a)) for a, b in pairs]
        table = translate.IBMModel1(corpus, iterations).translation_table
        for (source, target), found in zip(tables.pairs, probabilities, strict=True):
            wanted = table[source][target] if flip else table[target][source]
            assert found == pytest.approx(wanted, abs=1e-9)


def test_one_iteration_by_hand() -> None:
    # "a b" - "x y", uniform 1/2 each, NULL too: every link of x has 1/3; p(x|a) = (1/3) / (2/3).
    tables = ibm1([(("a", "b"), ("x", "y"))], 1)
    assert tables.pairs == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    np.testing.assert_allclose(tables.forward, 0.5)
    smooth = ibm1([(("a", "b"), ("x", "y"))], 1, smoothing=1.0)
    np.testing.assert_allclose(smooth.forward, (1 / 3) / (2 / 3 + 1))


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=12))
def test_probabilities_leave_room_for_no_more_than_one(pairs: list[Pair]) -> None:
    tables = ibm1(pairs, 3, tension=2.0)
    sums: dict[str, float] = {}
    for (source, _), value in zip(tables.pairs, tables.forward, strict=True):
        assert 0 <= value <= 1 + 1e-9
        sums[source] = sums.get(source, 0) + value
    for total in sums.values():
        assert total == pytest.approx(1)


def test_the_diagonal_is_preferred_under_tension() -> None:
    pairs = [(("a", "b"), ("x", "y"))]
    flat, steep = ibm1(pairs, 3), ibm1(pairs, 3, tension=5.0)
    assert flat.forward[0] == pytest.approx(flat.forward[1])
    assert steep.forward[0] > 0.8


def test_argmax_and_itermax_by_hand() -> None:
    similarity = np.array([[0.9, 0.2, 0.1], [0.8, 0.7, 0.3], [0.1, 0.65, 0.2]])
    assert argmax_links(similarity) == [(0, 0)]
    # Second round: the first row and column count 0.9, their meeting 0. Of row 1, 0.72 (column 0) beats 0.7.
    assert itermax_links(similarity) == [(0, 0), (1, 0)]
    assert itermax_links(similarity, alpha=0.8) == [(0, 0), (1, 1)]
    assert itermax_links(similarity, rounds=1) == argmax_links(similarity)
    assert argmax_links(np.zeros((2, 2))) == []


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_itermax_only_adds_links(m: int, n: int, seed: int) -> None:
    similarity = np.random.default_rng(seed).uniform(0.1, 1, (m, n))
    first = argmax_links(similarity)
    assert set(first) <= set(itermax_links(similarity))
    assert len({i for i, _ in first}) == len({j for _, j in first}) == len(first)


def test_distortion_by_hand() -> None:
    np.testing.assert_allclose(distort(np.ones((2, 2))), [[1, 0.875], [0.875, 1]])


def test_alignment_by_vectors_of_words() -> None:
    table = {"a": [1, 0], "b": [0, 1], "x": [0.9, 0.1], "y": [0.1, 0.9]}

    def vectors(texts: list[tuple[str, ...]]) -> list[np.ndarray]:
        return [np.array([table[word] for word in text], dtype=np.float32) for text in texts]

    assert align([(("a", "b"), ("y", "x"))], vectors, "argmax") == [[(0, 1), (1, 0)]]


def toy(number: int = 30) -> list[Pair]:
    rng = np.random.default_rng(0)
    words = [("dog", "Hund"), ("cat", "Katze"), ("sees", "sieht"), ("big", "groß"), ("red", "rot"), ("and", "und")]
    pairs = []
    for _ in range(number):
        chosen = [words[i] for i in rng.permutation(6)[:4]]
        # The first word stands in front, so that its case says nothing.
        pairs.append((("The", *(a for a, _ in chosen)), ("Der", *(b for _, b in chosen))))
    return pairs


def test_a_dictionary_is_induced_with_the_usual_case() -> None:
    found = induce(toy(), InductionOptions())
    assert {head: own[0].text for head, own in found.entries.items()} == {
        "the": "der",
        "dog": "Hund",
        "cat": "Katze",
        "sees": "sieht",
        "big": "groß",
        "red": "rot",
        "and": "und",
    }
    scores = [own[0].score for own in found.entries.values()]
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    assert induce(toy(), InductionOptions(min_count=10_000)).entries == {}


def test_a_dictionary_of_alignments() -> None:
    links = [[(i, i) for i in range(5)] for _ in toy()]
    found = induce_from_links(toy(), links, InductionOptions(smoothing=0.0))
    assert found.entries["dog"] == (Translation("Hund", score=1.0),)


def test_precision_counts_base_forms_apart() -> None:
    induced = Dictionary(
        {
            "dog": (Translation("Hund"), Translation("x")),
            "red": (Translation("roten"),),
            "cooking": (Translation("kochen"),),
            "man": (Translation("Kind"),),
            "odd": (Translation("y"),),
        }
    )
    reference = Dictionary(
        {
            "Dog": (Translation("hund"),),
            "red": (Translation("rot"),),
            "cooking": (Translation("Kochens"),),
            "man": (Translation("Mann"),),
        }
    )
    score = precision_at_1(induced, reference)
    # "roten" shares three letters with "rot": too short to say so; "kochen" is a form of "Kochens".
    assert score[:4] == (5, 4, 1, 2)
    assert score.precision == 0.25
    assert ("man", "Kind", "mann") in score.wrong


def test_held_out_hits() -> None:
    found = Dictionary({"dog": (Translation("Hund"),)})
    assert held_out_hits(found, [(("Dog", "x"), ("hund",)), (("dog",), ("Katze",))]) == (1, 2)


def test_tsv_is_read_back(tmp_path: Path) -> None:
    found = induce(toy(), InductionOptions())
    path = tmp_path / "d.tsv"
    path.write_text(tsv(found), encoding="utf-8")
    again = read_dictionary(path)
    assert {h: [(t.text, t.score) for t in own] for h, own in again.entries.items()} == {
        h: [(t.text, t.score) for t in own] for h, own in found.entries.items()
    }


def test_parallel_files(tmp_path: Path) -> None:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    a, b = write("a.txt", "one\ntwo\n\none\n"), write("b.txt", "eins\nzwei\ndrei\neins\n")
    assert read_parallel(a, b) == [("one", "eins"), ("two", "zwei")]
    assert read_parallel(write("f.txt", "a b ||| c d\ne\tf\n")) == [("a b", "c d"), ("e", "f")]
    first, second = write("a.csv", '"x, y",z,5\n'), write("b.csv", "u,v,5\n")
    assert read_parallel(first, second, columns=(0, 1)) == [("x, y", "u"), ("z", "v")]
    for arguments, columns, message in (
        ((a, write("c.txt", "x\n")), (0,), "has 1 texts, the source has 4"),
        ((write("g.txt", "a b\n"),), (0,), "no ' ||| ' and no TAB"),
        ((first, second), (7,), "has no column 7"),
        ((write("e.txt", "\n"), write("e2.txt", "\n")), (0,), "holds no pair"),
    ):
        with pytest.raises(UserError, match=message.replace("|", r"\|")):
            read_parallel(*arguments, columns=columns)


def test_words_to_align_are_words() -> None:
    assert words_to_align("Two dogs, 7 cats!") == ("Two", "dogs", "cats")
    assert lower([(("A",), ("B",)), ((), ("c",))]) == [(("a",), ("b",))]


def test_5000_real_pairs(real_data: Callable[[str], Path]) -> None:
    folder = real_data("stsb")
    texts = read_parallel(folder / "stsb-en-train.csv", folder / "stsb-de-train.csv", columns=(0, 1))
    pairs = [pair for a, b in texts if all(pair := (words_to_align(a), words_to_align(b)))][:5000]
    reference = read_dictionary(real_data("wiktionary") / "en-de-enwiktionary.txt.gz")
    score = precision_at_1(induce(pairs, InductionOptions()), reference)
    assert score.num_entries > 500
    assert score.precision >= 0.80
    plain = precision_at_1(induce(pairs, InductionOptions(4, 0, 0, 0.1, 3, False)), reference)
    assert plain.num_entries > 1000
    assert plain.num_same_form / plain.num_known > 0.8
