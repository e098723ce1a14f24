"""What the forms of a SwiGLU block keep for backward, what they cost in time, and the proof that no bit changes."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from polyloom.methods.silu.timing import Ratio, interleaved_ratios
from polyloom.models.activations import saved_bytes
from polyloom.models.device import one_thread, torch_generator
from polyloom.models.load import embedding_rows
from polyloom.models.patching import Mode, patch_mlp, unpatch_mlp
from polyloom.models.swiglu import SwiGLU, swiglu_down, swiglu_product

MODES: tuple[Mode, Mode] = ("A", "B")
FORMS = ("plain", "a", "b", "checkpoint")
Form = Callable[[Tensor], Tensor]


def block_forms(block: nn.Module) -> dict[str, Form]:
    """Return a gated block in its four forms over the same parameters: plain, A, B, and checkpointed whole."""
    shared = {id(parameter): parameter for parameter in block.parameters()}
    forms: dict[str, Form] = {"plain": block}
    for mode in MODES:
        patched = copy.deepcopy(block, dict(shared))
        patch_mlp(patched, mode)
        forms[mode.lower()] = patched
    forms["checkpoint"] = lambda x: cast(Tensor, checkpoint(block, x, use_reentrant=False))
    return forms


def make_block(
    hidden_size: int, intermediate_size: int, num_tokens: int, dtype: torch.dtype, seed: int, device: str = "cpu"
) -> tuple[SwiGLU, Tensor]:
    """Make a SwiGLU block and an input [num_tokens, hidden_size] that requires a gradient, both drawn from `seed`."""
    generator = torch_generator(seed, "silu", "memory")
    block = SwiGLU(hidden_size, intermediate_size)
    for parameter in block.parameters():
        parameter.data.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    x = torch.randn(num_tokens, hidden_size, generator=generator)
    return block.to(device, dtype), x.to(device, dtype).requires_grad_()


def measure_units(block: SwiGLU, x: Tensor) -> dict[str, float]:
    """Return what each form keeps for backward, in units of one [tokens, ffn] tensor (parameters and x not counted)."""
    unit = x.shape[0] * block.gate_proj.out_features * x.element_size()
    known = [*block.parameters(), x]
    return {name: _kept(form, x, known) / unit for name, form in block_forms(block).items()}


def _kept(form: Form, x: Tensor, known: list[Tensor]) -> int:
    return saved_bytes(lambda: form(x), known)


def output_and_gradients(form: Form, block: nn.Module, x: Tensor) -> list[Tensor]:
    """Return a form's output and the gradients of a loss in x and in every parameter."""
    y = form(x)
    loss = (y.float() * torch.linspace(-1, 1, y.shape[-1], device=y.device)).square().sum()
    return [y.detach(), *torch.autograd.grad(loss, [x, *block.parameters()])]


def equal_bits(block: SwiGLU, x: Tensor) -> dict[str, bool]:
    """Tell for each form whether output and all gradients equal the plain form's bit for bit."""
    forms = block_forms(block)
    plain = output_and_gradients(forms["plain"], block, x)
    return {name: all(map(torch.equal, plain, output_and_gradients(form, block, x))) for name, form in forms.items()}


def double_backward_passes(seed: int) -> dict[str, bool]:
    """Run torch's gradcheck and gradgradcheck of forms A and B in float64."""
    generator = torch_generator(seed, "silu", "gradgradcheck")
    shapes = {"gate": (2, 3, 4), "up": (2, 3, 4), "weight": (5, 4), "bias": (5,)}
    gate, up, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes.values()
    )
    cases: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "a": (swiglu_product, (gate, up)),
        "b": (swiglu_down, (gate, up, weight, bias)),
    }
    return {
        name: torch.autograd.gradcheck(function, inputs, raise_exception=False)
        and torch.autograd.gradgradcheck(function, inputs, raise_exception=False)
        for name, (function, inputs) in cases.items()
    }


def time_forms(block: SwiGLU, x: Tensor, rounds: int, device: str = "cpu") -> dict[str, Ratio]:
    """Time forward and backward of each form against plain, interleaved, in CPU seconds on one thread."""
    work = {name: _step(form, block, x) for name, form in block_forms(block).items()}
    with one_thread():
        return interleaved_ratios(work, "plain", rounds, device)


def _step(form: Form, block: nn.Module, x: Tensor) -> Callable[[], object]:
    inputs = [x, *block.parameters()]
    ones = torch.ones_like(x)
    return lambda: torch.autograd.grad(form(x), inputs, ones)


@dataclass(frozen=True)
class ModelProof:
    """One form on a whole model: bytes kept for backward, and whether loss and all gradients keep their bits."""

    form: str
    saved_bytes: int
    loss: float
    loss_equal: bool
    gradients_equal: bool
    num_blocks: int


def prove_on_model(model: PreTrainedModel, batch_size: int, sequence_length: int, seed: int) -> list[ModelProof]:
    """Run one training step of a causal model plain, with form A and with form B, and compare.

    The model is left unpatched and without gradients.

    Args:
        model: a causal language model with gated SiLU blocks.
        batch_size: sequences of random tokens.
        sequence_length: tokens in each.
        seed: of the tokens.

    Raises:
        UserError: `patch_mlp` refuses the model.
    """
    generator = torch_generator(seed, "silu", "tokens")
    tokens = torch.randint(embedding_rows(model), (batch_size, sequence_length), generator=generator).to(model.device)
    proofs: list[ModelProof] = []
    plain: tuple[float, dict[str, str]] | None = None
    with one_thread():
        for mode in (None, *MODES):
            blocks = patch_mlp(model, mode) if mode else []
            try:
                kept, loss, digests = _training_step(model, tokens)
            finally:
                unpatch_mlp(model)
            plain = plain or (loss, digests)
            proofs.append(
                ModelProof((mode or "plain").lower(), kept, loss, loss == plain[0], digests == plain[1], len(blocks))
            )
    return proofs


def _training_step(model: PreTrainedModel, tokens: Tensor) -> tuple[int, float, dict[str, str]]:
    losses: list[Tensor] = []

    def forward() -> Tensor:
        losses.append(model(input_ids=tokens, labels=tokens, use_cache=False).loss)
        return losses[0]

    model.zero_grad(set_to_none=True)
    kept = saved_bytes(forward, model.parameters())
    losses[0].backward()  # type: ignore[no-untyped-call]
    # Digests, not copies: a second set of gradients of a large model need not fit in memory.
    digests = {name: _digest(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return kept, losses[0].item(), digests


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(data.tobytes()).hexdigest()
