"""SwiGLU that keeps less for the backward pass and gives the same bits, and the gated blocks it serves.

Kept for backward by one block, in units of [tokens, ffn] (parameters and the input not counted):

| form | kept | recomputed in backward |
| --- | --- | --- |
| plain | 4: g, silu(g), u, h | nothing |
| A, `swiglu_product` | 3: g, u; the down projection keeps h | silu(g) |
| B, `swiglu_down` | 2: g, u | silu(g) and h |

Plain PyTorch on any device, no kernel to compile. Nothing that was kept is ever written to, so that a second backward
through a retained graph is right.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from polyloom.core.errors import UserError
from polyloom.models.activations import Pointwise, saved_bytes

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

Form = Literal["plain", "A", "B"]


def fair_hidden_size(ungated_size: int, multiple_of: int = 1) -> int:
    """Return the inner width at which a gated block has no more parameters than an ungated one.

    Three matrices instead of two, so two thirds of the width, rounded down to a multiple.

    Args:
        ungated_size: inner width of the ungated block (often 4 d).
        multiple_of: what the width is to be a multiple of.

    Returns:
        multiple_of * floor(2 ungated_size / (3 multiple_of)), at least multiple_of.

    Source: arXiv 2002.05202, section 2 (2048 for 3072).
    """
    return max(1, 2 * ungated_size // (3 * multiple_of)) * multiple_of


class GatedMLP(nn.Module):
    """The gated block (act(x Wg) * (x Wu)) Wd, with the parameter names of Llama (arXiv 2002.05202, eq. 5 and 6)."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, activation: str = "silu", bias: bool = False, **factory: Any
    ) -> None:
        """Make the three projections.

        Args:
            hidden_size: width d of the block's input and output.
            intermediate_size: inner width; `fair_hidden_size(4 d)` has the parameters of an ungated block.
            activation: name of the gate's activation, or `module:function`.
            bias: give the projections biases.
            **factory: device and dtype of the parameters.
        """
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias, **factory)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias, **factory)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias, **factory)
        self.act_fn = Pointwise(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., hidden_size] to [..., hidden_size]."""
        y: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return y


class SwiGLU(GatedMLP):
    """The block gated by SiLU."""


class GEGLU(GatedMLP):
    """The block gated by GELU."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False, **factory: Any) -> None:
        """As `GatedMLP` with `activation="gelu"`."""
        super().__init__(hidden_size, intermediate_size, "gelu", bias, **factory)


class ReGLU(GatedMLP):
    """The block gated by ReLU."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False, **factory: Any) -> None:
        """As `GatedMLP` with `activation="relu"`."""
        super().__init__(hidden_size, intermediate_size, "relu", bias, **factory)


class Bilinear(GatedMLP):
    """The block gated by nothing: (x Wg) * (x Wu), then down."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False, **factory: Any) -> None:
        """As `GatedMLP` with `activation="identity"`."""
        super().__init__(hidden_size, intermediate_size, "identity", bias, **factory)


def _product_gradients(
    dh: Tensor, activated: Tensor | None, gate: Tensor, up: Tensor, need_gate: bool, owns_dh: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return dg = dh u s (1 + g (1 - s)) if needed, and du = dh activated if `activated` = silu(g) is given.

    aten's fused kernel gives the bits of plain autograd but has no derivative of its own; when a graph of the backward
    pass is being built, the same formula is written out, as torch does for its own silu. Otherwise results go into
    buffers that this pass made itself (`activated`, and dh where `owns_dh`): fewer fresh pages, a lower peak.
    """
    if torch.is_grad_enabled() or not dh.dtype == gate.dtype == up.dtype:
        d_gate = None
        d_up = None if activated is None else (dh * activated).to(up.dtype)
        if need_gate:
            s = torch.sigmoid(gate)
            d_activated = (dh * up).to(gate.dtype)
            written_out = d_activated * s * (1.0 + gate * (1.0 - s))
            d_gate = written_out if torch.is_grad_enabled() else torch.ops.aten.silu_backward(d_activated, gate)
        return d_gate, d_up
    d_up = None if activated is None else activated.mul_(dh)
    if not need_gate:
        return None, d_up
    d_activated = dh.mul_(up) if owns_dh else dh * up
    return torch.ops.aten.silu_backward.grad_input(d_activated, gate, grad_input=d_activated), d_up


class _Product(torch.autograd.Function):
    """Form A: silu(gate) * up that keeps gate and up alone.

    Autocast casts neither silu nor a product, so there is no autocast state to restore in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (dh,) = grad_outputs
        gate, up = ctx.saved_tensors
        need_gate, need_up = ctx.needs_input_grad
        return _product_gradients(dh, F.silu(gate) if need_up else None, gate, up, need_gate, owns_dh=False)


class _Down(torch.autograd.Function):
    """Form B: silu(gate) * up and the down projection in one, keeping gate and up alone (the weight is there anyway).

    The projection is cast by autocast, so the backward pass restores the autocast state of the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        ctx.device_type = gate.device.type
        ctx.autocast = torch.is_autocast_enabled(ctx.device_type)
        ctx.autocast_dtype = torch.get_autocast_dtype(ctx.device_type)
        return F.linear(F.silu(gate) * up, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (dy,) = grad_outputs
        gate, up, weight = ctx.saved_tensors
        need_gate, need_up, need_weight, need_bias = ctx.needs_input_grad
        activated = F.silu(gate) if need_up or need_weight else None
        d_gate = d_up = d_weight = d_bias = None
        with _autocast_as(ctx.device_type, ctx.autocast, ctx.autocast_dtype):
            if need_weight:
                hidden = activated * up
                d_weight = (dy.reshape(-1, dy.shape[-1]).t() @ hidden.reshape(-1, hidden.shape[-1])).to(weight.dtype)
            dh = dy @ weight if need_gate or need_up else None
        if need_bias:
            d_bias = dy.reshape(-1, dy.shape[-1]).sum(0).to(weight.dtype)
        if dh is not None:
            d_gate, d_up = _product_gradients(dh, activated if need_up else None, gate, up, need_gate, owns_dh=True)
        return d_gate, d_up, d_weight, d_bias


def _autocast_as(device_type: str, enabled: bool, dtype: torch.dtype) -> AbstractContextManager[Any]:
    current = torch.is_autocast_enabled(device_type)
    if enabled == current and (not enabled or dtype == torch.get_autocast_dtype(device_type)):
        return nullcontext()
    return torch.autocast(device_type, dtype=dtype, enabled=enabled)


def _check_pair(gate: Tensor, up: Tensor) -> None:
    if gate.shape != up.shape:
        raise UserError(f"gate has shape {list(gate.shape)} and up {list(up.shape)}: they must be equal.")
    if not (gate.is_floating_point() and up.is_floating_point()):
        raise UserError("silu is not implemented for integer tensors.", hint="Convert the tensor first: x.float().")


def is_sharded(tensor: Tensor | None) -> bool:
    """Tell whether a tensor is a DTensor (also where torch was built without distribution)."""
    return torch.distributed.is_available() and isinstance(tensor, DTensor)


def swiglu_product(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, keeping only its two inputs for backward (form A).

    Args:
        gate: g = x Wg, floating, any shape and strides. Two DTensors of equal placements work shard by shard.
        up: u = x Wu, of gate's shape.

    Returns:
        h of gate's shape, in the bits of `F.silu(gate) * up`; gradients too.

    Raises:
        UserError: shapes differ, integer tensors, or DTensors whose placements differ or hold partial sums.
    """
    _check_pair(gate, up)
    if not (is_sharded(gate) or is_sharded(up)):
        product: Tensor = _Product.apply(gate, up)  # type: ignore[no-untyped-call]
        return product
    mesh, placements = _common_placement(gate, up)
    local = swiglu_product(gate.to_local(), up.to_local())  # type: ignore[attr-defined]
    sharded: Tensor = DTensor.from_local(
        local, mesh, placements, run_check=False, shape=gate.shape, stride=_contiguous_stride(gate.shape)
    )
    return sharded


def _contiguous_stride(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def _common_placement(gate: Tensor, up: Tensor) -> tuple[Any, Any]:
    if not (isinstance(gate, DTensor) and isinstance(up, DTensor)):
        raise UserError("one of gate and up is a DTensor and the other is not.", hint="Shard both alike.")
    if gate.device_mesh != up.device_mesh or gate.placements != up.placements:
        raise UserError(f"gate lies as {gate.placements} and up as {up.placements}.", hint="Shard both alike.")
    if any(isinstance(placement, Partial) for placement in gate.placements):
        raise UserError("gate and up hold partial sums.", hint="Redistribute them first: silu is not linear.")
    return gate.device_mesh, gate.placements


def swiglu_down(gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None = None, rowwise: bool = False) -> Tensor:
    """Return (silu(gate) * up) weight^T + bias, keeping only gate and up for backward (form B).

    Args:
        gate: g, [..., ffn].
        up: u, of gate's shape.
        weight: the down projection's weight, [hidden, ffn].
        bias: its bias, [hidden], or none.
        rowwise: declare tensor parallelism by rows: gate and up are sharded over ffn and weight over its columns.

    Returns:
        y, [..., hidden], in the bits of `F.linear(F.silu(gate) * up, weight, bias)`; gradients too (for a transposed
        weight or gate torch orders the sums otherwise, and they agree to rounding). With `rowwise` a replicated
        DTensor.

    Raises:
        UserError: shapes differ, integer tensors, or a sharded weight without `rowwise`.
    """
    _check_pair(gate, up)
    if weight.shape[-1] != gate.shape[-1]:
        raise UserError(f"weight has shape {list(weight.shape)}: its columns must be gate's {gate.shape[-1]}.")
    if is_sharded(weight) or is_sharded(gate) or is_sharded(up):
        return _rowwise_down(gate, up, weight, bias, rowwise)
    y: Tensor = _Down.apply(gate, up, weight, bias)  # type: ignore[no-untyped-call]
    return y


def _rowwise_down(gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None, rowwise: bool) -> Tensor:
    if not rowwise:
        raise UserError(
            "form B would need the whole down projection, and it is sharded.",
            hint="Use form A, or rowwise=True when gate, up and weight are sharded over ffn.",
        )
    mesh, placements = _common_placement(gate, up)
    if not isinstance(weight, DTensor) or list(weight.placements) != [Shard(1)] or len(placements) != 1:
        raise UserError("rowwise form B needs a weight that is sharded over its columns, on a mesh of one dimension.")
    if placements[0] not in (Shard(gate.ndim - 1), Shard(-1)):
        raise UserError(f"rowwise form B needs gate and up sharded over ffn; they lie as {placements}.")
    local = swiglu_down(gate.to_local(), up.to_local(), weight.to_local())  # type: ignore[attr-defined]
    y: Tensor = DTensor.from_local(local, mesh, [Partial()], run_check=False).redistribute(mesh, [Replicate()])
    return y if bias is None else y + bias


def split_gate_up(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """Split a fused projection's output [..., 2 ffn] into gate and up, in Phi-3's order.

    Raises:
        UserError: the last dimension is odd.
    """
    if gate_up.shape[-1] % 2:
        raise UserError(f"a fused gate and up has an even last dimension; this one has {gate_up.shape[-1]}.")
    gate, up = gate_up.chunk(2, dim=-1)
    return gate, up


def saved_units(block: nn.Module, x: Tensor, intermediate_size: int) -> float:
    """Measure what a block keeps for backward, in units of one [tokens, ffn] tensor.

    Args:
        block: a gated block, patched or not.
        x: its input, [..., hidden]; it must require a gradient, as it does inside a model.
        intermediate_size: ffn.

    Returns:
        Kept bytes, without parameters and x, over tokens * ffn * bytes of an element: 4 plain, 3 form A, 2 form B.
    """
    unit = x.numel() // x.shape[-1] * intermediate_size * x.element_size()
    return saved_bytes(lambda: block(x), [*block.parameters(), x]) / unit
