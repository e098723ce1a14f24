from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyloom.core.errors import UserError
from polyloom.methods.pretrain.cloze import RELATIONS, answer, make_questions
from polyloom.methods.pretrain.data_config import EvaluateConfig
from polyloom.methods.pretrain.evaluating import (
    Documents,
    cell_weights,
    compare_bits,
    gather_documents,
    run_evaluate,
    weighted_interval,
)
from polyloom.methods.pretrain.harness import _interval, check_benchmarks
from polyloom.metrics.language_model import bits_per_byte, score_documents
from polyloom.models.load import load_model, load_tokenizer, save_model
from polyloom.models.tiny import build_tiny
from polyloom.models.tokenizers import train_tokenizer
from polyloom.runs.folder import Run

CELLS = [("web", "en"), ("web", "de"), ("law", "en")]


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Return two untrained models with different tokenizers."""
    folders = []
    for seed, size in enumerate((259, 300)):
        tokenizer = train_tokenizer(["the cat sat on the mat, the cat ate the rat"] * 3, size)
        folders.append(tmp_path / f"model-{seed}")
        save_model(build_tiny("llama-2x64", len(tokenizer), seed), folders[-1], tokenizer)
    return folders


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return documents of two domains and languages."""
    rows = [
        {"text": f"Document {i} in {domain} says något number {i * 37}.", "language": language, "domain": domain}
        for domain, language in CELLS
        for i in range(14)
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_bits_per_byte_of_two_models_on_the_same_documents(
    cli: Callable[..., Any], models: list[Path], data: Path
) -> None:
    called = cli("pretrain", "evaluate", "--models", *models, "--data", data, "--precision", "float32", "--json")
    assert called.exit_code == 0, called.stderr
    result = json.loads(called.stdout)
    scalars = {name: scalar["value"] for name, scalar in result["scalars"].items()}
    assert scalars["bits_per_byte_uniform_bytes"] == 8.0
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    expected = []
    for folder in models:
        model = load_model(folder)
        expected.append(bits_per_byte(score_documents(model, load_tokenizer(folder, model), texts, window_tokens=256)))
    assert [scalars["bits_per_byte"], scalars["bits_per_byte_2"]] == pytest.approx(expected, rel=1e-6)
    rows = result["tables"]["bits_per_byte"]["rows"]
    assert len(rows) == 3 * 4
    assert all(row[4] <= row[3] <= row[5] for row in rows)
    compared = result["tables"]["comparisons"]["rows"]
    assert [row[:2] for row in compared] == [
        [beside, group] for beside in ("model-1", "gzip") for group in ("all", "de", "en")
    ]
    assert compared[0][4] == pytest.approx(expected[0] - expected[1], rel=1e-6)
    # A byte model that knows nothing of the text: near 8 bits, and worse than gzip only by its own lights.
    assert scalars["bits_per_byte"] == pytest.approx(8.0, abs=0.3)


def test_splitting_the_text_in_files_changes_nothing(tmp_path: Path, data: Path) -> None:
    lines = data.read_text().splitlines(keepends=True)
    (tmp_path / "many").mkdir()
    for i in range(4):
        (tmp_path / "many" / f"{i}.jsonl").write_text("".join(lines[i::4]))
    one, many = (gather_documents(EvaluateConfig(data=[str(path)])) for path in (data, tmp_path / "many"))
    assert one == many
    assert len(one.texts) == len(lines)


def test_the_sample_of_a_cell_is_bounded(data: Path) -> None:
    found = gather_documents(EvaluateConfig(data=[str(data)], test_bytes=200))
    for cell in CELLS:
        sizes = found.num_bytes[found.of(cell)]
        assert 200 <= sizes.sum() < 200 + sizes.max()


def test_weights() -> None:
    assert cell_weights({}, CELLS) == {("web", "en"): 0.25, ("web", "de"): 0.5, ("law", "en"): 0.25}
    assert cell_weights({"web": 2, "law/en": 2}, CELLS) == {
        ("web", "en"): 0.25,
        ("web", "de"): 0.25,
        ("law", "en"): 0.5,
    }
    with pytest.raises(UserError, match=r"no document is of 'fr'.*web/de"):
        cell_weights({"fr": 1}, CELLS)
    with pytest.raises(UserError, match="add to 0"):
        cell_weights({"web": 0}, CELLS)


def test_the_weighted_sum_by_hand() -> None:
    documents = Documents(["aaaa", "bb", "cccc"], [("d", "x"), ("d", "x"), ("d", "y")])
    bits = np.array([8.0, 4.0, 2.0])
    found = weighted_interval(bits, documents, {("d", "x"): 0.5, ("d", "y"): 0.5})
    assert found.value == pytest.approx(0.5 * 12 / 6 + 0.5 * 2 / 4)
    assert found.low == found.high == found.value


def test_a_comparison_is_of_the_pooled_rates() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(10, 100, 3000).astype(float)
    first, other = sizes * 2 + rng.normal(0, 1, 3000), sizes * 2.5
    found = compare_bits(first, other, sizes, 0.01)
    assert found is not None
    assert found.num_pairs == 2000
    assert found.mean_a == pytest.approx(first.sum() / sizes.sum())
    assert found.difference.value == pytest.approx((first - other).sum() / sizes.sum())
    assert found.word == "better"
    assert compare_bits(first[:1], other[:1], sizes[:1], 0.01) is None


def test_cloze_questions_have_one_true_sentence() -> None:
    questions = make_questions(["en", "ja"], 12, 0)
    assert [q.relation for q in questions["en"]] == [q.relation for q in questions["ja"]]
    for asked in questions.values():
        for question in asked:
            assert question.relation in RELATIONS
            assert len(set(question.options)) == 4


def test_a_tie_is_no_right_answer(models: list[Path]) -> None:
    model = load_model(models[0])
    tokenizer = load_tokenizer(models[0])
    questions = make_questions(["en"], 8, 0)["en"]
    same = [type(q)(q.relation, (q.options[0],) * 4) for q in questions]
    assert answer(model, tokenizer, same, window_tokens=128) == [False] * 8
    assert len(answer(model, tokenizer, questions, window_tokens=128)) == 8


def test_the_verb_without_anything(run: Run) -> None:
    config = EvaluateConfig(languages=["en", "de"], test_bytes=3000, cloze=4, tiny_steps=20)
    result = run_evaluate(config, run)
    value = result.scalars["bits_per_byte"].value
    assert isinstance(value, float)
    assert value < 8.0
    assert result.scalars["bits_per_byte_uniform_bytes"].value == 8.0
    assert len(result.tables["cloze"].rows) == 2
    again = run_evaluate(config, run)
    assert again.scalars == result.scalars


CEVAL = """
task: ceval_local
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {folder}/ceval.jsonl}}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{question.strip()}}}}\\nA. {{{{A}}}}\\nB. {{{{B}}}}\\nC. {{{{C}}}}\\nD. {{{{D}}}}\\n答案："
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: "{{{{['A', 'B', 'C', 'D'].index(answer)}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
BBH = """
task: bbh_local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/bbh.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "Q: {{{{input}}}}\\nA:"
doc_to_target: "{{{{target}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
CODE = BBH.replace("bbh_local", "humaneval_local").replace("bbh.jsonl", "code.jsonl") + "unsafe_code: true\n"


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of task files with their data; nothing is fetched."""
    pytest.importorskip("lm_eval")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    letters = "ABCD"
    rows = [{"question": f"{i}?", **dict.fromkeys(letters, "x"), "answer": letters[i % 4]} for i in range(8)]
    (folder / "ceval.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("bbh", "code"):
        rows = [{"input": f"not {i}", "target": "False"} for i in range(3)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, text in (("ceval", CEVAL), ("bbh", BBH), ("code", CODE)):
        (folder / f"{name}.yaml").write_text(text.format(folder=folder))
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_benchmarks_of_local_task_files(run: Run, models: list[Path], data: Path, tasks: Path) -> None:
    config = EvaluateConfig(
        models=[str(models[0])],
        data=[str(data)],
        benchmarks=["ceval_local", "bbh_local"],
        benchmark_path=tasks,
        precision="float32",
    )
    result = run_evaluate(config, run)
    rows = {row[0]: row for row in result.tables["benchmarks"].rows}
    assert rows["bbh_local"][1:4] == ["exact_match", "model-0", 0.0]
    assert rows["bbh_local"][6] == 3
    assert rows["ceval_local"][6] == 8
    # The same question with the same options: one letter wins everywhere, so two of eight are right.
    assert rows["ceval_local"][3] == _share_of_best_letter(models[0], tasks)
    assert result.scalars["ceval_local_acc"].value == rows["ceval_local"][3]
    assert result.scalars["bits_per_byte_uniform_bytes"].value == 8.0
    with pytest.raises(UserError, match="Add --allow-code"):
        run_evaluate(
            config.model_copy(update={"benchmarks": ["humaneval_local"], "seed": 1, "models": [str(models[1])]}), run
        )


def _share_of_best_letter(folder: Path, tasks: Path) -> float:
    """Score the options by our own code."""
    from polyloom.generation.scoring import score_continuations
    from polyloom.models.tokenizers import encode

    model = load_model(folder)
    tokenizer = load_tokenizer(folder)
    rows = [json.loads(line) for line in (tasks / "ceval.jsonl").read_text().splitlines()]
    hits = 0
    for row in rows:
        prompt = f"{row['question']}\nA. x\nB. x\nC. x\nD. x\n答案："
        ids = (
            [tokenizer.bos_token_id, *encode(tokenizer, prompt)] if _adds_bos(tokenizer) else encode(tokenizer, prompt)
        )
        scores = score_continuations(model, [ids] * 4, [encode(tokenizer, " " + letter) for letter in "ABCD"])
        totals = [math.fsum(values) for values in scores]
        hits += "ABCD"[totals.index(max(totals))] == row["answer"]
    return hits / len(rows)


def _adds_bos(tokenizer: Any) -> bool:
    return bool(tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id)


@pytest.mark.slow
def test_an_unknown_task_is_refused_first(tasks: Path) -> None:
    with pytest.raises(UserError, match="there is no task 'no_such_task_at_all'"):
        check_benchmarks(EvaluateConfig(benchmarks=["no_such_task_at_all"]))


def test_an_absent_folder_of_tasks_is_refused_first(tasks: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        check_benchmarks(EvaluateConfig(benchmarks=["x"], benchmark_path=tasks / "absent"))


def test_a_share_of_no_right_answer_has_an_interval() -> None:
    low, high = _interval(0.0, 0.0, 10)
    assert low == 0.0
    assert high is not None
    assert high > 0.2
    assert _interval(12.5, 1.0, 10) == (12.5 - 1.96, 12.5 + 1.96)
    assert _interval(12.5, None, 10) == (None, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "no/such/place/at"], "there is no such folder"),
        (["--models", "{model}", "--data", "absent"], "there is no such file"),
        (["--models", "{model}", "--data", "{data}", "--weights.fr", "1"], "no document is of 'fr'"),
        (["--models", "{model}", "--data", "{data}", "--window-tokens", "99999"], "positions"),
    ],
)
def test_bad_input(cli: Callable[..., Any], models: list[Path], data: Path, words: list[str], message: str) -> None:
    called = cli("pretrain", "evaluate", *(word.format(model=models[0], data=data) for word in words))
    assert called.exit_code == 2
    assert message in " ".join(called.stderr.split())
