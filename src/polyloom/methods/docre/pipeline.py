"""The room's study: from labels in another language to recommendations, edit steps and a graph, on made documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.methods.docre import loglinear
from polyloom.methods.docre.annotation_store import QUESTIONS_A_DOCUMENT
from polyloom.methods.docre.annotations import Recall, estimate_recall, questions, unreviewed_pairs
from polyloom.methods.docre.config import DocreStudyConfig
from polyloom.methods.docre.data import WORLD, Document, Triple, gold_facts, load_documents
from polyloom.methods.docre.editing import edit_tables
from polyloom.methods.docre.graph import Graph
from polyloom.methods.docre.graphs import export_graph, with_triples
from polyloom.methods.docre.loglinear import LogLinear, Training, predict, train_model
from polyloom.methods.docre.recommend import count_edits, query_knowledge_base, reduction
from polyloom.methods.docre.schema import NAMES, closure
from polyloom.methods.docre.study import WORLD_LIMITATION
from polyloom.methods.docre.transfer import joint_model
from polyloom.metrics.relations import Prediction, bootstrap_f1, counts_by_title, score_relations
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

NUM_SEEDS = {"quick": 2, "full": 6}
NUM_TRAIN = {"quick": 60, "full": 200}
NUM_TEST = {"quick": 30, "full": 60}
NUM_DRAWN = 5
# What makes a translation of documents differ from documents written in the language.
TRANSLATIONESE = {"foreign_order": 0.9, "own_names": 0.3}
NATIVE = {"own_names": 0.1}
SYSTEMS = {
    "knowledge base": "knowledge base of the training facts",
    "translated": "trained on translated documents, margin 0",
    "foreign": "trained on the source language without words",
    "native": "trained on native documents",
    "joint": "trained on translated, then native documents",
}


def make_documents(language: str, num_documents: int, seed: int, split: str, noise: dict[str, float]) -> list[Document]:
    """Make documents with titles that no other seed has."""
    made = load_documents(WORLD, language=language, num_documents=num_documents, seed=seed, split=split, noise=noise)[0]
    return [replace(document, title=f"{document.title} ({seed})") for document in made]


def recommendations(model: LogLinear, documents: Sequence[Document]) -> list[Prediction]:
    """Return what is more probably right than wrong, which costs the fewest expected edit steps."""
    return predict(model, documents, margin=loglinear.MIN_SCORE, least_probability=0.5)


def run_study(config: DocreStudyConfig, run: Run) -> Result:
    """Train recommenders, count the edits they leave, compare kinds of training documents, and draw a graph.

    Raises:
        UserError: a language without templates.
    """
    pin_threads()
    num_seeds = NUM_SEEDS[config.profile]
    parts = []
    with run.progress("seeds", num_seeds) as advance:
        for index in range(num_seeds):
            parts.append(run.once(f"seed {index}", partial(_part, config, index)))
            advance(1)
    tests = [d for i in range(num_seeds) for d in _test_documents(config, i)]
    found = {
        name: [Prediction(t, h, r, o, tuple(e), s) for part in parts for t, h, r, o, e, s in part[name]]
        for name in parts[0]
    }
    systems = {"nothing": [], "knowledge base": found["knowledge base"], "model": found["recommended"]}
    scalars, tables, verdict = edit_tables(systems, tests, config.seed)
    more, rows, transfer_verdicts = _compare(found, tests, config.seed)
    graph, drawn = _graph(tests[:NUM_DRAWN], found["recommended"])
    gold = count_edits(systems["model"], tests)
    saved = scalars["reduction_against_knowledge_base"]
    agree = _graph_is_stable(graph, tests[:NUM_DRAWN], found["recommended"])
    asked, recall = recall_by_questions(tests, found["recommended"], QUESTIONS_A_DOCUMENT)
    return run.result(
        scalars=scalars
        | more
        | {
            "num_test_documents": Scalar(value=len(tests)),
            "num_seeds": Scalar(value=num_seeds),
            "graph_nodes": Scalar(value=len(graph.nodes)),
            "graph_edges": Scalar(value=len(graph.edges)),
            "graph_update_and_retract_exact": Scalar(value=agree),
            "recall_by_questions": Scalar.of(asked.recall),
            "recall_of_related_pairs": Scalar(value=recall),
        },
        tables=tables | {"systems": rows, "graph": drawn},
        series=_series(systems, tests, more),
        artifacts=export_graph(graph, run),
        verdicts=[
            verdict,
            *transfer_verdicts,
            f"Of the {gold.steps} steps that remain, {gold.additions} are additions and {gold.removals} removals.",
            f"{asked.num_asked} questions about random other pairs say that recommendations hold "
            f"{asked.recall.value:.0%} [{asked.recall.low:.0%}, {asked.recall.high:.0%}] of the related pairs; "
            f"in truth {recall:.0%}.",
            f"The first {NUM_DRAWN} documents make a graph of {len(graph.nodes)} entities and {len(graph.edges)} "
            "relations, each with its sentences.",
        ],
        limitations=[
            WORLD_LIMITATION,
            "Edit steps are counted against gold triples: no person annotated.",
            "Translated documents are imitated by source word order and own names of places.",
            *(
                ["The quick profile's documents are too few to decide this."]
                if saved.low is not None and saved.high is not None and saved.low <= 0 <= saved.high
                else []
            ),
        ],
    )


def _test_documents(config: DocreStudyConfig, index: int) -> list[Document]:
    return make_documents(config.language, NUM_TEST[config.profile], config.seed + index, "test", NATIVE)


def _part(config: DocreStudyConfig, index: int) -> dict[str, list[Any]]:
    """Train every recommender of one seed and return its predictions on the test documents."""
    seed, count = config.seed + index, config.num_train_documents or NUM_TRAIN[config.profile]
    training = Training(seed=seed)
    native = make_documents(config.language, count, seed, "train", NATIVE)
    translated = make_documents(config.language, count, seed, "train", TRANSLATIONESE)
    foreign = make_documents(config.source_language, count, seed, "train", {})
    test = _test_documents(config, index)
    model = train_model(native, training=training)
    early = train_model(translated, training=training)
    delexicalised = train_model(foreign, lexical=False, training=training)
    return {
        "knowledge base": query_knowledge_base(test, model.name_facts),
        "translated": predict(early, test, margin=0.0),
        "foreign": predict(delexicalised, test),
        "native": predict(model, test),
        "joint": predict(joint_model(native, translated, seed), test),
        "recommended": recommendations(model, test),
        "recommended by translated": recommendations(early, test),
    }


def _compare(
    found: dict[str, list[Prediction]], tests: Sequence[Document], seed: int
) -> tuple[dict[str, Scalar], Table, list[str]]:
    gold, titles = gold_facts(tests), [document.title for document in tests]
    counts = {name: counts_by_title(gold, found[name], titles) for name in SYSTEMS}
    rows: list[list[Any]] = []
    scalars: dict[str, Scalar] = {}
    for name, meaning in SYSTEMS.items():
        score = score_relations(gold, found[name], titles=titles)
        f1 = bootstrap_f1(counts[name], seed=seed)
        short = name.replace(" ", "_")
        scalars[f"{short}_f1"] = Scalar.of(f1)
        scalars[f"{short}_precision"] = Scalar(value=score.relation.precision)
        scalars[f"{short}_recall"] = Scalar(value=score.relation.recall)
        scalars[f"{short}_evidence_f1"] = Scalar(value=score.evidence.f1)
        rows.append([meaning, *score.relation, f1.low, f1.high, score.evidence.f1])
    ahead = bootstrap_f1(counts["native"], counts["translated"], seed=seed)
    joint = bootstrap_f1(counts["joint"], counts["native"], seed=seed)
    steps = count_edits(found["recommended by translated"], tests)
    base = count_edits(found["knowledge base"], tests)
    early = reduction(steps.by_document, base.by_document, seed=seed)
    scalars |= {
        "native_ahead_of_translated_f1": Scalar.of(ahead),
        "joint_ahead_of_native_f1": Scalar.of(joint),
        "reduction_by_translated": Scalar.of(early),
    }
    recall, precision = scalars["translated_recall"].value, scalars["translated_precision"].value
    columns = ["recommender", "precision", "recall", "F1", "low", "high", "evidence F1"]
    return (
        scalars,
        Table(columns=columns, rows=rows, title="Recommenders on native documents"),
        [
            f"A model of translated documents has precision {precision:.2f} and recall {recall:.2f} on native ones; "
            f"native training is {_ahead(ahead.value, ahead.low, ahead.high)}, and saves "
            f"{scalars['reduction_by_translated'].value:.0%} of the steps.".replace(
                "and saves", "while its recommendations save"
            ),
            f"Joint training is {_ahead(joint.value, joint.low, joint.high)} compared with native.",
        ],
    )


def _ahead(value: float, low: float, high: float) -> str:
    word = "ahead" if low > 0 else "behind" if high < 0 else "not decidedly different"
    return f"{word} by {value:+.3f} F1 [{low:+.3f}, {high:+.3f}]"


def recall_by_questions(
    documents: Sequence[Document], recommended: Sequence[Prediction], count: int
) -> tuple[Recall, float]:
    """Play an annotator who settles all recommendations rightly and adds nothing, and ask about random other pairs.

    Args:
        documents: with gold triples, which give the answers.
        recommended: what the annotator starts from.
        count: questions a document.

    Returns:
        What the answers say of the recall of related pairs, and the true recall.
    """
    num_yes = num_asked = num_unreviewed = num_found = num_true = 0
    for document in documents:
        related = {frozenset((t.head, t.tail)) for t in document.triples or ()}
        start = [Triple(p.head, p.relation, p.tail) for p in recommended if p.title == document.title]
        asked = questions(document.title, len(document.entities), start, [], count)
        num_unreviewed += len(unreviewed_pairs(len(document.entities), start, []))
        num_asked += len(asked)
        num_yes += sum(frozenset(pair) in related for pair in asked)
        num_found += len(related & {frozenset((t.head, t.tail)) for t in start})
        num_true += len(related)
    return estimate_recall(num_yes, num_asked, num_unreviewed, num_found), num_found / max(1, num_true)


def _graph(documents: Sequence[Document], predictions: Sequence[Prediction]) -> tuple[Graph, Table]:
    """Return the graph of recommended triples, and its edges with what an annotator would do to each."""
    graph = Graph()
    scores = {one.fact: one.score for one in predictions}
    graph.update([with_triples(document, predictions) for document in documents], scores=scores, model="log-linear")
    recommended = {one.fact for one in predictions}
    rows: list[list[Any]] = []
    for document in documents:
        gold = set(gold_facts([document]))
        own = {fact for fact in recommended if fact[0] == document.title}
        for fact in sorted(gold | own):
            state = "kept" if fact in gold & own else "added" if fact in gold else "removed"
            _, head, relation, tail = fact
            rows.append(
                [
                    document.canonical(head), document.entity_type(head), NAMES.get(relation, relation),
                    document.canonical(tail), document.entity_type(tail), state, document.title,
                ]
            )  # fmt: skip
    columns = ["head", "head type", "relation", "tail", "tail type", "edit", "document"]
    return graph, Table(columns=columns, rows=rows, title=f"The graph of {len(documents)} documents, with its edits")


def _graph_is_stable(graph: Graph, documents: Sequence[Document], predictions: Sequence[Prediction]) -> bool:
    """Say whether running again changes nothing, taking a document back removes its edges alone, closure is exact."""
    built = [with_triples(document, predictions) for document in documents]
    scores = {one.fact: one.score for one in predictions}
    again, without = Graph(dict(graph.contributions)), Graph()
    again.update(built, scores=scores, model="log-linear")
    same = again.edges == graph.edges and again.nodes == graph.nodes
    only = {edge for edge, support in graph.edges.items() if {one.document for one in support} == {documents[0].title}}
    again.retract(documents[0].title)
    without.update(built[1:], scores=scores, model="log-linear")
    closed = all(closure(closure(d.triples or ())) == closure(d.triples or ()) for d in built)
    return same and closed and again.edges == without.edges and graph.edges.keys() - again.edges.keys() == only


def _series(
    systems: dict[str, list[Prediction]], tests: Sequence[Document], scalars: dict[str, Scalar]
) -> dict[str, Series]:
    names = list(SYSTEMS)
    shorts = [name.replace(" ", "_") for name in names]
    bars = {name: count_edits(rows, tests) for name, rows in systems.items()}
    place = [float(i) for i in range(len(bars))]
    return {
        "additions": Series(
            x=place, y=[float(e.additions) for e in bars.values()], x_names=list(bars), kind="bar",
            x_label="recommended by", y_label="edit steps", group="Edit steps that remain",
        ),
        "removals": Series(
            x=place, y=[float(e.removals) for e in bars.values()], x_names=list(bars), kind="bar",
            x_label="recommended by", y_label="edit steps", group="Edit steps that remain",
        ),
        "f1": Series(
            x=[float(i) for i in range(len(names))],
            y=[_number(scalars[f"{s}_f1"].value) for s in shorts],
            low=[_number(scalars[f"{s}_f1"].low) for s in shorts],
            high=[_number(scalars[f"{s}_f1"].high) for s in shorts],
            x_names=names, kind="bar", y_label="F1 on native documents", group="Where the training documents come from",
        ),
    }  # fmt: skip


def _number(value: Any) -> float:
    return float(value)
