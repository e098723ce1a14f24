"""Quality rules of Gopher, FineWeb and C4: pure functions of a document, aware of its script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from polyloom.data.duplicates import span_hashes
from polyloom.data.scripts import count_words, is_space_free, run_characters
from polyloom.methods.pretrain.corpus.rules import NO_SENTENCE_MARKS, STOP_WORDS, Rules

# Full stops of Latin, CJK, Devanagari, Arabic, Ethiopic, Armenian, Burmese, Khmer, Tibetan; closing quotes may follow.
_END_MARKS = ".!?…。！？．｡।॥؟۔።։၊။។៕།"
_SENTENCE_END = regex.compile(
    rf"[{_END_MARKS}]+[\p{{Pe}}\p{{Pf}}\"'»”’]*(?=\s|$|(?<=[。！？．｡][\p{{Pe}}\p{{Pf}}”’]*))"
)
_LINE_END = regex.compile(rf"[{_END_MARKS}:;：；»”\"'’)）」』]$")
_BULLETS = ("•", "‣", "▶", "◀", "◦", "■", "□", "▪", "▫", "–", "-", "*", "・", "●")
_ELLIPSES = ("...", "…", "[...]")
_SYMBOLS = regex.compile(r"#|…|\.{3,}")
_WORD_LETTER = regex.compile(r"\p{L}")
_CODE = ("javascript",)
_FILLER = "lorem ipsum"
# Characters of a script without spaces carry about this many times the text of an alphabetic one.
_DENSITY = 2.5


@dataclass(frozen=True)
class Shape:
    """The parts of a document that the rules look at: words (none where no spaces are written), lines, paragraphs."""

    text: str
    words: list[str]
    num_words: float
    lines: list[str]
    paragraphs: list[str]
    space_free: bool


def shape(text: str) -> Shape:
    """Cut a document into what the rules look at."""
    space_free = is_space_free(text)
    words = [] if space_free else text.split()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    paragraphs = [part.strip() for part in regex.split(r"\n{2,}", text) if part.strip()]
    return Shape(text, words, count_words(text), lines, paragraphs, space_free)


def trim_lines(text: str, rules: Rules) -> str:
    """Return the text without the lines that C4's line rules refuse: too few words, script notices, no end mark.

    Args:
        text: the document.
        rules: of its language; `terminal_punctuation` is off by default, as in FineWeb.
    """
    kept = []
    for line in text.split("\n"):
        bare = line.strip()
        if bare and (
            count_words(bare) < rules.min_line_words
            or any(word in bare.lower() for word in _CODE)
            or (rules.terminal_punctuation and not _LINE_END.search(bare))
        ):
            continue
        kept.append(line)
    return regex.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")


def refuse(text: str, language: str, rules: Rules) -> str | None:
    """Return the first rule that a document breaks, with its value, or None.

    For scripts without spaces, words are counted as characters / 1.5, n-grams of words become runs of characters
    (`run_characters`), and the rules of word length and stop words are skipped: English word rules would drop every
    such text.

    Args:
        text: the document, its lines trimmed.
        language: its code.
        rules: of that language.
    """
    document = shape(text)
    if not document.lines:
        return "empty"
    return (
        _refuse_words(document, language, rules)
        or _refuse_lines(document, language, rules)
        or _refuse_repetition(document, rules)
    )


def reason_of(refusal: str) -> str:
    """Return the rule's name out of what `refuse` returned."""
    return refusal.partition(" ")[0]


def _broken(name: str, value: float, *, low: float = -np.inf, high: float = np.inf) -> str | None:
    return None if low <= value <= high else f"{name} {value:.3g}"


def _refuse_words(document: Shape, language: str, rules: Rules) -> str | None:
    """Apply Gopher's quality rules."""
    num_words = document.num_words
    broken = _broken("words", num_words, low=rules.min_words, high=rules.max_words)
    broken = broken or _broken(
        "symbols_per_word",
        len(_SYMBOLS.findall(document.text)) / max(1.0, num_words),
        high=rules.max_symbols_per_word,
    )
    bullets = sum(line.startswith(_BULLETS) for line in document.lines) / len(document.lines)
    broken = broken or _broken("bullet_lines", bullets, high=rules.max_bullet_lines)
    ellipses = sum(line.endswith(_ELLIPSES) for line in document.lines) / len(document.lines)
    broken = broken or _broken("ellipsis_lines", ellipses, high=rules.max_ellipsis_lines)
    broken = broken or _broken("alphabetic_words", _alphabetic(document), low=rules.min_alphabetic_words)
    if broken or document.space_free:
        return broken
    mean_length = sum(map(len, document.words)) / len(document.words)
    broken = _broken("mean_word_length", mean_length, low=rules.min_mean_word_length, high=rules.max_mean_word_length)
    known = STOP_WORDS.get(language)
    if broken or known is None:
        return broken
    # As Gopher: how many of the list occur, not how often.
    stop_words = len(known & {word.strip(".,;:!?()\"'«»„“”").lower() for word in document.words})
    return _broken("stop_words", stop_words, low=rules.min_stop_words)


def _alphabetic(document: Shape) -> float:
    if not document.space_free:
        return sum(word.isalpha() or _WORD_LETTER.search(word) is not None for word in document.words) / max(
            1, len(document.words)
        )
    kinds = Counter("letter" if c.isalpha() else "other" for c in document.text if c.isalnum() or c in "#=<>|{}")
    return kinds["letter"] / max(1, kinds.total())


def _refuse_lines(document: Shape, language: str, rules: Rules) -> str | None:
    """Apply FineWeb's line rules and C4's document rules."""
    lines = document.lines
    punctuated = sum(_LINE_END.search(line) is not None for line in lines) / len(lines)
    if language not in NO_SENTENCE_MARKS:
        broken = _broken("punctuated_lines", punctuated, low=rules.min_punctuated_lines)
        broken = broken or _broken("sentences", num_sentences(document.text), low=rules.min_sentences)
        if broken:
            return broken
    short = rules.short_line_characters / (_DENSITY if document.space_free else 1.0)
    short_lines = sum(len(line) <= short for line in lines) / len(lines)
    broken = _broken("short_lines", short_lines, high=rules.max_short_lines)
    repeated = _duplicates(lines)[1] / max(1, sum(map(len, lines)))
    broken = broken or _broken("repeated_line_characters", repeated, high=rules.max_repeated_line_characters)
    newlines = document.text.count("\n") / max(1.0, document.num_words)
    broken = broken or _broken("newlines_per_word", newlines, high=rules.max_newlines_per_word)
    if broken is None and _FILLER in document.text.lower():
        return "filler_text"
    return broken


def num_sentences(text: str) -> int:
    """Count sentences by their end marks, in any script that writes them; a line is at least one, as in C4."""
    return sum(max(1, len(_SENTENCE_END.findall(line))) for line in text.split("\n") if line.strip())


def _duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """Return how many parts repeat an earlier one, and their characters."""
    seen: set[str] = set()
    number = characters = 0
    for part in parts:
        if part in seen:
            number += 1
            characters += len(part)
        seen.add(part)
    return number, characters


def _refuse_repetition(document: Shape, rules: Rules) -> str | None:
    """Apply Gopher's repetition rules."""
    size = max(1, len(document.text))
    for name, parts, most, most_characters in (
        (
            "duplicate_paragraphs",
            document.paragraphs,
            rules.max_duplicate_paragraphs,
            rules.max_duplicate_paragraph_characters,
        ),
        ("duplicate_lines", document.lines, rules.max_duplicate_lines, rules.max_duplicate_line_characters),
    ):
        number, characters = _duplicates(parts)
        broken = _broken(name, number / len(parts), high=most)
        broken = broken or _broken(f"{name[:-1]}_characters", characters / size, high=most_characters)
        if broken:
            return broken
    tokens = _Tokens.of(document)
    for n, most in zip((2, 3, 4), rules.max_top_ngrams, strict=True):
        broken = _broken(f"top_{n}_gram", tokens.top_share(n) / size, high=most)
        if broken:
            return broken
    for n, most in zip(range(5, 11), rules.max_duplicate_ngrams, strict=True):
        repeated = tokens.repeated_characters(n)
        if repeated == 0:
            # What repeats no run of n words repeats none of n + 1.
            return None
        broken = _broken(f"duplicate_{n}_gram", repeated / size, high=most)
        if broken:
            return broken
    return None


@dataclass(frozen=True)
class _Tokens:
    """Words, or characters where no spaces are written, as positions in one string of code points."""

    points: NDArray[np.uint32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    word_characters: float

    @classmethod
    def of(cls, document: Shape) -> _Tokens:
        words = list("".join(document.text.split())) if document.space_free else document.words
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        ends = np.cumsum(lengths)
        points = np.frombuffer("".join(words).encode("utf-32-le"), dtype=np.uint32)
        return cls(points, ends - lengths, ends, run_characters(document.text) if document.space_free else 1.0)

    def _width(self, n: int) -> int:
        return round(self.word_characters * n)

    def _runs(self, n: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return hash and characters of each run of n words."""
        width = self._width(n)
        if len(self.starts) < width:
            return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
        starts, ends = self.starts[: len(self.starts) - width + 1], self.ends[width - 1 :]
        return span_hashes(self.points, starts, ends), ends - starts

    def top_share(self, n: int) -> int:
        """Return the characters of the most frequent run of n words, all its occurrences together."""
        hashes, lengths = self._runs(n)
        if not len(hashes):
            return 0
        _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        top = int(counts.max())
        return 0 if top < 2 else int((lengths[first] * counts)[counts == top].max())

    def repeated_characters(self, n: int) -> int:
        """Return the characters of runs of n words that occurred before, runs taken one behind the other."""
        hashes, lengths = self._runs(n)
        if len(np.unique(hashes)) == len(hashes):
            return 0
        step = self._width(n)
        seen: set[int] = set()
        total = position = 0
        values, sizes = hashes.tolist(), lengths.tolist()
        while position < len(values):
            if values[position] in seen:
                total += sizes[position]
                position += step
            else:
                seen.add(values[position])
                position += 1
        return total
