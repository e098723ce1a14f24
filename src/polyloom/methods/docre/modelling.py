"""The verbs train and predict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from polyloom.core.errors import UserError
from polyloom.core.files import write_json
from polyloom.core.result import Artifact, Result, Scalar, Table
from polyloom.core.seeding import python_random
from polyloom.methods.docre import loglinear
from polyloom.methods.docre.annotation_store import AnnotationStore
from polyloom.methods.docre.config import PredictConfig, TrainConfig
from polyloom.methods.docre.data import Document, Triple, gold_facts, read_documents
from polyloom.methods.docre.schema import closure
from polyloom.methods.docre.study import (
    artifact_of,
    limits,
    prediction_json,
    score_scalars,
    source_table,
    sources_of,
)
from polyloom.metrics.relations import Prediction, score_relations
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

REPLAYED_SHARE = 0.1


def run_train(config: TrainConfig, run: Run) -> Result:
    """Train a model of relations and store it under the run's artifacts.

    Raises:
        UserError: no labelled documents, or options that do not fit the kind of model.
    """
    pin_threads()
    _check(config)
    documents = training_documents(config)
    held_out = read_documents(Path(config.dev_data), strict=config.strict)[0] if config.dev_data else []
    folder = run.artifact("model")
    if config.kind == "loglinear":
        scalars = _train_loglinear(config, run, documents, held_out, folder)
    else:
        from polyloom.methods.docre.training import train_transformer

        scalars = train_transformer(documents, held_out, config, run, folder)
    return run.result(
        scalars={name: Scalar(value=value) for name, value in {**scalars, "num_documents": len(documents)}.items()},
        artifacts={"model": Artifact(path="artifacts/model", media_type="inode/directory", description="the model")},
        verdicts=[f"Trained {config.kind} on {len(documents)} documents; the model is in {run.id}/artifacts/model."],
        limitations=limits(*(() if config.store else (config.data, *config.more_data))),
    )


def _check(config: TrainConfig) -> None:
    """Refuse options that would be without effect.

    Raises:
        UserError: one is given.
    """
    if config.replay and not config.start:
        raise UserError("needs a model to go on from.", where="--replay", hint="Name it with --start.")
    if config.kind == "loglinear" and (config.raw_text or config.teacher):
        where = "--raw-text" if config.raw_text else "--teacher"
        raise UserError("has no effect on a log-linear model.", where=where, hint="Choose --kind atlop or dreeam.")


def training_documents(config: TrainConfig) -> list[Document]:
    """Return what is trained on: files, or what annotators accepted; and some of the old files beside.

    Raises:
        UserError: a store without accepted annotations, or unreadable files.
    """
    if config.store:
        store = AnnotationStore(config.store, config.project)
        documents = store.export(store.documents(), config.annotator)
        if not documents:
            hint = "Name the project and whose triples: --project, --annotator."
            raise UserError("holds no annotations to train on.", where=config.store, hint=hint)
    else:
        documents = [d for found in sources_of(config, split="train")[0].values() for d in found]
    old = [d for path in config.replay for d in read_documents(Path(path), strict=config.strict)[0]]
    count = math.ceil(REPLAYED_SHARE * len(old))
    return documents + python_random(config.seed, "replay").sample(old, count)


def _train_loglinear(
    config: TrainConfig, run: Run, documents: Sequence[Document], held_out: Sequence[Document], folder: Path
) -> dict[str, float]:
    start = loglinear.load_model(Path(config.start)) if config.start else None
    training = loglinear.Training(num_epochs=config.num_epochs, seed=config.seed, keep_start=True)
    with run.progress("train", (1 if held_out else 2) * config.num_epochs) as advance:
        model = loglinear.train_model(documents, held_out=held_out, training=training, on_epoch=advance, start=start)
    loglinear.save_model(model, folder)
    return {"num_features": len(model.rows), "num_relations": len(model.relations), "margin": model.margin}


def run_predict(config: PredictConfig, run: Run) -> Result:
    """Write predicted triples with evidence and scores; where there is gold, score them.

    Raises:
        UserError: no model, no documents, or options that do not fit the model.
    """
    pin_threads()
    sources = sources_of(config)[0]
    predictions, chosen = predict_sources(config, sources)
    if config.closure:
        predictions = close_predictions(predictions)
    path = run.artifact("predictions.json")
    write_json(path, [prediction_json(one) for one in predictions])
    documents = [document for found in sources.values() for document in found]
    scalars = {"num_predictions": Scalar(value=len(predictions)), "num_documents": Scalar(value=len(documents))}
    scalars |= {name: Scalar(value=value) for name, value in chosen.items()}
    verdicts = [f"{len(predictions)} triples in {len(documents)} documents."]
    labelled = [document for document in documents if document.triples is not None]
    tables: dict[str, Table] = {}
    if labelled:
        scores = score_relations(gold_facts(labelled), predictions, titles={d.title for d in labelled})
        scalars |= score_scalars(scores)
        tables["sources"] = source_table(sources, predictions)
        verdicts[0] += f" F1 {scores.relation.f1:.3f}, evidence F1 {scores.evidence.f1:.3f}."
    else:
        verdicts[0] += " Metrics: n/a (no gold)."
    return run.result(
        scalars=scalars,
        tables=tables,
        artifacts={"predictions": artifact_of(run, path, "predicted triples")},
        verdicts=verdicts,
        limitations=limits(*sources),
    )


def predict_sources(
    config: PredictConfig, sources: Mapping[str, Sequence[Document]]
) -> tuple[list[Prediction], dict[str, float]]:
    """Predict file by file; margin and fusion threshold are chosen for each where it has development data of its own.

    Returns:
        The predictions, and what was chosen, by name.

    Raises:
        UserError: no model, or numbers of files that do not fit.
    """
    from polyloom.methods.docre.prediction import Decision, decide, open_model, predict_any
    from polyloom.methods.docre.transformer import DocumentModel

    model = open_model(Path(config.model), config.device)
    second = open_model(Path(config.second), config.device) if config.second else None
    if config.fusion and (second is not None or not isinstance(model, DocumentModel)):
        raise UserError("fuses the evidence of one ATLOP or DREEAM model.", where="--fusion", hint="Leave it out.")
    if len(config.dev_data) not in (0, 1, len(sources)):
        raise UserError(f"has {len(config.dev_data)} files for {len(sources)} of data.", where="--dev-data")
    predictions: list[Prediction] = []
    chosen: dict[str, float] = {}
    for number, documents in enumerate(sources.values()):
        decision = Decision(config.margin, config.fusion, config.fusion_threshold)
        if config.dev_data:
            path = config.dev_data[number if len(config.dev_data) > 1 else 0]
            decision = decide(model, read_documents(Path(path))[0], decision, second)
            suffix = f"_{number + 1}" if len(config.dev_data) > 1 else ""
            if config.fusion:
                chosen[f"fusion_threshold{suffix}"] = decision.fusion_threshold
            else:
                chosen[f"margin{suffix}"] = decision.margin or 0.0
        predictions += predict_any(model, documents, decision, second)
    return predictions, chosen


def close_predictions(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Add the inverse of each predicted triple, with its evidence and score."""
    kept = {one.fact: one for one in predictions}
    for one in predictions:
        for triple in closure([Triple(one.head, one.relation, one.tail, one.evidence)])[1:]:
            derived = Prediction(one.title, triple.head, triple.relation, triple.tail, triple.evidence, one.score)
            kept.setdefault(derived.fact, derived)
    return list(kept.values())
