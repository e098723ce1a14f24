"""What a score hides: does a model read its trees, where does attention go, which words did a dictionary help?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from polyloom.core.result import Scalar, Series, Table
from polyloom.data.dictionaries import Dictionary
from polyloom.data.records import Example, Sentence
from polyloom.methods.transfer.adaptor import word_embeddings
from polyloom.methods.transfer.arms import random_heads
from polyloom.methods.transfer.data import Data
from polyloom.methods.transfer.models import Loaded
from polyloom.methods.transfer.protocol import Outcome
from polyloom.methods.transfer.results import slug
from polyloom.methods.transfer.sequences import Heads, Sequencer, gold_heads
from polyloom.metrics.tagging import Counts, score

# Arms whose difference is what a dictionary did.
LEXICAL = (("lex", "base"), ("lexsyn", "syn"), ("lex-static", "base"), ("lex-all", "base"), ("lex-mix", "base"))
NUM_PARTS = 4
LEAST_SENTENCES = 5
NUM_WORDS = 10
NUM_ATTENDED = 200
ATTENTION_BATCH = 16
Cells = list[str | int | float | bool | None]


# ---- trees: does the model read them?


def other_trees(seed: int) -> dict[str, Heads]:
    """Return where a model's trees can come from at test time: the given ones, or three that say nothing."""
    return {
        "given": gold_heads,
        "random": random_heads(seed),
        "chain": lambda sentence, name: range(len(sentence.words)),
        "flat": lambda sentence, name: (0,) * len(sentence.words),
    }


def without_upos(examples: Sequence[Example]) -> list[Example]:
    """Return the examples with no part of speech known."""

    def bare(one: Sentence) -> Sentence:
        return replace(one, upos=("_",) * len(one.words))

    return [replace(one, sentences=tuple(bare(part) for part in one.sentences)) for one in examples]


def tree_check(
    loaded: Loaded,
    tests: Mapping[str, Sequence[Example]],
    judge: Callable[[Sequencer, Sequence[Example]], float],
    metric: str,
    seed: int,
) -> tuple[Table, dict[str, Scalar]]:
    """Score a model with other trees, and without parts of speech, than it was given.

    Args:
        loaded: a model with a graph.
        tests: examples by language.
        judge: from a sequencer and examples to a score in percent.
        metric: its name.
        seed: of the random trees.

    Returns:
        A row for each language, and `LANGUAGE_METRIC_TREES_trees` for each kind of trees.
    """
    old = loaded.sequencer
    rows: list[Cells] = []
    scalars: dict[str, Scalar] = {}
    for code, examples in tests.items():
        found = {
            f"{kind} trees": judge(Sequencer(old.pieces, old.max_length, old.targets, heads), examples)
            for kind, heads in other_trees(seed).items()
        }
        found["no parts of speech"] = judge(old, without_upos(examples))
        rows.append([code, *found.values()])
        scalars |= {
            f"{slug(code)}_{slug(metric)}_{slug(kind)}": Scalar(value=value, unit="%") for kind, value in found.items()
        }
    columns = ["language", "given trees", "random", "chain", "flat", "given, no parts of speech"]
    return Table(columns=columns, rows=rows, title=f"{metric} with other trees at test time (%)"), scalars


@torch.inference_mode()
def attention_mass(loaded: Loaded, examples: Sequence[Example]) -> list[tuple[float, float, float]]:
    """Return for each layer the share of attention that goes to neighbours in the tree.

    Args:
        loaded: a model with a graph.
        examples: their first 200 are read.

    Returns:
        With the graph, without it, and if attention were even over the text; means over heads and positions.
    """
    model, encoder, adaptor = loaded.model, loaded.model.encoder, loaded.model.adaptor
    assert isinstance(encoder, PreTrainedModel)
    assert adaptor is not None
    before = encoder.config._attn_implementation
    encoder.set_attn_implementation("eager")
    device = next(model.parameters()).device
    sums, count = np.zeros((0, 3)), 0
    try:
        for start in range(0, min(len(examples), NUM_ATTENDED), ATTENTION_BATCH):
            part = examples[start : min(start + ATTENTION_BATCH, NUM_ATTENDED)]
            batch = {name: tensor.to(device) for name, tensor in loaded.sequencer.batch(part).items()}
            near = (batch["distances"] == 1).float()
            real = batch["attention_mask"].float()
            given = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids") if k in batch}
            adaptor.prepare(word_embeddings(encoder)(batch["input_ids"]), batch)
            layers = encoder(**given, output_attentions=True).attentions
            adaptor.clear()
            plain = encoder(**given, output_attentions=True).attentions
            even = float((near.sum(-1) / real.sum(1, keepdim=True) * real).sum())
            rows = [[_mass(a, near, real), _mass(b, near, real), even] for a, b in zip(layers, plain, strict=True)]
            sums = sums + np.asarray(rows) if len(sums) else np.asarray(rows)
            count += int(real.sum())
    finally:
        adaptor.clear()
        encoder.set_attn_implementation(before)
    return [(float(a), float(b), float(c)) for a, b, c in sums / count]


def _mass(attention: torch.Tensor, near: torch.Tensor, real: torch.Tensor) -> float:
    """Sum over positions the share of attention [batch, heads, n, n] that goes to neighbours."""
    return float(((attention.float().mean(1) * near).sum(-1) * real).sum())


def attention_table(found: Mapping[str, Sequence[tuple[float, float, float]]]) -> Table:
    """Return the shares of attention by language and layer."""
    rows: list[Cells] = [
        [code, layer, 100 * a, 100 * b, 100 * c]
        for code, layers in found.items()
        for layer, (a, b, c) in enumerate(layers)
    ]
    columns = ["language", "layer", "with the graph", "without", "even"]
    return Table(columns=columns, rows=rows, title="Attention on neighbours in the tree (% of all)")


# ---- dictionaries: which words did they help?


def taught_words(dictionary: Dictionary, train: Sequence[Example]) -> frozenset[str]:
    """Return the words that switching can put into the training text, in lower case."""
    words = {word for example in train for one in example.sentences for word in one.words}
    found = (part for word in words for one in dictionary.lookup(word) for part in one.text.casefold().split())
    return frozenset(found)


def _words(example: Example) -> list[str]:
    return [word.casefold() for one in example.sentences for word in one.words]


class Part(NamedTuple):
    """Sentences of like coverage: their mean share of taught words, how many, and both arms' scores in percent."""

    coverage: float
    num_sentences: int
    before: float
    after: float


def coverage_parts(examples: Sequence[Example], taught: frozenset[str], before: Counts, after: Counts) -> list[Part]:
    """Cut sentences into four parts of equal size by the share of their words that a dictionary taught.

    Args:
        examples: of a target language.
        taught: of `taught_words`.
        before: counts of the arm without the dictionary [sentences, 3], summed over seeds.
        after: of the arm with it.
    """
    shares = np.asarray([np.mean([float(word in taught) for word in _words(one)] or [0.0]) for one in examples])
    return [
        Part(float(shares[rows].mean()), len(rows), 100 * score(before[rows]), 100 * score(after[rows]))
        for rows in np.array_split(np.argsort(shares, kind="stable"), NUM_PARTS)
        if len(rows)
    ]


def word_gains(
    examples: Sequence[Example], taught: frozenset[str], before: Counts, after: Counts
) -> list[tuple[str, int, float]]:
    """Return the taught words that moved errors most: word, sentences, errors fewer in them (negative: more).

    An error is an item that is missing or wrong; a sentence's change is shared by its taught words.
    """
    errors = [counts[:, 1] + counts[:, 2] - 2 * counts[:, 0] for counts in (before, after)]
    fewer = errors[0] - errors[1]
    sums: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for one, change in zip(examples, fewer.tolist(), strict=True):
        mine = sorted(set(_words(one)) & taught)
        for word in mine:
            sums[word] += change / len(mine)
            sizes[word] += 1
    order = sorted((word for word in sums if sizes[word] >= LEAST_SENTENCES), key=lambda word: (-sums[word], word))
    shown = order if len(order) <= 2 * NUM_WORDS else order[:NUM_WORDS] + order[-NUM_WORDS:]
    return [(word, sizes[word], sums[word]) for word in shown if sums[word]]


class Lexical(NamedTuple):
    """What dictionaries did, as tables, scalars and series."""

    tables: dict[str, Table]
    scalars: dict[str, Scalar]
    series: dict[str, Series]


def dictionary_report(groups: Mapping[str, Sequence[Outcome]], data: Data, metric: str) -> Lexical:
    """Report the gain by coverage and by word, for the first pair of arms that differ by the dictionary alone.

    Args:
        groups: outcomes by arm.
        data: tests, dictionaries and training data.
        metric: the score.
    """
    pair = next(((a, b) for a, b in LEXICAL if a in groups and b in groups), None)
    codes = [code for code in data.tests if code in data.lexicons and code != data.source]
    if pair is None or not codes:
        return Lexical({}, {}, {})
    parts_rows: list[Cells] = []
    word_rows: list[Cells] = []
    series = {}
    low, high = [], []
    for code in codes:
        taught = taught_words(data.lexicons[code], data.train)
        after, before = (np.sum([one.counts[code][metric] for one in groups[arm]], axis=0) for arm in pair)
        parts = coverage_parts(data.tests[code], taught, before, after)
        parts_rows += [[code, 100 * p.coverage, p.num_sentences, p.before, p.after, p.after - p.before] for p in parts]
        word_rows += [[code, *row] for row in word_gains(data.tests[code], taught, before, after)]
        low.append(parts[0].after - parts[0].before)
        high.append(parts[-1].after - parts[-1].before)
        series[f"gain by coverage, {code}"] = Series(
            x=[100 * p.coverage for p in parts],
            y=[p.after - p.before for p in parts],
            x_label="words of the sentence that the dictionary taught (%)",
            y_label=f"points of {metric}",
            group="what a dictionary adds, by coverage",
        )
    name, title = slug(pair[0]), f"{pair[0]} against {pair[1]}"
    columns = ["language", "words taught (%)", "sentences", pair[1], pair[0], "gain"]
    tables = {"coverage": Table(columns=columns, rows=parts_rows, title=f"{title}: {metric} by coverage (%)")}
    if word_rows:
        tables["words"] = Table(
            columns=["language", "word", "sentences", "errors fewer"],
            rows=word_rows,
            title=f"{title}: words of the dictionary in whose sentences errors fell or rose most",
        )
    scalars = {
        f"{name}_gain_least_covered": Scalar(value=float(np.mean(low)), unit="points"),
        f"{name}_gain_most_covered": Scalar(value=float(np.mean(high)), unit="points"),
    }
    return Lexical(tables, scalars, series)
