"""The verbs through the command line and in process: named scalars, numbers to reach, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyloom
from polyloom.core.errors import PolyloomError, UserError
from polyloom.core.seeding import python_random
from polyloom.methods.select import lab
from polyloom.methods.select.aligning import align_latent, run_align
from polyloom.methods.select.baselines import choose_random, instance_votes
from polyloom.methods.select.checking import ambiguity, run_lint
from polyloom.methods.select.config import (
    AlignConfig,
    EvaluateConfig,
    ExplainConfig,
    LintConfig,
    RankConfig,
    SelectStudyConfig,
    StabilityConfig,
    TuneConfig,
)
from polyloom.methods.select.data import PoolTask, make_pool, read_pool
from polyloom.methods.select.evaluation import run_evaluate
from polyloom.methods.select.explaining import run_explain, run_stability
from polyloom.methods.select.gradients import gradient_similarity
from polyloom.methods.select.lab import difference_scalars, run_study
from polyloom.methods.select.learner import train_config
from polyloom.methods.select.scoring import LATENT, head_for, score_pool
from polyloom.methods.select.study import run_rank
from polyloom.methods.select.tune import run_tune
from polyloom.methods.select.tuning import (
    TestItem,
    answer_loss,
    batches,
    definition_prompt,
    draw_rows,
    evaluate,
    leaked_items,
    make_test,
    plain_prompt,
    pool_tokenizer,
    shortest_first,
    small_model,
    tune_arm,
)
from polyloom.models.load import save_model
from polyloom.models.tiny import EOS_ID, PAD_ID, build_tiny
from polyloom.models.tokenizers import train_tokenizer
from polyloom.runs.folder import Run
from tests.families import t5

VERBS = ("classify", "translate", "count", "sort", "write")
NOUNS = ("review", "sentence", "number", "list", "question", "city")


def toy_pool(tmp_path: Path, num_examples: int = 4) -> str:
    """Write a pool of 30 tasks in 6 categories, told in two wordings, with examples."""
    rows = []
    for verb in VERBS:
        for noun in NOUNS:
            for said in (f"{verb} the {noun} that is given", f"your task is to {verb} one {noun}"):
                for i in range(num_examples):
                    answer = f"{verb[0]}{i}"
                    row = {"task": f"{verb}_{noun}", "instruction": said, "category": noun, "source": verb}
                    rows.append(row | {"input": f"{noun} {i}", "output": answer})
    path = tmp_path / "toy.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def common(tmp_path: Path) -> dict[str, Any]:
    return {"pool": toy_pool(tmp_path), "cache": str(tmp_path / "cache")}


def test_rank_answers_through_the_command_line(cli: Callable[..., Any], tmp_path: Path) -> None:
    words = ("--pool", toy_pool(tmp_path), "--target", "please classify the city", "--cache", tmp_path / "cache")
    answer = cli("select", "rank", *words, "--k", 3, "--num-examples", 2, "--json")
    assert answer.exit_code == 0, answer.stderr
    result = json.loads(answer.stdout)
    rows = result["tables"]["ranking"]["rows"]
    assert rows[0][1] == "classify_city"
    assert [row[2] for row in rows[:4]] == ["yes", "yes", "yes", ""]
    scalars = {name: scalar["value"] for name, scalar in result["scalars"].items()}
    assert (scalars["num_tasks"], scalars["num_instructions"], scalars["num_chosen"]) == (30, 60, 3)
    assert {"agreement_overlap", "agreement_tau", "ranking_cpu_seconds", "peak_memory"} <= set(scalars)
    folder = next((tmp_path / "runs").glob("select-rank*")) / "artifacts"
    mixture = json.loads((folder / "mixture.json").read_text())
    assert sum(mixture["weights"].values()) == pytest.approx(1.0, abs=1e-4)
    assert len(json.loads((folder / "ranking.json").read_text())) == 30
    assert len((folder / "subset.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target", "x y", "--k", 0), "--k"),
        (("--target", "{{x}}"), "no words left"),
        (("--target", "count it", "--cleaning", "wash"), "--cleaning"),
        (("--target", "count it", "--exclude-same-source"), "data set is not known"),
        (("--target", "count it", "--scorers", "no/such/encoder/here"), "there is no such folder"),
        (("--target", "count it", "--scorers", "latent", "--head", "nowhere"), "holds no aligned head"),
        (("--target", "count it", "--head", "nowhere"), "no scorer takes this aligned head"),
    ],
)
def test_rank_refuses_in_one_line(
    cli: Callable[..., Any], tmp_path: Path, words: tuple[Any, ...], message: str
) -> None:
    answer = cli("select", "rank", "--pool", toy_pool(tmp_path), "--cache", tmp_path / "c", *words)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_rank_says_what_it_left_out_and_that_k_is_too_large(run: Run, tmp_path: Path) -> None:
    config = RankConfig(**common(tmp_path), target_task="sort_list", k=99, exclude_same_source=True, diversify=True)
    result = run_rank(config, run)
    told = " ".join(result.limitations)
    assert "The target is in the pool (sort_list) and was left out" in told
    assert "of the data set sort were left out" in told
    assert "k = 99 is more than the pool holds" in told
    assert result.scalars["num_chosen"].value == 24


def test_a_measured_prior_moves_the_ranking(run: Run, tmp_path: Path) -> None:
    gains = tmp_path / "gains.csv"
    gains.write_text("source,target,gain\nwrite_city,count_list,9\nsort_list,count_list,0\n", encoding="utf-8")
    config = RankConfig(**common(tmp_path), target=["classify the review"], transfers=str(gains), prior_weight=1.0)
    assert run_rank(config, run).tables["ranking"].rows[0][1] == "write_city"
    pivots = config.model_copy(update={"prior": "pivots"})
    assert run_rank(pivots, run).tables["ranking"].rows[0][1] == "write_city"
    gains.write_text("source,target,gain\nwrite_city,count_list,much\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"gains.csv:2: the gain 'much' is no number"):
        run_rank(config, run)


def test_explain_names_the_deciding_words(run: Run, tmp_path: Path) -> None:
    config = ExplainConfig(**common(tmp_path), target=["classify the review now", "count a city"], k=2)
    result = run_explain(config, run)
    assert any("classify" in str(row[4]) for row in result.tables["pairs"].rows)
    assert len(result.tables["without"].rows) == 2
    assert 0 <= float(result.scalars["least_leave_one_out_jaccard"].value or 0) <= 1
    points = {name: len(series.x) for name, series in result.series.items() if name.startswith("map: ")}
    assert sum(points.values()) == 31
    assert (points["map: target"], points["map: chosen"], len(points)) == (1, 2, 6)
    assert len({result.series[name].group for name in points}) == 1
    assert 0 < float(result.scalars["map_variance"].value or 0) <= 1


def test_stability_is_one_where_nothing_can_change(run: Run, tmp_path: Path) -> None:
    config = StabilityConfig(**common(tmp_path), target=["classify the review"], k=30, num_drops=10)
    assert run_stability(config, run).scalars["jaccard"].value == 1.0
    shaken = run_stability(config.model_copy(update={"k": 3}), run)
    assert 0 < float(shaken.scalars["jaccard"].value or 0) <= 1
    assert all(row[4] <= row[5] for row in shaken.tables["tasks"].rows)
    assert run_stability(config, run).scalars["num_in_noise"].value == 0


def test_lint_counts_rules_over_a_pool(run: Run, tmp_path: Path) -> None:
    result = run_lint(LintConfig(pool=toy_pool(tmp_path)), run)
    assert result.scalars["num_findings"].value == 0
    assert result.scalars["num_tasks"].value == 30
    assert "30 of 30 tasks clean" in result.verdicts[0]
    pool = tmp_path / "bad.json"
    pool.write_text(json.dumps({"a": ["{{text}}", ""], "b": "Sort the list of names.", "c": "{{x}}"}), encoding="utf-8")
    found = run_lint(LintConfig(pool=str(pool)), run)
    assert [found.scalars[key].value for key in ("num_empty", "num_tasks", "num_instructions")] == [3, 3, 4]
    assert "1 of 3 tasks clean" in found.verdicts[0]


def test_ambiguity_is_the_entropy_of_the_neighbours_categories() -> None:
    similarity = np.array([[1, 0.9, 0.8], [0.9, 1, 0.7], [0.8, 0.7, 1]], dtype=np.float32)
    # The neighbours of the first and the second are of both categories, those of the third of one.
    assert ambiguity(similarity, ["a", "a", "b"]).tolist() == pytest.approx([1.0, 1.0, 0.0])
    assert len(ambiguity(similarity, ["a", "a", "a"])) == 0


# ---- evaluate and align


def test_categories_of_the_toy_pool_are_found(run: Run, tmp_path: Path) -> None:
    result = run_evaluate(EvaluateConfig(**common(tmp_path), aggregation="max"), run)
    assert float(result.scalars["fusion_p_at_1"].value or 0) > 2 * float(result.scalars["random_p_at_1"].value or 1)
    with pytest.raises(UserError, match="nothing to judge by"):
        run_evaluate(EvaluateConfig(**common(tmp_path), smallest_category=99), run)


def test_references_and_transfers(run: Run, tmp_path: Path) -> None:
    gold = {"count_city": ["classify_city", "sort_city", "write_city"]}
    path = tmp_path / "gold.json"
    path.write_text(json.dumps(gold), encoding="utf-8")
    result = run_evaluate(EvaluateConfig(**common(tmp_path), reference=str(path)), run)
    assert float(result.scalars["tfidf_overlap"].value or 0) > float(result.scalars["random_overlap"].value or 0)
    path.write_text(json.dumps({"count_city": ["count_listcount_number"]}), encoding="utf-8")
    with pytest.raises(UserError, match="glued names: count_list, count_number"):
        run_evaluate(EvaluateConfig(**common(tmp_path), reference=str(path)), run)
    gains = tmp_path / "gains.csv"
    rows = [f"{a}_list,{b}_list,{(a == b) + len(a)}" for a in VERBS for b in VERBS if a != b]
    gains.write_text("source,target,gain\n" + "\n".join(rows), encoding="utf-8")
    scalars = run_evaluate(EvaluateConfig(**common(tmp_path), transfers=str(gains)), run).scalars
    # A source's gain is the same everywhere here, so the prior is the gold order.
    assert scalars["prior_ndcg"].value == pytest.approx(1.0)
    assert scalars["prior_regret"].value == pytest.approx(0.0)
    assert float(scalars["pivots_ndcg"].value or 0) > float(scalars["similarity_ndcg"].value or 0)


def test_published_selections(run: Run, real_data: Callable[[str], Path], tmp_path: Path) -> None:
    config = EvaluateConfig(pool=str(real_data("promptsource")), reference="insta-p3", cache=str(tmp_path))
    scalars = run_evaluate(config, run).scalars
    assert float(scalars["tfidf_overlap"].value or 0) >= 0.5
    assert float(scalars["random_overlap"].value or 1) <= 0.25


@pytest.mark.slow
def test_category_precision_and_alignment_on_natural_instructions(
    run: Run, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    pool = str(real_data("natural_instructions/definitions.json"))
    scalars = run_evaluate(EvaluateConfig(pool=pool, cache=str(tmp_path)), run).scalars
    assert scalars["num_queries"].value == 616
    parts = [float(scalars[f"{name}_p_at_1"].value or 0) for name in ("tfidf", "char", "bm25")]
    assert max(parts) >= 0.67
    assert float(scalars["fusion_p_at_1"].value or 0) > max(parts)
    gains = run_align(AlignConfig(pool=pool), run).scalars
    assert float(gains["seen_p_at_5_gain"].value or 0) >= 0.05
    assert float(gains["unseen_p_at_5_gain"].value or 0) >= -0.01
    forced = run_align(AlignConfig(pool=pool, lr=1e-2, num_epochs=6, stop_early=False), run)
    assert forced.scalars["kept"].value is False
    assert forced.verdicts[0].startswith("Over-fitted")
    assert not forced.artifacts


def many_categories(tmp_path: Path) -> str:
    rng = python_random(0, "categories")
    tasks = {}
    for category in range(8):
        words = [f"c{category}w{i}" for i in range(6)]
        for i in range(6):
            said = [" ".join(rng.sample(words, 3)) + f" shared word{rng.randrange(5)}" for _ in range(2)]
            tasks[f"t{category}_{i}"] = {"instructions": said, "category": f"k{category}"}
    path = tmp_path / "categories.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("recipe", ["head", "last-n", "paper"])
def test_align_trains_an_encoder_and_writes_what_rank_reads(run: Run, tmp_path: Path, recipe: str) -> None:
    pool = many_categories(tmp_path)
    texts = [text for task in json.loads(Path(pool).read_text()).values() for text in task["instructions"]]
    save_model(build_tiny("bert-2x64", 400), tmp_path / "encoder", train_tokenizer(texts, 400))
    config = AlignConfig(
        pool=pool,
        encoder=str(tmp_path / "encoder"),
        recipe=recipe,  # type: ignore[arg-type]
        num_epochs=1,
        max_unseen_drop=1.0,
        cache=str(tmp_path / "cache"),
    )
    result = run_align(config, run)
    assert result.scalars["kept"].value is True
    (artifact,) = result.artifacts.values()
    path = str(run.path / artifact.path)
    extra: dict[str, Any] = {"scorers": [config.encoder], "head": path} if recipe == "head" else {"scorers": [path]}
    ranked = run_rank(RankConfig(pool=pool, target=["c1w1 c1w2"], cache=str(tmp_path / "cache"), **extra), run)
    assert ranked.scalars["num_tasks"].value == 48


def test_an_aligned_latent_encoder_is_what_rank_uses(run: Run, tmp_path: Path) -> None:
    pool = many_categories(tmp_path)
    run_align(AlignConfig(pool=pool, lr=3e-3, num_epochs=3, max_unseen_drop=1.0), run)
    given = RankConfig(pool=pool, target_task="t1_0", scorers=["latent"], cache=str(tmp_path / "cache"))
    head = str(run.artifact("head.safetensors"))
    plain, aligned = (
        [row[3] for row in run_rank(given.model_copy(update={"head": one}), run).tables["ranking"].rows]
        for one in (None, head)
    )
    assert plain != aligned
    assert (head_for(LATENT, Path(head)), head_for("folder", Path(head))) == (Path(head), None)


def test_a_whole_pool_aligns_the_latent_encoder_with_its_categories(tmp_path: Path) -> None:
    pool = read_pool(many_categories(tmp_path))
    align_latent(pool, tmp_path / "head.safetensors", 0)
    categories = [task.category for task in pool.tasks]
    near = []
    for head in (None, tmp_path / "head.safetensors"):
        scores = score_pool(["c2w0 shared word1"], pool, ["latent"], head=head).fused
        own = [one for one, category in zip(scores, categories, strict=True) if category == "k2"]
        near.append(float(np.mean(own) - scores.mean()))
    assert near[1] > near[0]


def test_align_refuses_what_it_cannot_hold_out(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "few.json"
    path.write_text(json.dumps({"a": "One thing.", "b": "Two things."}), encoding="utf-8")
    with pytest.raises(UserError, match="too few categories"):
        run_align(AlignConfig(pool=str(path)), run)
    with pytest.raises(UserError, match="too few instructions in a group"):
        run_align(AlignConfig(pool=many_categories(tmp_path), positives="same_task"), run)
    with pytest.raises(UserError, match="the latent encoder has no layers"):
        run_align(AlignConfig(pool=many_categories(tmp_path), recipe="paper"), run)


# ---- tuning


def echo_pool() -> Any:
    tasks = [
        PoolTask(name, (f"say {name}",), examples=tuple((str(i), name) for i in range(8))) for name in ("yes", "no")
    ]
    return make_pool(tasks, "echo")


def test_halves_of_a_batch_teach_what_the_whole_batch_teaches() -> None:
    pool = echo_pool()
    tokenizer = pool_tokenizer(pool.tasks, 300)
    rows = draw_rows(pool, [0, 1], 0, "arm")
    whole = shortest_first(batches(rows, tokenizer, plain_prompt, 6, 64)(0))
    lengths = (whole["tokens"] != PAD_ID).sum(1).tolist()
    assert lengths == sorted(lengths)
    model = small_model(len(tokenizer), 0)
    parts = [{name: tensor[at : at + 3] for name, tensor in whole.items()} for at in (0, 3)]
    losses = [answer_loss(model, part) for part in parts]
    loss, count = answer_loss(model, whole)
    assert count == sum(number for _, number in losses)
    torch.testing.assert_close(loss, losses[0][0] + losses[1][0])
    trained = [small_model(len(tokenizer), 0) for _ in range(2)]
    for size, one in zip((0, 4), trained, strict=True):
        config = train_config(5, 8, 4e-3).model_copy(update={"micro_batch_size": size})
        tune_arm(one, tokenizer, pool, [0, 1], config, "arm")
    for a, b in zip(*(one.parameters() for one in trained), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_answers_alone_are_trained_on_and_the_model_learns_them() -> None:
    pool = echo_pool()
    tokenizer = pool_tokenizer(pool.tasks, 300)
    rows = draw_rows(pool, [0, 1], 0, "arm")
    batch = batches(rows, tokenizer, plain_prompt, 4, 64)(0)
    kept = batch["labels"] != -100
    assert (batch["labels"][kept] == batch["tokens"][kept]).all()
    answers = {
        tokenizer.decode(row[mask], skip_special_tokens=True) for row, mask in zip(batch["tokens"], kept, strict=True)
    }
    assert answers <= {"yes", "no"}
    model = small_model(len(tokenizer), 0)
    tune_arm(model, tokenizer, pool, [0, 1], train_config(60, 8, 4e-3), "arm")
    items = [TestItem(plain_prompt(f"say {name}", "9"), (name,), ("yes", "no")) for name in ("yes", "no")]
    found = evaluate(model, tokenizer, items)
    assert found == {"rank_accuracy": [1.0, 1.0], "exact_match": [1.0, 1.0], "rouge_l": [1.0, 1.0]}
    scores = gradient_similarity(model, tokenizer, pool, [("9", "yes")], ["say yes"], plain_prompt)
    assert scores[pool.place("yes")] > scores[pool.place("no")]


def test_an_encoder_decoder_is_tuned_and_judged_from_its_folder(run: Run, tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    rows = [{"task": f"t{a}", "instruction": f"say {a}", "input": str(i), "output": a} for a in "bcd" for i in range(9)]
    pool.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    test = tmp_path / "test.jsonl"
    test.write_text('{"input": "9", "output": "b", "options": ["b", "c"]}', encoding="utf-8")
    tokenizer = train_tokenizer([f"say {row['output']} {row['input']}" for row in rows], 300)
    special = {"pad_token_id": PAD_ID, "eos_token_id": EOS_ID, "decoder_start_token_id": PAD_ID}
    save_model(t5(vocab_size=len(tokenizer), **special), tmp_path / "t5", tokenizer)
    config = TuneConfig(
        pool=str(pool),
        target=["say b again"],
        test_file=str(test),
        model=str(tmp_path / "t5"),
        arms=["selected", "all"],
        scorers=["tfidf"],
        k=1,
        num_seeds=1,
        steps=60,
        batch_size=8,
        lr=1e-2,
        cache=str(tmp_path / "cache"),
    )
    result = run_tune(config, run)
    assert result.scalars["selected_rank_accuracy"].value == 1
    assert result.scalars["selected_exact_match"].value == 1
    assert (run.path / result.artifacts["model"].path / "config.json").is_file()


def test_polyloom_run_takes_a_target(tmp_path: Path) -> None:
    given = {"pool": many_categories(tmp_path), "target": ["c1w1 c1w2"], "scorers": ["tfidf"]}
    result = polyloom.run("select.rank", runs=tmp_path / "runs", cache=str(tmp_path / "cache"), **given)
    assert result.scalars["num_tasks"].value == 48


def test_options_are_ragged_and_hold_the_answer() -> None:
    closed = make_test([("1", "a"), ("2", "b")], ["a", "b", "c"], ["Do it"], plain_prompt)
    assert [set(item.options) for item in closed] == [{"a", "b", "c"}] * 2
    opened = make_test([("1", "a")], [str(i) for i in range(30)], ["Do it"], plain_prompt)
    assert len(opened[0].options) == len(set(opened[0].options)) == 10
    assert "a" in opened[0].options


def test_definition_prompt_ends_sentences() -> None:
    expected = "Definition: Say no.\n\nNow complete the following example -\nInput: Is it?\nOutput: "
    assert definition_prompt("Say no", " Is it? ") == expected


def test_instance_votes_find_the_like_instances() -> None:
    tasks = [
        PoolTask("dates", ("a",), examples=(("12 May 1990", "1990"), ("3 June 2001", "2001"))),
        PoolTask("names", ("b",), examples=(("Ada Lovelace", "Ada"), ("Alan Turing", "Alan"))),
    ]
    votes = instance_votes(
        make_pool(tasks, "x"), [("7 May 1991", "1991"), ("Ada Yonath", "Ada"), ("9 June 2003", "2003")]
    )
    assert votes.round().tolist() == [2.0, 1.0]
    with pytest.raises(UserError, match="no examples to retrieve"):
        instance_votes(make_pool([PoolTask("a", ("x",))], "x"), [("a", "b")])


def test_test_inputs_that_training_repeats_are_found() -> None:
    said = "The quick brown fox jumps over the lazy dog near the old river bank at noon on a warm day"
    tasks = [
        PoolTask("near", ("a",), examples=((f"{said}.", "x"), ("something else altogether", "y"))),
        PoolTask("far", ("b",), examples=(("exactly  The same", "x"), ("", "y"))),
    ]
    given = [said, "nothing alike is in it", "Exactly the same", ""]
    items = [TestItem("p", ("x",), given=one) for one in given]
    pool = make_pool(tasks, "x")
    assert leaked_items(items, pool, [0, 1]) == {0: "near", 2: "far"}
    assert leaked_items(items, pool, [pool.place("far")]) == {2: "far"}


def test_random_tasks_are_different_ones() -> None:
    pool = make_pool([PoolTask(str(i), ("x",)) for i in range(9)], "x")
    assert len(set(choose_random(pool, 4, 0))) == 4
    assert choose_random(pool, 4, 0) != choose_random(pool, 4, 1)


def test_differences_are_paired_by_target_and_seed() -> None:
    rows = [
        {"target": name, "arm": arm, "seed": seed, "rank_accuracy": value + 0.1 * seed}
        for name in ("t", "u")
        for seed in (0, 1)
        for arm, value in (("selected", 0.8), ("all", 0.5))
    ]
    scalars = difference_scalars(rows)
    assert set(scalars) == {"selected_minus_all", "selected_minus_all_t", "selected_minus_all_u"}
    assert scalars["selected_minus_all"].value == pytest.approx(0.3)
    assert scalars["selected_minus_all"].low == pytest.approx(0.3)


def test_tune_runs_on_a_users_pool_and_test(run: Run, tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text('{"input": "city 9", "output": ["c0", "c1"], "options": ["c0", "t1"]}', encoding="utf-8")
    config = TuneConfig(
        **common(tmp_path),
        target=["classify the city"],
        test_file=str(test),
        steps=3,
        num_seeds=2,
        arms=["selected", "all"],
    )
    result = run_tune(config, run)
    assert {"selected_rank_accuracy", "all_exact_match", "selected_minus_all"} <= set(result.scalars)
    assert len(result.tables["arms"].rows) == 4
    with pytest.raises(UserError, match="the target has no test examples"):
        run_tune(config.model_copy(update={"test_file": None}), run)
    with pytest.raises(UserError, match="true relatedness of this pool is not known"):
        run_tune(config.model_copy(update={"arms": ["oracle"]}), run)
    with pytest.raises(PolyloomError, match="needs labelled examples"):
        run_tune(config.model_copy(update={"arms": ["gradients"]}), run)


def test_study_is_resumed_without_training_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "STUDY_STEPS", 2)
    config = SelectStudyConfig(languages=["en", "de"])
    first = run_study(config, run)
    monkeypatch.setattr(lab, "tune_arm", None)
    assert run_study(config, run).scalars == first.scalars
    assert "undecided" in first.verdicts[0]
    assert any("too little to decide" in line for line in first.limitations)
    assert float(first.scalars["selected_relatedness"].value or 0) > float(
        first.scalars["random_relatedness"].value or 1
    )
    assert np.isfinite([float(first.scalars[name].value or 0) for name in first.scalars]).all()


def test_study_takes_the_targets_that_are_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "STUDY_STEPS", 2)
    config = SelectStudyConfig(languages=["en", "de"], targets=["count_list_de", "normalise_date_de", "count_list_de"])
    result = run_study(config, run)
    assert {"selected_minus_all_count_list_de", "selected_minus_all_normalise_date_de"} <= set(result.scalars)
    assert not [name for name in result.scalars if "classify" in name]
    with pytest.raises(UserError, match="has no task 'nothing_de'"):
        run_study(config.model_copy(update={"targets": ["nothing_de"]}), run)
