"""Frames: meanings without a language, their canonical form, their sampling and their split."""

from __future__ import annotations

import calendar
import datetime
import functools
import hashlib
import random
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

PHRASE_KINDS = (
    "date",
    "time",
    "datetime",
    "interval",
    "relative",
    "number",
    "percent",
    "compact",
    "money",
    "measure",
    "name",
    "list",
)
SENTENCE_KINDS = ("fact", "diary", "summary", "question")
RELATIVE_UNITS = {"day": "P{}D", "hour": "PT{}H", "week": "P{}W", "month": "P{}M", "year": "P{}Y"}
NAME_KINDS = ("territory", "region", "currency", "language", "script", "city", "month", "weekday")
UNITS = (
    "length-kilometer",
    "length-meter",
    "length-centimeter",
    "length-mile",
    "length-foot",
    "length-inch",
    "length-light-year",
    "mass-kilogram",
    "mass-gram",
    "mass-tonne",
    "volume-liter",
    "volume-milliliter",
    "volume-cubic-meter",
    "area-square-kilometer",
    "area-square-meter",
    "area-hectare",
    "area-acre",
    "duration-day",
    "duration-hour",
    "duration-minute",
    "duration-second",
    "duration-week",
    "duration-month",
    "duration-year",
    "speed-kilometer-per-hour",
    "speed-meter-per-second",
)
SCRIPTS_NAMED = (
    "Latn",
    "Cyrl",
    "Arab",
    "Deva",
    "Grek",
    "Hebr",
    "Thai",
    "Jpan",
    "Kore",
    "Hans",
    "Beng",
    "Taml",
    "Geor",
    "Armn",
    "Ethi",
)
FIRST_YEAR, LAST_YEAR = 1930, 2029
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class Frame:
    """A meaning: what is said, in no language.

    Attributes:
        kind: one of `PHRASE_KINDS` or `SENTENCE_KINDS`, "spelled" or "refusal".
        args: the kind's values: numbers, codes, or frames.
    """

    kind: str
    args: tuple[Any, ...]

    def iso(self) -> str:
        """Return the canonical answer: one string per meaning."""
        return (
            _ISO[self.kind](*self.args) if self.kind in _ISO else " ".join(_iso(arg) for arg in (self.kind, *self.args))
        )


def _iso(value: Hashable) -> str:
    if isinstance(value, Frame):
        return value.iso()
    if isinstance(value, tuple):
        return " ".join(_iso(item) for item in value)
    return str(value)


def _date(y: int, m: int, d: int) -> str:
    return f"{y:04d}-{m:02d}-{d:02d}"


def _relative(unit: str, n: int) -> str:
    return RELATIVE_UNITS[unit].format(n) if n >= 0 else "-" + RELATIVE_UNITS[unit].format(-n)


_ISO: dict[str, Any] = {
    "date": _date,
    "month": lambda y, m: f"{y:04d}-{m:02d}",
    "time": lambda h, m: f"T{h:02d}:{m:02d}",
    "datetime": lambda date, time: date.iso() + time.iso(),
    "interval": lambda start, end: f"{start.iso()}/{end.iso()}",
    "relative": _relative,
    "number": lambda n: str(n),
    "spelled": lambda n: str(n),
    "percent": lambda n: f"{n}%",
    "compact": lambda n: str(n),
    "money": lambda n, code: f"{code} {n}.00",
    "measure": lambda n, unit: f"{n} {unit}",
    "name": lambda kind, code: str(code),
    "list": lambda style, items: f"{style.upper()} " + " ".join(item.iso() for item in items),
}


def python_date(frame: Frame) -> datetime.date:
    """Return a date frame as the standard library's date."""
    y, m, d = (int(str(arg)) for arg in frame.args)
    return datetime.date(y, m, d)


def date_frame(date: datetime.date) -> Frame:
    """Return the frame of a standard library's date."""
    return Frame("date", (date.year, date.month, date.day))


def inner_frames(frame: Frame) -> Iterator[Frame]:
    """Yield the frame and every frame inside it."""
    yield frame
    for arg in frame.args:
        for item in arg if isinstance(arg, tuple) else (arg,):
            if isinstance(item, Frame):
                yield from inner_frames(item)


def log_uniform(rng: random.Random, low: int, high: int) -> int:
    """Draw an integer so that small and large magnitudes, and with them all plural classes, are equally frequent."""
    return min(high, int(low * (high / low + 1e-9) ** rng.random()))


def sample_date(rng: random.Random) -> Frame:
    """Draw a date of the century from `FIRST_YEAR`."""
    year, month = rng.randint(FIRST_YEAR, LAST_YEAR), rng.randint(1, 12)
    return Frame("date", (year, month, rng.randint(1, calendar.monthrange(year, month)[1])))


def shifted(date: Frame, days: int) -> Frame:
    """Return the date a number of days later."""
    return date_frame(python_date(date) + datetime.timedelta(days=days))


# ---- splits


def share(*parts: Hashable) -> float:
    """Hash anything printable to [0, 1): the same on every machine and in every process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_by_share(value: float) -> str:
    """Return "train" for the first 80 %, "valid" for the next 10 %, else "test"."""
    return "train" if value < 0.8 else "valid" if value < 0.9 else "test"


@functools.lru_cache(maxsize=200_000)
def group_split(code: str) -> str:
    """Return the split of a territory (its cities follow it) when whole entities are held out."""
    return split_by_share(share("group", code))


def composition_key(frame: Frame) -> Hashable:
    """Return the combination that decides the split in mode "composition": its parts occur in all splits, the pair in
    one."""
    args: tuple[Any, ...] = frame.args
    match frame.kind:
        case "date":
            return ("date", args[1], python_date(frame).weekday())
        case "datetime" | "interval":
            return (frame.kind, composition_key(args[0]))
        case "time":
            return ("time", args[0], args[1] // 10)
        case "relative":
            return ("relative", args[0], args[1] > 0, abs(args[1]) % 20)
        case "number" | "percent" | "compact" | "spelled":
            return (frame.kind, str(args[0])[0], len(str(args[0])), str(args[0])[-1])
        case "money" | "measure":
            return (frame.kind, args[1], len(str(args[0])))
        case "list":
            return ("list", args[0], len(args[1]), args[1][0].iso())
        case "diary":
            return ("diary", composition_key(args[0]), args[1])
        case "summary":
            return ("summary", composition_key(args[0]), composition_key(args[1]))
        case _:
            return frame.iso()
