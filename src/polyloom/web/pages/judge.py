"""Judge: label responses without their judges' verdicts before the eyes, and see at once how far people agree."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polyloom.core.config import make_config
from polyloom.core.errors import UserError
from polyloom.core.files import json_lines
from polyloom.methods.redteam.config import AgreeConfig
from polyloom.methods.redteam.labelling import against_judges, agree_pairs, alpha
from polyloom.runs.index import list_runs
from polyloom.runs.store import Conflict, Stream
from polyloom.web.label_sets import (
    ATTEMPTS,
    KIND,
    VERDICTS,
    Standing,
    give_label,
    labels_of,
    make_set,
    open_item,
    open_set,
    redacted_lines,
    standings,
    text_of,
    write_labels,
)
from polyloom.web.looking import jobs_of, runs_root
from polyloom.web.pages import Nav
from polyloom.web.people import name_of, store_of
from polyloom.web.templating import page, say

router = APIRouter()
NAV = (Nav("judge", "/judge", 60),)
LABELS = {"1": True, "0": False, "unsure": None}
MAX_FILES = 200
NOTHING = Standing(False, False, None, 0)


@router.get("/judge")
def list_sets(request: Request) -> Response:
    """Show the sets, and what a new one can be made of."""
    root = runs_root(request)
    runs = [row.id for row in list_runs(root, room="redteam", status="done") if _has_responses(root / row.id)]
    files = sorted(path.name for path in root.glob("*.jsonl") if not path.name.endswith(".labels.jsonl"))
    return page(
        request,
        "judge/list.html.j2",
        sets=store_of(request).collections(KIND),
        runs=runs,
        files=files[:MAX_FILES],
        name=name_of(request),
    )


def _has_responses(folder: Path) -> bool:
    """Return whether a run holds texts: the first line of its attempts says."""
    if (folder / VERDICTS).is_file():
        return True
    if not (folder / ATTEMPTS).is_file():
        return False
    with (folder / ATTEMPTS).open(encoding="utf-8") as lines:
        return '"response": ' in lines.readline()


@router.post("/judge")
def new_set(request: Request, source: Annotated[str, Form()]) -> Response:
    """Make a set and open it."""
    return RedirectResponse(f"/judge/{make_set(store_of(request), runs_root(request), source)}", 303)


@router.get("/judge/{identity}")
def show_set(request: Request, identity: str, machine: bool = False) -> Response:
    """Show how far a set is and how far people agree; the judges' part only where it is asked for."""
    store = store_of(request)
    collection, items = open_set(store, identity)
    entries = store.entries(identity)
    labels = labels_of(entries)
    name = name_of(request)
    places = {item: place for place, item in enumerate(items, 1)}
    mine = labels.get(name, {})
    differing = [
        (places[item], items[item].goal, {person: given[item] for person, given in sorted(labels.items())})
        for item in items
        if all(item in given for given in labels.values())
        and len({given[item] for given in labels.values() if given[item] is not None}) > 1
    ]
    verdicts = {item: items[item].verdicts for item in items}
    return page(
        request,
        "judge/set.html.j2",
        collection=collection,
        num_items=len(items),
        labels=labels,
        name=name,
        following=next((places[item] for item in items if item not in mine), None),
        pairs=agree_pairs(labels),
        alpha=alpha(labels) if len(labels) > 1 else None,
        differing=differing,
        judges=against_judges(labels, verdicts) if machine else None,
        has_verdicts=any(verdicts.values()),
    )


@router.get("/judge/{identity}/labels.jsonl")
def redacted(request: Request, identity: str) -> Response:
    """Return the labels with hashes in the place of texts."""
    store = store_of(request)
    _, items = open_set(store, identity)
    text = json_lines(redacted_lines(items, labels_of(store.entries(identity))))
    headers = {"content-disposition": f'attachment; filename="{identity}.jsonl"'}
    return Response(text.encode("utf-8", "replace"), media_type="application/x-ndjson", headers=headers)


@router.post("/judge/{identity}/agree")
def agree(request: Request, identity: str) -> Response:
    """Write the labels beside the responses and queue `redteam agree` on them."""
    store = store_of(request)
    collection, items = open_set(store, identity)
    path = write_labels(store, runs_root(request), collection, items)
    config = make_config(AgreeConfig, {"labels": path.as_posix()})
    return RedirectResponse(f"/runs/{jobs_of(request).create('redteam.agree', config)}", 303)


def _show(request: Request, identity: str, place: int, conflict: str = "", status: int = 200) -> Response:
    store = store_of(request)
    collection, items = open_set(store, identity)
    if not 1 <= place <= len(items):
        raise HTTPException(404)
    item = list(items)[place - 1]
    name = name_of(request)
    if not name:
        return page(request, "annotate/name.html.j2", next=request.url.path)
    entries = store.entries(identity, author=name)
    mine = standings(entries)
    standing = mine.get((name, item), NOTHING)
    return page(
        request,
        "judge/item.html.j2",
        status,
        collection=collection,
        place=place,
        num_items=len(items),
        num_labelled=sum(one.labelled for one in mine.values()),
        item=items[item],
        standing=standing,
        text=text_of(runs_root(request), collection, items[item]) if standing.opened else None,
        name=name,
        token=secrets.token_urlsafe(12),
        conflict=conflict,
    )


@router.get("/judge/{identity}/{place:int}")
def show_item(request: Request, identity: str, place: int) -> Response:
    """Show one item: the goal, and the response once it was opened."""
    return _show(request, identity, place)


def _stream(request: Request, identity: str, place: int) -> Stream:
    name = name_of(request)
    names = store_of(request).names(identity)
    if not name:
        raise UserError(say(request, "annotate.no_name"))
    if not 1 <= place <= len(names):
        raise HTTPException(404)
    return Stream(identity, names[place - 1], name)


@router.post("/judge/{identity}/{place:int}/open")
def open_response(request: Request, identity: str, place: int) -> Response:
    """Open a response, on purpose: who did is noted."""
    open_item(store_of(request), _stream(request, identity, place))
    return RedirectResponse(f"/judge/{identity}/{place}", 303)


@router.post("/judge/{identity}/{place:int}/label")
def label(
    request: Request,
    identity: str,
    place: int,
    value: Annotated[str, Form()],
    seen: Annotated[int, Form(ge=0)],
    token: Annotated[str, Form(max_length=100)],
) -> Response:
    """Store a label and go on to the next item; a label that was given elsewhere meanwhile is shown instead."""
    if value not in LABELS:
        raise HTTPException(422)
    store, stream = store_of(request), _stream(request, identity, place)
    try:
        give_label(store, stream, LABELS[value], seen=seen, token=token)
    except Conflict:
        return _show(request, identity, place, conflict=value, status=409)
    mine = standings(store.entries(identity, author=stream.author))
    names = store.names(identity)
    after = [*range(place + 1, len(names) + 1), *range(1, place)]
    following = next((n for n in after if not mine.get((stream.author, names[n - 1]), NOTHING).labelled), None)
    return RedirectResponse(f"/judge/{identity}/{following}" if following else f"/judge/{identity}", 303)
