"""Dictionaries from aligned word vectors: CSLS by hand, files, refusals, and the verb."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyloom.core.errors import UserError
from polyloom.data.dictionaries import read_dictionary
from polyloom.methods.transfer.static import Vectors, csls_best, induce_from_vectors, read_vectors


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_csls_is_its_formula_written_out() -> None:
    rng = np.random.default_rng(0)
    source, target = unit(rng.normal(size=(30, 5))), unit(rng.normal(size=(25, 5)))
    similarity = source @ target.T
    near = [np.sort(similarity, axis=axis) for axis in (0, 1)]
    r_target, r_source = near[0][-10:].mean(0), near[1][:, -10:].mean(1)
    wanted = (2 * similarity - r_target[None] - r_source[:, None]).argmax(1)
    best, cosines = csls_best(source, target)
    assert best.tolist() == wanted.tolist()
    assert np.allclose(cosines, similarity[np.arange(30), wanted], atol=1e-6)


def test_a_hub_is_the_translation_of_few() -> None:
    # The target "hub" is near to all; by cosine alone it would be the best of both words.
    source = Vectors(("a", "b"), unit(np.asarray([[1.0, 0.0, 0.6], [0.0, 1.0, 0.6]])))
    target = Vectors(("x", "y", "hub"), unit(np.asarray([[1.0, -0.5, 0.1], [-0.5, 1.0, 0.1], [0.7, 0.7, 0.9]])))
    found = induce_from_vectors(source, target, 0.1, mutual=False)
    assert {head: own[0].text for head, own in found.entries.items()} == {"a": "x", "b": "y"}
    assert induce_from_vectors(source, target, 0.99, mutual=True).entries == {}
    wide = Vectors(("x",), np.ones((1, 2), dtype=np.float32))
    with pytest.raises(UserError, match="3 and 2 numbers a word are no one space"):
        induce_from_vectors(source, wide, 0.1, mutual=True)


def test_vectors_of_a_file_have_length_1(tmp_path: Path) -> None:
    (tmp_path / "a.vec").write_text("3 2\ndog 3 4\ncat 0 2\ncow 1 0\n")
    found = read_vectors(tmp_path / "a.vec", 2)
    assert found.words == ("dog", "cat")
    assert np.allclose(found.matrix, [[0.6, 0.8], [0, 1]])
    with pytest.raises(UserError, match="cannot be read"):
        read_vectors(tmp_path / "absent.vec", 9)


def test_the_verb_induces_from_vectors(cli: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(12, 6))
    for name, prefix, noise in (("en.vec", "e", 0.0), ("de.vec", "d", 0.05)):
        rows = vectors + noise * rng.normal(size=vectors.shape)
        text = "".join(f"{prefix}{i} {' '.join(map(str, row))}\n" for i, row in enumerate(rows))
        (tmp_path / name).write_text(text)
    words = ("transfer", "dictionary", "--source-vectors", tmp_path / "en.vec")
    found = cli(*words, "--target-vectors", tmp_path / "de.vec", "--run", "d", "--json")
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["scalars"]["num_entries"]["value"] == 12
    entries = read_dictionary(tmp_path / "runs" / "d" / "artifacts" / "dictionary.tsv").entries
    assert all(own[0].text == f"d{head[1:]}" for head, own in entries.items())
    alone = cli(*words)
    assert (alone.exit_code, "Name both files" in alone.stderr) == (2, True)
