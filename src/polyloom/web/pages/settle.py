"""Settle: where annotators disagree about a document, how far they agree, the decision, and what leaves the studio."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polyloom.core.errors import UserError
from polyloom.methods.docre.annotation_store import AnnotationStore, log_lines
from polyloom.methods.docre.annotations import (
    ADJUDICATED,
    Key,
    disputed,
    edits_of_log,
    estimate_total,
    key,
    triple_agreement,
)
from polyloom.methods.docre.data import Document, Triple, document_json
from polyloom.methods.docre.schema import NAMES
from polyloom.web.pages.annotate import called, colour_of, find_place
from polyloom.web.people import name_of, store_of
from polyloom.web.projects import open_project
from polyloom.web.templating import page, say

router = APIRouter()


@dataclass(frozen=True)
class Line:
    """One triple of the comparison: who has it, with which evidence, and what was decided."""

    field: str
    triple: Triple
    evidence: dict[str, tuple[int, ...]]
    disputed: bool
    recommended: bool
    decided: bool | None


@dataclass(frozen=True)
class Comparison:
    """A document as its annotators left it, side by side.

    `alpha` is Krippendorff's, None with one annotator; `missing` estimates how many triples nobody has found, None
    where annotators had recommendations before their eyes, which the estimate does not allow.
    """

    users: list[str]
    lines: list[Line]
    edits: dict[str, int]
    alpha: float | None
    missing: float | None
    settled: bool


def compare(annotations: AnnotationStore, document: Document) -> Comparison:
    """Compare the annotators of a document."""
    title = document.title
    users = annotations.annotators(title)
    states = [{key(t): t for t in annotations.state(title, user)} for user in users]
    recommended = {key(t) for t in annotations.recommended(title)}
    log = annotations.events(title)
    settled = any(event.user == ADJUDICATED for event in log)
    decided = {key(t) for t in annotations.state(title, ADJUDICATED)} if settled else set()
    open_keys = set(disputed(states)) if states else set()
    union = {k: t for state in reversed(states) for k, t in state.items()}
    lines = [
        Line(
            _field(k),
            triple,
            {user: state[k].evidence for user, state in zip(users, states, strict=True) if k in state},
            k in open_keys,
            k in recommended,
            (k in decided) if settled else None,
        )
        for k, triple in sorted(union.items(), key=lambda item: (item[0] not in open_keys, item[0]))
    ]
    num_entities = len(document.entities)
    relations = {*NAMES, *(k[1] for k in union)}
    alpha = None
    if len(users) > 1:
        alpha = triple_agreement(states, num_entities * (num_entities - 1) * len(relations))
    missing = None
    if len(users) > 1 and not recommended and union:
        missing = max(0.0, estimate_total(states[0], states[1]) - len({*states[0], *states[1]}))
    edits = {user: edits_of_log([e for e in log if e.user == user]).remaining for user in users}
    return Comparison(users, lines, edits, alpha, missing, settled)


def _field(k: Key) -> str:
    return f"{k[0]}|{k[1]}|{k[2]}"


@router.get("/annotate/{project}/{number:int}/compare")
def show_comparison(request: Request, project: str, number: int) -> Response:
    """Show where the annotators of a document differ, and what was decided."""
    collection, annotations, document, num_documents = find_place(request, project, number)
    return page(
        request,
        "annotate/compare.html.j2",
        collection=collection,
        project=project,
        number=number,
        num_documents=num_documents,
        document=document,
        comparison=compare(annotations, document),
        colour_of=colour_of,
        called=partial(called, request),
        name=name_of(request),
    )


@router.post("/annotate/{project}/{number:int}/adjudicate")
async def adjudicate(request: Request, project: str, number: int) -> Response:
    """Settle a document by the decisions of a form."""
    return await run_in_threadpool(_adjudicate, request, project, number, await request.form())


def _adjudicate(request: Request, project: str, number: int, form: FormData) -> Response:
    _, annotations, document, _ = find_place(request, project, number)
    name = name_of(request)
    if not name:
        raise UserError(say(request, "annotate.no_name"))
    lines = compare(annotations, document).lines
    annotations.adjudicate(document.title, _decisions(form, lines), by=name)
    return RedirectResponse(f"/annotate/{project}/{number}/compare", 303)


def _decisions(form: FormData, lines: list[Line]) -> dict[Key, bool]:
    """Return what a form says about disputed triples; one that it does not name stays undecided."""
    given = {name.removeprefix("keep "): value for name, value in form.items() if name.startswith("keep ")}
    return {key(line.triple): given[line.field] == "yes" for line in lines if line.disputed and line.field in given}


@router.get("/annotate/{project}/documents.json")
def export_documents(request: Request, project: str, user: str = ADJUDICATED) -> Response:
    """Return the documents as a user, or the decision, left them: a DocRED-style file."""
    _, annotations = open_project(store_of(request), project)
    found = annotations.export(annotations.documents(), user)
    text = json.dumps([document_json(document) for document in found], ensure_ascii=False, indent=1)
    return _file(text + "\n", "application/json", f"{project}.json")


@router.get("/annotate/{project}/log.jsonl")
def export_log(request: Request, project: str) -> Response:
    """Return every event of every annotator."""
    _, annotations = open_project(store_of(request), project)
    return _file(log_lines(annotations.events()), "application/x-ndjson", f"{project}.jsonl")


def _file(text: str, media_type: str, name: str) -> Response:
    # A lone surrogate in a document is written as JSON could hold it, and read back the same.
    data = text.encode("utf-8", "surrogatepass")
    return Response(data, media_type=media_type, headers={"content-disposition": f'attachment; filename="{name}"'})
