"""The room's verbs around a model: project, extract, explain, convert."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError, closest
from polyloom.core.files import read_text, write_json, write_text
from polyloom.core.result import Artifact, Result, Scalar, Series, Table
from polyloom.generation import ask, complete_all, connect
from polyloom.methods.docre import loglinear
from polyloom.methods.docre.config import ConvertConfig, ExplainConfig, ExtractConfig, ProjectConfig
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
from polyloom.methods.docre.projection import (
    MAX_MISSING,
    Translator,
    exact_mentions,
    glosser,
    identity,
    noisy,
    project,
)
from polyloom.methods.docre.schema import NAMES, relations_of
from polyloom.methods.docre.study import documents_of, limits, prediction_json, score_scalars
from polyloom.metrics.alignment import alignment_error_rate, read_links
from polyloom.metrics.relations import Prediction, score_relations
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

TINY_MODEL, TINY_VOCABULARY, TINY_POSITIONS = "llama-2x64", 2000, 1024
NUM_TRAIN = 40
INSTRUCTION = (
    'Translate the sentence into {language}. Keep every tag <e id="..."> and </e> around the words that it marks. '
    "Answer with the translation alone.\n{text}"
)


def run_project(config: ProjectConfig, run: Run) -> Result:
    """Translate documents with marked mentions and write the projected ones, or score word alignments.

    Raises:
        UserError: an unknown translator, or one that loses too many marks.
    """
    if config.alignments:
        return _score_alignments(config, run)
    documents = documents_of(config)
    translate = translator(config, documents)
    if config.drop_rate or config.swallow_rate:
        translate = noisy(
            translate,
            drop_rate=config.drop_rate,
            swallow_rate=config.swallow_rate,
            seed=config.seed,
            language=config.target,
        )
    language = config.language if config.translator == "identity" else config.target
    found = project(
        documents,
        translate,
        config.target if config.swallow_rate else language,
        min_entities=config.min_entities,
        max_missing=1.0 if config.drop_rate else MAX_MISSING,
    )
    path = run.artifact("projected.json")
    write_json(path, [document_json(document) for document in found.documents])
    total, exact = sum(found.statuses.values()), exact_mentions(documents, found.documents)
    kept = sum(len(document.triples or ()) for document in found.documents)
    values: dict[str, float] = {
        "num_documents": len(found.documents),
        "num_dropped_documents": sum(found.dropped.values()),
        "num_mentions": total,
        "num_exact_mentions": exact,
        "exact_share": exact / max(1, total),
        "num_triples": kept,
        "num_dropped_triples": found.num_dropped_triples,
        "num_dropped_entities": found.num_dropped_entities,
    }
    values |= {f"share_{s}": found.statuses[s] / max(1, total) for s in ("ok", "repaired", "matched", "missing")}
    rows: list[list[Any]] = [[status, count] for status, count in found.statuses.most_common()]
    lost: list[list[Any]] = [list(row) for row in found.missing[:40]]
    return run.result(
        scalars={name: Scalar(value=value) for name, value in values.items()},
        tables={
            "statuses": Table(columns=["status", "mentions"], rows=rows, title="What became of the marks"),
            "missing": Table(columns=["document", "mention", "translation"], rows=lost, title="Missing mentions"),
        },
        artifacts={
            "projected": Artifact(
                path="artifacts/projected.json", media_type="application/json", description="projected documents"
            )
        },
        verdicts=[
            f"{found.statuses['missing']} of {total} mentions were lost; {len(found.documents)} of {len(documents)} "
            f"documents and {kept} triples were kept."
        ],
        limitations=[
            *limits(config.data),
            "Particles are stripped by a list; no morphological analyser is used.",
            "The fall-back matches names; no word aligner is run.",
        ],
    )


def _score_alignments(config: ProjectConfig, run: Run) -> Result:
    assert config.alignments is not None
    if config.gold_alignments is None:
        raise UserError("there is nothing to score against.", where="--gold-alignments", hint="Name the gold file.")
    pairs = [read_text(Path(p)).splitlines() for p in (config.alignments, config.gold_alignments)]
    if len(pairs[0]) != len(pairs[1]):
        raise UserError(f"has {len(pairs[0])} lines, the gold {len(pairs[1])}.", where=config.alignments)
    rows = []
    for number, (line, gold) in enumerate(zip(*pairs, strict=True), 1):
        try:
            rows.append((read_links(line)[1], *read_links(gold, first=1)))
        except ValueError as error:
            raise UserError("holds a piece that is no link.", where=f"{config.alignments}:{number}") from error
    rate = alignment_error_rate(rows)
    return run.result(
        scalars={"alignment_error_rate": Scalar(value=rate), "num_sentences": Scalar(value=len(rows))},
        verdicts=[f"Alignment error rate {rate:.4f} over {len(rows)} sentences."],
    )


def translator(config: ProjectConfig, documents: Sequence[Document]) -> Translator:
    """Return the translator that a configuration names.

    Raises:
        UserError: a dictionary that cannot be read or is not there.
    """
    name = config.translator
    if name == "identity":
        return identity
    if name == "dictionary":
        joiner = "" if config.target in ("ja", "zh", "th") else " "
        return glosser(_dictionary(config, documents), joiner)
    if name.startswith("seq2seq:"):
        from polyloom.generation.local import LocalChat
        from polyloom.models.load import load_model, load_tokenizer

        model = load_model(name.removeprefix("seq2seq:"), kind="seq2seq")
        chat: Any = LocalChat(model, load_tokenizer(name.removeprefix("seq2seq:"), model), name=name)
        return lambda texts: [reply.text for reply in complete_all(chat, [ask(text) for text in texts])]
    wanted = connect(name, seed=config.seed)

    def translate(texts: Sequence[str]) -> list[str]:
        asked = [ask(INSTRUCTION.format(language=config.target, text=text)) for text in texts]
        return [reply.text.strip() for reply in complete_all(wanted, asked)]

    return translate


def _dictionary(config: ProjectConfig, documents: Sequence[Document]) -> dict[str, str]:
    if config.dictionary:
        rows = [line.split("\t") for line in read_text(Path(config.dictionary)).splitlines() if line]
        if bad := next((i for i, row in enumerate(rows, 1) if len(row) != 2), None):
            raise UserError("has not two fields (source, target).", where=f"{config.dictionary}:{bad}")
        return dict(rows)
    if config.data != WORLD:
        raise UserError("the dictionary translator needs words.", where="--dictionary", hint="Name a TAB file.")
    other = load_documents(
        WORLD, language=config.target, num_documents=config.num_documents, seed=config.seed, split="test"
    )[0]
    return {
        " ".join(a.sentences[m.sentence][m.start : m.end]): n.name
        for a, b in zip(documents, other, strict=True)
        if len(a.entities) == len(b.entities)
        for one, two in zip(a.entities, b.entities, strict=True)
        for m, n in zip(one, two, strict=False)
    }


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
