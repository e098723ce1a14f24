"""Put the exact forms A and B of SwiGLU into a Hugging Face model, after proving them equal on its own blocks.

A block is patched by giving it a subclass of its own class: parameters, state dict, hooks and `isinstance` stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyloom.core.errors import UserError
from polyloom.models.swiglu import is_sharded, split_gate_up, swiglu_down, swiglu_product

Mode = Literal["A", "B"]

ACTIVATION_NAMES = ("act_fn", "activation_fn", "act")
SEPARATE = {"gate_proj", "up_proj", "down_proj"}
FUSED = {"gate_up_proj", "down_proj"}


def gated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model that have the projections of a gated block, by their names."""
    return {name: block for name, block in model.named_modules() if _is_gated(block)}


def _is_gated(block: nn.Module) -> bool:
    children = {name for name, child in block.named_children() if not isinstance(child, nn.ModuleList)}
    return children >= SEPARATE or children >= FUSED


def _gate_and_up(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    if "gate_up_proj" in block._modules:
        return split_gate_up(block.gate_up_proj(x))
    return block.gate_proj(x), block.up_proj(x)


def _forward_a(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.down_proj(swiglu_product(*_gate_and_up(self, x)))
    return y


def _forward_b(self: Any, x: Tensor) -> Tensor:
    return swiglu_down(*_gate_and_up(self, x), self.down_proj.weight, self.down_proj.bias)


FORWARDS: dict[str, Callable[[Any, Tensor], Tensor]] = {"A": _forward_a, "B": _forward_b}


def patch_mlp(model: nn.Module, mode: Mode = "A") -> list[str]:
    """Make every gated SiLU block of a model keep less for backward; all of them or none.

    Each block is tried first on probe inputs of its own width: output and gradients must equal the unpatched block's
    bit for bit. The activation is compared with SiLU by value, so that a clamped one is found under any name.

    Args:
        model: a model with blocks of Llama's form (gate_proj, up_proj, down_proj: Llama, Granite, Qwen2, Mistral, ...)
            or Phi-3's (gate_up_proj, down_proj). Already patched blocks change to `mode`.
        mode: "A" keeps 3 of 4 units and takes any projection modules; "B" keeps 2 and needs a plain `nn.Linear` down.

    Returns:
        Names of the patched modules.

    Raises:
        UserError: mode is unknown, there is no such block, its activation is not SiLU, or equality does not hold;
            the model is then left unpatched.
    """
    if mode not in FORWARDS:
        raise UserError(f"there is no form {mode!r}.", where="mode", hint="Choose A or B.")
    blocks = gated_blocks(model)
    if not blocks:
        raise UserError(
            f"{type(model).__name__} has no gated block.",
            hint="A block holds gate_proj, up_proj and down_proj, or gate_up_proj and down_proj.",
        )
    unpatch_mlp(model)
    classes: dict[type, type] = {}
    for name, block in blocks.items():
        _refuse_unfit(name, block, mode)
        classes.setdefault(type(block), _patched_class(type(block), mode))
        _prove_equal(name, block, classes[type(block)])
    for block in blocks.values():
        block.__class__ = classes[type(block)]
    return list(blocks)


def unpatch_mlp(model: nn.Module) -> list[str]:
    """Give every patched block its own class back.

    Returns:
        Names of the restored modules.
    """
    restored = []
    for name, block in model.named_modules():
        original = vars(type(block)).get("_polyloom_original")
        if original is not None:
            block.__class__ = original
            restored.append(name)
    return restored


def _patched_class(original: type, mode: Mode) -> type:
    return type(
        f"{original.__name__}Form{mode}",
        (original,),
        {"forward": FORWARDS[mode], "_polyloom_original": original, "__module__": __name__},
    )


def _refuse_unfit(name: str, block: nn.Module, mode: Mode) -> None:
    if "forward" in vars(block):
        raise UserError("its forward was replaced on the instance.", where=name, hint="Patch before that is done.")
    for parameter in block.parameters():
        if parameter.is_meta:
            raise UserError("its weights are not loaded (meta device).", where=name, hint="Load the model whole.")
        if is_sharded(parameter):
            raise UserError("its weights are sharded.", where=name, hint="Patch the model before sharding it.")
        if not parameter.is_floating_point():
            raise UserError(f"its weights are quantised ({parameter.dtype}).", where=name, hint="It is not patched.")
    require_silu(name, block)
    down = block.down_proj
    if mode == "B" and (type(down) is not nn.Linear or down._forward_hooks or down._forward_pre_hooks):
        raise UserError(
            f"form B reads the weight of the down projection, and this one is a {type(down).__name__} "
            "or has hooks of its own.",
            where=name,
            hint="Use form A.",
        )


def require_silu(name: str, block: nn.Module) -> None:
    """Refuse a gated block whose activation is not SiLU.

    Args:
        name: the block's name in its model.
        block: a module with an activation under one of `ACTIVATION_NAMES`; its weights may be on the meta device.

    Raises:
        UserError: it has no such activation, or its values on a probe are not SiLU's.
    """
    function = next((getattr(block, key) for key in ACTIVATION_NAMES if key in _attributes(block)), None)
    if function is None:
        raise UserError("has no activation that can be checked.", where=name, hint="It is not patched.")
    if not is_silu(function):
        config = vars(block).get("config")
        declared = vars(config).get("hidden_act") or vars(config).get("hidden_activation") if config else None
        called = declared or type(function).__name__
        note = " (its values differ from SiLU's)" if called in ("silu", "swish") else ""
        raise UserError(f"this model uses {called}{note}: not patched.", where=name)


def _attributes(block: nn.Module) -> set[str]:
    return {*vars(block), *block._modules}


def is_silu(function: Callable[[Tensor], Tensor]) -> bool:
    """Tell by value whether a function is SiLU: bit for bit on a probe of [-1e4, 1e4], which finds clamps too."""
    probe = torch.cat([torch.linspace(-30, 30, 241), torch.tensor([-1e4, -1e3, -100.0, 100.0, 1e3, 1e4])])
    with torch.no_grad():
        try:
            return torch.equal(function(probe), F.silu(probe))
        except (RuntimeError, TypeError, ValueError):
            return False


def _prove_equal(name: str, block: nn.Module, patched: type) -> None:
    """Compare the block with its patched self on probes of small and large scale, in its own dtype and device.

    A clamp or a scale inside the forward, dropout, sparsity: whatever is not the plain gated block shows here.
    """
    projection: Any = block._modules.get("gate_proj") or block._modules["gate_up_proj"]
    weight = next(projection.parameters())
    width = vars(projection).get("in_features", weight.shape[-1])
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 100.0):
        probe = (scale * torch.randn(1, 5, width, generator=generator)).to(weight)
        plain = _output_and_gradients(type(block), block, probe)
        ours = _output_and_gradients(patched, block, probe)
        if not all(_same_bits(a, b) for a, b in zip(plain, ours, strict=True)):
            raise UserError(
                "its forward is not down(silu(gate) * up): the patched block differs on a probe.",
                where=name,
                hint="It is not patched.",
            )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality that takes NaN for NaN: the large probe overflows float16 in both."""
    return a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _output_and_gradients(kind: Any, block: nn.Module, probe: Tensor) -> tuple[Tensor, ...]:
    x = probe.detach().clone().requires_grad_()
    inputs = [x, *(parameter for parameter in block.parameters() if parameter.requires_grad)]
    with torch.enable_grad():
        # The class's own forward, not the call: a user's hooks must not see the probe.
        y: Tensor = kind.forward(block, x)
        gradients = torch.autograd.grad(y.float().square().sum(), inputs, allow_unused=True)
    return (y.detach(), *(gradient for gradient in gradients if gradient is not None))
