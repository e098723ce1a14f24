"""The room's verbs around a model: project, extract, explain, convert."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError, closest
from polyloom.core.files import write_json, write_text
from polyloom.core.result import Artifact, Result, Scalar, Series, Table
from polyloom.generation import ask, complete_all, connect
from polyloom.methods.docre import loglinear
from polyloom.methods.docre.config import ConvertConfig, ExplainConfig, ExtractConfig
from polyloom.methods.docre.data import WORLD, Document, document_json, gold_facts, load_documents
from polyloom.methods.docre.exchange import read_format, write_format
from polyloom.methods.docre.explain import (
    FALSE_NEGATIVES,
    FALSE_POSITIVES,
    classify_errors,
    count_errors,
    evidence_page,
    sentence_effects,
)
from polyloom.methods.docre.extract import SchemaWriter, is_valid, prompt, read_reply, requests_of, similar
from polyloom.methods.docre.schema import NAMES, relations_of
from polyloom.methods.docre.study import documents_of, limits, prediction_json, score_scalars
from polyloom.metrics.relations import Prediction, score_relations
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

TINY_MODEL, TINY_VOCABULARY, TINY_POSITIONS = "llama-2x64", 2000, 1024
NUM_TRAIN = 40


def run_extract(config: ExtractConfig, run: Run) -> Result:
    """Ask a language model for the relations of documents, and read its replies under the schema.

    Raises:
        UserError: no model, or no relation to ask for.
    """
    pin_threads()
    documents = documents_of(config)
    train = load_documents(
        config.train_data, language=config.language, num_documents=NUM_TRAIN, seed=config.seed, split="train"
    )[0]
    relations = relations_of(train)
    if not relations:
        raise UserError("holds no relations to ask for.", where=config.train_data, hint="Give labelled documents.")
    signatures = sorted(loglinear.type_signatures(train))
    classifier = loglinear.train_model(train) if config.mode == "pairs" else None

    def pairs(document: Document) -> list[tuple[int, int]]:
        assert classifier is not None
        found = loglinear.predict(classifier, [document], margin=classifier.margin - 2)
        return sorted({(one.head, one.tail) for one in found})

    asked = []
    for number, document in enumerate(documents):
        shown = similar(train, document, config.num_demonstrations)
        for part, wanted in requests_of(document, config.mode, relations, partial(pairs, document)):
            kept = [one for one in signatures if one[1] in part]
            text = prompt(document, part, shown, language=config.language, signatures=kept, pairs=wanted)
            asked.append((number, text, part))
    replies = answer(config, run, documents, asked)
    return _extracted(config, run, documents, asked, replies)


def answer(
    config: ExtractConfig, run: Run, documents: Sequence[Document], asked: Sequence[tuple[int, str, Sequence[str]]]
) -> list[str]:
    """Return the replies: of a server as they come, of a local model under the grammar."""
    if config.model.startswith(("http://", "https://")) or not (config.constrained or config.model == "tiny"):
        model = connect(config.model, seed=config.seed)
        budget = 24 * config.max_triples
        with run.progress("ask", len(asked)) as advance:
            requests = [ask(text, max_tokens=budget) for _, text, _ in asked]
            return [reply.text for reply in complete_all(model, requests, progress=advance)]
    writer = _writer(config, [text for _, text, _ in asked])
    replies = []
    with run.progress("write", len(asked)) as advance:
        for number, text, relations in asked:
            # A model of random weights would mostly say nothing, which would show nothing.
            least = 1 if config.model == "tiny" else 0
            replies.append(writer.write(text, documents[number], relations, config.max_triples, least))
            advance(1)
    return replies


def _writer(config: ExtractConfig, texts: Sequence[str]) -> SchemaWriter:
    from polyloom.generation.decode import max_positions
    from polyloom.models.load import load_model, load_tokenizer
    from polyloom.models.tiny import build_tiny
    from polyloom.models.tokenizers import train_tokenizer

    if config.model == "tiny":
        tokenizer: Any = train_tokenizer(texts, TINY_VOCABULARY)
        return SchemaWriter(build_tiny(TINY_MODEL, len(tokenizer), config.seed), tokenizer, TINY_POSITIONS)
    model = load_model(config.model, kind="causal")
    return SchemaWriter(model, load_tokenizer(config.model, model), max_positions(model) or 8192)


def _extracted(
    config: ExtractConfig,
    run: Run,
    documents: Sequence[Document],
    asked: Sequence[tuple[int, str, Sequence[str]]],
    replies: Sequence[str],
) -> Result:
    faults: Counter[str] = Counter()
    found: dict[tuple[str, int, str, int], Prediction] = {}
    num_valid = 0
    for (number, _, relations), text in zip(asked, replies, strict=True):
        document = documents[number]
        triples, wrong = read_reply(text, document, relations)
        faults += wrong
        num_valid += is_valid(text, document, relations)
        for t in triples:
            found.setdefault(document.fact(t), Prediction(document.title, t.head, t.relation, t.tail, t.evidence, 1.0))
    predictions = list(found.values())
    write_json(run.artifact("predictions.json"), [prediction_json(one) for one in predictions])
    write_json(
        run.artifact("replies.json"), [{"prompt": a[1], "reply": r} for a, r in zip(asked, replies, strict=True)]
    )
    valid = num_valid / max(1, len(replies))
    scalars = {
        "schema_valid_share": Scalar(value=valid),
        "num_requests": Scalar(value=len(replies)),
        "num_triples": Scalar(value=len(predictions)),
        "num_faults": Scalar(value=sum(faults.values())),
    }
    labelled = [document for document in documents if document.triples is not None]
    if labelled:
        scores = score_relations(gold_facts(labelled), predictions, titles={d.title for d in documents})
        scalars |= score_scalars(scores)
    rows: list[list[Any]] = [[fault, count] for fault, count in faults.most_common()]
    return run.result(
        scalars=scalars,
        tables={"faults": Table(columns=["fault", "count"], rows=rows, title="What was dropped or repaired")},
        artifacts={
            name: Artifact(path=f"artifacts/{name}.json", media_type="application/json", description=name)
            for name in ("predictions", "replies")
        },
        verdicts=[f"{valid:.0%} of {len(replies)} replies are valid under the schema; {len(predictions)} triples."],
        limitations=[
            *limits(config.data, config.train_data),
            *(["The tiny model has random weights: its triples mean nothing."] if config.model == "tiny" else []),
            "A prompt longer than the model's positions loses its beginning under constrained decoding.",
        ],
    )


def run_explain(config: ExplainConfig, run: Run) -> Result:
    """Class the errors of a log-linear model, and draw a page of one document's evidence.

    Raises:
        UserError: no such document or model, or no labels.
    """
    pin_threads()
    documents = [document for document in documents_of(config) if document.triples is not None]
    if not documents:
        raise UserError("has no gold triples to compare with.", where=config.data, hint="Give labelled documents.")
    if config.model:
        model = loglinear.load_model(Path(config.model))
    else:
        train = load_documents(WORLD, language=config.language, num_documents=NUM_TRAIN, seed=config.seed)[0]
        model = loglinear.train_model(train)
    predictions: dict[str, list[Prediction]] = {document.title: [] for document in documents}
    for one in loglinear.predict(model, documents):
        predictions[one.title].append(one)
    signatures = set(model.signatures)
    counts = count_errors(documents, predictions, signatures)
    chosen = _chosen(documents, config.title)
    path = run.artifact("evidence.html")
    shown = sorted(predictions[chosen.title], key=lambda one: -one.score)[:25]
    effects = sentence_effects(chosen, shown, lambda d: _scores(model, d), loglinear.MIN_SCORE)
    write_text(path, evidence_page(chosen, shown, effects))
    hits = sum(max(effects[p.head, p.relation, p.tail]) == effects[p.head, p.relation, p.tail][s]
               for p in shown for s in p.evidence[:1])  # fmt: skip
    examples: list[list[Any]] = [
        [kind, d.title, d.canonical(t.head), NAMES.get(t.relation, t.relation), d.canonical(t.tail)]
        for d in documents
        for kind, t in classify_errors(d, predictions[d.title], signatures)
    ]
    kinds = [*FALSE_POSITIVES, *FALSE_NEGATIVES]
    worst = max(kinds, key=lambda kind: counts[kind])
    return run.result(
        scalars={f"num_{kind.replace(', ', '_').replace(' ', '_')}": Scalar(value=counts[kind]) for kind in kinds}
        | {"num_errors": Scalar(value=sum(counts.values())), "first_evidence_hits": Scalar(value=hits)},
        tables={
            "errors": Table(
                columns=["class", "document", "head", "relation", "tail"], rows=examples[:60], title="Errors"
            )
        },
        series={
            "errors": Series(
                x=[float(i) for i in range(len(kinds))],
                y=[float(counts[kind]) for kind in kinds],
                x_names=kinds,
                kind="bar",
                y_label="errors",
                group="Errors by class",
            )
        },
        artifacts={
            "evidence": Artifact(
                path="artifacts/evidence.html", media_type="text/html", description=f"evidence in {chosen.title}"
            )
        },
        verdicts=[f"{sum(counts.values())} errors in {len(documents)} documents; most are: {worst} ({counts[worst]})."],
        limitations=[*limits(config.data), "Evidence is shown by leaving out one sentence at a time."],
    )


def _scores(model: loglinear.LogLinear, document: Document) -> Mapping[tuple[int, str, int], float]:
    found = loglinear.predict(model, [document], margin=loglinear.MIN_SCORE)
    return {(one.head, one.relation, one.tail): one.score for one in found}


def _chosen(documents: Sequence[Document], title: str | None) -> Document:
    if title is None:
        return documents[0]
    for document in documents:
        if document.title == title:
            return document
    hint = closest(title, [document.title for document in documents[:50]])
    raise UserError(f"there is no document {title!r}.", where="--title", hint=hint)


def run_convert(config: ConvertConfig, run: Run) -> Result:
    """Convert documents to another tool's form, and say whether reading them back gives the same.

    Raises:
        UserError: input that is not of its form.
    """
    if config.data == WORLD:
        documents = documents_of(config)
    else:
        documents = read_format(Path(config.data), config.source_format, strict=config.strict)
    suffix = {"docred": ".json", "brat": "", "doccano": ".jsonl", "label-studio": ".json"}[config.target_format]
    path = run.artifact(f"{config.target_format}{suffix}")
    write_format(path, documents, config.target_format)
    again = read_format(path, config.target_format) if documents else []
    same = [document_json(a) == document_json(b) for a, b in zip(documents, again, strict=True)]
    name = path.relative_to(run.path).as_posix()
    return run.result(
        scalars={
            "num_documents": Scalar(value=len(documents)),
            "num_equal_after_reading": Scalar(value=sum(same)),
            "round_trip_exact": Scalar(value=all(same)),
        },
        artifacts={"converted": Artifact(path=name, media_type="application/octet-stream", description="converted")},
        verdicts=[f"{sum(same)} of {len(documents)} documents are equal after reading them back."],
        limitations=limits(config.data),
    )
