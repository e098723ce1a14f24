"""ROUGE-L: how much of a reference's words a text holds in the same order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Tokenize = Callable[[str], list[str]]
_LATIN = re.compile(r"[a-z0-9]+")
_WORD = re.compile(r"\w+")


def latin_tokens(text: str) -> list[str]:
    """Return lower-cased runs of a-z and 0-9, as the reference scorer does. It erases every other script."""
    return _LATIN.findall(text.lower())


def word_tokens(text: str) -> list[str]:
    """Return words of any script; of scripts without blanks (Han, kana, Thai) every character is one."""
    tokens: list[str] = []
    for word in _WORD.findall(text.lower()):
        start = 0
        for place, character in enumerate(word):
            if _stands_alone(character):
                tokens += [part for part in (word[start:place], character) if part]
                start = place + 1
        tokens += [word[start:]] if word[start:] else []
    return tokens


def _stands_alone(character: str) -> bool:
    return "\u3040" <= character <= "\u30ff" or "\u3400" <= character <= "\u9fff" or "\u0e00" <= character <= "\u0e7f"


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest sequence that stands in both, not necessarily without gaps."""
    row = [0] * (len(b) + 1)
    for token in a:
        diagonal = 0
        for place, other in enumerate(b, 1):
            above = row[place]
            row[place] = diagonal + 1 if token == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]


def rouge_l(hypothesis: str, references: str | Sequence[str], tokenize: Tokenize = latin_tokens) -> float:
    """Return the F value of ROUGE-L between 0 and 1, the best over the references.

    With P = LCS / |hypothesis| and R = LCS / |reference|, F = 2 P R / (P + R); 0 where a side has no token.

    Args:
        hypothesis: the text to score.
        references: one reference or several.
        tokenize: `latin_tokens` is what published figures use; `word_tokens` serves every script.

    Source: Lin (2004), ROUGE-L.
    """
    given = tokenize(hypothesis)
    best = 0.0
    for reference in [references] if isinstance(references, str) else references:
        wanted = tokenize(reference)
        common = longest_common_subsequence(given, wanted) if given and wanted else 0
        if common:
            precision, recall = common / len(given), common / len(wanted)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best
