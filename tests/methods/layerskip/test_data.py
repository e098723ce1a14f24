"""Readers of prompts: the formats, what is refused, and what a test set must not share with training."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polyloom.core.errors import UserError
from polyloom.methods.layerskip.data import (
    Example,
    Tokens,
    example_batches,
    pad_examples,
    prompt_tokens,
    read_examples,
    split_examples,
    tokenize,
    without_leaks,
    world_examples,
)
from polyloom.models.tokenizers import train_tokenizer


def test_world_parses_take_turns_and_do_not_leak() -> None:
    train, test = (world_examples(["en", "de"], 60, 0, split) for split in ("train", "test"))
    assert [one.group for one in train[:4]] == ["en", "de", "en", "de"]
    assert train[0].prompt.endswith(" =>")
    assert train[0].response.startswith(" [IN:")
    assert not {one.prompt for one in without_leaks(test, train)} & {one.prompt for one in train}


def test_tsv_of_both_kinds_is_read_without_quoting(tmp_path: Path) -> None:
    top = tmp_path / "top.tsv"
    top.write_text('domain\tutterance\tsemantic_parse\nalarm\tsay "hi\t[IN:X "hi ]\n')
    assert read_examples(top) == [Example('say "hi =>', ' [IN:X "hi ]', "und")]
    mixed = tmp_path / "cs.tsv"
    mixed.write_text("en_query\tcs_query\ten_parse\tcs_parse\tdomain\na\tb\t[IN:X a ]\t[IN:X b ]\talarm\n")
    assert [one.group for one in read_examples(mixed)] == ["en", "hi-en"]


def test_json_lines_of_the_known_kinds_are_read(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "response": "b", "language": "sw"},
        {"turns": ["first", "second"], "category": "writing"},
        {"prompt": "def f():", "canonical_solution": " return 1"},
        {"utterance": "u", "semantic_parse": "[IN:X ]"},
        {"prompt": "alone"},
        {"article": "long", "highlights": "a\nb"},
    ]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    read = read_examples(tmp_path / "a.jsonl")
    assert read == read_examples(tmp_path / "a.jsonl.gz")
    assert read[:2] == [Example("a", "b", "sw"), Example("first", "", "writing")]
    assert read[3] == Example("u =>", " [IN:X ]")
    assert read[4].response == ""
    assert read[5] == Example("Article: long\nSummary:", " a b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "x\ty\n1\t2\n", "its first line is"),
        ("a.tsv", "domain\tutterance\tsemantic_parse\na\tb\n", r"a\.tsv:2: has 2 columns, not 3"),
        ("a.tsv", "domain\tutterance\tsemantic_parse\na\tb\t[IN:X \n", r"a\.tsv:2: its parse has unbalanced"),
        ("a.tsv", "domain\tutterance\tsemantic_parse\n", "holds no prompt"),
        ("a.jsonl", '{"question": "q", "id": 1}', "has no prompt; found: question, id"),
        ("a.jsonl", "{", "is not JSON"),
        ("a.jsonl", "[]", "is no JSON object"),
        ("a.jsonl.gz", "plain", "is not JSON"),
        ("a.txt", " \n", "holds no prompt"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_examples(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_undecodable_bytes_name_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"domain\xff")
    with pytest.raises(UserError, match="offset 6"):
        read_examples(tmp_path / "a.tsv")


def test_labels_are_the_answer_alone() -> None:
    inputs, labels = pad_examples([Tokens([1, 5, 6], [7, 2]), Tokens([1, 8], [9, 9, 9, 2])])
    assert inputs.tolist() == [[1, 5, 6, 7, 0], [1, 8, 9, 9, 9]]
    assert labels.tolist() == [[-100, -100, 7, 2, -100], [-100, 9, 9, 9, 2]]


def test_every_epoch_takes_each_example_once_whatever_the_order_of_asking() -> None:
    examples = [Tokens([1, 10 + i], [2]) for i in range(8)]
    batch_at = example_batches(examples, 4, 0)
    seen = torch.cat([batch_at(step)["inputs"][:, 1] for step in (0, 1)])
    assert sorted(seen.tolist()) == list(range(10, 18))
    second = batch_at(3)["inputs"]
    assert torch.equal(second, batch_at(3)["inputs"])
    batch_at(0)
    assert torch.equal(second, batch_at(3)["inputs"])


def test_batches_hold_examples_of_similar_length() -> None:
    examples = [Tokens([1] * (1 + i % 40), [2] * 5) for i in range(333)]
    batch_at = example_batches(examples, 8, 0)
    batches = [batch_at(step) for step in range(41)]
    kept = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    assert kept == 41 * 8 * 5
    width = sum(batch["inputs"].numel() for batch in batches)
    needed = sum(int((batch["inputs"] != 0).sum()) for batch in batches)
    assert width < 1.15 * needed
    longest = [batch["inputs"].shape[1] for batch in batches]
    assert longest != sorted(longest)


def test_data_without_answers_and_empty_prompts_are_refused() -> None:
    with pytest.raises(UserError, match="no example has an answer"):
        example_batches([Tokens([1], [])], 2, 0)
    tokenizer = train_tokenizer(["a b c"], 259)
    assert prompt_tokens(tokenizer, "") == [1]
    tokenizer.bos_token = None
    with pytest.raises(UserError, match="prompt is empty"):
        prompt_tokens(tokenizer, "")


def test_long_examples_are_left_out_and_splits_share_no_prompt() -> None:
    tokenizer = train_tokenizer(["a b c"], 259)
    examples = [Example("p" * n, "r") for n in (1, 2, 2, 3, 9)]
    assert len(tokenize(tokenizer, examples, 8)) == 4
    train, test = split_examples(examples * 3, 0, 0.4)
    assert test
    assert not {one.prompt for one in train} & {one.prompt for one in test}


def test_hinglish_top_is_read_whole_and_its_splits_overlap(real_data: Callable[[str], Path]) -> None:
    folder = real_data("hinglish_top")
    train, test = read_examples(folder / "train.tsv"), read_examples(folder / "test.tsv")
    assert (len(train), len(test)) == (2 * 2993, 2 * 6513)
    clean = without_leaks(test, train)
    assert 0 < len(clean) < len(test)
    assert not {one.prompt for one in clean} & {one.prompt for one in train}


def test_spec_bench_and_human_eval_are_read(real_data: Callable[[str], Path]) -> None:
    questions = read_examples(real_data("spec_bench") / "question.jsonl")
    assert len(questions) == 480
    assert sum(one.group == "translation" for one in questions) == 80
    problems = read_examples(real_data("human_eval") / "HumanEval.jsonl.gz")
    assert len(problems) == 164
    assert all(one.response for one in problems)
