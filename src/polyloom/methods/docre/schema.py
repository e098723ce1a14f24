"""Relations and what follows from them: inverse and symmetric relations, and the closure under both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from polyloom.methods.docre.data import Document, Triple

INVERSE_PAIRS = (
    ("P361", "P527"),
    ("P155", "P156"),
    ("P127", "P1830"),
    ("P137", "P121"),
    ("P36", "P1376"),
    ("P1344", "P710"),
)
WORLD_PAIRS = (("P1365", "P1366"),)
SYMMETRIC = ("P3373", "P26")
FUNCTIONAL = ("P569", "P570", "P19", "P20", "P36")
INVERSE = {
    one: other for left, right in (*INVERSE_PAIRS, *WORLD_PAIRS) for one, other in ((left, right), (right, left))
} | {relation: relation for relation in SYMMETRIC}
DOCRED_TYPES = {"TIME": "DAT", "MISC": "ART", "NUM": "%"}
NAMES = {
    "P6": "head of government", "P17": "country", "P19": "place of birth", "P20": "place of death", "P26": "spouse",
    "P27": "country of citizenship", "P30": "continent", "P36": "capital", "P37": "official language",
    "P38": "currency", "P40": "child", "P69": "educated at", "P108": "employer", "P112": "founded by",
    "P121": "operates", "P123": "publisher", "P127": "owned by", "P131": "located in", "P137": "operator",
    "P155": "follows", "P156": "followed by", "P166": "award received", "P170": "creator", "P175": "performer",
    "P276": "location", "P361": "part of", "P400": "platform", "P463": "member of", "P527": "has part",
    "P569": "date of birth", "P570": "date of death", "P580": "start time", "P582": "end time",
    "P674": "characters", "P710": "participant", "P937": "work location", "P1344": "participant in",
    "P1365": "replaces", "P1366": "replaced by", "P1376": "capital of", "P1441": "present in work",
    "P1830": "owner of", "P3373": "sibling",
}  # fmt: skip


def relations_of(documents: Iterable[Document]) -> list[str]:
    """Return the relations that occur, sorted."""
    return sorted({triple.relation for document in documents for triple in document.triples or ()})


def closure(triples: Sequence[Triple], relations: Iterable[str] | None = None) -> list[Triple]:
    """Add the inverse of every triple, with the same evidence, where the schema has it.

    Args:
        triples: of one document.
        relations: the schema's; by default every known inverse is added.

    Returns:
        The triples, then the derived ones; applying it again changes nothing.
    """
    allowed = None if relations is None else set(relations)
    kept = {(triple.head, triple.relation, triple.tail): triple for triple in triples}
    for triple in triples:
        inverse = INVERSE.get(triple.relation)
        if inverse is not None and (allowed is None or inverse in allowed):
            derived = Triple(triple.tail, inverse, triple.head, triple.evidence)
            kept.setdefault((derived.head, derived.relation, derived.tail), derived)
    return list(kept.values())


def missing_inverses(document: Document, pairs: Sequence[tuple[str, str]] = INVERSE_PAIRS) -> list[Triple]:
    """Return what the closure under the inverse pairs adds to a document's gold triples."""
    relations = {relation for pair in pairs for relation in pair}
    triples = [triple for triple in document.triples or () if triple.relation in relations]
    return closure(triples)[len(triples) :]
