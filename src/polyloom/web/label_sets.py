"""Sets of responses to label: made of a run or a file, opened one at a time, and written back for `redteam agree`."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from polyloom.core.config import read_yaml
from polyloom.core.errors import UserError
from polyloom.core.files import write_text
from polyloom.methods.redteam.data import Response, text_hash
from polyloom.methods.redteam.labelling import Item, Label, label_lines, order_for_labels, read_items
from polyloom.runs.folder import read_manifest
from polyloom.runs.store import Collection, Entry, EventStore, Stream, refuse_unseen
from polyloom.web.security import confined

KIND = "redteam"
ATTEMPTS, VERDICTS = "artifacts/attempts.jsonl", "artifacts/verdicts.jsonl"
OPENED, LABELLED = "opened", "labelled"


@dataclass(frozen=True)
class Source:
    """Where a set's texts are: the file, the judges' verdicts on it where they are apart, where labels are written."""

    texts: Path
    judged: Path | None
    labels: Path


def source_of(root: Path, name: str) -> Source:
    """Return the files of a run or of a file in the runs folder.

    Raises:
        HTTPException: 404, nothing there.
        UserError: a run without responses.
    """
    path = confined(root, name)
    if path.is_file():
        return Source(path, None, path.with_name(f"{path.stem}.labels.jsonl"))
    labels = path / "artifacts" / "labels.jsonl"
    if (path / ATTEMPTS).is_file():
        return Source(path / ATTEMPTS, None, labels)
    if (path / VERDICTS).is_file() and read_manifest(path).verb == "judge":
        given = str(read_yaml(path / "config.yaml").get("responses") or "")
        if given:
            return Source(Path(given), path / VERDICTS, labels)
    raise UserError("holds no responses to label.", where=name, hint="Run the attack with --keep-responses.")


def make_set(store: EventStore, root: Path, name: str, seed: int = 0) -> str:
    """Make a set of a run or file; returns its identity.

    Raises:
        UserError: a redacted or unfit file.
    """
    source = source_of(root, name)
    items, _ = read_items(source.texts, source.judged)
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(name).stem).strip("-")[:40] or "set"
    identity = f"{stem}-{secrets.token_hex(3)}"
    rows = [
        (f"{place:05d}-{items[i].sha256[:12]}", {**items[i].__dict__, "verdicts": dict(items[i].verdicts)})
        for place, i in enumerate(order_for_labels(items, seed), 1)
    ]
    store.add_collection(identity, KIND, name, {"source": name}, rows)
    return identity


def open_set(store: EventStore, identity: str) -> tuple[Collection, dict[str, Item]]:
    """Return a set and its items by name, in their order.

    Raises:
        UserError: there is none.
    """
    return store.collection(identity, KIND), {name: Item(**value) for name, value in store.items(identity)}


@lru_cache(maxsize=4)
def _texts(path: Path, changed: int) -> dict[tuple[str, str], Response]:
    _, responses = read_items(path)
    return {(one.goal, text_hash(one.response)): one for one in responses}


def text_of(root: Path, collection: Collection, item: Item) -> Response:
    """Return the response of an item from the file that it came from.

    Raises:
        HTTPException: 404, the file is gone or has changed.
    """
    texts = source_of(root, collection.body["source"]).texts
    if not texts.is_file():
        raise HTTPException(404)
    found = _texts(texts, texts.stat().st_mtime_ns).get((item.goal, item.sha256))
    if found is None:
        raise HTTPException(404)
    return found


@dataclass(frozen=True)
class Standing:
    """Where one person stands with one item: whether they opened it, their label, and how many labels they gave."""

    opened: bool
    labelled: bool
    label: Label
    version: int


def standings(entries: list[Entry]) -> dict[tuple[str, str], Standing]:
    """Return where each person stands with each item, by person and item; the last label counts."""
    found: dict[tuple[str, str], Standing] = {}
    for entry in entries:
        key = (entry.stream.author, entry.stream.item)
        before = found.get(key, Standing(False, False, None, 0))
        if entry.kind == LABELLED:
            found[key] = Standing(before.opened, True, entry.body["label"], entry.version)
        else:
            found[key] = Standing(True, before.labelled, before.label, entry.version)
    return found


def open_item(store: EventStore, stream: Stream) -> None:
    """Note that somebody opened a response, once."""
    if not store.entries(stream.collection, stream.item, stream.author):
        store.append(stream, OPENED, {})


def give_label(store: EventStore, stream: Stream, label: Label, *, seen: int, token: str) -> None:
    """Store a label.

    Raises:
        Conflict: the same person labelled the item elsewhere in the meantime.
        UserError: the response was not opened.
    """

    def check(entries: list[Entry]) -> None:
        if not entries:
            raise UserError("open the response first.")
        refuse_unseen(entries, seen)

    store.append(stream, LABELLED, {"label": label}, token=token, check=check)


def labels_of(entries: list[Entry]) -> dict[str, dict[str, Label]]:
    """Return item to label of each person."""
    found: dict[str, dict[str, Label]] = {}
    for (person, item), standing in standings(entries).items():
        if standing.labelled:
            found.setdefault(person, {})[item] = standing.label
    return found


def write_labels(store: EventStore, root: Path, collection: Collection, items: Mapping[str, Item]) -> Path:
    """Write a set's labels beside its responses, where texts may be, and return the file.

    Raises:
        UserError: nobody has decided anything.
    """
    labels = labels_of(store.entries(collection.id))
    responses = {name: text_of(root, collection, item) for name, item in items.items()}
    lines = label_lines(responses, labels)
    if not lines:
        raise UserError("has no label yet.", where=collection.title)
    path = source_of(root, collection.body["source"]).labels
    write_text(path, lines)
    return path


def redacted_lines(items: Mapping[str, Item], labels: Mapping[str, Mapping[str, Label]]) -> list[dict[str, Any]]:
    """Return labels with hashes in the place of texts."""
    return [
        {
            "goal": items[name].goal,
            "response_sha256": items[name].sha256,
            "label": None if label is None else int(label),
        }
        | {"annotator": person}
        for person, given in sorted(labels.items())
        for name, label in sorted(given.items())
    ]
