"""The room's verbs on files and models: check, train, predict, evaluate, recommend, graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import read_json
from polyloom.core.result import Artifact, Result, Scalar, Series, Table
from polyloom.methods.docre.config import (
    CheckConfig,
    EvaluateConfig,
    _DataConfig,
)
from polyloom.methods.docre.data import (
    WORLD,
    Defects,
    Document,
    Triple,
    evidence_by_rule,
    facts_of_names,
    gold_facts,
    load_documents,
    map_schema,
    name_facts,
    read_documents,
    read_schema_map,
    sentence_distance,
    totals,
    write_documents,
)
from polyloom.methods.docre.schema import NAMES, missing_inverses, relations_of
from polyloom.metrics.relations import (
    Prediction,
    RelationScores,
    Score,
    bootstrap_f1,
    counts_by_title,
    score_relations,
)
from polyloom.runs.folder import Run

NO_RELATION = "Na"
FREQUENT = ("P17", "P131", "P27", "P150", "P175", "P577", "P463", "P527", "P495", "P361")
WORLD_LIMITATION = "The embedded world's documents are synthetic: templates around CLDR's names and facts."


def sources_of(
    config: _DataConfig, *, split: str = "test", relations: Mapping[str, str] | None = None
) -> tuple[dict[str, list[Document]], Defects]:
    """Return the documents that a configuration names, by where they come from, in its schema; and their defects.

    Args:
        config: names them.
        split: of the embedded world's.
        relations: the schema; None takes every relation that occurs.

    Raises:
        UserError: as `read_documents`.
    """
    found: dict[str, list[Document]] = {}
    defects = Defects()
    for source in (config.data, *config.more_data):
        path, _, language = source.partition(":") if source.startswith(f"{WORLD}:") else (source, "", config.language)
        made, wrong = load_documents(
            path,
            language=language,
            num_documents=config.num_documents,
            seed=config.seed,
            split=split,
            strict=config.strict,
            relations=relations,
        )
        found.setdefault(source, []).extend(made)
        defects.merge(wrong)
    if config.schema_map:
        types, names = read_schema_map(Path(config.schema_map))
        rename = partial(_renamed, names)
        found = {source: map_schema(documents, types, rename) for source, documents in found.items()}
    return found, defects


def _renamed(relations: Mapping[str, str | None], relation: str) -> str | None:
    return relations.get(relation, relation)


def documents_of(config: _DataConfig, *, split: str = "test") -> list[Document]:
    """Return the documents that a configuration names."""
    return [document for documents in sources_of(config, split=split)[0].values() for document in documents]


def limits(*sources: str | None) -> list[str]:
    """Return the limitation to print when any source is the embedded world."""
    return [WORLD_LIMITATION] if any(str(one).partition(":")[0] == WORLD for one in sources) else []


def read_schema(path: Path) -> dict[str, str]:
    """Read rel2id.json.

    Raises:
        UserError: no mapping, or no class 0, which is the threshold.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not all(isinstance(i, int) for i in value.values()):
        raise UserError("maps no relations to numbers.", where=str(path), hint="Give a rel2id.json.")
    if 0 not in value.values():
        hint = "Add Na: 0; class 0 is the threshold that a relation has to exceed."
        raise UserError("has no relation with number 0.", where=str(path), hint=hint)
    return {relation: str(number) for relation, number in value.items() if number}


def run_check(config: CheckConfig, run: Run) -> Result:
    """Count what a file holds and what is wrong with it; write it repaired.

    Raises:
        UserError: as `read_documents`.
    """
    schema = read_schema(Path(config.schema_file)) if config.schema_file else None
    sources, defects = sources_of(config, split="train", relations=schema)
    documents = [document for found in sources.values() for document in found]
    counts = totals(documents)
    relations = Counter(t.relation for d in documents for t in d.triples or ())
    gold = [(d, t) for d in documents for t in d.triples or () if t.evidence]
    rule = score_relations(
        {(str(i), 0, "", 0): t.evidence for i, (_, t) in enumerate(gold)},
        [Prediction(str(i), 0, "", 0, evidence_by_rule(d, t.head, t.tail)) for i, (d, t) in enumerate(gold)],
    ).evidence
    same = sum(sentence_distance(d, t.head, t.tail) == 0 for d in documents for t in d.triples or ())
    unclosed = sum(len(missing_inverses(document)) for document in documents)
    path = run.artifact("repaired.json")
    write_documents(path, documents)
    kinds = ("spans_one_token_short", "zero_length_spans", "name_differs_by_spaces", "mixed_types")
    values = {f"num_{kind}": defects.counts[kind] for kind in {*kinds, *defects.counts}}
    scalars = {name: Scalar(value=value) for name, value in (counts | dict(sorted(values.items()))).items()}
    scalars |= {
        "evidence_rule_f1": Scalar(value=rule.f1),
        "share_in_one_sentence": Scalar(value=same / max(1, counts["num_triples"])),
        "num_missing_inverses": Scalar(value=unclosed),
        "num_overlaps": Scalar(value=defects.counts["overlapping_mentions"]),
    }
    rows: list[list[Any]] = [[k, n, "; ".join(defects.examples.get(k, []))] for k, n in defects.counts.most_common()]
    return run.result(
        scalars=scalars,
        tables={
            "defects": Table(columns=["defect", "count", "first places"], rows=rows, title="Defects and remarks"),
            "relations": Table(
                columns=["relation", "name", "triples"],
                rows=[[r, NAMES.get(r, ""), n] for r, n in relations.most_common()],
                title="Relations",
            ),
            "sources": Table(
                columns=["source", *(name.removeprefix("num_") for name in counts)],
                rows=[[name, *totals(found).values()] for name, found in sources.items()],
                title="By source",
            ),
        },
        series={
            "relations": Series(
                x=[float(i) for i in range(min(20, len(relations)))],
                y=[float(n) for _, n in relations.most_common(20)],
                x_names=[NAMES.get(r, r) for r, _ in relations.most_common(20)],
                kind="bar",
                x_label="relation",
                y_label="triples",
                group="Most frequent relations",
            )
        },
        artifacts={"repaired": artifact_of(run, path, "the documents with repaired spans and triples")},
        verdicts=[
            f"{counts['num_documents']} documents with {counts['num_entities']} entities and "
            f"{counts['num_triples']} triples; {sum(defects.counts.values())} defects and remarks, and "
            f"{unclosed} triples whose inverse is missing."
        ],
        limitations=limits(*sources),
    )


def artifact_of(run: Run, path: Path, description: str) -> Artifact:
    """Return a file of the run as an artifact."""
    kinds = {".json": "application/json", ".csv": "text/csv", ".ttl": "text/turtle", ".html": "text/html"}
    name = path.relative_to(run.path).as_posix()
    return Artifact(path=name, media_type=kinds.get(path.suffix, "text/plain"), description=description)


def prediction_json(one: Prediction) -> dict[str, Any]:
    """Return a prediction in the official scorer's form."""
    value = {"title": one.title, "h_idx": one.head, "t_idx": one.tail, "r": one.relation}
    return value | {"evidence": list(one.evidence), "score": one.score}


def read_predictions(path: Path) -> list[Prediction]:
    """Read predictions: a JSON array of title, h_idx, t_idx, r, and perhaps evidence and score.

    Raises:
        UserError: no such array; the row is named.
    """
    value = read_json(path)
    if not isinstance(value, list):
        raise UserError("holds no JSON array of predictions.", where=str(path))
    found = []
    for number, row in enumerate(value):
        try:
            evidence = tuple(map(int, row.get("evidence") or ()))
            found.append(
                Prediction(
                    row["title"], int(row["h_idx"]), row["r"], int(row["t_idx"]), evidence, float(row.get("score", 0))
                )
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            hint = "A prediction has title, h_idx, t_idx, r."
            raise UserError(f"is no prediction ({error}).", where=f"{path}: row {number}", hint=hint) from error
    return found


def score_scalars(scores: RelationScores) -> dict[str, Scalar]:
    """Return the official figures as scalars."""

    def three(name: str, score: Score) -> dict[str, Scalar]:
        return {f"{name}{field}": Scalar(value=getattr(score, field)) for field in Score._fields}

    return {
        **three("", scores.relation),
        "ign_precision": Scalar(value=scores.ignored.precision),
        "ign_f1": Scalar(value=scores.ignored.f1),
        **three("evidence_", scores.evidence),
    }


def worked_example() -> tuple[list[Document], list[Prediction], list[Document]]:
    """Return the scorer's worked example: gold documents, predictions, training documents."""
    from polyloom.methods.docre.data import Mention

    def mention(name: str, sentence: int) -> Mention:
        return Mention(name, sentence, 0, 1, "PER")

    entities = ((mention("A", 0),), (mention("B", 0), mention("B2", 1)), (mention("C", 1),))
    triples = (Triple(0, "P1", 1, (0,)), Triple(1, "P2", 2, (1,)), Triple(0, "P1", 2, (0, 1)))
    gold = Document("X", (("A", "B"), ("B2", "C")), entities, triples)
    train = Document("T", (("A", "B2"),), ((mention("A", 0),), (mention("B2", 0),)), (Triple(0, "P1", 1),))
    rows = [("X", 0, "P1", 1, (0, 1)), ("X", 0, "P1", 1, (0,)), ("X", 1, "P2", 2, (1,)), ("X", 2, "P2", 0, (1,))]
    return [gold], [*(Prediction(*row) for row in rows), Prediction("unknown", 0, "P1", 1)], [train]


def run_evaluate(config: EvaluateConfig, run: Run) -> Result:
    """Score predictions as the official script does, beside the first-mention evidence rule, in slices.

    Raises:
        UserError: duplicate titles, unreadable files, or a request that fits neither scoring nor folds.
    """
    if config.num_folds:
        from polyloom.methods.docre.transfer import run_folds

        return run_folds(config, run)
    if config.data is None:
        documents, predictions, train = worked_example()
        sources = {"example": documents}
    elif config.predictions is None:
        raise UserError("there is nothing to score.", where="--predictions", hint="Or give --num-folds 5.")
    else:
        read = {path: read_documents(Path(path))[0] for path in (config.data, *config.more_data)}
        sources, documents = read, [document for found in read.values() for document in found]
        predictions = read_predictions(Path(config.predictions))
        train = read_documents(Path(config.train_data))[0] if config.train_data else []
    labelled = [document for document in documents if document.triples is not None]
    if not labelled:
        raise UserError("has no gold triples: metrics n/a.", where=str(config.data), hint="Use `docre predict`.")
    return _scored(config, run, labelled, predictions, train, source_table(sources, predictions))


def _scored(
    config: EvaluateConfig,
    run: Run,
    documents: Sequence[Document],
    predictions: Sequence[Prediction],
    train: Sequence[Document],
    by_source: Table,
) -> Result:
    gold, by_title = gold_facts(documents), {document.title: document for document in documents}
    known = name_facts(train)
    seen = {fact for document in documents for fact in facts_of_names(document, known)}
    scores = score_relations(gold, predictions, titles=by_title, in_train=seen, smoothing=config.smoothing)
    rule = score_relations(
        gold,
        [
            one._replace(evidence=evidence_by_rule(by_title[one.title], one.head, one.tail))
            for one in predictions
            if _inside(one, by_title)
        ],
        titles=by_title,
    ).evidence
    scalars = score_scalars(scores) | {
        "evidence_rule_f1": Scalar(value=rule.f1),
        "num_predicted": Scalar(value=scores.num_predicted),
        "num_gold": Scalar(value=scores.num_gold),
    }
    if len(documents) > 1:
        scalars["f1"] = Scalar.of(bootstrap_f1(counts_by_title(gold, predictions, sorted(by_title)), seed=config.seed))
    relations = relations_of(documents)
    rows: list[list[Any]] = [
        [r, NAMES.get(r, ""), *_row(score_relations(gold, predictions, keep=partial(_has_relation, r)))]
        for r in relations
    ]
    macro = sum(row[-2] for row in rows) / max(1, len(rows))
    verdict = f"F1 {scores.relation.f1:.4f}, Ign F1 {scores.ignored.f1:.4f}, evidence F1 {scores.evidence.f1:.4f}"
    note = "" if predictions else " The prediction list is empty: all scores are 0."
    columns = ["precision", "recall", "F1", "gold"]
    return run.result(
        scalars=scalars | {"macro_f1": Scalar(value=macro)},
        tables={
            "slices": Table(columns=["slice", *columns], rows=_slices(gold, predictions, by_title), title="Slices"),
            "relations": Table(columns=["relation", "name", *columns], rows=rows, title="Per relation"),
            "sources": by_source,
        },
        verdicts=[f"{verdict} (first-mention rule on the same triples: {rule.f1:.4f}).{note}"],
        limitations=[
            "Ign recall is not reduced, as in the official script.",
            *([] if train else ["No training file was given: Ign F1 equals F1."]),
        ],
    )


def source_table(sources: Mapping[str, Sequence[Document]], predictions: Sequence[Prediction]) -> Table:
    """Return the scores of each file: of each language or domain."""
    rows: list[list[Any]] = []
    for name, documents in sources.items():
        labelled = [document for document in documents if document.triples is not None]
        titles = {document.title for document in labelled}
        own = [one for one in predictions if one.title in titles]
        if labelled:
            rows.append([name, len(labelled), *_row(score_relations(gold_facts(labelled), own, titles=titles))])
    columns = ["source", "documents", "precision", "recall", "F1", "gold"]
    return Table(columns=columns, rows=rows, title="By source")


def _has_relation(relation: str, fact: tuple[str, int, str, int]) -> bool:
    return fact[2] == relation


def _row(scores: RelationScores) -> list[Any]:
    return [*scores.relation, scores.num_gold]


def _inside(one: Prediction, documents: Mapping[str, Document]) -> bool:
    """Say whether both entities of a prediction exist."""
    document = documents.get(one.title)
    return document is not None and 0 <= min(one.head, one.tail) <= max(one.head, one.tail) < len(document.entities)


def _slices(
    gold: Mapping[Any, Any], predictions: Sequence[Prediction], documents: Mapping[str, Document]
) -> list[list[Any]]:
    distances = {
        fact: sentence_distance(documents[fact[0]], fact[1], fact[3])
        for fact in {*gold, *(one.fact for one in predictions if _inside(one, documents))}
    }
    keeps = {
        "frequent": lambda fact: fact[2] in FREQUENT,
        "long tail": lambda fact: fact[2] not in FREQUENT,
        "intra-sentence": lambda fact: distances.get(fact) == 0,
        "inter-sentence": lambda fact: distances.get(fact, 0) >= 1,
        "inter, more than 5": lambda fact: distances.get(fact, 0) > 5,
    }
    return [[name, *_row(score_relations(gold, predictions, keep=keep))] for name, keep in keeps.items()]
