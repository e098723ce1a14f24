"""The room's verbs around a model: project, extract, explain, convert."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from polyloom.core.errors import UserError, closest
from polyloom.core.files import write_json, write_text
from polyloom.core.result import Artifact, Result, Scalar, Series, Table
from polyloom.core.seeding import python_random
from polyloom.generation import ask, complete_all, connect
from polyloom.methods.docre import loglinear
from polyloom.methods.docre.config import ConvertConfig, ExplainConfig, ExtractConfig
from polyloom.methods.docre.data import WORLD, Document, Triple, document_json, gold_facts, load_documents
from polyloom.methods.docre.exchange import read_format, write_format
from polyloom.methods.docre.explain import (
    FALSE_NEGATIVES,
    FALSE_POSITIVES,
    attention_page,
    classify_errors,
    count_errors,
    evidence_page,
    sentence_effects,
)
from polyloom.methods.docre.extract import (
    Pair,
    SchemaWriter,
    covering,
    is_valid,
    prompt,
    read_reply,
    requests_of,
    similar,
    verification,
)
from polyloom.methods.docre.prediction import Decision, Model, open_model, predict_any, scores_of
from polyloom.methods.docre.schema import NAMES, relations_of
from polyloom.methods.docre.study import documents_of, limits, prediction_json, score_scalars, sources_of
from polyloom.methods.docre.transformer import DocumentModel, token_attention
from polyloom.metrics.relations import Prediction, score_relations
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

TINY_MODEL, TINY_VOCABULARY, TINY_POSITIONS = "llama-2x64", 2000, 1024
NUM_TRAIN = 40
NUM_HEATED = 5


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

    def pairs(document: Document) -> list[Pair]:
        assert classifier is not None
        found = loglinear.predict(classifier, [document], margin=classifier.margin - 2)
        return sorted({(one.head, one.tail) for one in found})

    asked = []
    for number, document in enumerate(documents):
        shown = _shown(config, train, document)
        for part, wanted in requests_of(document, config.mode, relations, partial(pairs, document)):
            kept = [one for one in signatures if one[1] in part]
            text = prompt(document, part, shown, language=config.language, signatures=kept, pairs=wanted)
            asked.append(Asked(number, text, part, wanted))
    oracle = _oracle(config, run, [one.text for one in asked])
    return _extracted(config, run, documents, asked, oracle)


class Asked(NamedTuple):
    """A question: about which document, in which words, which relations and pairs."""

    number: int
    text: str
    relations: Sequence[str]
    pairs: Sequence[Pair]


@dataclass(frozen=True)
class Oracle:
    """What answers: `write` questions with replies, `affirm` prompts with yes or no."""

    write: Callable[[Sequence[Document], Sequence[Asked]], list[str]]
    affirm: Callable[[Sequence[str]], list[bool]]


def _shown(config: ExtractConfig, train: Sequence[Document], document: Document) -> list[Document]:
    others = [one for one in train if one.title != document.title]
    if config.demonstrations == "random":
        count = min(config.num_demonstrations, len(others))
        return python_random(config.seed, "demonstrations", document.title).sample(others, count)
    if config.demonstrations == "cover":
        return covering(others, config.num_demonstrations)
    return similar(train, document, config.num_demonstrations)


def _oracle(config: ExtractConfig, run: Run, texts: Sequence[str]) -> Oracle:
    """Return a server or an unconstrained model, whose replies are taken as they come, or a model under the grammar."""
    if config.model.startswith(("http://", "https://")) or not (config.constrained or config.model == "tiny"):
        model = connect(config.model, seed=config.seed)

        def complete(label: str, prompts: Sequence[str], budget: int) -> list[str]:
            with run.progress(label, len(prompts)) as advance:
                requests = [ask(text, max_tokens=budget) for text in prompts]
                return [reply.text for reply in complete_all(model, requests, progress=advance)]

        return Oracle(
            lambda _, asked: complete("ask", [one.text for one in asked], 24 * config.max_triples),
            lambda prompts: [text.strip().lower().startswith("yes") for text in complete("verify", prompts, 4)],
        )
    writer = _writer(config, texts)

    def write(documents: Sequence[Document], asked: Sequence[Asked]) -> list[str]:
        replies = []
        with run.progress("write", len(asked)) as advance:
            for one in asked:
                # A model of random weights would mostly say nothing, which would show nothing.
                least = 1 if config.model == "tiny" else 0
                document = documents[one.number]
                replies.append(writer.write(one.text, document, one.relations, config.max_triples, least, one.pairs))
                advance(1)
        return replies

    return Oracle(write, lambda prompts: [writer.choose(text, ["yes", "no"]) == "yes" for text in prompts])


def _writer(config: ExtractConfig, texts: Sequence[str]) -> SchemaWriter:
    from polyloom.generation.decode import max_positions
    from polyloom.models.load import load_model, load_tokenizer
    from polyloom.models.tiny import build_tiny
    from polyloom.models.tokenizers import train_tokenizer

    if config.model == "tiny":
        tokenizer: Any = train_tokenizer(texts, TINY_VOCABULARY)
        return SchemaWriter(build_tiny(TINY_MODEL, len(tokenizer), config.seed), tokenizer, TINY_POSITIONS)
    model = load_model(config.model, kind="causal", device="auto")
    return SchemaWriter(model, load_tokenizer(config.model, model), max_positions(model) or 8192)


def _extracted(
    config: ExtractConfig,
    run: Run,
    documents: Sequence[Document],
    asked: Sequence[Asked],
    oracle: Oracle,
) -> Result:
    faults: Counter[str] = Counter()
    found: dict[tuple[str, int, str, int], Prediction] = {}
    num_valid = 0
    replies = oracle.write(documents, asked)
    for one, text in zip(asked, replies, strict=True):
        document = documents[one.number]
        triples, wrong = read_reply(text, document, one.relations, one.pairs)
        faults += wrong
        num_valid += is_valid(text, document, one.relations, one.pairs)
        for t in triples:
            found.setdefault(document.fact(t), Prediction(document.title, t.head, t.relation, t.tail, t.evidence, 1.0))
    predictions = list(found.values())
    num_written = len(predictions)
    if config.verify:
        by_title = {document.title: document for document in documents}
        prompts = [verification(by_title[p.title], Triple(p.head, p.relation, p.tail)) for p in predictions]
        predictions = [p for p, holds in zip(predictions, oracle.affirm(prompts), strict=True) if holds]
    write_json(run.artifact("predictions.json"), [prediction_json(one) for one in predictions])
    write_json(
        run.artifact("replies.json"), [{"prompt": a.text, "reply": r} for a, r in zip(asked, replies, strict=True)]
    )
    valid = num_valid / max(1, len(replies))
    scalars = {
        "schema_valid_share": Scalar(value=valid),
        "num_requests": Scalar(value=len(replies)),
        "num_triples": Scalar(value=len(predictions)),
        "num_not_affirmed": Scalar(value=num_written - len(predictions)),
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
    """Class a model's errors, by file too; draw pages of one document's evidence and of the attention on its text.

    Raises:
        UserError: no such document or model, or no labels.
    """
    pin_threads()
    sources = sources_of(config)[0]
    documents = [document for found in sources.values() for document in found if document.triples is not None]
    if not documents:
        raise UserError("has no gold triples to compare with.", where=config.data, hint="Give labelled documents.")
    if config.model:
        model = open_model(Path(config.model))
    else:
        train = load_documents(WORLD, language=config.language, num_documents=NUM_TRAIN, seed=config.seed)[0]
        model = loglinear.train_model(train)
    predictions: dict[str, list[Prediction]] = {document.title: [] for document in documents}
    for one in predict_any(model, documents, Decision()):
        predictions[one.title].append(one)
    signatures = set(model.signatures) if isinstance(model, loglinear.LogLinear) else set()
    counts = count_errors(documents, predictions, signatures)
    chosen = _chosen(documents, config.title)
    path = run.artifact("evidence.html")
    shown = sorted(predictions[chosen.title], key=lambda one: -one.score)[:25]
    effects = sentence_effects(chosen, shown, lambda d: _scores(model, d), loglinear.MIN_SCORE)
    write_text(path, evidence_page(chosen, shown, effects))
    pages = {
        "evidence": Artifact(
            path="artifacts/evidence.html", media_type="text/html", description=f"evidence in {chosen.title}"
        )
    }
    if isinstance(model, DocumentModel):
        heat = [(p, *token_attention(model, chosen, p.head, p.tail)) for p in shown[:NUM_HEATED]]
        write_text(run.artifact("attention.html"), attention_page(chosen, heat))
        pages["attention"] = Artifact(
            path="artifacts/attention.html", media_type="text/html", description=f"attention on {chosen.title}"
        )
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
            ),
            "sources": _errors_by_source(sources, predictions, signatures),
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
        artifacts=pages,
        verdicts=[f"{sum(counts.values())} errors in {len(documents)} documents; most are: {worst} ({counts[worst]})."],
        limitations=[*limits(*sources), "Evidence is shown by leaving out one sentence at a time."],
    )


def _errors_by_source(
    sources: Mapping[str, Sequence[Document]],
    predictions: Mapping[str, Sequence[Prediction]],
    signatures: set[tuple[str, str, str]],
) -> Table:
    """Count errors by class for each file: for each language or domain."""
    kinds = [*FALSE_POSITIVES, *FALSE_NEGATIVES]
    rows: list[list[Any]] = []
    for name, found in sources.items():
        labelled = [document for document in found if document.triples is not None]
        counts = count_errors(labelled, predictions, signatures)
        num_gold = sum(len(document.triples or ()) for document in labelled)
        rows.append([name, len(labelled), num_gold, *(counts[kind] for kind in kinds)])
    return Table(columns=["source", "documents", "gold", *kinds], rows=rows, title="Errors by source")


def _scores(model: Model, document: Document) -> Mapping[tuple[int, str, int], float]:
    return scores_of(model, [document])[0].scores


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
