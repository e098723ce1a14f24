from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.methods.pretrain.laws import PUBLISHED, fit_power_law, predict
from polyloom.methods.pretrain.predicting import read_runs
from polyloom.methods.pretrain.searching import best_exponent

GPT2, NANOLM, STANDARD, *_ = PUBLISHED


def test_the_published_fit() -> None:
    law = fit_power_law(GPT2.sizes, GPT2.losses)
    assert (law.a, law.b, law.c) == pytest.approx((2.4692, -0.4230, 2.9232), abs=1e-3)
    assert [law.loss(size) for size in GPT2.target_sizes] == pytest.approx([3.1890, 3.0800, 3.0368], abs=1e-3)
    for size, actual in zip(GPT2.target_sizes, GPT2.target_losses, strict=True):
        assert abs(law.loss(size) / actual - 1) <= 0.003


def test_mup_scatters_less_around_its_law() -> None:
    assert fit_power_law(NANOLM.sizes, NANOLM.losses).loss(202.67) == pytest.approx(3.9793, abs=1e-3)
    assert fit_power_law(NANOLM.sizes, NANOLM.losses).rmse == pytest.approx(0.0083, abs=1e-4)
    assert fit_power_law(STANDARD.sizes, STANDARD.losses).rmse == pytest.approx(0.0312, abs=1e-4)


@given(st.floats(0.5, 5), st.floats(-1.5, -0.15), st.floats(0.5, 4))
def test_an_exact_law_is_found(a: float, b: float, c: float) -> None:
    sizes = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    law, found = predict(sizes, [a * x**b + c for x in sizes], 64.0)
    assert law.b == pytest.approx(b, abs=1e-4)
    assert found.loss == pytest.approx(a * 64**b + c, rel=1e-5)
    assert found.low <= found.loss <= found.high


def test_an_exact_law_to_six_digits() -> None:
    sizes = [1.0, 2.0, 4.0, 8.0, 16.0]
    law = fit_power_law(sizes, [2 * x**-0.5 + 1.7 for x in sizes])
    assert (law.a, law.b, law.c) == pytest.approx((2.0, -0.5, 1.7), abs=1e-6)


def test_noise_is_not_resolved() -> None:
    widths = [32, 64, 96, 128, 192, 256]
    sizes = [(2 * (4 * w * w + 3 * w * int(2.75 * w)) + 512 * w) / 1e6 for w in widths]
    _, found = predict(sizes, [2.3116, 2.1735, 2.1603, 2.2372, 2.0645, 2.0803], 5.0)
    assert found.doubts
    assert "at its bound" in found.doubts[0]


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(UserError, match="3 sizes are too few"):
        fit_power_law([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])
    with pytest.raises(UserError, match="all equal"):
        fit_power_law([1.0, 2.0, 3.0, 4.0], [2.0] * 4)
    with pytest.raises(UserError, match="no finite number"):
        fit_power_law([1.0, 2.0, 3.0, 4.0], [2.0, 1.0, float("nan"), 0.5])


def test_a_users_table(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("parameters,loss,seed,step\n1e6,3.0,0,100\n1e6,3.2,1,100\n2e6,2.9,0,100\n")
    assert read_runs(path) == {1e6: [3.0, 3.2], 2e6: [2.9]}
    path.write_text("parameters,loss,step\n1e6,3.0,100\n2e6,2.9,200\n")
    with pytest.raises(UserError, match="mixes losses of steps 100, 200"):
        read_runs(path)
    path.write_text("width,loss\n1,2\n")
    with pytest.raises(UserError, match="has the columns width, loss"):
        read_runs(path)
    path.write_text("parameters,loss\n1e6,high\n")
    with pytest.raises(UserError, match=r"runs\.csv:2: holds no number"):
        read_runs(path)


def test_the_best_exponent() -> None:
    exponents = [-8, -7, -6, -5, -4]
    losses = [(e + 6.25) ** 2 + 2 for e in exponents]
    assert best_exponent(exponents, losses)[:2] == (pytest.approx(-6.25), False)
    assert best_exponent(exponents, [1.0, 2.0, 3.0, 4.0, None])[:2] == (-8.0, True)
    assert best_exponent(exponents, [5.0, 4.0, 3.0, None, None])[0] == -6.0
