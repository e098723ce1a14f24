"""Cross-validation of the log-linear model, and transfer of labels from another language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.methods.docre.config import EvaluateConfig
from polyloom.methods.docre.data import Document, evidence_by_rule, gold_facts, map_schema, read_documents
from polyloom.methods.docre.loglinear import (
    LogLinear,
    Training,
    candidates,
    fit,
    predict,
    train_model,
    type_prior,
    type_signatures,
)
from polyloom.methods.docre.schema import DOCRED_TYPES, relations_of
from polyloom.metrics.relations import (
    Prediction,
    Score,
    bootstrap_f1,
    counts_by_title,
    score_relations,
)
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

SYSTEMS = {
    "prior": "types and positions alone",
    "loglinear": "log-linear, all features",
    "loglinear_zero": "the same at margin 0",
    "native": "log-linear without words, native",
    "transfer_zero": "source language, at margin 0",
    "transfer": "source language, its own margin",
    "joint": "native and source, all features",
}


def run_folds(config: EvaluateConfig, run: Run) -> Result:
    """Cross-validate on the documents; with source data, compare transfer, native and joint training.

    Margins are chosen inside each training part; the tested fifth chooses nothing.

    Raises:
        UserError: no data, or fewer labelled documents than folds.
    """
    pin_threads()
    if config.data is None:
        raise UserError("cross-validation needs documents.", where="--data", hint="Give a DocRED-style file.")
    documents = [d for d in read_documents(Path(config.data))[0] if d.triples is not None]
    if not 2 <= config.num_folds <= len(documents):
        raise UserError(f"{len(documents)} labelled documents cannot make {config.num_folds} folds.", where="--folds")
    gold_facts(documents)
    source = source_documents(Path(config.source_data), documents) if config.source_data else []
    transferred = run.once("transfer", lambda: _transfer(source, documents, config.seed)) if source else {}
    found: dict[str, list[Any]] = {name: list(rows) for name, rows in transferred.items()}
    base: list[LogLinear] = []

    def fold_of(number: int) -> dict[str, list[Any]]:
        if source and not base:
            base.append(fit_source(source, config.seed))
        train = [d for i, d in enumerate(documents) if i % config.num_folds != number]
        return _fold(train, documents[number :: config.num_folds], base, config.seed)

    with run.progress("folds", config.num_folds) as advance:
        for fold in range(config.num_folds):
            for name, rows in run.once(f"fold {fold}", partial(fold_of, fold)).items():
                found.setdefault(name, []).extend(rows)
            advance(1)
    predictions = {
        name: [Prediction(t, h, r, o, tuple(e), s) for t, h, r, o, e, s in found[name]]
        for name in SYSTEMS
        if name in found
    }
    return _result(config, run, documents, predictions)


def source_documents(path: Path, documents: Sequence[Document]) -> list[Document]:
    """Read documents of another language with types and relations of this one's schema."""
    relations = set(relations_of(documents))
    keep = {relation: relation for relation in relations}
    return map_schema(read_documents(path)[0], DOCRED_TYPES, keep.get)


def _transfer(source: Sequence[Document], documents: Sequence[Document], seed: int) -> dict[str, list[Any]]:
    model = train_model(source, lexical=False, training=Training(seed=seed))
    return _at_both_margins("transfer", model, documents)


def _at_both_margins(name: str, model: LogLinear, documents: Sequence[Document]) -> dict[str, list[Any]]:
    """Return what is predicted at the model's own margin, and at margin 0."""
    found = predict(model, documents, margin=min(0.0, model.margin))
    own, zero = ([one for one in found if one.score > margin] for margin in (model.margin, 0.0))
    return {name: own, f"{name}_zero": zero}


def _fold(
    train: Sequence[Document], test: Sequence[Document], base: Sequence[LogLinear], seed: int
) -> dict[str, list[Any]]:
    training = Training(seed=seed)
    model = train_model(train, training=training)
    found = _at_both_margins("loglinear", model, test)
    titles = {document.title: document for document in test}
    found["prior"] = [
        Prediction(title, h, r, t, evidence_by_rule(titles[title], h, t))
        for title, h, r, t in sorted(type_prior(train, test, train[::5]))
    ]
    if base:
        found["native"] = predict(train_model(train, lexical=False, training=training), test)
        found["joint"] = predict(train_model(train, training=training, start=base[0]), test)
    return found


def fit_source(source: Sequence[Document], seed: int) -> LogLinear:
    """Train on the source language, for native training to go on from; it has no margin of its own."""
    signatures = type_signatures(source)
    types = {(head, tail) for head, _, tail in signatures}
    return fit([candidates(document, types) for document in source], signatures, training=Training(seed=seed))


def joint_model(native: Sequence[Document], source: Sequence[Document], seed: int) -> LogLinear:
    """Train on the source documents, then go on with the native ones, on which the margin is chosen."""
    return train_model(native, training=Training(seed=seed), start=fit_source(source, seed))


def _result(
    config: EvaluateConfig, run: Run, documents: Sequence[Document], predictions: dict[str, list[Prediction]]
) -> Result:
    gold, titles = gold_facts(documents), [document.title for document in documents]
    counts = {name: counts_by_title(gold, rows, titles) for name, rows in predictions.items()}
    scalars: dict[str, Scalar] = {"num_documents": Scalar(value=len(documents))}
    rows: list[list[Any]] = []
    f1 = {name: bootstrap_f1(one, seed=config.seed) for name, one in counts.items()}
    for name, one in predictions.items():
        scores = score_relations(gold, one, titles=titles)
        for field in Score._fields:
            scalars[f"{name}_{field}"] = Scalar(value=getattr(scores.relation, field))
        scalars[f"{name}_f1"] = Scalar(**asdict(f1[name]))
        scalars[f"{name}_evidence_f1"] = Scalar(value=scores.evidence.f1)
        rows.append([SYSTEMS[name], *scores.relation, f1[name].low, f1[name].high, len(one)])
    best, prior = f1["loglinear"], f1["prior"]
    verdicts = [
        f"Cross-validated on {len(documents)} documents, the log-linear model reaches F1 {best.value:.3f} "
        f"[{best.low:.3f}, {best.high:.3f}]; types and positions alone {prior.value:.3f}."
    ]
    for name, other in (("native", "transfer"), ("joint", "loglinear")):
        if name in counts:
            ahead = bootstrap_f1(counts[name], counts[other], seed=config.seed)
            scalars[f"{name}_ahead_of_{other}_f1"] = Scalar(**asdict(ahead))
            verdicts.append(
                f"{SYSTEMS[name].capitalize()} is ahead of {SYSTEMS[other]} by {ahead.value:+.3f} F1 "
                f"[{ahead.low:+.3f}, {ahead.high:+.3f}]."
            )
    if "transfer_zero" in predictions:
        zero = score_relations(gold, predictions["transfer_zero"]).relation
        scalars["transfer_zero_precision_over_recall"] = Scalar(value=zero.precision / max(zero.recall, 1e-9))
    scalars["cpu_seconds"] = Scalar(value=round(run.times()[1], 1), unit="s")
    return run.result(
        scalars=scalars,
        tables={
            "systems": Table(
                columns=["system", "precision", "recall", "F1", "low", "high", "predicted"], rows=rows, title="Systems"
            )
        },
        series={
            "f1": Series(
                x=[float(i) for i in range(len(f1))],
                y=[one.value for one in f1.values()],
                low=[one.low for one in f1.values()],
                high=[one.high for one in f1.values()],
                x_names=[SYSTEMS[name] for name in f1],
                kind="bar",
                y_label="F1",
                group="F1 with intervals over documents",
            )
        },
        verdicts=verdicts,
        limitations=["One seed; intervals resample documents and do not hold the training's variation."],
    )
