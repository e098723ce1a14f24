"""What annotators do, event by event: replay, undo, edit counts, agreement, and what may be missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal, get_args

from polyloom.core.errors import UserError, closest
from polyloom.core.seeding import python_random
from polyloom.methods.docre.data import Triple
from polyloom.metrics.statistics import Interval, wilson_interval

Operation = Literal["add", "remove", "retag", "flip", "evidence", "accept", "none", "done", "undo", "redo"]
Source = Literal["model", "kb", "human", "question"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
# These are about the document, or about the events before them, and name no triple.
WITHOUT_TRIPLE = ("done", "undo", "redo")
ADJUDICATED = "adjudicated"
NO_RELATION = "Na"
Key = tuple[int, str, int]


@dataclass(frozen=True)
class Event:
    """One thing that an annotator did.

    Attributes:
        user: the annotator.
        document: title.
        operation: `add`, `remove`, `retag` (to `new_relation`), `flip` (head and tail), `evidence` (new sentences),
            `accept` (seen and kept), `none` (no relation holds between the two: an answer to a question), `done`
            (with the document), `undo` (the last event that holds) or `redo`.
        triple: what it was done to; None for `done`, `undo` and `redo`.
        new_relation: of `retag`.
        source: who proposed the triple; `question`: it answers one with yes.
        milliseconds: how long it took.
        time: Unix seconds; 0 takes the clock's when it is stored.
        by: who settled it, where the user is the adjudicated whole.
    """

    user: str
    document: str
    operation: Operation
    triple: Triple | None = None
    new_relation: str = ""
    source: Source = "human"
    milliseconds: int = 0
    time: float = 0.0
    by: str = ""

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise UserError(f"there is no operation {self.operation!r}.", hint=closest(self.operation, OPERATIONS))
        if (self.triple is None) != (self.operation in WITHOUT_TRIPLE):
            raise UserError(f"the operation {self.operation!r} has {'no' if self.triple is None else 'a'} triple.")
        if (self.operation == "retag") != bool(self.new_relation):
            raise UserError("a new relation belongs to the operation 'retag', and only to it.")
        if not self.user or not self.document:
            raise UserError("an event names its user and its document.")


def key(triple: Triple) -> Key:
    """Return a triple without its evidence."""
    return (triple.head, triple.relation, triple.tail)


def resolve(events: Iterable[Event]) -> tuple[list[Event], list[Event], list[Event]]:
    """Work out undo and redo.

    Args:
        events: of one annotator in one document, in order.

    Returns:
        The events that hold; those that `redo` would bring back, the next one last; and for each event the one that it
        does, takes back or does again.

    Raises:
        UserError: an undo or redo of nothing.
    """
    holding: list[Event] = []
    undone: list[Event] = []
    underlying: list[Event] = []
    for event in events:
        if event.operation in ("undo", "redo"):
            source, target = (holding, undone) if event.operation == "undo" else (undone, holding)
            if not source:
                raise UserError(f"there is nothing to {event.operation}.", where=event.document)
            target.append(source.pop())
            underlying.append(target[-1])
        else:
            holding.append(event)
            underlying.append(event)
            undone = []
    return holding, undone, underlying


def replay(recommended: Iterable[Triple], events: Iterable[Event]) -> dict[Key, Triple]:
    """Return a document's triples as one annotator left them.

    Args:
        recommended: what the annotator started from.
        events: of the annotator in the document, in order.
    """
    state = {key(t): t for t in recommended}
    for event in resolve(events)[0]:
        apply_event(state, event)
    return state


def _pair(event: Event) -> frozenset[int]:
    return frozenset((event.triple.head, event.triple.tail) if event.triple else ())


def commutes(event: Event, events: Sequence[Event], num_seen: int) -> bool:
    """Say whether an event can follow others that its author had not seen: none of them is about the same pair.

    Args:
        event: the new one.
        events: all of the annotator in the document.
        num_seen: how many of them the author had seen; an undo has to have seen them all.
    """
    unseen = {_pair(one) for one in resolve(events)[2][num_seen:]}
    return event.operation == "done" or (_pair(event) not in unseen if event.triple else not unseen)


def apply_event(state: dict[Key, Triple], event: Event) -> None:
    """Change `state` as the event says.

    Raises:
        UserError: the event does not fit the state.
    """
    triple = event.triple
    if triple is None or event.operation == "none":
        return
    present = key(triple) in state
    if present == (event.operation == "add"):
        what = "is there already" if present else "is not there"
        raise UserError(f"the triple {key(triple)} {what}: {event.operation} cannot be done.", where=event.document)
    if event.operation == "accept":
        return
    before = state.pop(key(triple), triple)
    after = {
        "add": triple,
        "retag": replace(before, relation=event.new_relation),
        "flip": replace(before, head=before.tail, tail=before.head),
        "evidence": triple,
    }.get(event.operation)
    if after is not None:
        if key(after) in state:
            state[key(before)] = before
            raise UserError(f"the triple {key(after)} is there already.", where=event.document)
        state[key(after)] = after


@dataclass(frozen=True)
class LoggedEdits:
    """Edits of one document by one annotator: steps as made, and steps that remain when undone work cancels."""

    made: int
    remaining: int
    milliseconds: int


def edits_of_log(events: Iterable[Event]) -> LoggedEdits:
    """Count edit steps from the log alone: what was put in and taken out again, or undone, remains as nothing.

    Args:
        events: of one annotator in one document.
    """
    toggled: set[Key] = set()
    made = milliseconds = 0
    events = list(events)
    for event, underlying in zip(events, resolve(events)[2], strict=True):
        milliseconds += event.milliseconds
        changes: list[Key] = []
        if underlying.triple is not None and underlying.operation in ("add", "remove", "retag", "flip"):
            head, relation, tail = key(underlying.triple)
            changes.append((head, relation, tail))
            if underlying.operation == "retag":
                changes.append((head, underlying.new_relation, tail))
            if underlying.operation == "flip":
                changes.append((tail, relation, head))
        made += len(changes)
        for change in changes:
            toggled ^= {change}
    return LoggedEdits(made, len(toggled), milliseconds)


def disputed(states: Sequence[Mapping[Key, Any]]) -> list[Key]:
    """Return the triples that some annotators have and others have not."""
    every = set().union(*states)
    return sorted(k for k in every if any(k not in state for state in states))


def triple_agreement(states: Sequence[Mapping[Key, Any]], num_possible: int) -> float:
    """Return Krippendorff's alpha (nominal) of whether each possible triple holds.

    Args:
        states: each annotator's triples over the same documents.
        num_possible: triples that could have been chosen (pairs times relations).

    Returns:
        1 for full agreement, about 0 for chance.

    Source: Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability".
    """
    num_raters = len(states)
    votes = [sum(k in state for state in states) for k in set().union(*states)]
    positive = sum(votes)
    total = num_raters * num_possible
    if num_raters < 2 or positive in (0, total):
        return 1.0
    observed = sum(2 * v * (num_raters - v) for v in votes) / (num_raters - 1)
    expected = 2 * positive * (total - positive) / (total - 1)
    return 1 - observed / expected


def estimate_total(first: Iterable[Key], second: Iterable[Key]) -> float:
    """Return Chapman's capture-recapture estimate of how many true triples there are, found by neither included.

    Args:
        first: triples that one annotator found without seeing the other's.
        second: the other's.

    Source: Chapman (1951).
    """
    a, b = set(first), set(second)
    return (len(a) + 1) * (len(b) + 1) / (len(a & b) + 1) - 1


def unreviewed_pairs(
    num_entities: int, recommended: Iterable[Triple], events: Iterable[Event]
) -> list[tuple[int, int]]:
    """Return the pairs of entities, smaller first, that no recommendation and no annotator's own addition is about.

    Args:
        num_entities: of the document.
        recommended: what the annotator started from.
        events: of the annotator in the document, in order.
    """
    known = {frozenset((t.head, t.tail)) for t in recommended}
    known |= {_pair(event) for event in resolve(events)[0] if event.operation != "none" and event.source != "question"}
    return [pair for pair in combinations(range(num_entities), 2) if frozenset(pair) not in known]


def questions(
    document: str, num_entities: int, recommended: Sequence[Triple], events: Sequence[Event], count: int
) -> list[tuple[int, int]]:
    """Return pairs drawn at random from the unreviewed ones, to ask whether any relation holds; answered ones are left
    out.

    Args:
        document: title, which the draw depends on: every annotator is asked the same.
        num_entities: of the document.
        recommended: what the annotator started from.
        events: of the annotator in the document, in order.
        count: questions a document, answered ones counted.
    """
    pairs = unreviewed_pairs(num_entities, recommended, events)
    order = {pair: i for i, pair in enumerate(_shuffled(document, num_entities))}
    asked = sorted(pairs, key=lambda pair: order[pair])[:count]
    said = {pair for pair, _ in answers(events)}
    return [pair for pair in asked if frozenset(pair) not in said]


def _shuffled(document: str, num_entities: int) -> list[tuple[int, int]]:
    pairs = list(combinations(range(num_entities), 2))
    python_random(0, "questions", document).shuffle(pairs)
    return pairs


def answers(events: Iterable[Event]) -> list[tuple[frozenset[int], bool]]:
    """Return the questions that an annotator answered: the pair, and whether a relation holds."""
    found: dict[frozenset[int], bool] = {}
    for event in resolve(events)[0]:
        if event.operation == "none":
            found.setdefault(_pair(event), False)
        elif event.operation == "add" and event.source == "question":
            found[_pair(event)] = True
    return list(found.items())


@dataclass(frozen=True)
class Recall:
    """How many related pairs may have been missed, by the answers to random questions.

    Attributes:
        num_asked: answered questions.
        num_yes: of these, pairs with a relation.
        num_found: related pairs that were found without being asked.
        missing: estimate of related pairs among all unreviewed ones, with a 95 % interval.
        recall: found / (found + missing), with the interval that follows.
    """

    num_asked: int
    num_yes: int
    num_found: int
    missing: Interval
    recall: Interval


def estimate_recall(num_yes: int, num_asked: int, num_unreviewed: int, num_found: int) -> Recall:
    """Estimate what annotators miss from the share of random unreviewed pairs that turn out to be related.

    Args:
        num_yes: questions answered with a relation.
        num_asked: questions answered.
        num_unreviewed: pairs that questions were drawn from.
        num_found: related pairs found without a question.

    Source: Wilson's interval for a share, times the number of pairs.
    """
    if num_asked == 0:
        nothing = Interval(float("nan"), 0.0, float(num_unreviewed))
        return Recall(0, 0, num_found, nothing, Interval(float("nan"), 0.0, 1.0))
    share = wilson_interval(num_yes, num_asked)
    missing = Interval(*(part * num_unreviewed for part in (share.value, share.low, share.high)))
    value, high, low = (num_found / max(1e-9, num_found + part) for part in (missing.value, missing.low, missing.high))
    return Recall(num_asked, num_yes, num_found, missing, Interval(value, low, high))
