"""Translation with marked mentions: mark, translate, parse what came back, clean, fall back, filter, count."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import mean, pstdev

from polyloom.core.errors import UserError
from polyloom.methods.docre.data import Document, Mention, Triple, find_name
from polyloom.methods.docre.marks import PARTICLES, choose, clean_span, layers, mark, match_key, parse, split_at

Translator = Callable[[Sequence[str]], list[str]]
Place = tuple[int, int, str]
Aligner = Callable[[Sequence[str], Sequence[str]], set[tuple[int, int]]]
Identifier = Callable[[Sequence[str]], list[bool]]
MAX_MISSING = 0.2
LEAST_FILLED = 0.6
MAX_DEVIATIONS = 3.0
# A length ratio within a tenth of the mean is never odd, however alike the others are.
LEAST_DEVIATION = 0.1
# How a mention whose mark was lost may be found again.
FOUND_AGAIN = ("matched", "aligned", "asked again")


@dataclass
class Projection:
    """Projected documents and what happened on the way.

    Attributes:
        documents: those that were kept.
        fates: title, type and status of each mention.
        missing: document, name and translated sentence of missing mentions.
        dropped: documents by the reason why they were dropped.
        num_dropped_entities: entities that lost all mentions.
        num_dropped_triples: triples of dropped entities.
    """

    documents: list[Document] = field(default_factory=list)
    fates: list[tuple[str, str, str]] = field(default_factory=list)
    missing: list[tuple[str, str, str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    num_dropped_entities: int = 0
    num_dropped_triples: int = 0

    @property
    def statuses(self) -> Counter[str]:
        """How many mentions have each status."""
        return Counter(status for _, _, status in self.fates)

    @property
    def lost_share(self) -> float:
        """The share of marks that the translator lost, those found again by other means included."""
        lost = sum(self.statuses[status] for status in ("missing", "empty", *FOUND_AGAIN))
        return lost / max(1, len(self.fates))


def project(
    documents: Sequence[Document],
    translate: Translator,
    language: str,
    *,
    min_entities: float = 0.8,
    max_missing: float = 1.0,
    align: Aligner | None = None,
    ask_again: bool = False,
    is_target: Identifier | None = None,
) -> Projection:
    """Translate documents with their mentions marked; labels and evidence are carried over.

    Args:
        documents: to be projected.
        translate: marked sentences to marked sentences, in their order.
        language: of the translation.
        min_entities: a document that keeps a smaller share of its entities is dropped.
        max_missing: share of lost marks at which to stop.
        align: links between the tokens of a sentence and of its translation, for mentions whose marks were lost.
        ask_again: translate such mentions alone and look for the answers in the sentences.
        is_target: says of texts whether they are in the language; documents that are not are dropped.

    Raises:
        UserError: the translator gave another number of sentences, or lost too many marks.
    """
    result = Projection()
    where = [
        (number, sentence, depth, layer)
        for number, document in enumerate(documents)
        for sentence in range(len(document.sentences))
        for depth, layer in enumerate(layers(document, sentence))
    ]
    targets = translate([mark(documents[number], sentence, layer) for number, sentence, _, layer in where])
    if len(targets) != len(where):
        raise UserError(f"gave {len(targets)} sentences for {len(where)}.", where="translator")
    answers = {place[:3]: target for place, target in zip(where, targets, strict=True)}
    drafts = [_draft(document, number, answers, language) for number, document in enumerate(documents)]
    _find_again(drafts, translate if ask_again else None, align, language)
    for draft in drafts:
        _count(draft, result)
    if result.lost_share > max_missing:
        told = ", ".join(f"{count} {status}" for status, count in result.statuses.most_common())
        raise UserError(f"lost too many marks: {told}.", where="translator", hint="Try another, or --drop-rate 0.")
    reasons = _reasons(drafts, min_entities, is_target)
    for draft, reason in zip(drafts, reasons, strict=True):
        if reason:
            result.dropped[reason] += 1
        else:
            _finish(draft, result)
    return result


@dataclass
class _Draft:
    """A document on its way: translated tokens, mentions found so far, and what was lost."""

    document: Document
    sentences: list[tuple[str, ...]] = field(default_factory=list)
    kept: dict[int, list[Mention]] = field(default_factory=dict)
    lost: list[tuple[int, int, Mention, str]] = field(default_factory=list)
    fates: dict[tuple[int, int], str] = field(default_factory=dict)

    def put(self, entity: int, number: int, mention: Mention, start: int, end: int, status: str) -> None:
        """Add a mention that was found in the translation."""
        origin = {"sent_id": mention.sentence, "pos": [mention.start, mention.end], "status": status}
        tokens = self.sentences[mention.sentence]
        joiner = "" if any(_is_unspaced(token) for token in tokens[start:end]) else " "
        name = joiner.join(tokens[start:end])
        found = Mention(name, mention.sentence, start, end, mention.type, {**mention.extra, "origin": origin})
        self.kept.setdefault(entity, []).append(found)
        self.fates[entity, number] = status

    def is_free(self, sentence: int, start: int, end: int) -> bool:
        """Say whether no mention has these tokens."""
        spans = [(m.start, m.end) for mentions in self.kept.values() for m in mentions if m.sentence == sentence]
        return (start, end) not in spans


def _is_unspaced(token: str) -> bool:
    return any("\u3040" <= c <= "\u9fff" or "\u0e00" <= c <= "\u0eff" for c in token)


def _draft(document: Document, number: int, answers: dict[tuple[int, int, int], str], language: str) -> _Draft:
    draft = _Draft(document)
    for sentence in range(len(document.sentences)):
        every = layers(document, sentence)
        parts = [parse(answers[number, sentence, depth]) for depth in range(len(every))]
        text = parts[0][0]
        spans = {}
        for (whole, marks), layer in zip(parts, every, strict=True):
            for i, j, mention in layer:
                found = choose(marks if whole == text else [], i, j, text, language, mention.name)
                draft.fates[i, j] = found.status
                if found.end > found.start:
                    spans[i, j] = found
                else:
                    draft.lost.append((i, j, mention, text))
        tokens, edges = split_at(text, [(f.start, f.end) for f in spans.values()])
        draft.sentences.append(tuple(tokens))
        for (i, j), found in spans.items():
            source = document.entities[i][j]
            origin = {"sent_id": source.sentence, "pos": [source.start, source.end], "status": found.status}
            name, extra = text[found.start : found.end], {**source.extra, "origin": origin}
            own = Mention(name, sentence, edges[found.start], edges[found.end], source.type, extra)
            draft.kept.setdefault(i, []).append(own)
    return draft


def _find_again(drafts: Sequence[_Draft], translate: Translator | None, align: Aligner | None, language: str) -> None:
    """Look for mentions whose marks were lost: by name, by alignment, by translating them alone."""
    for draft in drafts:
        _try(draft, _by_name)
        if align is not None:
            _try(draft, partial(_by_alignment, align, language))
    left = [mention.name for draft in drafts for _, _, mention, _ in draft.lost] if translate else []
    if translate and left:
        words = dict(zip(left, translate([html.escape(name, quote=False) for name in left]), strict=True))
        for draft in drafts:
            _try(draft, partial(_by_answer, words, language))


def _try(draft: _Draft, look: Callable[[_Draft, int, Mention], Place | None]) -> None:
    waiting, draft.lost = draft.lost, []
    for entity, number, mention, text in waiting:
        found = look(draft, entity, mention)
        if found:
            draft.put(entity, number, mention, *found)
        else:
            draft.lost.append((entity, number, mention, text))


def _by_name(draft: _Draft, entity: int, mention: Mention) -> Place | None:
    """Look for what the entity's other mentions became."""
    names = sorted({m.name for m in draft.kept.get(entity, ())}, key=len, reverse=True)
    return _first(draft, names, mention.sentence, "matched")


def _by_answer(words: dict[str, str], language: str, draft: _Draft, _: int, mention: Mention) -> Place | None:
    """Look for the mention's own translation."""
    text = parse(words[mention.name])[0].strip()
    start, end = clean_span(text, 0, len(text), language, mention.name)
    return _first(draft, [text[start:end]], mention.sentence, "asked again")


def _first(draft: _Draft, names: Sequence[str], sentence: int, status: str) -> Place | None:
    for name in names:
        found = find_name(draft.sentences[sentence], match_key(name))
        if found and draft.is_free(sentence, *found):
            return (*found, status)
    return None


def _by_alignment(align: Aligner, language: str, draft: _Draft, _: int, mention: Mention) -> Place | None:
    """Take the stretch of tokens that the mention's tokens are linked with, if most of it is linked."""
    tokens = draft.sentences[mention.sentence]
    links = align(draft.document.sentences[mention.sentence], tokens)
    linked = sorted({j for i, j in links if mention.start <= i < mention.end})
    while len(linked) > 1 and tokens[linked[-1]] in PARTICLES.get(language, ()):
        linked.pop()
    if not linked or len(linked) < LEAST_FILLED * (linked[-1] + 1 - linked[0]):
        return None
    start, end = linked[0], linked[-1] + 1
    return (start, end, "aligned") if draft.is_free(mention.sentence, start, end) else None


def _count(draft: _Draft, result: Projection) -> None:
    title = draft.document.title
    for (i, j), status in sorted(draft.fates.items()):
        result.fates.append((title, draft.document.entities[i][j].type, status))
    result.missing += [(title, mention.name, text) for _, _, mention, text in draft.lost]


def _reasons(drafts: Sequence[_Draft], min_entities: float, is_target: Identifier | None) -> list[str]:
    """Say why a document is dropped: too few entities, an odd length, another language; empty for those kept."""
    texts = ["".join("".join(tokens) for tokens in draft.sentences) for draft in drafts]
    sources = ["".join("".join(tokens) for tokens in draft.document.sentences) for draft in drafts]
    ratios = [len(a) / max(1, len(b)) for a, b in zip(texts, sources, strict=True)]
    middle, spread = (mean(ratios), pstdev(ratios)) if ratios else (0.0, 0.0)
    right = (
        is_target([" ".join(" ".join(tokens) for tokens in draft.sentences) for draft in drafts]) if is_target else []
    )
    reasons = []
    for number, (draft, ratio) in enumerate(zip(drafts, ratios, strict=True)):
        if draft.document.entities and len(draft.kept) < min_entities * len(draft.document.entities):
            reasons.append("too few entities")
        elif abs(ratio - middle) > max(MAX_DEVIATIONS * spread, LEAST_DEVIATION * middle):
            reasons.append("odd length")
        else:
            reasons.append("" if not right or right[number] else "another language")
    return reasons


def _finish(draft: _Draft, result: Projection) -> None:
    document, kept = draft.document, draft.kept
    renumbered = {entity: i for i, entity in enumerate(sorted(kept))}
    triples = [t for t in document.triples or () if t.head in renumbered and t.tail in renumbered]
    result.num_dropped_entities += len(document.entities) - len(kept)
    result.num_dropped_triples += len(document.triples or ()) - len(triples)
    result.documents.append(
        replace(
            document,
            sentences=tuple(draft.sentences),
            entities=tuple(tuple(kept[entity]) for entity in sorted(kept)),
            triples=None
            if document.triples is None
            else tuple(Triple(renumbered[t.head], t.relation, renumbered[t.tail], t.evidence) for t in triples),
            extra={**document.extra, "origin": {"title": document.title}},
        )
    )


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
