"""Records as lines of public formats, so that the readers of real files read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from polyloom.core.errors import UserError
from polyloom.data.world.tasks import Record, Task, find_task
from polyloom.data.world.trees import conllu


def _cell(value: Any) -> str:
    return " ".join(str(value).split())


def export(records: Iterable[Record], task: str, format: str = "") -> Iterator[str]:
    """Write records as lines of a public format.

    Args:
        records: of the task.
        task: a name of `TASKS`.
        format: one of the task's formats; empty for its usual one.

    Returns:
        Lines without line ends: jsonl (one object each), json (an array), tsv (with a header, except for parallel),
        txt, iob2, conllu,
        or muse (source TAB target).

    Raises:
        UserError: the task is not exported in this format.
    """
    found = find_task(task)
    chosen = format or found.formats[0]
    if chosen not in found.formats:
        raise UserError(f"{task} is not exported as {chosen!r}.", hint=f"Choose from: {', '.join(found.formats)}.")
    return _LINES[chosen](records, found)


def _jsonl(records: Iterable[Record], task: Task) -> Iterator[str]:
    for record in records:
        yield json.dumps(record, ensure_ascii=False)


def _json(records: Iterable[Record], task: Task) -> Iterator[str]:
    yield "["
    before = ""
    for record in records:
        if before:
            yield before + ","
        before = json.dumps(record, ensure_ascii=False)
    yield before
    yield "]"


def _tsv(records: Iterable[Record], task: Task) -> Iterator[str]:
    columns = task.columns
    for i, record in enumerate(records):
        row = record["translation"] if task.name == "parallel" else record
        names = columns or tuple(row)
        if i == 0:
            yield "\t".join(names)
        yield "\t".join(_cell(row[name]) for name in names)


def _txt(records: Iterable[Record], task: Task) -> Iterator[str]:
    for record in records:
        yield _cell(record["text"])


def _iob2(records: Iterable[Record], task: Task) -> Iterator[str]:
    for record in records:
        yield from (f"{token}\t{tag}" for token, tag in zip(record["tokens"], record["ner_tags"], strict=True))
        yield ""


def _conllu(records: Iterable[Record], task: Task) -> Iterator[str]:
    for record in records:
        yield from conllu(record)


def _muse(records: Iterable[Record], task: Task) -> Iterator[str]:
    for record in records:
        yield f"{record['source']}\t{record['target']}"


_LINES: dict[str, Callable[[Iterable[Record], Task], Iterator[str]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "tsv": _tsv,
    "txt": _txt,
    "iob2": _iob2,
    "conllu": _conllu,
    "muse": _muse,
}
