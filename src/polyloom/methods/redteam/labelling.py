"""People label responses: what can be labelled, in which order, how far people and judges agree, and what goes back to
`agree`.

A set holds hashes and the judges' verdicts. The responses' texts stay in the file that they came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import json_lines, json_rows, read_text
from polyloom.core.seeding import numpy_generator
from polyloom.methods.redteam.data import Response, read_responses, text_hash
from polyloom.metrics import agreement
from polyloom.metrics.statistics import Interval

NUM_RESAMPLES = 500
Label = bool | None


@dataclass(frozen=True)
class Item:
    """A response to label, without its text."""

    goal: str
    sha256: str
    num_characters: int
    verdicts: Mapping[str, bool | None]

    @property
    def disputed(self) -> bool:
        """Whether the judges differ about it."""
        return len({verdict for verdict in self.verdicts.values() if verdict is not None}) > 1


def read_items(path: Path, judged: Path | None = None) -> tuple[list[Item], list[Response]]:
    """Read what can be labelled: `attempts.jsonl` of an attack, a JailbreakBench artefact, or {goal, response} lines.

    Args:
        path: the file; verdicts that it holds are kept apart from the labels.
        judged: `verdicts.jsonl` of a run of `redteam judge` on that file.

    Returns:
        Each response once, and the responses in the same order.

    Raises:
        UserError: a redacted file, or none of these forms.
    """
    responses = read_responses(str(path))
    verdicts: list[dict[str, bool | None]]
    if path.suffix == ".json":
        verdicts = [{} if one.label is None else {"artefact": bool(one.label)} for one in responses]
    else:
        rows = json_rows(read_text(path, encoding="utf-8-sig"), path)
        verdicts = [_verdicts(row.get("verdicts")) for _, row in rows]
    if judged is not None:
        told = {
            (row.get("goal"), row.get("response_sha256")): _verdicts(row.get("verdicts"))
            for _, row in json_rows(read_text(judged), judged)
        }
        verdicts = [told.get((one.goal, text_hash(one.response)), {}) for one in responses]
    items: dict[tuple[str, str], tuple[Item, Response]] = {}
    for one, said in zip(responses, verdicts, strict=True):
        item = Item(one.goal, text_hash(one.response), len(one.response), said)
        items.setdefault((item.goal, item.sha256), (item, one))
    kept = [pair for pair in items.values() if pair[1].response.strip()]
    if not kept:
        raise UserError("holds no response text.", where=path.name, hint="Run the attack with --keep-responses.")
    return [item for item, _ in kept], [response for _, response in kept]


def _verdicts(value: Any) -> dict[str, bool | None]:
    if not isinstance(value, dict):
        return {}
    return {str(name): verdict for name, verdict in value.items() if verdict is None or isinstance(verdict, bool)}


def order_for_labels(items: Sequence[Item], seed: int) -> list[int]:
    """Return the order to label in: what judges differ about first, which tells most about them; else by chance."""
    rank = numpy_generator(seed, "labels").permutation(len(items))
    return sorted(range(len(items)), key=lambda i: (not items[i].disputed, rank[i]))


@dataclass(frozen=True)
class Agreement:
    """How far two raters agree on what both decided."""

    first: str
    second: str
    num_items: int
    share: Interval | None
    kappa: Interval | None


def agree_pairs(labels: Mapping[str, Mapping[str, Label]], *, seed: int = 0) -> list[Agreement]:
    """Compare every two raters on the items that both decided.

    Args:
        labels: item to label, of each rater; None is undecided.
        seed: of the intervals.
    """
    return [_agree(a, b, labels[a], labels[b], seed) for a, b in combinations(sorted(labels), 2)]


def _agree(a: str, b: str, left: Mapping[str, Label], right: Mapping[str, Label], seed: int) -> Agreement:
    both = sorted(i for i in left if left[i] is not None and right.get(i) is not None)
    if not both:
        return Agreement(a, b, 0, None, None)
    x, y = [bool(left[i]) for i in both], [bool(right[i]) for i in both]
    found = [
        agreement.agreement_interval(x, y, measure, num_resamples=NUM_RESAMPLES, seed=seed)
        for measure in (agreement.accuracy, agreement.cohen_kappa)
    ]
    return Agreement(a, b, len(both), *found)


def alpha(labels: Mapping[str, Mapping[str, Label]]) -> float | None:
    """Return Krippendorff's alpha of all raters; None where it has no value."""
    items = sorted({item for given in labels.values() for item in given})
    value = agreement.krippendorff_alpha([[given.get(item) for given in labels.values()] for item in items])
    return None if math.isnan(value) else value


def consensus(labels: Mapping[str, Mapping[str, Label]]) -> dict[str, bool]:
    """Return the label of each item on which all who decided about it agree."""
    votes: dict[str, set[bool]] = {}
    for given in labels.values():
        for item, label in given.items():
            if label is not None:
                votes.setdefault(item, set()).add(label)
    return {item: min(found) for item, found in votes.items() if len(found) == 1}


def against_judges(
    labels: Mapping[str, Mapping[str, Label]], verdicts: Mapping[str, Mapping[str, bool | None]], *, seed: int = 0
) -> list[Agreement]:
    """Compare every judge with the consensus of people.

    Args:
        labels: item to label, of each person.
        verdicts: judge to verdict, of each item.
        seed: of the intervals.
    """
    agreed = consensus(labels)
    judges = sorted({name for said in verdicts.values() for name in said})
    return [
        _agree(judge, "", {item: said.get(judge) for item, said in verdicts.items()}, agreed, seed) for judge in judges
    ]


def label_lines(responses: Mapping[str, Response], labels: Mapping[str, Mapping[str, Label]]) -> str:
    """Return labels as `redteam agree --labels` reads them; what nobody decided is left out.

    Args:
        responses: of each item.
        labels: item to label, of each person.
    """
    return json_lines(
        {"goal": responses[item].goal, "response": responses[item].response, "label": int(label), "annotator": person}
        for person, given in sorted(labels.items())
        for item, label in sorted(given.items())
        if label is not None and item in responses
    )
