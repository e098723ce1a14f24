"""Marks around mentions: put in, read back tolerantly from a translation, cleaned of signs and particles."""

from __future__ import annotations

import html
import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from polyloom.methods.docre.data import Document, Mention

Status = Literal["ok", "repaired", "missing", "duplicated", "empty"]
PARTICLES = {
    "ja": (
        "から", "まで", "より", "には", "では", "とは", "にも", "でも",
        "は", "が", "を", "に", "で", "と", "の", "も", "へ", "や",
    ),
    "ko": (
        "에서", "에게", "으로", "까지", "부터",
        "은", "는", "이", "가", "을", "를", "에", "의", "도", "로", "와", "과",
    ),
    "tr": ("'da", "'de", "'ta", "'te", "'dan", "'den", "'nın", "'nin", "'ın", "'in", "'ya", "'ye", "'yı", "'yi"),
}  # fmt: skip
_TRIM = ' \t\n,.;:!?、。，．；：！？·"“”'
_OPENERS, _CLOSERS = "([{（「『【《〈", ")]}）」』】》〉"
TAG = re.compile(r"[<＜]\s*(/?)\s*[eEｅ](?:\s+id\s*=\s*[\"'“”„«»＂]?\s*([0-9]+\.[0-9]+)\s*[\"'“”„«»＂]?)?\s*[>＞]")
_TITLE_QUOTES = {"『": "』", "「": "」"}


@dataclass(frozen=True)
class Found:
    """A mention after translation: which, how it fared, and its characters in the target sentence."""

    entity: int
    mention: int
    status: Status
    start: int = 0
    end: int = 0


def layers(document: Document, sentence: int) -> list[list[tuple[int, int, Mention]]]:
    """Return the sentence's mentions (entity, mention number, mention) in layers of which no two cross or repeat."""
    every = [
        (i, j, m) for i, entity in enumerate(document.entities) for j, m in enumerate(entity) if m.sentence == sentence
    ]
    result: list[list[tuple[int, int, Mention]]] = []
    for one in sorted(every, key=lambda item: (item[2].start, -item[2].end)):
        for layer in result:
            if not any(_crosses(one[2], other[2]) for other in layer):
                layer.append(one)
                break
        else:
            result.append([one])
    return result or [[]]


def _crosses(one: Mention, other: Mention) -> bool:
    a, b = sorted((one, other), key=lambda m: (m.start, m.end))
    return a.start < b.start < a.end < b.end


def mark(document: Document, sentence: int, layer: Sequence[tuple[int, int, Mention]]) -> str:
    """Return the sentence's text with `<e id="i.j">` around each mention of the layer, outermost first."""
    tokens = document.sentences[sentence]
    opening: dict[int, list[tuple[int, str]]] = {}
    closing: dict[int, int] = {}
    for i, j, mention in layer:
        if mention.end > mention.start:
            opening.setdefault(mention.start, []).append((-mention.end, f'<e id="{i}.{j}">'))
            closing[mention.end] = closing.get(mention.end, 0) + 1
    pieces = []
    for position, token in enumerate(tokens):
        pieces.append("</e>" * closing.get(position, 0))
        if position:
            pieces.append(document.joiner)
        pieces += [tag for _, tag in sorted(opening.get(position, ()), key=lambda item: item[0])]
        pieces.append(html.escape(token, quote=False))
    return "".join(pieces) + "</e>" * closing.get(len(tokens), 0)


def parse(text: str) -> tuple[str, list[tuple[str, int, int, bool]]]:
    """Read a marked translation tolerantly.

    Full-width angle brackets, spaces inside tags, changed quotes and escaped tags are read; a tag that is never closed
    ends at the next opening one or at the end of the sentence.

    Returns:
        The plain text, and (id, start, end, repaired) of each mark in it.
    """
    if "<" not in text and "＜" not in text and "&lt;" in text:
        text = html.unescape(text)
    plain: list[str] = []
    length = at = 0
    stack: list[tuple[str, int]] = []
    found: list[tuple[str, int, int, bool]] = []
    num_closers = sum(bool(tag.group(1)) for tag in TAG.finditer(text))
    num_openers = sum(bool(tag.group(2)) for tag in TAG.finditer(text))
    for tag in TAG.finditer(text):
        piece = html.unescape(text[at : tag.start()])
        plain.append(piece)
        length += len(piece)
        at = tag.end()
        strange = tag.group(0) not in ("</e>", f'<e id="{tag.group(2)}">')
        if tag.group(1):
            if stack:
                name, start = stack.pop()
                found.append((name, start, length, strange))
        elif tag.group(2):
            if stack and num_closers < num_openers:
                name, start = stack.pop()
                found.append((name, start, length, True))
            stack.append((tag.group(2), length))
    plain.append(html.unescape(text[at:]))
    whole = "".join(plain)
    found += [(name, start, len(whole), True) for name, start in stack]
    return whole, found


def clean_span(text: str, start: int, end: int, language: str, source: str = "") -> tuple[int, int]:
    """Return the span without surrounding punctuation, unbalanced brackets and trailing particles, never empty.

    Args:
        text: the target sentence.
        start: first character.
        end: one past the last.
        language: whose particles are stripped (ja, ko, tr); others keep theirs.
        source: the mention before translation; signs that it begins or ends with itself are kept.
    """
    while start < end and text[start] in _TRIM + _CLOSERS and text[start] != source[:1]:
        start += 1
    while (
        start < end
        and text[end - 1] != source[-1:]
        and (
            text[end - 1] in _TRIM
            or text[end - 1] in _OPENERS
            or (text[end - 1] in _CLOSERS and _unbalanced(text[start:end]))
        )
    ):
        end -= 1
    if start < end and text[start] in _OPENERS and text[start] != source[:1] and _unbalanced(text[start:end]):
        start += 1
    closer = _TITLE_QUOTES.get(text[start : start + 1], "")
    changed = True
    while changed:
        changed = False
        for particle in PARTICLES.get(language, ()):
            stem = text[start:end].removesuffix(particle)
            if stem and closer in stem and len(stem) < end - start and _is_particle(stem, particle, language):
                end = start + len(stem)
                changed = True
                break
    return start, end


def _is_particle(stem: str, particle: str, language: str) -> bool:
    """Say whether the ending is a particle and no part of the name: in Japanese it follows another script."""
    if language != "ja":
        return len(stem) > 1
    return not "\u3040" <= stem[-1] <= "\u309f" or len(stem) > 3


def _unbalanced(text: str) -> bool:
    return sum(c in _OPENERS for c in text) != sum(c in _CLOSERS for c in text)


def match_key(text: str) -> str:
    """Return text as the fall-back compares it: NFKC, no spaces."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def tokenise(text: str) -> list[str]:
    """Split text where the kind of character changes; signs, and characters of scripts without spaces, stand alone."""
    return re.findall(r"[぀-ゟ]|[゠-ヿー]+|[㐀-鿿豈-﫿]|[^\W_]+?(?=[぀-鿿]|\b)|[^\w\s]|_", text)


def choose(
    marks: Sequence[tuple[str, int, int, bool]], entity: int, mention: int, text: str, language: str, source: str
) -> Found:
    """Return how a mention fared: of several marks the longest is taken."""
    own = [one for one in marks if one[0] == f"{entity}.{mention}"]
    if not own:
        return Found(entity, mention, "missing")
    _, start, end, repaired = max(own, key=lambda one: one[2] - one[1])
    low, high = clean_span(text, start, end, language, source)
    if low >= high:
        return Found(entity, mention, "empty")
    status: Status = "duplicated" if len(own) > 1 else "repaired" if repaired or (low, high) != (start, end) else "ok"
    return Found(entity, mention, status, low, high)


def split_at(text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[str], dict[int, int]]:
    """Tokenise text so that every span begins and ends at a token.

    Returns:
        The tokens, and the token number at each span's edge.
    """
    cuts = sorted({0, len(text), *(edge for span in spans for edge in span)})
    tokens: list[str] = []
    edges = {0: 0}
    for low, high in itertools.pairwise(cuts):
        edges[low] = len(tokens)
        tokens += tokenise(text[low:high]) or ([text[low:high].strip()] if text[low:high].strip() else [])
    edges[len(text)] = len(tokens)
    return tokens, edges
