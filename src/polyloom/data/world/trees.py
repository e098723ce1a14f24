"""Dependency trees of rendered sentences: UD-like by construction from the annotated templates, not a treebank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from polyloom.data.world.render import Span, Text, is_sign, tokens

_FIELDS = {"DAY", "YEAR", "WEEKDAY", "MONTH", "HOUR", "MINUTE", "SECOND"}
_UPOS = {
    "NUM": "NUM",
    "DAY": "NUM",
    "YEAR": "NUM",
    "LOC": "PROPN",
    "LANG": "PROPN",
    "CUR": "NOUN",
    "UNIT": "NOUN",
    "WEEKDAY": "NOUN",
    "MONTH": "NOUN",
}


class Node(NamedTuple):
    """A word of a tree: head counts from 1 within the sentence, 0 is the root."""

    form: str
    upos: str
    head: int
    deprel: str
    space_after: bool


class _Part(NamedTuple):
    form: str
    start: int
    end: int
    span: Span | None


def _parts(text: Text, start: int, end: int) -> list[_Part]:
    """Split the interior of a slot into words; in no language by single characters."""
    inner = [span for span in text.spans if start <= span.start and span.end <= end]
    local = tuple(Span(span.start - start, span.end - start, span.tag, span.value) for span in inner)
    result = []
    for token in tokens(Text(text.text[start:end], local), by_character=False):
        span = next(
            (s for s, shifted in zip(inner, local, strict=True) if shifted.start <= token.start < shifted.end), None
        )
        result.append(_Part(token.text, start + token.start, start + token.end, span))
    return result


def _upos(part: _Part) -> str:
    if is_sign(part.form):
        return "PUNCT"
    if part.form.replace(",", "").replace(".", "").isdigit():
        return "NUM"
    return _UPOS.get(part.span.tag, "NOUN") if part.span else "NOUN"


Arc = tuple[int, str]


def _date_arcs(parts: Sequence[_Part]) -> list[Arc]:
    """Let the month head the date; a character behind a number (年 월) heads that number, other words attach to their
    field."""
    fields = [i for i, part in enumerate(parts) if part.span and part.span.tag in _FIELDS]
    months = [i for i in fields if parts[i].span.tag == "MONTH"]  # type: ignore[union-attr]
    top = months[0] if months else fields[0]
    unit_of: dict[int, int] = {}
    for i in fields:
        follows = i + 1 < len(parts) and parts[i + 1].span is None and not is_sign(parts[i + 1].form)
        if follows and parts[i + 1].start == parts[i].end and parts[i].form.isdigit():
            unit_of[i] = i + 1
    head = unit_of.get(top, top)
    units = set(unit_of.values())
    relation = {"DAY": "nummod", "YEAR": "nummod", "WEEKDAY": "appos"}
    arcs: list[Arc] = []
    for i, part in enumerate(parts):
        if i == head:
            arcs.append((-1, ""))
        elif i in unit_of:
            arcs.append((unit_of[i], "nummod"))
        elif i in units:
            arcs.append((head, "nmod"))
        elif i in fields:
            first = i == next(j for j in fields if parts[j].span == part.span)
            arcs.append((head, relation.get(part.span.tag, "flat")) if first else (i - 1, "flat"))  # type: ignore[union-attr]
        elif is_sign(part.form):
            arcs.append((head, "punct"))
        else:
            later = next((j for j in fields if j > i), None)
            earlier = next((j for j in reversed(fields) if j < i), None)
            clf = later is None and earlier is not None
            arcs.append(
                (earlier, "clf") if clf and earlier is not None else (later if later is not None else head, "case")
            )
    return arcs


def _quantity_arcs(parts: Sequence[_Part]) -> list[Arc]:
    """Let the unit's or currency's first word head the number."""
    nouns = [
        i for i, part in enumerate(parts) if part.span and part.span.tag in ("UNIT", "CUR") and not is_sign(part.form)
    ]
    numbers = [i for i, part in enumerate(parts) if part.span and part.span.tag == "NUM"]
    head = nouns[0] if nouns else 0
    arcs: list[Arc] = []
    for i, part in enumerate(parts):
        if i == head:
            arcs.append((-1, ""))
        elif numbers and i in numbers:
            arcs.append(
                (head, "nummod") if i == numbers[0] else (numbers[0], "punct" if is_sign(part.form) else "flat")
            )
        else:
            arcs.append((head, "punct" if is_sign(part.form) else "flat"))
    return arcs


def _list_arcs(parts: Sequence[_Part]) -> list[Arc]:
    """Let the first item head the others as conjuncts; signs and conjunctions belong to the item that follows."""
    starts = [i for i, part in enumerate(parts) if part.span and (i == 0 or parts[i - 1].span != part.span)]
    arcs: list[Arc] = []
    for i, part in enumerate(parts):
        if i == starts[0]:
            arcs.append((-1, ""))
        elif i in starts:
            arcs.append((starts[0], "conj"))
        elif part.span:
            own = max(s for s in starts if s <= i)
            arcs.append((own, "punct" if is_sign(part.form) else "flat"))
        else:
            following = next((s for s in starts if s > i), starts[0])
            arcs.append((following, "punct" if is_sign(part.form) else "cc"))
    return arcs


def _flat_arcs(parts: Sequence[_Part]) -> list[Arc]:
    head = next((i for i, part in enumerate(parts) if not is_sign(part.form)), 0)
    return [
        (-1, "") if i == head else (head, "punct" if is_sign(part.form) else "flat") for i, part in enumerate(parts)
    ]


def _arcs(tag: str, parts: Sequence[_Part]) -> list[Arc]:
    if tag == "DATE":
        return _date_arcs(parts)
    if tag in ("MEASURE", "MONEY"):
        return _quantity_arcs(parts)
    return _list_arcs(parts) if tag == "LIST" else _flat_arcs(parts)


def tree(text: Text) -> list[Node]:
    """Return the tree of a sentence.

    Args:
        text: a sentence rendered from a template.

    Returns:
        Nodes in order: one root, no cycle, projective.
    """
    slots = iter(text.slots)
    groups: list[tuple[list[_Part], list[Arc]]] = []
    for word, (start, end) in zip(text.words, text.places, strict=True):
        if word.slot:
            parts = _parts(text, start, end)
            groups.append((parts, _arcs(next(slots).tag, parts)))
        else:
            groups.append(([_Part(word.form, start, end, None)], [(-1, "")]))
    first = [0]
    for parts, _ in groups:
        first.append(first[-1] + len(parts))
    tops = [first[i] + next(j for j, arc in enumerate(arcs) if arc[0] < 0) for i, (_, arcs) in enumerate(groups)]
    nodes = []
    for i, (word, (parts, arcs)) in enumerate(zip(text.words, groups, strict=True)):
        for part, (head, relation) in zip(parts, arcs, strict=True):
            if head < 0:
                above = tops[word.head - 1] + 1 if word.head else 0
                upos, relation = word.upos, word.deprel
            else:
                above, upos = first[i] + head + 1, _upos(part)
            nodes.append(
                Node(part.form, upos, above, relation, part.end < len(text.text) and text.text[part.end] == " ")
            )
    return nodes


def conllu(record: Mapping[str, Any]) -> list[str]:
    """Return the lines of one CoNLL-U sentence, with the empty line behind it."""
    lines = [f"# sent_id = {record['sent_id']}", f"# text = {record['text']}", f"# lang = {record['language']}"]
    rows = zip(record["tokens"], record["upos"], record["heads"], record["deprels"], record["space_after"], strict=True)
    for i, (form, upos, head, relation, space) in enumerate(rows, 1):
        lines.append(
            "\t".join((str(i), form, "_", upos, "_", "_", str(head), relation, "_", "_" if space else "SpaceAfter=No"))
        )
    return [*lines, ""]
