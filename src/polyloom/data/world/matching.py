"""Text matching: two texts of one meaning, or of two meanings that look alike, at four levels of hardness."""

from __future__ import annotations

import calendar
from collections.abc import Hashable, Sequence
from typing import Any

from polyloom.core.errors import UserError
from polyloom.data.world.frames import Frame, shifted
from polyloom.data.world.lexicon import Piece, lexicon
from polyloom.data.world.locale_data import NATIVE_DIGITS
from polyloom.data.world.monolingual import any_frame
from polyloom.data.world.render import line
from polyloom.data.world.world import Draw, has_sentences

_STYLES = {
    "date": ("full", "long", "medium"),
    "money": ("name", "symbol"),
    "measure": ("long", "short"),
    "number": ("latn", "native"),
}


def _say(draw: Draw, frame: Frame, language: str, style: str | int) -> str:
    if style in ("latn", "native"):
        return "".join(piece.text for piece in lexicon(language, str(style)).phrase(frame))
    if isinstance(style, str):
        return draw.world.text(frame, language, style=style).text
    return draw.world.text(frame, language, variant=style).text


def _two_styles(draw: Draw, kind: str, languages: Sequence[str]) -> tuple[str | int, str | int]:
    styles: tuple[str | int, ...] = _STYLES.get(kind, (0, 1))
    first, second = draw.rng.sample(styles, 2)
    return (first, second) if len(set(languages)) == 1 else (draw.rng.choice(styles), draw.rng.choice(styles))


def _other_date(draw: Draw, date: Frame) -> Frame:
    """Change a date a little: a day, ten days, a month or a year."""
    step = draw.rng.choice(("day", "days", "month", "year"))
    sign = draw.rng.choice((-1, 1))
    if step in ("day", "days"):
        return shifted(date, sign * (1 if step == "day" else 10))
    year, month, day = (int(str(arg)) for arg in date.args)
    year, month = (year, (month - 1 + sign) % 12 + 1) if step == "month" else (year + sign, month)
    return Frame("date", (year, month, min(day, calendar.monthrange(year, month)[1])))


def _other_number(draw: Draw, value: int) -> int:
    """Swap two neighbouring digits, or change the number by one or ten."""
    digits = str(value)
    if len(digits) > 1 and draw.rng.random() < 0.6:
        i = draw.rng.randrange(len(digits) - 1)
        swapped = int(digits[:i] + digits[i + 1] + digits[i] + digits[i + 2 :])
        if swapped != value and swapped > 0 and len(str(swapped)) == len(digits):
            return swapped
    return max(1, value + draw.rng.choice((-10, -1, 1, 10))) if value > 1 else value + 1


_NEAR_UNITS = {
    "length-kilometer": "length-mile",
    "length-meter": "length-kilometer",
    "mass-kilogram": "mass-gram",
    "duration-day": "duration-week",
    "duration-hour": "duration-minute",
    "volume-liter": "volume-milliliter",
    "area-hectare": "area-acre",
}


def _near(draw: Draw, frame: Frame) -> Frame:
    """Return a meaning of the same kind that differs in one detail."""
    args: tuple[Any, ...] = frame.args
    rng, facts = draw.rng, draw.world.facts
    match frame.kind:
        case "date":
            return _other_date(draw, frame)
        case "number":
            return Frame("number", (_other_number(draw, args[0]),))
        case "money" | "measure":
            if rng.random() < 0.5:
                return Frame(frame.kind, (_other_number(draw, args[0]), args[1]))
            if frame.kind == "money":
                return Frame("money", (args[0], rng.choice([c for c in facts.currencies if c != args[1]])))
            near = _NEAR_UNITS.get(args[1], "")
            return Frame(
                "measure",
                (
                    args[0],
                    near if near in draw.world.units else rng.choice([u for u in draw.world.units if u != args[1]]),
                ),
            )
        case "diary":
            place = rng.randrange(4)
            changed = (
                _other_date(draw, args[0])
                if place == 0
                else rng.choice([c for c in draw.cities() if c != args[1]])
                if place == 1
                else _near(draw, args[place])
            )
            return Frame("diary", tuple(changed if i == place else arg for i, arg in enumerate(args)))
        case _:
            neighbours = [c for c in facts.members[facts.region[args[1]]] if c != args[1] and c in draw.territories()]
            return Frame(frame.kind, (args[0], rng.choice(neighbours or draw.territories())))


def _frame(draw: Draw, kind: str) -> Frame:
    if kind == "question":
        return draw.until(
            lambda: Frame("question", (draw.rng.choice(("P38", "P37")), draw.rng.choice(draw.territories())))
        )
    return any_frame(draw, kind)


def different(draw: Draw, frame: Frame, hardness: int) -> Frame:
    """Return another meaning: of any kind (0), of the same kind (1) or different in one detail (2)."""
    for _ in range(5000):
        if hardness == 2:
            other = _near(draw, frame)
        else:
            kind = frame.kind if hardness == 1 else draw.rng.choice(("date", "money", "measure"))
            other = _frame(draw, kind)
        if other != frame and draw.admits(other):
            return other
        if hardness == 2 and draw.rng.random() < 0.05:
            # A frame whose every neighbour is in another split is given up.
            return frame
    return frame


def _swapped(draw: Draw, languages: Sequence[str], label: int) -> tuple[str, str]:
    """Say three places with their distances twice, in two orders; for label 0 the distances sit at the wrong places.

    Both labels have the same words in both texts, so that only the binding of place and distance decides.
    """
    rng = draw.rng
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    while True:
        cities = rng.sample(draw.cities(), 3)
        numbers = rng.sample(range(2, 999), 3)
        order = rng.choice(orders[1:])
        other = order if label else rng.choice([item for item in orders if item != order])
        facts = tuple(sorted(zip(cities, numbers, strict=True)))
        said = tuple(sorted(zip((cities[i] for i in order), (numbers[i] for i in other), strict=True)))
        if all(draw.admits(Frame("log", _flat(pairs))) for pairs in {facts, said}):
            break

    def write(language: str, pairs: Sequence[tuple[str, int]]) -> str:
        item = draw.world.lexicons[language]
        return line(item, [(item.name("city", city), _distance(draw, language, number)) for city, number in pairs]).text

    first = write(languages[0], list(zip(cities, numbers, strict=True)))
    return first, write(languages[-1], [(cities[i], numbers[j]) for i, j in zip(order, other, strict=True)])


def _flat(pairs: Sequence[tuple[str, int]]) -> tuple[Hashable, ...]:
    return (tuple(city for city, _ in pairs), tuple(number for _, number in pairs))


def _distance(draw: Draw, language: str, number: int) -> list[Piece]:
    return draw.world.lexicons[language].measure(number, "length-kilometer")


def matching(draw: Draw, languages: Sequence[str], index: int, *, hardness: int | None = None) -> dict[str, Any]:
    """Make a pair of texts and tell whether they mean the same.

    Args:
        draw: the record's meanings.
        languages: one language, or each text in its own.
        index: number of the record; labels take turns.
        hardness: 0 any other meaning, 1 another of the same kind, 2 one detail differs, 3 the same words bound
            otherwise; None: all in turn.

    Raises:
        UserError: the hardness is not 0 to 3.
    """
    if hardness is not None and hardness not in range(4):
        raise UserError(f"There is no hardness {hardness}.", hint="Choose 0, 1, 2 or 3.")
    label, level = index % 2, (index // 2) % 4 if hardness is None else hardness
    if level == 3 and all(has_sentences(code) for code in languages):
        first, second = _swapped(draw, languages, label)
    else:
        first, second = _pair(draw, languages, label, min(level, 2))
    return {
        "sentence1": first,
        "sentence2": second,
        "label": label,
        "hardness": level,
        "languages": [languages[0], languages[-1]],
    }


def _pair(draw: Draw, languages: Sequence[str], label: int, level: int) -> tuple[str, str]:
    sentences = all(has_sentences(code) for code in languages)
    kinds: tuple[str, ...] = (
        ("date", "money", "measure", "diary", "question") if sentences else ("date", "money", "measure")
    )
    if all(code in NATIVE_DIGITS for code in languages):
        kinds = (*kinds, "number")
    while True:
        frame = _frame(draw, draw.rng.choice(kinds))
        other = frame if label else different(draw, frame, level)
        if (other == frame) != bool(label):
            continue
        same_kind = other.kind == frame.kind
        style, second = _two_styles(draw, frame.kind, languages)
        if not same_kind:
            second = draw.rng.choice(_STYLES.get(other.kind, (0, 1)))
        texts = _say(draw, frame, languages[0], style), _say(draw, other, languages[-1], second)
        if texts[0] != texts[1] or len(set(languages)) > 1:
            return texts
