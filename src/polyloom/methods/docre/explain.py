"""What a model got wrong, by class; and a page that shows where its evidence lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape

from polyloom.methods.docre.data import Document, Triple, sentence_distance
from polyloom.methods.docre.inputs import restrict
from polyloom.methods.docre.schema import INVERSE, NAMES
from polyloom.metrics.relations import Prediction

FALSE_POSITIVES = ("wrong type", "wrong direction", "type never seen", "no relation")
FALSE_NEGATIVES = ("missed, one sentence", "missed, coreference", "missed, near sentences", "missed, far sentences")
FAR_SENTENCES = 3
Signature = tuple[str, str, str]


def classify_errors(
    document: Document, predictions: Sequence[Prediction], signatures: set[Signature]
) -> list[tuple[str, Triple]]:
    """Return each error of a document with its class.

    A predicted triple is of the wrong type where its pair has another relation, and of the wrong direction where the
    turned triple is gold; the gold triple that it stands for is not counted again. A missed one is put down to
    coreference where head and tail share a sentence only by mentions with another name than their longest.

    Args:
        document: with gold triples.
        predictions: of the document.
        signatures: type signatures of training; empty for any.
    """
    gold = {(t.head, t.relation, t.tail): t for t in document.triples or ()}
    found = {(p.head, p.relation, p.tail) for p in predictions}
    missing = {fact for fact in gold if fact not in found}
    errors = []
    for head, relation, tail in sorted(found - gold.keys()):
        others = sorted(fact for fact in missing if (fact[0], fact[2]) == (head, tail))
        if (tail, relation, head) in missing and INVERSE.get(relation) != relation:
            kind, instead = "wrong direction", (tail, relation, head)
        elif others:
            kind, instead = "wrong type", others[0]
        else:
            signature = (document.entity_type(head), relation, document.entity_type(tail))
            kind, instead = ("type never seen" if signatures and signature not in signatures else "no relation"), None
        if instead is not None:
            missing.discard(instead)
        errors.append((kind, Triple(head, relation, tail)))
    errors += [(missed_class(document, gold[fact]), gold[fact]) for fact in sorted(missing)]
    return errors


def missed_class(document: Document, triple: Triple) -> str:
    """Return why a gold triple may have been missed."""
    distance = sentence_distance(document, triple.head, triple.tail)
    if distance == 0:
        named = [
            {m.sentence for m in document.entities[e] if m.name == document.canonical(e)}
            for e in (triple.head, triple.tail)
        ]
        return "missed, one sentence" if named[0] & named[1] else "missed, coreference"
    return "missed, near sentences" if distance < FAR_SENTENCES else "missed, far sentences"


def count_errors(
    documents: Sequence[Document], predictions: Mapping[str, Sequence[Prediction]], signatures: set[Signature]
) -> Counter[str]:
    """Count errors by class over documents; every class has its entry."""
    counts = Counter(dict.fromkeys((*FALSE_POSITIVES, *FALSE_NEGATIVES), 0))
    for document in documents:
        counts.update(kind for kind, _ in classify_errors(document, predictions.get(document.title, ()), signatures))
    return counts


def sentence_effects(
    document: Document,
    triples: Sequence[Prediction],
    scores: Callable[[Document], Mapping[tuple[int, str, int], float]],
    floor: float,
) -> dict[tuple[int, str, int], list[float]]:
    """Return how much each triple's score falls when a sentence is left out: a counterfactual of any model.

    Args:
        document: the whole.
        triples: whose scores are watched.
        scores: the model: document to scores.
        floor: score of a triple that is no longer scored, as when an entity has lost all mentions.
    """
    whole = scores(document)
    wanted = [(p.head, p.relation, p.tail) for p in triples]
    effects: dict[tuple[int, str, int], list[float]] = {fact: [] for fact in wanted}
    for sentence in range(len(document.sentences)):
        rest = [i for i in range(len(document.sentences)) if i != sentence]
        part, numbers = restrict(document, rest)
        place = {old: new for new, old in enumerate(numbers)}
        left = scores(part) if len(part.entities) > 1 else {}
        for head, relation, tail in wanted:
            known = head in place and tail in place
            score = left.get((place[head], relation, place[tail]), floor) if known else floor
            effects[head, relation, tail].append(whole.get((head, relation, tail), floor) - score)
    return effects


def evidence_page(
    document: Document, triples: Sequence[Prediction], effects: Mapping[tuple[int, str, int], Sequence[float]]
) -> str:
    """Return a page without scripts: the text with its entities, and for each triple its sentences shaded by effect."""
    gold = {(t.head, t.relation, t.tail) for t in document.triples or ()}
    rows = []
    for one in triples:
        fact = (one.head, one.relation, one.tail)
        values = effects[fact]
        peak = max((abs(value) for value in values), default=0.0) or 1.0
        cells = "".join(_cell(i, value, peak, i in one.evidence) for i, value in enumerate(values))
        verdict = "gold" if fact in gold else "not gold" if document.triples is not None else ""
        name = escape(NAMES.get(one.relation, one.relation))
        rows.append(
            f"<tr><td>{escape(document.canonical(one.head))}</td><td>{name}</td>"
            f"<td>{escape(document.canonical(one.tail))}</td><td>{one.score:.2f}</td><td>{verdict}</td>{cells}</tr>"
        )
    heads = "".join(f"<th>{i}</th>" for i in range(len(document.sentences)))
    sentences = "".join(f"<li value='{i}'>{_sentence(document, i)}</li>" for i in range(len(document.sentences)))
    return (
        "<!doctype html><html><head><meta charset='utf-8'><title>" + escape(document.title) + "</title><style>"
        "body{font:15px/1.6 sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{padding:.15rem .5rem;border:1px solid #ddd;text-align:left}"
        "mark{background:#e8eefc;border-radius:3px;padding:0 .15em}mark sub{color:#555;font-size:.65em}"
        ".evidence{outline:2px solid #b5651d}</style></head><body>"
        f"<h1>{escape(document.title)}</h1><ol>{sentences}</ol>"
        "<p>Each cell: how far the score falls when the sentence is left out; a frame marks predicted evidence.</p>"
        f"<table><tr><th>head</th><th>relation</th><th>tail</th><th>score</th><th></th>{heads}</tr>"
        + "".join(rows)
        + "</table></body></html>\n"
    )


def _cell(number: int, value: float, peak: float, evidence: bool) -> str:
    share = abs(value) / peak
    colour = f"rgba(40,110,200,{share:.2f})" if value > 0 else f"rgba(200,80,40,{share:.2f})"
    return f"<td{' class=evidence' if evidence else ''} style='background:{colour}'>{value:.1f}</td>"


def _sentence(document: Document, sentence: int) -> str:
    """Return a sentence with its entities marked; of overlapping mentions the longest."""
    mentions = sorted(
        ((m, i) for i, entity in enumerate(document.entities) for m in entity if m.sentence == sentence),
        key=lambda item: (item[0].start, -item[0].end),
    )
    tokens, pieces, at = document.sentences[sentence], [], 0
    for mention, entity in mentions:
        if mention.start >= at:
            pieces.append(escape(document.joiner.join(tokens[at : mention.start])))
            text = escape(document.joiner.join(tokens[mention.start : mention.end]))
            pieces.append(f"<mark>{text}<sub>{entity} {escape(mention.type)}</sub></mark>")
            at = mention.end
    return document.joiner.join([*pieces, escape(document.joiner.join(tokens[at:]))])


def attention_page(document: Document, rows: Sequence[tuple[Prediction, Sequence[str], Sequence[float]]]) -> str:
    """Return a page without scripts: for each triple the document's pieces, shaded by the pair's attention q_st.

    Args:
        document: what was read.
        rows: triple, pieces of the text, and attention on each.
    """
    parts = []
    for one, pieces, weights in rows:
        peak = max(weights, default=1.0) or 1.0
        words = "".join(
            f"<span style='background:rgba(200,110,20,{weight / peak:.2f})'>{escape(piece)}</span>"
            for piece, weight in zip(pieces, weights, strict=True)
        )
        head, tail = escape(document.canonical(one.head)), escape(document.canonical(one.tail))
        relation = escape(NAMES.get(one.relation, one.relation))
        parts.append(f"<h2>{head} | {relation} | {tail} <small>{one.score:.2f}</small></h2><p>{words}</p>")
    return (
        "<!doctype html><html><head><meta charset='utf-8'><title>" + escape(document.title) + "</title><style>"
        "body{font:15px/1.7 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}h2{font-size:1rem}"
        "</style></head><body>"
        f"<h1>{escape(document.title)}</h1><p>The darker a piece, the more the pair attends to it.</p>"
        + "".join(parts)
        + "</body></html>\n"
    )
