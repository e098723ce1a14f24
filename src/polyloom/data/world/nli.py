"""Natural language inference by denotation: premise and hypothesis stand for sets, the label follows from the sets.

The hypothesis is drawn before the label and the premise is then made to fit, so that the hypothesis alone tells
nothing about the label.
"""

from __future__ import annotations

import calendar
import datetime
import random
from collections.abc import Sequence
from typing import Any

from polyloom.data.world.frames import Frame, log_uniform, python_date, sample_date
from polyloom.data.world.lexicon import Lexicon, Piece
from polyloom.data.world.render import line
from polyloom.data.world.templates import ROWS
from polyloom.data.world.world import Draw

LABELS = ("entailment", "neutral", "contradiction")
Meaning = dict[str, Any]


def _month_bounds(year: int, month: int) -> list[str]:
    last = calendar.monthrange(year, month)[1]
    return [f"{year:04d}-{month:02d}-01", f"{year:04d}-{month:02d}-{last:02d}"]


def _hypothesis(draw: Draw) -> Meaning:
    rng = draw.rng
    aspect = rng.choice(("month", "weekday", "more", "less", "more cost", "less cost", "city"))
    if aspect == "month":
        date = sample_date(rng)
        return {"aspect": aspect, "month": [date.args[0], date.args[1]]}
    if aspect == "weekday":
        return {"aspect": aspect, "weekday": rng.randint(1, 7)}
    if aspect == "city":
        return {"aspect": aspect, "city": draw.city()}
    meaning: Meaning = {"aspect": aspect, "bound": log_uniform(rng, 20, 900)}
    if aspect.endswith("cost"):
        meaning["currency"] = rng.choice(draw.world.facts.currencies)
    return meaning


def _date_in(rng: random.Random, label: str, hypothesis: Meaning) -> Meaning:
    """Return what the premise says of the date so that the label holds: a day, a month, a year or nothing."""
    if hypothesis["aspect"] == "month":
        year, month = hypothesis["month"]
        if label == "neutral":
            return rng.choice(({}, {"year": year}))
        if label == "contradiction":
            year, month = (year, month % 12 + 1) if rng.random() < 0.5 else (year + rng.choice((-1, 1)), month)
        day = rng.randint(1, calendar.monthrange(year, month)[1])
        return {"date": [year, month, day]}
    if label == "neutral":
        date = sample_date(rng)
        return rng.choice(({}, {"month": [date.args[0], date.args[1]]}))
    while True:
        date = sample_date(rng)
        same = python_date(date).isoweekday() == hypothesis["weekday"]
        if same == (label == "entailment"):
            return {"date": list(date.args)}


def _quantity_in(rng: random.Random, label: str, more: bool, bound: int) -> Meaning | None:
    """Return an exact number or a bound for which the label of "more (less) than `bound`" holds; None: say nothing."""
    above, below = rng.randint(bound + 1, 2 * bound + 20), rng.randint(1, bound - 1)
    if label == "neutral":
        return rng.choice((None, {"more": below}, {"less": above + 1}))
    up = more == (label == "entailment")
    return rng.choice(({"exact": above}, {"more": above})) if up else rng.choice(({"exact": below}, {"less": below}))


def _premise(draw: Draw, label: str, hypothesis: Meaning) -> Meaning:
    """Build a premise for the label, with other aspects as noise."""
    rng, aspect = draw.rng, hypothesis["aspect"]
    premise: Meaning = {}
    if aspect in ("month", "weekday"):
        premise |= _date_in(rng, label, hypothesis)
    elif rng.random() < 0.7:
        premise["date"] = list(sample_date(rng).args)
    if aspect == "city":
        if label != "neutral":
            others = [code for code in draw.cities() if code != hypothesis["city"]]
            premise["city"] = hypothesis["city"] if label == "entailment" else rng.choice(others)
    elif rng.random() < 0.7:
        premise["city"] = draw.city()
    currency = hypothesis.get("currency") or rng.choice(draw.world.facts.currencies)
    for key in ("kilometers", "cost"):
        asked = aspect in ("more", "less") if key == "kilometers" else aspect.endswith("cost")
        if asked:
            found = _quantity_in(rng, label, aspect.startswith("more"), hypothesis["bound"])
        else:
            found = {"exact": log_uniform(rng, 1, 999)} if rng.random() < 0.7 else None
        if found:
            premise[key] = found | ({"currency": currency} if key == "cost" else {})
    if not set(premise) & {"city", "kilometers", "cost"}:
        key = "kilometers" if aspect == "city" or aspect.endswith("cost") else "city"
        premise[key] = draw.city() if key == "city" else {"exact": log_uniform(rng, 1, 999)}
    return premise


def _bounded(lexicon: Lexicon, meaning: Meaning, value: list[Piece]) -> list[Piece]:
    labels = ROWS[lexicon.language].labels
    if "exact" in meaning:
        return value
    before, after = (labels.more if "more" in meaning else labels.less).split("{Q}")
    return [Piece(before), *value, Piece(after)]


def _quantity(lexicon: Lexicon, meaning: Meaning) -> list[Piece]:
    number = next(meaning[key] for key in ("exact", "more", "less") if key in meaning)
    value = (
        lexicon.money(number, meaning["currency"])
        if "currency" in meaning
        else lexicon.measure(number, "length-kilometer")
    )
    return _bounded(lexicon, meaning, value)


def say(lexicon: Lexicon, meaning: Meaning, swap: bool = False) -> str:
    """Say a premise in a language; with `swap` the date comes last."""
    labels = ROWS[lexicon.language].labels
    dates: list[tuple[str, list[Piece]]] = []
    if "date" in meaning:
        dates.append(("", lexicon.date(*meaning["date"])))
    elif "month" in meaning:
        dates.append(("", lexicon.month_of_year(*meaning["month"])))
    elif "year" in meaning:
        dates.append(("", [Piece(lexicon.digits_of(str(meaning["year"])), "YEAR")]))
    elif "weekday" in meaning:
        dates.append(("", [Piece(lexicon.name("weekday", str(meaning["weekday"])))]))
    parts: list[tuple[str, list[Piece]]] = []
    parts.append((labels.arrival, [Piece(lexicon.name("city", meaning["city"]))] if "city" in meaning else []))
    if "kilometers" in meaning:
        parts.append((labels.distance, _quantity(lexicon, meaning["kilometers"])))
    if "cost" in meaning:
        parts.append((labels.cost, _quantity(lexicon, meaning["cost"])))
    return line(lexicon, [*parts, *dates] if swap else [*dates, *parts]).text


def _say_hypothesis(lexicon: Lexicon, hypothesis: Meaning) -> str:
    labels, aspect = ROWS[lexicon.language].labels, hypothesis["aspect"]
    if aspect in ("month", "weekday", "city"):
        return say(lexicon, hypothesis)
    key = "more" if aspect.startswith("more") else "less"
    meaning = {key: hypothesis["bound"]} | ({"currency": hypothesis["currency"]} if "currency" in hypothesis else {})
    return line(
        lexicon, [(labels.cost if aspect.endswith("cost") else labels.distance, _quantity(lexicon, meaning))]
    ).text


def nli(draw: Draw, languages: Sequence[str], index: int) -> dict[str, Any]:
    """Make a premise, a hypothesis and their label.

    Args:
        draw: the record's meanings.
        languages: one language, or premise and hypothesis each in its own.
        index: number of the record; the labels take turns.

    Returns:
        The record; `meaning` holds both meanings, from which the label can be derived again.
    """
    label = LABELS[index % 3]
    while True:
        hypothesis = _hypothesis(draw)
        premise = _premise(draw, label, hypothesis)
        codes = tuple(meaning["city"] for meaning in (premise, hypothesis) if "city" in meaning)
        if draw.admits(Frame("nli", (repr(premise), repr(hypothesis), codes))):
            break
    first, second = (draw.world.lexicons[code] for code in (languages[0], languages[-1]))
    return {
        "premise": say(first, premise, draw.rng.random() < 0.3),
        "hypothesis": _say_hypothesis(second, hypothesis),
        "label": label,
        "languages": [languages[0], languages[-1]],
        "meaning": {"premise": premise, "hypothesis": hypothesis},
    }


def _interval(meaning: Meaning) -> tuple[float, float]:
    if "exact" in meaning:
        return meaning["exact"], meaning["exact"]
    return (meaning["more"] + 1, float("inf")) if "more" in meaning else (0, meaning["less"] - 1)


def _label_of_sets(inner: tuple[float, float], outer: tuple[float, float]) -> str:
    if outer[0] <= inner[0] and inner[1] <= outer[1]:
        return "entailment"
    return "contradiction" if inner[1] < outer[0] or outer[1] < inner[0] else "neutral"


def _dates(meaning: Meaning) -> tuple[float, float]:
    """Return the first and last day that a meaning allows, as ordinals."""
    if "date" in meaning:
        day = datetime.date(*meaning["date"]).toordinal()
        return day, day
    if "month" in meaning:
        return tuple(datetime.date.fromisoformat(day).toordinal() for day in _month_bounds(*meaning["month"]))  # type: ignore[return-value]
    if "year" in meaning:
        return datetime.date(meaning["year"], 1, 1).toordinal(), datetime.date(meaning["year"], 12, 31).toordinal()
    return float("-inf"), float("inf")


def label_of(premise: Meaning, hypothesis: Meaning) -> str:
    """Derive the label from the two sets: inside is entailment, disjoint is contradiction, else neutral.

    Args:
        premise: `meaning["premise"]` of a record.
        hypothesis: `meaning["hypothesis"]` of a record.
    """
    aspect = hypothesis["aspect"]
    if aspect == "month":
        return _label_of_sets(_dates(premise), _dates(hypothesis))
    if aspect == "weekday":
        first, last = _dates(premise)
        if last - first >= 6:
            return "neutral"
        days = {datetime.date.fromordinal(int(day)).isoweekday() for day in range(int(first), int(last) + 1)}
        return (
            "entailment"
            if days == {hypothesis["weekday"]}
            else "contradiction"
            if hypothesis["weekday"] not in days
            else "neutral"
        )
    if aspect == "city":
        return (
            "neutral"
            if "city" not in premise
            else "entailment"
            if premise["city"] == hypothesis["city"]
            else "contradiction"
        )
    said = premise.get("cost" if aspect.endswith("cost") else "kilometers")
    if said is None or said.get("currency") != hypothesis.get("currency"):
        return "neutral"
    return _label_of_sets(_interval(said), _interval({aspect.split()[0]: hypothesis["bound"]}))
