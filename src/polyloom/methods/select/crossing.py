"""A target in another language than the pool: its words mapped by a dictionary, and how often its task is found."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyloom.core.errors import UserError
from polyloom.core.result import Scalar, Table
from polyloom.data.dictionaries import Dictionary, read_dictionary
from polyloom.methods.select.config import EvaluateConfig
from polyloom.methods.select.data import Pool, read_rows
from polyloom.methods.select.method import aggregate, fuse, ranks_of
from polyloom.methods.select.scoring import cache_folder, score_pool

NUM_SENSES = 4
SHORTEST_STEM, LONGEST_ENDING = 4, 2
_WORD = re.compile(r"\w+")


class WordMap:
    """Words of the target's language and what they mean in the pool's."""

    def __init__(self, dictionary: Dictionary) -> None:
        """Take a dictionary that runs from the target's language to the pool's."""
        self.dictionary = dictionary
        self.stems = sorted({head.casefold() for head in dictionary.entries if _WORD.fullmatch(head)})

    def senses(self, word: str) -> list[str]:
        """Return up to 4 translations of a word, or of the headword that differs from it by the last two letters."""
        found = self.dictionary.lookup(word)
        if not found and len(word) > SHORTEST_STEM:
            stem = word.casefold()[: max(SHORTEST_STEM, len(word) - LONGEST_ENDING)]
            first = bisect_left(self.stems, stem)
            near = [head for head in self.stems[first : first + 50] if head.startswith(stem)]
            near = [head for head in near if abs(len(head) - len(word)) <= LONGEST_ENDING]
            found = self.dictionary.lookup(min(near, key=lambda head: (abs(len(head) - len(word)), head), default=""))
        return [one.text for one in found[:NUM_SENSES]]

    def __call__(self, text: str) -> str:
        """Return the text as a bag of words of the pool's language; unknown words (names, numbers) stay."""
        return " ".join(" ".join(self.senses(word)) or word for word in _WORD.findall(text))

    def share_known(self, texts: Sequence[str]) -> float:
        """Return the share of the texts' words that have a translation."""
        words = [word for text in texts for word in _WORD.findall(text)]
        return sum(bool(self.senses(word)) for word in words) / max(1, len(words))


def read_mapping(path: str, texts: Sequence[str]) -> WordMap:
    """Read a dictionary in any of the known formats, in the direction that knows more of the target's words.

    Raises:
        UserError: it knows none of them.
    """
    dictionary = read_dictionary(Path(path))
    both = [WordMap(dictionary), WordMap(dictionary.inverted())]
    best = max(both, key=lambda one: one.share_known(texts))
    if not best.share_known(texts):
        hint = "It should hold the target's language and the pool's."
        raise UserError("knows no word of the target.", where=path, hint=hint)
    return best


def judge_parallel(config: EvaluateConfig, pool: Pool) -> tuple[dict[str, Scalar], Table, str]:
    """Return by language how often the instruction of a task in that language finds the task in the pool.

    Args:
        config: the file of parallel instructions (task, language, instruction), scorers, and a dictionary for them.
        pool: the tasks.

    Raises:
        UserError: a row lacks a field, or names a task that the pool has not.
    """
    where = str(config.parallel)
    rows = read_rows(Path(where))
    for number, row in enumerate(rows, 1):
        lacking = [name for name in ("task", "language", "instruction") if not isinstance(row.get(name), str)]
        if lacking:
            raise UserError(f"has no {lacking[0]!r}.", where=f"{where}: row {number}")
    if not rows:
        raise UserError("holds no instruction.", where=where)
    gold = [pool.place(row["task"]) for row in rows]
    said = [row["instruction"] for row in rows]
    found = {"": _ranks(config, pool, said, gold)}
    if config.dictionary:
        mapping = read_mapping(config.dictionary, said)
        found["dictionary_"] = _ranks(config, pool, [mapping(text) for text in said], gold)
    scalars: dict[str, Scalar] = {}
    table = Table(columns=["language", "instructions", "words mapped", "recall@1", "recall@5"], rows=[])
    for language in sorted({row["language"] for row in rows}):
        own = [i for i, row in enumerate(rows) if row["language"] == language]
        for kind, ranks in found.items():
            recalls = [float((ranks[own] <= k).mean()) for k in (1, 5)]
            table.rows.append([language, len(own), "yes" if kind else "no", *recalls])
            scalars |= {
                f"{kind}recall_at_{k}_{language}": Scalar(value=v) for k, v in zip((1, 5), recalls, strict=True)
            }
    means = {kind: float((ranks <= 1).mean()) for kind, ranks in found.items()}
    verdict = f"{means['']:.0%} of {len(rows)} instructions in other languages find their own task first"
    verdict += f", {means['dictionary_']:.0%} by the dictionary" if config.dictionary else ""
    return scalars, table, f"{verdict} (at random {1 / len(pool.tasks):.1%})."


def _ranks(config: EvaluateConfig, pool: Pool, said: Sequence[str], gold: Sequence[int]) -> np.ndarray:
    """Return the rank of each instruction's own task."""
    pairs = score_pool(said, pool, config.scorers, config.aggregation, cache=cache_folder(config.cache)).pairs
    owners = np.array(pool.owners)
    ranks: list[float] = []
    for number, task in enumerate(gold):
        each = [aggregate(one[number : number + 1], owners, len(pool.tasks), config.aggregation) for one in pairs]
        ranks.append(ranks_of(fuse(each) if len(each) > 1 else each[0])[task])
    return np.array(ranks)
