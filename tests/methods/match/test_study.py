"""The verbs through the command line and in process: train, evaluate, search, dedupe, export, explain, study, bench."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, BertModel

from polyloom.core.errors import UserError
from polyloom.methods.match.ablation import run_study
from polyloom.methods.match.bench import run_bench
from polyloom.methods.match.config import (
    BenchConfig,
    DedupeConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    IndexConfig,
    MatchStudyConfig,
    SearchConfig,
    TrainConfig,
)
from polyloom.methods.match.data import Pair, world_pairs
from polyloom.methods.match.explain import run_explain
from polyloom.methods.match.export import export_numpy, export_onnx, onnx_error, run_export
from polyloom.methods.match.folder import load, save
from polyloom.methods.match.retrieval import run_dedupe, run_index, run_search
from polyloom.methods.match.scorer import Scorer
from polyloom.methods.match.study import run_evaluate, run_train
from polyloom.methods.match.training import Recipe, build, fit, main_score
from polyloom.models.load import save_model
from polyloom.models.tokenizers import train_tokenizer
from polyloom.runs.folder import Run

SMALL = Recipe(width=16, hidden=8, floor=8, max_length=24, epochs=3)


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matcher") / "m"
    recipe = replace(SMALL, block="fa", width=32, epochs=4)
    save(fit(world_pairs(400, "train", hardness=1), world_pairs(100, "valid", hardness=1), recipe, 0), folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "bert"
    tokenizer = train_tokenizer(world_pairs(50, "train").texts(), 300)
    shape = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    save_model(BertModel(shape), folder, tokenizer)
    return folder


def test_training_through_the_command_line(cli: Callable[..., Any], tmp_path: Path) -> None:
    given = ["--num-pairs", 200, "--epochs", 2, "--width", 16, "--hidden", 8, "--output", tmp_path / "m"]
    answer = cli("match", "train", *given, "--json")
    assert answer.exit_code == 0, answer.stderr
    scalars = json.loads(answer.stdout)["scalars"]
    assert {"accuracy", "macro_f1", "f1", "auc", "flip_rate", "retrieval_mrr", "tfidf_auc"} <= scalars.keys()
    answer = cli("match", "evaluate", "--model", tmp_path / "m", "--num-pairs", 200, "--json")
    assert json.loads(answer.stdout)["scalars"]["accuracy"] == scalars["accuracy"]


def write_scores(path: Path, num: int = 60) -> Path:
    rows = [(f"cat {i} sat", f"cat {i} sat" if i % 3 else f"dog {i}", 5.0 if i % 3 else 0.5) for i in range(num)]
    path.write_text("".join(f"{a},{b},{c}\n" for a, b, c in rows))
    return path


@pytest.mark.parametrize("base", ["bag", "esim"])
def test_scores_are_learned_on_their_scale(base: Any, run: Run, tmp_path: Path) -> None:
    path = write_scores(tmp_path / "sts.csv")
    config = TrainConfig(data=str(path), base=base, width=16, hidden=8, epochs=8, batch_size=8, max_length=8)
    result = run_train(config, run)
    assert float(result.scalars["spearman"].value or 0) > 0.5
    predicted = load(run.artifact("matcher")).predict(world_pairs(4, "test").items)
    assert predicted.shape == (4,)


def test_candidates_of_one_text_are_ranked(matcher: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "qa.tsv"
    path.write_text("May 3, 1999\t3 May 1999\tsame\nMay 3, 1999\t12 kg\tdifferent\nMay 3, 1999\t4 ft\tdifferent\n")
    result = run_evaluate(EvaluateConfig(model=str(matcher), data=str(path)), run)
    assert result.scalars["num_queries"].value == 1
    assert 1 / 3 <= float(result.scalars["map"].value or 0) <= 1


def test_a_matcher_refuses_pairs_of_another_kind(matcher: Path, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the pairs hold scores, the matcher learned classes"):
        run_evaluate(EvaluateConfig(model=str(matcher), data=str(write_scores(tmp_path / "s.csv"))), run)


def test_files_of_two_kinds_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a\tb\tx\nc\td\ty\n")
    config = TrainConfig(data=str(tmp_path / "a.tsv"), test=str(write_scores(tmp_path / "s.csv")))
    with pytest.raises(UserError, match="holds scores, the training file classes"):
        run_train(config, run)


def test_one_class_and_half_a_scale_are_refused(cli: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "one.tsv"
    path.write_text("".join(f"a{i}\tb{i}\tx\n" for i in range(40)))
    answer = cli("match", "train", "--data", path)
    assert answer.exit_code == 2
    assert "all rows are labelled 'x'" in answer.stderr
    answer = cli("match", "train", "--score-low", 3)
    assert answer.exit_code == 2
    assert "a scale has two ends" in answer.stderr


def test_first_vectors_from_a_file_a_matrix_and_a_distilled_table(encoder: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_text("cat 1 2 3 4\nsat 4 3 2 1\n")
    data = str(write_scores(tmp_path / "sts.csv"))
    for source, kind, width in (
        (path, "matrix", 4),
        (encoder, "matrix", 16),
        (encoder, "static", 16),
        ("texts", "matrix", 12),
    ):
        config = TrainConfig(
            data=data, vectors=str(source), vectors_kind=kind, epochs=1, hidden=8, width=12, max_length=8
        )  # type: ignore[arg-type]
        result = run_train(config, run)
        assert load(run.artifact("matcher")).model.shape.width == width
        assert any("vector" in line for line in result.limitations)


def test_a_block_on_a_frozen_encoder(encoder: Path, run: Run, tmp_path: Path) -> None:
    data = str(write_scores(tmp_path / "sts.csv", 40))
    run_train(TrainConfig(data=data, base="encoder", encoder=str(encoder), block="fa", epochs=2, hidden=8), run)
    again = load(run.artifact("matcher"))
    # Vectors that are compared are means: as wide as the encoder's states.
    assert again.vectors(["a cat", "a dog"]).shape == (2, 16)
    with pytest.raises(UserError, match="needs a model folder"):
        run_train(TrainConfig(data=data, base="encoder"), run)


def test_index_search_add_and_refusal(matcher: Path, run: Run, tmp_path: Path) -> None:
    texts = list(dict.fromkeys(world_pairs(80, "test").texts()))
    corpus, more = tmp_path / "corpus.txt", tmp_path / "more.tsv"
    corpus.write_text("\n".join(texts[:40]))
    more.write_text("\n".join(f"new{i}\t{text}" for i, text in enumerate(texts[40:60])))
    place = str(tmp_path / "index")
    for file in (corpus, more):
        result = run_index(IndexConfig(model=str(matcher), data=str(file), output=place), run)
        assert result.scalars["recall_at_10_of_brute_force"].value == 1
    assert result.scalars["num_texts"].value == 60
    relevant = tmp_path / "qrels"
    relevant.write_text("query\\ 1 0 new3 1\nq 0 new3 1\n".replace("query\\ 1 0 new3 1\n", ""))
    queries = tmp_path / "queries.tsv"
    queries.write_text(f"q\t{texts[43]}\n")
    config = SearchConfig(index=place, model=str(matcher), queries=str(queries), relevant=str(relevant), k=3)
    found = run_search(config, run)
    assert found.tables["answers"].rows[0][2:4] == ["new3", texts[43]]
    assert found.scalars["mrr"].value == 1
    assert found.scalars["map"].value == 1
    reader = build(world_pairs(64, "train"), replace(SMALL, base="esim"), 3)
    save(reader, tmp_path / "reader")
    again = run_search(config.model_copy(update={"rerank": str(tmp_path / "reader"), "candidates": 60, "k": 5}), run)
    wanted = reader.predict([Pair(texts[43], text, "") for text in texts[:60]])[:, 1]
    assert [row[4] for row in again.tables["answers"].rows] == pytest.approx(sorted(wanted)[::-1][:5], abs=1e-5)
    save(build(world_pairs(64, "train"), SMALL, 9), tmp_path / "other")
    with pytest.raises(UserError, match="built by another matcher"):
        run_search(SearchConfig(index=place, model=str(tmp_path / "other"), query=["x"]), run)
    with pytest.raises(UserError, match="nothing to look for"):
        run_search(SearchConfig(index=place, model=str(matcher)), run)


def test_a_base_without_vectors_cannot_be_indexed(run: Run, tmp_path: Path) -> None:
    save(build(world_pairs(64, "train"), replace(SMALL, base="esim"), 0), tmp_path / "m")
    (tmp_path / "c.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="has no vector of one"):
        run_index(IndexConfig(model=str(tmp_path / "m"), data=str(tmp_path / "c.txt"), output=str(tmp_path / "i")), run)


def test_dedupe_groups_equal_texts(matcher: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("a\tMay 3, 1999\nb\tmay 3, 1999\nc\t12 kilograms\n")
    result = run_dedupe(DedupeConfig(model=str(matcher), data=str(tmp_path / "c.tsv"), threshold=0.9999), run)
    assert [row[1] for row in result.tables["groups"].rows] == ["a", "b"]
    assert result.scalars["num_surplus"].value == 1
    (tmp_path / "p.tsv").write_text("May 3, 1999\tmay 3, 1999\tsame\nMay 3, 1999\t12 kilograms\tdifferent\n")
    config = DedupeConfig(model=str(matcher), data=str(tmp_path / "c.tsv"), pairs=str(tmp_path / "p.tsv"), precision=1)
    assert float(run_dedupe(config, run).scalars["threshold"].value or 0) > 0.999


@pytest.mark.parametrize("base", ["bag", "gru", "cnn"])
@pytest.mark.parametrize("block", ["none", "fa", "sfa"])
def test_the_numpy_scorer_says_what_torch_says(base: str, block: str, tmp_path: Path) -> None:
    for loss in ("softmax", "cosent"):
        recipe = replace(SMALL, base=base, block=block, loss=loss)
        trained = build(world_pairs(64, "train"), recipe, 0)  # type: ignore[arg-type]
        exported = Scorer(str(export_numpy(trained, tmp_path / loss)))
        pairs = world_pairs(16, "test").items
        wanted = trained.predict(pairs).reshape(16, -1)
        given = np.asarray([np.ravel(exported.score(pair.first, pair.second)) for pair in pairs])
        assert np.abs(wanted - given).max() < 1e-5


def test_the_exported_folder_works_without_polyloom_and_torch(matcher: Path, tmp_path: Path) -> None:
    export_numpy(load(matcher), tmp_path)
    code = (
        "import sys; from scorer import Scorer; s = Scorer('matcher.npz'); "
        "print(float(s.score('May 3', 'may 3').sum()));"
        "assert not {'torch', 'polyloom'} & sys.modules.keys()"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env={"PYTHONPATH": "."}
    )
    assert float(answer.stdout) == pytest.approx(1, abs=1e-5)
    assert len((tmp_path / "scorer.py").read_text().splitlines()) < 200


def test_eight_bit_vectors_lose_little(matcher: Path, run: Run, tmp_path: Path) -> None:
    result = run_export(ExportConfig(model=str(matcher), int8=True, output=str(tmp_path), rounds=20), run)
    assert float(result.scalars["numpy_error"].value or 1) < 0.05
    trained, exported = load(matcher), Scorer(str(tmp_path / "matcher.npz"))
    pairs = world_pairs(200, "test", hardness=1)
    wanted = [trained.classes.index(pair.label) for pair in pairs.items]
    right = [int(exported.score(p.first, p.second).argmax()) == w for p, w in zip(pairs.items, wanted, strict=True)]
    assert abs(np.mean(right) - main_score(trained, pairs)) <= 0.01


def test_exports_that_cannot_be_are_refused(run: Run, tmp_path: Path) -> None:
    save(build(world_pairs(64, "train"), replace(SMALL, base="esim"), 0), tmp_path / "m")
    with pytest.raises(UserError, match=r"does not know base 'esim'"):
        run_export(ExportConfig(model=str(tmp_path / "m")), run)


@pytest.mark.parametrize(
    ("base", "block"),
    [
        ("bag", "fa"),
        ("lstm", "none"),
        ("cnn", "none"),
        ("gru", "sfa"),
        ("esim", "none"),
        ("esim", "sfa"),
        ("re2", "fa"),
    ],
)
def test_onnx_says_what_torch_says_of_any_number_of_pairs(base: str, block: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    trained = build(world_pairs(64, "train"), replace(SMALL, base=base, block=block), 0)
    trained.model.eval()
    path = export_onnx(trained, tmp_path)
    for number in (1, 5, 16):
        assert onnx_error(trained, path, world_pairs(number, "test").items) < 1e-5


def test_onnx_is_measured_by_the_verb(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    save(build(world_pairs(64, "train"), replace(SMALL, base="esim"), 0), tmp_path / "m")
    result = run_export(ExportConfig(model=str(tmp_path / "m"), onnx=True, rounds=10), run)
    assert float(result.scalars["onnx_error"].value or 0) < 1e-5


def test_a_frozen_encoder_has_no_onnx_form(encoder: Path, tmp_path: Path) -> None:
    trained = build(world_pairs(64, "train"), replace(SMALL, base="bag"), 0)
    trained.model.shape = replace(trained.model.shape, base="encoder", encoder=str(encoder))
    with pytest.raises(UserError, match="not written into the matcher's ONNX file"):
        export_onnx(trained, tmp_path)


def test_an_explanation_adds_up(matcher: Path, run: Run, tmp_path: Path) -> None:
    result = run_explain(ExplainConfig(model=str(matcher), first="May 3, 1999", second="3 kg"), run)
    assert 0 <= float(result.scalars["score"].value or 0) <= 1
    assert [row[1] for row in result.tables["words"].rows if row[0] == "second"] == ["3", "kg"]
    assert "score_without_gate" in result.scalars
    assert len(result.tables["features"].rows) == 10
    save(build(world_pairs(64, "train"), replace(SMALL, base="gru", block="sfa"), 0), tmp_path / "m")
    branches = run_explain(ExplainConfig(model=str(tmp_path / "m"), first="a", second="b"), run).tables["branches"]
    assert sum(float(row[1] or 0) for row in branches.rows) == pytest.approx(1, abs=1e-5)


def test_the_study_measures_its_numbers_and_resumes(run: Run) -> None:
    config = MatchStudyConfig(num_pairs=160, bases=["bag"], blocks=["fa", "mlp"], num_seeds=2, epochs=1)
    result = run_study(config, run)
    values = {name: scalar.value for name, scalar in result.scalars.items()}
    assert (values["esim_parameters"], values["fa_parameters"], values["sfa_parameters"]) == (4331103, 73860, 282460)
    assert float(values["branch_weight_sum_error"] or 0) <= 1e-6
    assert 0.1554 < float(values["branch_weight_least"] or 0) < float(values["branch_weight_largest"] or 0) < 0.5761
    assert float(values["pad_invariance_error"] or 0) < 1e-5
    assert float(values["batch_invariance_error"] or 0) < 1e-5
    assert values["moved_share"] == 1
    assert int(values["null_not_distinguishable"] or 0) >= 94
    assert values["best_light_model"] == values[str(values["best_light_model_name"])]
    assert {"bag_fa_minus_none", "bag_mlp_minus_none", "bag_fa_minus_mlp"} <= values.keys()
    assert len(result.tables["search"].rows) == 9
    table = result.tables["differences"]
    chance = table.columns.index("p (McNemar, votes of the seeds)")
    assert all(0 < float(row[chance] or 0) <= 1 for row in table.rows)
    again = run_study(config, run)
    assert again.scalars == result.scalars


def test_the_study_on_scores(run: Run, tmp_path: Path) -> None:
    path = write_scores(tmp_path / "sts.csv")
    config = MatchStudyConfig(data=str(path), bases=["bag"], blocks=["fa"], num_seeds=2, epochs=1)
    result = run_study(config, run)
    assert result.scalars["bag_fa_minus_none_word"].value in ("better", "worse", "not distinguishable")


def test_the_bench_names_its_ratios(run: Run) -> None:
    result = run_bench(BenchConfig(num_texts=64, rounds=3, width=16), run)
    for name in ("bag_fa_time_ratio", "gru_fa_time_ratio", "gru_sfa_time_ratio", "bag_fa_to_static_time_ratio"):
        assert float(result.scalars[name].value or 0) > 0
    assert float(result.scalars["numpy_error"].value or 1) < 1e-5
    assert result.scalars["index_equals_brute_force"].value is True
