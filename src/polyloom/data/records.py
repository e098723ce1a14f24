"""Records of labelled text: words with their tree and labels, single or in pairs, as every reader gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import regex

from polyloom.core.errors import UserError

UPOS = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ",
    "SYM", "VERB", "X",
)  # fmt: skip
OUTSIDE = "O"
# A word with its apostrophes and hyphens, a number, or one sign; scripts without blanks are cut at each character.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(
    rf"[{_UNSPACED}]\p{{M}}*|(?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}])+(?:['’\-](?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}])+)*"
    r"|\p{N}+(?:[.,:]\p{N}+)*|[^\s\x1c-\x1f]"
)


class Range(NamedTuple):
    """A multiword token: words `start` to `end` (1-based, inclusive) are written together as `form`."""

    start: int
    end: int
    form: str


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words of a sentence or text, and what is known of each; a column that is not known is empty.

    Attributes:
        words: the words.
        upos: one universal part of speech a word; `_` where it is not one of the 17.
        heads: number of each word's head, 1 to n; 0 hangs on the root (a text of several sentences has several).
        deprels: one relation a word.
        labels: one label a word, such as BIO tags.
        id: the sentence's name in its file.
        text: the text as it is written.
        ranges: the multiword tokens.
        source: file and line, for messages.
    """

    words: tuple[str, ...]
    upos: tuple[str, ...] = ()
    heads: tuple[int, ...] = ()
    deprels: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    id: str = ""
    text: str = ""
    ranges: tuple[Range, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("upos", "heads", "deprels", "labels"):
            column = getattr(self, name)
            if column and len(column) != len(self.words):
                what = f"sentence {self.id or self.text!r} has {len(column)} {name} for {len(self.words)} words."
                raise UserError(what, where=self.source, hint="Give one for each word.")

    def written(self) -> str:
        """Return the text as it is written, or the words joined by blanks where that is not known."""
        return self.text or " ".join(self.words)


@dataclass(frozen=True, slots=True)
class Example:
    """One example of a task: a sentence or a pair, with its class or intent; word labels are in the sentences.

    Attributes:
        id: unique in its file.
        sentences: one, or the two of a pair.
        label: class of the text or pair, or intent of the utterance; empty where there is none.
        language: its code, `und` where unknown.
    """

    id: str
    sentences: tuple[Sentence, ...]
    label: str = ""
    language: str = "und"


@dataclass(frozen=True)
class Examples:
    """What a file held, and what was dropped or repaired on the way, by reason."""

    examples: tuple[Example, ...]
    format: str
    notices: Counter[str] = field(default_factory=Counter)


def split_words(text: str) -> tuple[str, ...]:
    """Split a text into words, numbers and signs; scripts that write no blanks are split by character.

    Args:
        text: the text.

    Returns:
        The words in order; every character that is no blank is in one of them.
    """
    return tuple(_WORD.findall(text))


_END = regex.compile(r"[.!?…。！？؟।]+")
_CLOSING = regex.compile(r"[\p{Pe}\p{Pf}\"'”’」』]+")
MAX_ABBREVIATION = 3


def split_sentences(words: Sequence[str]) -> list[tuple[int, int]]:
    """Find the sentences of a text: they end behind a final sign, and closing quotes belong to them.

    A full stop behind a short capitalised word ("Mr", "J") or before a small letter ends none.

    Args:
        words: the words and signs of a text.

    Returns:
        First word and end of each sentence; together they hold all words.
    """
    found, start, at = [], 0, 0
    while at < len(words):
        at += 1
        if not _END.fullmatch(words[at - 1]):
            continue
        while at < len(words) and (_END.fullmatch(words[at]) or _CLOSING.fullmatch(words[at])):
            at += 1
        before = words[at - 2] if at - 2 >= start else ""
        short = words[at - 1] == "." and before.istitle() and len(before) <= MAX_ABBREVIATION
        if at < len(words) and not short and not words[at][:1].islower():
            found.append((start, at))
            start = at
    if start < len(words):
        found.append((start, len(words)))
    return found


def surface(sentence: Sentence) -> Sentence:
    """Merge the words of each multiword token into one node, so that the words are those of the written text.

    The node stands for its word nearest the root (the first of several), whose head, relation, part of speech and
    label it takes: its ancestors lie outside the token, so no cycle can arise.

    Args:
        sentence: a sentence with heads, without cycles.

    Returns:
        The sentence without ranges.
    """
    if not sentence.ranges:
        return sentence
    depths = _depths(sentence.heads) if sentence.heads else [0] * len(sentence.words)
    kept: list[int] = []
    forms: list[str] = []
    node = [0] * (len(sentence.words) + 1)
    starts = {one.start: one for one in sentence.ranges}
    at = 1
    while at <= len(sentence.words):
        one = starts.get(at, Range(at, at, sentence.words[at - 1]))
        members = range(one.start, one.end + 1)
        kept.append(min(members, key=lambda word: depths[word - 1]) - 1)
        forms.append(one.form)
        for member in members:
            node[member] = len(kept)
        at = one.end + 1
    return replace(
        sentence,
        words=tuple(forms),
        upos=_take(sentence.upos, kept),
        heads=tuple(node[sentence.heads[i]] for i in kept) if sentence.heads else (),
        deprels=_take(sentence.deprels, kept),
        labels=_take(sentence.labels, kept),
        ranges=(),
    )


def _take(column: tuple[str, ...], kept: Sequence[int]) -> tuple[str, ...]:
    return tuple(column[i] for i in kept) if column else ()


def _depths(heads: Sequence[int]) -> list[int]:
    depths = [0] * len(heads)
    for start in range(len(heads)):
        path = []
        at = start + 1
        while at and not depths[at - 1]:
            path.append(at)
            at = heads[at - 1]
        depth = depths[at - 1] if at else 0
        for word in reversed(path):
            depth += 1
            depths[word - 1] = depth
    return depths
