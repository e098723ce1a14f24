"""Where prompts and answers come from: the world's semantic parses, or the user's files; and their tokens."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.files import decode, json_rows, read_bytes, read_text, unzipped
from polyloom.core.seeding import python_random
from polyloom.methods.layerskip.method import IGNORED_LABEL
from polyloom.models.tokenizers import encode
from polyloom.training.packing import Batch, BatchAt

ARROW = " =>"
POOL_BATCHES = 16
UNKNOWN = "und"
CODE_SWITCHED = "hi-en"
TOP_COLUMNS = ("domain", "utterance", "semantic_parse")
HINGLISH_COLUMNS = ("en_query", "cs_query", "en_parse", "cs_parse", "domain")
JSON_FIELDS = (("prompt", "response"), ("prompt", "canonical_solution"), ("utterance", "semantic_parse"))
SUMMARY_FIELDS = (("article", "highlights"), ("document", "summary"))


@dataclass(frozen=True)
class Example:
    """A prompt, the answer that is wanted (empty where none is known), and a group: its language or category."""

    prompt: str
    response: str
    group: str = UNKNOWN


def world_examples(languages: Sequence[str], num: int, seed: int, split: str) -> list[Example]:
    """Make requests and their bracketed meanings in the world's languages, which take turns.

    Args:
        languages: codes of template languages.
        num: examples in all.
        seed: of the world.
        split: "train", "valid" or "test"; no meaning is in two.
    """
    from polyloom.data import world

    made = world.records(world.World(languages, seed), "top", languages, num, split)
    return [Example(r["utterance"] + ARROW, " " + r["semantic_parse"], r["language"]) for r in made]


def read_examples(path: Path) -> list[Example]:
    """Read prompts and answers.

    Args:
        path: `.tsv` with a header (TOPv2's columns, or Hinglish-TOP's, where each line gives an English and a
            code-switched example), `.jsonl` or `.jsonl.gz` (`prompt` and `response`; HumanEval; Spec-Bench's `turns`;
            `utterance` and `semantic_parse`; CNN/DM's `article` and `highlights`; XSUM's `document` and `summary`;
            `language` or `category` where present), anything else as one prompt.

    Raises:
        UserError: unreadable, no prompt, a wrong number of columns (the line is named), an unbalanced parse, or a JSON
            line without the fields (those found are listed).
    """
    if path.suffix == ".tsv":
        examples = _read_tsv(path)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        examples = _read_json_lines(path)
    else:
        examples = [Example(read_text(path).strip(), "")]
    if not examples or not any(example.prompt for example in examples):
        raise UserError("holds no prompt.", where=str(path), hint="Name a file with prompts.")
    return examples


def _read_tsv(path: Path) -> list[Example]:
    # A quotation mark is a character here: the files do not quote.
    rows = list(csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t", quoting=csv.QUOTE_NONE))
    header = tuple(rows[0]) if rows else ()
    if header not in (TOP_COLUMNS, HINGLISH_COLUMNS):
        raise UserError(
            f"its first line is {list(header)}.",
            where=f"{path}:1",
            hint=f"Write the columns {' '.join(TOP_COLUMNS)} or {' '.join(HINGLISH_COLUMNS)}, separated by tabs.",
        )
    examples = []
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise UserError(f"has {len(row)} columns, not {len(header)}.", where=f"{path}:{number}")
        pairs = [(row[1], row[2], UNKNOWN)]
        if header == HINGLISH_COLUMNS:
            pairs = [(row[0], row[2], "en"), (row[1], row[3], CODE_SWITCHED)]
        for utterance, parse, group in pairs:
            _check_balance(parse, f"{path}:{number}")
            examples.append(Example(utterance + ARROW, " " + parse, group))
    return examples


def _check_balance(parse: str, where: str) -> None:
    depth = 0
    for character in parse:
        depth += (character == "[") - (character == "]")
        if depth < 0:
            break
    if depth:
        raise UserError("its parse has unbalanced brackets.", where=where, hint="Correct or remove the line.")


def _read_json_lines(path: Path) -> list[Example]:
    text = decode(unzipped(read_bytes(path), path), path)
    return [_from_object(row, f"{path}:{number}") for number, row in json_rows(text, path)]


def _from_object(row: Mapping[str, Any], where: str) -> Example:
    group = str(row.get("language") or row.get("category") or UNKNOWN)
    turns = row.get("turns")
    if isinstance(turns, list) and turns and isinstance(turns[0], str):
        return Example(turns[0], "", group)
    for prompt, response in JSON_FIELDS:
        if isinstance(row.get(prompt), str) and isinstance(row.get(response), str):
            arrow = ARROW if prompt == "utterance" else ""
            return Example(row[prompt] + arrow, (" " if arrow else "") + row[response], group)
    for document, summary in SUMMARY_FIELDS:
        if isinstance(row.get(document), str) and isinstance(row.get(summary), str):
            return Example(f"Article: {row[document]}\nSummary:", " " + row[summary].replace("\n", " "), group)
    if isinstance(row.get("prompt"), str):
        return Example(row["prompt"], "", group)
    raise UserError(f"has no prompt; found: {', '.join(map(str, row)) or 'no field'}.", where=where)


def without_leaks(test: Iterable[Example], train: Iterable[Example]) -> list[Example]:
    """Return the test examples whose prompt is not in the training data, each once."""
    seen = {example.prompt for example in train}
    kept = []
    for example in test:
        if example.prompt not in seen:
            seen.add(example.prompt)
            kept.append(example)
    return kept


def split_examples(examples: Sequence[Example], seed: int, share: float = 0.1) -> tuple[list[Example], list[Example]]:
    """Split into training and test examples; equal prompts stay together."""
    prompts = sorted({example.prompt for example in examples})
    python_random(seed, "split").shuffle(prompts)
    held_out = set(prompts[: max(1, round(share * len(prompts)))])
    train = [example for example in examples if example.prompt not in held_out]
    return train, without_leaks((example for example in examples if example.prompt in held_out), train)


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return a prompt's tokens behind the beginning-of-text token.

    Raises:
        UserError: empty text, for a tokenizer without a beginning-of-text token.
    """
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    tokens = begin + encode(tokenizer, text)
    if not tokens:
        raise UserError("the prompt is empty.", hint="Give text: this tokenizer has no beginning-of-text token.")
    return tokens


@dataclass(frozen=True)
class Tokens:
    """An example in tokens: the prompt's and the answer's, the end token behind it."""

    prompt: list[int]
    response: list[int]
    group: str = UNKNOWN


def tokenize(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example], max_tokens: int | None = None
) -> list[Tokens]:
    """Turn examples into tokens; those longer than `max_tokens` are left out."""
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    made = []
    for example in examples:
        response = encode(tokenizer, example.response) + end if example.response else []
        tokens = Tokens(prompt_tokens(tokenizer, example.prompt), response, example.group)
        if max_tokens is None or len(tokens.prompt) + len(response) <= max_tokens:
            made.append(tokens)
    return made


def pad_examples(examples: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    """Return inputs and labels [rows, tokens]: labels are the next token within the answer, else -100."""
    width = max(len(one.prompt) + len(one.response) for one in examples) - 1
    inputs = torch.zeros(len(examples), width, dtype=torch.int64)
    labels = torch.full((len(examples), width), IGNORED_LABEL)
    for row, one in enumerate(examples):
        text = torch.tensor(one.prompt + one.response)
        inputs[row, : len(text) - 1] = text[:-1]
        labels[row, len(one.prompt) - 1 : len(text) - 1] = text[len(one.prompt) :]
    return inputs, labels


def example_batches(examples: Sequence[Tokens], batch_size: int, seed: int) -> BatchAt:
    """Return the function from a step to its batch; every epoch takes each example once, in an order of its own.

    Examples of similar length go together, so that little of a batch is padding.

    Raises:
        UserError: no example has an answer to learn.
    """
    usable = [one for one in examples if one.response]
    if not usable:
        raise UserError("no example has an answer to learn.", where="--data", hint="Give prompts with responses.")
    orders: dict[int, list[int]] = {}

    def sample(index: int) -> Tokens:
        epoch, at = divmod(index, len(usable))
        if epoch not in orders:
            orders.clear()
            lengths = [len(one.prompt) + len(one.response) for one in usable]
            orders[epoch] = _mixed_order(lengths, batch_size, python_random(seed, "epoch", epoch))
        return usable[orders[epoch][at]]

    def batch_at(step: int) -> Batch:
        inputs, labels = pad_examples([sample(step * batch_size + row) for row in range(batch_size)])
        steps = torch.full((batch_size,), step)
        return {"inputs": inputs, "labels": labels, "step": steps, "row": torch.arange(batch_size)}

    return batch_at


def _mixed_order(lengths: Sequence[int], batch_size: int, rng: random.Random) -> list[int]:
    """Shuffle; sort by length within pools of some batches; shuffle each pool's batches."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    mixed: list[int] = []
    for start in range(0, len(order), POOL_BATCHES * batch_size):
        pool = sorted(order[start : start + POOL_BATCHES * batch_size], key=lengths.__getitem__)
        batches = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        # A short batch stays last, so that the others stay whole.
        short = batches.pop() if len(batches[-1]) < batch_size else []
        rng.shuffle(batches)
        mixed += [index for batch in [*batches, short] for index in batch]
    return mixed


def by_group(
    examples: Sequence[Tokens], key: Callable[[Tokens], str] = lambda one: one.group
) -> dict[str, list[Tokens]]:
    """Group examples, groups in the order of their names."""
    groups: dict[str, list[Tokens]] = {}
    for one in examples:
        groups.setdefault(key(one), []).append(one)
    return dict(sorted(groups.items()))
