"""Monolingual text, parallel pairs, dictionaries and cross-lingual summaries."""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from typing import Any

from polyloom.core.errors import UserError
from polyloom.data.world.frames import Frame, sample_date, share, shifted
from polyloom.data.world.lexicon import Piece
from polyloom.data.world.locale_data import plain, section
from polyloom.data.world.render import line
from polyloom.data.world.world import Draw, World, fact_frame, has_sentences, name_codes

Record = dict[str, Any]


def join_sentences(world: World, language: str, sentences: Sequence[str]) -> str:
    """Join sentences to a text: with a blank, or with nothing where the language writes none."""
    return ("" if world.lexicons[language].by_character else " ").join(sentences)


# ---- (a) documents


def _diary_document(draw: Draw, language: str, number: int) -> list[str]:
    variant = draw.rng.randint(0, 1)
    return [draw.world.text(frame, language, variant=variant).text for frame in draw.diaries(draw.rng.randint(3, 8))]


def _profile_document(draw: Draw, language: str, number: int) -> list[str]:
    """Say what this split knows of territory `number`, and of the next while that is under three sentences.

    Documents walk through the territories in a fixed order, so that a text of a few hundred documents holds all facts.
    """
    profiles = draw.world.pool(("profiles", draw.split, draw.mode), lambda: _profiles(draw))
    result: list[str] = []
    while len(result) < 3:
        frames, cities = profiles[number % len(profiles)]
        kept = [*frames, *draw.rng.sample(cities, min(len(cities), max(0, 12 - len(frames))))][:12]
        result += [draw.world.text(frame, language, variant=draw.rng.choice((0, 0, 1))).text for frame in kept]
        number += 1
    return result[:12]


def _profiles(draw: Draw) -> list[tuple[list[Frame], list[Frame]]]:
    """Return for each territory the frames of its facts and history, and apart from them those of its cities."""
    facts = draw.world.facts
    found: dict[str, tuple[list[Frame], list[Frame]]] = {}
    for fact in draw.facts():
        place = facts.country.get(fact.subject, fact.subject)
        found.setdefault(place, ([], []))[fact.relation == "P17"].append(fact_frame(fact))
    for place, (frames, _) in found.items():
        frames += [frame for frame in history_frames(draw.world, place) if draw.admits(frame)]
    order = sorted(found, key=lambda code: share("profile", draw.world.seed, code))
    return [found[code] for code in order]


def history_frames(world: World, territory: str) -> list[Frame]:
    """Return a frame for each dated period in which a territory used a currency."""
    result = []
    for tender in world.facts.history.get(territory, ()):
        end = Frame("date", tender.end) if tender.end else None
        if tender.start:
            result.append(Frame("history", (territory, tender.currency, Frame("date", tender.start), end)))
    return result


def _calendar_document(draw: Draw, language: str, number: int) -> list[str]:
    year, month = draw.until(lambda: Frame("month", sample_date(draw.rng).args[:2])).args
    lexicon = draw.world.lexicons[language]
    count = calendar.monthrange(year, month)[1]
    heading = line(lexicon, [("", lexicon.month_of_year(year, month)), ("", lexicon.measure(count, "duration-day"))])
    days = [Frame("date", (year, month, day)) for day in range(1, count + 1)]
    held = [day for day in days if draw.admits(day)][: draw.rng.randint(3, 11)]
    return [heading.text, *(line(lexicon, [("", lexicon.phrase(day))]).text for day in held)]


def _price_document(draw: Draw, language: str, number: int) -> list[str]:
    lexicon = draw.world.lexicons[language]
    # A currency of which this split has amounts.
    currency = str(draw.phrase("money").args[1])
    result = []
    for _ in range(draw.rng.randint(3, 10)):
        price = draw.until(lambda: draw.money(currency))
        amount = draw.phrase("measure")
        label = "".join(piece.text for piece in lexicon.phrase(amount))
        result.append(line(lexicon, [(label, lexicon.phrase(price))]).text)
    return result


def _drill_document(draw: Draw, language: str, number: int) -> list[str]:
    lexicon = draw.world.lexicons[language]
    kinds = ["number", "percent", "list", "interval"] + ([] if draw.world.kind_of_facts == "invented" else ["relative"])
    frames = [draw.phrase(draw.rng.choice(kinds)) for _ in range(draw.rng.randint(3, 12))]
    return [line(lexicon, [("", lexicon.phrase(frame))]).text for frame in frames]


_DOCUMENTS = {
    "diary": _diary_document,
    "profile": _profile_document,
    "calendar": _calendar_document,
    "prices": _price_document,
    "drill": _drill_document,
}


_TURNS = ("diary", "profile", "calendar", "profile", "diary", "prices", "profile", "drill")


def text(draw: Draw, languages: Sequence[str], index: int, *, kind: str = "") -> Record:
    """Make one document of 3 to 12 sentences.

    Args:
        draw: the record's meanings.
        languages: one language.
        index: number of the record.
        kind: "diary", "profile", "calendar", "prices" or "drill"; empty: they take turns.
    """
    language = languages[0]
    if kind and kind not in _DOCUMENTS:
        raise UserError(f"There is no document kind {kind!r}.", hint=f"Choose from: {', '.join(_DOCUMENTS)}.")
    turn = index % len(_TURNS)
    number = index if kind else index // len(_TURNS) * _TURNS.count(_TURNS[turn]) + _TURNS[:turn].count(_TURNS[turn])
    sentences = _DOCUMENTS[kind or _TURNS[turn]](draw, language, number)
    kind = kind or _TURNS[turn]
    return {
        "text": join_sentences(draw.world, language, sentences),
        "language": language,
        "meta": {"kind": kind, "sentences": len(sentences)},
    }


# ---- (b) parallel

_PAIR_KINDS = ("date", "relative", "number", "money", "measure", "list", "fact", "diary", "mixed")


def parallel(draw: Draw, languages: Sequence[str], index: int, *, kinds: Sequence[str] | None = None) -> Record:
    """Say one meaning in every given language: a pair, or an n-way row.

    Args:
        draw: the record's meanings.
        languages: two or more.
        index: number of the record.
        kinds: phrase kinds, "fact", "diary" or "mixed" (a list of two to three quantities and names); None: all.
    """
    sentences = all(has_sentences(code) for code in languages)
    if kinds is not None and not kinds:
        raise UserError("The list of kinds is empty.", hint=f"Choose from: {', '.join(_PAIR_KINDS)}.")
    possible = kinds or tuple(kind for kind in _PAIR_KINDS if sentences or kind not in ("fact", "diary"))
    frame = any_frame(draw, draw.rng.choice(list(possible)))
    said = {code: draw.world.text(frame, code).text for code in languages}
    return {"translation": said, "kind": frame.kind, "meaning": frame.iso()}


def any_frame(draw: Draw, kind: str) -> Frame:
    """Draw a meaning of a phrase kind, "fact", "diary" or "mixed"."""
    if kind == "fact":
        return draw.fact()
    if kind == "diary":
        return draw.diary()
    if kind == "mixed":
        return draw.until(lambda: _mixed(draw))
    return draw.phrase(kind)


def _mixed(draw: Draw) -> Frame:
    items: list[Frame] = []
    length = draw.rng.randint(2, 3)
    while len(items) < length:
        kind = draw.rng.choice(("territory", "territory", "measure", "currency", "month"))
        item = (
            draw.measure()
            if kind == "measure"
            else Frame("name", (kind, draw.rng.choice(name_codes(draw.world, kind, draw))))
        )
        if item not in items:
            items.append(item)
    return Frame("list", ("and", tuple(items)))


# ---- (c) dictionaries

_ENTRY_KINDS = ("territory", "region", "currency", "language", "city", "month", "weekday", "script", "unit")


def entries(world: World) -> list[tuple[str, str]]:
    """Return all dictionary entries as (kind, code): names, month and day forms, and units at 1, 2 and 5."""
    found = [(kind, code) for kind in _ENTRY_KINDS[:-1] for code in name_codes(world, kind)]
    found += [("month in a date", f"{month:02d}") for month in range(1, 13)]
    found += [("weekday in a date", str(day)) for day in range(1, 8)]
    return found + [("unit", f"{n} {unit}") for unit in world.units for n in (1, 2, 5)]


def entry_text(world: World, language: str, kind: str, code: str) -> str:
    """Say a dictionary entry: dates' forms of months and days are those that stand inside a date (a genitive in
    Slavic languages)."""
    lexicon = world.lexicons[language]
    if kind == "unit":
        n, unit = code.split(" ")
        return "".join(piece.text for piece in lexicon.measure(int(n), unit))
    if kind == "month in a date":
        return plain(section(language, "months")["format"]["wide"][int(code)])
    if kind == "weekday in a date":
        return plain(section(language, "days")["format"]["wide"][int(code) - 1])
    return lexicon.name(kind, code)


def entry_frame(kind: str, code: str) -> Frame:
    """Return the frame of an entry, so that names are in the same split everywhere."""
    return Frame("name", (kind.removesuffix(" in a date"), code))


def dictionary(draw: Draw, languages: Sequence[str], index: int, *, lower: bool = False) -> Record:
    """Return entry `index` of the dictionary of two languages; the entries of a split are numbered through.

    Args:
        draw: names the split.
        languages: source and target.
        index: number of the entry; it wraps round at the end.
        lower: write all in lower case.
    """
    world = draw.world
    kept = world.pool(
        ("entries", draw.split, draw.mode),
        lambda: [entry for entry in entries(world) if draw.admits(entry_frame(*entry))],
    )
    kind, code = kept[index % len(kept)]
    source, target = (entry_text(world, language, kind, code) for language in languages[:2])
    if lower:
        source, target = source.lower(), target.lower()
    return {
        "source": source,
        "target": target,
        "source_language": languages[0],
        "target_language": languages[1],
        "kind": kind,
        "code": code,
        "multiword": " " in source or " " in target,
    }


# ---- (l) summaries


def summary(draw: Draw, languages: Sequence[str], index: int, *, length: int = 0, no_sum: bool = False) -> Record:
    """Pair a journey's diary in one language with its exact summary in another.

    Args:
        draw: the record's meanings.
        languages: source and target (the same twice, or one, for a summary in the same language).
        index: number of the record.
        length: number of entries; 0: 3 to 5.
        no_sum: leave the sum of kilometres out: for models too small to add.
    """
    world, source, target = draw.world, languages[0], languages[-1]
    frame, journey = journey_of(draw, length or draw.rng.randint(3, 5))
    start, end, cities, total = frame.args
    full = world.text(frame, target).text
    if no_sum:
        lexicon = world.lexicons[target]
        names = lexicon.join([[Piece(lexicon.name("city", code))] for code in cities])
        dates = lexicon.interval(start.args, end.args) if start != end else lexicon.phrase(start)
        full = line(lexicon, [("", dates), ("", names)]).text
    said = join_sentences(world, source, [world.text(entry, source).text for entry in journey])
    return {
        "text": said,
        "summary": full,
        "source_language": source,
        "target_language": target,
        "slots": {
            "start": start.iso(),
            "end": end.iso(),
            "cities": list(cities),
            "kilometers": None if no_sum else total.args[0],
        },
    }


def journey_of(draw: Draw, length: int) -> tuple[Frame, list[Frame]]:
    """Draw a journey whose summary belongs to the split, without visiting a city twice."""
    for _ in range(2000):
        date = sample_date(draw.rng)
        rng, journey = draw.rng, []
        seen: set[str] = set()
        for _ in range(length):
            city = rng.choice([code for code in draw.cities() if code not in seen])
            seen.add(city)
            journey.append(Frame("diary", (date, city, draw.measure("length-kilometer"), draw.money())))
            date = shifted(date, rng.randint(1, 5))
        total = sum(entry.args[2].args[0] for entry in journey)
        frame = Frame(
            "summary",
            (
                journey[0].args[0],
                journey[-1].args[0],
                tuple(entry.args[1] for entry in journey),
                Frame("measure", (total, "length-kilometer")),
            ),
        )
        if draw.admits(frame):
            return frame, journey
    raise UserError(f"The split {draw.split!r} ({draw.mode}) has no journey of {length} entries.")
