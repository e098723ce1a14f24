"""What looks at examples: gradients, Fisher information, the search for harm, picked examples; rank's options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration

from polyloom.core.errors import PolyloomError, UserError
from polyloom.methods.select import reranking
from polyloom.methods.select.config import RankConfig
from polyloom.methods.select.data import PoolTask, make_pool, read_pool
from polyloom.methods.select.gradients import (
    fisher_diagonal,
    influences,
    mean_gradient,
    row_batch,
    task_rows,
)
from polyloom.methods.select.instances import drawn_order, log_importance, ngram_buckets, pick_examples, unlike
from polyloom.methods.select.lexical import build_index
from polyloom.methods.select.study import run_rank
from polyloom.methods.select.tuning import (
    IGNORED,
    answer_logits,
    answer_loss,
    plain_prompt,
    pool_tokenizer,
    small_model,
)
from polyloom.models.load import save_model
from polyloom.models.tiny import EOS_ID, PAD_ID
from polyloom.models.tokenizers import train_tokenizer
from polyloom.runs.folder import Run

TASKS = [
    PoolTask("yes", ("say yes", "please agree"), examples=tuple((str(i), "yes") for i in range(3))),
    PoolTask("no", ("say no",), examples=tuple((str(i), "no no") for i in range(3))),
    PoolTask("sum", ("add one",), examples=tuple((str(i), str(i + 1)) for i in range(3))),
]


@pytest.fixture(scope="module")
def learner() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = pool_tokenizer(TASKS, 300)
    return small_model(len(tokenizer), 0), tokenizer


def library_gradient(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any) -> torch.Tensor:
    """Return the gradient of the library's own loss of the answers."""
    batch = row_batch(model, tokenizer, rows, plain_prompt)
    model.zero_grad()
    model(input_ids=batch["tokens"], labels=batch["labels"]).loss.backward()
    found = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
    model.zero_grad()
    return found


def test_gradients_are_those_of_the_librarys_loss(learner: Any) -> None:
    model, tokenizer = learner
    rows = task_rows(TASKS[0])
    assert [row[0] for row in rows] == ["say yes", "please agree", "say yes"]
    ours = mean_gradient(model, tokenizer, rows, plain_prompt)
    assert torch.allclose(ours, library_gradient(model, tokenizer, rows), atol=1e-6)


def test_influence_equals_the_formula(learner: Any) -> None:
    model, tokenizer = learner
    target = PoolTask("target", ("say it",), examples=(("7", "yes"), ("9", "yes")))
    found = influences(model, tokenizer, TASKS, target, plain_prompt)
    goal = library_gradient(model, tokenizer, task_rows(target)).double().numpy()
    moment = np.mean([library_gradient(model, tokenizer, task_rows(task)).double().numpy() ** 2 for task in TASKS], 0)
    root = np.sqrt(moment)
    for task, values in zip(TASKS, found, strict=True):
        for row, value in zip(task_rows(task), values, strict=True):
            step = library_gradient(model, tokenizer, [row]).double().numpy() / (root + root.mean())
            expected = step @ goal / np.linalg.norm(step) / np.linalg.norm(goal)
            assert value == pytest.approx(expected, abs=1e-3)
    assert [len(values) for values in found] == [3, 3, 3]
    assert np.mean(found[0]) > max(np.mean(found[1]), np.mean(found[2]))


def test_fisher_is_the_squared_gradient_of_answers_that_the_model_draws(
    learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = learner
    monkeypatch.setattr(torch, "multinomial", lambda p, num, generator: p.argmax(-1, keepdim=True))
    expected = []
    for row in task_rows(TASKS[1]):
        batch = row_batch(model, tokenizer, [row], plain_prompt)
        labels = batch["labels"].clone()
        with torch.no_grad():
            best = model(input_ids=batch["tokens"]).logits.argmax(-1)
        labels[:, 1:] = torch.where(labels[:, 1:] == IGNORED, IGNORED, best[:, :-1])
        model.zero_grad()
        kept = int((labels != IGNORED).sum())
        (model(input_ids=batch["tokens"], labels=labels).loss * kept).backward()
        squares = [p.grad.square().mean(1) for name, p in model.named_parameters() if p.dim() == 2 and "layers" in name]
        expected.append(torch.cat(squares))
    model.zero_grad()
    found = fisher_diagonal(model, tokenizer, TASKS[1], plain_prompt)
    assert found == pytest.approx(torch.stack(expected).mean(0).numpy(), rel=1e-3)
    assert (found >= 0).all()


def test_an_encoder_decoders_logits_are_those_of_its_loss() -> None:
    tokenizer = train_tokenizer(["say yes no 1 2 3"], 300)
    shape = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0,
        pad_token_id=PAD_ID, eos_token_id=EOS_ID, decoder_start_token_id=PAD_ID,
    )  # fmt: skip
    model = T5ForConditionalGeneration(shape).eval()
    batch = row_batch(model, tokenizer, task_rows(TASKS[1]), plain_prompt)
    loss, count = answer_loss(model, batch)
    labels = batch["labels"][batch["labels"] != IGNORED]
    ours = torch.nn.functional.cross_entropy(answer_logits(model, batch)[0], labels, reduction="sum")
    library = model(input_ids=batch["tokens"], attention_mask=batch["mask"], labels=batch["labels"]).loss
    assert float(library.detach()) * count == pytest.approx(float(loss.detach()), rel=1e-5)
    assert float(ours.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert count == len(labels)
    assert (fisher_diagonal(model, tokenizer, TASKS[1], plain_prompt) > 0).any()


# ---- picked examples


def test_importance_weights_by_hand() -> None:
    raw = [np.array([1, 1]), np.array([2, 3])]
    target = [np.array([1, 2])]
    # p_raw is 1/2, 1/4, 1/4; the target's shares are 1/2, 1/2, 0: ratios (1/2 + p_raw / 2) / p_raw = 1, 3/2, 1/2.
    assert log_importance(raw, target).tolist() == pytest.approx([0.0, np.log(0.75)])
    assert log_importance(raw, raw).tolist() == pytest.approx([0.0, 0.0])
    assert log_importance(raw, []).tolist() == [0.0, 0.0]


def test_buckets_are_words_marks_and_pairs() -> None:
    assert len(ngram_buckets("One, two")) == 5
    assert ngram_buckets("One two").tolist() == ngram_buckets("one  TWO").tolist()
    assert len(ngram_buckets("東京")) == 3
    assert len(ngram_buckets(" ")) == 0
    assert ngram_buckets("a b c").max() < 10_000


def test_draws_follow_the_weights() -> None:
    rng = np.random.default_rng(0)
    weights = np.log(np.array([0.7, 0.2, 0.1]))
    first = [int(drawn_order(weights, rng)[0]) for _ in range(4000)]
    assert np.bincount(first) / 4000 == pytest.approx([0.7, 0.2, 0.1], abs=0.03)
    assert sorted(drawn_order(np.array([0.0, -500.0, 900.0]), rng).tolist()) == [0, 1, 2]
    assert drawn_order(np.array([0.0, -500.0, 900.0]), rng)[0] == 2


@given(st.lists(st.text("ab c", min_size=1).filter(str.strip), min_size=1, max_size=8), st.integers(1, 8))
def test_unlike_equals_the_loop(texts: list[str], num: int) -> None:
    cosines = build_index(texts, "char").score_all(texts)
    taken: list[int] = []
    for i in range(len(texts)):
        if len(taken) < num and all(cosines[j, i] < 0.9 for j in taken):
            taken.append(i)
    assert unlike(range(len(texts)), texts, num) == taken


def test_picked_examples_are_like_the_targets_and_unlike_each_other() -> None:
    dates, names = [f"{i} May 19{i}" for i in range(10, 40)], [f"Ada Lovelace the {i}th" for i in range(30)]
    pool = make_pool([PoolTask("mixed", ("do it",), examples=tuple((one, "x") for one in dates + names))], "x")
    picked = pick_examples(pool, [0], [("7 May 1991", "x"), ("9 May 1964", "x")], 8, 0)
    assert len(picked) == 8
    assert sum("May" in one.pair[0] for one in picked) >= 6
    again = make_pool([PoolTask("mixed", ("do it",), examples=(("7 May 1991", "x"),) * 9)], "x")
    assert len(pick_examples(again, [0], [("7 May 1991", "x")], 5, 0)) == 1


# ---- rank


def mood_pool(folder: Path) -> dict[str, Any]:
    """Write a pool in which words mislead: the task that is told as the target answers otherwise."""
    said = {"like": "name the mood of it", "other": "write a word down", "far": "count every letter now"}
    answers = {"like": "bad", "other": "good", "far": "4"}
    rows = [
        {"task": task, "instruction": text, "input": f"{task[0]}{i}", "output": answers[task]}
        for task, text in said.items()
        for i in range(24)
    ]
    target = [{"task": "mood", "instruction": "name the mood", "input": f"m{i}", "output": "good"} for i in range(8)]
    for name, part in (("pool", rows), ("target", target)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")
    return {"pool": str(folder / "pool.jsonl"), "target_file": str(folder / "target.jsonl")}


def words_of(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def test_gradients_correct_a_ranking_that_words_mislead(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reranking, "WARM_UP_STEPS", 40)
    words = [*words_of(mood_pool(tmp_path)), "--k", "1", "--cache", str(tmp_path / "cache"), "--json"]
    plain = json.loads(cli("select", "rank", *words).stdout)
    assert plain["tables"]["ranking"]["rows"][0][1] == "like"
    answer = cli("select", "rank", *words, "--rerank", "gradient", "--num-examples", 5, "--pick", "weighted")
    assert answer.exit_code == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert result["tables"]["second_stage"]["rows"][0][1:3] == ["other", 3]
    assert result["tables"]["ranking"]["rows"][0][1] == "other"
    scalars = {name: scalar["value"] for name, scalar in result["scalars"].items()}
    assert (scalars["num_candidates"], scalars["num_replaced"], scalars["num_chosen"]) == (3, 1, 1)
    assert any("other replace like" in verdict for verdict in result["verdicts"])
    folder = Path(tmp_path / "runs" / result["run"] / "artifacts")
    assert list(json.loads((folder / "mixture.json").read_text())["weights"]) == ["other"]
    assert {"task", "score", "gradient"} == set(json.loads((folder / "ranking.json").read_text())[0])
    subset = read_pool(str(folder / "subset.jsonl"), num_examples=9)
    assert subset.ids == ["other"]
    assert 1 <= len(subset.tasks[0].examples) <= 5


def test_fisher_information_orders_and_a_resumed_run_does_not_measure_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reranking, "WARM_UP_STEPS", 5)
    config = RankConfig(**mood_pool(tmp_path), k=2, rerank="fisher", cache=str(tmp_path / "cache"))
    first = run_rank(config, run)
    values = [row[3] for row in first.tables["second_stage"].rows]
    assert values == sorted(values, reverse=True)
    assert all(0 < float(value or 0) <= 1 for value in values)
    monkeypatch.setattr(reranking, "make_learner", None)
    assert run_rank(config, run).tables["second_stage"] == first.tables["second_stage"]


def test_probes_tell_harm_from_help(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reranking, "PROBE_STEPS", 8)
    monkeypatch.setattr(reranking, "PROBE_SEEDS", 2)
    config = RankConfig(**mood_pool(tmp_path), k=2, num_probes=2, scorers=["tfidf"], cache=str(tmp_path / "cache"))
    result = run_rank(config, run)
    says = {row[0]: (row[2], row[3], row[6]) for row in result.tables["probes"].rows}
    assert len(says) == 2
    assert result.scalars["num_probed"].value == 2
    assert {word for _, _, word in says.values()} <= {"harms", "helps", "undecided"}
    assert "other" in says
    assert float(says["other"][1]) < 0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--rerank", "gradient"], "--rerank gradient: the target has no examples"),
        (["--num-probes", "2"], "--num-probes: the target has no examples"),
        (["--num-examples", "2", "--pick", "weighted"], "--pick weighted: the target has no examples"),
        (["--rerank", "words"], "--rerank"),
        (["--num-probes", "-1"], "--num-probes"),
        (["--pick", "weighted"], "needs --num-examples"),
        (["--rerank", "gradient", "--model", "no/such/model"], "the target has no examples"),
    ],
)
def test_what_needs_examples_says_so(cli: Callable[..., Any], tmp_path: Path, extra: list[str], message: str) -> None:
    pool = mood_pool(tmp_path)["pool"]
    words = ("--pool", pool, "--target", "name the mood", "--cache", tmp_path / "cache", *extra)
    answer = cli("select", "rank", *words)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_pool_without_examples_is_refused(run: Run, tmp_path: Path) -> None:
    given_target = mood_pool(tmp_path)["target_file"]
    pool = tmp_path / "bare.json"
    pool.write_text(json.dumps({"a": "Name the thing.", "b": "Sort the list."}), encoding="utf-8")
    config = RankConfig(pool=str(pool), target_file=given_target, rerank="gradient", cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="no task has examples"):
        run_rank(config, run)
    with pytest.raises(UserError, match="the chosen tasks have no examples"):
        run_rank(config.model_copy(update={"rerank": None, "num_probes": 2}), run)


def test_a_users_model_is_asked_as_it_is(run: Run, tmp_path: Path) -> None:
    given = mood_pool(tmp_path)
    tokenizer = pool_tokenizer(read_pool(given["pool"], num_examples=4).tasks, 300)
    save_model(small_model(len(tokenizer), 1), tmp_path / "model", tokenizer)
    config = RankConfig(**given, k=1, rerank="gradient", model=str(tmp_path / "model"), cache=str(tmp_path / "cache"))
    result = run_rank(config, run)
    assert len(result.tables["second_stage"].rows) == 3
    assert not any("0.3 M" in line for line in result.limitations)


def test_a_model_without_finite_gradients_is_named(run: Run, tmp_path: Path) -> None:
    given = mood_pool(tmp_path)
    tokenizer = pool_tokenizer(read_pool(given["pool"], num_examples=4).tasks, 300)
    model = small_model(len(tokenizer), 1)
    with torch.no_grad():
        next(model.parameters())[5:] = float("nan")
    save_model(model, tmp_path / "model", tokenizer)
    for kind in ("gradient", "fisher"):
        config = RankConfig(**given, rerank=kind, model=str(tmp_path / "model"), cache=str(tmp_path / "cache"))
        with pytest.raises(PolyloomError, match="model: gives no finite gradient for the task"):
            run_rank(config, run)
