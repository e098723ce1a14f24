"""ATLOP and DREEAM trained, stopped, resumed, taught, given new relations; predictions chosen on development data."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from polyloom.core.errors import Stopped
from polyloom.methods.docre import method, transformer
from polyloom.methods.docre.annotation_store import AnnotationStore
from polyloom.methods.docre.annotations import ADJUDICATED, Event
from polyloom.methods.docre.config import TrainConfig
from polyloom.methods.docre.data import Document, Triple, gold_facts, load_documents, write_documents
from polyloom.methods.docre.inputs import make_inputs
from polyloom.methods.docre.loglinear import LogLinear, Training, predict, train_model
from polyloom.methods.docre.prediction import add_scores, summed_scores
from polyloom.methods.docre.training import Teachers, build_model, loss_of, with_relations
from polyloom.methods.docre.transformer import encode, forward, load_transformer, score_all, score_documents
from polyloom.metrics.relations import score_relations
from polyloom.runs.folder import Run

SMALL = ("train", "--kind", "dreeam", "--num-documents", 5, "--batch-size", 2, "--num-epochs", 2)


def scalars(answer: Any) -> dict[str, Any]:
    assert answer.exit_code == 0, answer.stderr
    return {name: one["value"] for name, one in json.loads(answer.stdout)["scalars"].items()}


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return load_documents("world", num_documents=4)[0]


@pytest.fixture(scope="module")
def development(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dev") / "dev.json"
    write_documents(path, load_documents("world", num_documents=6, seed=3)[0])
    return path


def test_a_stopped_training_goes_on_to_the_same_weights(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = scalars(cli("docre", *SMALL, "--run", "whole", "--json"))
    calls = iter(range(100))

    def stop(_: Run) -> None:
        if next(calls) == 3:
            raise Stopped("stopped by the test.")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "check_stop", stop)
        assert cli("docre", *SMALL, "--run", "parts").exit_code == 75
    parts = scalars(cli("runs", "resume", "parts", "--json"))
    assert parts == whole
    files = [tmp_path / "runs" / name / "artifacts/model/head.safetensors" for name in ("whole", "parts")]
    first, second = (load_file(file) for file in files)
    # A GPU sums in no fixed order.
    difference = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert difference <= (1e-4 if torch.cuda.is_available() else 0.0)


def test_the_best_epoch_is_chosen_on_development_data(cli: Callable[..., Any], development: Path) -> None:
    found = scalars(cli("docre", *SMALL, "--dev-data", development, "--run", "t", "--json"))
    assert 0 <= found["best_dev_ign_f1"] <= 1


def test_text_of_the_domain_is_read_first(cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "raw.txt").write_text("東京は日本の首都である。\n大阪は日本の都市である。\n", encoding="utf-8")
    plain = scalars(cli("docre", *SMALL, "--run", "a", "--json"))
    read = scalars(cli("docre", *SMALL, "--raw-text", tmp_path / "raw.txt", "--run", "b", "--json"))
    assert read["first_loss"] != plain["first_loss"]
    answer = cli("docre", "train", "--raw-text", tmp_path / "raw.txt")
    assert (answer.exit_code, "no effect on a log-linear model" in answer.stderr) == (2, True)


def test_new_relations_leave_old_scores_as_they_were(documents: list[Document]) -> None:
    model = build_model(documents, TrainConfig(kind="atlop"))
    model.encoder.eval()
    before = score_all(model, documents[:1])[0].scores
    wider = with_relations(model, ["NEW", model.relations[0]], 0)
    after = score_all(wider, documents[:1])[0].scores
    assert wider.relations == [*model.relations, "NEW"]
    assert wider.schema_version == model.schema_version + 1
    assert all(after[fact] == pytest.approx(score, abs=1e-5) for fact, score in before.items())
    assert max(score for fact, score in after.items() if fact[1] == "NEW") < 0


def test_scores_and_evidence_of_two_models_come_from_one_pass(
    documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(documents, TrainConfig(kind="atlop"))
    kept = score_documents(model, documents[:3])
    read: list[int] = []
    monkeypatch.setattr(transformer, "encode", lambda m, batch: read.append(len(batch)) or encode(m, batch))
    found = summed_scores(model, model, documents[:3])
    assert read == [3, 3]  # once for each of the two
    for one, both in zip(kept, found, strict=True):
        assert one.scores
        assert all(both.scores[fact] == pytest.approx(2 * score) for fact, score in one.scores.items())
        assert both.evidence == one.evidence


def test_teachers_add_nothing_where_the_student_agrees(documents: list[Document]) -> None:
    model = build_model(documents, TrainConfig(kind="dreeam"))
    model.encoder.eval()
    batch = [make_inputs(document, model.tokenizer) for document in documents[:2]]
    alone = loss_of(model, batch)
    taught = loss_of(model, batch, teachers=Teachers(model, 1.0, model, 1.0))
    assert taught.item() == pytest.approx(alone.item(), abs=1e-5)
    other = build_model(documents, TrainConfig(kind="dreeam", seed=1))
    other.encoder.eval()
    assert loss_of(model, batch, teachers=Teachers(attention=other, attention_weight=1.0)).item() > alone.item()
    assert loss_of(model, batch, teachers=Teachers(other, 1.0)).item() > alone.item()
    assert loss_of(model, batch, kind="focal").item() != alone.item()


def test_going_on_from_a_model_and_under_a_teacher(cli: Callable[..., Any], tmp_path: Path) -> None:
    scalars(cli("docre", *SMALL, "--run", "old", "--json"))
    model = tmp_path / "runs/old/artifacts/model"
    extra = load_documents("world", num_documents=3, seed=5)[0]
    new = [replace(d, triples=(*(d.triples or ()), Triple(0, "NEW", 1, (0,)))) for d in extra]
    write_documents(tmp_path / "new.json", new)
    write_documents(tmp_path / "old.json", load_documents("world", num_documents=20)[0])
    given = ("--data", tmp_path / "new.json", "--start", model, "--replay", tmp_path / "old.json")
    found = scalars(cli("docre", *SMALL, *given, "--run", "new", "--json"))
    assert found["num_documents"] == 5
    assert load_transformer(tmp_path / "runs/new/artifacts/model").relations[-1] == "NEW"
    scalars(cli("docre", *SMALL, "--encoder", model / "encoder", "--teacher", model, "--run", "student", "--json"))
    answer = cli("docre", *SMALL, "--teacher", model, "--data", tmp_path / "old.json")
    assert (answer.exit_code, "another tokenizer" in answer.stderr) == (2, True)


def test_accepted_annotations_train_an_old_model_on(cli: Callable[..., Any], tmp_path: Path) -> None:
    documents = load_documents("world", num_documents=8, seed=4)[0]
    store = AnnotationStore(tmp_path / "log.sqlite", "p")
    store.create("p", documents, {})
    for document in documents[:6]:
        for triple in document.triples or ():
            store.append(Event(ADJUDICATED, document.title, "add", triple))
    scalars(cli("docre", "train", "--num-documents", 20, "--run", "old", "--json"))
    given = ("--store", tmp_path / "log.sqlite", "--project", "p", "--start", tmp_path / "runs/old/artifacts/model")
    assert scalars(cli("docre", "train", *given, "--run", "new", "--json"))["num_documents"] == 6
    answer = cli("docre", "train", "--store", tmp_path / "log.sqlite", "--project", "p", "--annotator", "nobody")
    assert (answer.exit_code, "no annotations" in answer.stderr) == (2, True)


def test_a_new_relation_costs_old_ones_less_than_a_point() -> None:
    old, new = (load_documents("world", num_documents=n, seed=s)[0] for n, s in ((120, 1), (20, 51)))
    test = load_documents("world", num_documents=60, seed=1, split="test")[0]
    hidden = [replace(d, triples=tuple(t for t in d.triples or () if t.relation != "P361")) for d in old]
    base = train_model(hidden)
    wider = train_model([*new, *hidden[::10]], start=base, training=Training(keep_start=True))
    gold = gold_facts(test)

    def f1(model: LogLinear, relation_is_new: bool) -> float:
        return score_relations(
            gold, predict(model, test), keep=lambda fact: (fact[2] == "P361") == relation_is_new
        ).relation.f1

    assert f1(base, True) == 0
    assert f1(wider, True) > 0.6
    assert f1(base, False) - f1(wider, False) < 0.01


def test_margins_and_sums_are_chosen_on_development_data(
    cli: Callable[..., Any], development: Path, tmp_path: Path
) -> None:
    scalars(cli("docre", *SMALL, "--run", "a", "--json"))
    scalars(cli("docre", "train", "--num-documents", 20, "--run", "l", "--json"))
    atlop, linear = (tmp_path / "runs" / name / "artifacts/model" for name in "al")
    data = ("--num-documents", 5, "--more-data", "world:en")
    alone = scalars(cli("docre", "predict", "--model", linear, *data, "--json"))
    dev = ("--dev-data", development)
    both = scalars(cli("docre", "predict", "--model", atlop, "--second", linear, *data, *dev, "--json"))
    assert both["f1"] > 0.5 * alone["f1"]
    each = scalars(cli("docre", "predict", "--model", linear, *data, *dev, *dev, "--json"))
    assert each["margin_1"] == each["margin_2"]
    fused = scalars(
        cli("docre", "predict", "--model", atlop, "--num-documents", 2, "--fusion", "--dev-data", development, "--json")
    )
    assert "fusion_threshold" in fused
    given = ("--model", atlop, "--num-documents", 2, "--more-data", "world:en", "--run", "e", "--json")
    answer = cli("docre", "explain", *given)
    rows = json.loads(answer.stdout)["tables"]["sources"]["rows"]
    assert [row[:2] for row in rows] == [["world", 2], ["world:en", 2]]
    assert sum(map(sum, (row[3:] for row in rows))) == scalars(answer)["num_errors"]
    assert "attends to it" in (tmp_path / "runs/e/artifacts/attention.html").read_text(encoding="utf-8")
    for words, message in (
        (("--model", linear, "--fusion"), "fuses the evidence"),
        (("--model", linear, *dev, *dev, *dev), "3 files for 1"),
    ):
        answer = cli("docre", "predict", *words)
        assert (answer.exit_code, message in answer.stderr) == (2, True)


def test_fusion_threshold_by_hand() -> None:
    rows = [(3.0, True), (2.0, False), (2.0, True), (-1.0, True), (-9.0, False)]
    assert method.fusion_threshold(rows, 2, 1, 5) == pytest.approx(-5.0)
    assert method.fusion_threshold([(1.0, False)], 1, 1, 1) == float("inf")
    assert method.fusion_threshold([], 0, 0, 0) == float("inf")


def test_sums_stand_alone_where_one_model_knows_the_relation() -> None:
    first, second = {(0, "P", 1): 2.0, (0, "A", 1): 1.0}, {(0, "P", 1): -0.5, (1, "P", 0): 3.0, (0, "B", 1): -1.0}
    found = add_scores(first, second, {"P"}, ({"A"}, {"B"}))
    assert found == {(0, "P", 1): 1.5, (1, "P", 0): -9.0, (0, "A", 1): 1.0, (0, "B", 1): -1.0}


def test_order_of_entities_mentions_and_batches_changes_no_logit(documents: list[Document]) -> None:
    model = build_model(documents, TrainConfig(kind="atlop"))
    model.encoder.eval()
    one, other = documents[0], documents[1]
    with torch.inference_mode():
        alone = forward(model, [make_inputs(one, model.tokenizer)])[0].logits
        padded = forward(model, [make_inputs(one, model.tokenizer), make_inputs(other, model.tokenizer)])[0].logits
    assert torch.allclose(alone, padded, atol=1e-5)
    turned = replace(one, entities=tuple(reversed(tuple(tuple(reversed(e)) for e in one.entities))))
    last = len(one.entities) - 1
    before, after = score_all(model, [one])[0].scores, score_all(model, [turned])[0].scores
    assert all(after[last - h, r, last - t] == pytest.approx(score, abs=1e-4) for (h, r, t), score in before.items())
