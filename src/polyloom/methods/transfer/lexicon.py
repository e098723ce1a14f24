"""Dictionaries for code-switching: opened, filtered by script, checked against the text that they are meant for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import regex

from polyloom.core.errors import UserError
from polyloom.data.dictionaries import (
    MAX_HEADWORD_WORDS,
    Dictionary,
    Format,
    Translation,
    read_dictionary,
)
from polyloom.data.records import OUTSIDE, UPOS, Example, Range, Sentence, surface
from polyloom.data.world import World, records, supply

Lexicons = Mapping[str, Dictionary]
"""Language code -> dictionary from the source language."""

# Abbreviations of Wiktionary's lists and of Wiktextract, and their universal part of speech.
_UPOS = {
    "n": "NOUN", "noun": "NOUN", "v": "VERB", "verb": "VERB", "adj": "ADJ", "adjective": "ADJ", "adv": "ADV",
    "adverb": "ADV", "prep": "ADP", "preposition": "ADP", "postp": "ADP", "postposition": "ADP", "conj": "CCONJ",
    "conjunction": "CCONJ", "pron": "PRON", "pronoun": "PRON", "determiner": "DET", "det": "DET", "article": "DET",
    "interj": "INTJ", "intj": "INTJ", "interjection": "INTJ", "num": "NUM", "numeral": "NUM", "prop": "PROPN",
    "name": "PROPN", "proper noun": "PROPN", "particle": "PART", "symbol": "SYM",
}  # fmt: skip
COVERAGE_WARNED_BELOW = 0.05
REVERSED_ABOVE = 0.30
INVERTED_BELOW = 1 / 3
MAX_CHECKED_WORDS = 20_000
NUM_SHOWN = 8
# Chinese in one of its two scripts: the characters of a national standard stand for it.
_CHARACTER_SETS = {"Hans": "gb2312", "Hant": "big5"}


def upos_of(pos: str) -> str:
    """Return the universal part of speech of a dictionary's own; empty where it has none, `X` for phrases and affixes.

    Args:
        pos: such as `n`, `adj`, `prop` or `NOUN`.
    """
    if not pos:
        return ""
    return pos.upper() if pos.upper() in UPOS else _UPOS.get(pos.lower(), "X")


def in_script(text: str, script: str) -> bool:
    """Tell whether all letters of a text belong to a script.

    Args:
        text: the text; digits, signs and blanks belong to every script.
        script: a code or name of Unicode such as `Latn` or `Cyrillic`, or `Hans` and `Hant` for the two of Chinese.
    """
    if script in _CHARACTER_SETS:
        try:
            text.encode(_CHARACTER_SETS[script])
        except UnicodeEncodeError:
            return False
        return True
    return not regex.search(rf"[\p{{L}}\p{{M}}--\p{{Script={script}}}--\p{{Script=Inherited}}]", text, regex.V1)


def keep_script(dictionary: Dictionary, script: str) -> Dictionary:
    """Keep the translations in one script; headwords that lose all of theirs go.

    Raises:
        UserError: there is no such script, or nothing is left.
    """
    try:
        kept = {
            head: found
            for head, own in dictionary.entries.items()
            if (found := tuple(one for one in own if in_script(one.text, script)))
        }
    except regex.error as error:
        hint = "Name a script of Unicode, such as Latn or Cyrl, or Hans or Hant."
        raise UserError(f"there is no script {script!r}.", where="--script", hint=hint) from error
    if not kept:
        raise UserError(f"no translation is written in {script}.", where="--script")
    return replace(dictionary, entries=kept, _folded={})


def has_label(labels: Iterable[str], wanted: str) -> bool:
    """Tell whether a label, or a word of it, begins as wanted; case is folded: `austria` finds `Austrian German`."""
    start = wanted.casefold()
    return any(part.startswith(start) for label in labels for part in (label.casefold(), *label.casefold().split()))


def keep_labels(dictionary: Dictionary, avoid: Sequence[str] = (), prefer: Sequence[str] = ()) -> Dictionary:
    """Filter translations by register and region; headwords that lose all of theirs go.

    Args:
        dictionary: with labels, such as `dated` or `Mexico`.
        avoid: translations that are labelled so are left out.
        prefer: where a headword has translations that are labelled so, the others are left out.

    Raises:
        UserError: no translation has one of the labels.
    """
    known = Counter(label for own in dictionary.entries.values() for one in own for label in one.labels)
    for option, labels in (("--avoid", avoid), ("--prefer", prefer)):
        for label in labels:
            if not has_label(known, label):
                most = ", ".join(name for name, _ in known.most_common(NUM_SHOWN)) or "none at all"
                raise UserError(f"no translation is labelled {label!r}.", where=option, hint=f"Most common: {most}.")
    entries = {}
    for head, own in dictionary.entries.items():
        kept = tuple(one for one in own if not any(has_label(one.labels, label) for label in avoid))
        liked = tuple(one for one in kept if any(has_label(one.labels, label) for label in prefer))
        if kept:
            entries[head] = liked or kept
    return replace(dictionary, entries=entries, _folded={})


def single_words(dictionary: Dictionary) -> Dictionary:
    """Keep the entries of one word on both sides."""
    kept = {
        head: found
        for head, own in dictionary.entries.items()
        if " " not in head and (found := tuple(one for one in own if " " not in one.text))
    }
    return replace(dictionary, entries=kept, _folded={})


def open_lexicons(
    specs: Sequence[str],
    *,
    scripts: Sequence[str] = (),
    reverse: bool = False,
    format: Format = "auto",
    avoid: Sequence[str] = (),
    prefer: Sequence[str] = (),
) -> dict[str, Dictionary]:
    """Read the dictionaries of several target languages.

    Args:
        specs: `language=file`, such as `de=en-de.txt`; of several files of a language the first comes first.
        scripts: `language=script`: keep the translations in it, such as `zh=Hans`.
        reverse: turn each dictionary round.
        format: of all files.
        avoid: `label` or `language=label` of translations to leave out; see `keep_labels`.
        prefer: the same, of translations to keep alone where there are some.

    Raises:
        UserError: a specification without `=`, or a file that cannot be read.
    """
    found: dict[str, Dictionary] = {}
    for spec in specs:
        language, equals, name = spec.partition("=")
        if not (equals and language and name):
            raise UserError(f"{spec!r} names no language.", where="--dictionaries", hint="Write language=file.")
        opened = read_dictionary(Path(name), format=format, target_language=language)
        opened = opened.inverted() if reverse else opened
        found[language] = joined(found[language], opened, Path(name).name) if language in found else opened
    for spec in scripts:
        language, equals, script = spec.partition("=")
        if not equals or language not in found:
            hint = f"Write language=script for one of: {', '.join(found)}."
            raise UserError(f"{spec!r} fits no dictionary.", where="--scripts", hint=hint)
        found[language] = keep_script(found[language], script)
    if avoid or prefer:
        found = {code: keep_labels(one, _of(avoid, code), _of(prefer, code)) for code, one in found.items()}
    return found


def _of(labels: Sequence[str], code: str) -> list[str]:
    """Return the labels for a language: those that name it, and those that name none."""
    parts = [(spec.partition("=")[::2] if "=" in spec else (code, spec)) for spec in labels]
    return [label for language, label in parts if language == code]


def joined(first: Dictionary, second: Dictionary, name: str) -> Dictionary:
    """Return the entries of two dictionaries, the first one's translations first; `name` is the second one's file."""
    entries = dict(first.entries)
    for head, own in second.entries.items():
        known = {one.text for one in entries.get(head, ())}
        new = (replace(one, place=f"{name} {one.place}") for one in own if one.text not in known)
        entries[head] = (*entries.get(head, ()), *new)
    return replace(first, entries=entries, num_lines=first.num_lines + second.num_lines, _folded={})


def read_weights(specs: Sequence[str], languages: Iterable[str]) -> dict[str, float]:
    """Read `language=number` items: how often a language is drawn, up to a factor.

    Raises:
        UserError: no number, or a language without a dictionary.
    """
    known, found = sorted(languages), {}
    for spec in specs:
        code, _, number = spec.partition("=")
        try:
            found[code] = float(number)
        except ValueError as error:
            raise UserError(f"{spec!r} is no weight.", where="--weights", hint="Write language=number.") from error
        if code not in known:
            raise UserError(f"there is no dictionary into {code!r}.", where="--weights", hint=f"Known: {known}.")
    return found


def join_phrases(sentence: Sentence, lexicons: Lexicons) -> Sentence:
    """Make one word of each phrase that a dictionary has as a headword, the longest first: "New York" is one node.

    Args:
        sentence: its labels may not be cut: a phrase is joined where all its words are outside of spans, or where it is
            a whole span.
        lexicons: any of which may hold the phrase.

    Returns:
        The sentence with fewer words; a phrase takes the head, relation and tag of its word nearest the root.
    """
    ranges: list[Range] = []
    at, words = 0, sentence.words
    while at < len(words):
        size = next(
            (
                size
                for size in range(min(MAX_HEADWORD_WORDS, len(words) - at), 1, -1)
                if _one_label(sentence.labels, at, at + size)
                and any(one.lookup(" ".join(words[at : at + size])) for one in lexicons.values())
            ),
            1,
        )
        if size > 1:
            ranges.append(Range(at + 1, at + size, " ".join(words[at : at + size])))
        at += size
    if not ranges:
        return sentence
    joined = surface(replace(sentence, ranges=tuple(ranges)))
    if not sentence.labels:
        return joined
    starts = {one.start - 1 for one in ranges}
    skipped = {i for one in ranges for i in range(one.start, one.end)}
    kept = [i for i in range(len(words)) if i in starts or i not in skipped]
    return replace(joined, labels=tuple(sentence.labels[i] for i in kept))


def phrased(examples: Iterable[Example], lexicons: Lexicons) -> list[Example]:
    """Return examples with the phrases of all their sentences joined; see `join_phrases`."""
    return [
        replace(one, sentences=tuple(join_phrases(sentence, lexicons) for sentence in one.sentences))
        for one in examples
    ]


def _one_label(labels: Sequence[str], start: int, end: int) -> bool:
    own = labels[start:end]
    if not own or all(label == OUTSIDE for label in own):
        return True
    inside = f"I-{own[0][2:]}"
    follows = end < len(labels) and labels[end] == inside
    return own[0].startswith("B-") and all(label == inside for label in own[1:]) and not follows


@dataclass(frozen=True)
class Hits:
    """Words of the source text that a dictionary has, and how many more it has the other way round."""

    language: str
    num_words: int
    num_found: int
    num_found_reversed: int

    @property
    def rate(self) -> float:
        """Share of words that are headwords, 0 to 1."""
        return self.num_found / max(1, self.num_words)

    @property
    def reversed_rate(self) -> float:
        """Share of words that are translations, 0 to 1."""
        return self.num_found_reversed / max(1, self.num_words)


def hits_of(lexicons: Mapping[str, Dictionary], examples: Iterable[Example]) -> list[Hits]:
    """Count for each dictionary the words of examples that it has."""
    words = [one.words for example in examples for one in example.sentences]
    return [count_hits(language, dictionary, words) for language, dictionary in lexicons.items()]


def count_hits(language: str, dictionary: Dictionary, sentences: Iterable[Sequence[str]]) -> Hits:
    """Count the words of source sentences that a dictionary has; numbers and signs are not counted.

    Args:
        language: of the translations.
        dictionary: from the source language.
        sentences: words of the source language; the first 20,000 are looked at.
    """
    words = []
    for sentence in sentences:
        words += [word for word in sentence if word[:1].isalpha()]
        if len(words) >= MAX_CHECKED_WORDS:
            break
    num_found = sum(bool(dictionary.lookup(word)) for word in words)
    backwards = dictionary.inverted() if num_found < INVERTED_BELOW * len(words) else None
    num_reversed = sum(bool(backwards.lookup(word)) for word in words) if backwards else 0
    return Hits(language, len(words), num_found, num_reversed)


def lexicon_notices(hits: Sequence[Hits], languages: Sequence[str] = ()) -> list[str]:
    """Say in a sentence each what a user has to know of the dictionaries: missing, thin, or the wrong way round.

    Args:
        hits: of each dictionary.
        languages: target languages that are wanted; those without a dictionary are named.
    """
    covered = {one.language for one in hits if one.num_found}
    notices = [
        f"There are no entries into {code}; the lex arm will not switch into {code} (0 % coverage)."
        for code in languages
        if code not in covered
    ]
    for one in hits:
        # Cognates and short words ("a", "me") are found in either direction.
        if one.reversed_rate > REVERSED_ABOVE and one.rate < INVERTED_BELOW * one.reversed_rate:
            notices.append(
                f"The dictionary into {one.language} runs the other way: {one.rate:.1%} of the words are headwords, "
                f"{one.reversed_rate:.1%} are translations. Turn it round with --reverse."
            )
        elif one.rate < COVERAGE_WARNED_BELOW:
            notices.append(
                f"The dictionary into {one.language} has {one.rate:.1%} of the words: switching will be thin."
            )
    return notices


def world_lexicon(world: World, source: str, target: str) -> Dictionary:
    """Return the embedded world's own dictionary: names, months, weekdays and units in both languages.

    Args:
        world: a world of both languages.
        source: language of the headwords.
        target: language of the translations.
    """
    entries: dict[str, tuple[Translation, ...]] = {}
    number = supply(world, "dictionary", (source, target)) or 1
    for record in records(world, "dictionary", (source, target), number, split="all"):
        known = entries.setdefault(record["source"], ())
        one = Translation(record["target"], "PROPN" if record["kind"] not in ("unit", "month", "weekday") else "NOUN")
        if one not in known:
            entries[record["source"]] = (*known, one)
    return Dictionary(entries, "world", len(entries))
