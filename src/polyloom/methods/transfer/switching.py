"""Code-switching with dictionaries: which words, into which language, by which translation; reproducible and logged.

Sources: Zheng, Fan, Li (2024), arXiv 2404.16627 (mode `paper`); Qin et al. (2020), CoSDA-ML, arXiv 2006.06402 (mode
`cosda`). A translation of several words stays one word of the sentence: labels, heads and parts of speech keep their
places.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from multiprocessing import get_context
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import regex
from numpy.typing import NDArray

from polyloom.core.errors import UserError, closest
from polyloom.core.seeding import python_random
from polyloom.data.dictionaries import Translation
from polyloom.data.records import OUTSIDE, Example, Sentence
from polyloom.methods.transfer.inflection import Inflector
from polyloom.methods.transfer.lexicon import Lexicons, upos_of

Mode = Literal["count", "cosda", "paper"]
Per = Literal["word", "sentence"]
Choose = Literal["first", "uniform", "pos", "freq", "sense"]
Among = Literal["all", "covered", "outside"]
PROTECTIONS = {
    "numbers": r"[+\-−]?\p{Sc}?\p{N}+(?:[.,:/\-]\p{N}+)*\p{Sc}?%?",
    "urls": r"(?i:(?:https?://|www\.)\S+|[\w.+\-]+@[\w\-]+(?:\.[\w\-]+)+)",
    "placeholders": r"\{[^{}]*\}|<[^<>]*>|\[[^\[\]]*\]|[@#%$]\w+|__\w+__",
    "signs": r"[\p{P}\p{S}]+",
}
LABELS = "labels"


@dataclass(frozen=True)
class SwitchPlan:
    """How words are chosen and translated; every field is one of the arguments of `switch`."""

    rate: float = 0.5
    mode: Mode = "count"
    per: Per = "word"
    choose: Choose = "first"
    among: Among = "all"
    dynamic: bool = True
    mix: float = 1.0
    sync_pairs: bool = False
    protect: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode == "paper":
            for name, wanted in (("choose", "first"), ("dynamic", False), ("mix", 1.0), ("sync_pairs", False)):
                if getattr(self, name) != wanted:
                    given, hint = getattr(self, name), f"Leave --{name.replace('_', '-')} out, or use --mode count."
                    raise UserError(f"the paper's rule has {name} {wanted}, not {given}.", where="--mode", hint=hint)
            if self.among == "covered":
                raise UserError("the paper draws among all words.", where="--among", hint="Use --mode count.")
        if not 0 <= self.rate <= 1 or not 0 <= self.mix <= 1:
            raise UserError("rate and mix are shares, 0 to 1.", where="--rate")
        if any(weight < 0 for weight in self.weights.values()):
            raise UserError("a language's weight is negative.", where="--weights")


def paper_plan(rate: float = 0.5, *, entities: bool = False) -> SwitchPlan:
    """Return the released code's rule of a task.

    Args:
        rate: share of words that are drawn; its scripts pass 0.5.
        entities: named entities: only words labelled O are drawn, one language a sentence, looked up as written.
            Otherwise all words are drawn, with a language each.
    """
    among: Among = "outside" if entities else "all"
    return SwitchPlan(rate, "paper", "sentence" if entities else "word", among=among, dynamic=False)


class Replacement(NamedTuple):
    """One word that was replaced.

    Attributes:
        example: id of the example.
        sentence: 0, or 1 for the second of a pair.
        position: number of the word, from 0.
        word: what stood there.
        translation: what stands there now.
        language: its code.
        place: line of the dictionary's file.
    """

    example: str
    sentence: int
    position: int
    word: str
    translation: str
    language: str
    place: str


class Switched(NamedTuple):
    """Sentences after switching, and what was replaced."""

    sentences: tuple[Sentence, ...]
    replacements: tuple[Replacement, ...]


class Stream(NamedTuple):
    """The name of an example's random stream; it depends on no other example, so order and workers do not matter."""

    seed: int
    example: str = ""
    epoch: int = 0

    def open(self, dynamic: bool) -> random.Random:
        """Return its generator; a static one is the same in every epoch."""
        return python_random(self.seed, "switch", self.example, self.epoch if dynamic else 0)


Embed = Callable[[str], "NDArray[np.float32]"]


@dataclass(frozen=True)
class Aids:
    """What `choose` may need: frequencies of target words (`freq`), vectors of words in both languages (`sense`).

    `inflect` puts the chosen translation into the form that the word asks for.
    """

    frequency: Mapping[str, float] | None = None
    embed: Embed | None = None
    inflect: Inflector | None = None


def switch(
    words: Sequence[str] | Sentence,
    *other: Sequence[str] | Sentence,
    rate: float,
    languages: Lexicons,
    rng: Stream,
    mode: Mode = "count",
    per: Per = "word",
    choose: Choose = "first",
    among: Among = "all",
    dynamic: bool = True,
    mix: float = 1.0,
    sync_pairs: bool = False,
    protect: Sequence[str] = (),
    weights: Mapping[str, float] | None = None,
    aids: Aids | None = None,
) -> Switched:
    """Replace words of a sentence, or of a pair, by translations.

    Args:
        words: the words, or a sentence with its labels and parts of speech.
        other: the second of a pair.
        rate: share of the words that are drawn, 0 to 1; a drawn word without a translation stays.
        languages: language code -> dictionary from the source language.
        rng: name of the random stream.
        mode: `count`: floor(n * rate) words, without replacement; `cosda`: each word by itself with probability
            `rate`; `paper`: `count` with the first translation, static, as released.
        per: a language for each word, or one for the sentence.
        choose: `first` translation of the file, `uniform` among all, `pos`: the first of the word's own part of
            speech, `freq`: the most frequent, `sense`: the nearest to the sentence's other words by embedding.
        among: draw among `all` words, those that are `covered` by a dictionary, or those `outside` labelled spans.
        dynamic: draw anew in every epoch.
        mix: probability that an example is switched at all.
        sync_pairs: a word of both sentences of a pair is switched in both, alike, or in neither.
        protect: words that never change: `numbers`, `urls`, `placeholders`, `signs`, `labels` (words of labelled
            spans), or a regular expression that matches the whole word.
        weights: probability of each language, up to a factor; 1 where a language is not named.
        aids: what `freq` and `sense` need.

    Returns:
        The sentences and the log of replacements.

    Raises:
        UserError: arguments that contradict each other.

    Source:
        arXiv 2404.16627 and its released code; arXiv 2006.06402.
    """
    plan = SwitchPlan(
        rate, mode, per, choose, among, dynamic, mix, sync_pairs, tuple(protect), weights if weights is not None else {}
    )
    sentences = tuple(one if isinstance(one, Sentence) else Sentence(tuple(one)) for one in (words, *other))
    return switch_sentences(sentences, plan, languages, rng, aids or Aids())


def switch_example(
    example: Example, plan: SwitchPlan, lexicons: Lexicons, seed: int, epoch: int, aids: Aids
) -> Example:
    """Return an example with its words switched; labels, heads, relations and parts of speech are untouched."""
    found = switch_sentences(example.sentences, plan, lexicons, Stream(seed, example.id, epoch), aids)
    return replace(example, sentences=found.sentences)


T = TypeVar("T")
Slot = tuple[int, int, str]
"""Number of the sentence, position, word."""


def switch_sentences(
    sentences: tuple[Sentence, ...], plan: SwitchPlan, lexicons: Lexicons, stream: Stream, aids: Aids
) -> Switched:
    """Switch the sentences of one example; see `switch`."""
    rng = stream.open(plan.dynamic)
    if not lexicons or (plan.mix < 1 and rng.random() >= plan.mix):
        return Switched(sentences, ())
    together = plan.sync_pairs and len(sentences) > 1
    units = [range(len(sentences))] if together else [range(i, i + 1) for i in range(len(sentences))]
    log: list[Replacement] = []
    all_codes = [code for code in lexicons if plan.weights.get(code, 1.0) > 0] if plan.weights else list(lexicons)
    for unit in units:
        codes = [_draw_language(all_codes, plan, rng)] if plan.per == "sentence" and all_codes else all_codes
        for group in _draw_slots(sentences, unit, codes, plan, lexicons, rng):
            log += _replace_group(group, sentences, codes, plan, lexicons, aids, stream.example, rng)
    if not log:
        return Switched(sentences, ())
    changed = [list(sentence.words) for sentence in sentences]
    for one in log:
        changed[one.sentence][one.position] = one.translation
    pairs = zip(sentences, changed, strict=True)
    return Switched(
        tuple(replace(sentence, words=tuple(new)) for sentence, new in pairs), tuple(sorted(log) if together else log)
    )


def _draw_language(codes: Sequence[str], plan: SwitchPlan, rng: random.Random) -> str:
    if len(codes) == 1:
        return codes[0]
    if not plan.weights:
        return _any(codes, rng)
    return rng.choices(codes, [plan.weights.get(code, 1.0) for code in codes])[0]


def _any(items: Sequence[T], rng: random.Random) -> T:
    """Draw one of several; three times as fast as `choice`, and as uniform as 53 bits are."""
    return items[int(rng.random() * len(items))]


def _draw_slots(
    sentences: Sequence[Sentence],
    unit: Iterable[int],
    codes: Sequence[str],
    plan: SwitchPlan,
    lexicons: Lexicons,
    rng: random.Random,
) -> list[list[Slot]]:
    """Draw the words to switch, in their order; under `sync_pairs` equal words are one group."""
    slots = [slot for i in unit for slot in eligible(sentences[i], plan, i)]
    number = int(len(slots) * plan.rate)
    if plan.among == "covered":
        slots = [slot for slot in slots if any(_lookup(slot[2], code, plan, lexicons) for code in codes)]
    groups = [[slot] for slot in slots]
    if plan.sync_pairs:
        shared: dict[str, list[Slot]] = {}
        for slot in slots:
            shared.setdefault(slot[2].casefold(), []).append(slot)
        groups = list(shared.values())
    if plan.mode == "cosda":
        return [group for group in groups if rng.random() < plan.rate]
    if len(groups) == len(slots):
        return [groups[i] for i in sorted(rng.sample(range(len(groups)), min(number, len(groups))))]
    chosen: list[int] = []
    for i in rng.sample(range(len(groups)), len(groups)):
        if len(groups[i]) <= number:
            chosen.append(i)
            number -= len(groups[i])
    return [groups[i] for i in sorted(chosen)]


def eligible(sentence: Sentence, plan: SwitchPlan, index: int = 0) -> list[Slot]:
    """Return the words of a sentence that may be switched.

    Raises:
        UserError: only words outside labelled spans may, and the sentence has no labels.
    """
    labels = sentence.labels
    if plan.among == "outside" and not labels:
        hint = "Choose --among all or covered."
        raise UserError("has no labels to be outside of.", where=sentence.source or sentence.id, hint=hint)
    outside_only = plan.among == "outside" or (LABELS in plan.protect and bool(labels))
    patterns = tuple(name for name in plan.protect if name != LABELS)
    if not (outside_only or patterns):
        return [(index, i, word) for i, word in enumerate(sentence.words)]
    return [
        (index, i, word)
        for i, word in enumerate(sentence.words)
        if not (outside_only and labels[i] != OUTSIDE) and not (patterns and is_protected(word, patterns))
    ]


@lru_cache(maxsize=200_000)
def is_protected(word: str, protect: tuple[str, ...]) -> bool:
    """Tell whether a word is of a protected kind, or matches a protected expression as a whole."""
    return any(_pattern(one).fullmatch(word) for one in protect)


@lru_cache(maxsize=100)
def _pattern(text: str) -> regex.Pattern[str]:
    try:
        return regex.compile(PROTECTIONS.get(text, text))
    except regex.error as error:
        hint = closest(text, [*PROTECTIONS, LABELS])
        raise UserError(f"{text!r} is no kind and no expression ({error}).", where="--protect", hint=hint) from error


def _lookup(word: str, code: str, plan: SwitchPlan, lexicons: Lexicons) -> tuple[Translation, ...]:
    # The released code for entities looks words up as they are written, elsewhere in lower case, too.
    if plan.mode == "paper" and plan.among == "outside":
        return lexicons[code].entries.get(word, ())
    return lexicons[code].lookup(word)


def _replace_group(
    group: Sequence[Slot],
    sentences: Sequence[Sentence],
    codes: Sequence[str],
    plan: SwitchPlan,
    lexicons: Lexicons,
    aids: Aids,
    example: str,
    rng: random.Random,
) -> list[Replacement]:
    number, position, word = group[0]
    allowed = [code for code in codes if _lookup(word, code, plan, lexicons)] if plan.among == "covered" else codes
    if not allowed:
        return []
    code = _draw_language(allowed, plan, rng)
    found = _lookup(word, code, plan, lexicons)
    if not found:
        return []
    one = _choose(found, sentences[number], position, plan.choose, aids, rng)
    text = one.text
    if aids.inflect is not None and sentences[number].upos:
        text = aids.inflect(word, sentences[number].upos[position], code, text)
    return [Replacement(example, *slot, text, code, one.place) for slot in group]


def _choose(
    found: Sequence[Translation], sentence: Sentence, position: int, choose: Choose, aids: Aids, rng: random.Random
) -> Translation:
    if choose == "uniform":
        return found[0] if len(found) == 1 else _any(found, rng)
    if choose == "pos" and sentence.upos:
        return next((one for one in found if upos_of(one.pos) == sentence.upos[position]), found[0])
    if choose == "freq":
        if aids.frequency is None:
            raise UserError(
                "needs frequencies of target words.", where="--choose freq", hint="Name --frequency-text or --model."
            )
        return max(found, key=lambda one: aids.frequency.get(one.text, 0.0))  # type: ignore[union-attr]
    if choose == "sense":
        if aids.embed is None:
            raise UserError("needs an encoder.", where="--choose sense", hint="Name one with --model.")
        return found[nearest_sense(sentence.words, position, [one.text for one in found], aids.embed)]
    return found[0]


def nearest_sense(words: Sequence[str], position: int, translations: Sequence[str], embed: Embed) -> int:
    """Return the translation that fits the sentence best: the highest cosine to the mean of its other words.

    Args:
        words: the sentence.
        position: the word that is translated; alone in its sentence, it stands for its context.
        translations: what it may become.
        embed: vector of a word (dimension d), of either language.

    Returns:
        The index of the translation; the first of equals.
    """
    if len(translations) == 1:
        return 0
    context = [embed(word) for i, word in enumerate(words) if i != position] or [embed(words[position])]
    mean = np.mean(context, axis=0)
    scores = [float(mean @ v / (np.linalg.norm(mean) * np.linalg.norm(v) + 1e-9)) for v in map(embed, translations)]
    return int(np.argmax(scores))


# ---- whole data sets


@dataclass
class SwitchCounts:
    """Counts over a data set: words, those that may switch, those with a translation, those replaced (by language)."""

    words: int = 0
    eligible: int = 0
    covered: int = 0
    examples: int = 0
    touched: int = 0
    languages: Counter[str] = field(default_factory=Counter)

    @property
    def replaced(self) -> int:
        """Number of words that were replaced."""
        return self.languages.total()

    @property
    def realised_rate(self) -> float:
        """Share of all words that were replaced."""
        return self.replaced / max(1, self.words)

    @property
    def out_of_dictionary_share(self) -> float:
        """Share of the words that may switch and have no translation in any language."""
        return 1 - self.covered / max(1, self.eligible)


def count_switches(
    examples: Sequence[Example], switched: Sequence[Switched], plan: SwitchPlan, lexicons: Lexicons
) -> SwitchCounts:
    """Count what a plan could do to the examples, and what it did."""
    counts = SwitchCounts(examples=len(examples))
    for example, result in zip(examples, switched, strict=True):
        for sentence in example.sentences:
            slots = eligible(sentence, plan)
            counts.words += len(sentence.words)
            counts.eligible += len(slots)
            counts.covered += sum(any(_lookup(slot[2], code, plan, lexicons) for code in lexicons) for slot in slots)
        counts.touched += bool(result.replacements)
        counts.languages.update(one.language for one in result.replacements)
    return counts


def switch_all(
    examples: Sequence[Example],
    plan: SwitchPlan,
    lexicons: Lexicons,
    *,
    seed: int,
    epoch: int = 0,
    num_workers: int = 1,
    aids: Aids | None = None,
) -> list[Switched]:
    """Switch every example; the result is the same bit by bit for any number of workers and any order.

    Args:
        examples: the data set.
        plan: how.
        lexicons: into which languages.
        seed: the one seed.
        epoch: number of the pass; a static plan ignores it.
        num_workers: processes.
        aids: for `freq` and `sense`; `sense` runs in this process.
    """
    aids = aids or Aids()
    if num_workers == 1 or aids.embed is not None:
        return [switch_sentences(e.sentences, plan, lexicons, Stream(seed, e.id, epoch), aids) for e in examples]
    size = -(-len(examples) // num_workers)
    chunks = [examples[start : start + size] for start in range(0, len(examples), size)]
    state = (plan, lexicons, seed, epoch, aids)
    with ProcessPoolExecutor(num_workers, get_context("spawn"), _set_state, (state,)) as pool:
        return list(chain.from_iterable(pool.map(_switch_chunk, chunks)))


_STATE: list[Any] = []


def _set_state(state: Any) -> None:
    _STATE[:] = state


def _switch_chunk(examples: Sequence[Example]) -> list[Switched]:
    plan, lexicons, seed, epoch, aids = _STATE
    return switch_all(examples, plan, lexicons, seed=seed, epoch=epoch, aids=aids)
