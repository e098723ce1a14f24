"""A knowledge graph over documents: canonical entities, evidence on every edge, and updates that can be taken back.

What each document contributes is stored; nodes and edges are derived from it. So a re-run changes nothing, and taking a
document back removes exactly what it alone supported.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import read_json, write_json
from polyloom.methods.docre.data import Document, Triple
from polyloom.methods.docre.recommend import name_key
from polyloom.methods.docre.schema import FUNCTIONAL, INVERSE, NAMES, closure

VERSION = 1
# A single character is too little to be somebody's alias.
MIN_ALIAS = 2


@dataclass(frozen=True)
class Contribution:
    """What one document gives: its entities (names and type) and its triples with evidence text and score."""

    entities: list[tuple[list[str], str]]
    triples: list[tuple[int, str, int, list[int], str, float]]
    model: str = "gold"


@dataclass(frozen=True)
class Support:
    """Why an edge is there: document, sentences, their text, the score and who found it."""

    document: str
    sentences: tuple[int, ...]
    text: str
    score: float
    model: str
    derived: bool


@dataclass
class Node:
    """A canonical entity."""

    id: str
    name: str
    type: str
    aliases: list[str]
    documents: list[str]


@dataclass
class Graph:
    """Nodes by id, edges (head id, relation, tail id) with their support."""

    contributions: dict[str, Contribution] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[tuple[str, str, str], list[Support]] = field(default_factory=dict)
    merges: dict[str, str] = field(default_factory=dict)

    def update(
        self, documents: Iterable[Document], *, scores: Mapping[Any, float] | None = None, model: str = "gold"
    ) -> None:
        """Put documents in, or what they now say in the place of what they said before.

        Args:
            documents: with their triples.
            scores: score of a fact (title, head, relation, tail); 1 where it has none.
            model: what found the triples.
        """
        for document in documents:
            self.contributions[document.title] = contribution(document, scores or {}, model)
        self.derive()

    def retract(self, title: str) -> None:
        """Take a document back.

        Raises:
            UserError: the graph does not have it.
        """
        if title not in self.contributions:
            raise UserError(f"holds no document {title!r}.", where="graph", hint="List them with: docre graph.")
        del self.contributions[title]
        self.derive()

    def derive(self) -> None:
        """Work nodes and edges out of the contributions."""
        self.nodes, places = canonical_entities(self.contributions, self.merges)
        self.edges = {}
        for title, one in sorted(self.contributions.items()):
            stated = {(h, r, t): (ids, text, score) for h, r, t, ids, text, score in one.triples}
            triples = [Triple(h, r, t, tuple(ids)) for (h, r, t), (ids, _, _) in stated.items()]
            for triple in closure(triples):
                found = stated.get((triple.head, triple.relation, triple.tail))
                derived = found is None
                _, text, score = found or stated[triple.tail, INVERSE[triple.relation], triple.head]
                edge = (places[title, triple.head], triple.relation, places[title, triple.tail])
                support = Support(title, triple.evidence, text, score, one.model, derived)
                if edge[0] != edge[2]:
                    self.edges.setdefault(edge, []).append(support)

    def merge(self, node: str, into: str) -> None:
        """Decide that two nodes are one.

        Raises:
            UserError: one of them is not there, or they are one already.
        """
        if node not in self.nodes or into not in self.nodes or node == into:
            raise UserError(f"cannot merge {node!r} into {into!r}.", where="graph", hint="Name two nodes by their ids.")
        self.merges[node] = into
        self.derive()

    def merge_queue(self) -> list[tuple[str, str]]:
        """Return pairs (node, node of a longer name) of one type that share an alias and no document."""
        holders: dict[tuple[str, str], set[str]] = {}
        for node in self.nodes.values():
            for alias in node.aliases:
                holders.setdefault((node.type, name_key(alias)), set()).add(node.id)
        queue = []
        for node in self.nodes.values():
            others = holders[node.type, name_key(node.name)] - {node.id}
            if len(name_key(node.name)) >= MIN_ALIAS and len(others) == 1:
                (other,) = others
                if not set(node.documents) & set(self.nodes[other].documents):
                    queue.append((node.id, other))
        return sorted(queue)

    def conflicts(self) -> list[tuple[str, str, list[str]]]:
        """Return (head, relation, tails) where a relation that has one value has several."""
        tails: dict[tuple[str, str], set[str]] = {}
        for head, relation, tail in self.edges:
            if relation in FUNCTIONAL:
                tails.setdefault((head, relation), set()).add(tail)
        return [(head, r, sorted(found)) for (head, r), found in sorted(tails.items()) if len(found) > 1]

    def search(self, words: str) -> list[Node]:
        """Return nodes of which a name holds the words, exact names first, then those with most documents."""
        wanted = name_key(words)
        hits = [node for node in self.nodes.values() if any(wanted in name_key(alias) for alias in node.aliases)]
        exact = {node.id for node in hits if any(wanted == name_key(alias) for alias in node.aliases)}
        return sorted(hits, key=lambda node: (node.id not in exact, -len(node.documents), node.name))

    def facts_of(self, node: str) -> list[tuple[str, str, str, list[Support]]]:
        """Return the edges of a node, with their support."""
        return [(h, r, t, s) for (h, r, t), s in sorted(self.edges.items()) if node in (h, t)]

    def related(self, node: str, limit: int = 5) -> list[tuple[Node, int]]:
        """Return the nodes with most neighbours in common."""
        neighbours: dict[str, set[str]] = {}
        for head, _, tail in self.edges:
            neighbours.setdefault(head, set()).add(tail)
            neighbours.setdefault(tail, set()).add(head)
        own = neighbours.get(node, set())
        shared = {other: len(own & theirs) for other, theirs in neighbours.items() if other != node}
        best = sorted((item for item in shared.items() if item[1]), key=lambda item: (-item[1], item[0]))
        return [(self.nodes[other], count) for other, count in best[:limit]]


def contribution(document: Document, scores: Mapping[Any, float], model: str) -> Contribution:
    """Return what a document gives to a graph."""
    rows = []
    for t in document.triples or ():
        text = " ".join(document.sentence_text(sentence) for sentence in t.evidence)
        rows.append((t.head, t.relation, t.tail, list(t.evidence), text, float(scores.get(document.fact(t), 1.0))))
    names = [
        (list(dict.fromkeys(m.name for m in entity)), document.entity_type(i))
        for i, entity in enumerate(document.entities)
    ]
    return Contribution(names, rows, model)


def node_id(kind: str, name: str) -> str:
    """Return the id of the entity of this type whose longest name this is."""
    return hashlib.sha256(f"{kind}\t{name_key(name)}".encode()).hexdigest()[:12]


def canonical_entities(
    contributions: Mapping[str, Contribution], merges: Mapping[str, str]
) -> tuple[dict[str, Node], dict[tuple[str, int], str]]:
    """Merge entities of one type with the same longest name, over all documents.

    A node's identity depends on its own names alone, so that no other document can change it; what shares only an
    alias waits in `Graph.merge_queue` for somebody's decision.

    Args:
        contributions: by title.
        merges: decided merges, node id to node id.

    Returns:
        The nodes, and the node of each (document, entity).
    """
    members: dict[str, list[tuple[str, int]]] = {}
    places: dict[tuple[str, int], str] = {}
    for title, one in sorted(contributions.items()):
        for number, (names, kind) in enumerate(one.entities):
            longest = max(names, key=lambda name: (len(name_key(name)), name_key(name)))
            identity = node_id(kind, longest)
            while identity in merges:
                identity = merges[identity]
            members.setdefault(identity, []).append((title, number))
            places[title, number] = identity
    nodes = {}
    for identity, found in sorted(members.items()):
        counts = Counter(name for title, number in found for name in contributions[title].entities[number][0])
        title, number = found[0]
        kind = contributions[title].entities[number][1]
        best = max(counts, key=lambda name: (node_id(kind, name) == identity, len(name), counts[name], name))
        nodes[identity] = Node(identity, best, kind, sorted(counts), sorted({title for title, _ in found}))
    return nodes, places


def save_graph(graph: Graph, path: Path) -> None:
    """Write the graph's contributions, nodes and edges as JSON."""
    write_json(
        path,
        {
            "version": VERSION,
            "merges": graph.merges,
            "contributions": {title: asdict(one) for title, one in sorted(graph.contributions.items())},
            "nodes": [asdict(node) for _, node in sorted(graph.nodes.items())],
            "edges": [
                {"head": h, "relation": r, "tail": t, "support": [asdict(one) for one in support]}
                for (h, r, t), support in sorted(graph.edges.items())
            ],
        },
    )


def load_graph(path: Path) -> Graph:
    """Read a graph's contributions and derive it anew.

    Raises:
        UserError: no graph.
    """
    value = read_json(path)
    try:
        graph = Graph(
            {
                title: Contribution(
                    [(names, kind) for names, kind in one["entities"]],
                    [(h, r, t, ids, text, score) for h, r, t, ids, text, score in one["triples"]],
                    one["model"],
                )
                for title, one in value["contributions"].items()
            },
            merges=dict(value["merges"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError("is no graph that `docre graph` wrote.", where=str(path)) from error
    graph.derive()
    return graph


def to_turtle(graph: Graph) -> str:
    """Return the graph as RDF Turtle: Wikidata properties, labels, and reified statements for the evidence."""
    lines = [
        "@prefix e: <urn:polyloom:entity:> .",
        "@prefix s: <urn:polyloom:statement:> .",
        "@prefix v: <urn:polyloom:> .",
        "@prefix p: <http://www.wikidata.org/prop/direct/> .",
        "@prefix rdf: <http://www.w3.org/1999/02/22-rdf-syntax-ns#> .",
        "@prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .",
        "",
    ]
    for node in graph.nodes.values():
        aliases = "".join(f" ; v:alias {json.dumps(a, ensure_ascii=False)}" for a in node.aliases if a != node.name)
        label = json.dumps(node.name, ensure_ascii=False)
        lines.append(f"e:{node.id} rdfs:label {label} ; v:type {json.dumps(node.type)}{aliases} .")
    for (head, relation, tail), support in sorted(graph.edges.items()):
        lines.append(f"e:{head} p:{relation} e:{tail} .")
        for one in support:
            name = hashlib.sha256(repr((head, relation, tail, one)).encode()).hexdigest()[:12]
            document = json.dumps(one.document, ensure_ascii=False)
            text = json.dumps(one.text, ensure_ascii=False)
            lines.append(
                f"s:{name} rdf:subject e:{head} ; rdf:predicate p:{relation} ; rdf:object e:{tail} ; "
                f"v:document {document} ; v:evidence {text} ; v:score {one.score:.6e} ."
            )
    return "\n".join(lines) + "\n"


def to_csv(graph: Graph) -> tuple[str, str]:
    """Return nodes and edges as two CSV texts with headers."""
    nodes, edges = io.StringIO(), io.StringIO()
    writer = csv.writer(nodes)
    writer.writerow(["id", "name", "type", "aliases", "documents"])
    for node in graph.nodes.values():
        writer.writerow([node.id, node.name, node.type, "|".join(node.aliases), "|".join(node.documents)])
    writer = csv.writer(edges)
    writer.writerow(["head", "relation", "tail", "name", "document", "sentences", "text", "score", "model", "derived"])
    for (h, r, t), support in sorted(graph.edges.items()):
        for one in support:
            ids = " ".join(map(str, one.sentences))
            writer.writerow([h, r, t, NAMES.get(r, r), one.document, ids, one.text, one.score, one.model, one.derived])
    return nodes.getvalue(), edges.getvalue()


def to_cypher(graph: Graph) -> str:
    """Return MERGE statements that a graph database can run again and again to the same end."""

    def quoted(value: Any) -> str:
        # Cypher's strings know \\uXXXX for the control characters that JSON escapes.
        return json.dumps(value, ensure_ascii=False)

    lines = []
    for node in graph.nodes.values():
        aliases, name = quoted(node.aliases), quoted(node.name)
        lines.append(
            f"MERGE (n:Entity {{id: {quoted(node.id)}}}) "
            f"SET n.name = {name}, n.type = {quoted(node.type)}, n.aliases = {aliases};"
        )
    for (head, relation, tail), support in sorted(graph.edges.items()):
        lines.append(
            f"MATCH (a:Entity {{id: {quoted(head)}}}), (b:Entity {{id: {quoted(tail)}}}) "
            f"MERGE (a)-[r:`{relation.replace('`', '')}`]->(b) "
            f"SET r.documents = {quoted(sorted({one.document for one in support}))}, "
            f"r.evidence = {quoted([one.text for one in support])}, r.score = {max(one.score for one in support)};"
        )
    return "\n".join(lines) + "\n"


def difference(before: Graph, after: Graph) -> dict[str, int]:
    """Count edges and nodes that came and went between two graphs."""
    return {
        "edges_added": len(after.edges.keys() - before.edges.keys()),
        "edges_removed": len(before.edges.keys() - after.edges.keys()),
        "nodes_added": len(after.nodes.keys() - before.nodes.keys()),
        "nodes_removed": len(before.nodes.keys() - after.nodes.keys()),
    }
