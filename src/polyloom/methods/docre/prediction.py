"""Predictions of any of the room's models, or the sum of two; what decides is chosen on development documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyloom.core.errors import UserError
from polyloom.core.files import read_json
from polyloom.methods.docre import loglinear
from polyloom.methods.docre.data import Document, evidence_by_rule, gold_facts
from polyloom.methods.docre.loglinear import MIN_SCORE, LogLinear, Ranked
from polyloom.methods.docre.method import fusion_threshold, undecided
from polyloom.methods.docre.transformer import (
    DocumentModel,
    Scored,
    load_transformer,
    predict_documents,
    pseudo_scores,
    score_all,
    score_documents,
)
from polyloom.metrics.relations import Prediction
from polyloom.models.device import DeviceName

Model = LogLinear | DocumentModel
Key = tuple[int, str, int]
FactScores = Mapping[Key, float]


def open_model(folder: Path, device: DeviceName = "auto") -> Model:
    """Load whichever of the room's models a folder holds.

    Raises:
        UserError: it holds none.
    """
    kind = read_json(folder / "model.json").get("kind")
    if kind == "docre-loglinear":
        return loglinear.load_model(folder)
    if kind == "docre-transformer":
        return load_transformer(folder, device)
    raise UserError("is no model of this room.", where=str(folder), hint="Give a folder that `docre train` wrote.")


@dataclass(frozen=True)
class Decision:
    """What decides which scores are predicted.

    Attributes:
        margin: a score has to exceed it; None takes the model's own.
        fusion: whether pseudo-documents of the predicted evidence are fused in (ISF).
        fusion_threshold: tau of the fusion.
    """

    margin: float | None = None
    fusion: bool = False
    fusion_threshold: float = 0.0


def scores_of(model: Model, documents: Sequence[Document]) -> list[Scored]:
    """Score each document's facts above the model's own threshold (0 decides), with evidence where it has attention."""
    if isinstance(model, DocumentModel):
        return score_all(model, documents)
    found: list[Scored] = []
    for document in documents:
        ranked = loglinear.rank(model, [loglinear.candidates(document, model.types, lexical=model.lexical)])
        predictions = (one.prediction for one in ranked)
        found.append(Scored({(p.head, p.relation, p.tail): p.score - model.margin for p in predictions}))
    return found


def add_scores(
    first: FactScores, second: FactScores, both: set[str], own: tuple[set[str], set[str]]
) -> dict[Key, float]:
    """Return the sum of two models' scores.

    Args:
        first: of one model.
        second: of the other; a fact that a model rules out has the lowest score there.
        both: relations that both models know.
        own: relations that only the first, only the second knows: their scores stand alone.
    """
    facts = {fact for fact in first.keys() | second.keys() if fact[1] in both}
    total = {fact: first.get(fact, MIN_SCORE) + second.get(fact, MIN_SCORE) for fact in facts}
    total |= {fact: score for fact, score in first.items() if fact[1] in own[0]}
    return total | {fact: score for fact, score in second.items() if fact[1] in own[1]}


def summed_scores(first: Model, second: Model, documents: Sequence[Document]) -> list[Scored]:
    """Return the summed scores of two models for each document; evidence is that of the first one with attention."""
    a, b = set(first.relations), set(second.relations)
    attends = isinstance(first, DocumentModel)
    return [
        Scored(
            add_scores(one.scores, two.scores, a & b, (a - b, b - a)),
            evidence=one.evidence if attends else two.evidence,
        )
        for one, two in zip(scores_of(first, documents), scores_of(second, documents), strict=True)
    ]


def predict_any(
    model: Model, documents: Sequence[Document], decision: Decision, second: Model | None = None
) -> list[Prediction]:
    """Predict triples with evidence.

    Args:
        model: of either kind.
        documents: labelled or not.
        decision: margin and fusion.
        second: a model whose scores are added.
    """
    if second is not None:
        margin = decision.margin or 0.0
        return [
            Prediction(document.title, h, r, t, one.evidence.get((h, t)) or evidence_by_rule(document, h, t), score)
            for document, one in zip(documents, summed_scores(model, second, documents), strict=True)
            for (h, r, t), score in sorted(one.scores.items())
            if score > margin
        ]
    if isinstance(model, DocumentModel):
        return predict_documents(
            model,
            documents,
            margin=decision.margin or 0.0,
            fusion=decision.fusion,
            fusion_threshold=decision.fusion_threshold,
        )
    return loglinear.predict(model, documents, margin=decision.margin)


def decide(model: Model, development: Sequence[Document], decision: Decision, second: Model | None = None) -> Decision:
    """Choose the margin, or with fusion its threshold, of highest F1 on development documents.

    Args:
        model: of either kind.
        development: with gold triples; test documents choose nothing.
        decision: what is asked for; a margin that is given stays.
        second: a model whose scores are added.

    Raises:
        UserError: no gold triple to choose on.
    """
    gold = gold_facts(development)
    if not gold:
        raise UserError("holds no gold triple to choose a margin on.", where="--dev-data", hint="Give labels.")
    margin = decision.margin
    if margin is None and not decision.fusion:
        scores = summed_scores(model, second, development) if second else scores_of(model, development)
        ranked = [
            Ranked(
                Prediction(document.title, fact[0], fact[1], fact[2], (), score),
                (document.title, fact[0], fact[1], fact[2]) in gold,
            )
            for document, found in zip(development, scores, strict=True)
            for fact, score in found.scores.items()
        ]
        margin = loglinear.best_margin(sorted(ranked, key=lambda one: -one.prediction.score), len(gold))
        if second is None and isinstance(model, LogLinear):
            margin += model.margin
    tau = decision.fusion_threshold
    if decision.fusion and isinstance(model, DocumentModel):
        own = margin or 0.0
        tau = _best_tau(model, development, score_documents(model, development, own), own)
    return Decision(margin, decision.fusion, tau)


def _best_tau(model: DocumentModel, documents: Sequence[Document], originals: Sequence[Scored], margin: float) -> float:
    rows: list[tuple[float, bool]] = []
    num_accepted = num_correct = num_gold = 0
    for document, one in zip(documents, originals, strict=True):
        gold = {(t.head, t.relation, t.tail) for t in document.triples or ()}
        accepted, scores = undecided(one.scores, pseudo_scores(model, document, one, margin))
        num_accepted, num_correct, num_gold = (
            num_accepted + len(accepted),
            num_correct + len(accepted & gold),
            num_gold + len(gold),
        )
        rows += [(score, fact in gold) for fact, score in scores.items()]
    return fusion_threshold(rows, num_accepted, num_correct, num_gold)
