"""Number words: what people write in place of digits, 0 to 100, and Chinese and Japanese numerals beyond."""

from __future__ import annotations

from functools import cache

import regex

_ENGLISH = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_ENGLISH += " seventeen eighteen nineteen"
_GERMAN = "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn"
_GERMAN += " siebzehn achtzehn neunzehn"
_FRENCH = "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize"
_FRENCH += " dix-sept dix-huit dix-neuf"
_SPANISH = "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis"
_SPANISH += " diecisiete dieciocho diecinueve"


def _tens(words: str) -> dict[int, str]:
    return {10 * (place + 2): word for place, word in enumerate(words.split())}


def _english() -> dict[str, int]:
    small = _ENGLISH.split()
    words = {word: value for value, word in enumerate(small)}
    for ten, name in _tens("twenty thirty forty fifty sixty seventy eighty ninety").items():
        words[name] = ten
        for unit in range(1, 10):
            words[f"{name}-{small[unit]}"] = words[f"{name} {small[unit]}"] = ten + unit
    return words | {"hundred": 100, "one hundred": 100, "a hundred": 100}


def _german() -> dict[str, int]:
    small = _GERMAN.split()
    words = {word: value for value, word in enumerate(small)}
    for ten, name in _tens("zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig").items():
        words[name] = ten
        for unit in range(1, 10):
            words[("ein" if unit == 1 else small[unit]) + "und" + name] = ten + unit
    return words | {"hundert": 100, "einhundert": 100}


def _french() -> dict[str, int]:
    small = _FRENCH.split()
    words = {word: value for value, word in enumerate(small)}
    for ten, name in _tens("vingt trente quarante cinquante soixante").items():
        words[name] = ten
        words[f"{name} et un"] = words[f"{name}-et-un"] = ten + 1
        words |= {f"{name}-{small[unit]}": ten + unit for unit in range(2, 10)}
    words |= {f"soixante-{small[unit]}": 60 + unit for unit in range(10, 20)} | {"soixante et onze": 71}
    words |= {"quatre-vingts": 80} | {f"quatre-vingt-{small[unit]}": 80 + unit for unit in range(1, 20)}
    return words | {"cent": 100}


def _spanish() -> dict[str, int]:
    small = _SPANISH.split()
    words = {word: value for value, word in enumerate(small)} | {"veinte": 20, "veintiún": 21}
    units = "veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete veintiocho veintinueve"
    words |= {word: 21 + place for place, word in enumerate(units.split())}
    tens = dict(
        zip(
            range(30, 100, 10),
            ["treinta", "cuarenta", "cincuenta", "sesenta", "setenta", "ochenta", "noventa"],
            strict=True,
        )
    )
    for ten, name in tens.items():
        words[name] = ten
        words |= {f"{name} y {small[unit]}": ten + unit for unit in range(1, 10)}
    return words | {"cien": 100, "ciento": 100}


# "un", "une" and "a" are articles far more often than numbers; "once" is English, and "six" and "cent" agree anyway.
_AMBIGUOUS = frozenset({"un", "once", "dos"})


@cache
def number_words() -> dict[str, int]:
    """Return the value of every number word of English, German, French and Spanish, lower case."""
    found = _french() | _spanish() | _german() | _english()
    return {word: value for word, value in found.items() if word not in _AMBIGUOUS}


@cache
def _word_pattern() -> regex.Pattern[str]:
    words = sorted(number_words(), key=len, reverse=True)
    return regex.compile(r"(?<![\p{L}\p{N}])(?:" + "|".join(map(regex.escape, words)) + r")(?![\p{L}\p{N}])", regex.I)


def replace_words(text: str) -> str:
    """Write number words as digits."""
    return _word_pattern().sub(lambda match: str(number_words()[match.group().lower()]), text)


_DIGITS = {c: v for v, c in enumerate("〇一二三四五六七八九")} | {"零": 0, "两": 2, "兩": 2, "壱": 1, "弐": 2, "参": 3}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_HAN = regex.compile("[" + "".join(_DIGITS) + "".join(_UNITS) + "]+")
# A numeral character inside a common word ("一起", "十分", "统一") is no number.
_HAN_WORDS = regex.compile(
    "一起|一致|一定|一样|一般|一些|一直|一下|统一|唯一|万一|第一|一緒|一人|一度|一番|一方|十分|同一|每一|任何一"
)


def read_han(numeral: str) -> int:
    """Return the value of a Chinese or Japanese numeral: positional (一〇) or with units (十二, 一百零五)."""
    if not any(character in _UNITS for character in numeral):
        return int("".join(str(_DIGITS[character]) for character in numeral))
    total, digit = 0, None
    for character in numeral:
        if character in _UNITS:
            total += (1 if digit is None or digit == 0 else digit) * _UNITS[character]
            digit = None
        else:
            digit = _DIGITS[character]
    return total + (digit or 0)


def replace_han(text: str) -> str:
    """Write Chinese and Japanese numerals as digits."""
    kept = _HAN_WORDS.sub(lambda match: "\u3000" * len(match.group()), text)
    return _HAN.sub(lambda match: str(read_han(match.group())), kept)


def to_digits(text: str) -> str:
    """Write every number of the text in ASCII digits: number words, Han numerals, and the digits of other scripts."""
    ascii_digits = regex.sub(r"\p{Nd}", lambda match: str(int(match.group())), text)
    return replace_han(replace_words(ascii_digits))
