"""Unicode and writing systems: clean text without changing it, and count words where no spaces are written."""

from __future__ import annotations

import unicodedata

import regex

# Han, kana, Thai, Lao, Khmer, Burmese, Tibetan: no space between words. Hangul is spaced.
_SPACE_FREE = regex.compile(
    r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\u30fc\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}"
    r"\p{Script=Myanmar}\p{Script=Tibetan}]+"
)
# Controls but tab and newline, non-characters, lone surrogates, byte-order marks; joiners stay: Persian needs them.
_CONTROLS = regex.compile(r"[\p{Cc}\p{Cs}\ufeff\ufff9-\ufffb\ufdd0-\ufdef--[\t\n]]", regex.V1)
_NEWLINES = regex.compile(r"\r\n?|[\u2028\u2029\u0085\f\v]")
_TRAILING = regex.compile(r"[^\S\n]+(?=\n)")
_BLANK_LINES = regex.compile(r"\n{3,}")
_LETTER = regex.compile(r"\p{L}")
# Characters of a word in scripts without spaces, for thresholds that are stated in words.
CHARACTERS_PER_WORD = 1.5
# For runs of words, which are compared one with another, the usual length of a word of the script.
_KANA = regex.compile(r"[\p{Script=Hiragana}\p{Script=Katakana}\u30fc]+")
_HAN = regex.compile(r"\p{Script=Han}+")


def normalise(text: str) -> str:
    """Return text in NFC with newlines unified, controls out, line ends and runs of blank lines trimmed.

    NFC, never NFKC: compatibility forms would change CJK text and mathematics.
    """
    text = _CONTROLS.sub("", _NEWLINES.sub("\n", text))
    text = unicodedata.normalize("NFC", text)
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text)).strip()


def space_free_characters(text: str) -> int:
    """Return how many characters belong to scripts that write no space between words."""
    return sum(map(len, _SPACE_FREE.findall(text)))


def is_space_free(text: str) -> bool:
    """Whether at least half of the characters other than white space belong to scripts without spaces."""
    visible = sum(map(len, text.split()))
    return visible > 0 and 2 * space_free_characters(text) >= visible


def run_characters(text: str) -> float:
    """Return the usual characters of a word of a text without spaces: 1.5 in Chinese, 2 in Japanese, 4 elsewhere.

    A run of n words stands for n times as many characters: shorter runs would repeat by grammar alone.
    """
    packed = max(1, space_free_characters(text))
    if sum(map(len, _KANA.findall(text))) > 0.1 * packed:
        return 2.0
    return CHARACTERS_PER_WORD if 2 * sum(map(len, _HAN.findall(text))) > packed else 4.0


def count_words(text: str) -> float:
    """Count words: those between spaces, and `CHARACTERS_PER_WORD` characters as one where no spaces are written."""
    if text.isascii():
        return len(text.split())
    rest = _SPACE_FREE.sub(" ", text)
    # Punctuation that stood between two such runs is no word.
    spaced = sum(1 for word in rest.split() if _LETTER.search(word) or any(c.isdigit() for c in word))
    packed = space_free_characters(text)
    return spaced + packed / CHARACTERS_PER_WORD if packed else len(text.split())


def count_letters(text: str) -> int:
    """Return the number of letters of any script (marks are not counted)."""
    return sum(map(str.isalpha, text))
