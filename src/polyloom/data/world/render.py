"""From a frame to a text: sentence templates filled with CLDR phrases, with exact spans, slots and tokens."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from polyloom.core.errors import UserError
from polyloom.data.world.frames import Frame
from polyloom.data.world.lexicon import NAME_TAGS, Lexicon, Piece
from polyloom.data.world.templates import IMPLIED, ROWS, Row


class Span(NamedTuple):
    """Characters `text[start:end]`, what they are and the value that they say."""

    start: int
    end: int
    tag: str
    value: str


class Word(NamedTuple):
    """One word of a template; `head` counts from 1, 0 is the root; `slot` is the letter of a slot or empty."""

    form: str
    upos: str
    head: int
    deprel: str
    glued: bool
    slot: str


@dataclass(frozen=True, slots=True)
class Text:
    """A rendered meaning.

    Attributes:
        text: the characters.
        spans: the smallest tagged runs (a day, a number, a name), in order, not overlapping.
        slots: the filled slots of a sentence (a whole date, a whole price), in order.
        places: for each word of the template its (start, end); empty for phrases.
        words: the template's words; empty for phrases.
    """

    text: str
    spans: tuple[Span, ...]
    slots: tuple[Span, ...] = ()
    places: tuple[tuple[int, int], ...] = ()
    words: tuple[Word, ...] = ()


class Token(NamedTuple):
    """A token and where it stands."""

    text: str
    start: int
    end: int


def is_sign(form: str) -> bool:
    """Tell whether a word is punctuation or a symbol alone."""
    return all(unicodedata.category(char)[0] in "PS" for char in form)


def _word(item: str, root: int) -> Word:
    glued = item.startswith("+") and len(item) > 1
    form, *rest = item.removeprefix("+").split("|") if glued else item.split("|")
    if not rest:
        if not is_sign(form):
            raise ValueError(f"The template word {form!r} has no part of speech.")
        return Word(form, "PUNCT", root, "punct", glued, "")
    upos, head = rest[0], int(rest[1])
    deprel = rest[2] if len(rest) > 2 else "root" if head == 0 else IMPLIED[upos]
    if head == 0:
        deprel = "root"
    slot = form[1:-1] if form.startswith("{") else ""
    return Word(form, upos, head, deprel, glued, slot)


@functools.cache
def compiled(template: str) -> tuple[Word, ...]:
    """Read an annotated template.

    Args:
        template: words as described in `templates`.

    Returns:
        Its words.
    """
    items = template.split()
    root = next((i for i, item in enumerate(items, 1) if "|0" in item and item.split("|")[2] == "0"), 1)
    return tuple(_word(item, root) for item in items)


def _noun(label: str, head: int, deprel: str, at: int) -> list[str]:
    """Annotate a label: its first word is the head, the others are flat; `at` is the number of its first word."""
    first, *others = label.split()
    return [f"{first}|NOUN|{head}|{deprel}", *(f"{word}|NOUN|{at}|flat" for word in others)]


def _label_fact(row: Row, subject: str, label: str, slot: str) -> str:
    """Annotate "SUBJECT - label: VALUE.", the paraphrase that every language has; subject is a slot or the anaphor."""
    start = [subject + "|PROPN|0"] if subject.startswith("{") else _noun(subject, 0, "root", 1)
    at = len(start) + 2
    noun = _noun(label, 1, "appos", at)
    return " ".join(
        [
            *start,
            f"{row.marks.dash}|PUNCT|{at}|punct",
            *noun,
            f"{row.marks.colon}|PUNCT|{at}|punct",
            f"{slot}|PROPN|{at}|appos",
            row.marks.stop,
        ]
    )


_FACT_SLOTS = {
    "P38": ("{T}", "{C}"),
    "P37": ("{T}", "{L}"),
    "P361": ("{T}", "{R}"),
    "P30": ("{T}", "{R}"),
    "P17": ("{X}", "{T}"),
}
_FACT_ROW = {"P38": "currency", "P37": "language", "P361": "region", "P30": "region", "P17": "city"}
_OBJECT_KIND = {"P38": "currency", "P37": "language", "P361": "region", "P30": "region", "P17": "territory"}


def _conjoined(row: Row, parts: Sequence[tuple[str, str]], start: list[str], root: int) -> list[str]:
    """Annotate "label: {Q}; label: {M}." behind `start`, each label a conjunct of the root (or the root itself)."""
    items = list(start)
    for i, (label, slot) in enumerate(parts):
        at = len(items) + 1 + (i > 0)
        if i:
            items.append(f"{row.marks.clause}|PUNCT|{at}|punct")
        items += _noun(label, 0 if at == root else root, "root" if at == root else "conj", at)
        items += [f"{row.marks.colon}|PUNCT|{at}|punct", f"{slot}|NOUN|{at}|appos"]
    return [*items, f"{row.marks.stop}|PUNCT|{root}|punct"]


@functools.cache
def template(language: str, kind: str, variant: int = 0) -> tuple[Word, ...]:
    """Return a sentence template.

    Args:
        language: one of the template languages.
        kind: a relation (P38 ...), "diary", "summary", "ask", "history", "history open", or "this P38" for the anaphor.
        variant: 0 the full sentence, 1 the paraphrase with labels.

    Raises:
        UserError: the language has no templates.
    """
    row = ROWS.get(language)
    if row is None:
        raise UserError(
            f"There are no sentence templates for {language!r} yet.",
            hint="Phrase tasks work; add a row in templates.py.",
        )
    labels, marks = row.labels, row.marks
    label_of = {
        "P38": labels.currency,
        "P37": labels.language,
        "P361": labels.region,
        "P30": labels.region,
        "P17": labels.country,
    }
    if kind.startswith("this "):
        relation = kind[5:]
        return compiled(_label_fact(row, labels.this, label_of[relation], _FACT_SLOTS[relation][1]))
    if kind in _FACT_SLOTS:
        subject, value = _FACT_SLOTS[kind]
        return compiled(
            getattr(row, _FACT_ROW[kind]) if variant == 0 else _label_fact(row, subject, label_of[kind], value)
        )
    if kind.startswith("ask"):
        relation = kind[4:] or "P38"
        if relation == "P38" and variant == 0:
            return compiled(row.ask)
        noun = _noun(label_of[relation], 0, "root", 1)
        return compiled(" ".join([*noun, marks.colon, f"{_FACT_SLOTS[relation][0]}|PROPN|1|appos", marks.question]))
    if kind == "diary":
        if variant == 0:
            return compiled(row.diary)
        parts = [(labels.arrival, "{X}"), (labels.distance, "{Q}"), (labels.cost, "{M}")]
        return compiled(" ".join(_conjoined(row, parts, ["{D}|NOUN|3|obl", f"{marks.dash}|PUNCT|3|punct"], 3)))
    if kind == "summary":
        if variant == 0:
            return compiled(row.summary)
        noun = _noun(labels.total, 0, "root", 5)
        start = [
            "{A}|NOUN|5|obl",
            f"{marks.dash}|PUNCT|3|punct",
            "{B}|NOUN|1|conj",
            f"{marks.colon}|PUNCT|5|punct",
            *noun,
        ]
        return compiled(
            " ".join(
                [
                    *start,
                    "{Q}|NOUN|5|appos",
                    f"{marks.clause}|PUNCT|{len(start) + 3}|punct",
                    "{S}|PROPN|5|conj",
                    marks.stop,
                ]
            )
        )
    if kind in ("history", "history open"):
        noun = _noun(labels.currency, 1, "appos", 3)
        start = [
            "{T}|PROPN|0",
            f"{marks.dash}|PUNCT|3|punct",
            *noun,
            f"{marks.colon}|PUNCT|3|punct",
            "{C}|PROPN|3|appos",
        ]
        at = len(start) + 2
        time = [f"(|PUNCT|{at}|punct", "+{A}|NOUN|3|nmod", f"{marks.dash}|PUNCT|{at}|punct"]
        time += [f"{{B}}|NOUN|{at}|conj"] if kind == "history" else []
        return compiled(" ".join([*start, *time, f"+)|PUNCT|{at}|punct", f"{marks.stop}|PUNCT|1|punct"]))
    raise UserError(f"{kind!r} is not a sentence kind.")


def joined(pieces: Sequence[Piece]) -> Text:
    """Join pieces to a text with spans."""
    spans, at, parts = [], 0, []
    for piece in pieces:
        end = at + len(piece.text)
        if piece.tag and piece.tag != "LINK":
            spans.append(Span(at, end, piece.tag, piece.value))
        parts.append(piece.text)
        at = end
    return Text("".join(parts), tuple(spans))


def fill(words: Sequence[Word], fillers: Mapping[str, tuple[list[Piece], str, str]], by_character: bool) -> Text:
    """Fill a template.

    Args:
        words: the template.
        fillers: slot letter -> (pieces, tag of the slot, canonical value).
        by_character: write no blanks between words.
    """
    parts: list[str] = []
    spans: list[Span] = []
    slots: list[Span] = []
    places: list[tuple[int, int]] = []
    at = 0
    for i, word in enumerate(words):
        if i and not word.glued and not by_character:
            parts.append(" ")
            at += 1
        start = at
        if word.slot:
            pieces, tag, value = fillers[word.slot]
            for piece in pieces:
                end = at + len(piece.text)
                if piece.tag and piece.tag != "LINK":
                    spans.append(Span(at, end, piece.tag, piece.value))
                parts.append(piece.text)
                at = end
            slots.append(Span(start, at, tag, value))
        else:
            parts.append(word.form)
            at += len(word.form)
        places.append((start, at))
    return Text("".join(parts), tuple(spans), tuple(slots), tuple(places), tuple(words))


Filler = tuple[list[Piece], str, str]


def _name_filler(lexicon: Lexicon, kind: str, code: str, alias: Mapping[str, str]) -> Filler:
    name = alias.get(code) or lexicon.name(kind, code)
    return [Piece(name, NAME_TAGS[kind], code)], kind.upper(), code


def _frame_filler(lexicon: Lexicon, frame: Frame, style: str = "") -> Filler:
    return lexicon.phrase(frame, style), frame.kind.upper(), frame.iso()


def fact_fillers(lexicon: Lexicon, args: tuple[Any, ...], alias: Mapping[str, str]) -> dict[str, Filler]:
    """Return the two slots of a fact: subject first."""
    relation, subject, value = args
    first, second = (slot[1] for slot in _FACT_SLOTS[relation])
    return {
        first: _name_filler(lexicon, "city" if relation == "P17" else "territory", subject, alias),
        second: _name_filler(lexicon, _OBJECT_KIND[relation], value, alias),
    }


def sentence(
    lexicon: Lexicon, frame: Frame, variant: int = 0, style: str = "", alias: Mapping[str, str] | None = None
) -> Text:
    """Say a sentence frame.

    Args:
        lexicon: the language.
        frame: kind "fact" (relation, subject, object), "this" (the same with an anaphor for the subject), "question"
            (relation, subject), "history" (territory, currency, start, end or None), "diary" (date, city, measure,
            money), "summary" (start, end, city codes, measure) or "refusal" (number of the wording,).
        variant: 0 the full sentence, 1 the paraphrase with labels.
        style: date style of "diary", "summary" and "history".
        alias: code -> other name to use.
    """
    args: tuple[Any, ...] = frame.args
    other = alias or {}
    language = lexicon.language
    if frame.kind == "refusal":
        if language not in ROWS:
            template(language, "P38")
        return Text(ROWS[language].refuse[args[0] % 3], ())
    match frame.kind:
        case "fact":
            words, fillers = template(language, args[0], variant), fact_fillers(lexicon, args, other)
        case "this":
            words, fillers = template(language, f"this {args[0]}"), fact_fillers(lexicon, args, other)
        case "question":
            words = template(language, f"ask {args[0]}", variant)
            kind = "city" if args[0] == "P17" else "territory"
            fillers = {_FACT_SLOTS[args[0]][0][1]: _name_filler(lexicon, kind, args[1], other)}
        case "history":
            words = template(language, "history" if args[3] else "history open")
            fillers = {
                "T": _name_filler(lexicon, "territory", args[0], other),
                "C": _name_filler(lexicon, "currency", args[1], other),
            }
            fillers["A"] = _frame_filler(lexicon, args[2], style or "long")
            if args[3]:
                fillers["B"] = _frame_filler(lexicon, args[3], style or "long")
        case "diary":
            words = template(language, "diary", variant)
            fillers = {
                "D": _frame_filler(lexicon, args[0], style),
                "X": _name_filler(lexicon, "city", args[1], other),
                "Q": _frame_filler(lexicon, args[2]),
                "M": _frame_filler(lexicon, args[3]),
            }
        case "summary":
            words = template(language, "summary", variant)
            cities = Frame("list", ("and", tuple(Frame("name", ("city", code)) for code in args[2])))
            fillers = {
                "A": _frame_filler(lexicon, args[0], style or "long"),
                "B": _frame_filler(lexicon, args[1], style or "long"),
                "S": _frame_filler(lexicon, cities if len(args[2]) > 1 else cities.args[1][0]),
                "Q": _frame_filler(lexicon, args[3]),
            }
        case _:
            return joined(lexicon.phrase(frame, style))
    return fill(words, fillers, lexicon.by_character)


def line(lexicon: Lexicon, parts: Sequence[tuple[str, list[Piece]]], end: str = "stop") -> Text:
    """Write "label: value; label: value." from labels (may be empty) and pieces."""
    marks = ROWS[lexicon.language].marks
    blank = "" if lexicon.by_character else " "

    def sign(mark: str) -> str:
        return mark.removeprefix("+") if mark.startswith("+") or not blank else blank + mark

    pieces: list[Piece] = []
    for i, (label, value) in enumerate(parts):
        if i:
            pieces.append(Piece(sign(marks.clause) + blank))
        if label:
            pieces.append(Piece(label + (sign(marks.colon) + blank if value else "")))
        pieces += value
    pieces.append(Piece(sign(getattr(marks, end))))
    return joined(pieces)


@functools.cache
def _token_patterns() -> tuple[Any, Any]:
    import regex

    words = regex.compile(r"[\p{L}\p{M}\p{N}\u200c\u200d]+(?:['’.\-][\p{L}\p{M}\p{N}\u200c\u200d]+)*|\S")
    characters = regex.compile(r"\p{N}+|\S[\p{M}\u200c\u200d]*")
    return words, characters


def tokens(text: Text, by_character: bool) -> list[Token]:
    """Split at blanks and punctuation (by character in languages without blanks), and at every border of a span.

    The cut at span borders is needed where suffixes and particles stick to names (Korean, Japanese, Turkish).

    Args:
        text: a rendered text.
        by_character: as `Lexicon.by_character`.
    """
    pattern = _token_patterns()[1 if by_character else 0]
    borders = sorted({border for span in (*text.spans, *text.slots) for border in (span.start, span.end)})
    result: list[Token] = []
    cut = 0
    for match in pattern.finditer(text.text):
        start, end = match.span()
        while cut < len(borders) and borders[cut] <= start:
            cut += 1
        at = cut
        while at < len(borders) and borders[at] < end:
            result.append(Token(text.text[start : borders[at]], start, borders[at]))
            start = borders[at]
            at += 1
        result.append(Token(text.text[start:end], start, end))
    return result


def bio(text: Text, found: Sequence[Token]) -> list[str]:
    """Return one BIO tag per token from the smallest spans."""
    tags: list[str] = []
    at = 0
    for token in found:
        while at < len(text.spans) and text.spans[at].end <= token.start:
            at += 1
        span = text.spans[at] if at < len(text.spans) else None
        if span is None or token.start < span.start:
            tags.append("O")
        else:
            tags.append(("B-" if token.start == span.start else "I-") + span.tag)
    return tags


def token_range(found: Sequence[Token], start: int, end: int) -> tuple[int, int]:
    """Return the half-open range of tokens that lie in characters [start, end)."""
    inside = [i for i, token in enumerate(found) if token.start >= start and token.end <= end]
    return inside[0], inside[-1] + 1
