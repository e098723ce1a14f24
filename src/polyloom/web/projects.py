"""Annotation projects: made of the embedded world, a DocRED-style file or a run of `docre recommend`, and how far they
are."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from polyloom.core.config import read_yaml
from polyloom.core.errors import UserError
from polyloom.core.files import read_json
from polyloom.data.world import LANGUAGES
from polyloom.methods.docre.annotation_store import BLIND_EVERY, KIND, AnnotationStore, Proposal
from polyloom.methods.docre.annotations import ADJUDICATED, Event, LoggedEdits, edits_of_log, resolve
from polyloom.methods.docre.data import WORLD, Document, Triple, load_documents, name_facts
from polyloom.methods.docre.desk import candidates, num_reviewed
from polyloom.methods.docre.recommend import query_knowledge_base
from polyloom.reports.text import clean
from polyloom.runs.store import Collection, EventStore

NUM_KNOWN_DOCUMENTS = 80
RECOMMENDATIONS = "artifacts/recommendations.json"


def projects(store: EventStore) -> list[Collection]:
    """Return the annotation projects, newest first."""
    return store.collections(KIND)


def open_project(store: EventStore, project: str) -> tuple[Collection, AnnotationStore]:
    """Return a project and its annotations.

    Raises:
        UserError: there is none.
    """
    return store.collection(project, KIND), AnnotationStore(store, project)


def from_world(store: EventStore, language: str, num_documents: int, *, blind: bool) -> str:
    """Make a project of the embedded world's documents; what other documents of the world say is recommended.

    Returns:
        The project's identity.
    """
    documents = load_documents(WORLD, language=language, num_documents=num_documents, split="test")[0]
    known = load_documents(WORLD, language=language, num_documents=NUM_KNOWN_DOCUMENTS)[0]
    proposals: dict[str, list[Proposal]] = {document.title: [] for document in documents}
    for one in query_knowledge_base(documents, name_facts(known)):
        proposals[one.title].append((Triple(one.head, one.relation, one.tail, one.evidence), one.score, "kb"))
    about = {"source": "world", "language": language}
    return _make(
        store, f"world-{language}", f"{LANGUAGES[language]} ({language})", documents, proposals, about, blind=blind
    )


def from_file(store: EventStore, path: Path, title: str, *, blind: bool) -> str:
    """Make a project of a DocRED-style file; its own labels, if any, are what is recommended.

    Raises:
        UserError: no such file, or one of another form.
    """
    documents = load_documents(str(path))[0]
    proposals: dict[str, list[Proposal]] = {
        document.title: [(triple, 1.0, "model") for triple in document.triples or ()] for document in documents
    }
    about = {"source": title, "language": ""}
    return _make(store, path.stem, title, documents, proposals, about, blind=blind)


def from_run(store: EventStore, folder: Path, *, blind: bool) -> str:
    """Make a project of a run of `docre recommend`: its documents with the model's recommendations.

    Raises:
        UserError: the run has none, or its documents are gone.
    """
    if not (folder / RECOMMENDATIONS).is_file():
        raise UserError("holds no recommendations.", where=folder.name, hint="Choose a run of docre recommend.")
    config = read_yaml(folder / "config.yaml")
    documents = load_documents(
        str(config["data"]),
        language=config["language"],
        num_documents=config["num_documents"],
        seed=config["seed"],
        split="test",
    )[0]
    proposals: dict[str, list[Proposal]] = {}
    for row in read_json(folder / RECOMMENDATIONS):
        triple = Triple(row["h_idx"], row["r"], row["t_idx"], tuple(row["evidence"]))
        proposals.setdefault(row["title"], []).append((triple, float(row["score"]), "model"))
    language = config["language"] if config["data"] == WORLD else ""
    about = {"source": folder.name, "language": language}
    return _make(store, folder.name, folder.name, documents, proposals, about, blind=blind)


def _make(
    store: EventStore,
    stem: str,
    title: str,
    documents: Sequence[Document],
    proposals: dict[str, list[Proposal]],
    about: dict[str, str],
    *,
    blind: bool,
) -> str:
    project = f"{re.sub(r'[^A-Za-z0-9]+', '-', stem).strip('-')[:40] or 'project'}-{secrets.token_hex(3)}"
    annotations = AnnotationStore(store, project)
    titled = [(old.title, replace(old, title=new)) for old, new in zip(documents, unique(documents), strict=True)]
    for number, (old_title, document) in enumerate(titled, 1):
        if not (blind and number % BLIND_EVERY == 0):
            annotations.recommend(document.title, proposals.get(old_title, ()))
    annotations.create(title, [document for _, document in titled], about)
    return project


def unique(documents: Sequence[Document]) -> list[str]:
    """Return the documents' titles with a number behind those that are empty or taken: events are keyed by title."""
    titles: dict[str, None] = {}
    for number, document in enumerate(documents, 1):
        title = clean(document.title).strip()[:400]
        titles[title if title and title not in titles else f"{title} #{number}".strip()] = None
    return list(titles)


@dataclass(frozen=True)
class Work:
    """What one annotator did in one document."""

    user: str
    reviewed: int
    total: int
    edits: LoggedEdits
    done: bool


@dataclass(frozen=True)
class Progress:
    """How far one document is."""

    number: int
    title: str
    num_recommended: int
    work: dict[str, Work]
    settled: bool


def progress(annotations: AnnotationStore) -> list[Progress]:
    """Return how far each document of a project is, in order."""
    proposals, events = annotations.whole_log()
    by_document: dict[str, dict[str, Work]] = {}
    for (title, user), done in events.items():
        by_document.setdefault(title, {})[user] = work_of(user, proposals.get(title, []), done)
    found = []
    for number, title in enumerate(annotations.titles(), 1):
        work = by_document.get(title, {})
        settled = work.pop(ADJUDICATED, None) is not None
        found.append(Progress(number, title, len(proposals.get(title, [])), dict(sorted(work.items())), settled))
    return found


def work_of(user: str, proposals: Sequence[Proposal], events: Sequence[Event]) -> Work:
    """Return what an annotator's events in a document come to."""
    rows = candidates(proposals, events)
    done = any(event.operation == "done" for event in resolve(events)[0])
    return Work(user, num_reviewed(rows), len(rows), edits_of_log(events), done)
