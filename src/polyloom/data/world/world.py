"""The world: languages, facts and names bound to a seed, and the drawing of meanings from one split."""

from __future__ import annotations

import functools
import hashlib
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

from polyloom.core.errors import UserError, closest
from polyloom.core.seeding import python_random
from polyloom.data.world import facts as facts_module
from polyloom.data.world.facts import CONTESTED, Fact, Facts
from polyloom.data.world.frames import (
    SCRIPTS_NAMED,
    SPLITS,
    UNITS,
    Frame,
    composition_key,
    date_frame,
    group_split,
    inner_frames,
    log_uniform,
    python_date,
    sample_date,
    share,
    shifted,
    split_by_share,
)
from polyloom.data.world.lexicon import NO_RELATIVE, Lexicon, invented_lexicon, lexicon
from polyloom.data.world.locale_data import check_versions
from polyloom.data.world.render import Text, Token, sentence, tokens
from polyloom.data.world.templates import LANGUAGES, PHRASE_LANGUAGES, ROWS

NOTICE = "CLDR world (synthetic sentences)"
SPLIT_MODES = ("random", "entities", "composition")


def check_languages(languages: Sequence[str], sentences: bool = True) -> tuple[str, ...]:
    """Refuse languages that the world cannot write.

    Args:
        languages: language codes.
        sentences: ask for sentence templates, too.

    Raises:
        UserError: a code is unknown, repeated, or has only phrases where sentences are needed.
    """
    if not languages:
        raise UserError("No language is given.", hint=f"Choose from: {', '.join(LANGUAGES)}.")
    for code in languages:
        if code not in LANGUAGES and code not in PHRASE_LANGUAGES:
            near = closest(code, LANGUAGES)
            hint = f"{near} Sentence languages: {', '.join(LANGUAGES)}; phrases alone: {', '.join(PHRASE_LANGUAGES)}."
            raise UserError(f"The world has no language {code!r}.", hint=hint)
        if sentences and code not in LANGUAGES:
            raise UserError(
                f"There are no sentence templates for {code!r} yet.",
                hint="Phrase tasks work; add templates in templates.py.",
            )
    if len(set(languages)) != len(languages):
        raise UserError("A language is given twice.", hint="Give each language once.")
    return tuple(languages)


class World:
    """A closed world that several languages describe.

    The facts are those that every language of the world can name, so that nothing is ever said with a raw code.
    """

    def __init__(
        self,
        languages: Sequence[str],
        seed: int = 0,
        facts: Literal["real", "invented"] = "real",
        *,
        exclude: frozenset[str] = CONTESTED,
        digits: Literal["latn", "native"] = "latn",
        raw: bool = False,
    ) -> None:
        """Bind languages, facts and a seed.

        Args:
            languages: codes of `LANGUAGES` (sentences and phrases) or `PHRASE_LANGUAGES` (phrases alone).
            seed: of every record, and of the invented facts.
            facts: "real" (CLDR) or "invented" (made-up names with the same relations).
            exclude: territories to leave out.
            digits: "latn", or "native" digits where the language has its own.
            raw: keep CLDR's no-break spaces and direction marks.

        Raises:
            UserError: a language is unknown or given twice, or `facts` or `digits` is misspelt.
        """
        check_versions()
        if facts not in ("real", "invented"):
            raise UserError(f"There are no {facts!r} facts.", hint=closest(facts, ("real", "invented")))
        if digits not in ("latn", "native"):
            raise UserError(f"There are no {digits!r} digits.", hint=closest(digits, ("latn", "native")))
        self.languages = check_languages(languages, sentences=False)
        self.seed = seed
        self.kind_of_facts = facts
        self.exclude = exclude
        self.digits = digits
        base = {code: lexicon(code, digits, raw) for code in self.languages}
        if facts == "invented":
            self.facts: Facts = facts_module.invented_facts(seed)
            self.lexicons = {code: invented_lexicon(item, self.facts.names) for code, item in base.items()}
        else:
            self.lexicons = base
            self.facts = facts_module.restrict(
                facts_module.real_facts(exclude), _named(base.values(), "currency"), _named(base.values(), "language")
            )
        self.units = tuple(unit for unit in UNITS if all(_has_unit(item, unit) for item in base.values()))
        self._pools: dict[Any, Any] = {}

    def text(self, frame: Frame, language: str, *, variant: int = 0, style: str = "") -> Text:
        """Say a frame in one of the world's languages."""
        if language not in self.lexicons:
            raise UserError(f"This world does not speak {language!r}.", hint=f"It speaks: {', '.join(self.languages)}.")
        return sentence(self.lexicons[language], frame, variant, style)

    def tokens(self, text: Text, language: str) -> list[Token]:
        """Split a text into tokens; no token crosses the border of a span."""
        return tokens(text, self.lexicons[language].by_character)

    def sealed(self, territory: str) -> bool:
        """Tell whether the currency of a territory is the chat's restricted topic: an arbitrary, harmless quarter of
        all."""
        return hashlib.sha256(territory.encode()).digest()[-1] % 4 == 0

    def split_of(self, frame: Frame, mode: str = "random") -> str | None:
        """Return the split that a meaning belongs to, the same in all languages.

        Args:
            frame: the meaning.
            mode: "random" (hash of the frame), "entities" (whole territories with their cities) or "composition"
                (pairs).

        Returns:
            "train", "valid" or "test"; None for a meaning that mixes entities of different splits and belongs nowhere.
        """
        if mode == "entities":
            groups = {group_split(code) for code in self.groups(frame)}
            if groups:
                return groups.pop() if len(groups) == 1 else None
        if mode == "composition":
            return split_by_share(share("composition", composition_key(frame)))
        return split_by_share(share("frame", frame.kind, frame.iso()))

    def groups(self, frame: Frame) -> set[str]:
        """Return the territories that a frame speaks of, directly or through their cities."""
        found = set()
        for inner in inner_frames(frame):
            for arg in inner.args:
                for code in arg if isinstance(arg, tuple) else (arg,):
                    if isinstance(code, str) and (code in self.facts.country or code in self.facts.region):
                        found.add(self.facts.country.get(code, code))
        return found

    def pool(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return a list that is computed once per world."""
        if key not in self._pools:
            self._pools[key] = compute()
        return self._pools[key]

    def draw(self, task: str, index: int, split: str = "all", mode: str = "random") -> Draw:
        """Return the source of record `index` of a task: made without the records before it."""
        if split != "all" and split not in SPLITS:
            raise UserError(f"There is no split {split!r}.", hint=closest(split, ("all", *SPLITS)))
        if mode not in SPLIT_MODES:
            raise UserError(f"There is no split mode {mode!r}.", hint=closest(mode, SPLIT_MODES))
        return Draw(self, python_random(self.seed, "world", task, split, mode, index), split, mode)


def _named(lexicons: Any, kind: str) -> frozenset[str]:
    """Return the codes that every language names, each by a name that no other current code shares."""
    common: set[str] | None = None
    for item in lexicons:
        names = set(item.names[kind])
        common = names if common is None else common & names
    codes = common or set()
    used = _codes_in_use(kind) & codes
    for item in lexicons:
        seen: dict[str, str] = {}
        for code in sorted(used, key=lambda c: (c not in _current(kind), c)):
            name = item.names[kind][code].casefold()
            if name in seen:
                codes.discard(code)
            seen.setdefault(name, code)
    return frozenset(codes)


@functools.cache
def _current(kind: str) -> frozenset[str]:
    facts = facts_module.real_facts(frozenset())
    return frozenset(facts.currency.values()) if kind == "currency" else frozenset(facts.official)


@functools.cache
def _codes_in_use(kind: str) -> frozenset[str]:
    facts = facts_module.real_facts(frozenset())
    if kind == "language":
        return _current(kind)
    return _current(kind) | {tender.currency for tenders in facts.history.values() for tender in tenders}


def _has_unit(item: Lexicon, unit: str) -> bool:
    try:
        return bool(item.unit_pattern(unit, 5))
    except UserError:
        return False


_RELATIVE_RANGE = {"day": 120, "hour": 120, "week": 120, "month": 120, "year": 120}
_MAX_TRIES = 20_000
_NAMES_DRAWN = ("territory", "currency", "language", "city", "month", "weekday", "region")


class Draw:
    """Meanings of one record, all of one split, from one random stream."""

    def __init__(self, world: World, rng: random.Random, split: str, mode: str) -> None:
        """Bind a world, a stream and a split."""
        self.world, self.rng, self.split, self.mode = world, rng, split, mode

    def admits(self, frame: Frame) -> bool:
        """Tell whether a meaning belongs to this split."""
        return self.split == "all" or self.world.split_of(frame, self.mode) == self.split

    def until(self, sample: Callable[[], Frame]) -> Frame:
        """Sample until the meaning belongs to this split."""
        for _ in range(_MAX_TRIES):
            frame = sample()
            if self.admits(frame):
                return frame
        raise UserError(
            f"The split {self.split!r} ({self.mode}) has no meaning of this kind.", hint="Use a larger split."
        )

    # ---- pools

    def _holds(self, code: str) -> bool:
        return (
            self.split == "all"
            or self.mode != "entities"
            or group_split(self.world.facts.country.get(code, code)) == self.split
        )

    def territories(self) -> tuple[str, ...]:
        """Return the territories that this split may speak of."""
        facts = self.world.facts
        result: tuple[str, ...] = self.world.pool(
            ("territories", self.split, self.mode),
            lambda: tuple(code for code in facts.territories if self._holds(code)),
        )
        return result

    def cities(self) -> tuple[str, ...]:
        """Return the cities that this split may speak of."""
        facts = self.world.facts
        result: tuple[str, ...] = self.world.pool(
            ("cities", self.split, self.mode),
            lambda: tuple(code for code in sorted(facts.country) if self._holds(code)),
        )
        return result

    def facts(self, relation: str = "") -> tuple[Fact, ...]:
        """Return the current facts of this split, of one relation or of all."""

        def compute() -> tuple[Fact, ...]:
            every = (f for f in self.world.facts.all() if not relation or f.relation == relation)
            return tuple(f for f in every if self.admits(fact_frame(f)))

        result: tuple[Fact, ...] = self.world.pool(("facts", relation, self.split, self.mode), compute)
        if not result:
            raise UserError(
                f"The split {self.split!r} ({self.mode}) has no {relation} facts.", hint="Use a larger split."
            )
        return result

    # ---- meanings

    def fact(self, relation: str = "") -> Frame:
        """Draw a true fact."""
        return fact_frame(self.rng.choice(self.facts(relation)))

    def city(self) -> str:
        """Draw a city's code."""
        return self.rng.choice(self.cities())

    def money(self, currency: str = "") -> Frame:
        """Draw a whole amount of 1 to 999."""
        return Frame("money", (log_uniform(self.rng, 1, 999), currency or self.rng.choice(self.world.facts.currencies)))

    def measure(self, unit: str = "") -> Frame:
        """Draw a quantity of 1 to 999."""
        return Frame("measure", (log_uniform(self.rng, 1, 999), unit or self.rng.choice(self.world.units)))

    def diary(self, date: Frame | None = None) -> Frame:
        """Draw one diary entry of this split, on a given date or on any."""
        return self.until(
            lambda: Frame(
                "diary", (date or sample_date(self.rng), self.city(), self.measure("length-kilometer"), self.money())
            )
        )

    def diaries(self, length: int) -> list[Frame]:
        """Draw a journey: entries of rising dates."""
        date = sample_date(self.rng)
        entries = []
        for _ in range(length):
            entries.append(self.diary(date))
            date = shifted(date, self.rng.randint(1, 5))
        return entries

    def name(self, kind: str = "") -> Frame:
        """Draw a name, of one kind or of any that occurs in sentences."""

        def sample() -> Frame:
            chosen = kind or self.rng.choice(_NAMES_DRAWN)
            return Frame("name", (chosen, self.rng.choice(name_codes(self.world, chosen, self))))

        return self.until(sample)

    def phrase(self, kind: str) -> Frame:
        """Draw a phrase of this split.

        Args:
            kind: one of `PHRASE_KINDS` or "spelled".
        """
        if kind == "name":
            return self.name()
        if kind == "relative" and any(code in NO_RELATIVE for code in self.world.languages):
            raise UserError("One of the languages has no relative-time phrases.", hint="Leave the kind 'relative' out.")
        sample = getattr(self, f"_sample_{kind}", None)
        if sample is None:
            raise UserError(
                f"There is no phrase kind {kind!r}.", hint=closest(kind, ("date", "money", "measure", "list", "name"))
            )
        return self.until(sample)

    def _sample_date(self) -> Frame:
        return sample_date(self.rng)

    def _sample_time(self) -> Frame:
        return Frame("time", (self.rng.randint(0, 23), self.rng.randint(0, 59)))

    def _sample_datetime(self) -> Frame:
        return Frame("datetime", (sample_date(self.rng), self._sample_time()))

    def _sample_interval(self) -> Frame:
        start = sample_date(self.rng)
        return Frame("interval", (start, date_frame(python_date(shifted(start, log_uniform(self.rng, 1, 400))))))

    def _sample_relative(self) -> Frame:
        unit = self.rng.choice(tuple(_RELATIVE_RANGE))
        return Frame("relative", (unit, self.rng.choice((1, -1)) * log_uniform(self.rng, 1, _RELATIVE_RANGE[unit])))

    def _sample_number(self) -> Frame:
        return Frame("number", (log_uniform(self.rng, 1, 9_999_999),))

    def _sample_spelled(self) -> Frame:
        return Frame("spelled", (log_uniform(self.rng, 1, 9_999),))

    def _sample_percent(self) -> Frame:
        return Frame("percent", (self.rng.randint(1, 100),))

    def _sample_compact(self) -> Frame:
        return Frame("compact", (self.rng.randint(1, 999) * 10 ** self.rng.choice((6, 9)),))

    def _sample_money(self) -> Frame:
        return self.money()

    def _sample_measure(self) -> Frame:
        return self.measure()

    def _sample_list(self) -> Frame:
        return self.list_of(self.rng.choice(("and", "or")), self.rng.randint(2, 5))

    def list_of(self, style: str, length: int, kinds: Sequence[str] = ()) -> Frame:
        """Draw a list of names of one kind, or of phrases of the given kinds; no item twice."""
        items: list[Frame] = []
        kind = self.rng.choice(("territory", "city", "currency", "language", "weekday"))
        while len(items) < length:
            if kinds:
                item = getattr(self, f"_sample_{self.rng.choice(kinds)}")()
            else:
                item = Frame("name", (kind, self.rng.choice(name_codes(self.world, kind, self))))
            if item not in items:
                items.append(item)
        return Frame("list", (style, tuple(items)))


def name_codes(world: World, kind: str, draw: Draw | None = None) -> tuple[str, ...]:
    """Return the codes of a kind that every language of the world can name.

    Args:
        world: the world.
        kind: one of `NAME_KINDS`.
        draw: keep to this split's entities.
    """
    facts = world.facts
    match kind:
        case "territory":
            return draw.territories() if draw else facts.territories
        case "city":
            return draw.cities() if draw else tuple(sorted(facts.country))
        case "currency":
            return facts.currencies
        case "language":
            return facts.official
        case "region":
            return tuple(sorted({*facts.continent_of_region, *facts.continent_of_region.values()}))
        case "month":
            return tuple(f"{month:02d}" for month in range(1, 13))
        case "weekday":
            return tuple(str(day) for day in range(1, 8))
        case "script":
            result: tuple[str, ...] = world.pool(
                "scripts",
                lambda: tuple(
                    c for c in SCRIPTS_NAMED if all(c in item.names["script"] for item in world.lexicons.values())
                ),
            )
            return result
    raise UserError(f"There is no kind of name {kind!r}.")


def fact_frame(fact: Fact) -> Frame:
    """Return the frame of a fact."""
    return Frame("fact", (fact.relation, fact.subject, fact.object))


def warn_supply(task: str, asked: int, supply: int) -> None:
    """Warn that more records are asked for than there are distinct ones."""
    if asked > supply:
        warnings.warn(f"{task} has {supply} distinct records; {asked} are asked for, so some repeat.", stacklevel=3)


def has_sentences(language: str) -> bool:
    """Tell whether a language has sentence templates."""
    return language in ROWS
