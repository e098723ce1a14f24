"""Replies read strictly: a number with its state, an agreed limit, an utterance. Nothing is assumed to be 0."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

import regex

from polyloom.methods.commons.numbers import to_digits

State = Literal["ok", "clamped", "coerced", "ambiguous", "invalid", "truncated", "missing"]
READABLE: frozenset[State] = frozenset({"ok", "clamped", "coerced"})
MARKERS = (
    "final answer",
    "answer",
    "so, the answer is",
    "the answer is",
    "答案",
    "回答",
    "答え",
    "答",
    "antwort",
    "réponse",
    "reponse",
    "respuesta",
    "resposta",
    "risposta",
    "ответ",
)
_MARKER = regex.compile(r"(?:" + "|".join(MARKERS) + r")\s*:|so,? the answer is", regex.I)
_THINK = regex.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", regex.S | regex.I)
_OPEN_THINK = regex.compile(r"<think(?:ing)?>", regex.I)
_FENCE = regex.compile(r"```[a-z]*\s*(.*?)```", regex.S | regex.I)
_BOXED = regex.compile(r"\\boxed\s*\{([^{}]*)\}")
_THOUSANDS = regex.compile(r"(?<![\d.,])\d{1,3}(?:[,'’\u00a0\u202f ]\d{3})+(?![\d])")
_NUMBER = regex.compile(r"(?<![\p{L}\d.])[-−–]?\s?\d+(?:[.,]\d+)?(?![\d])|(?<=\p{L})\d+(?:[.,]\d+)?")
_JOINED = regex.compile(
    r"\d(?:\.\d+)?\s*[^\s\d.,;:-]{0,8}\s*(?:-|~|–|—|〜|～|to|bis|à|a|至|到|から|or|oder|ou|o)\s*\d"
    r"|(?:between|zwischen|entre)\s+\d+\D{0,12}?\s(?:and|und|et|y)\s+\d",
    regex.I,
)


class Quantity(NamedTuple):
    """A number that was read, or not: `value` is None unless the state is readable; `raw` is what stood there."""

    value: int | None
    status: State
    raw: float | None = None


def clean(text: str) -> str | None:
    """Normalise a reply (NFKC), drop complete thinking blocks and markdown; None if a thinking block stays open."""
    text = _THINK.sub(" ", unicodedata.normalize("NFKC", text))
    if _OPEN_THINK.search(text):
        return None
    return text


def _plain(text: str) -> str:
    text = _BOXED.sub(r"\1", text)
    return regex.sub(r"[*_`$]", "", text)


def quantity(text: str, low: int, high: int) -> Quantity:
    """Read the number that a reply ends with.

    Args:
        text: the whole reply.
        low: least number allowed.
        high: largest number allowed; a larger one is clamped and its raw value kept.

    Returns:
        The number and its state.
    """
    cleaned = clean(text)
    if cleaned is None:
        return Quantity(None, "truncated")
    from_json = _json_number(cleaned)
    if from_json is not None:
        return _bounded(from_json, low, high)
    plain = _plain(cleaned)
    markers = list(_MARKER.finditer(plain))
    if markers:
        return _read_tail(plain[markers[-1].end() :], low, high)
    numbers = _numbers(to_digits(plain))
    if len(numbers) != 1:
        return Quantity(None, "missing")
    found = _bounded(numbers[0], low, high)
    return found._replace(status="coerced") if found.status == "ok" else found


def _json_number(text: str) -> float | None:
    fenced = _FENCE.findall(text)
    for candidate in (fenced[-1] if fenced else "", text):
        try:
            value = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            for key in ("quantity", "amount", "answer"):
                found = value.get(key)
                if isinstance(found, str):
                    numbers = _numbers(to_digits(found))
                    found = numbers[0] if len(numbers) == 1 else None
                if isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < 1e15:
                    return float(found)
    return None


def _numbers(text: str) -> list[float]:
    text = _THOUSANDS.sub(lambda match: regex.sub(r"\D", "", match.group()), text)
    return [
        float(regex.sub(r"\s", "", one).replace(",", ".").translate({0x2212: "-", 0x2013: "-"}))
        for one in (match.group() for match in _NUMBER.finditer(text))
    ]


def _read_tail(tail: str, low: int, high: int) -> Quantity:
    digits = _THOUSANDS.sub(lambda match: regex.sub(r"\D", "", match.group()), to_digits(tail))
    first = _NUMBER.search(digits)
    if first is None:
        return Quantity(None, "missing")
    joined = _JOINED.search(digits)
    if joined is not None and joined.start() <= first.end():
        return Quantity(None, "ambiguous")
    return _bounded(_numbers(digits)[0], low, high)


def _bounded(value: float, low: int, high: int) -> Quantity:
    if value < 0 or value < low:
        return Quantity(None, "invalid", value)
    if value > high:
        return Quantity(high, "clamped", value)
    if value != int(value):
        return Quantity(int(value), "coerced", value)
    return Quantity(int(value), "ok", value)


_NO_LIMIT = regex.compile(
    r"\bn\s*/\s*a\b|\bnone\b|\bno\s+(?:\w+\s+)?(?:agreement|limit|consensus)|\bnot\s+agree|\bkein\w*|\bniemand|"
    r"\baucun\w*|pas d['’]accord|\bningun[oa]?\b|\bningún\b|\bsin acuerdo|なし|無し|合意.{0,6}(?:ない|ません)|"
    r"无|没有|未达成|沒有|無",
    regex.I,
)
_TOTAL = regex.compile(
    r"(?:in total|total of|altogether|combined|insgesamt|gesamt|au total|en total|total|合計|全体|总共|总计|共计|一共)",
    regex.I,
)
_EACH = regex.compile(
    r"(?:each|per (?:person|agent|head|fisherman|farmer|\w+er)|apiece|pro kopf|pro person|jede|jeder|chacun|par personne|"  # noqa: E501
    r"cada uno|por persona|cada|每人|各自|每位|一人あたり|それぞれ|各)",
    regex.I,
)


def agreed_limit(text: str) -> int | None:
    """Read the limit per person that a group agreed on.

    Args:
        text: the reply; the words for "none" win over any digits around them, and a number "in total" does not count
            where one per person is given.

    Returns:
        A whole number, or None for no agreement or no number.
    """
    cleaned = clean(text)
    if cleaned is None:
        return None
    plain = _plain(cleaned)
    markers = list(_MARKER.finditer(plain))
    tail = plain[markers[-1].end() :] if markers else plain
    if _NO_LIMIT.search(tail):
        return None
    from_json = _json_number(cleaned)
    if from_json is not None:
        return int(from_json) if from_json >= 0 else None
    clauses = [
        clause for clause in regex.split(r"[;。；\n]|[.,](?=\s|$)|、|，|\(|\)", to_digits(tail)) if _numbers(clause)
    ]
    each = [clause for clause in clauses if _EACH.search(clause)]
    if not each and len(clauses) > 1:
        each = [clause for clause in clauses if not _TOTAL.search(clause)]
    chosen = each or clauses
    numbers = _numbers(_without_totals(chosen[0])) if chosen else []
    return int(numbers[0]) if numbers and numbers[0] >= 0 else None


def _without_totals(clause: str) -> str:
    """Drop "N in total" from a clause that has another number."""
    kept = regex.sub(
        r"\d+(?:[.,]\d+)?\s*\p{L}*\s*(?:in total|altogether|combined|insgesamt|au total|en total)",
        "",
        clause,
        flags=regex.I,
    )
    kept = regex.sub(
        r"(?:in total|total of|insgesamt|au total|en total|合計|总共|总计|共计|一共)\D{0,6}\d+", "", kept, flags=regex.I
    )
    return kept if _numbers(kept) else clause


class Utterance(NamedTuple):
    """What somebody said, whether it ends the talk (None: not said), and who is to speak next (None: nobody known)."""

    text: str
    ended: bool | None
    next: str | None


_RESPONSE = r"response|antwort|beitrag|réponse|reponse|respuesta|发言|發言|回复|回答|発言"
_FINISHED = (
    r"conversation (?:conclusion|finished|concluded)[^:\n]*|gespräch beendet[^:\n]*|conversation terminée[^:\n]*|"
)
_FINISHED += (
    r"conversación terminada[^:\n]*|对话结束[^:\n]*|対話終了[^:\n]*|会話終了[^:\n]*|conversation conclusion by \w+"
)
_NEXT = r"next speaker|nächste(?:r)? (?:sprecher(?:in)?|person)|prochain(?:e)? (?:orateur|personne)|siguiente (?:orador|persona)|"  # noqa: E501
_NEXT += r"下一位发言者|下一位|次の発言者|次の話し手"
_FIELDS = regex.compile(rf"^\s*(?:(?P<r>{_RESPONSE})|(?P<f>{_FINISHED})|(?P<n>{_NEXT}))\s*:", regex.I | regex.M)
_YES = regex.compile(r"^\W*(?:yes|ja|oui|sí|si|是|はい|对|true)\b|^\W*(?:是|はい|对)", regex.I)
_NO = regex.compile(r"^\W*(?:no|nein|non|false)\b|^\W*(?:否|不|いいえ|没)", regex.I)


def utterance(text: str, participants: Sequence[str] = ()) -> Utterance:
    """Read a turn of a conversation: what is said, whether the talk is over, who is next.

    Args:
        text: the reply. The label of what is said may be missing; brackets around values and quotes around the
            whole are dropped.
        participants: names of those who may speak next; another name gives None.
    """
    cleaned = clean(text)
    plain = regex.sub(r"\*\*|`", "", cleaned if cleaned is not None else "")
    found = list(_FIELDS.finditer(plain))
    parts: dict[str, str] = {}
    for place, match in enumerate(found):
        end = found[place + 1].start() if place + 1 < len(found) else len(plain)
        kind = next(name for name in ("r", "f", "n") if match.group(name))
        if kind not in parts:
            parts[kind] = plain[match.end() : end].strip()
    said = parts["r"] if "r" in parts else plain[: found[0].start()] if found else plain
    return Utterance(_unwrap(said), _yes_or_no(parts.get("f")), _speaker(parts.get("n"), participants))


def _unwrap(text: str) -> str:
    text = text.strip()
    pairs = {'"': '"', "“": "”", "「": "」", "«": "»", "[": "]", "'": "'", "„": "“"}
    while len(text) > 1 and pairs.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return text


def _yes_or_no(text: str | None) -> bool | None:
    if not text:
        return None
    value = _unwrap(text.splitlines()[0])
    return True if _YES.search(value) else False if _NO.search(value) else None


def _speaker(text: str | None, participants: Sequence[str]) -> str | None:
    if not text:
        return None
    said = _unwrap(text.splitlines()[0]).casefold()
    exact = [name for name in participants if said == name.casefold()]
    inside = [
        name for name in participants if regex.search(rf"(?<!\p{{L}}){regex.escape(name.casefold())}(?!\p{{Ll}})", said)
    ]
    found = exact or inside
    return found[0] if found else None
