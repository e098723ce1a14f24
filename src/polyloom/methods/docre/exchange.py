"""Exchange with annotation tools: brat, doccano and Label Studio, there and back without loss.

Tools know mentions, not entities: a relation is written between first mentions and lifted to their entities when read,
and mentions of one entity are linked (brat: Equiv, others: a relation `coref`). Offsets count code points; Label
Studio's count UTF-16 units. What a tool has no word for (tokens, names, unknown keys) travels in its free fields.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polyloom.core.errors import UserError
from polyloom.core.files import json_rows, read_json, read_text, write_json, write_text
from polyloom.methods.docre.data import Document, Mention, Triple, read_documents, write_documents

Format = Literal["docred", "brat", "doccano", "label-studio"]
COREFERENCE = "coref"


@dataclass(frozen=True)
class Span:
    """A mention in a tool's text: characters [start, end), its type."""

    start: int
    end: int
    type: str


@dataclass(frozen=True)
class Flat:
    """A document as a tool sees it.

    Attributes:
        text: sentences, one a line.
        spans: mentions in the order of entities.
        groups: numbers of the mentions of each entity.
        links: (head mention, relation, tail mention, evidence).
        meta: what the tool has no word for.
    """

    text: str
    spans: tuple[Span, ...]
    groups: tuple[tuple[int, ...], ...]
    links: tuple[tuple[int, str, int, tuple[int, ...]], ...]
    meta: Mapping[str, Any]


def flatten(document: Document) -> Flat:
    """Return a document as text with spans."""
    lines = [document.sentence_text(i) for i in range(len(document.sentences))]
    bases = [0]
    for line in lines:
        bases.append(bases[-1] + len(line) + 1)
    spans: list[Span] = []
    groups, names = [], []
    for entity in document.entities:
        groups.append(tuple(range(len(spans), len(spans) + len(entity))))
        for m in entity:
            tokens, gap = document.sentences[m.sentence], len(document.joiner)
            start = bases[m.sentence] + sum(len(token) + gap for token in tokens[: m.start])
            spans.append(Span(start, start + len(document.joiner.join(tokens[m.start : m.end])), m.type))
            names.append({"name": m.name, "extra": dict(m.extra)})
    links = tuple((groups[t.head][0], t.relation, groups[t.tail][0], t.evidence) for t in document.triples or ())
    meta = {
        "title": document.title,
        "sents": [list(sentence) for sentence in document.sentences],
        "mentions": names,
        "labelled": document.triples is not None,
        "extra": dict(document.extra),
    }
    return Flat("\n".join(lines), tuple(spans), tuple(groups), links, meta)


def unflatten(flat: Flat, where: str) -> Document:
    """Return the document of a tool's text and spans.

    Without our free fields (a document that the tool's user made), tokens are cut at spans, letters and spaces.

    Raises:
        UserError: a span that is empty, crosses a line or lies outside the text.
    """
    meta, lines = flat.meta, flat.text.split("\n")
    known = meta.get("sents")
    bases = [0]
    for line in lines:
        bases.append(bases[-1] + len(line) + 1)
    places = [_place(span, bases, lines, where) for span in flat.spans]
    sentences, edges = [], []
    for number, line in enumerate(lines):
        cuts = {edge for sentence, low, high in places if sentence == number for edge in (low, high)}
        tokens = list(known[number]) if known and number < len(known) else None
        starts = token_starts(line, tokens) if tokens is not None else None
        if starts is None or not cuts <= starts.keys():
            tokens = cut_tokens(line, cuts)
            starts = token_starts(line, tokens)
        sentences.append(tuple(tokens or ()))
        edges.append(starts or {})
    mentions = []
    for number, (sentence, low, high) in enumerate(places):
        own = meta["mentions"][number] if number < len(meta.get("mentions", ())) else {}
        name = own.get("name", lines[sentence][low:high])
        start, end = edges[sentence][low], edges[sentence][high]
        mentions.append(Mention(name, sentence, start, end, flat.spans[number].type, own.get("extra", {})))
    owner = {mention: i for i, group in enumerate(flat.groups) for mention in group}
    lifted = [Triple(owner[h], r, owner[t], evidence) for h, r, t, evidence in flat.links]
    triples = tuple({(t.head, t.relation, t.tail): t for t in lifted}.values())
    entities = tuple(tuple(mentions[i] for i in group) for group in flat.groups)
    labelled = bool(triples) or meta.get("labelled", True)
    title = str(meta.get("title") or where)
    return Document(title, tuple(sentences), entities, triples if labelled else None, meta.get("extra", {}))


def _place(span: Span, bases: Sequence[int], lines: Sequence[str], where: str) -> tuple[int, int, int]:
    for number, line in enumerate(lines):
        low, high = span.start - bases[number], span.end - bases[number]
        if 0 <= low < high <= len(line):
            return number, low, high
    raise UserError(
        f"the span [{span.start}, {span.end}) is empty, crosses a line or lies outside the text.", where=where
    )


def token_starts(line: str, tokens: Sequence[str]) -> dict[int, int] | None:
    """Return token number by character, at starts and ends of tokens; None where the tokens do not spell the line."""
    at, places = 0, {}
    for number, token in enumerate(tokens):
        while line[at : at + 1] == " " and not token.startswith(" "):
            at += 1
        if not line.startswith(token, at):
            return None
        places[at] = number
        at += len(token)
        places.setdefault(at, number + 1)
    places[len(line)] = len(tokens)
    return places


def cut_tokens(line: str, cuts: set[int]) -> list[str]:
    """Cut a line at the given characters, at spaces, and around signs."""
    edges = sorted({0, len(line), *cuts})
    return [token for low, high in itertools.pairwise(edges) for token in re.findall(r"\w+|[^\w\s]", line[low:high])]


def union_groups(count: int, pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """Return groups of linked mentions, in the order of their first members."""
    root = list(range(count))
    for a, b in pairs:
        low, high = sorted((root[a], root[b]))
        root = [low if one == high else one for one in root]
    groups: dict[int, list[int]] = {}
    for number, one in enumerate(root):
        groups.setdefault(one, []).append(number)
    return tuple(tuple(group) for group in groups.values())


def to_brat(document: Document) -> tuple[str, str, dict[str, Any]]:
    """Return brat's text and annotations, and the free fields for a file beside them."""
    flat = flatten(document)
    lines = []
    for i, span in enumerate(flat.spans):
        lines.append(f"T{i + 1}\t{span.type} {span.start} {span.end}\t{flat.text[span.start : span.end]}")
    lines += [f"*\tEquiv {' '.join(f'T{i + 1}' for i in group)}" for group in flat.groups if len(group) > 1]
    for i, (head, relation, tail, evidence) in enumerate(flat.links, 1):
        lines.append(f"R{i}\t{relation} Arg1:T{head + 1} Arg2:T{tail + 1}")
        lines.append(f"#{i}\tAnnotatorNotes R{i}\tevidence={','.join(map(str, evidence))}")
    return flat.text, "".join(line + "\n" for line in lines), dict(flat.meta)


def from_brat(text: str, annotations: str, meta: Mapping[str, Any], where: str) -> Document:
    """Read brat's text and annotations.

    Raises:
        UserError: a line that is no annotation of ours, by its number.
    """
    spans: dict[str, Span] = {}
    links: dict[str, list[Any]] = {}
    equivalent: list[list[str]] = []
    for number, line in enumerate(annotations.splitlines(), 1):
        try:
            _brat_line(line, spans, links, equivalent)
        except (ValueError, IndexError, KeyError) as error:
            raise UserError("is no brat annotation of ours.", where=f"{where}:{number}") from error
    place = {name: i for i, name in enumerate(spans)}
    pairs = [(place[a], place[b]) for group in equivalent for a, b in itertools.pairwise(group)]
    rows = tuple((place[h], r, place[t], tuple(evidence)) for r, h, t, evidence in links.values())
    flat = Flat(text, tuple(spans.values()), union_groups(len(spans), pairs), rows, meta)
    return unflatten(flat, where)


def _brat_line(line: str, spans: dict[str, Span], links: dict[str, list[Any]], equivalent: list[list[str]]) -> None:
    fields = line.split("\t")
    if line.startswith("T"):
        kind, start, end = fields[1].split(" ")
        spans[fields[0]] = Span(int(start), int(end), kind)
    elif line.startswith("R"):
        relation, head, tail = fields[1].split(" ")
        links[fields[0]] = [relation, head.removeprefix("Arg1:"), tail.removeprefix("Arg2:"), []]
    elif line.startswith("*"):
        equivalent.append(fields[1].split(" ")[1:])
    elif line.startswith("#") and fields[2].startswith("evidence="):
        target = fields[1].split(" ")[1]
        links[target][3] = [int(one) for one in fields[2].removeprefix("evidence=").split(",") if one]


def to_doccano(document: Document) -> dict[str, Any]:
    """Return doccano's JSON of a document."""
    flat = flatten(document)
    relations: list[dict[str, Any]] = [
        {"id": i, "from_id": h, "to_id": t, "type": r} for i, (h, r, t, _) in enumerate(flat.links)
    ]
    evidence = [list(e) for *_, e in flat.links]
    pairs = [(a, b) for group in flat.groups for a, b in itertools.pairwise(group)]
    relations += [
        {"id": len(flat.links) + i, "from_id": a, "to_id": b, "type": COREFERENCE} for i, (a, b) in enumerate(pairs)
    ]
    return {
        "text": flat.text,
        "entities": [
            {"id": i, "start_offset": s.start, "end_offset": s.end, "label": s.type} for i, s in enumerate(flat.spans)
        ],
        "relations": relations,
        "meta": {**flat.meta, "evidence": evidence},
    }


def from_doccano(value: Mapping[str, Any], where: str) -> Document:
    """Read doccano's JSON of a document."""
    spans = [Span(e["start_offset"], e["end_offset"], e["label"]) for e in value["entities"]]
    place = {e["id"]: i for i, e in enumerate(value["entities"])}
    meta = value.get("meta") or {}
    evidence = dict(enumerate(meta.get("evidence", ())))
    links = [
        (place[r["from_id"]], r["type"], place[r["to_id"]], tuple(evidence.get(r["id"], ())))
        for r in value["relations"]
        if r["type"] != COREFERENCE
    ]
    pairs = [(place[r["from_id"]], place[r["to_id"]]) for r in value["relations"] if r["type"] == COREFERENCE]
    return unflatten(Flat(value["text"], tuple(spans), union_groups(len(spans), pairs), tuple(links), meta), where)


def utf16(text: str) -> list[int]:
    """Return the UTF-16 offset of every character, and of the end."""
    places = [0]
    for character in text:
        places.append(places[-1] + (2 if ord(character) > 0xFFFF else 1))
    return places


def to_label_studio(document: Document) -> dict[str, Any]:
    """Return Label Studio's task with the annotation as a prediction."""
    flat = flatten(document)
    units = utf16(flat.text)
    items: list[dict[str, Any]] = [
        {
            "id": f"m{i}", "from_name": "label", "to_name": "text", "type": "labels",
            "value": {
                "start": units[s.start], "end": units[s.end], "text": flat.text[s.start : s.end], "labels": [s.type]
            },
        }
        for i, s in enumerate(flat.spans)
    ]  # fmt: skip
    pairs = [(a, COREFERENCE, b, ()) for g in flat.groups for a, b in itertools.pairwise(g)]
    for a, r, b, evidence in [*flat.links, *pairs]:
        link = {"type": "relation", "from_id": f"m{a}", "to_id": f"m{b}", "direction": "right", "labels": [r]}
        items.append({**link, "meta": {"evidence": list(evidence)}})
    return {
        "data": {"text": flat.text, "meta": dict(flat.meta)},
        "predictions": [{"model_version": "polyloom", "score": 1.0, "result": items}],
    }


def from_label_studio(value: Mapping[str, Any], where: str) -> Document:
    """Read a Label Studio task: its annotation where it has one, else its prediction."""
    text, meta = value["data"]["text"], value["data"].get("meta") or {}
    items = [*(value.get("annotations") or ()), *(value.get("predictions") or ()), {"result": []}][0]["result"]
    places = {unit: i for i, unit in enumerate(utf16(text))}
    labels = [one for one in items if one["type"] == "labels"]
    spans = [Span(places[o["value"]["start"]], places[o["value"]["end"]], o["value"]["labels"][0]) for o in labels]
    number = {one["id"]: i for i, one in enumerate(labels)}
    links, pairs = [], []
    for one in items:
        if one["type"] != "relation":
            continue
        head, tail = number[one["from_id"]], number[one["to_id"]]
        head, tail = (tail, head) if one.get("direction") == "left" else (head, tail)
        evidence = tuple((one.get("meta") or {}).get("evidence", ()))
        for label in one.get("labels") or ():
            if label == COREFERENCE:
                pairs.append((head, tail))
            else:
                links.append((head, label, tail, evidence))
    return unflatten(Flat(text, tuple(spans), union_groups(len(spans), pairs), tuple(links), meta), where)


def write_format(path: Path, documents: Sequence[Document], form: Format) -> None:
    """Write documents: a folder for brat, a file for the others."""
    if form == "docred":
        write_documents(path, documents)
    elif form == "doccano":
        rows = [json.dumps(to_doccano(document), ensure_ascii=False) for document in documents]
        write_text(path, "".join(row + "\n" for row in rows))
    elif form == "label-studio":
        write_json(path, [to_label_studio(document) for document in documents])
    else:
        for number, document in enumerate(documents):
            text, annotations, meta = to_brat(document)
            stem = path / f"{number:05d}"
            write_text(stem.with_suffix(".txt"), text)
            write_text(stem.with_suffix(".ann"), annotations)
            write_json(stem.with_suffix(".json"), meta)


def read_format(path: Path, form: Format, *, strict: bool = False) -> list[Document]:
    """Read documents of a tool.

    Raises:
        UserError: unreadable or not of this form; file and line are named.
    """
    if form == "docred":
        return read_documents(path, strict=strict)[0]
    if form == "brat":
        return _read_brat(path)
    if form == "doccano":
        return [_checked(from_doccano, row, f"{path}:{i}") for i, row in json_rows(read_text(path), path)]
    return [_checked(from_label_studio, v, f"{path}: task {i}") for i, v in enumerate(read_json(path))]


def _read_brat(folder: Path) -> list[Document]:
    found = []
    for path in sorted(folder.glob("*.ann")):
        beside = path.with_suffix(".json")
        meta = read_json(beside) if beside.exists() else {"title": path.stem}
        found.append(from_brat(read_text(path.with_suffix(".txt")), read_text(path), meta, str(path)))
    if not found:
        raise UserError("holds no .ann file.", where=str(folder), hint="Name a folder that brat wrote.")
    return found


def _checked(read: Callable[[Any, str], Document], value: Any, where: str) -> Document:
    try:
        return read(value, where)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"is not of this format ({type(error).__name__}: {error}).", where=where) from error
