"""Activations: functions, a registry, a learnable Swish, and the check that lets a user's own function in.

Every function maps a floating tensor of any shape to one of the same shape and dtype, element by element.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyloom.core.errors import UserError, closest

Activation = Callable[[Tensor], Tensor]

PROBE_LIMIT = 1e4


def _floating(x: Tensor, name: str) -> Tensor:
    if not x.is_floating_point():
        kind = str(x.dtype).removeprefix("torch.")
        raise UserError(f"{name} is not implemented for {kind!r}.", hint="Convert the tensor first: x.float().")
    return x


def identity(x: Tensor) -> Tensor:
    """Return x itself: the activation of the bilinear gated form (arXiv 2002.05202, eq. 5)."""
    return _floating(x, "identity").view_as(x)


def relu(x: Tensor) -> Tensor:
    """Return max(0, x)."""
    return F.relu(_floating(x, "relu"))


def relu2(x: Tensor) -> Tensor:
    """Return max(0, x)^2, the squared ReLU (arXiv 2109.08668)."""
    return F.relu(_floating(x, "relu2")).square()


def leaky_relu(x: Tensor) -> Tensor:
    """Return x for x > 0 and 0.01 x below."""
    return F.leaky_relu(_floating(x, "leaky_relu"))


def silu(x: Tensor, safe: bool = False) -> Tensor:
    """Return x sigmoid(x), correctly rounded in half precision as torch's fused kernel is.

    Args:
        x: floating tensor of any shape.
        safe: also define the limits: f(-inf) = 0, f'(-inf) = 0, f'(+inf) = 1, where torch 2.13 gives NaN.
            Every finite x keeps its bits, forward and backward.

    Returns:
        Tensor of x's shape and dtype.

    Raises:
        UserError: x is not floating.

    Source: arXiv 1606.08415 (the name SiLU), 1702.03118 (independently), 1710.05941 (as Swish).
    """
    _floating(x, "silu")
    if not safe:
        return F.silu(x)
    infinite = torch.isinf(x)
    # Both branches of `where` are differentiated: the inner one must not see an infinity, or 0 * NaN is NaN.
    finite = F.silu(torch.where(infinite, torch.zeros_like(x), x))
    limit = torch.where(x > 0, x, torch.zeros_like(x))
    return torch.where(infinite, limit, finite)


def dsilu(x: Tensor) -> Tensor:
    """Return the derivative of SiLU as an activation: s (1 + x (1 - s)), s = sigmoid(x) (arXiv 1702.03118)."""
    s = torch.sigmoid(_floating(x, "dsilu"))
    return s * (1 + x * (1 - s))


def swish(x: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """Return x sigmoid(beta x): x / 2 at beta = 0, SiLU at beta = 1, ReLU for beta to infinity.

    Args:
        x: floating tensor of any shape.
        beta: a number, or a tensor that broadcasts to x (a scalar, or one value per channel).

    Returns:
        Tensor of x's shape and dtype.

    Source: arXiv 1710.05941.
    """
    _floating(x, "swish")
    if not isinstance(beta, Tensor) and beta == 1.0:
        return F.silu(x)
    return x * torch.sigmoid(beta * x)


def gelu(x: Tensor) -> Tensor:
    """Return x Phi(x), Phi the normal distribution function (arXiv 1606.08415)."""
    return F.gelu(_floating(x, "gelu"))


def gelu_tanh(x: Tensor) -> Tensor:
    """Return the tanh approximation of GELU (arXiv 1606.08415)."""
    return F.gelu(_floating(x, "gelu_tanh"), approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x), the sigmoid approximation of GELU (arXiv 1606.08415)."""
    return swish(_floating(x, "quick_gelu"), 1.702)


def hard_swish(x: Tensor) -> Tensor:
    """Return x relu6(x + 3) / 6: 0 for x <= -3 and x for x >= 3 (arXiv 1905.02244)."""
    return F.hardswish(_floating(x, "hard_swish"))


def mish(x: Tensor) -> Tensor:
    """Return x tanh(softplus(x)) (arXiv 1908.08681)."""
    return F.mish(_floating(x, "mish"))


def elu(x: Tensor) -> Tensor:
    """Return x for x > 0 and exp(x) - 1 below (arXiv 1511.07289)."""
    return F.elu(_floating(x, "elu"))


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x))."""
    return F.softplus(_floating(x, "softplus"))


def tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent."""
    return torch.tanh(_floating(x, "tanh"))


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x))."""
    return torch.sigmoid(_floating(x, "sigmoid"))


ACTIVATIONS: dict[str, Activation] = {
    function.__name__: function
    for function in (
        *(identity, relu, relu2, leaky_relu, silu, dsilu, swish, gelu, gelu_tanh, quick_gelu),
        *(hard_swish, mish, elu, softplus, tanh, sigmoid),
    )
}
"""The registry: name to function. `resolve_activation` also takes the names of `ALIASES`."""

ALIASES = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "hardswish": "hard_swish", "linear": "identity"}
"""Names that model configurations use for functions of the registry."""


class Pointwise(nn.Module):
    """A registry function, or a user's own, as a module."""

    def __init__(self, activation: str | Activation) -> None:
        """Resolve `activation` (a name, `module:function` or a function)."""
        super().__init__()
        self.function = resolve_activation(activation) if isinstance(activation, str) else activation

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to a tensor of any shape."""
        return self.function(x)


class Swish(nn.Module):
    """Swish with a beta that is learned: one, or one per channel (the last dimension).

    `beta` has fewer than two dimensions, so that the usual rule "decay matrices only" leaves it out of weight decay.
    """

    def __init__(self, num_channels: int | None = None, beta: float = 1.0) -> None:
        """Start every beta at `beta`; without `num_channels` there is one."""
        super().__init__()
        self.beta = nn.Parameter(torch.full(() if num_channels is None else (num_channels,), beta))

    def forward(self, x: Tensor) -> Tensor:
        """Return x sigmoid(beta x) for x of shape [..., num_channels]."""
        return swish(x, self.beta.to(x.dtype))


def resolve_activation(name: str) -> Activation:
    """Find an activation by name, or import and check a user's own.

    Args:
        name: a name of `ACTIVATIONS` or `ALIASES`, or `module:function` / `path/to/file.py:function`; the current
            folder is searched. A class is called without arguments, so that `torch.nn:Softsign` works.

    Returns:
        The function.

    Raises:
        UserError: an unknown name (with the nearest one), a module or attribute that does not exist, or a function
            that `check_activation` refuses.
    """
    if ":" not in name:
        function = ACTIVATIONS.get(ALIASES.get(name, name))
        if function is None:
            known = closest(name.lower(), (*ACTIVATIONS, *ALIASES))
            raise UserError(f"there is no activation {name!r}.", hint=f"{known} Or name your own as module:function.")
        return function
    module_name, _, attribute = name.rpartition(":")
    module = _import_user_module(module_name, name)
    found = getattr(module, attribute, None)
    if found is None:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{module_name} has no {attribute!r}.", where=name, hint=closest(attribute, public))
    own = _construct(found, name) if isinstance(found, type) else found
    if not callable(own):
        raise UserError(f"is a {type(own).__name__}, not a function.", where=name)
    check_activation(own, name)
    return own  # type: ignore[no-any-return]


def _construct(kind: type, name: str) -> Any:
    try:
        return kind()
    except TypeError as error:
        raise UserError(f"needs arguments ({error}).", where=name, hint="Name a function or an instance.") from error


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _import_user_module(module_name: str, where: str) -> ModuleType:
    try:
        with _current_folder_importable():
            if not module_name.endswith(".py"):
                return importlib.import_module(module_name)
            spec = importlib.util.spec_from_file_location(Path(module_name).stem, module_name)
            if spec is None or spec.loader is None:
                raise ImportError(f"cannot load {module_name}")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    except Exception as error:  # whatever the user's module raises is the user's to read, in one line
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"cannot be imported ({reason}).", where=where, hint="Write module:function or path/to/file.py:function."
        ) from error


def probe_points(limit: float = PROBE_LIMIT, num_points: int = 2001, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return ascending points of [-limit, limit], dense near 0 and symmetric, with 0 and both ends among them."""
    steep = torch.sinh(torch.linspace(0, 12, num_points // 2 + 1, dtype=torch.float64))
    right = steep / steep[-1] * limit
    return torch.cat([-right[1:].flip(0), right]).to(dtype)


def check_activation(function: Callable[[Tensor], Any], name: str) -> None:
    """Refuse a function that cannot serve as an activation.

    Args:
        function: the candidate.
        name: how to call it in the error.

    Raises:
        UserError: it fails on a tensor, returns no tensor, another shape or dtype, is random, mixes elements, has no
            gradient, or gives NaN (value or gradient) on [-1e4, 1e4]; the first such x is named.
    """
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        _check_values(function, name, probe_points(dtype=dtype))
    _check_elementwise(function, name)
    _check_gradient(function, name)


def _evaluate(function: Callable[[Tensor], Any], name: str, x: Tensor) -> Tensor:
    try:
        y = function(x)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        kind = str(x.dtype).removeprefix("torch.")
        raise UserError(f"fails on a {kind} tensor of shape {list(x.shape)} ({reason}).", where=name) from error
    if not isinstance(y, Tensor):
        raise UserError(f"returns {type(y).__name__}, not a tensor.", where=name)
    if y.shape != x.shape:
        raise UserError(f"returns shape {list(y.shape)} for input of shape {list(x.shape)}.", where=name)
    if y.dtype != x.dtype:
        raise UserError(f"returns {y.dtype} for input of {x.dtype}.", where=name, hint="Keep the input's dtype.")
    return y


def _check_values(function: Callable[[Tensor], Any], name: str, x: Tensor) -> None:
    y = _evaluate(function, name, x.clone())
    again = _evaluate(function, name, x.clone())
    if not torch.equal(y.nan_to_num(), again.nan_to_num()):
        raise UserError("gives another value when called again on the same input.", where=name)
    bad = torch.isnan(y)
    if bad.any():
        first = x[bad][0].item()
        raise UserError(f"gives NaN at x = {first:g} in {str(x.dtype).removeprefix('torch.')}.", where=name)


def _check_elementwise(function: Callable[[Tensor], Any], name: str) -> None:
    x = probe_points(30.0, 97)[:96]
    y = _evaluate(function, name, x.clone())
    parts = (
        torch.cat([_evaluate(function, name, x[i : i + 1].clone()) for i in range(len(x))]),
        _evaluate(function, name, x.flip(0)).flip(0),
        _evaluate(function, name, x.reshape(4, 6, 4).clone()).reshape(-1),
    )
    for part in parts:
        if not torch.allclose(part, y, rtol=1e-9, atol=1e-12):
            x_first = x[~torch.isclose(part, y, rtol=1e-9, atol=1e-12)][0].item()
            raise UserError(f"is not elementwise: its value at x = {x_first:g} depends on other elements.", where=name)


def _check_gradient(function: Callable[[Tensor], Any], name: str) -> None:
    x = probe_points().requires_grad_()
    y = _evaluate(function, name, x)
    if not y.requires_grad:
        raise UserError("is not differentiable: its output carries no gradient.", where=name)
    try:
        (gradient,) = torch.autograd.grad(y.sum(), x)
    except RuntimeError as error:
        raise UserError(f"is not differentiable ({' '.join(str(error).split())}).", where=name) from error
    bad = torch.isnan(gradient)
    if bad.any():
        raise UserError(f"has a NaN gradient at x = {x.detach()[bad][0].item():g}.", where=name)
    if not gradient.any():
        raise UserError("is not differentiable: its gradient is 0 everywhere.", where=name)


def saved_bytes(compute: Callable[[], Tensor], exclude: Iterable[Tensor] = ()) -> int:
    """Count what autograd keeps for the backward pass of a computation.

    Args:
        compute: runs the forward pass and returns its output.
        exclude: tensors that exist anyway (parameters, the input): their storages are not counted.

    Returns:
        Bytes of the distinct storages that passed `torch.autograd.graph.saved_tensors_hooks`.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = compute()
    del output
    return sum(kept.values())
