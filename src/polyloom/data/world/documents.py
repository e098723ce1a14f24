"""Documents with entities and relations in DocRED's format: one plan of facts, said in any language with the same
graph.

A plan holds three to four territories of one sub-region with their currencies, languages, cities, currency history
and a journey or two as distraction. Later sentences on a territory may call it "this territory": their relations need
the sentence that named it as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from polyloom.core.errors import UserError
from polyloom.data.world.frames import Frame, sample_date
from polyloom.data.world.lexicon import lexicon
from polyloom.data.world.locale_data import known_locale
from polyloom.data.world.render import Text, compiled, fact_fillers, fill, sentence, token_range
from polyloom.data.world.templates import ROWS
from polyloom.data.world.world import Draw

Key = tuple[str, str]
RELATIONS = {
    "P38": "currency",
    "P37": "official language",
    "P361": "part of",
    "P527": "has part",
    "P30": "continent",
    "P17": "country",
    "P1365": "replaces",
    "P1366": "replaced by",
    "P580": "start time",
    "P582": "end time",
}
_TYPES = {
    "TERRITORY": "LOC",
    "CITY": "LOC",
    "REGION": "LOC",
    "CURRENCY": "MISC",
    "LANGUAGE": "MISC",
    "DATE": "TIME",
    "MEASURE": "NUM",
    "MONEY": "NUM",
}
_OBJECTS = {"P38": "CURRENCY", "P37": "LANGUAGE", "P361": "REGION", "P30": "REGION", "P17": "TERRITORY"}


@dataclass
class Plan:
    """What a document says: sentences without a language, entities in order, relations with their evidence."""

    title: str
    frames: list[tuple[Frame, int]] = field(default_factory=list)
    entities: list[Key] = field(default_factory=list)
    relations: dict[tuple[Key, str, Key], list[int]] = field(default_factory=dict)
    named_in: dict[Key, int] = field(default_factory=dict)

    def add(self, frame: Frame, keys: Sequence[Key], variant: int = 0) -> int:
        """Append a sentence that names the given entities; return its number."""
        number = len(self.frames)
        self.frames.append((frame, variant))
        for key in keys:
            if key not in self.entities:
                self.entities.append(key)
            self.named_in[key] = number
        return number

    def relate(self, head: Key, relation: str, tail: Key, evidence: Sequence[int]) -> None:
        """Record a relation once, with the evidence that first gave it."""
        self.relations.setdefault((head, relation, tail), sorted(set(evidence)))


def _say_fact(plan: Plan, draw: Draw, relation: str, subject: str, value: str, *, may_refer: bool) -> None:
    """Say a fact by name or, where the territory was the last one spoken of, by "this territory"."""
    head: Key = ("CITY" if relation == "P17" else "TERRITORY", subject)
    tail: Key = (_OBJECTS[relation], value)
    if may_refer and relation != "P17" and head in plan.named_in and draw.rng.random() < 0.5:
        named = plan.named_in[head]
        number = plan.add(Frame("this", (relation, subject, value)), [tail])
        evidence = [named, number]
    else:
        number = plan.add(Frame("fact", (relation, subject, value)), [head, tail], draw.rng.choice((0, 0, 1)))
        evidence = [number]
    plan.relate(head, relation, tail, evidence)
    if relation == "P361":
        plan.relate(tail, "P527", head, evidence)


def _say_history(plan: Plan, draw: Draw, territory: str) -> None:
    """Say the last two currencies of a territory with their dates: start, end, and which replaced which."""
    tenders = draw.world.facts.history[territory][-2:]
    place: Key = ("TERRITORY", territory)
    numbers = []
    for tender in tenders:
        start = Frame("date", tender.start or (1900, 1, 1))
        end = Frame("date", tender.end) if tender.end else None
        currency: Key = ("CURRENCY", tender.currency)
        times: list[Key] = [("DATE", start.iso()), *([("DATE", end.iso())] if end else [])]
        number = plan.add(Frame("history", (territory, tender.currency, start, end)), [place, currency, *times])
        numbers.append(number)
        plan.relate(currency, "P580", times[0], [number])
        if end:
            plan.relate(currency, "P582", times[1], [number])
    if len(numbers) == 2:
        old, new = (("CURRENCY", tender.currency) for tender in tenders)
        plan.relate(old, "P1366", new, numbers)
        plan.relate(new, "P1365", old, numbers)


def _block(plan: Plan, draw: Draw, territory: str, *, with_history: bool) -> None:
    """Say what is known of one territory, in an order of its own."""
    facts, rng = draw.world.facts, draw.rng
    said: list[tuple[str, str, str]] = []
    if territory in facts.currency and not with_history:
        said.append(("P38", territory, facts.currency[territory]))
    said += [("P37", territory, code) for code in facts.languages.get(territory, ())[: rng.choice((1, 1, 2))]]
    rng.shuffle(said)
    if rng.random() < 0.55:
        said.append(("P361", territory, facts.region[territory]))
    elif rng.random() < 0.7:
        said.append(("P30", territory, facts.continent[territory]))
    cities = facts.cities.get(territory, ())
    if with_history:
        _say_history(plan, draw, territory)
    for relation, subject, value in said:
        _say_fact(plan, draw, relation, subject, value, may_refer=True)
    for city in rng.sample(cities, min(len(cities), rng.choice((0, 1, 1)))):
        _say_fact(plan, draw, "P17", city, territory, may_refer=False)


def _two_hops(plan: Plan) -> None:
    """Add the continent of each city whose territory's continent is stated."""
    direct = list(plan.relations.items())
    continent = {head: (tail, evidence) for (head, relation, tail), evidence in direct if relation == "P30"}
    for (head, relation, tail), evidence in direct:
        if relation == "P17" and tail in continent:
            place, more = continent[tail]
            plan.relate(head, "P30", place, [*evidence, *more])


def plan_document(draw: Draw, *, num_territories: int = 0) -> Plan:
    """Plan a document: the same plan in every language.

    Args:
        draw: the record's meanings.
        num_territories: 0 draws three or four.
    """
    facts, rng = draw.world.facts, draw.rng
    held = set(draw.territories())
    groups = [[code for code in codes if code in held] for codes in facts.members.values()]
    groups = [codes for codes in groups if len(codes) >= min(3, num_territories or 3)] or [sorted(held)]
    for _ in range(5000):
        group = rng.choice(groups)
        chosen = rng.sample(group, min(len(group), num_territories or rng.choice((3, 3, 3, 4))))
        if draw.admits(Frame("document", (tuple(sorted(chosen)),))):
            break
    else:
        raise UserError(f"The split {draw.split!r} ({draw.mode}) has no documents.", hint="Use a larger split.")
    plan = Plan(facts.region[chosen[0]])
    histories = [code for code in chosen if len(facts.history.get(code, ())) > 1][:1]
    for code in chosen:
        _block(plan, draw, code, with_history=code in histories)
        if rng.random() < 0.2:
            _distract(plan, draw, chosen)
    _two_hops(plan)
    return plan


def _distract(plan: Plan, draw: Draw, territories: Sequence[str]) -> None:
    """Add a journey's entry: it repeats a city or names a new one, and carries no relation."""
    cities = [city for code in territories for city in draw.world.facts.cities.get(code, ())]
    city = draw.rng.choice(cities or draw.cities())
    trip = Frame("diary", (sample_date(draw.rng), city, draw.measure("length-kilometer"), draw.money()))
    date, _, distance, cost = trip.args
    keys: list[Key] = [("DATE", date.iso()), ("CITY", city), ("MEASURE", distance.iso()), ("MONEY", cost.iso())]
    plan.add(trip, keys, draw.rng.randint(0, 1))


def _own_name(draw: Draw, territory: str) -> str:
    """Return what a territory's first official language calls it; empty where CLDR does not say."""
    for language in draw.world.facts.languages.get(territory, ())[:1]:
        if known_locale(language):
            return lexicon(language).names["territory"].get(territory, "")
    return ""


def _foreign_order(draw: Draw, frame: Frame, language: str) -> Text:
    """Write a fact in English word order with this language's words and no particles: a caricature of
    translationese."""
    relation = str(frame.args[0])
    labels = ROWS[language].labels
    label = {
        "P38": labels.currency,
        "P37": labels.language,
        "P361": labels.region,
        "P30": labels.region,
        "P17": labels.country,
    }[relation]
    item = draw.world.lexicons[language]
    fillers = fact_fillers(item, frame.args, {})
    first, second = fillers
    nouns = " ".join(f"{word}|NOUN|1|flat" for word in label.split())
    words = compiled(f"{{{first}}}|PROPN|0 {nouns} {{{second}}}|PROPN|1|appos {ROWS[language].marks.stop}")
    return fill(words, fillers, item.by_character)


def documents(
    draw: Draw,
    languages: Sequence[str],
    index: int,
    *,
    missing: float = 0.0,
    own_names: float = 0.0,
    foreign_order: float = 0.0,
    num_territories: int = 0,
) -> dict[str, Any]:
    """Make a document with entities and relations.

    Args:
        draw: the record's meanings.
        languages: one language.
        index: number of the record.
        missing: share of the relations whose label is dropped (false negatives); the truth stays in `true_labels`.
        own_names: share of territory mentions written as the territory's own language calls it.
        foreign_order: share of facts written in English word order.
        num_territories: 0 draws three or four.

    Returns:
        DocRED's record: title, sents (tokens), vertexSet, labels; and the texts of the sentences.
    """
    for name, share in (("missing", missing), ("own_names", own_names), ("foreign_order", foreign_order)):
        if not 0 <= share <= 1:
            raise UserError(f"{name} is a share between 0 and 1, not {share}.")
    plan = plan_document(draw, num_territories=num_territories)
    language = languages[0]
    item = draw.world.lexicons[language]
    numbers = {key: i for i, key in enumerate(plan.entities)}
    mentions: list[list[dict[str, Any]]] = [[] for _ in plan.entities]
    sents, texts = [], []
    for number, (frame, variant) in enumerate(plan.frames):
        # Every choice is drawn whether or not it is used, so that all languages draw the same.
        renamed, reordered = draw.rng.random() < own_names, draw.rng.random() < foreign_order
        alias = {}
        if renamed:
            codes = [arg for arg in frame.args if isinstance(arg, str) and arg in draw.world.facts.region]
            alias = {code: name for code in codes if (name := _own_name(draw, code))}
        if reordered and frame.kind == "fact":
            said = _foreign_order(draw, frame, language)
        else:
            said = sentence(item, frame, variant, alias=alias)
        found = draw.world.tokens(said, language)
        sents.append([token.text for token in found])
        texts.append(said.text)
        for slot in said.slots:
            start, end = token_range(found, slot.start, slot.end)
            mention = {
                "name": said.text[slot.start : slot.end],
                "sent_id": number,
                "pos": [start, end],
                "type": _TYPES[slot.tag],
            }
            mentions[numbers[slot.tag, slot.value]].append(mention)
    labels = [
        {"h": numbers[h], "t": numbers[t], "r": r, "evidence": evidence}
        for (h, r, t), evidence in plan.relations.items()
    ]
    kept = [label for label in labels if draw.rng.random() >= missing]
    record: dict[str, Any] = {
        "title": f"{item.name('region', plan.title)} {index}",
        "sents": sents,
        "vertexSet": mentions,
        "labels": kept,
        "language": language,
        "text": ("" if item.by_character else " ").join(texts),
    }
    if missing or own_names or foreign_order:
        record["true_labels"] = labels
    return record
