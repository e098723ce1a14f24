"""Reading, repairs, the official scorer, edits, the graph, the annotators' log, projection, exchange: oracles."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.methods.docre.annotation_store import AnnotationStore, edits_agree
from polyloom.methods.docre.annotations import (
    Event,
    edits_of_log,
    estimate_total,
    key,
    triple_agreement,
)  # fmt: skip
from polyloom.methods.docre.data import (
    Document,
    Mention,
    Triple,
    document_json,
    gold_facts,
    load_documents,
    read_documents,
    totals,
)  # fmt: skip
from polyloom.methods.docre.exchange import Format, read_format, utf16, write_format
from polyloom.methods.docre.extract import is_valid, read_reply
from polyloom.methods.docre.graph import Graph, load_graph, save_graph
from polyloom.methods.docre.marks import clean_span, parse
from polyloom.methods.docre.projection import exact_mentions, project
from polyloom.methods.docre.schema import closure, missing_inverses
from polyloom.methods.docre.study import worked_example
from polyloom.methods.docre.translators import identity, noisy
from polyloom.metrics.alignment import alignment_error_rate, read_links
from polyloom.metrics.relations import Fact, edit_steps, score_relations


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return load_documents("world", num_documents=6)[0]


def write(path: Path, **changes: Any) -> Path:
    value = {
        "title": "T",
        "sents": [["東京", "は", "1605", "年", "。"], ["日本"]],
        "vertexSet": [
            [{"name": "東京", "sent_id": 0, "pos": [0, 1], "type": "LOC"}],
            [{"name": "1605年", "sent_id": 0, "pos": [2, 3], "type": "DAT"}],
            [{"name": "日本", "sent_id": 1, "pos": [1, 1], "type": "LOC"}],
        ],
        "labels": [{"h": 0, "t": 2, "r": "P17", "evidence": [0, 9]}],
    }
    path.write_text(json.dumps([value | changes]))
    return path


def test_reader_repairs_and_counts(tmp_path: Path) -> None:
    (document,), defects = read_documents(write(tmp_path / "a.json"))
    assert [(m.start, m.end) for entity in document.entities for m in entity] == [(0, 1), (2, 4), (0, 1)]
    assert document.triples == (Triple(0, "P17", 2, (0,)),)
    assert defects.counts == Counter(spans_one_token_short=1, zero_length_spans=1, evidence_out_of_range=1)
    with pytest.raises(UserError, match="1 evidence out of range"):
        read_documents(tmp_path / "a.json", strict=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sents": 3}, "document 0 'T': is misshapen"),
        ({"vertexSet": [[{"name": "x"}]]}, "misshapen"),
        ({"labels": [{"h": 0, "t": 1, "r": "P18"}]}, "'P18', which the schema lacks. Did you mean 'P17'"),
    ],
)
def test_reader_refuses_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_documents(write(tmp_path / "a.json", **changes), relations={"P17": "1"})
    assert "\n" not in str(caught.value)


def test_reader_drops_bad_triples_and_remarks_on_overlaps(tmp_path: Path) -> None:
    both = [
        [{"name": "a", "sent_id": 0, "pos": [0, 2], "type": "X"}],
        [{"name": "b", "sent_id": 0, "pos": [1, 2], "type": "X"}],
    ]
    labels = [{"h": 0, "t": 5, "r": "P"}, {"h": 1, "t": 1, "r": "P"}, {"h": 0, "t": 1, "r": "P"}] * 2
    (document,), defects = read_documents(write(tmp_path / "a.json", vertexSet=both, labels=labels))
    assert document.triples == (Triple(0, "P", 1),)
    assert defects.counts["entities_out_of_range"] == 2
    assert defects.counts["head_is_tail"] == 2
    assert defects.counts["duplicate_triples"] == 1
    assert defects.counts["overlapping_mentions"] == 1


def test_hub_variant_and_one_entity(tmp_path: Path) -> None:
    labels = {"head": [0], "tail": [1], "relation_id": ["P17"], "relation_text": ["country"], "evidence": [[1]]}
    (document,), _ = read_documents(write(tmp_path / "a.json", labels=labels))
    assert document.triples == (Triple(0, "P17", 1, (1,)),)
    one = [[{"name": "東京", "sent_id": 0, "pos": [0, 1], "type": "LOC"}]]
    (document,), defects = read_documents(write(tmp_path / "b.json", vertexSet=one, labels=[]))
    assert list(document.pairs()) == []
    assert defects.counts["under_two_entities"] == 1


def test_duplicate_titles_are_refused_by_the_scorer(documents: list[Document]) -> None:
    with pytest.raises(UserError, match="2 documents have the title"):
        gold_facts([documents[0], documents[0]])


def test_jacred_totals_defects_and_closure(real_data: Callable[[str], Path]) -> None:
    documents, defects = read_documents(real_data("jacred") / "dev.json")
    assert tuple(totals(documents).values()) == (300, 2418, 75992, 5143, 6997, 6157, 94484, 5260, 10238)
    assert defects.counts == Counter(
        name_differs_by_spaces=210, spans_one_token_short=145, mixed_types=10, zero_length_spans=2
    )
    assert sum(len(missing_inverses(document)) for document in documents) == 0


def test_re_docred_totals_and_identity_projection(real_data: Callable[[str], Path]) -> None:
    documents, _ = read_documents(real_data("re_docred") / "dev_revised.json")
    assert tuple(totals(documents).values()) == (500, 4110, 101970, 9684, 13189, 17284, 193232, 13362, 12524)
    found = project(documents, identity, "en")
    assert exact_mentions(documents, found.documents) == 13189


@pytest.mark.parametrize(("name", "rate"), [("jaen", 0.3736), ("zhen", 0.1331)])
def test_alignment_error_rates(real_data: Callable[[str], Path], name: str, rate: float) -> None:
    folder = real_data("awesome_align")
    lines = [(folder / f"{name}.{end}").read_text().splitlines() for end in ("awesome-align.out", "gold")]
    rows = [(read_links(a)[1], *read_links(b, first=1)) for a, b in zip(*lines, strict=True)]
    assert alignment_error_rate(rows) == pytest.approx(rate, abs=5e-5)


@pytest.mark.parametrize(("smoothing", "precision", "f1"), [("official", 1 / 3, 4 / 9), ("atlop", 0.3333322, 0.444443)])
def test_scorer_has_its_worked_example(smoothing: Any, precision: float, f1: float) -> None:
    gold, predictions, _ = worked_example()
    scores = score_relations(gold_facts(gold), predictions, in_train={("X", 0, "P1", 1)}, smoothing=smoothing)
    assert scores.relation == pytest.approx((0.5, 2 / 3, 0.571429), abs=1e-6)
    assert scores.evidence == pytest.approx((0.5, 0.5, 0.5))
    assert (scores.ignored.precision, scores.ignored.f1) == pytest.approx((precision, f1), abs=1e-6)
    assert score_relations(gold_facts(gold), []).relation == (0, 0, 0)


facts = st.frozensets(st.tuples(st.just("d"), st.integers(0, 3), st.sampled_from("PQ"), st.integers(0, 3)))


@given(facts, facts, facts)
def test_edit_steps_are_a_distance(q: frozenset[Fact], g: frozenset[Fact], k: frozenset[Fact]) -> None:
    assert edit_steps((), g) == len(g)
    assert edit_steps(g, g) == 0
    assert edit_steps(q, g) == edit_steps(g, q)
    assert edit_steps(q | k, g) <= edit_steps(k, g) + len(q - k)
    assert edit_steps(q, g) / 2 <= edit_steps(q, g, composite=True) <= edit_steps(q, g)


def test_composite_counts_flip_and_retag_once() -> None:
    q, g = {("d", 0, "P", 1), ("d", 2, "P", 3)}, {("d", 1, "P", 0), ("d", 2, "Q", 3)}
    assert (edit_steps(q, g), edit_steps(q, g, composite=True)) == (4, 2)


def test_graph_updates_and_retracts_exactly(documents: list[Document], tmp_path: Path) -> None:
    graph, without = Graph(), Graph()
    graph.update(documents)
    edges, nodes = dict(graph.edges), dict(graph.nodes)
    graph.update(documents)
    assert (graph.edges, graph.nodes) == (edges, nodes)
    save_graph(graph, tmp_path / "graph.json")
    assert load_graph(tmp_path / "graph.json").edges == edges
    graph.retract(documents[0].title)
    without.update(documents[1:])
    assert graph.edges == without.edges
    alone = {e for e, support in edges.items() if {s.document for s in support} == {documents[0].title}}
    assert edges.keys() - graph.edges.keys() == alone
    with pytest.raises(UserError, match="holds no document"):
        graph.retract("nothing")


def test_closure_is_idempotent_and_derives_every_pair() -> None:
    triples = [Triple(0, r, 1, (2,)) for r in ("P361", "P155", "P127", "P137", "P36", "P1344", "P26")]
    once = closure(triples)
    assert {t.relation for t in once[7:]} == {"P527", "P156", "P1830", "P121", "P1376", "P710", "P26"}
    assert all((t.head, t.tail, t.evidence) == (1, 0, (2,)) for t in once[7:])
    assert closure(once) == once


def test_log_replays_counts_and_adjudicates(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path / "log.sqlite")
    a, b, c = Triple(0, "P", 1, (0,)), Triple(1, "P", 2), Triple(2, "Q", 0)
    store.recommend("d", [(a, 2.0, "model"), (b, 1.0, "model")])
    for event in (
        Event("ann", "d", "accept", a), Event("ann", "d", "flip", b), Event("ann", "d", "add", c),
        Event("ann", "d", "remove", c), Event("ann", "d", "retag", a, new_relation="R"), Event("ann", "d", "done"),
        Event("bob", "d", "remove", b),
    ):  # fmt: skip
        store.append(event)
    assert {key(t) for t in store.state("d", "ann")} == {(2, "P", 1), (0, "R", 1)}
    edits = edits_of_log(store.events("d", "ann"))
    assert (edits.made, edits.remaining) == (6, 4)
    assert edits_agree(store, "d", "ann")
    assert edits_agree(store, "d", "bob")
    with pytest.raises(UserError, match="is not there"):
        store.append(Event("bob", "d", "remove", b))
    with pytest.raises(UserError, match="disputed"):
        store.adjudicate("d", {})
    settled = store.adjudicate("d", {(2, "P", 1): True, (0, "R", 1): False, (0, "P", 1): True})
    assert {key(t) for t in settled} == {(2, "P", 1), (0, "P", 1)}
    store.write_log(tmp_path / "log.jsonl")
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == len(store.events())


def test_agreement_and_capture_recapture() -> None:
    a, b = {(0, "P", 1): 1, (1, "P", 2): 1}, {(0, "P", 1): 1}
    assert triple_agreement([a, a], 10) == 1
    assert triple_agreement([a, b], 10) == pytest.approx(1 - 2 / (2 * 3 * 17 / 19))
    assert estimate_total(a, a) == 2
    assert estimate_total({(i, "P", 0) for i in range(9)}, {(i, "P", 0) for i in range(5, 15)}) == 21


@pytest.mark.parametrize("form", ["docred", "brat", "doccano", "label-studio"])
def test_exchange_is_lossless_with_astral_characters(form: Format, tmp_path: Path, documents: list[Document]) -> None:
    mentions = ((Mention("𠮷野 家", 0, 0, 2, "ORG"), Mention("𠮷", 1, 1, 2, "ORG")), (Mention("京", 0, 3, 4, "LOC"),))
    odd = Document("a　b", (("𠮷野", "家", "　", "京"), ("😀", "𠮷")), mentions, (Triple(0, "P", 1, (0, 1)),))
    given_documents = [odd, replace(odd, title="x", triples=None), *documents]
    write_format(tmp_path / "out", given_documents, form)
    again = read_format(tmp_path / "out", form)
    assert [document_json(d) for d in again] == [document_json(d) for d in given_documents]
    assert utf16("a𠮷b") == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("東京都に", "東京都"),
        ("ジョブズは", "ジョブズ"),
        ("1990年から", "1990年"),
        ("山形", "山形"),
        ("『風と』の", "『風と』"),
    ],
)
def test_particles_are_stripped(text: str, clean: str) -> None:
    assert text[slice(*clean_span(text, 0, len(text), "ja"))] == clean


def test_marks_are_read_tolerantly() -> None:
    assert parse("＜e id=“0.0”＞東京＜/e＞へ") == ("東京へ", [("0.0", 0, 2, True)])
    assert parse('&lt;e id="0.0"&gt;A&lt;/e&gt; b') == ("A b", [("0.0", 0, 1, False)])
    assert parse('<e id="0.0">A') == ("A", [("0.0", 0, 1, True)])
    assert parse('<e id="0.0">A <e id="1.0">B</e></e>')[1] == [("1.0", 2, 3, False), ("0.0", 0, 3, False)]


def test_lost_marks_are_counted_listed_and_stop_at_a_fifth(documents: list[Document]) -> None:
    def lossy(rate: float) -> Any:
        return noisy(identity, drop_rate=rate, swallow_rate=0.0, seed=0, language="ja")

    found = project(documents, lossy(0.1), "ja", min_entities=0.0)
    total = sum(found.statuses.values())
    lost = found.statuses["missing"] + found.statuses["matched"]
    assert abs(lost / total - 0.1) < 3 * (0.09 / total) ** 0.5
    assert len(found.missing) == found.statuses["missing"]
    assert len(found.documents) == len(documents)
    with pytest.raises(UserError, match="lost too many marks"):
        project(documents, lossy(1.0), "ja", max_missing=0.2)


def test_replies_are_read_strictly(documents: list[Document]) -> None:
    good = '[{"h":0,"r":"P37","t":1,"evidence":[0]}]'
    assert is_valid(good, documents[0], ["P37"])
    text = (
        'Sure: [{"h":0,"r":"P37","t":1,"evidence":[0,99]},{"h":0,"r":"X","t":1},'
        '{"h":0,"r":"P37","t":0},{"h":999,"r":"P37","t":0}, 3]'
    )
    triples, faults = read_reply(text, documents[0], ["P37"])
    assert triples == [Triple(0, "P37", 1, (0,))]
    assert faults == Counter(bad_evidence=1, unknown_relation=1, head_is_tail=1, unknown_entity=1, not_an_object=1)
    triples, faults = read_reply(good[:-1] + ',{"h":0', documents[0], ["P37"])
    assert (len(triples), faults["invalid_json"]) == (1, 1)
