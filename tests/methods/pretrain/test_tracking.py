"""The law over size and steps, and a run that is held against it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyloom.core.errors import UserError
from polyloom.methods.pretrain import proxies
from polyloom.methods.pretrain.joint_laws import fit_joint, predict_curve
from polyloom.methods.pretrain.predicting_steps import read_points
from polyloom.methods.pretrain.tracking import Track

SIZES, STEPS = np.array([1.0, 2.0, 4.0, 8.0, 16.0]) * 1e6, np.array([100.0, 200.0, 400.0, 800.0, 1600.0])
GRID = np.stack(np.meshgrid(SIZES, STEPS, indexing="ij"), axis=-1).reshape(-1, 2)


def exact(size: Any, steps: Any) -> Any:
    return 30 * size**-0.3 + 6 * steps**-0.4 + 1.7


LOSSES = exact(GRID[:, 0], GRID[:, 1])
RUNS = [str(size) for size in GRID[:, 0]]


def test_exact_data_give_their_law() -> None:
    law = fit_joint(GRID[:, 0], GRID[:, 1], LOSSES)
    assert (law.b, law.e, law.c) == pytest.approx((-0.3, -0.4, 1.7), abs=2e-3)
    far = np.array([5000.0])
    assert float(law.losses(64e6, far)[0]) == pytest.approx(float(exact(64e6, far)[0]), abs=1e-3)


def test_the_band_holds_the_truth_and_noise_without_a_law_is_not_resolved() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, len(LOSSES))
    at = np.geomspace(100, 3200, 10)
    law, curve = predict_curve(RUNS, GRID[:, 0], GRID[:, 1], LOSSES + noise, 32e6, at)
    assert not curve.doubts
    assert law.rmse == pytest.approx(0.01, rel=0.4)
    inside = (curve.low <= exact(32e6, at)) & (exact(32e6, at) <= curve.high)
    assert inside.mean() >= 0.8
    assert (curve.high - curve.low)[-1] < 0.2
    flat = 3 + 6 * GRID[:, 1] ** -0.4 + 10 * noise
    _, other = predict_curve(RUNS, GRID[:, 0], GRID[:, 1], flat, 32e6, at)
    assert other.doubts


@pytest.mark.parametrize(
    ("keep", "message"),
    [(GRID[:, 0] < 5e6, "3 sizes are too few"), (GRID[:, 1] < 500, "3 steps are too few")],
)
def test_too_few_sizes_or_steps_are_refused(keep: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_joint(GRID[keep, 0], GRID[keep, 1], LOSSES[keep])


def test_losses_that_rise_or_stay_are_refused() -> None:
    with pytest.raises(UserError, match="no size or no step lowers the loss"):
        fit_joint(GRID[:, 0], GRID[:, 1], 10 - LOSSES)
    with pytest.raises(UserError, match="all equal"):
        fit_joint(GRID[:, 0], GRID[:, 1], np.full(len(GRID), 2.0))


def written(path: Path, **values: Any) -> Path:
    steps = [10, 100, 1000]
    base = {"parameters": 1000, "steps": steps, "loss": [5.0, 4.0, 3.0], "low": [4.9, 3.9, 2.9]}
    path.write_text(json.dumps({**base, "high": [5.1, 4.1, 3.1], "resolved": True, **values}))
    return path


def test_a_run_leaves_the_track_and_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    track = Track(written(tmp_path / "p.json"), 1001)
    assert track.judge(5, 9.0) == {}
    steps = np.geomspace(60, 900, 60).astype(int)
    expected = 5 - (np.log10(steps) - 1)
    flags = []
    with caplog.at_level(logging.WARNING):
        for index, (step, loss) in enumerate(zip(steps.tolist(), expected.tolist(), strict=True)):
            found = track.judge(step, loss + 0.03 * (-1) ** index + (0.5 if 20 <= index < 40 else 0.0))
            assert found["expected_loss"] == pytest.approx(loss, abs=1e-6)
            flags.append(found.get("on_track"))
    assert flags[:2] == [None, None]
    assert all(flags[2:20])
    assert not any(flags[28:40])
    assert all(flags[48:])
    words = [record.getMessage() for record in caplog.records]
    assert ["off track" in words[0], "on track again" in words[1]] == [True, True]
    assert len(words) == 2


def test_a_better_run_is_on_track_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    path = written(tmp_path / "p.json")
    better = Track(path, 1000)
    assert [better.judge(step, 2.0).get("on_track") for step in (20, 30, 40)] == [None, None, True]
    lines = [{"step": step, "loss": 9.0} for step in (20, 30, 40)]
    assert Track(path, 1000, lines).judge(50, 9.0)["on_track"] is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parameters": 2000}, "predicts 2000 parameters, the model has 1000. Predict with --target 1000"),
        ({"resolved": False}, "says itself that it is not resolved"),
    ],
)
def test_a_prediction_that_says_nothing_of_the_run_is_refused(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        Track(written(tmp_path / "p.json", **values), 1000)
    assert message in str(caught.value)
    (tmp_path / "q.json").write_text("{}")
    with pytest.raises(UserError, match="is no prediction over steps"):
        Track(tmp_path / "q.json", 1000)


def test_a_table_becomes_a_prediction_and_training_is_held_against_it(cli: Any, tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    words = ["--preset", "tiny-2x64", "--vocab-size", "300", "--window-tokens", "32", "--batch-size", "8"]
    words += ["--languages", "en", "--steps", "12", "--log-every", "2"]
    rows = [f"{s / 8},{t / 40},{loss}" for (s, t), loss in zip(GRID.tolist(), LOSSES.tolist(), strict=True)]
    table.write_text("parameters,step,loss\n" + "\n".join(rows) + "\n")
    assert len(read_points(table).runs) == 25
    num_parameters = 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64 + 2 * 384 * 64
    more = ["--table", table, "--target", num_parameters, "--target-steps", "40", "--run", "p", "--json"]
    done = cli("pretrain", "predict", *more)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["scalars"]["resolved"]["value"] is True
    trained = cli("pretrain", "train", *words, "--prediction", tmp_path / "runs" / "p", "--run", "t", "--json")
    assert trained.exit_code == 0, trained.stderr
    result = json.loads(trained.stdout)
    assert isinstance(result["scalars"]["on_track"]["value"], bool)
    assert result["series"]["expected_loss"]["x"] == [4.0, 6.0, 8.0, 10.0, 12.0]
    assert "predicted track" in result["verdicts"][1]
    other = cli("pretrain", "train", *words, "--layers", "3", "--prediction", tmp_path / "runs" / "p")
    assert other.exit_code == 2
    assert "Predict with --target" in other.stderr
    missing = cli("pretrain", "predict", "--table", table)
    assert "Keep the rows of one step, or give --target-steps" in missing.stderr


def test_proxies_give_a_curve(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten steps give a law or none, as the rounding falls: it is made the same everywhere.
    monkeypatch.setattr(proxies, "choose_device", lambda: torch.device("cpu"))
    words = ["--widths", "32", "64", "96", "128", "--steps", "10", "--num-seeds", "1", "--languages", "en"]
    done = cli("pretrain", "predict", *words, "--target-steps", "40", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["scalars"]["target_steps"]["value"] == 40
    assert len(result["tables"]["runs"]["rows"]) == 4 * 9
