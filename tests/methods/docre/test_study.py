"""The verbs through the command line: named scalars and numbers to reach."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyloom.core.registry import load
from polyloom.generation import FakeServer
from polyloom.methods import docre


def scalars(answer: Any) -> dict[str, Any]:
    assert answer.exit_code == 0, answer.stderr
    return {name: one["value"] for name, one in json.loads(answer.stdout)["scalars"].items()}


def test_equations_and_public_names_exist() -> None:
    assert all(callable(load(one.function)) for one in docre.CARD.equations)
    assert all(getattr(docre, name) is not None for name in docre.__all__)


def test_evaluate_prints_the_worked_example(cli: Callable[..., Any]) -> None:
    found = scalars(cli("docre", "evaluate", "--json"))
    assert found["f1"] == pytest.approx(0.571429, abs=1e-6)
    assert found["ign_f1"] == pytest.approx(4 / 9)
    assert found["evidence_f1"] == 0.5


def test_train_predict_evaluate_and_graph(cli: Callable[..., Any], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    scalars(cli("docre", "train", "--num-documents", 40, "--run", "t", "--json"))
    found = scalars(
        cli("docre", "predict", "--model", runs / "t/artifacts/model", "--num-documents", 10, "--run", "p", "--json")
    )
    assert found["f1"] > 0.7
    predictions = runs / "p/artifacts/predictions.json"
    found = scalars(cli("docre", "graph", "--num-documents", 10, "--predictions", predictions, "--run", "g", "--json"))
    assert found["edges_changed_by_second_run"] == 0
    assert found["num_missing_inverses"] >= 0
    for name in ("graph.ttl", "edges.csv", "graph.cypher"):
        assert (runs / "g/artifacts" / name).stat().st_size > 100


def test_recommend_saves_two_fifths_of_the_steps(cli: Callable[..., Any], tmp_path: Path) -> None:
    found = scalars(cli("docre", "recommend", "--num-documents", 20, "--store", tmp_path / "log.sqlite", "--json"))
    assert found["reduction_against_knowledge_base"] >= 0.4
    assert (tmp_path / "log.sqlite").exists()


def test_extract_is_valid_under_the_schema_and_reads_a_server(cli: Callable[..., Any]) -> None:
    found = scalars(cli("docre", "extract", "--num-documents", 2, "--max-triples", 4, "--json"))
    assert found["schema_valid_share"] == 1
    assert found["num_triples"] >= 2
    with FakeServer('I found [{"h":0,"r":"P37","t":1}, {"h":') as server:
        model = f"{server.base_url}#m"
        found = scalars(cli("docre", "extract", "--num-documents", 2, "--model", model, "--json"))
    assert (found["schema_valid_share"], found["num_faults"], found["num_triples"]) == (0, 2, 2)


def test_explain_and_convert(cli: Callable[..., Any]) -> None:
    found = scalars(cli("docre", "explain", "--num-documents", 5, "--json"))
    kinds = sum(v for k, v in found.items() if k.startswith("num_") and k != "num_errors")
    assert found["num_errors"] == kinds
    assert scalars(cli("docre", "convert", "--target-format", "label-studio", "--json"))["round_trip_exact"]


def test_transformer_trains_and_predicts_without_labels(cli: Callable[..., Any], tmp_path: Path) -> None:
    found = scalars(
        cli("docre", "train", "--kind", "dreeam", "--num-documents", 6, "--num-epochs", 2, "--run", "t", "--json")
    )
    assert found["last_loss"] < found["first_loss"]
    model = tmp_path / "runs/t/artifacts/model"
    found = scalars(cli("docre", "predict", "--model", model, "--num-documents", 2, "--fusion", "--json"))
    assert found["num_documents"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "--data", "nothing.json", "--predictions", "p.json"), "cannot be read"),
        (("graph", "--num-documents", 1, "--query", "zzz"), "no entity named"),
        (("convert", "--data", "nowhere", "--source-format", "brat"), "holds no .ann file"),
        (("predict", "--model", "nowhere"), "cannot be read"),
        (("project", "--alignments", "x"), "nothing to score against"),
    ],
)
def test_bad_input_is_refused_in_one_line(cli: Callable[..., Any], words: tuple[str, ...], message: str) -> None:
    answer = cli("docre", *words)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
