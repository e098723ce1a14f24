"""The verb graph: build, update, query and export a knowledge graph."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError, closest
from polyloom.core.files import write_text
from polyloom.core.result import Artifact, Result, Scalar, Table
from polyloom.methods.docre.config import (
    GraphConfig,
)
from polyloom.methods.docre.data import (
    Document,
    Triple,
)
from polyloom.methods.docre.graph import Graph, difference, load_graph, save_graph, to_csv, to_cypher, to_turtle
from polyloom.methods.docre.schema import INVERSE_PAIRS, NAMES, missing_inverses
from polyloom.methods.docre.study import (
    _inside,
    artifact_of,
    documents_of,
    limits,
    read_predictions,
)
from polyloom.metrics.relations import (
    Prediction,
)
from polyloom.runs.folder import Run


def run_graph(config: GraphConfig, run: Run) -> Result:
    """Build or update a knowledge graph, look something up, and export it.

    Raises:
        UserError: unreadable files, or a document or entity that the graph does not have.
    """
    documents = documents_of(config)
    graph = load_graph(Path(config.graph)) if config.graph else Graph()
    before = deepcopy(graph)
    scores, model = {}, "gold"
    if config.predictions:
        predictions, model = read_predictions(Path(config.predictions)), "predicted"
        scores = {one.fact: one.score for one in predictions}
        documents = [with_triples(document, predictions) for document in documents]
    if config.retract:
        graph.retract(config.retract)
    else:
        graph.update(documents, scores=scores, model=model)
    change, once = difference(before, graph), deepcopy(graph)
    if not config.retract:
        graph.update(documents, scores=scores, model=model)
    artifacts = export_graph(graph, run)
    tables = graph_tables(graph)
    verdict = (
        f"The graph has {len(graph.nodes)} entities and {len(graph.edges)} relations, each with its evidence; "
        f"{change['edges_added']} came and {change['edges_removed']} went."
    )
    if config.query is not None:
        tables |= query_table(graph, config.query)
    unclosed = sum(len(missing_inverses(document)) for document in documents)
    return run.result(
        scalars={
            "num_nodes": Scalar(value=len(graph.nodes)),
            "num_edges": Scalar(value=len(graph.edges)),
            "num_derived_edges": Scalar(value=sum(all(s.derived for s in found) for found in graph.edges.values())),
            "num_conflicts": Scalar(value=len(graph.conflicts())),
            "num_merge_candidates": Scalar(value=len(graph.merge_queue())),
            "num_missing_inverses": Scalar(value=unclosed),
            "edges_changed_by_second_run": Scalar(
                value=sum(graph.edges.get(e) != once.edges.get(e) for e in {*graph.edges, *once.edges})
            ),
            **{name: Scalar(value=value) for name, value in change.items()},
        },
        tables=tables,
        artifacts=artifacts,
        verdicts=[verdict],
        limitations=[
            *limits(config.data),
            "Entities are merged over documents by equal longest name and type; aliases wait in the merge queue.",
            f"Derived edges come from {len(INVERSE_PAIRS)} inverse pairs of relations and the symmetric ones.",
        ],
    )


def with_triples(document: Document, predictions: Sequence[Prediction]) -> Document:
    """Return a document with predicted triples in the place of its own."""
    found = [one for one in predictions if one.title == document.title and _inside(one, {document.title: document})]
    return replace(document, triples=tuple(Triple(p.head, p.relation, p.tail, p.evidence) for p in found))


def export_graph(graph: Graph, run: Run) -> dict[str, Artifact]:
    """Write the graph in all its forms."""
    save_graph(graph, run.artifact("graph.json"))
    nodes, edges = to_csv(graph)
    texts = {"graph.ttl": to_turtle(graph), "nodes.csv": nodes, "edges.csv": edges, "graph.cypher": to_cypher(graph)}
    for name, text in texts.items():
        write_text(run.artifact(name), text)
    names = ["graph.json", *texts]
    return {name: artifact_of(run, run.artifact(name), "the knowledge graph") for name in names}


def graph_tables(graph: Graph, limit: int = 60) -> dict[str, Table]:
    """Return edges with evidence, conflicts and the merge queue as tables."""
    name = {node.id: node.name for node in graph.nodes.values()}
    edges: list[list[Any]] = []
    for (h, r, t), support in sorted(graph.edges.items(), key=lambda item: (name[item[0][0]], item[0][1])):
        if not all(one.derived for one in support):
            edges.append([name[h], NAMES.get(r, r), name[t], support[0].document, support[0].text[:120]])
    conflicts: list[list[Any]] = [
        [name[head], NAMES.get(r, r), " | ".join(name[t] for t in tails)] for head, r, tails in graph.conflicts()
    ]
    queue: list[list[Any]] = [[name[a], name[b]] for a, b in graph.merge_queue()]
    return {
        "edges": Table(
            columns=["head", "relation", "tail", "document", "evidence"], rows=edges[:limit], title="Relations"
        ),
        "conflicts": Table(columns=["head", "relation", "values"], rows=conflicts[:limit], title="Conflicts"),
        "merge_queue": Table(columns=["entity", "perhaps the same as"], rows=queue[:limit], title="Merge queue"),
    }


def query_table(graph: Graph, words: str) -> dict[str, Table]:
    """Return the facts of the best match and its related entities.

    Raises:
        UserError: no entity has such a name.
    """
    found = graph.search(words)
    if not found:
        names = [node.name for node in graph.nodes.values()]
        hint = closest(words, names) if len(names) < 50 else ""
        raise UserError(f"the graph has no entity named {words!r}.", where="--query", hint=hint)
    node, name = found[0], {one.id: one.name for one in graph.nodes.values()}
    rows: list[list[Any]] = [
        [name[h], NAMES.get(r, r), name[t], s[0].document, s[0].text[:160]] for h, r, t, s in graph.facts_of(node.id)
    ]
    related: list[list[Any]] = [[other.name, count] for other, count in graph.related(node.id)]
    return {
        "answer": Table(
            columns=["head", "relation", "tail", "document", "evidence"], rows=rows, title=f"Facts of {node.name}"
        ),
        "related": Table(columns=["entity", "neighbours in common"], rows=related, title=f"Near {node.name}"),
    }
