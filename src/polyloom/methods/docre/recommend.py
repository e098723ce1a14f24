"""Recommendations for annotators, and the edit steps that they leave."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from polyloom.core.seeding import numpy_generator
from polyloom.methods.docre.data import Document, evidence_by_rule
from polyloom.metrics.relations import Fact, Prediction, edit_steps
from polyloom.metrics.statistics import Interval

NameFact = tuple[str, str, str]
ADD_COST, REMOVE_COST = 3.0, 1.0


def name_key(name: str) -> str:
    """Return a name as names are compared: NFKC, lower case, no spaces (half-width and full-width forms are equal)."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def query_knowledge_base(documents: Sequence[Document], facts: Collection[NameFact]) -> list[Prediction]:
    """Recommend every triple of which any pair of names is a fact of the knowledge base.

    Args:
        documents: to be annotated.
        facts: (head name, relation, tail name).
    """
    relations: dict[tuple[str, str], set[str]] = {}
    for head, relation, tail in facts:
        relations.setdefault((name_key(head), name_key(tail)), set()).add(relation)
    heads = {head for head, _ in relations}
    found = []
    for document in documents:
        keys = [{name_key(name) for name in document.names(i)} for i in range(len(document.entities))]
        for h, t in document.pairs():
            known = {r for a in keys[h] & heads for b in keys[t] for r in relations.get((a, b), ())}
            evidence = evidence_by_rule(document, h, t) if known else ()
            found += [Prediction(document.title, h, r, t, evidence, 1.0) for r in sorted(known)]
    return found


def coverage(documents: Sequence[Document], facts: Collection[NameFact]) -> float:
    """Return the share of entities of which any name occurs in the knowledge base."""
    names = {name_key(name) for head, _, tail in facts for name in (head, tail)}
    entities = [{name_key(n) for n in d.names(i)} for d in documents for i in range(len(d.entities))]
    return sum(bool(keys & names) for keys in entities) / max(1, len(entities))


def union(*systems: Sequence[Prediction]) -> list[Prediction]:
    """Return the recommendations of several systems, each fact once, of the first that has it."""
    kept: dict[Fact, Prediction] = {}
    for predictions in systems:
        for one in predictions:
            kept.setdefault(one.fact, one)
    return list(kept.values())


@dataclass(frozen=True)
class Edits:
    """What a system's recommendations leave to do, over all documents.

    Attributes:
        steps: additions and removals, one each.
        composite: the same with a changed type or direction as one.
        additions: what the annotator has to find alone.
        removals: what was wrongly recommended.
        cost: additions times 3 plus removals: an addition asks for head, tail, type and evidence.
        by_document: steps of each document.
    """

    steps: int
    composite: int
    additions: int
    removals: int
    cost: float
    by_document: tuple[int, ...]


def count_edits(recommended: Sequence[Prediction], documents: Sequence[Document]) -> Edits:
    """Count the edits from recommendations to the documents' gold triples."""
    found: dict[str, set[Fact]] = {document.title: set() for document in documents}
    for one in recommended:
        found[one.title].add(one.fact)
    gold = {document.title: {document.fact(t) for t in document.triples or ()} for document in documents}
    titles = [document.title for document in documents]
    additions = sum(len(gold[title] - found[title]) for title in titles)
    removals = sum(len(found[title] - gold[title]) for title in titles)
    return Edits(
        additions + removals,
        sum(edit_steps(found[title], gold[title], composite=True) for title in titles),
        additions,
        removals,
        additions * ADD_COST + removals * REMOVE_COST,
        tuple(edit_steps(found[title], gold[title]) for title in titles),
    )


def reduction(system: Sequence[int], baseline: Sequence[int], *, num_resamples: int = 2000, seed: int = 0) -> Interval:
    """Return 1 - steps(system) / steps(baseline) with a 95 % interval from documents drawn together.

    Args:
        system: steps of each document.
        baseline: steps of the same documents under the baseline.
        num_resamples: draws of documents.
        seed: of the draws.
    """
    a, b = np.array(system, float), np.array(baseline, float)
    drawn = numpy_generator(seed, "edits").integers(0, len(a), (num_resamples, len(a)))
    ratios = 1 - a[drawn].sum(1) / np.maximum(b[drawn].sum(1), 1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(1 - a.sum() / max(1.0, b.sum())), float(low), float(high))


def edits_by_relation(
    recommended: Sequence[Prediction], documents: Sequence[Document]
) -> Mapping[str, tuple[int, int, int]]:
    """Return per relation: gold triples, additions, removals."""
    gold = {document.fact(t) for document in documents for t in document.triples or ()}
    found = {one.fact for one in recommended}
    relations = sorted({fact[2] for fact in gold | found})
    return {
        r: (
            sum(fact[2] == r for fact in gold),
            sum(fact[2] == r for fact in gold - found),
            sum(fact[2] == r for fact in found - gold),
        )
        for r in relations
    }
