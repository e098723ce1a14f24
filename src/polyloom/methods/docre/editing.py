"""The verb recommend: pre-filled triples, and the edit steps that each system of recommendations leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import read_text, write_json
from polyloom.core.result import Result, Scalar, Table
from polyloom.methods.docre import loglinear
from polyloom.methods.docre.annotation_store import BLIND_EVERY, AnnotationStore
from polyloom.methods.docre.config import (
    RecommendConfig,
)
from polyloom.methods.docre.data import (
    Document,
    Triple,
    gold_facts,
    load_documents,
)
from polyloom.methods.docre.recommend import (
    count_edits,
    coverage,
    edits_by_relation,
    query_knowledge_base,
    reduction,
    union,
)
from polyloom.methods.docre.schema import NAMES
from polyloom.methods.docre.study import (
    artifact_of,
    documents_of,
    limits,
    prediction_json,
)
from polyloom.metrics.relations import (
    Prediction,
    score_relations,
)
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run


def read_name_facts(path: Path) -> list[tuple[str, str, str]]:
    """Read a knowledge base of head, relation, tail between TABs.

    Raises:
        UserError: a line without three fields.
    """
    facts = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        fields = line.split("\t")
        if len(fields) != 3:
            raise UserError("has not three fields (head, relation, tail).", where=f"{path}:{number}")
        facts.append((fields[0], fields[1], fields[2]))
    return facts


def recommender(config: RecommendConfig, run: Run) -> loglinear.LogLinear:
    """Return the model of a configuration: its folder's, or one trained now."""
    if config.model:
        return loglinear.load_model(Path(config.model))
    train = load_documents(
        config.train_data, language=config.language, num_documents=config.num_train_documents, seed=config.seed
    )[0]
    with run.progress("train", 2 * loglinear.Training().num_epochs) as advance:
        return loglinear.train_model(train, on_epoch=advance)


def run_recommend(config: RecommendConfig, run: Run) -> Result:
    """Recommend triples, by the knowledge base, the model and both; count the edit steps that each leaves.

    Raises:
        UserError: no model or unreadable files.
    """
    pin_threads()
    documents = documents_of(config)
    model = recommender(config, run)
    facts = read_name_facts(Path(config.knowledge_base)) if config.knowledge_base else model.name_facts
    systems = {
        "nothing": [],
        "knowledge base": query_knowledge_base(documents, facts),
        "model, best F1": loglinear.predict(model, documents),
        "model": loglinear.predict(model, documents, margin=loglinear.MIN_SCORE, least_probability=0.5),
    }
    systems["both"] = union(systems["model"], systems["knowledge base"])
    path = run.artifact("recommendations.json")
    write_json(path, [prediction_json(one) for one in systems["model"]])
    if config.store:
        store = AnnotationStore(config.store, run.id)
        store.create(f"{config.data} ({run.id})", documents, {"run": run.id, "language": config.language})
        fill_store(store, documents, systems["model"], blind=config.blind)
    scalars = {
        "num_recommended": Scalar(value=len(systems["model"])),
        "knowledge_base_coverage": Scalar(value=coverage(documents, facts)),
    }
    tables: dict[str, Table] = {}
    verdicts = [f"{len(systems['model'])} triples are recommended; the documents have no gold to edit to."]
    if labelled := [document for document in documents if document.triples is not None]:
        titles = {document.title for document in labelled}
        found = {name: [one for one in rows if one.title in titles] for name, rows in systems.items()}
        more, tables, verdict = edit_tables(found, labelled, config.seed)
        scalars |= more
        verdicts = [verdict]
    if scalars["knowledge_base_coverage"].value == 0:
        verdicts.append("The knowledge base names none of the documents' entities: coverage 0 %.")
    return run.result(
        scalars=scalars,
        tables=tables,
        artifacts={"recommendations": artifact_of(run, path, "the model's recommendations, with their scores")},
        verdicts=verdicts,
        limitations=[
            *limits(config.data, config.train_data),
            "Edit steps are counted against gold triples; a person who reads recommendations may stop looking for what "
            "they lack. Leave some documents without them.",
        ],
    )


def fill_store(
    store: AnnotationStore, documents: Sequence[Document], predictions: Sequence[Prediction], *, blind: bool = False
) -> None:
    """Put recommendations into an annotation log.

    Args:
        store: where annotators find them.
        documents: what is annotated.
        predictions: what is recommended.
        blind: leave every tenth document without, to see what is found on one's own.
    """
    for number, document in enumerate(documents, 1):
        if blind and number % BLIND_EVERY == 0:
            continue
        store.recommend(
            document.title,
            [
                (Triple(p.head, p.relation, p.tail, p.evidence), p.score, "model")
                for p in predictions
                if p.title == document.title
            ],
        )


def edit_tables(
    systems: Mapping[str, Sequence[Prediction]], documents: Sequence[Document], seed: int
) -> tuple[dict[str, Scalar], dict[str, Table], str]:
    """Return scalars, tables and the verdict on edit steps of named systems.

    Args:
        systems: recommendations of "nothing", "knowledge base" and "model" at least.
        documents: with gold triples.
        seed: of the resampled documents.
    """
    edits = {name: count_edits(found, documents) for name, found in systems.items()}
    gold = gold_facts(documents)
    rows: list[list[Any]] = []
    for name, one in edits.items():
        score = score_relations(gold, systems[name], titles={d.title for d in documents}).relation
        rows.append([name, one.steps, one.composite, one.additions, one.removals, one.cost, *score])
    saved = {
        "reduction_against_knowledge_base": reduction(
            edits["model"].by_document, edits["knowledge base"].by_document, seed=seed
        ),
        "reduction_against_nothing": reduction(edits["model"].by_document, edits["nothing"].by_document, seed=seed),
    }
    scalars = {name: Scalar.of(value) for name, value in saved.items()}
    scalars |= {f"steps_{name.replace(' ', '_').replace(',', '')}": Scalar(value=e.steps) for name, e in edits.items()}
    best = saved["reduction_against_knowledge_base"]
    word = "saves" if best.low > 0 else "costs" if best.high < 0 else "makes no sure difference:"
    columns = ["recommended by", "steps", "steps, composite", "additions", "removals", "weighted cost"]
    by_relation = edits_by_relation(systems["model"], documents)
    return (
        scalars,
        {
            "edits": Table(
                columns=[*columns, "precision", "recall", "F1"], rows=rows, title="Edit steps to the gold triples"
            ),
            "by_relation": Table(
                columns=["relation", "name", "gold", "additions", "removals"],
                rows=[[r, NAMES.get(r, ""), *counts] for r, counts in by_relation.items()],
                title="Edits left by the model, per relation",
            ),
        },
        f"Against recommendations by the knowledge base, the model {word} {abs(best.value):.0%} "
        f"[{best.low:.0%}, {best.high:.0%}] of the edit steps ({edits['model'].steps} in place of "
        f"{edits['knowledge base'].steps}; {edits['nothing'].steps} without recommendations).",
    )
