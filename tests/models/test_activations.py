"""Oracles of the activations: printed values, identities, equality with torch over all half patterns, refusals."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.models.activations import (
    ACTIVATIONS,
    ALIASES,
    Pointwise,
    Swish,
    check_activation,
    dsilu,
    hard_swish,
    probe_points,
    quick_gelu,
    relu2,
    resolve_activation,
    silu,
    swish,
)

# x, x sigmoid(x), its derivative, to 16 digits.
TABLE = [
    (-20, -4.122307236380407e-08, -3.916191866064679e-08),
    (-10, -0.0004539786870243439, -0.0004085602086570824),
    (-5, -0.03346425462142428, -0.02654743242966592),
    (-2, -0.2384058440442351, -0.09078424878489547),
    (-1, -0.2689414213699951, 0.07232948812851325),
    (-0.5, -0.1887703343990727, 0.2600388126973482),
    (0.5, 0.3112296656009273, 0.7399611873026519),
    (1, 0.7310585786300049, 0.9276705118714869),
    (2, 1.761594155955765, 1.090784248784896),
    (5, 4.966535745378576, 1.026547432429666),
    (10, 9.999546021312975, 1.000408560208657),
    (20, 19.99999995877693, 1.00000003916192),
]
HALVES = [torch.bfloat16, torch.float16]


def all_patterns(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())


@pytest.mark.parametrize(("x", "value", "slope"), TABLE)
def test_silu_and_dsilu_have_the_printed_values(x: float, value: float, slope: float) -> None:
    point = torch.tensor(x, dtype=torch.float64)
    assert silu(point).item() == pytest.approx(value, rel=1e-15)
    assert dsilu(point).item() == pytest.approx(slope, rel=1e-14)


@given(st.floats(-30, 30))
def test_silu_identities(x: float) -> None:
    point = torch.tensor([x, -x], dtype=torch.float64)
    f, mirrored = silu(point).tolist()
    slope, mirrored_slope = dsilu(point).tolist()
    # 4e-15, or two units in the last place where these are more.
    assert f - mirrored == pytest.approx(x, rel=4.5e-16, abs=4e-15)
    assert f + mirrored == pytest.approx(x * math.tanh(x / 2), rel=4.5e-16, abs=4e-15)
    assert slope + mirrored_slope == pytest.approx(1, abs=4e-15)
    assert f == pytest.approx(x / 2 * (1 + math.tanh(x / 2)), rel=4.5e-16, abs=4e-15)


@pytest.mark.parametrize("dtype", HALVES)
def test_silu_equals_torch_on_every_half_pattern(dtype: torch.dtype) -> None:
    x = all_patterns(dtype)
    assert same(silu(x), F.silu(x))
    assert silu(x)[x.isnan()].isnan().all()


@pytest.mark.parametrize("dtype", HALVES)
def test_safe_silu_changes_the_limits_and_nothing_else(dtype: torch.dtype) -> None:
    x = all_patterns(dtype)
    finite = torch.isfinite(x) | x.isnan()
    assert same(silu(x, safe=True)[finite], F.silu(x)[finite])
    limits = silu(torch.tensor([-math.inf, math.inf, math.nan], dtype=dtype), safe=True)
    assert limits[0] == 0
    assert limits[1] == math.inf
    assert limits[2].isnan()


def test_safe_silu_gradient_is_torchs_inside_and_defined_at_the_limits() -> None:
    x = torch.tensor([-math.inf, -50.0, -1.0, 0.0, 3.0, 60.0, math.inf], requires_grad=True)
    (gradient,) = torch.autograd.grad(silu(x, safe=True).sum(), x)
    (plain,) = torch.autograd.grad(F.silu(x).sum(), x)
    assert gradient[0] == 0
    assert gradient[-1] == 1
    assert torch.equal(gradient[1:-1], plain[1:-1])


def test_small_negatives_are_not_flushed_in_bfloat16() -> None:
    x = -torch.logspace(-30, 0, 200, dtype=torch.float64).to(torch.bfloat16)
    assert (silu(x) < 0).all()


def test_large_float16_does_not_overflow() -> None:
    assert silu(torch.tensor(6e4, dtype=torch.float16)) == torch.tensor(6e4, dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_hard_swish_equals_torch(dtype: torch.dtype) -> None:
    x = all_patterns(dtype) if dtype in HALVES else torch.linspace(-9, 9, 100_001)
    assert same(hard_swish(x), F.hardswish(x))


def test_hard_swish_is_exact_outside_its_bend() -> None:
    x = torch.tensor([-100.0, -3.0, 3.0, 100.0, -1.5])
    assert hard_swish(x).tolist() == [0.0, 0.0, 3.0, 100.0, -0.375]


@pytest.mark.parametrize(
    ("name", "other", "distance"),
    [
        ("silu", "hard_swish", 0.1422776),
        ("silu", "relu", 0.2784645),
        ("silu", "gelu", 0.1930020),
        ("quick_gelu", "gelu", 0.0203349),
    ],
)
def test_largest_distances_between_activations(name: str, other: str, distance: float) -> None:
    x = torch.linspace(-12, 12, 1_200_001, dtype=torch.float64)
    difference = (ACTIVATIONS[name](x) - ACTIVATIONS[other](x)).abs().max().item()
    assert difference == pytest.approx(distance, abs=6e-8)


def test_swish_between_a_line_and_relu() -> None:
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    assert torch.equal(swish(x, 1.0), F.silu(x))
    assert torch.equal(swish(x, 0.0), x / 2)
    assert (swish(x, 1e4) - F.relu(x)).abs().max() < 3e-5
    torch.testing.assert_close(swish(x, 2.5), F.silu(2.5 * x) / 2.5)


def test_swish_learns_beta() -> None:
    module = Swish(beta=1.7).double()
    x = torch.arange(-3, 4, dtype=torch.float64)
    module(x).sum().backward()
    assert module.beta.grad.item() == pytest.approx(0.6196466805537115, abs=1e-6)
    channels = Swish(num_channels=7)
    assert channels(torch.randn(2, 3, 7)).shape == (2, 3, 7)
    assert channels.beta.ndim == 1  # not a matrix: left out of weight decay


def test_swish_beta_gradient_value() -> None:
    beta = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(swish(torch.arange(-3, 4, dtype=torch.float64), beta).sum(), beta)
    assert gradient.item() == pytest.approx(0.6196466805537115, rel=1e-14)


def test_quick_gelu_and_relu2_by_definition() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(quick_gelu(x), x / (1 + torch.exp(-1.702 * x)))
    assert relu2(x).tolist() == [0.0, 0.0, 9.0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_registry_functions_pass_their_own_check_and_gradcheck(name: str) -> None:
    function = ACTIVATIONS[name]
    check_activation(function, name)
    # Away from the kinks of ReLU and hard-swish, where no derivative exists to compare with.
    x = torch.tensor([-4.0, -2.5, -1.1, -0.3, 0.4, 1.2, 2.2, 3.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_integer_tensors_are_refused_with_a_hint(name: str) -> None:
    with pytest.raises(UserError, match=r"not implemented for 'int64'.*x\.float\(\)"):
        ACTIVATIONS[name](torch.arange(3))


def test_gradcheck_of_safe_silu() -> None:
    x = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: silu(x, safe=True), (x,))
    assert torch.autograd.gradgradcheck(lambda x: silu(x, safe=True), (x,))


def test_resolve_by_name_and_alias() -> None:
    assert resolve_activation("silu") is ACTIVATIONS["silu"]
    for alias, name in ALIASES.items():
        assert resolve_activation(alias) is ACTIVATIONS[name]
    assert torch.equal(Pointwise("silu")(torch.ones(2)), F.silu(torch.ones(2)))


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'silu'"):
        resolve_activation("sillu")


USER_MODULE = """
import torch
def good(x): return x * torch.sigmoid(x)
def mixes(x): return torch.softmax(x, -1)
def log(x): return torch.log(x)
def overflows(x): return x * torch.exp(x) / (1 + torch.exp(x))
def other_dtype(x): return x.double() if x.dtype == torch.float32 else x.float()
def step(x): return torch.sign(x)
def detached(x): return x.detach() * 1
def shorter(x): return x[1:]
def no_tensor(x): return 3.0
def random(x): return x * torch.rand_like(x)
def broken(x): return x @ x.T @ x @ x
number = 3
"""
REFUSALS = {
    "mixes": "is not elementwise",
    "log": "gives NaN at x = -10000 in float64",
    "overflows": "gives NaN at x = 7",
    "other_dtype": "returns torch.float32 for input of torch.float64",
    "step": "gradient is 0 everywhere",
    "detached": "carries no gradient",
    "shorter": r"returns shape \[2000\] for input of shape \[2001\]",
    "no_tensor": "returns float, not a tensor",
    "random": "another value when called again",
    "broken": "fails on a float64 tensor",
    "number": "is a int, not a function",
    "goood": "Did you mean 'good'",
}


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_activations.py").write_text(USER_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_activations", raising=False)
    return tmp_path


@pytest.mark.parametrize("module", ["own_activations", "own_activations.py"])
def test_users_function_is_found_in_the_current_folder(user_folder: Path, module: str) -> None:
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(resolve_activation(f"{module}:good")(x), F.silu(x))


@pytest.mark.parametrize(("function", "message"), REFUSALS.items())
def test_users_function_is_refused_with_the_reason(user_folder: Path, function: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve_activation(f"own_activations.py:{function}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no_such_module:f", "no_such_file.py:f", ":f"])
def test_module_that_is_not_there_is_refused(user_folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be imported"):
        resolve_activation(name)


def test_classes_are_constructed_or_refused() -> None:
    assert resolve_activation("torch.nn:Softsign")(torch.tensor([1.0])).item() == 0.5
    with pytest.raises(UserError, match="needs arguments"):
        resolve_activation("torch.nn:Linear")


def test_probe_points_are_symmetric_and_reach_the_limit() -> None:
    x = probe_points()
    assert x[0] == -1e4
    assert x[-1] == 1e4
    assert torch.equal(x, -x.flip(0))
    assert (x == 0).any()
    assert (x.diff() > 0).all()
