"""Beyond the paper: calibration, thresholds, learning from a teacher, misspelled words, hard negatives, a folder for
sentence-transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from polyloom.core.errors import UserError
from polyloom.core.seeding import numpy_generator, python_random
from polyloom.methods.match.ablation import BranchGradients
from polyloom.methods.match.augmentation import hard_batches, misspell
from polyloom.methods.match.calibration import (
    best_threshold,
    calibration_error,
    fit_temperature,
    negative_log_likelihood,
    softmax,
)
from polyloom.methods.match.config import EvaluateConfig, ExplainConfig, ExportConfig, TrainConfig
from polyloom.methods.match.data import Pairs, world_pairs
from polyloom.methods.match.distil import make_lesson, open_teacher, recombined
from polyloom.methods.match.explain import class_report, run_explain
from polyloom.methods.match.export import run_export
from polyloom.methods.match.folder import load, save
from polyloom.methods.match.study import run_evaluate, run_train
from polyloom.methods.match.training import Recipe, fit, targets
from polyloom.models.load import save_model
from polyloom.models.tokenizers import train_tokenizer
from polyloom.runs.folder import Run

SMALL = Recipe(width=16, hidden=8, floor=8, max_length=24, epochs=3)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return world_pairs(200, "train", hardness=1)


@pytest.fixture(scope="module")
def matcher(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matcher") / "m"
    save(fit(pairs, world_pairs(80, "valid", hardness=1), replace(SMALL, block="fa"), 0), folder)
    return folder


def test_the_temperature_undoes_a_scale_of_the_logits() -> None:
    rng = numpy_generator(0, "logits")
    logits = rng.normal(size=(4000, 3))
    wanted = np.array([rng.choice(3, p=row) for row in softmax(logits)])
    assert fit_temperature(5 * logits, wanted) == pytest.approx(5, rel=0.12)
    found = fit_temperature(logits, wanted)
    for other in (0.8 * found, 1.25 * found):
        assert negative_log_likelihood(logits, wanted, found) < negative_log_likelihood(logits, wanted, other)
    assert calibration_error(softmax(5 * logits), wanted) > 4 * calibration_error(softmax(logits), wanted)


def test_calibration_error_by_hand() -> None:
    chances = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    # Two bins: confidences .6 .7 (one right of two), .8 .9 (both right).
    assert calibration_error(chances, np.array([0, 0, 1, 0]), 2) == pytest.approx((2 * 0.15 + 2 * 0.15) / 4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_no_threshold_has_a_better_f1(rows: list[tuple[int, bool]]) -> None:
    scores, positive = [float(a) for a, _ in rows], [b for _, b in rows]
    if not any(positive):
        return

    def f1(at: float) -> float:
        hits = sum(p and s >= at for s, p in zip(scores, positive, strict=True))
        return 2 * hits / (sum(s >= at for s in scores) + sum(positive))

    assert f1(best_threshold(scores, positive)) == pytest.approx(max(f1(at) for at in scores))


def test_slips_change_long_words_alone_and_by_the_seed() -> None:
    text = "a cat, 1234 or two elephants"
    assert misspell(text, 0.0, python_random(0)) == text
    slipped = misspell(text, 1.0, python_random(3)).split(" ")
    assert [slipped[i] for i in (0, 2, 3)] == ["a", "1234", "or"]
    assert slipped[5] != "elephants"
    assert misspell(text, 1.0, python_random(3)) == " ".join(slipped)


def test_hard_batches_hold_every_pair_once_and_neighbours_together() -> None:
    centres = np.eye(5, 8, dtype=np.float32)
    vectors = np.repeat(centres, 6, axis=0)
    found = hard_batches(vectors, 6, 1.0, numpy_generator(0, "x"))
    assert sorted(i for batch in found for i in batch) == list(range(30))
    assert all(len({i // 6 for i in batch}) == 1 for batch in found)
    mixed = hard_batches(vectors, 6, 0.5, numpy_generator(0, "x"))
    assert sorted(i for batch in mixed for i in batch) == list(range(30))
    assert len({i // 6 for i in mixed[0]}) > 1


def test_hard_negatives_are_trained_on_and_need_the_contrastive_loss(pairs: Pairs) -> None:
    valid = world_pairs(40, "valid", hardness=1)
    recipe = replace(SMALL, hard_negatives=0.5, epochs=2)
    assert fit(pairs, valid, replace(recipe, loss="contrastive"), 0).curve[1]["loss"] > 0
    with pytest.raises(UserError, match="only the contrastive loss has negatives"):
        fit(pairs, valid, recipe, 0)


def test_a_lesson_mixes_gold_labels_with_the_teachers(matcher: Path, pairs: Pairs) -> None:
    teacher, classes = open_teacher(matcher), pairs.classes()
    gold = targets(pairs, classes, "softmax")
    lesson = make_lesson(pairs, gold, classes, teacher, 0.25, 10, 0)
    assert len(lesson.pairs.items) == len(lesson.targets) == 210
    assert torch.allclose(lesson.targets.sum(1), torch.ones(210), atol=1e-5)
    said = torch.from_numpy(teacher.judge(pairs.items)).float()
    assert torch.allclose(lesson.targets[:200], 0.75 * torch.eye(2)[gold.long()] + 0.25 * said, atol=1e-6)
    old = {(pair.first, pair.second) for pair in pairs.items}
    assert not old & {(pair.first, pair.second) for pair in lesson.pairs.items[200:]}
    assert recombined(pairs, 10, 0) == recombined(pairs, 10, 0)


def test_a_student_learns_from_its_teacher_by_the_verb(matcher: Path, run: Run) -> None:
    config = TrainConfig(
        teacher=str(matcher), teacher_weight=1.0, num_new_pairs=50, num_pairs=200, hardness=1, epochs=2, width=16
    )
    assert "accuracy" in run_train(config, run).scalars
    with pytest.raises(UserError, match="no labels without a teacher"):
        run_train(TrainConfig(num_new_pairs=5, num_pairs=64, epochs=1), run)
    with pytest.raises(UserError, match="learns no chances of classes"):
        run_train(TrainConfig(teacher=str(matcher), loss="cosent", num_pairs=64, epochs=1), run)


def cross_encoder(folder: Path, names: list[str]) -> Path:
    tokenizer = train_tokenizer(world_pairs(50, "train").texts(), 300)
    shape: Any = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    labels: Any = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    save_model(BertForSequenceClassification(BertConfig(**shape, **labels)), folder, tokenizer)
    return folder


def test_a_cross_encoder_teaches_by_the_names_of_its_classes(pairs: Pairs, tmp_path: Path) -> None:
    classes = pairs.classes()
    teacher = open_teacher(cross_encoder(tmp_path / "a", ["SAME", "Different"]))
    judged = teacher.judge(pairs.items[:5])
    gold = targets(pairs, classes, "softmax")
    lesson = make_lesson(pairs, gold, classes, teacher, 1.0, 0, 0)
    assert np.allclose(lesson.targets[:5].numpy(), judged[:, [1, 0]], atol=1e-5)
    with pytest.raises(UserError, match="knows no class 'different'"):
        make_lesson(pairs, gold, classes, open_teacher(cross_encoder(tmp_path / "b", ["no", "yes"])), 1.0, 0, 0)
    score = open_teacher(cross_encoder(tmp_path / "c", ["x"]))
    assert score.judge(pairs.items[:3]).shape == (3,)
    with pytest.raises(UserError, match="it gives scores, and the labels are classes"):
        make_lesson(pairs, gold, classes, score, 1.0, 0, 0)


def test_evaluation_reports_calibration_threshold_and_slips(matcher: Path, run: Run) -> None:
    clean = run_evaluate(EvaluateConfig(model=str(matcher), num_pairs=100, hardness=1), run).scalars
    assert {"calibration_error", "calibration_error_before", "threshold_precision", "threshold_recall"} <= clean.keys()
    assert clean["temperature"].value == load(matcher).temperature != 1.0
    slips = run_evaluate(EvaluateConfig(model=str(matcher), num_pairs=100, hardness=1, typos=0.9), run)
    assert slips.scalars["accuracy"].value != clean["accuracy"].value
    assert any("misspelled" in line for line in slips.limitations)


def test_sentence_transformers_gives_the_matchers_vectors(matcher: Path, run: Run) -> None:
    library = pytest.importorskip("sentence_transformers")
    result = run_export(ExportConfig(model=str(matcher), sentence_transformers=True, rounds=10), run)
    folder = run.path / result.artifacts["sentence-transformers"].path
    model = library.SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    texts = ["3 May 1999", "May 3, 1999", "12 kg and more"]
    ours = load(matcher).vectors(texts)
    assert np.abs(model.encode(texts, normalize_embeddings=True) - ours).max() < 1e-6
    assert model.similarity_fn_name == "cosine"


def test_an_aligner_has_no_vectors_to_export(pairs: Pairs, run: Run, tmp_path: Path) -> None:
    save(fit(pairs, pairs, replace(SMALL, base="esim", epochs=1), 0), tmp_path / "m")
    with pytest.raises(UserError, match="is no model of sentence-transformers"):
        run_export(ExportConfig(model=str(tmp_path / "m"), sentence_transformers=True, rounds=10), run)


@pytest.mark.parametrize("block", ["fa", "sfa"])
def test_what_a_block_does_class_by_class(block: str, pairs: Pairs, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{pair.first}\t{pair.second}\t{pair.label}\n" for pair in pairs.items[:40]))
    save(fit(pairs, pairs, replace(SMALL, block=block, epochs=1), 0), tmp_path / "m")
    result = run_explain(ExplainConfig(model=str(tmp_path / "m"), data=str(path), top=3), run)
    table = result.tables["classes"]
    if block == "fa":
        assert len(table.rows) == 3
        assert 0 < float(result.scalars["gate_entropy_bits"].value or 0) <= 1
        assert all(len(str(row[-1]).split(", ")) == 5 for row in table.rows)
    else:
        assert [row[0] for row in table.rows] == ["different", "same"]
        for row in table.rows:
            assert sum(map(float, row[1:4])) == pytest.approx(1, abs=1e-5)  # type: ignore[arg-type]
            assert sum(map(float, row[4:])) == pytest.approx(1)  # type: ignore[arg-type]


def test_a_matcher_without_gates_has_none_to_report(pairs: Pairs, run: Run, tmp_path: Path) -> None:
    save(fit(pairs, pairs, replace(SMALL, epochs=1), 0), tmp_path / "m")
    with pytest.raises(UserError, match="has no gates to report"):
        class_report(load(tmp_path / "m"), pairs.items[:4])
    with pytest.raises(UserError, match="nothing to explain"):
        run_explain(ExplainConfig(model=str(tmp_path / "m"), first="a"), run)


def test_the_gradients_of_the_branches_are_followed(pairs: Pairs) -> None:
    flow = BranchGradients()
    fit(pairs, pairs, replace(SMALL, block="reference", epochs=2), 0, after_backward=flow)
    means = flow.means()
    assert len(means) == 2
    assert all(len(row) == 4 and min(row) >= 0 for row in means)
    assert all(value > 0 for value in means[0][:3])
