"""Translations in the form that the sentence asks for: the target treebank's own form of a lemma, by UD features."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polyloom.core.errors import UserError
from polyloom.core.files import read_text

# Features that a word and its translation share; gender, case and the like are the target language's own business.
SHARED = frozenset({"Number", "Tense", "Person", "Degree", "VerbForm", "Mood"})
NUM_COLUMNS = 10
Features = Mapping[str, str]
Key = tuple[str, str]


@dataclass(frozen=True)
class Form:
    """A form of a lemma as a treebank has it, its features, and how often it stands there."""

    text: str
    features: Features
    count: int


@dataclass(frozen=True)
class Inflector:
    """What forms there are.

    Attributes:
        source: features of a word of the source language, by its form in lower case and its part of speech.
        targets: language -> lemma in lower case and part of speech -> its forms, the frequent ones first.
    """

    source: Mapping[Key, Features] = field(default_factory=dict)
    targets: Mapping[str, Mapping[Key, Sequence[Form]]] = field(default_factory=dict)

    def __call__(self, word: str, upos: str, language: str, translation: str) -> str:
        """Return the form of a translation that agrees best with a word of the source.

        Args:
            word: the word that is replaced.
            upos: its part of speech in the sentence.
            language: of the translation.
            translation: as the dictionary has it: a lemma, mostly.

        Returns:
            Of the treebank's forms of that lemma and part of speech the one with most features in common (a feature
            that contradicts counts against it), the most frequent of equal ones; the translation itself where no form
            has more in common than it has against it.
        """
        wanted = self.source.get((word.casefold(), upos))
        forms = self.targets.get(language, {}).get((translation.casefold(), upos))
        if not wanted or not forms:
            return translation
        best = max(forms, key=lambda form: (agreement(wanted, form.features), form.count))
        if agreement(wanted, best.features) <= 0:
            return translation
        return best.text.capitalize() if translation[:1].isupper() else best.text


def agreement(wanted: Features, found: Features) -> int:
    """Return the number of shared features minus the number of contradicting ones."""
    return sum((found[name] == value) - (found[name] != value) for name, value in wanted.items() if name in found)


def read_inflector(source: Iterable[Path], targets: Mapping[str, Iterable[Path]]) -> Inflector:
    """Read the forms of treebanks.

    Args:
        source: CoNLL-U files of the source language; of a form with several sets of features the most frequent counts.
        targets: CoNLL-U files of each target language.

    Raises:
        UserError: a treebank without lemmas or features.
    """
    seen: dict[Key, Counter[str]] = defaultdict(Counter)
    for path in source:
        for form, _, upos, features in _rows(path):
            seen[form.casefold(), upos][features] += 1
    known = {key: _features(counts.most_common(1)[0][0]) for key, counts in seen.items()}
    return Inflector(known, {code: _forms(paths) for code, paths in targets.items()})


def _forms(paths: Iterable[Path]) -> dict[Key, list[Form]]:
    counts: dict[Key, Counter[tuple[str, str]]] = defaultdict(Counter)
    for path in paths:
        for form, lemma, upos, features in _rows(path):
            counts[lemma.casefold(), upos][form.casefold(), features] += 1
    return {
        key: [Form(form, _features(features), number) for (form, features), number in own.most_common()]
        for key, own in counts.items()
    }


def _rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield form, lemma, part of speech and features of the words of a treebank."""
    has_features = False
    for line in read_text(path).splitlines():
        cells = line.split("\t")
        if len(cells) == NUM_COLUMNS and cells[0].isdecimal():
            has_features |= cells[2] != "_" and cells[5] != "_"
            yield cells[1], cells[2], cells[3], cells[5]
    if not has_features:
        hint = "Columns 3 and 6 of CoNLL-U hold them."
        raise UserError("has no lemmas and features.", where=str(path), hint=hint)


def _features(text: str) -> dict[str, str]:
    pairs = (part.split("=", 1) for part in text.split("|") if "=" in part)
    return {name: value for name, value in pairs if name in SHARED}
