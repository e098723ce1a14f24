"""Annotate: projects of documents, and the desk where one annotator works on one document."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polyloom.core.errors import UserError
from polyloom.data.world import LANGUAGES
from polyloom.methods.docre.annotation_store import AnnotationStore, event_of
from polyloom.methods.docre.annotations import Event, edits_of_log, resolve
from polyloom.methods.docre.data import Document, Triple
from polyloom.methods.docre.desk import Candidate, candidates, num_reviewed, relations_for, segments
from polyloom.methods.docre.schema import NAMES
from polyloom.runs.index import list_runs
from polyloom.runs.store import Collection, Conflict, Entry
from polyloom.web.i18n import catalogue
from polyloom.web.pages import Nav
from polyloom.web.pages.access import local_path
from polyloom.web.people import checked_name, name_of, remember, store_of
from polyloom.web.projects import RECOMMENDATIONS, from_file, from_run, from_world, open_project, progress, projects
from polyloom.web.security import confined
from polyloom.web.templating import page, say

router = APIRouter()
NAV = (Nav("annotate", "/annotate", 40),)
MAX_FILES = 200
# Each entity type has one of the six colours everywhere; other types share them by their letters.
COLOURS = {"PER": 1, "LOC": 2, "ORG": 3, "TIME": 4, "DAT": 4, "MISC": 5, "ART": 5, "NUM": 6, "MON": 6, "%": 6}


def colour_of(type: str) -> int:
    """Return the number of an entity type's colour, 1 to 6."""
    return COLOURS.get(type) or sum(map(ord, type)) % 6 + 1


def called(request: Request, relation: str) -> str:
    """Return a relation's name in the visitor's language; one that the catalogue lacks is shown as it is."""
    key = f"relation.{relation}"
    return say(request, key) if key in catalogue() else relation


@router.post("/name")
def take_name(name: Annotated[str, Form(max_length=200)], next: Annotated[str, Form()] = "/annotate") -> Response:
    """Remember who works in this browser."""
    return remember(RedirectResponse(local_path(next), 303), checked_name(name))


@router.get("/annotate")
def list_projects(request: Request) -> Response:
    """Show the projects, and what a new one can be made of."""
    runs = request.app.state.settings.runs
    recommended = [
        row.id
        for row in list_runs(runs, room="docre", status="done")
        if row.verb == "recommend" and (runs / row.id / RECOMMENDATIONS).is_file()
    ]
    return page(
        request,
        "annotate/list.html.j2",
        projects=projects(store_of(request)),
        runs=recommended,
        files=_files(request),
        world_languages=LANGUAGES,
        name=name_of(request),
    )


def _files(request: Request) -> list[str]:
    """Return JSON files that a user put into the runs folder; those of runs have other uses."""
    root = request.app.state.settings.runs
    found = [*root.glob("*.json"), *(p for p in root.glob("*/*.json") if not (p.parent / "run.json").exists())]
    return sorted(path.relative_to(root).as_posix() for path in found)[:MAX_FILES]


@router.post("/annotate")
def make_project(
    request: Request,
    source: Annotated[str, Form()],
    language: Annotated[str, Form()] = "ja",
    num_documents: Annotated[int, Form(ge=1, le=1000)] = 10,
    run: Annotated[str, Form()] = "",
    file: Annotated[str, Form()] = "",
    blind: Annotated[bool, Form()] = False,
) -> Response:
    """Make a project and open it."""
    store, root = store_of(request), request.app.state.settings.runs
    if source == "world":
        if language not in LANGUAGES:
            raise HTTPException(404)
        made = from_world(store, language, num_documents, blind=blind)
    elif source == "run" and run:
        made = from_run(store, confined(root, run), blind=blind)
    elif source == "file" and file:
        made = from_file(store, confined(root, file), file, blind=blind)
    else:
        raise UserError(say(request, "annotate.nothing_chosen"))
    return RedirectResponse(f"/annotate/{made}", 303)


@router.get("/annotate/{project}")
def show_project(request: Request, project: str) -> Response:
    """Show a project's documents and how far each is."""
    collection, annotations = open_project(store_of(request), project)
    rows = progress(annotations)
    name = name_of(request)
    following = next((row.number for row in rows if name not in row.work or not row.work[name].done), None)
    people = sorted({user for row in rows for user in row.work})
    return page(
        request,
        "annotate/project.html.j2",
        project=collection,
        rows=rows,
        people=people,
        name=name,
        following=following,
        recalls={user: found for user in people if (found := annotations.recall(user)).num_asked},
    )


@dataclass(frozen=True)
class Desk:
    """What the page of one document shows of one annotator's work."""

    rows: list[Candidate]
    version: int
    reviewed: int
    edits: int
    made: int
    can_undo: bool
    can_redo: bool
    done: bool


def find_place(request: Request, project: str, number: int) -> tuple[Collection, AnnotationStore, Document, int]:
    """Return project, annotations, document and how many documents there are.

    Raises:
        HTTPException: 404, no such document.
    """
    collection, annotations = open_project(store_of(request), project)
    titles = annotations.titles()
    if not 1 <= number <= len(titles):
        raise HTTPException(404)
    return collection, annotations, annotations.document(titles[number - 1]), len(titles)


def _desk(annotations: AnnotationStore, title: str, name: str) -> Desk:
    events = annotations.events(title, name)
    rows = candidates(annotations.proposals(title), events)
    holding, undone, _ = resolve(events)
    edits = edits_of_log(events)
    done = any(event.operation == "done" for event in holding)
    return Desk(rows, len(events), num_reviewed(rows), edits.remaining, edits.made, bool(holding), bool(undone), done)


def _desk_values(
    request: Request, annotations: AnnotationStore, document: Document, number: int, name: str
) -> dict[str, Any]:
    desk = _desk(annotations, document.title, name)
    return {
        "called": partial(called, request),
        "desk": desk,
        "document": document,
        "project": annotations.project,
        "number": number,
        "colour_of": colour_of,
        "relations": relations_for([], NAMES, [row.triple for row in desk.rows]),
        "questions": annotations.questions(document, name),
    }


@router.get("/annotate/{project}/{number:int}")
def show_document(request: Request, project: str, number: int) -> Response:
    """Show a document's desk; whoever has not given a name is asked for it first."""
    collection, annotations, document, num_documents = find_place(request, project, number)
    name = name_of(request)
    if not name:
        return page(request, "annotate/name.html.j2", next=request.url.path)
    return page(
        request,
        "annotate/document.html.j2",
        collection=collection,
        num_documents=num_documents,
        name=name,
        sentences=[segments(document, sentence) for sentence in range(len(document.sentences))],
        blind=not annotations.proposals(document.title),
        **_desk_values(request, annotations, document, number, name),
        notice="",
        conflict=None,
    )


@router.get("/annotate/{project}/{number:int}/desk")
def refresh_desk(request: Request, project: str, number: int, seen: int) -> Response:
    """Return the desk if there are events that the page has not seen."""
    _, annotations, document, _ = find_place(request, project, number)
    name = name_of(request)
    if not name or len(annotations.events(document.title, name)) == seen:
        return Response(status_code=204)
    values = _desk_values(request, annotations, document, number, name)
    return page(request, "annotate/desk.html.j2", **values, notice="", conflict=None)


@router.post("/annotate/{project}/{number:int}/events")
def add_event(
    request: Request,
    project: str,
    number: int,
    operation: Annotated[str, Form(max_length=20)],
    seen: Annotated[int, Form(ge=0)],
    token: Annotated[str, Form(max_length=100)],
    head: Annotated[int | None, Form()] = None,
    relation: Annotated[str, Form(max_length=200)] = "",
    tail: Annotated[int | None, Form()] = None,
    evidence: Annotated[str, Form(max_length=5000)] = "",
    new_relation: Annotated[str, Form(max_length=200)] = "",
    source: Annotated[Literal["human", "question"], Form()] = "human",
    milliseconds: Annotated[int, Form(ge=0, le=3_600_000)] = 0,
) -> Response:
    """Store one event and return the desk: what it shows is on the disk. A conflict or refusal is shown there too."""
    _, annotations, document, _ = find_place(request, project, number)
    name = name_of(request)
    if not name:
        raise HTTPException(403, say(request, "annotate.no_name"))
    status, notice, conflict = 200, "", None
    try:
        triple = None if head is None else _checked(document, head, relation, tail, evidence)
        event = Event(name, document.title, operation, triple, new_relation, source, milliseconds)  # type: ignore[arg-type]
        annotations.append(event, seen=seen, token=token)
    except Conflict as found:
        status, conflict = 409, _conflict(found.unseen, event)
    except UserError as error:
        status, notice = 422, str(error)
    values = _desk_values(request, annotations, document, number, name)
    return page(request, "annotate/desk.html.j2", status, **values, notice=notice, conflict=conflict)


def _checked(document: Document, head: int, relation: str, tail: int | None, evidence: str) -> Triple:
    """Return the triple of a request.

    Raises:
        UserError: entities or sentences that the document has not.
    """
    entities = range(len(document.entities))
    if tail is None or head not in entities or tail not in entities or head == tail or not relation.strip():
        raise UserError("head and tail are two entities of the document, and a relation is named.")
    sentences = sorted({int(part) for part in evidence.split() if part.isdecimal()})
    if sentences and sentences[-1] >= len(document.sentences):
        raise UserError(f"there is no sentence {sentences[-1] + 1}.")
    return Triple(head, relation, tail, tuple(sentences))


def _conflict(unseen: list[Entry], event: Event) -> dict[str, Any]:
    return {"unseen": [event_of(entry) for entry in unseen], "mine": event}
