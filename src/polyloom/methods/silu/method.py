"""The mathematics of SiLU and its relatives: closed forms, signal propagation, and the half-precision sweep.

Symbols: f the activation, s = sigmoid(x), W Lambert's function, q the variance of a pre-activation, sigma_w and sigma_b
the standard deviations of weights (times the square root of the width) and biases. All in float64. `facts`, which works
on any function, lives in `sheet.py` and is one of this room's public names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy
import torch
from jaxtyping import Float
from torch import Tensor

from polyloom.core.errors import UserError

Function = Callable[[Tensor], Tensor]


def silu_derivative(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return f'(x) = s (1 + x (1 - s)) of f = SiLU.

    Args:
        x: floating tensor of any shape.

    Returns:
        Tensor of x's shape: 1/2 at 0, in [-0.0998393, 1.0998393].

    Source: arXiv 1702.03118, where it is an activation of its own (dSiLU).
    """
    s = torch.sigmoid(x)
    return s * (1 + x * torch.sigmoid(-x))


def silu_second_derivative(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return f''(x) = s (1 - s) (2 + x (1 - 2 s)) of f = SiLU.

    Args:
        x: floating tensor of any shape.

    Returns:
        Tensor of x's shape: 1/2 at 0, which is its maximum and the Lipschitz constant of f'.
    """
    return torch.sigmoid(x) * torch.sigmoid(-x) * (2 - x * torch.tanh(x / 2))


def swish_beta_derivative(
    x: Float[Tensor, "*shape"], beta: float | Float[Tensor, "#*shape"]
) -> Float[Tensor, "*shape"]:
    """Return the derivative of x sigmoid(beta x) in beta: x^2 s (1 - s) with s = sigmoid(beta x).

    Args:
        x: floating tensor of any shape.
        beta: a number, or a tensor that broadcasts to x.

    Returns:
        Tensor of x's shape.

    Source: arXiv 1710.05941.
    """
    return x.square() * torch.sigmoid(beta * x) * torch.sigmoid(-beta * x)


def lambert_w(z: float) -> float:
    """Return W(z), the w >= 0 with w exp(w) = z, by Newton's method.

    Args:
        z: at least 0.

    Raises:
        UserError: z is negative.
    """
    if z < 0:
        raise UserError(f"W is taken here for z >= 0, not {z}.")
    w = math.log1p(z)
    for _ in range(50):
        step = (w - z * math.exp(-w)) / (1 + w)
        w -= step
        if abs(step) <= 1e-17 * (1 + w):
            break
    return w


def silu_minimum(beta: float = 1.0) -> tuple[float, float]:
    """Return location and value of the only minimum of x sigmoid(beta x).

    From f'(x) = 0, that is (-x - 1) exp(-x - 1) = 1/e: x* = -(1 + W(1/e)) and f(x*) = -W(1/e) = 1 + x*, over beta.

    Args:
        beta: positive slope; 1 is SiLU.

    Returns:
        (x*, f(x*)), for SiLU (-1.2784645427610738, -0.2784645427610738).

    Raises:
        UserError: beta is not positive (x / 2 has no minimum).
    """
    if beta <= 0:
        raise UserError(f"Swish has a minimum for beta > 0 only, not {beta}.")
    w = lambert_w(math.exp(-1))
    return -(1 + w) / beta, -w / beta


def silu_lipschitz() -> tuple[float, float]:
    """Return where f' of SiLU is largest, and that value: the Lipschitz constant of SiLU.

    f'' = 0 where x tanh(x / 2) = 2; Newton from 2.4.

    Returns:
        (2.3993572805154677, 1.0998393201288669). The minimum of f' is 1 minus the value, at minus the location.
    """
    x = 2.4
    for _ in range(20):
        t = math.tanh(x / 2)
        x -= (x * t - 2) / (t + x * (1 - t * t) / 2)
    s = 1 / (1 + math.exp(-x))
    return x, s * (1 + x * (1 - s))


@cache
def _legendre(num_nodes: int) -> tuple[Tensor, Tensor]:
    nodes, weights = numpy.polynomial.legendre.leggauss(num_nodes)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


@cache
def _hermite(num_nodes: int) -> tuple[Tensor, Tensor]:
    nodes, weights = numpy.polynomial.hermite_e.hermegauss(num_nodes)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def gauss_hermite(num_nodes: int = 128) -> tuple[Float[Tensor, " nodes"], Float[Tensor, " nodes"]]:
    """Return nodes z and weights w with E g(z) = sum w g(z) for z ~ N(0, 1).

    Args:
        num_nodes: at most 180; exact for polynomials of degree 2 num_nodes - 1. SiLU needs 80 for 1e-9.

    Returns:
        Nodes and weights, float64; the weights add up to 1.

    Raises:
        UserError: more nodes than float64 weights can hold.
    """
    if not 1 <= num_nodes <= 180:
        raise UserError(f"Gauss-Hermite takes 1 to 180 nodes here, not {num_nodes}.")
    return _hermite(num_nodes)


def normal_quadrature(breaks: Sequence[float] = ()) -> tuple[Float[Tensor, " nodes"], Float[Tensor, " nodes"]]:
    """Return nodes and weights for E g(z), z ~ N(0, 1), where g has kinks or jumps at `breaks`.

    Gauss-Hermite converges slowly across a kink; panels of Gauss-Legendre on [-13, 13] that end at the breaks do not.

    Args:
        breaks: where g is not smooth.

    Returns:
        Nodes and weights, float64; what lies beyond 13 weighs less than 1e-37.
    """
    if not breaks:
        return gauss_hermite()
    edges = sorted({*(edge / 2 for edge in range(-26, 27)), *(point for point in breaks if abs(point) < 13)})
    low, high = torch.tensor(edges[:-1], dtype=torch.float64), torch.tensor(edges[1:], dtype=torch.float64)
    nodes, weights = _legendre(20)
    half = (high - low)[:, None] / 2
    z = ((low + high)[:, None] / 2 + half * nodes).reshape(-1)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return z, (half * weights).reshape(-1) * density


@dataclass(frozen=True)
class Moments:
    """Moments of an activation under x ~ N(0, q): E f, E f^2, Var f and E f'^2."""

    mean: float
    second: float
    variance: float
    derivative_second: float


def value_and_derivative(f: Function, x: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return f(x) and f'(x) by automatic differentiation, detached.

    Args:
        f: an elementwise function.
        x: points.
    """
    point = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        y = f(point)
        (slope,) = torch.autograd.grad(y.sum(), point)
    return y.detach(), slope


def gaussian_moments(f: Function, q: float = 1.0, breaks: Sequence[float] = ()) -> Moments:
    """Return the moments of f(x) and f'(x) under x ~ N(0, q).

    Args:
        f: an elementwise function.
        q: variance of x.
        breaks: where f or f' is not smooth.

    Returns:
        E f, E f^2, Var f and E f'^2; for SiLU at q = 1: 0.2066210, 0.3557755, 0.3130833, 0.3794824.

    Raises:
        UserError: q is negative.
    """
    if q < 0:
        raise UserError(f"a variance is not negative: {q}.")
    scale = math.sqrt(q)
    z, weights = normal_quadrature([point / scale for point in breaks] if scale else ())
    y, slope = value_and_derivative(f, scale * z)
    mean, second = float(weights @ y), float(weights @ y.square())
    return Moments(mean, second, float(weights @ (y - mean).square()), float(weights @ slope.square()))


def init_gain(f: Function, breaks: Sequence[float] = ()) -> float:
    """Return 1 / sqrt(E f^2), x ~ N(0, 1): the gain at which q = 1 is a fixed point of the variance map.

    It need not be a stable one: for SiLU (1.6765325) it is not, and 20 layers of width 512 leave it. Look at
    `mean_field(...).slope`, or normalise.

    Args:
        f: an elementwise function.
        breaks: where f is not smooth.
    """
    return 1 / math.sqrt(gaussian_moments(f, breaks=breaks).second)


def variance_map(f: Function, q: float, sigma_w: float, sigma_b: float = 0.0, breaks: Sequence[float] = ()) -> float:
    """Return V(q) = sigma_w^2 E f(sqrt(q) z)^2 + sigma_b^2, the variance one layer on.

    Args:
        f: an elementwise function.
        q: variance of a layer's pre-activations.
        sigma_w: gain: standard deviation of the weights times the square root of the width (He: sqrt(2)).
        sigma_b: standard deviation of the biases.
        breaks: where f is not smooth.

    Source: mean-field theory of wide random networks (arXiv 1606.05340, 1611.01232).
    """
    return sigma_w**2 * gaussian_moments(f, q, breaks).second + sigma_b**2


@dataclass(frozen=True)
class MeanField:
    """Where the variance of a deep random network goes: the fixed point q*, V'(q*), chi and the depth scale."""

    q: float | None
    slope: float | None
    chi: float | None
    depth_scale: float | None


def mean_field(
    f: Function, sigma_w: float, sigma_b: float = 0.0, breaks: Sequence[float] = (), num_layers: int = 2000
) -> MeanField:
    """Follow the variance map from q = 1 and describe where it ends.

    Args:
        f: an elementwise function.
        sigma_w: gain of the weights.
        sigma_b: standard deviation of the biases.
        breaks: where f is not smooth.
        num_layers: steps after which a variance that still moves counts as having no fixed point.

    Returns:
        q* (0 when the signal dies, None when it grows without end), V'(q*) (above 1: unstable), chi = sigma_w^2 E f'^2
        at q*, and the depth scale -1 / log chi in layers (None in the chaotic phase, chi >= 1).
    """
    q = 1.0
    for _ in range(num_layers):
        following = variance_map(f, q, sigma_w, sigma_b, breaks)
        if not following < 1e6:
            return MeanField(None, None, None, None)
        if abs(following - q) <= 1e-13 * max(following, 1e-300) or following < 1e-30:
            q = following
            break
        q = following
    q = 0.0 if q < 1e-25 else q
    chi = sigma_w**2 * gaussian_moments(f, q, breaks).derivative_second
    step = 1e-4 * q if q else 1e-8
    below = variance_map(f, q - step, sigma_w, sigma_b, breaks) if q else sigma_b**2 + _at_zero(f, sigma_w)
    slope = (variance_map(f, q + step, sigma_w, sigma_b, breaks) - below) / (2 * step if q else step)
    return MeanField(q, slope, chi, depth_scale(chi))


def _at_zero(f: Function, sigma_w: float) -> float:
    return sigma_w**2 * float(f(torch.zeros(1, dtype=torch.float64)).square())


def depth_scale(chi: float) -> float | None:
    """Return -1 / log chi, the layers over which a correlation between two inputs fades by e.

    Args:
        chi: sigma_w^2 E f'^2 at the fixed point.

    Returns:
        Layers; None for chi >= 1 (chaos: differences grow) and 0 for chi = 0.
    """
    if chi <= 0:
        return 0.0
    return None if chi >= 1 else -1 / math.log(chi)


def edge_of_chaos(f: Function, q: float, breaks: Sequence[float] = ()) -> tuple[float, float] | None:
    """Return the point of the critical line chi = 1 whose fixed point has variance q.

    chi = sigma_w^2 E f'^2 = 1 gives sigma_w, and q = V(q) then sigma_b; no search is needed.

    Args:
        f: an elementwise function.
        q: the fixed point's variance, positive.
        breaks: where f is not smooth.

    Returns:
        (sigma_w, sigma_b), or None where sigma_b^2 would be negative.
    """
    moments = gaussian_moments(f, q, breaks)
    sigma_w = 1 / math.sqrt(moments.derivative_second)
    bias_variance = q - sigma_w**2 * moments.second
    if bias_variance < -1e-12 * q:
        return None
    return sigma_w, math.sqrt(max(0.0, bias_variance))


@dataclass(frozen=True)
class HalfPrecision:
    """The error of an activation over every finite value of a half type, against itself in float64.

    `max_relative_error` is over results in the type's normal range that were not flushed to 0 (those are counted in
    `num_flushed`); `correctly_rounded_share` is over all finite inputs.
    """

    dtype: str
    max_relative_error: float
    worst_x: float
    correctly_rounded_share: float
    num_flushed: int
    num_nan: int
    num_overflow: int


def half_patterns(dtype: torch.dtype) -> Float[Tensor, "65536"]:
    """Return all 65,536 bit patterns of bfloat16 or float16 as values, infinities and NaNs among them.

    Raises:
        UserError: dtype has not 16 bits.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise UserError(f"{dtype} is not bfloat16 or float16.")
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def half_precision_error(f: Function, dtype: torch.dtype) -> HalfPrecision:
    """Sweep an activation over all 65,536 patterns of a half type.

    Args:
        f: an elementwise function that works in `dtype` and in float64.
        dtype: torch.bfloat16 or torch.float16.

    Returns:
        The largest relative error (a correctly rounded function has 2^-8 in bfloat16 and 2^-11 in float16) and where,
        the share of results that are correctly rounded, and the finite inputs that give NaN or overflow.
    """
    x = half_patterns(dtype)
    x = x[torch.isfinite(x)]
    y, reference = f(x).double(), f(x.double())
    exact = reference.to(dtype).double()
    limits = torch.finfo(dtype)
    normal = (reference.abs() >= limits.tiny) & (reference.abs() <= limits.max) & torch.isfinite(y)
    flushed = normal & (y == 0)
    normal &= ~flushed
    error = torch.where(normal, (y - reference).abs() / reference.abs().clamp_min(limits.tiny), 0.0)
    worst = int(error.argmax())
    return HalfPrecision(
        dtype=str(dtype).removeprefix("torch."),
        max_relative_error=float(error[worst]),
        worst_x=float(x[worst]),
        correctly_rounded_share=float(((y == exact) | (y.isnan() & exact.isnan())).double().mean()),
        num_flushed=int(flushed.sum()),
        num_nan=int(y.isnan().sum()),
        num_overflow=int((y.isinf() & (reference.abs() <= limits.max)).sum()),
    )
