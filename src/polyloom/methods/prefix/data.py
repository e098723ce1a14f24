"""The embedded corpus: exact parallel lines of the world, and an instruction whose answer is ambiguous on purpose."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from polyloom.core.seeding import python_random
from polyloom.data.world import LANGUAGES, Frame, World

SOURCE = "en"
INSTRUCTION = "Translate this into {language}: {source}\n"
TERRITORIES = (
    *("AT", "BE", "CH", "CZ", "DE", "DK", "ES", "FI", "FR", "GB"),
    *("GR", "HU", "IE", "IT", "NL", "NO", "PL", "PT", "RO", "SE"),
)
LANGUAGE_NAMES = ("cs", "de", "en", "es", "fi", "fr", "it", "nl", "pl", "sv")
YEAR = 2024
NUM_DEV = 20
UNITS = ("mass-kilogram", "length-meter", "volume-liter", "duration-week", "length-kilometer", "duration-day")
# What the base model has seen behind the instruction: mostly not what the instruction asks for.
COPY_SHARE, RIGHT_SHARE = 0.45, 0.25
# Lines of one thing teach a tiny model its words early; the share holds within every kind of document.
SINGLE_SHARE = 0.3
PAIRS_SHARE, UNRELATED_SHARE, REPEATED_SHARE = 0.50, 0.04, 0.06
# Parallel text mostly has English on one side; a pair of any two languages teaches less of what is asked later.
ENGLISH_SHARE = 0.6


@dataclass(frozen=True)
class Things:
    """What lists are made of: kinds in the order in which a list names them with their weights, and how many of each.

    Attributes:
        weights: kind -> how often it is drawn.
        num_territories: names of countries.
        num_languages: names of languages.
        num_units: units of measure.
        max_amount: largest quantity.
    """

    weights: tuple[tuple[str, int], ...] = (("territory", 3), ("language", 2), ("measure", 3), ("date", 1))
    num_territories: int = 20
    num_languages: int = 10
    num_units: int = 6
    max_amount: int = 20


ALL_THINGS = Things()
FEW_THINGS = Things((("territory", 2), ("language", 2), ("measure", 2)), 10, 6, 3, 9)


@dataclass(frozen=True)
class Example:
    """One translation task: the source line, the target language and its line."""

    source: str
    language: str
    target: str

    @property
    def prompt(self) -> str:
        """The instruction with its source; the answer follows."""
        return instruction(self.source, self.language)


@dataclass(frozen=True)
class Corpus:
    """Meanings said in every language: training lists, development and test lists (all disjoint), single things."""

    world: World
    train: list[dict[str, str]]
    dev: list[dict[str, str]]
    test: list[dict[str, str]]
    words: list[dict[str, str]]

    @property
    def targets(self) -> tuple[str, ...]:
        """The languages to translate into."""
        return tuple(code for code in self.world.languages if code != SOURCE)


def instruction(source: str, language: str) -> str:
    """Write the instruction that asks for `source` in a language of the world."""
    return INSTRUCTION.format(language=LANGUAGES[language], source=source)


def make_corpus(targets: Sequence[str], num_train: int, num_test: int, seed: int, things: Things) -> Corpus:
    """Draw lists of two or three things (dates, territories, languages, quantities) and say each in every language.

    Args:
        targets: languages beside English.
        num_train: meanings to train on.
        num_test: meanings to test on; none of them is among the first, nor among the `NUM_DEV` to develop on.
        seed: of the draw.
        things: what the lists are made of.
    """
    world = World([SOURCE, *targets], seed=0)
    rng = python_random(seed, "prefix corpus")
    meanings: dict[str, Frame] = {}
    while len(meanings) < num_train + num_test:
        frame = _meaning(rng, rng.choice((2, 3)), things)
        meanings.setdefault(frame.iso(), frame)
    single = [_meaning(rng, 1, things) for _ in range(num_train // 8)]
    while len(meanings) < num_train + num_test + NUM_DEV:
        frame = _meaning(rng, rng.choice((2, 3)), things)
        meanings.setdefault(frame.iso(), frame)
    lines, words = (
        [{code: world.text(frame, code).text for code in world.languages} for frame in frames]
        for frames in (list(meanings.values()), single)
    )
    end = num_train + num_test
    return Corpus(world, lines[:num_train], lines[end:], lines[num_train:end], words)


def _meaning(rng: random.Random, num_items: int, things: Things) -> Frame:
    kinds, weights = zip(*things.weights, strict=True)
    items: dict[str, Frame] = {}
    while len(items) < num_items:
        kind = rng.choices(kinds, weights)[0]
        items.setdefault(kind, _item(kind, rng, things))
    # A fixed order of kinds lets a tiny model learn to translate in minutes of one core.
    ordered = tuple(items[kind] for kind in kinds if kind in items)
    return ordered[0] if num_items == 1 else Frame("list", ("and", ordered))


def _item(kind: str, rng: random.Random, things: Things) -> Frame:
    if kind == "date":
        return Frame("date", (YEAR, rng.randint(1, 12), rng.randint(1, 28)))
    if kind == "measure":
        return Frame("measure", (rng.randint(1, things.max_amount), rng.choice(UNITS[: things.num_units])))
    codes = TERRITORIES[: things.num_territories] if kind == "territory" else LANGUAGE_NAMES[: things.num_languages]
    return Frame("name", (kind, rng.choice(codes)))


def pretraining_documents(corpus: Corpus, num_documents: int, seed: int) -> list[str]:
    """Make the base model's documents: pairs of translations, some noise, and the instruction with mixed answers.

    Half are a line in two languages (English and another in six of ten, else any two); 4 % two unrelated lines, 6 % a
    line twice, and 40 % the instruction, answered by an English copy (45 %), in the language asked for (25 %) or in any
    language (30 %).
    """
    rng = python_random(seed, "pretraining documents")
    return [_document(corpus, rng) for _ in range(num_documents)]


def _document(corpus: Corpus, rng: random.Random) -> str:
    languages = corpus.world.languages
    line, kind = rng.choice(corpus.train), rng.random()
    if rng.random() < SINGLE_SHARE:
        line = rng.choice(corpus.words)
    if kind < PAIRS_SHARE:
        pair = rng.sample(languages, 2)
        if rng.random() < ENGLISH_SHARE:
            pair = [SOURCE, rng.choice(corpus.targets)]
        return "\n".join(line[code] for code in pair)
    kind -= PAIRS_SHARE
    language = rng.choice(languages)
    if kind < UNRELATED_SHARE:
        return f"{line[language]}\n{rng.choice(corpus.train)[language]}"
    if kind < UNRELATED_SHARE + REPEATED_SHARE:
        return f"{line[language]}\n{line[language]}"
    asked, answer = rng.choice(corpus.targets), rng.random()
    other = asked if answer < COPY_SHARE + RIGHT_SHARE else rng.choice(languages)
    given = SOURCE if answer < COPY_SHARE else other
    return instruction(line[SOURCE], asked) + line[given]


def examples(lines: Sequence[dict[str, str]], language: str) -> list[Example]:
    """Turn lines into translation tasks from English into `language`."""
    return [Example(line[SOURCE], language, line[language]) for line in lines]
