"""The law of mixtures: exact data, noise, tables, and proxies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from polyloom.core.errors import UserError
from polyloom.methods.pretrain.mixing import mixtures, read_table
from polyloom.methods.pretrain.mixture_laws import MixtureLaw, best_shares, fit_law, propose

TRUE = MixtureLaw(np.array([1.5, 2.0, 1.0]), np.array([[-2.0, 0.1, 0.2], [0.3, -1.0, 0.2], [0.1, 0.0, -3.0]]))
SHARES = mixtures(np.ones(3) / 3, 14, seed=1)


def test_an_exact_law_is_recovered() -> None:
    law = fit_law(SHARES, TRUE.losses(SHARES))
    np.testing.assert_allclose(law.losses(SHARES), TRUE.losses(SHARES), atol=2e-5)
    new = mixtures(np.ones(3) / 3, 30, seed=9)
    np.testing.assert_allclose(law.losses(new), TRUE.losses(new), atol=5e-5)
    np.testing.assert_allclose(law.c, TRUE.c, atol=0.05)


def test_the_best_shares_are_those_of_a_fine_grid() -> None:
    v = np.array([0.2, 0.3, 0.5])
    low, high = np.array([0.1, 0.0, 0.05]), np.array([0.6, 0.5, 0.9])
    found = best_shares(TRUE, v, low, high)
    grid = np.array([[a, b, 1 - a - b] for a in np.linspace(0, 1, 201) for b in np.linspace(0, 1, 201)])
    inside = grid[(grid >= low - 1e-9).all(axis=1) & (grid <= high + 1e-9).all(axis=1)]
    best = inside[(TRUE.losses(inside) @ v).argmin()]
    assert found.sum() == pytest.approx(1)
    assert float(v @ TRUE.losses(found)) <= float(v @ TRUE.losses(best)) + 1e-6
    np.testing.assert_allclose(found, best, atol=0.01)


def test_a_clear_gain_is_proposed_and_noise_is_not_resolved() -> None:
    noise = np.random.default_rng(0).normal(0, 1, (14, 3))
    clear = propose(SHARES, TRUE.losses(SHARES) + 1e-3 * noise, SHARES[1])
    true = float((TRUE.losses(SHARES[1]) - TRUE.losses(clear.shares)).mean())
    assert not clear.doubts
    assert clear.low <= true <= clear.high
    assert clear.gain == pytest.approx(true, abs=5e-3)
    assert clear.left_out_error < 0.2
    flat = propose(SHARES, 2.0 + 0.02 * noise, SHARES[0])
    assert flat.doubts


def test_too_few_mixtures_and_bad_losses_are_refused() -> None:
    with pytest.raises(UserError, match=r"4 different mixtures are too few for 3 shares. Train at least 5"):
        fit_law(SHARES[:4], TRUE.losses(SHARES[:4]))
    with pytest.raises(UserError, match="no finite number above 0"):
        fit_law(SHARES, np.where(SHARES > 0.5, np.nan, 1.0))


def write(path: Path, weights: np.ndarray[Any, Any], losses: np.ndarray[Any, Any], names: str = "abc") -> Path:
    head = [f"weight:{name}" for name in names] + [f"loss:{name}" for name in names]
    rows = [",".join(str(float(v)) for v in [*w, *loss]) for w, loss in zip(weights, losses, strict=True)]
    path.write_text("\n".join([",".join(head), *rows]) + "\n")
    return path


def test_a_table_of_runs_gives_shares_that_train_can_read(cli: Any, tmp_path: Path) -> None:
    table = write(tmp_path / "runs.csv", 7 * SHARES, TRUE.losses(SHARES))
    np.testing.assert_allclose(read_table(table).shares, SHARES)
    done = cli("pretrain", "mixture", "--table", table, "--run", "m", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["scalars"]["resolved"]["value"] is True
    assert result["scalars"]["predicted_gain"]["value"] > 0
    written = yaml.safe_load((tmp_path / "runs" / "m" / "artifacts" / "mixture.yaml").read_text())["mixture"]
    assert sum(written.values()) == pytest.approx(1, abs=1e-5)
    assert "measured_gain" not in result["scalars"]
    recipe = tmp_path / "importance.yaml"
    recipe.write_text("importance: {d: 1.0}\n")
    bad = cli("pretrain", "mixture", "--table", table, "--config", recipe)
    assert bad.exit_code == 2
    assert "importance: it names 'd', of which there is no loss" in bad.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "has the columns a, b"),
        ("weight:a,weight:b,loss:a\n1,x,2\n", "runs.csv:2: holds no number"),
        ("weight:a,weight:b,loss:a\n0,0,2\n", "runs.csv:2: its weights are not above 0"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(UserError) as caught:
        read_table(tmp_path / "runs.csv")
    assert message in str(caught.value)


def test_proxies_are_trained_and_new_seeds_have_the_last_word(cli: Any) -> None:
    words = ["--languages", "en", "ja", "--num-mixtures", "4", "--width", "32", "--steps", "8", "--num-seeds", "2"]
    done = cli("pretrain", "mixture", *words, "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["scalars"]["measured_gain"]["low"] is not None
    resolved = result["scalars"]["resolved"]["value"]
    assert ("not resolved" in result["verdicts"][0]) is not resolved
    assert ("mixture" in result["artifacts"]) is resolved
    assert cli("pretrain", "mixture", "--languages", "en", "ja", "de", "--num-mixtures", "4").exit_code == 2
