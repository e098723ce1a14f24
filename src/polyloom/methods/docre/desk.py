"""What an annotator has before the eyes: a document's candidate triples and where each stands, and its marked text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from polyloom.methods.docre.annotation_store import Proposal
from polyloom.methods.docre.annotations import Event, Key, Source, key, resolve
from polyloom.methods.docre.data import Document, Triple

Status = Literal["open", "accepted", "changed", "added", "rejected"]


@dataclass(frozen=True)
class Candidate:
    """One triple on an annotator's list.

    Attributes:
        triple: as it stands; of a rejected one, as it stood.
        status: `open` until the annotator has said something about it.
        source: who proposed it.
        score: of the recommendation; None for what a person added.
        before: the recommendation, where relation or direction were changed.
    """

    triple: Triple
    status: Status
    source: Source
    score: float | None = None
    before: Triple | None = None


def candidates(proposals: Iterable[Proposal], events: Iterable[Event]) -> list[Candidate]:
    """Return an annotator's list: recommendations in their order, then what was added, in its order.

    Args:
        proposals: what the annotator started from.
        events: of the annotator in the document, in order.
    """
    rows = [Candidate(triple, "open", source, score) for triple, score, source in proposals]
    for event in resolve(events)[0]:
        if event.triple is None or event.operation == "none":
            continue
        place = _find(rows, key(event.triple), rejected=event.operation == "add")
        if place is None:
            rows.append(Candidate(event.triple, "added", event.source))
        elif event.operation == "remove" and rows[place].score is None:
            del rows[place]
        else:
            rows[place] = _after(rows[place], event, event.triple)
    return rows


def _find(rows: Sequence[Candidate], wanted: Key, *, rejected: bool) -> int | None:
    for place, row in enumerate(rows):
        if key(row.triple) == wanted and (row.status == "rejected") == rejected:
            return place
    return None


def _after(row: Candidate, event: Event, triple: Triple) -> Candidate:
    if event.operation == "remove":
        return replace(row, status="rejected")
    if event.operation == "add":
        return replace(row, triple=triple, status="accepted" if row.before is None else "changed")
    if event.operation in ("accept", "evidence"):
        kept = row.triple if event.operation == "accept" else triple
        return replace(row, triple=kept, status="accepted" if row.status == "open" else row.status)
    before = row.triple
    if event.operation == "retag":
        now = replace(before, relation=event.new_relation)
    else:
        now = replace(before, head=before.tail, tail=before.head)
    if row.score is None:
        return replace(row, triple=now)
    first = row.before or before
    same = key(first) == key(now)
    return replace(row, triple=now, status="accepted" if same else "changed", before=None if same else first)


def num_reviewed(rows: Iterable[Candidate]) -> int:
    """Return how many candidates the annotator has said something about."""
    return sum(row.status != "open" for row in rows)


@dataclass(frozen=True)
class Segment:
    """A stretch of a sentence's text and the entities that are mentioned by all of it, the innermost last."""

    text: str
    entities: tuple[int, ...] = ()
    starts: bool = False


def segments(document: Document, sentence: int) -> list[Segment]:
    """Cut a sentence where mentions begin and end; overlapping mentions share a stretch.

    Args:
        document: any.
        sentence: its number.

    Returns:
        Stretches that joined give the sentence's text; `starts` marks the first one of a mention.
    """
    tokens, joiner = document.sentences[sentence], document.joiner
    mentions = sorted(
        (
            (mention.start, -mention.end, number)
            for number, entity in enumerate(document.entities)
            for mention in entity
            if mention.sentence == sentence and mention.start < mention.end
        )
    )
    cuts = sorted({0, len(tokens), *(start for start, _, _ in mentions), *(-end for _, end, _ in mentions)})
    found: list[Segment] = []
    for start, end in pairwise(cuts):
        inside = [(first, number) for first, last, number in mentions if first <= start and end <= -last]
        # The space after a mention's last token is outside of it, before the next stretch.
        if start and joiner and (not inside or not found[-1].entities or inside[-1][0] == start):
            found.append(Segment(joiner))
        elif start and joiner:
            found[-1] = replace(found[-1], text=found[-1].text + joiner)
        entities = tuple(dict.fromkeys(number for _, number in inside))
        found.append(Segment(joiner.join(tokens[start:end]), entities, any(first == start for first, _ in inside)))
    return found


def relations_for(documents: Iterable[Document], names: Iterable[str], used: Iterable[Triple]) -> list[str]:
    """Return the relations to choose from: those that documents and recommendations use first, then the known ones.

    Args:
        documents: with triples or without.
        names: of all known relations.
        used: recommendations and annotations.
    """
    counts = Counter(triple.relation for triple in used)
    counts.update(triple.relation for document in documents for triple in document.triples or ())
    return list(dict.fromkeys([*(relation for relation, _ in counts.most_common()), *names]))
