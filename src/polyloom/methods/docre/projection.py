"""Translation with marked mentions: mark, translate, parse what came back, clean, fall back, filter, count."""

from __future__ import annotations

import html
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from polyloom.core.errors import UserError
from polyloom.core.seeding import python_random
from polyloom.methods.docre.data import Document, Mention, Triple, find_name

Translator = Callable[[Sequence[str]], list[str]]
Status = Literal["ok", "repaired", "missing", "duplicated", "empty"]
MAX_MISSING = 0.2
PARTICLES = {
    "ja": (
        "から",
        "まで",
        "より",
        "には",
        "では",
        "とは",
        "にも",
        "でも",
        "は",
        "が",
        "を",
        "に",
        "で",
        "と",
        "の",
        "も",
        "へ",
        "や",
    ),
    "ko": (
        "에서",
        "에게",
        "으로",
        "까지",
        "부터",
        "은",
        "는",
        "이",
        "가",
        "을",
        "를",
        "에",
        "의",
        "도",
        "로",
        "와",
        "과",
    ),
    "tr": ("'da", "'de", "'ta", "'te", "'dan", "'den", "'nın", "'nin", "'ın", "'in", "'ya", "'ye", "'yı", "'yi"),
}
_TRIM = ' \t\n,.;:!?、。，．；：！？·"“”'
_OPENERS, _CLOSERS = "([{（「『【《〈", ")]}）」』】》〉"
_TAG = re.compile(r"[<＜]\s*(/?)\s*[eEｅ](?:\s+id\s*=\s*[\"'“”„«»＂]?\s*([0-9]+\.[0-9]+)\s*[\"'“”„«»＂]?)?\s*[>＞]")
_TITLE_QUOTES = {"『": "』", "「": "」"}


@dataclass(frozen=True)
class Found:
    """A mention after translation: which, how it fared, and its characters in the target sentence."""

    entity: int
    mention: int
    status: Status
    start: int = 0
    end: int = 0


@dataclass
class Projection:
    """Projected documents and what happened on the way.

    Attributes:
        documents: those that were kept.
        statuses: mentions by status.
        missing: first places of missing mentions.
        dropped: documents by the reason why they were dropped.
        num_dropped_entities: entities that lost all mentions.
        num_dropped_triples: triples of dropped entities.
    """

    documents: list[Document] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    missing: list[tuple[str, str, str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    num_dropped_entities: int = 0
    num_dropped_triples: int = 0


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
    num_closers = sum(bool(tag.group(1)) for tag in _TAG.finditer(text))
    num_openers = sum(bool(tag.group(2)) for tag in _TAG.finditer(text))
    for tag in _TAG.finditer(text):
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


def project(
    documents: Sequence[Document],
    translate: Translator,
    language: str,
    *,
    min_entities: float = 0.8,
    max_missing: float = 1.0,
) -> Projection:
    """Translate documents with their mentions marked; labels and evidence are carried over.

    Args:
        documents: to be projected.
        translate: marked sentences to marked sentences, in their order.
        language: of the translation.
        min_entities: a document that keeps a smaller share of its entities is dropped.
        max_missing: share of lost marks at which to stop.

    Raises:
        UserError: the translator gave another number of sentences, or lost too many marks.
    """
    result = Projection()
    sources: list[str] = []
    where: list[tuple[int, int, int]] = []
    for number, document in enumerate(documents):
        for sentence in range(len(document.sentences)):
            for depth, layer in enumerate(layers(document, sentence)):
                sources.append(mark(document, sentence, layer))
                where.append((number, sentence, depth))
    targets = translate(sources)
    if len(targets) != len(sources):
        raise UserError(f"gave {len(targets)} sentences for {len(sources)}.", where="translator")
    answers = dict(zip(where, targets, strict=True))
    for number, document in enumerate(documents):
        _project_one(document, number, answers, language, min_entities, result)
    total = sum(result.statuses.values())
    if total and result.statuses["missing"] / total > max_missing:
        told = ", ".join(f"{count} {status}" for status, count in result.statuses.most_common())
        raise UserError(f"lost too many marks: {told}.", where="translator", hint="Try another, or --drop-rate 0.")
    return result


def _project_one(
    document: Document,
    number: int,
    answers: dict[tuple[int, int, int], str],
    language: str,
    min_entities: float,
    result: Projection,
) -> None:
    kept: dict[int, list[Mention]] = {}
    sentences: list[tuple[str, ...]] = []
    lost: list[tuple[int, int, Mention, str]] = []
    for sentence in range(len(document.sentences)):
        parts = [parse(answers[number, sentence, depth]) for depth in range(len(layers(document, sentence)))]
        text = parts[0][0]
        spans = {}
        for depth, layer in enumerate(layers(document, sentence)):
            same = parts[depth][0] == text
            marks = parts[depth][1] if same else []
            for i, j, mention in layer:
                found = choose(marks, i, j, text, language, mention.name)
                result.statuses[found.status] += 1
                if found.end > found.start:
                    spans[i, j] = found
                else:
                    lost.append((i, j, mention, text))
        tokens, edges = split_at(text, [(f.start, f.end) for f in spans.values()])
        sentences.append(tuple(tokens))
        for (i, j), found in spans.items():
            source = document.entities[i][j]
            origin = {"sent_id": source.sentence, "pos": [source.start, source.end], "status": found.status}
            start, end = edges[found.start], edges[found.end]
            name = text[found.start : found.end]
            extra = {**source.extra, "origin": origin}
            kept.setdefault(i, []).append(Mention(name, sentence, start, end, source.type, extra))
    _fall_back(document, lost, kept, sentences, result)
    _finish(document, kept, sentences, min_entities, result)


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


def _fall_back(
    document: Document,
    lost: Sequence[tuple[int, int, Mention, str]],
    kept: dict[int, list[Mention]],
    sentences: list[tuple[str, ...]],
    result: Projection,
) -> None:
    """Find a lost mention by what the entity's other mentions became, where the sentence holds that text."""
    for i, _, mention, text in lost:
        names = sorted({m.name for m in kept.get(i, ())}, key=len, reverse=True)
        for name in names:
            found = find_name(sentences[mention.sentence], match_key(name))
            taken = {(m.start, m.end) for m in kept[i] if m.sentence == mention.sentence}
            if found and found not in taken:
                origin = {"sent_id": mention.sentence, "pos": [mention.start, mention.end], "status": "matched"}
                kept[i].append(Mention(name, mention.sentence, *found, mention.type, {"origin": origin}))
                result.statuses["missing"] -= 1
                result.statuses["matched"] += 1
                break
        else:
            result.missing.append((document.title, mention.name, text))


def _finish(
    document: Document,
    kept: dict[int, list[Mention]],
    sentences: Sequence[tuple[str, ...]],
    min_entities: float,
    result: Projection,
) -> None:
    renumbered = {entity: i for i, entity in enumerate(sorted(kept))}
    lost_entities = len(document.entities) - len(kept)
    triples = [t for t in document.triples or () if t.head in renumbered and t.tail in renumbered]
    if document.entities and len(kept) < min_entities * len(document.entities):
        result.dropped["too few entities"] += 1
        return
    result.num_dropped_entities += lost_entities
    result.num_dropped_triples += len(document.triples or ()) - len(triples)
    result.documents.append(
        replace(
            document,
            sentences=tuple(sentences),
            entities=tuple(tuple(kept[entity]) for entity in sorted(kept)),
            triples=None
            if document.triples is None
            else tuple(Triple(renumbered[t.head], t.relation, renumbered[t.tail], t.evidence) for t in triples),
            extra={**document.extra, "origin": {"title": document.title}},
        )
    )


def identity(sentences: Sequence[str]) -> list[str]:
    """Translate into the same language: the test that nothing is lost on the way."""
    return list(sentences)


def glosser(dictionary: dict[str, str], joiner: str = " ") -> Translator:
    """Return a translator that looks up the longest known phrase at each place and keeps tags and unknown words.

    Args:
        dictionary: source phrase to target phrase.
        joiner: what to put between target words: nothing for languages without spaces.
    """
    longest = max((len(phrase.split()) for phrase in dictionary), default=1)
    lowered = {phrase.lower(): target for phrase, target in dictionary.items()}

    def gloss(text: str) -> str:
        words, out, at = text.split(), [], 0
        while at < len(words):
            for size in range(min(longest, len(words) - at), 0, -1):
                phrase = " ".join(words[at : at + size]).lower()
                if phrase in lowered or size == 1:
                    out.append(lowered.get(phrase, words[at]))
                    at += size
                    break
        return joiner.join(out)

    def translate(sentences: Sequence[str]) -> list[str]:
        result = []
        for sentence in sentences:
            pieces, at = [], 0
            for tag in _TAG.finditer(sentence):
                pieces += [html.escape(gloss(html.unescape(sentence[at : tag.start()])), quote=False), tag.group(0)]
                at = tag.end()
            pieces.append(html.escape(gloss(html.unescape(sentence[at:])), quote=False))
            result.append(joiner.join(piece for piece in pieces if piece))
        return result

    return translate


def noisy(translate: Translator, *, drop_rate: float, swallow_rate: float, seed: int, language: str) -> Translator:
    """Return a translator that loses marks and lets others swallow a particle, at known rates.

    Args:
        translate: the translator to disturb.
        drop_rate: share of marks that are lost.
        swallow_rate: share of marks that take in a particle after them.
        seed: of the noise.
        language: whose particles are swallowed.
    """
    random = python_random(seed, "translator noise")
    particle = PARTICLES.get(language, ("",))[-1]

    def disturbed(sentences: Sequence[str]) -> list[str]:
        return [
            _disturb(sentence, random.random, drop_rate, swallow_rate, particle) for sentence in translate(sentences)
        ]

    return disturbed


def _disturb(sentence: str, draw: Callable[[], float], drop_rate: float, swallow_rate: float, particle: str) -> str:
    pieces: list[str] = []
    stack: list[bool] = []
    at = 0
    for tag in _TAG.finditer(sentence):
        pieces.append(sentence[at : tag.start()])
        at = tag.end()
        if not tag.group(1):
            stack.append(draw() < drop_rate)
            pieces.append("" if stack[-1] else tag.group(0))
        elif stack and not stack.pop():
            pieces.append((particle if draw() < swallow_rate else "") + tag.group(0))
    return "".join(pieces) + sentence[at:]


def exact_mentions(source: Sequence[Document], projected: Sequence[Document]) -> int:
    """Count mentions of which a projected one in the same sentence has the same text, spaces aside."""
    by_title = {document.title: document for document in projected}
    count = 0
    for document in source:
        other = by_title.get(document.title)
        if other is None:
            continue
        spans = {(m.sentence, *m.extra["origin"]["pos"], _covered(other, m)) for e in other.entities for m in e}
        own = [(m.sentence, m.start, m.end, _covered(document, m)) for e in document.entities for m in e]
        count += sum(one in spans for one in own)
    return count


def _covered(document: Document, mention: Mention) -> str:
    return "".join("".join(document.sentences[mention.sentence][mention.start : mention.end]).split())
