"""A language's words and patterns, compiled once from CLDR, and the formatting of phrases as tagged pieces."""

from __future__ import annotations

import collections
import datetime
import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from babel.dates import tokenize_pattern

from polyloom.core.errors import UserError, closest
from polyloom.data.world.cities import city_names
from polyloom.data.world.facts import write_in_script
from polyloom.data.world.frames import Frame
from polyloom.data.world.locale_data import NATIVE_DIGITS, known_locale, plain, section

CHARACTER_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "km", "my", "yue"})
# Locales whose relative-time phrases are the root's "+3 d".
NO_RELATIVE = frozenset({"yo", "ku", "ig", "rw", "xh", "st", "ceb"})


class Piece(NamedTuple):
    """A run of characters with the tag and the value it stands for; both are empty for the words around."""

    text: str
    tag: str = ""
    value: str = ""


_SLOT = re.compile(r"\{([01])\}")


def _split_pattern(pattern: str) -> list[str | int]:
    """Split "{0} and {1}" into literals and slot numbers."""
    parts: list[str | int] = []
    for i, part in enumerate(_SLOT.split(pattern)):
        if i % 2:
            parts.append(int(part))
        elif part:
            parts.append(part)
    return parts


def _tagged(text: str, tag: str, value: str) -> list[Piece]:
    """Tag the words of a literal, leaving the blanks at its ends outside."""
    core = text.strip()
    if not core:
        return [Piece(text)] if text else []
    start = text.index(core)
    pieces = [Piece(text[:start]), Piece(core, tag, value), Piece(text[start + len(core) :])]
    return [piece for piece in pieces if piece.text]


@dataclass(frozen=True)
class Lexicon:
    """One language's names, patterns and plural rule.

    Attributes:
        language: the CLDR code.
        names: kind -> code -> name.
        digits: "latn" or "native".
        raw: keep the no-break spaces and direction marks of CLDR.
    """

    language: str
    names: Mapping[str, Mapping[str, str]]
    plural: Callable[[int], str]
    digits: str = "latn"
    raw: bool = False
    invented: bool = False
    _patterns: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def by_character(self) -> bool:
        """Tell whether the language writes no blanks between words."""
        return self.language in CHARACTER_LANGUAGES

    def clean(self, text: str) -> str:
        """Return CLDR text as models get it, or as it is when `raw`."""
        return text if self.raw else plain(text)

    def name(self, kind: str, code: str) -> str:
        """Return a name.

        Raises:
            UserError: the language has no name for the code: raw codes are never printed.
        """
        try:
            return self.names[kind][code]
        except KeyError:
            raise UserError(
                f"CLDR has no {kind} name for {code!r} in {self.language!r}.", hint="Leave it out."
            ) from None

    def _cached(self, key: Any, compute: Callable[[], Any]) -> Any:
        found = self._patterns.get(key)
        if found is None:
            found = self._patterns[key] = compute()
        return found

    def digits_of(self, text: str) -> str:
        """Write Latin digits in the language's own, where it has them and `digits` asks for them."""
        native = NATIVE_DIGITS.get(self.language)
        return (
            text.translate({48 + i: char for i, char in enumerate(native)})
            if self.digits == "native" and native
            else text
        )

    # ---- numbers

    def number_text(self, value: int | float, decimals: int = 0) -> str:
        """Group and mark a number as the language does."""
        symbols, sizes = self._cached("number", self._number_style)
        whole, _, fraction = f"{abs(value):.{decimals}f}".partition(".")
        primary, secondary = sizes
        groups = [whole[-primary:]]
        rest = whole[:-primary]
        while rest:
            groups.insert(0, rest[-secondary:])
            rest = rest[:-secondary]
        text = symbols["group"].join(groups) + (symbols["decimal"] + fraction if fraction else "")
        return self.digits_of(("-" if value < 0 else "") + text)

    def _number_style(self) -> tuple[dict[str, str], tuple[int, int]]:
        symbols = section(self.language, "number_symbols")["latn"]
        pattern = section(self.language, "decimal_formats")[None].pattern.split(";")[0].split(".")[0]
        groups = pattern.split(",")
        primary = len(groups[-1])
        return {key: self.clean(symbols[key]) for key in ("group", "decimal")}, (
            primary,
            len(groups[-2]) if len(groups) > 2 else primary,
        )

    def number(self, value: int) -> list[Piece]:
        """Return the number as one piece."""
        return [Piece(self.number_text(value), "NUM", str(value))]

    def percent(self, value: int) -> list[Piece]:
        """Return a percentage of whole points."""
        pattern = self._cached(
            "percent", lambda: self.clean(section(self.language, "percent_formats")[None].pattern.split(";")[0])
        )
        sign = self._cached(
            "percent sign", lambda: self.clean(section(self.language, "number_symbols")["latn"]["percentSign"])
        )
        before, after = re.split(r"[#0,.]+", pattern, maxsplit=1)
        return [
            *_tagged(before.replace("%", sign), "UNIT", "percent"),
            *self.number(value),
            *_tagged(after.replace("%", sign), "UNIT", "percent"),
        ]

    def compact(self, value: int) -> list[Piece]:
        """Say a round large number in words ("5 Millionen"), in the short form where CLDR has no long one."""
        forms = self._cached("compact", lambda: section(self.language, "compact_decimal_formats"))
        widths = forms.get("long") or forms["short"]
        size = str(10 ** (len(str(value)) - 1))
        zeros = self._compact_pattern(widths, "other", size).count("0")
        shown, left = divmod(value, 10 ** (len(size) - zeros))
        if left:
            return self.number(value)
        pattern = self._compact_pattern(widths, self.plural(shown), size)
        before, after = (
            re.split(r"0+", self.clean(pattern.replace("'", "")), maxsplit=1) if "0" in pattern else (pattern, "")
        )
        return [
            *_tagged(before, "NUM", str(value)),
            Piece(self.number_text(shown), "NUM", str(value)),
            *_tagged(after, "NUM", str(value)),
        ]

    @staticmethod
    def _compact_pattern(widths: Mapping[str, Mapping[str, Any]], form: str, size: str) -> str:
        found = widths.get(form, {}).get(size) or widths["other"].get(size)
        if found is None or "0" not in found.pattern or set(found.pattern) <= {"0"}:
            return "0" * len(size)
        return str(found.pattern).split(";")[0]

    # ---- quantities

    def _counted(self, pattern: str, value: int, tag: str, code: str) -> list[Piece]:
        pieces: list[Piece] = []
        for part in self._cached(("split", pattern), lambda: _split_pattern(self.clean(pattern))):
            pieces += self.number(value) if part == 0 else _tagged(str(part), tag, code)
        return pieces

    def unit_pattern(self, unit: str, value: int, style: str = "long") -> str:
        """Return the pattern of a unit and number: the asked width first, then the other, the number's plural form
        first, then "other".

        Raises:
            UserError: CLDR has no pattern of this unit in this language.
        """
        widths = section(self.language, "unit_patterns").get(unit, {})
        form = self.plural(value)
        for width in (style, "short" if style == "long" else "long"):
            for key in (form, "other"):
                if key in widths.get(width, {}):
                    return str(widths[width][key])
        raise UserError(f"CLDR has no pattern for the unit {unit!r} in {self.language!r}.", hint="Leave the unit out.")

    def measure(self, value: int, unit: str, style: str = "long") -> list[Piece]:
        """Return a quantity with its unit."""
        key = ("unit", unit, style, self.plural(value))
        pattern = self._cached(key, lambda: self.unit_pattern(unit, value, style))
        return self._counted(pattern, value, "UNIT", unit)

    def relative(self, unit: str, value: int) -> list[Piece]:
        """Return "3 days ago" or "in 3 days"."""
        if self.language in NO_RELATIVE:
            raise UserError(
                f"CLDR has no relative-time phrases in {self.language!r}.", hint="Leave the kind 'relative' out."
            )
        forms = section(self.language, "date_fields")[unit]["future" if value > 0 else "past"]
        pattern = forms.get(self.plural(abs(value))) or forms["other"]
        return self._counted(pattern, abs(value), "UNIT", unit)

    def money(self, value: int, code: str, style: str = "name") -> list[Piece]:
        """Return a whole amount with the currency's plural name, or with its symbol."""
        symbol = self._symbols().get(code, "") if style == "symbol" else ""
        if symbol:
            pattern = self.clean(section(self.language, "currency_formats")["standard"].pattern.split(";")[0])
            before, after = re.split(r"[#0,.]+", pattern, maxsplit=1)
            return [
                *_tagged(before.replace("¤", symbol), "CUR", code),
                *self.number(value),
                *_tagged(after.replace("¤", symbol), "CUR", code),
            ]
        form = self.plural(value)
        pattern = self._cached(("money", form), lambda: self._money_pattern(form))
        name = self.name("currency", code)
        if not self.invented:
            plurals = section(self.language, "currency_names_plural").get(code, {})
            name = self.clean(plurals.get(form) or plurals.get("other") or name)
        pieces: list[Piece] = []
        for part in pattern:
            pieces += (
                self.number(value) if part == 0 else [Piece(name, "CUR", code)] if part == 1 else [Piece(str(part))]
            )
        return pieces

    def _symbols(self) -> dict[str, str]:
        """Return the currencies that have a sign of their own: neither their bare code nor another currency's sign."""

        def compute() -> dict[str, str]:
            signs = {
                code: self.clean(sign)
                for code, sign in section(self.language, "currency_symbols").items()
                if sign != code
            }
            shared = collections.Counter(signs.values())
            return {code: sign for code, sign in signs.items() if shared[sign] == 1 and code not in sign}

        found: dict[str, str] = {} if self.invented else self._cached("symbols", compute)
        return found

    def _money_pattern(self, form: str) -> list[str | int]:
        patterns = section(self.language, "currency_unit_patterns")
        return _split_pattern(self.clean(patterns.get(form) or patterns["other"]))

    # ---- dates

    def _field(self, letter: str, width: int, moment: datetime.datetime) -> Piece:
        language = self.language
        iso = moment.date().isoformat()
        match letter:
            case "y":
                text = str(moment.year) if width != 2 else f"{moment.year % 100:02d}"
                return Piece(self.digits_of(text), "YEAR", iso[:4])
            case "M" | "L":
                if width < 3:
                    return Piece(self.digits_of(f"{moment.month:0{width}d}"), "MONTH", iso[5:7])
                context = "format" if letter == "M" else "stand-alone"
                names = section(language, "months")[context]["wide" if width == 4 else "abbreviated"]
                return Piece(self.clean(names[moment.month]), "MONTH", iso[5:7])
            case "d":
                return Piece(self.digits_of(f"{moment.day:0{width}d}"), "DAY", iso[8:])
            case "E" | "c":
                context = "format" if letter == "E" else "stand-alone"
                names = section(language, "days")[context]["wide" if width == 4 else "abbreviated"]
                return Piece(self.clean(names[moment.weekday()]), "WEEKDAY", str(moment.isoweekday()))
            case "H" | "h":
                hour = moment.hour if letter == "H" else moment.hour % 12 or 12
                return Piece(self.digits_of(f"{hour:0{width}d}"), "HOUR", f"{moment.hour:02d}")
            case "m":
                return Piece(self.digits_of(f"{moment.minute:0{width}d}"), "MINUTE", f"{moment.minute:02d}")
            case "s":
                return Piece(self.digits_of(f"{moment.second:0{width}d}"), "SECOND", f"{moment.second:02d}")
            case "G":
                eras = section(language, "eras")["wide" if width == 4 else "abbreviated"]
                return Piece(self.clean(eras[1]))
            case "a":
                periods = section(language, "day_periods")["format"]["abbreviated"]
                half = "am" if moment.hour < 12 else "pm"
                if half not in periods:
                    periods = section(language, "day_periods")["format"]["wide"]
                return Piece(self.clean(periods[half]), "PERIOD", half)
        raise UserError(f"The date field {letter!r} of {language!r} is not known.", hint="Leave this style out.")

    def by_pattern(self, pattern: str, moment: datetime.datetime) -> list[Piece]:
        """Fill a CLDR date or time pattern: each field becomes a piece."""
        tokens = self._cached(("tokens", pattern), lambda: tokenize_pattern(pattern))
        return [
            Piece(self.clean(value)) if kind == "chars" else self._field(value[0], value[1], moment)
            for kind, value in tokens
        ]

    def date(self, year: int, month: int, day: int, style: str = "full") -> list[Piece]:
        """Return a date in style full, long, medium or short."""
        pattern = section(self.language, "date_formats")[style].pattern
        return self.by_pattern(pattern, datetime.datetime(year, month, day))

    def month_of_year(self, year: int, month: int) -> list[Piece]:
        """Return a month of a year ("July 2006")."""
        pattern = section(self.language, "datetime_skeletons")["yMMMM"].pattern
        return self.by_pattern(pattern, datetime.datetime(year, month, 1))

    def time(self, hour: int, minute: int, style: str = "short") -> list[Piece]:
        """Return a time of day in style short or medium."""
        pattern = section(self.language, "time_formats")[style].pattern
        return self.by_pattern(pattern, datetime.datetime(2000, 1, 1, hour, minute))

    def date_and_time(self, date: Sequence[int], time: Sequence[int], style: str = "medium") -> list[Piece]:
        """Return a date with a time; in CLDR's pattern {1} is the date."""
        glue = section(self.language, "datetime_formats")["full" if style == "full" else "medium"]
        pattern = glue if isinstance(glue, str) else glue.pattern
        pieces: list[Piece] = []
        for part in self._cached(("glue", pattern), lambda: _split_pattern(self.clean(pattern.replace("'", "")))):
            if part == 0:
                pieces += self.time(time[0], time[1])
            elif part == 1:
                pieces += self.date(date[0], date[1], date[2], style)
            else:
                pieces.append(Piece(str(part)))
        return pieces

    def interval(self, start: Sequence[int], end: Sequence[int]) -> list[Piece]:
        """Return "Mar 8 - 12, 2024": the greatest field that differs chooses the pattern."""
        greatest = "y" if start[0] != end[0] else "M" if start[1] != end[1] else "d"
        patterns = section(self.language, "interval_formats")["yMMMd"][greatest]
        moments = (datetime.datetime(start[0], start[1], start[2]), datetime.datetime(end[0], end[1], end[2]))
        pieces: list[Piece] = []
        for pattern, moment in zip(patterns, moments, strict=True):
            pieces += self.by_pattern(pattern, moment)
        return pieces

    # ---- names and lists

    def join(self, items: Sequence[list[Piece]], style: str = "standard") -> list[Piece]:
        """Join two or more phrases with the language's list pattern "standard" (and) or "or"."""
        patterns = self._cached(
            ("list", style), lambda: {k: _split_pattern(self.clean(v)) for k, v in self._list_patterns(style).items()}
        )
        if len(items) == 2:
            return self._joined(patterns["2"], items[0], items[1])
        tail = self._joined(patterns["end"], items[-2], items[-1])
        for item in reversed(items[1:-2]):
            tail = self._joined(patterns["middle"], item, tail)
        return self._joined(patterns["start"], items[0], tail)

    def _list_patterns(self, style: str) -> Mapping[str, str]:
        patterns: Mapping[str, str] = section(self.language, "list_patterns")[style]
        return patterns

    @staticmethod
    def _joined(pattern: Sequence[str | int], first: list[Piece], second: list[Piece]) -> list[Piece]:
        pieces: list[Piece] = []
        for part in pattern:
            pieces += first if part == 0 else second if part == 1 else [Piece(str(part), "LINK")]
        return pieces

    def phrase(self, frame: Frame, style: str = "") -> list[Piece]:
        """Say a phrase frame.

        Args:
            frame: of a kind in `PHRASE_KINDS`, "month" or "spelled".
            style: a style of the kind; empty for the kind's default.
        """
        args: tuple[Any, ...] = frame.args
        match frame.kind:
            case "date":
                return self.date(args[0], args[1], args[2], style or "full")
            case "month":
                return self.month_of_year(args[0], args[1])
            case "time":
                return self.time(args[0], args[1], style or "short")
            case "datetime":
                return self.date_and_time(args[0].args, args[1].args, style or "medium")
            case "interval":
                return self.interval(args[0].args, args[1].args)
            case "relative":
                return self.relative(args[0], args[1])
            case "number":
                return self.number(args[0]) if style != "words" else self.spelled(args[0])
            case "spelled":
                return self.spelled(args[0])
            case "percent":
                return self.percent(args[0])
            case "compact":
                return self.compact(args[0])
            case "money":
                return self.money(args[0], args[1], style or "name")
            case "measure":
                return self.measure(args[0], args[1], style or "long")
            case "name":
                return [Piece(self.name(args[0], args[1]), NAME_TAGS[args[0]], args[1])]
            case "list":
                return self.join([self.phrase(item) for item in args[1]], "or" if args[0] == "or" else "standard")
        raise UserError(f"{frame.kind!r} is not a phrase kind.", hint=closest(frame.kind, ("date", "money", "list")))

    def spelled(self, value: int) -> list[Piece]:
        """Spell a number out with num2words, which is not a dependency.

        Raises:
            UserError: num2words is absent or does not know the language.
        """
        if importlib.util.find_spec("num2words") is None:
            raise UserError(
                "Numbers in words need the library num2words.", hint="Install it with: pip install num2words"
            )
        num2words = importlib.import_module("num2words").num2words
        try:
            text = str(num2words(value, lang=self.language))
        except NotImplementedError:
            raise UserError(
                f"num2words cannot spell numbers in {self.language!r}.", hint="Leave the kind 'spelled' out."
            ) from None
        return [Piece(text, "NUM", str(value))]


NAME_TAGS = {
    "territory": "LOC",
    "region": "LOC",
    "city": "LOC",
    "currency": "CUR",
    "language": "LANG",
    "script": "LANG",
    "month": "MONTH",
    "weekday": "WEEKDAY",
}


def _clean_names(names: Mapping[str, Any], raw: bool) -> dict[str, str]:
    return {
        str(code): name if raw else plain(name)
        for code, name in names.items()
        if isinstance(name, str) and name and name != str(code)
    }


@functools.lru_cache(maxsize=512)
def lexicon(language: str, digits: str = "latn", raw: bool = False) -> Lexicon:
    """Compile a language.

    Args:
        language: a CLDR code.
        digits: "latn" or "native".
        raw: keep no-break spaces and direction marks.

    Raises:
        UserError: CLDR does not know the language.
    """
    if not known_locale(language):
        raise UserError(f"CLDR has no data for the language {language!r}.", hint="Give a code such as 'de'.")
    months = section(language, "months")["stand-alone"]["wide"]
    days = section(language, "days")["stand-alone"]["wide"]
    names = {
        "territory": _clean_names(section(language, "territories"), raw),
        "currency": _clean_names(section(language, "currency_names"), raw),
        "language": _clean_names(section(language, "languages"), raw),
        "script": _clean_names(section(language, "scripts"), raw),
        "city": {code: name if raw else plain(name) for code, name in city_names(language).items()},
        "month": {f"{number:02d}": name if raw else plain(name) for number, name in months.items()},
        "weekday": {str(number + 1): name if raw else plain(name) for number, name in days.items()},
    }
    names["region"] = names["territory"]
    return Lexicon(language, names, section(language, "plural_form")[""], digits, raw)


def invented_lexicon(base: Lexicon, names: Mapping[str, Mapping[str, str]]) -> Lexicon:
    """Replace the names of territories, regions, currencies, languages and cities by invented ones in the language's
    script."""
    written = {
        kind: {code: write_in_script(name, base.language) for code, name in entries.items()}
        for kind, entries in names.items()
    }
    return Lexicon(base.language, {**base.names, **written}, base.plural, base.digits, base.raw, invented=True)
