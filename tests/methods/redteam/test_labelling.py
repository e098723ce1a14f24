from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.methods.redteam.data import read_responses, text_hash
from polyloom.methods.redteam.labelling import (
    Item,
    Label,
    against_judges,
    agree_pairs,
    alpha,
    consensus,
    label_lines,
    order_for_labels,
    read_items,
)
from polyloom.metrics.agreement import accuracy, cohen_kappa, krippendorff_alpha
from polyloom.runs.execute import run_verb


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_items_hold_hashes_and_verdicts_and_no_text(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"goal": "g", "response": "secret words", "verdicts": {"a": True, "b": False, "c": None}},
        {"goal": "g", "response": "secret words", "verdicts": {"a": True}},
        {"goal": "h", "response": "  "},
        {"goal": "h", "response": "other"},
    ]
    items, responses = read_items(write_lines(tmp_path / "r.jsonl", rows))
    assert [one.response for one in responses] == ["secret words", "other"]
    assert "secret" not in repr(items)
    assert items[0] == Item("g", text_hash("secret words"), 12, {"a": True, "b": False, "c": None})
    assert [one.disputed for one in items] == [True, False]


def test_verdicts_of_a_judge_run_are_matched_by_hash(tmp_path: Path) -> None:
    texts = write_lines(tmp_path / "r.jsonl", [{"goal": "g", "response": "x"}, {"goal": "g", "response": "y"}])
    told = {"goal": "g", "response_sha256": text_hash("y"), "verdicts": {"keywords": True}}
    items, _ = read_items(texts, write_lines(tmp_path / "v.jsonl", [told]))
    assert [one.verdicts for one in items] == [{}, {"keywords": True}]


def test_redacted_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keep-responses"):
        read_items(write_lines(tmp_path / "r.jsonl", [{"goal": "g", "response_sha256": "x"}]))
    with pytest.raises(UserError, match="no response text"):
        read_items(write_lines(tmp_path / "e.jsonl", [{"goal": "g", "response": ""}]))
    row = {"goal": "g", "response": None, "jailbroken": True}
    (tmp_path / "a.json").write_text(json.dumps({"parameters": {}, "jailbreaks": [row]}))
    with pytest.raises(UserError, match="no response text"):
        read_items(tmp_path / "a.json")


@given(st.lists(st.booleans(), max_size=20), st.integers(0, 3))
def test_the_order_is_a_permutation_with_disputes_first(disputed: list[bool], seed: int) -> None:
    items = [Item("g", str(i), 1, {"a": True, "b": not one}) for i, one in enumerate(disputed)]
    order = order_for_labels(items, seed)
    assert sorted(order) == list(range(len(items)))
    shown = [disputed[i] for i in order]
    assert shown == sorted(shown, reverse=True)
    assert order == order_for_labels(items, seed)


ANN: dict[str, Label] = {"1": True, "2": True, "3": False, "4": None, "5": False, "6": True}
BOB: dict[str, Label] = {"1": True, "2": False, "3": False, "4": True, "6": True}


def test_people_are_compared_on_what_both_decided() -> None:
    (found,) = agree_pairs({"ann": ANN, "bob": BOB})
    x, y = [True, True, False, True], [True, False, False, True]
    assert (found.first, found.second, found.num_items) == ("ann", "bob", 4)
    assert found.share is not None
    assert found.kappa is not None
    assert found.share.value == accuracy(x, y) == 0.75
    assert found.kappa.value == cohen_kappa(x, y) == 0.5
    assert found.share.low <= found.share.value <= found.share.high
    rows = [[ANN.get(i), BOB.get(i)] for i in "123456"]
    assert alpha({"ann": ANN, "bob": BOB}) == krippendorff_alpha(rows)
    assert agree_pairs({"ann": {"1": None}, "bob": {"2": True}})[0].share is None
    assert alpha({"ann": {}, "bob": {}}) is None


def test_judges_are_held_to_what_nobody_contradicts() -> None:
    labels = {"ann": ANN, "bob": BOB}
    assert consensus(labels) == {"1": True, "3": False, "4": True, "5": False, "6": True}
    verdicts = {"1": {"k": True}, "2": {"k": True}, "3": {"k": True}, "4": {"k": None}, "6": {"k": True}}
    (found,) = against_judges(labels, verdicts)
    assert (found.first, found.num_items) == ("k", 3)
    assert found.share is not None
    assert found.share.value == pytest.approx(2 / 3)


def test_labels_come_back_as_agree_reads_them(tmp_path: Path) -> None:
    text = "line\nbreak <script> \U0001f600 \u202e"
    _, responses = read_items(write_lines(tmp_path / "r.jsonl", [{"goal": "g", "response": text, "context": "c"}]))
    path = tmp_path / "labels.jsonl"
    path.write_text(label_lines({"1": responses[0]}, {"ann": {"1": True, "2": False}, "bob": {"1": None}}))
    (found,) = read_responses(str(path))
    assert (found.goal, found.response, found.label, found.annotator) == ("g", text, 1, "ann")


def test_agree_runs_on_the_labels_of_two_people(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"goal": f"q{i}", "response": "I cannot help." if i % 2 else f"answer {i}"} for i in range(6)
    ]
    _, responses = read_items(write_lines(tmp_path / "r.jsonl", rows))
    labels: dict[str, dict[str, Label]] = {
        "ann": {str(i): i % 2 == 0 for i in range(6)}, "bob": {str(i): i == 0 for i in range(6)}
    }  # fmt: skip
    path = tmp_path / "labels.jsonl"
    path.write_text(label_lines({str(i): one for i, one in enumerate(responses)}, labels))
    config = {"labels": str(path), "probe_injection": False}
    scalars = run_verb("redteam.agree", config, runs=tmp_path / "runs").scalars
    assert scalars["num_labels"].value == 12
    assert scalars["accuracy_keywords"].value == pytest.approx(10 / 12)
    assert scalars["krippendorff_alpha"].value == pytest.approx(alpha(labels))
