"""How clearly an instruction says what is wanted, and which clearer wording a poor one could borrow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from polyloom.methods.select.data import Pool
from polyloom.methods.select.lexical import LexicalIndex, build_index
from polyloom.methods.select.linting import LONG_WORDS, Finding, placeholder_share
from polyloom.methods.select.method import aggregate, jaccard, order_by

FEW_WORDS, LONG_SENTENCE = 6, 30
NEAREST = 5
_VERBS = (
    "add|answer|arrange|assign|ask|change|check|choose|classify|combine|compare|complete|compute|convert|count|correct|"
    "create|decide|describe|detect|determine|edit|evaluate|explain|extract|fill|find|fix|generate|give|identify|judge|"
    "label|list|make|map|match|name|normalise|normalize|order|paraphrase|pick|predict|print|produce|provide|put|rank|"
    "rate|read|remove|reorder|replace|report|return|reverse|rewrite|say|select|separate|simplify|solve|sort|spell|"
    "state|sum|summarise|summarize|tell|transform|translate|turn|use|verbalise|verify|write"
)
PARTS = {
    "action": re.compile(
        rf"(?:^|[.!?:;,]\s+|\b(?:to|must|should|please|and|then|can you)\s+)(?:{_VERBS})\b"
        r"|\b(?:what|which|who|when|where|how|is|are|does|do)\b[^.?]*\?",
        re.I,
    ),
    "input": re.compile(
        r"\b(?:given|following|input|provided|above|below|this|these|passage|sentences?|text|question|paragraph|article|"
        r"review|list|document|story|context|tweet|dialogue|conversation|statement)\b",
        re.I,
    ),
    "output": re.compile(
        r"\b(?:output|answer|respond|response|return|write|print|label|produce|generate|say|in the form|format|"
        r"one word|single word|as a list|translation|summary|classify|into)\b",
        re.I,
    ),
    "labels": re.compile(
        r"\b(?:yes or no|true or false|yes/no|true/false|either|one of|whether|options?|choices?|labels?)\b"
        r"|\bcategor(?:y|ies)\b|[\"'“‘][^\"'”’]{1,30}[\"'”’](?:,? (?:or|and)|,|/) ?[\"'“‘]|\b\w+ or (?:not\b|\w+\W*$)",
        re.I,
    ),
}


def stated_parts(text: str) -> frozenset[str]:
    """Return which of action, input, output and labels an English instruction states, by its words."""
    return frozenset(name for name, pattern in PARTS.items() if pattern.search(text))


def clarity(text: str) -> float:
    """Return how clear an English instruction is, from 0 to 1.

    The share of the four parts that it states, lowered in proportion where it has fewer than 6 words or more than 300,
    where its sentences have more than 30 words in the mean, and by its share of placeholders.

    Args:
        text: an instruction before cleaning.

    Source: spec 7; that stated outputs and labels carry a definition: Yin et al. (2023).
    """
    words = len(text.split())
    if not words:
        return 0.0
    sentences = max(1, len([part for part in re.split(r"[.!?]+(?:\s|$)", text) if part.strip()]))
    length = min(1.0, words / FEW_WORDS, LONG_WORDS / words)
    reading = min(1.0, LONG_SENTENCE * sentences / words)
    return len(stated_parts(text)) / len(PARTS) * length * reading * (1 - placeholder_share(text))


@dataclass(frozen=True)
class Suggestion:
    """A wording to borrow in the place of a poor one, and what it changes.

    Attributes:
        task: whose instruction is poor.
        instruction: the poor wording.
        rules: that it breaks.
        borrowed: the clearer wording.
        lender: the task that has it: this one, or the nearest of its category.
        clarity_before: of the poor wording.
        clarity_after: of the borrowed one.
        kept: Jaccard of the five nearest tasks by the one and by the other.
        precision_before: share of the task's category among the five nearest; None without categories.
        precision_after: the same by the borrowed wording.
    """

    task: str
    instruction: str
    rules: tuple[str, ...]
    borrowed: str
    lender: str
    clarity_before: float
    clarity_after: float
    kept: float
    precision_before: float | None
    precision_after: float | None


def suggest(pool: Pool, findings: Sequence[Finding], limit: int) -> list[Suggestion]:
    """Suggest for poor wordings the clearest flawless one: of the same task, else of its category's nearest task.

    Args:
        pool: the tasks, cleaned so that placeholders are kept.
        findings: what lint found; a wording without one can be borrowed.
        limit: how many at most, in the order of the findings.

    Returns:
        One suggestion a wording, where there is a clearer one.
    """
    rules: dict[tuple[str, str], list[str]] = {}
    for one in findings:
        if one.instruction:
            rules.setdefault((one.task, " ".join(one.instruction.split())), []).append(one.rule)
    lenders = {
        number: best
        for number, task in enumerate(pool.tasks)
        if (best := _clearest([text for text in task.instructions if (task.id, text) not in rules]))
    }
    index = build_index(pool.texts, "tfidf")
    found: list[Suggestion] = []
    for (name, text), broken in rules.items():
        if len(found) == limit:
            break
        own = next((number for number, task in enumerate(pool.tasks) if task.id == name), None)
        before = _nearest(index, pool, text, own)
        lender = _lender(pool, own, lenders, before)
        if lender is None or clarity(lenders[lender]) <= clarity(text):
            continue
        borrowed = lenders[lender]
        after = _nearest(index, pool, borrowed, own)
        category = pool.tasks[lender].category
        precision = [_share(pool, near, category) if category else None for near in (before[:NEAREST], after[:NEAREST])]
        kept = jaccard([str(i) for i in before[:NEAREST]], [str(i) for i in after[:NEAREST]])
        numbers = (clarity(text), clarity(borrowed), kept, precision[0], precision[1])
        found.append(Suggestion(name, text, tuple(broken), borrowed, pool.tasks[lender].id, *numbers))
    return found


def _clearest(texts: Sequence[str]) -> str:
    """Return the clearest of some wordings, the first of equals; empty without any."""
    return max(texts, key=clarity, default="")


def _lender(pool: Pool, own: int | None, lenders: Mapping[int, str], near: Sequence[int]) -> int | None:
    if own is None or own in lenders:
        return own
    category = pool.tasks[own].category
    return next((i for i in near if i in lenders and category and pool.tasks[i].category == category), None)


def _nearest(index: LexicalIndex, pool: Pool, text: str, own: int | None) -> list[int]:
    """Return the other tasks by their nearness to a wording, none where no word is known."""
    scores = aggregate(index.score_all([text]), np.array(pool.owners), len(pool.tasks))
    return [int(i) for i in order_by(scores) if i != own] if scores.any() else []


def _share(pool: Pool, near: Sequence[int], category: str) -> float:
    return sum(pool.tasks[i].category == category for i in near) / max(1, len(near))
