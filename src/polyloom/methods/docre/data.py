"""Documents with entities, relations and evidence: DocRED's JSON and its kin, read, checked, repaired and written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError, closest
from polyloom.core.files import read_json, write_json
from polyloom.metrics.relations import Fact

WORLD = "world"
MENTION_KEYS = ("name", "sent_id", "pos", "type")
DOCUMENT_KEYS = ("title", "sents", "vertexSet", "labels")
MAX_EXAMPLES = 5
_UNSPACED = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f]")


@dataclass(frozen=True)
class Mention:
    """One mention: its text, its sentence, its half-open token span in it, its type, and keys that we do not know."""

    name: str
    sentence: int
    start: int
    end: int
    type: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Triple:
    """A relation between two entities (numbers in the document) with the sentences that show it."""

    head: int
    relation: str
    tail: int
    evidence: tuple[int, ...] = ()


@dataclass(frozen=True)
class Document:
    """A document; `triples` is None where it is not labelled."""

    title: str
    sentences: tuple[tuple[str, ...], ...]
    entities: tuple[tuple[Mention, ...], ...]
    triples: tuple[Triple, ...] | None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def joiner(self) -> str:
        """What stands between two tokens: nothing where many letters are of a script without spaces."""
        text = "".join(token for sentence in self.sentences for token in sentence)
        return "" if len(_UNSPACED.findall(text)) > 0.3 * max(1, len(text)) else " "

    def fact(self, triple: Triple) -> Fact:
        """Return the triple as the scorer knows it."""
        return (self.title, triple.head, triple.relation, triple.tail)

    def entity_type(self, entity: int) -> str:
        """Return the type that most of the entity's mentions have; of equals the first."""
        return Counter(mention.type for mention in self.entities[entity]).most_common(1)[0][0]

    def names(self, entity: int) -> set[str]:
        """Return the entity's names."""
        return {mention.name for mention in self.entities[entity]}

    def canonical(self, entity: int) -> str:
        """Return the entity's longest name; of equals the first."""
        return max((mention.name for mention in self.entities[entity]), key=len)

    def pairs(self) -> Iterable[tuple[int, int]]:
        """Return all ordered pairs of two entities."""
        count = range(len(self.entities))
        return ((head, tail) for head in count for tail in count if head != tail)

    def first_sentence(self, entity: int) -> int:
        """Return the sentence of the entity's first mention in the text."""
        return min(mention.sentence for mention in self.entities[entity])

    def text(self) -> tuple[str, list[list[tuple[int, int]]]]:
        """Return the joined text, and the character span of every token of every sentence."""
        joiner, pieces, spans, position = self.joiner, [], [], 0
        for sentence in self.sentences:
            row = []
            for token in sentence:
                row.append((position, position + len(token)))
                pieces.append(token)
                position += len(token) + len(joiner)
            spans.append(row)
        return joiner.join(pieces), spans

    def sentence_text(self, sentence: int) -> str:
        """Return one sentence joined."""
        return self.joiner.join(self.sentences[sentence])


@dataclass
class Defects:
    """What was found wrong in a file: how often each kind, with the first places of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, place: str) -> None:
        """Count one defect."""
        self.counts[kind] += 1
        if len(rows := self.examples.setdefault(kind, [])) < MAX_EXAMPLES:
            rows.append(place)

    def merge(self, other: Defects) -> None:
        """Count another file's defects too."""
        self.counts.update(other.counts)
        for kind, places in other.examples.items():
            rows = self.examples.setdefault(kind, [])
            rows += places[: MAX_EXAMPLES - len(rows)]


# What a strict reader refuses; the other kinds are remarks on what is legal.
REMARKS = ("name_differs_by_spaces", "overlapping_mentions", "unlabelled", "under_two_entities", "mixed_types")


def read_documents(
    path: Path, *, relations: Mapping[str, str] | None = None, strict: bool = False
) -> tuple[list[Document], Defects]:
    """Read DocRED, Re-DocRED, JacRED or the hub's variant of them; repair what can be repaired and count it.

    Args:
        path: a JSON array of documents.
        relations: the schema; None takes every relation that occurs.
        strict: refuse a file with defects instead of repairing them.

    Returns:
        The documents and the defects.

    Raises:
        UserError: no array, a missing or misshapen key, a relation outside the schema, or any defect when strict.
    """
    values = read_json(path)
    if not isinstance(values, list):
        raise UserError("holds no JSON array of documents.", where=str(path), hint="Give a DocRED-style file.")
    defects = Defects()
    documents = [parse_document(value, i, defects, str(path), relations) for i, value in enumerate(values)]
    for title, count in Counter(document.title for document in documents).items():
        if count > 1:
            defects.add("duplicate_titles", title)
    if strict:
        refuse_defects(defects, str(path))
    return documents, defects


def refuse_defects(defects: Defects, where: str) -> None:
    """Raise when there is any defect beyond remarks.

    Raises:
        UserError: with the counts and first places.
    """
    found = {kind: count for kind, count in defects.counts.items() if kind not in REMARKS}
    if found:
        told = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(found.items()))
        places = "; ".join(defects.examples[min(found)])
        raise UserError(f"has defects: {told} (first: {places}).", where=where, hint="Leave out --strict to repair.")


def parse_document(
    value: Any, number: int, defects: Defects, where: str, relations: Mapping[str, str] | None = None
) -> Document:
    """Build one document from its JSON value, with repairs.

    Raises:
        UserError: as `read_documents`; document number, title and key are named.
    """
    title = value.get("title", "") if isinstance(value, dict) else ""
    place = f"{where}: document {number} {title!r}"
    if not isinstance(value, dict):
        raise UserError("is no object.", where=place)
    for key in DOCUMENT_KEYS[:3]:
        if key not in value:
            raise UserError(f"lacks the key {key!r}.", where=place, hint="A document has title, sents, vertexSet.")
    try:
        sentences = tuple(tuple(str(token) for token in sentence) for sentence in value["sents"])
        entities = tuple(
            tuple(_mention(mention) for mention in entity if mention is not None) for entity in value["vertexSet"]
        )
        triples = _triples(value.get("labels"))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"is misshapen ({type(error).__name__}: {error}).", where=place) from error
    extra = {key: item for key, item in value.items() if key not in DOCUMENT_KEYS}
    document = Document(str(title), sentences, entities, triples, extra)
    return _repair(document, f"{number} {title!r}", defects, place, relations)


def _mention(value: Mapping[str, Any]) -> Mention:
    start, end = value["pos"]
    extra = {key: item for key, item in value.items() if key not in MENTION_KEYS}
    return Mention(str(value["name"]), int(value["sent_id"]), int(start), int(end), str(value["type"]), extra)


def _triples(labels: Any) -> tuple[Triple, ...] | None:
    if labels is None:
        return None
    if isinstance(labels, dict):  # the hub's variant: parallel lists
        rows = zip(labels["head"], labels["relation_id"], labels["tail"], labels["evidence"], strict=True)
        return tuple(Triple(int(h), str(r), int(t), tuple(map(int, evidence))) for h, r, t, evidence in rows)
    return tuple(
        Triple(int(row["h"]), str(row["r"]), int(row["t"]), tuple(map(int, row.get("evidence") or ())))
        for row in labels
    )


def _repair(
    document: Document, place: str, defects: Defects, where: str, relations: Mapping[str, str] | None
) -> Document:
    renumbered: dict[int, int] = {}
    entities: list[tuple[Mention, ...]] = []
    for number, mentions in enumerate(document.entities):
        kept = [_repair_mention(mention, document, place, defects) for mention in mentions]
        if found := tuple(mention for mention in kept if mention is not None):
            renumbered[number] = len(entities)
            entities.append(found)
            if len({mention.type for mention in found}) > 1:
                defects.add("mixed_types", f"{place} entity {number}")
        else:
            defects.add("entities_without_mention", f"{place} entity {number}")
    if _count_overlaps(entities):
        defects.counts["overlapping_mentions"] += _count_overlaps(entities) - 1
        defects.add("overlapping_mentions", place)
    triples = None
    if document.triples is None:
        defects.add("unlabelled", place)
    else:
        triples = _repair_triples(document, renumbered, place, defects, where, relations)
    if len(entities) < 2:
        defects.add("under_two_entities", place)
    return replace(document, entities=tuple(entities), triples=triples)


def _repair_mention(mention: Mention, document: Document, place: str, defects: Defects) -> Mention | None:
    spot = f"{place} mention {mention.name!r}"
    if not 0 <= mention.sentence < len(document.sentences):
        defects.add("sentence_out_of_range", spot)
        return None
    tokens = document.sentences[mention.sentence]
    name = "".join(mention.name.split())
    if not 0 <= mention.start <= mention.end <= len(tokens) or mention.start == mention.end:
        empty = mention.start == mention.end and 0 <= mention.start <= len(tokens)
        defects.add("zero_length_spans" if empty else "spans_out_of_range", spot)
        found = find_name(tokens, name)
        return replace(mention, start=found[0], end=found[1]) if found else None
    covered = "".join("".join(tokens[mention.start : mention.end]).split())
    if covered == name:
        if document.joiner.join(tokens[mention.start : mention.end]) != mention.name and document.joiner == "":
            defects.add("name_differs_by_spaces", spot)
        return mention
    if mention.end < len(tokens) and covered + "".join(tokens[mention.end].split()) == name:
        defects.add("spans_one_token_short", spot)
        return replace(mention, end=mention.end + 1)
    return mention


def find_name(tokens: Sequence[str], name: str) -> tuple[int, int] | None:
    """Return the first token span that spells `name` (given without spaces), or None."""
    starts = [0, *accumulate(len("".join(token.split())) for token in tokens)]
    text = "".join("".join(token.split()) for token in tokens)
    at = text.find(name) if name else -1
    while at >= 0:
        if at in starts and at + len(name) in starts:
            return starts.index(at), starts.index(at + len(name))
        at = text.find(name, at + 1)
    return None


def _count_overlaps(entities: Sequence[Sequence[Mention]]) -> int:
    spans = sorted((mention.sentence, mention.start, mention.end) for entity in entities for mention in entity)
    return sum(first[0] == second[0] and second[1] < first[2] for first, second in pairwise(spans))


def _repair_triples(
    document: Document,
    renumbered: Mapping[int, int],
    place: str,
    defects: Defects,
    where: str,
    relations: Mapping[str, str] | None,
) -> tuple[Triple, ...]:
    kept: dict[tuple[int, str, int], Triple] = {}
    for triple in document.triples or ():
        spot = f"{place} triple ({triple.head}, {triple.relation}, {triple.tail})"
        if relations is not None and triple.relation not in relations:
            hint = closest(triple.relation, relations)
            raise UserError(f"has the relation {triple.relation!r}, which the schema lacks.", where=where, hint=hint)
        if triple.head not in renumbered or triple.tail not in renumbered:
            defects.add("entities_out_of_range", spot)
            continue
        if triple.head == triple.tail:
            defects.add("head_is_tail", spot)
            continue
        evidence = tuple(sorted({s for s in triple.evidence if 0 <= s < len(document.sentences)}))
        if len(evidence) < len(set(triple.evidence)):
            defects.add("evidence_out_of_range", spot)
        repaired = Triple(renumbered[triple.head], triple.relation, renumbered[triple.tail], evidence)
        key = (repaired.head, repaired.relation, repaired.tail)
        if key in kept:
            defects.add("duplicate_triples", spot)
        else:
            kept[key] = repaired
    return tuple(kept.values())


def document_json(document: Document) -> dict[str, Any]:
    """Return a document as DocRED's JSON value; keys that we do not know are kept."""
    value: dict[str, Any] = {
        "title": document.title,
        "sents": [list(sentence) for sentence in document.sentences],
        "vertexSet": [
            [
                {"name": m.name, "sent_id": m.sentence, "pos": [m.start, m.end], "type": m.type, **m.extra}
                for m in entity
            ]
            for entity in document.entities
        ],
    }
    if document.triples is not None:
        value["labels"] = [
            {"h": t.head, "t": t.tail, "r": t.relation, "evidence": list(t.evidence)} for t in document.triples
        ]
    return value | dict(document.extra)


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Write documents as DocRED's JSON."""
    write_json(path, [document_json(document) for document in documents])


def totals(documents: Sequence[Document]) -> dict[str, int]:
    """Count documents, sentences, tokens, entities, mentions, triples, pairs and evidence ids."""
    triples = [triple for document in documents for triple in document.triples or ()]
    sizes = [len(document.entities) for document in documents]
    return {
        "num_documents": len(documents),
        "num_sentences": sum(len(document.sentences) for document in documents),
        "num_tokens": sum(len(sentence) for document in documents for sentence in document.sentences),
        "num_entities": sum(sizes),
        "num_mentions": sum(len(entity) for document in documents for entity in document.entities),
        "num_triples": len(triples),
        "num_pairs": sum(size * (size - 1) for size in sizes),
        "num_positive_pairs": sum(len({(t.head, t.tail) for t in d.triples or ()}) for d in documents),
        "num_evidence": sum(len(triple.evidence) for triple in triples),
    }


def evidence_by_rule(document: Document, head: int, tail: int) -> tuple[int, ...]:
    """Return the sentences of the first mentions of head and tail: the rule that evidence scores stand beside."""
    return tuple(sorted({document.first_sentence(head), document.first_sentence(tail)}))


def sentence_distance(document: Document, head: int, tail: int) -> int:
    """Return the least distance in sentences between a mention of the head and one of the tail."""
    tails = [mention.sentence for mention in document.entities[tail]]
    return min(abs(mention.sentence - other) for mention in document.entities[head] for other in tails)


def gold_facts(documents: Iterable[Document]) -> dict[Fact, tuple[int, ...]]:
    """Return all gold facts with their evidence.

    Raises:
        UserError: two documents share a title, by which predictions are keyed.
    """
    documents = list(documents)
    for title, count in Counter(document.title for document in documents).items():
        if count > 1:
            raise UserError(
                f"{count} documents have the title {title!r}, and predictions are keyed by title.",
                hint="Rename one of them (such as by appending its number).",
            )
    return {document.fact(triple): triple.evidence for document in documents for triple in document.triples or ()}


def name_facts(documents: Iterable[Document]) -> set[tuple[str, str, str]]:
    """Return (head name, relation, tail name) of every pair of names of every triple."""
    return {
        (head, triple.relation, tail)
        for document in documents
        for triple in document.triples or ()
        for head in document.names(triple.head)
        for tail in document.names(triple.tail)
    }


def facts_of_names(document: Document, known: set[tuple[str, str, str]]) -> set[Fact]:
    """Return the document's gold facts of which any pair of names is known: the ones that Ign F1 leaves out."""
    return {
        document.fact(triple)
        for triple in document.triples or ()
        if any(
            (head, triple.relation, tail) in known
            for head in document.names(triple.head)
            for tail in document.names(triple.tail)
        )
    }


def load_documents(
    source: str,
    *,
    language: str = "ja",
    num_documents: int = 60,
    seed: int = 0,
    split: str = "train",
    strict: bool = False,
    relations: Mapping[str, str] | None = None,
    noise: Mapping[str, Any] | None = None,
) -> tuple[list[Document], Defects]:
    """Read a file, or make documents of the embedded world.

    Args:
        source: a path, or "world".
        language: of the world's documents.
        num_documents: of the world's.
        seed: of the world.
        split: of the world.
        strict: as in `read_documents`.
        relations: as in `read_documents`.
        noise: the world's `missing`, `own_names`, `foreign_order`.
    """
    if source != WORLD:
        return read_documents(Path(source), strict=strict, relations=relations)
    from polyloom.data.world import World, records

    world = World([language], seed=seed)
    defects = Defects()
    made = records(world, "documents", [language], num_documents, split=split, **(noise or {}))
    return [parse_document(value, i, defects, WORLD, relations) for i, value in enumerate(made)], defects


def map_schema(
    documents: Iterable[Document], types: Mapping[str, str], rename: Callable[[str], str | None]
) -> list[Document]:
    """Return documents with entity types and relations renamed.

    Args:
        documents: of one schema.
        types: old type to new one; others stay.
        rename: from a relation to its name in the other schema; None drops its triples.
    """
    return [
        replace(
            document,
            entities=tuple(
                tuple(replace(mention, type=types.get(mention.type, mention.type)) for mention in entity)
                for entity in document.entities
            ),
            triples=None
            if document.triples is None
            else tuple(
                replace(triple, relation=name)
                for triple in document.triples
                if (name := rename(triple.relation)) is not None
            ),
        )
        for document in documents
    ]


def read_schema_map(path: Path) -> tuple[dict[str, str], dict[str, str | None]]:
    """Read new names of types and relations.

    Raises:
        UserError: no object of `types` and `relations`, or a name that is no text.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not value.keys() <= {"types", "relations"}:
        raise UserError("maps no schema.", where=str(path), hint="Give {types: {old: new}, relations: {old: new}}.")
    types, relations = value.get("types", {}), value.get("relations", {})
    if not all(isinstance(name, str) for name in types.values()):
        raise UserError("has a type whose new name is no text.", where=str(path))
    if not all(name is None or isinstance(name, str) for name in relations.values()):
        raise UserError("has a relation whose new name is neither text nor null.", where=str(path))
    return types, relations
