"""Oracles of the room's mathematics: closed forms, moments, signal propagation, half precision, fact sheets."""

import math
from itertools import pairwise

import numpy
import pytest
import scipy.integrate
import scipy.special
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyloom.core.errors import UserError
from polyloom.methods.silu.method import (
    depth_scale,
    edge_of_chaos,
    gauss_hermite,
    gaussian_moments,
    half_patterns,
    half_precision_error,
    init_gain,
    lambert_w,
    mean_field,
    normal_quadrature,
    silu_derivative,
    silu_lipschitz,
    silu_minimum,
    silu_second_derivative,
    swish_beta_derivative,
    variance_map,
)
from polyloom.methods.silu.sheet import facts, find_jumps, find_zeros, limit, search_grid
from polyloom.models.activations import ACTIVATIONS, silu, swish

X_MINIMUM, F_MINIMUM = -1.2784645427610738, -0.2784645427610738
X_STEEPEST, LIPSCHITZ = 2.3993572805154677, 1.0998393201288669


def naive(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@given(st.floats(0, 1e6))
def test_lambert_w_equals_scipy(z: float) -> None:
    assert lambert_w(z) == pytest.approx(scipy.special.lambertw(z).real, rel=1e-14, abs=1e-300)


def test_lambert_w_refuses_negatives() -> None:
    with pytest.raises(UserError, match="z >= 0"):
        lambert_w(-0.1)


def test_silu_minimum_is_lamberts() -> None:
    x, value = silu_minimum()
    assert x == pytest.approx(X_MINIMUM, abs=1e-15)
    assert value == pytest.approx(F_MINIMUM, abs=1e-15)
    assert value == pytest.approx(1 + x, abs=1e-15)
    assert value == pytest.approx(-scipy.special.lambertw(math.exp(-1)).real, abs=1e-15)
    assert silu_derivative(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-15)


@given(st.floats(0.01, 100))
def test_swish_minimum_scales_with_beta(beta: float) -> None:
    x, value = silu_minimum(beta)
    assert swish(torch.tensor(x, dtype=torch.float64), beta).item() == pytest.approx(value, rel=1e-14)
    assert value == pytest.approx(F_MINIMUM / beta, rel=1e-14)


def test_line_has_no_minimum() -> None:
    with pytest.raises(UserError, match="beta > 0"):
        silu_minimum(0.0)


def test_lipschitz_constant_is_the_largest_slope() -> None:
    x, slope = silu_lipschitz()
    assert x == pytest.approx(X_STEEPEST, abs=1e-15)
    assert slope == pytest.approx(LIPSCHITZ, abs=5e-16)
    assert silu_second_derivative(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-15)
    assert silu_derivative(torch.tensor(-x, dtype=torch.float64)).item() == pytest.approx(1 - LIPSCHITZ, abs=1e-15)


def test_difference_quotients_reach_the_lipschitz_constant_and_no_further() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.empty(10**6, dtype=torch.float64).uniform_(-10, 10, generator=generator)
    b = a + torch.empty(10**6, dtype=torch.float64).exponential_(2.0, generator=generator) + 1e-3
    quotient = ((silu(b) - silu(a)) / (b - a)).abs()
    assert quotient.max() <= 1.09983933
    assert quotient.max() > 1.0998


@given(st.floats(-30, 30))
def test_derivatives_equal_autograd(x: float) -> None:
    point = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(F.silu(point).sum(), point, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), point)
    torch.testing.assert_close(silu_derivative(point.detach()), first.detach(), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(silu_second_derivative(point.detach()), second, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("x", "slope"),
    [(-20, -3.916191866064679e-08), (-10, -0.0004085602086570824), (-2, -0.09078424878489547), (0, 0.5),
     (1, 0.9276705118714869), (5, 1.026547432429666), (20, 1.00000003916192)],
)  # fmt: skip
def test_derivative_has_the_printed_values(x: float, slope: float) -> None:
    assert silu_derivative(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(slope, rel=1e-15)


def test_second_derivative_has_the_printed_extrema() -> None:
    x = torch.linspace(-12, 12, 2_400_001, dtype=torch.float64)
    second = silu_second_derivative(x)
    assert second.max().item() == 0.5
    assert x[second.argmax()].item() == pytest.approx(0, abs=1e-9)
    assert second.min().item() == pytest.approx(-0.0369143732, abs=1e-10)
    assert x[second.argmin()].abs().item() == pytest.approx(3.43584, abs=1e-5)


@given(st.floats(-8, 8), st.floats(-3, 3))
def test_beta_derivative_equals_autograd(x: float, beta: float) -> None:
    point, slope = torch.tensor([x], dtype=torch.float64), torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad((point * torch.sigmoid(slope * point)).sum(), slope)
    assert swish_beta_derivative(point, beta).sum().item() == pytest.approx(wanted.item(), rel=1e-11, abs=1e-14)


def test_beta_derivative_has_the_printed_value() -> None:
    x = torch.arange(-3, 4, dtype=torch.float64)
    assert swish_beta_derivative(x, 1.7).sum().item() == pytest.approx(0.6196466805537115, rel=1e-14)


@pytest.mark.parametrize("name", ["silu", "relu", "relu2", "gelu", "tanh", "hard_swish", "elu"])
def test_moments_equal_adaptive_integration(name: str) -> None:
    f = ACTIVATIONS[name]
    moments = gaussian_moments(f, breaks=facts(f).breaks)

    def weighed(x: float, power: int) -> float:
        value: float = f(torch.tensor(x, dtype=torch.float64)).item()
        return value**power * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    for power, found in ((1, moments.mean), (2, moments.second)):
        ends = [-13, -3, 0, 3, 13]
        wanted = sum(scipy.integrate.quad(weighed, a, b, args=(power,), epsabs=1e-13)[0] for a, b in pairwise(ends))
        assert found == pytest.approx(wanted, abs=1e-11)


@pytest.mark.parametrize(
    ("name", "mean", "second"),
    [("silu", 0.2066210, 0.3557755), ("relu", 0.3989423, 0.5), ("gelu", 0.2820948, 0.4252215), ("tanh", 0, 0.3942945)],
)
def test_moments_have_the_printed_values(name: str, mean: float, second: float) -> None:
    sheet = facts(name)
    assert sheet.moments.mean == pytest.approx(mean, abs=6e-8)
    assert sheet.moments.second == pytest.approx(second, abs=6e-8)


def test_gauss_hermite_converges_for_silu() -> None:
    wanted = gaussian_moments(F.silu, breaks=[0.1]).second
    for num_nodes in (80, 100, 128, 180):
        z, weights = gauss_hermite(num_nodes)
        assert (weights @ F.silu(z).square()).item() == pytest.approx(wanted, abs=1e-9)
    with pytest.raises(UserError, match="1 to 180"):
        gauss_hermite(181)


@given(st.integers(0, 12), st.lists(st.floats(-4, 4), max_size=3))
def test_quadratures_are_exact_for_polynomials(degree: int, breaks: list[float]) -> None:
    z, weights = normal_quadrature(breaks)
    wanted = 0.0 if degree % 2 else float(numpy.prod(numpy.arange(degree - 1, 0, -2, dtype=float)))
    assert (weights @ z**degree).item() == pytest.approx(wanted, rel=1e-11, abs=1e-10)


def test_init_gain_of_silu_is_an_unstable_fixed_point() -> None:
    gain = init_gain(F.silu)
    assert gain == pytest.approx(1.6765325, abs=6e-8)
    assert variance_map(F.silu, 1.0, gain) == pytest.approx(1)
    end = mean_field(F.silu, gain)
    assert end.q == pytest.approx(1)
    assert end.slope is not None
    assert end.slope > 1.1


def test_he_gain_loses_silus_signal_and_keeps_relus() -> None:
    he = math.sqrt(2)
    assert mean_field(F.silu, he).q == 0
    assert mean_field(F.silu, he).chi == pytest.approx(0.5)
    assert mean_field(F.silu, he).slope == pytest.approx(0.5, abs=1e-6)
    relu = mean_field(F.relu, he, breaks=[0.0])
    assert relu.q == pytest.approx(1)
    assert relu.chi == pytest.approx(1)
    assert mean_field(ACTIVATIONS["relu2"], he, breaks=[0.0]).q is None


def test_variance_map_predicts_a_wide_random_network() -> None:
    generator = torch.Generator().manual_seed(0)
    width, gain, q = 2048, 1.8, 1.0
    x = torch.randn(width, 64, generator=generator, dtype=torch.float64)
    for _ in range(4):
        weight = torch.randn(width, width, generator=generator, dtype=torch.float64) * gain / width**0.5
        x = weight @ F.silu(x)
        q = variance_map(F.silu, q, gain)
        assert x.square().mean().item() == pytest.approx(q, rel=0.1)


def test_critical_point_of_tanh_lies_on_the_known_line() -> None:
    for q in (0.1, 0.5, 1.0, 2.0):
        point = edge_of_chaos(torch.tanh, q)
        assert point is not None
        end = mean_field(torch.tanh, *point)
        assert end.q == pytest.approx(q, rel=1e-6)
        assert end.chi == pytest.approx(1, abs=1e-6)
    near_zero = edge_of_chaos(torch.tanh, 1e-8)
    assert near_zero is not None
    assert near_zero[0] == pytest.approx(1, abs=1e-6)


def test_depth_scale() -> None:
    assert depth_scale(math.exp(-1 / 7)) == pytest.approx(7)
    assert depth_scale(0.0) == 0
    assert depth_scale(1.0) is None
    assert depth_scale(1.5) is None


def test_half_patterns_are_all_there() -> None:
    for dtype, num_nan in ((torch.bfloat16, 2 * 127), (torch.float16, 2 * 1023)):
        x = half_patterns(dtype)
        assert x.view(torch.int16).unique().numel() == 65_536
        assert int(x.isnan().sum()) == num_nan
        assert int(x.isinf().sum()) == 2
    with pytest.raises(UserError, match="bfloat16 or float16"):
        half_patterns(torch.float32)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_fused_silu_rounds_correctly_and_the_written_out_one_does_not(dtype: torch.dtype, unit: float) -> None:
    fused, written_out = half_precision_error(F.silu, dtype), half_precision_error(naive, dtype)
    assert fused.max_relative_error <= unit
    assert fused.correctly_rounded_share > 0.999
    assert fused.num_nan == 0
    assert written_out.max_relative_error > 1.5 * unit
    assert written_out.correctly_rounded_share < fused.correctly_rounded_share


def test_half_sweep_finds_planted_errors() -> None:
    def wrong(x: Tensor) -> Tensor:
        y = torch.where(x == 3.0, 1.25 * x, x) if x.dtype == torch.bfloat16 else x
        return torch.where(x == 5.0, torch.full_like(x, math.nan), y) if x.dtype == torch.bfloat16 else y

    error = half_precision_error(wrong, torch.bfloat16)
    assert error.max_relative_error == 0.25
    assert error.worst_x == 3.0
    assert error.num_nan == 1
    flushing = half_precision_error(lambda x: torch.where(x.abs() < 1e-30, 0 * x, x), torch.bfloat16)
    assert flushing.num_flushed == 0  # the float64 reference flushes too: an error is against the function itself
    exact = half_precision_error(lambda x: x, torch.float16)
    assert (exact.max_relative_error, exact.correctly_rounded_share) == (0, 1)


def test_fact_sheet_of_silu() -> None:
    sheet = facts("silu")
    assert sheet.minimum.value == pytest.approx(F_MINIMUM, abs=1e-15)
    assert sheet.minimum.location == pytest.approx(X_MINIMUM, abs=1e-15)
    assert sheet.maximum.value is None
    assert sheet.lipschitz_constant == pytest.approx(LIPSCHITZ, abs=1e-15)
    assert sheet.derivative_maximum.location == pytest.approx(X_STEEPEST, abs=1e-12)
    assert sheet.derivative_minimum.value == pytest.approx(1 - LIPSCHITZ, abs=1e-15)
    assert sheet.derivative_lipschitz_constant == pytest.approx(0.5, abs=1e-15)
    assert (sheet.limit_left, sheet.limit_right, sheet.zeros) == (0.0, None, (0.0,))
    assert (sheet.jumps, sheet.kinks, sheet.is_monotone) == ((), (), False)
    assert (sheet.saved_tensors, sheet.nan_at_minus_infinity, sheet.nan_from) == (1.0, True, None)


def test_fact_sheet_of_a_users_silu_has_the_same_constants() -> None:
    fused, own = facts("silu"), facts(naive)
    assert own.minimum.value == pytest.approx(fused.minimum.value, abs=1e-12)
    assert own.minimum.location == pytest.approx(fused.minimum.location, abs=1e-12)
    assert own.lipschitz_constant == pytest.approx(fused.lipschitz_constant, abs=1e-12)
    assert own.saved_tensors == 2


@given(st.floats(0.2, 5), st.floats(-3, 3), st.floats(-2, 2))
@settings(max_examples=12)
def test_fact_sheet_finds_a_moved_and_scaled_minimum(scale: float, shift: float, height: float) -> None:
    sheet = facts(lambda x: F.silu(scale * (x - shift)) + height)
    assert sheet.minimum.value == pytest.approx(F_MINIMUM + height, abs=1e-12)
    assert sheet.minimum.location == pytest.approx(X_MINIMUM / scale + shift, abs=1e-12)
    assert sheet.lipschitz_constant == pytest.approx(LIPSCHITZ * scale, rel=1e-12)
    assert sheet.derivative_lipschitz_constant == pytest.approx(scale**2 / 2, rel=1e-12)


# name: minimum, where, maximum, Lipschitz constant, that of f', kinks, monotone. By hand, or by the functions' papers.
KNOWN = {
    "identity": (None, None, None, 1, 0, (), True),
    "relu": (0, 0, None, 1, None, (0.0,), True),
    "relu2": (0, 0, None, None, 2, (), True),
    "leaky_relu": (None, None, None, 1, None, (0.0,), True),
    "hard_swish": (-0.375, -1.5, None, 1.5, None, (-3.0, 3.0), False),
    "tanh": (-1, None, 1, 1, 4 / (3 * math.sqrt(3)), (), True),
    "sigmoid": (0, None, 1, 0.25, 1 / (6 * math.sqrt(3)), (), True),
    "softplus": (0, None, None, 1, 0.25, (), True),
    "elu": (-1, None, None, 1, 1, (), True),
    "gelu": (-0.16997120747990, -0.75179152469356, None, 1.128904145185155, math.sqrt(2 / math.pi), (), False),
    "dsilu": (1 - LIPSCHITZ, -X_STEEPEST, LIPSCHITZ, 0.5, 0.3081815157964791, (), False),
}


@pytest.mark.parametrize("name", KNOWN)
def test_fact_sheets_have_the_known_constants(name: str) -> None:
    minimum, where, maximum, lipschitz, derivative_lipschitz, kinks, monotone = KNOWN[name]
    sheet = facts(name)
    pairs = (
        (sheet.minimum.value, minimum),
        (sheet.minimum.location, where),
        (sheet.maximum.value, maximum),
        (sheet.lipschitz_constant, lipschitz),
        (sheet.derivative_lipschitz_constant, derivative_lipschitz),
    )
    for found, wanted in pairs:
        assert (found is None) == (wanted is None)
        assert wanted is None or found == pytest.approx(wanted, abs=1e-12)
    assert sheet.kinks == kinks
    assert sheet.is_monotone == monotone


def test_jumps_kinks_zeros_and_limits_of_users_functions() -> None:
    grid = search_grid()
    assert find_jumps(lambda x: x + (x > 1.2345).double(), grid) == pytest.approx((1.2345,), abs=1e-10)
    assert find_jumps(lambda x: 1e3 * torch.tanh(1e3 * x), grid) == ()
    assert find_zeros(lambda x: (x - 1) * (x + 2) * (x - 3.3), grid) == pytest.approx((-2, 1, 3.3), abs=1e-14)
    assert find_zeros(F.relu, grid) == ()
    assert limit(lambda x: x / (1 + x.abs()), 1) == 1
    assert limit(lambda x: torch.log1p(x.abs()), 1) is None
    hard_shrink = facts(F.hardshrink)
    assert hard_shrink.jumps == pytest.approx((-0.5, 0.5), abs=1e-10)
    assert hard_shrink.lipschitz_constant is None


def test_function_without_second_derivative_still_gets_a_sheet() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x)
            return F.silu(x)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            (x,) = ctx.saved_tensors
            return grad * silu_derivative(x)

    sheet = facts(lambda x: Once.apply(x))
    assert sheet.minimum.location == pytest.approx(X_MINIMUM, abs=1e-12)
    assert sheet.lipschitz_constant == pytest.approx(LIPSCHITZ, abs=1e-12)
    assert sheet.derivative_lipschitz_constant == pytest.approx(0.5, abs=1e-6)
