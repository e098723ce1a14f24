"""The fact sheet of any activation: extrema, Lipschitz constants, zeros, kinks and limits by search, in float64.

A dense grid of [-1e4, 1e4] finds where to look; zooming gives the value, and a root of the next derivative the
location, both to 1e-12. Of the function only this is assumed: elementwise, with a gradient almost everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy
import torch
from torch import Tensor

from polyloom.methods.silu.method import (
    Function,
    HalfPrecision,
    Moments,
    gaussian_moments,
    half_precision_error,
    value_and_derivative,
)
from polyloom.models.activations import probe_points, resolve_activation, saved_bytes

SATURATED = 8.0
"""A level that is kept from beyond this |x| on is a limit that float64 has reached (tanh from 19), not an extremum."""


@dataclass(frozen=True)
class Extremum:
    """An infimum: its value (None: unbounded) and where it is attained (None: only approached, or on a whole range)."""

    value: float | None
    location: float | None


@dataclass(frozen=True)
class FactSheet:
    """What `facts` finds. Constants are good to 1e-12; `Extremum` says what None means.

    `jumps` are of f, `kinks` of f', and `breaks` of f, f' or f'': there quadrature has to be split.
    """

    minimum: Extremum
    maximum: Extremum
    derivative_minimum: Extremum
    derivative_maximum: Extremum
    lipschitz_constant: float | None
    derivative_lipschitz_constant: float | None
    limit_left: float | None
    limit_right: float | None
    zeros: tuple[float, ...]
    jumps: tuple[float, ...]
    kinks: tuple[float, ...]
    breaks: tuple[float, ...]
    is_monotone: bool
    moments: Moments
    saved_tensors: float
    nan_at_minus_infinity: bool
    nan_at_plus_infinity: bool
    nan_from: float | None
    half_precision: tuple[HalfPrecision, HalfPrecision]


def facts(activation: str | Function) -> FactSheet:
    """Work out the fact sheet of an activation.

    Args:
        activation: a name of the registry, `module:function`, or a function on tensors.

    Returns:
        The sheet. For SiLU: minimum -0.2784645427610738 at -1.2784645427610738, Lipschitz constant
        1.0998393201288669, Lipschitz constant of f' 1/2.

    Raises:
        UserError: `resolve_activation` refuses it.
    """
    f = resolve_activation(activation) if isinstance(activation, str) else activation
    first, second = partial(_derivative, f), partial(_second_derivative, f)
    grid = search_grid()
    jumps = find_jumps(f, grid)
    kinks = tuple(x for x in find_jumps(first, grid) if x not in jumps)
    derivative_minimum = find_minimum(first, second, grid)
    derivative_maximum = _negated(find_minimum(_negative(first), _negative(second), grid))
    below, above = derivative_minimum.value, derivative_maximum.value
    breaks = _merge(sorted({*jumps, *kinks, *find_jumps(second, grid)}))
    return FactSheet(
        minimum=find_minimum(f, first, grid),
        maximum=_negated(find_minimum(_negative(f), _negative(first), grid)),
        derivative_minimum=derivative_minimum,
        derivative_maximum=derivative_maximum,
        lipschitz_constant=None if jumps or below is None or above is None else max(-below, above),
        derivative_lipschitz_constant=None if jumps or kinks else _largest(second, grid),
        limit_left=limit(f, -1),
        limit_right=limit(f, 1),
        zeros=find_zeros(f, grid),
        jumps=jumps,
        kinks=kinks,
        breaks=breaks,
        is_monotone=(below is not None and below >= 0) or (above is not None and above <= 0),
        moments=gaussian_moments(f, breaks=breaks),
        saved_tensors=saved_tensors(f),
        nan_at_minus_infinity=bool(f(torch.tensor([-math.inf])).isnan().any()),
        nan_at_plus_infinity=bool(f(torch.tensor([math.inf])).isnan().any()),
        nan_from=_nan_from(f),
        half_precision=(half_precision_error(f, torch.bfloat16), half_precision_error(f, torch.float16)),
    )


def search_grid() -> Tensor:
    """Return ascending float64 points: every 1/128 of [-40, 40], and out to 1e4 ever wider."""
    points = torch.cat([torch.linspace(-40, 40, 80 * 128 + 1, dtype=torch.float64), probe_points()])
    return torch.from_numpy(numpy.unique(points.numpy()))


def _derivative(f: Function, x: Tensor) -> Tensor:
    return value_and_derivative(f, x)[1]


def _second_derivative(f: Function, x: Tensor) -> Tensor:
    point = x.detach().clone().requires_grad_()
    try:
        (slope,) = torch.autograd.grad(f(point).sum(), point, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), point)
    except RuntimeError:  # piecewise linear, or a user's backward that has no derivative of its own
        step = 1e-5 * (1 + x.abs())
        curvature = (_derivative(f, x + step) - _derivative(f, x - step)) / (2 * step)
    return curvature.detach()


def _negative(f: Function) -> Function:
    return lambda x: -f(x)


def _negated(extremum: Extremum) -> Extremum:
    return Extremum(None if extremum.value is None else 0.0 - extremum.value, extremum.location)


def limit(f: Function, sign: int) -> float | None:
    """Return the finite limit of f at sign * infinity, or None where there is none.

    Args:
        f: an elementwise function.
        sign: -1 or 1.
    """
    near, far = f(sign * torch.tensor([1e15, 1e30], dtype=torch.float64)).tolist()
    settled = math.isfinite(far) and abs(far - near) <= 1e-12 * (1 + abs(far))
    return far + 0.0 if settled else None


def find_minimum(f: Function, derivative: Function, grid: Tensor) -> Extremum:
    """Find the infimum of f over the real line.

    Args:
        f: what to minimise.
        derivative: its derivative, whose root sharpens the location.
        grid: ascending points that come near every dip of f.
    """
    y = f(grid)
    index = _nearest_to_zero(grid, y)
    limits = [value for value in (limit(f, -1), limit(f, 1)) if value is not None]
    if index in (0, len(grid) - 1):
        side = -1 if index == 0 else 1
        return Extremum(limit(f, side), None)
    lowest = min(limits, default=math.inf)
    if float(y[index]) > lowest:
        return Extremum(lowest, None)
    flat = bool((y[index - 1 : index + 2] == y[index]).sum() > 1)
    if flat and abs(float(grid[index])) > SATURATED:
        return Extremum(float(y[index]) + 0.0, None)
    x = _zoom(f, float(grid[index - 1]), float(grid[index + 1]))
    x = _polish(derivative, x)
    # The value is taken first: at a jump of f it is the side that matters (f' of ReLU is 1 beside 0, not at it).
    return Extremum(_at(f, x), 0.0 if abs(x) < 1e-12 else x)


def _nearest_to_zero(x: Tensor, y: Tensor) -> int:
    lowest = (y == y[~y.isnan()].min()).nonzero()[:, 0]
    return int(lowest[x[lowest].abs().argmin()])


def _at(f: Function, x: float) -> float:
    return float(f(torch.tensor([x], dtype=torch.float64))) + 0.0


def _zoom(f: Function, low: float, high: float) -> float:
    x = (low + high) / 2
    for _ in range(14):
        points = torch.linspace(low, high, 65, dtype=torch.float64)
        points = torch.cat([points, torch.tensor([x], dtype=torch.float64)])
        x = float(points[_nearest_to_zero(points, f(points))])
        step = (high - low) / 32
        low, high = x - step, x + step
    return x


def _polish(derivative: Function, x: float) -> float:
    """Move x to the root of the derivative beside it, if the derivative goes through 0 there smoothly."""
    width = 1e-6 * (1 + abs(x))
    low, high = x - width, x + width
    below, above = _at(derivative, low), _at(derivative, high)
    if not below < 0 < above:
        return x
    root = _bisect(derivative, low, high)
    smooth = abs(_at(derivative, root)) <= 1e-3 * max(-below, above)
    return root if smooth else x


def _bisect(f: Function, low: float, high: float) -> float:
    rising = _at(f, low) < 0
    for _ in range(100):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if (_at(f, middle) < 0) == rising:
            low = middle
        else:
            high = middle
    return low if abs(_at(f, low)) < abs(_at(f, high)) else high


def _largest(f: Function, grid: Tensor) -> float | None:
    below, above = find_minimum(f, _no_derivative, grid), find_minimum(_negative(f), _no_derivative, grid)
    if below.value is None or above.value is None:
        return None
    return max(0.0, -below.value, -above.value)


def _no_derivative(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def find_jumps(f: Function, grid: Tensor) -> tuple[float, ...]:
    """Find where f is not continuous: halve each interval towards its larger change until only a jump is left.

    Args:
        f: an elementwise function.
        grid: ascending points.

    Returns:
        The places, ascending, to 1e-11.
    """
    y = f(grid)
    moving = (y[1:] - y[:-1]).abs() > 1e-6
    low, high = grid[:-1][moving], grid[1:][moving]
    for _ in range(60):
        middle = (low + high) / 2
        left = (f(middle) - f(low)).abs() >= (f(high) - f(middle)).abs()
        stuck = (middle <= low) | (middle >= high)
        low, high = torch.where(left | stuck, low, middle), torch.where(left & ~stuck, middle, high)
        if bool((high - low <= 4e-14 * (1 + low.abs())).all()):
            break
    jump = (f(high) - f(low)).abs() > 1e-6 * (1 + f(low).abs())
    places = sorted({round(x, 11) + 0.0 for x in ((low + high) / 2)[jump].tolist()})
    return _merge(places)


def _merge(places: Sequence[float]) -> tuple[float, ...]:
    kept: list[float] = []
    for x in places:
        if not kept or x - kept[-1] > 1e-9 * (1 + abs(x)):
            kept.append(x)
    return tuple(kept)


def find_zeros(f: Function, grid: Tensor) -> tuple[float, ...]:
    """Find the isolated zeros of f; ranges where f is 0 throughout (ReLU left of 0) are left out.

    Args:
        f: an elementwise function.
        grid: ascending points.
    """
    y = f(grid)
    sign = torch.sign(y)
    alone = (sign[1:-1] == 0) & (sign[:-2] != 0) & (sign[2:] != 0)
    exact = grid[1:-1][alone].tolist()
    crossing = (sign[:-1] * sign[1:] < 0).nonzero()[:, 0].tolist()
    roots = [_bisect(f, float(grid[i]), float(grid[i + 1])) for i in crossing]
    return _merge(sorted(x + 0.0 for x in (*exact, *roots)))


def saved_tensors(f: Callable[[Tensor], Tensor]) -> float:
    """Return what autograd keeps of one application, in tensors of the input's size: 1 for SiLU, 2 for x * sigmoid."""
    x = torch.linspace(-3, 3, 4096).requires_grad_()
    return saved_bytes(lambda: f(x)) / (x.numel() * x.element_size())


def _nan_from(f: Function) -> float | None:
    """Return the smallest finite |x| of a logarithmic float32 grid at which f is NaN, or None."""
    magnitude = torch.logspace(-38, 38.5, 20_000, dtype=torch.float64).float()
    magnitude = magnitude[torch.isfinite(magnitude)]
    bad = f(magnitude).isnan() | f(-magnitude).isnan()
    return float(magnitude[bad][0]) if bool(bad.any()) else None
