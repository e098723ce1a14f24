"""The parts of any causal model that early exits need: its layer list, final norm and head, found and checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyloom.core.errors import UserError

NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "final_norm")
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ExitParts:
    """What an exit needs of a model.

    Attributes:
        body: the model without its head.
        layers: its decoder layers in order.
        norm: the final norm, shared by all exits.
        head: the output projection.
        scale: what logits are multiplied by (Granite, Cohere).
        softcap: logits are softcap * tanh(logits / softcap); 0 leaves them (Gemma).
        pairs: its layers return tuples, whose first entry is the hidden state.
    """

    body: nn.Module
    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    scale: float
    softcap: float
    pairs: bool = False

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layers)

    def project(self, x: Tensor) -> Tensor:
        """Return g(x), logits of hidden states that are not yet normed, [..., dim] to [..., vocab]."""
        return self.logits(self.norm(x))

    def logits(self, normed: Tensor) -> Tensor:
        """Return the logits of states behind the final norm."""
        logits: Tensor = self.head(normed)
        if self.scale != 1:
            logits = logits * self.scale
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits


def exit_parts(model: PreTrainedModel) -> ExitParts:
    """Find a causal model's layers, final norm and head, and check them on a short text.

    Args:
        model: a causal language model.

    Returns:
        The parts; g of the last hidden state equals the model's own logits.

    Raises:
        UserError: an encoder-decoder model, no readable layer list, no final norm, no head, or parts that together do
            not give the model's logits (the largest difference is named).
    """
    kind = f"a model of type {model.config.model_type!r}"
    if model.config.is_encoder_decoder:
        raise UserError(f"{kind} is an encoder-decoder; early exits are for causal models.")
    config: Any = model.config.get_text_config(decoder=True)
    body = model.base_model
    count = getattr(config, "num_hidden_layers", None)
    lists = [(n, m) for n, m in body.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise UserError(f"{kind} has no readable list of layers.", hint="Name a decoder such as Llama, Qwen or GPT-2.")
    name, layers = min(lists, key=lambda item: item[0].count("."))
    holder = body.get_submodule(name.rpartition(".")[0])
    children = dict(holder.named_children())
    norm = next((children[one] for one in NORM_NAMES if one in children), None)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if norm is None:
        raise UserError(f"{kind} has no final norm before its head, which every exit shares.")
    if head is None:
        raise UserError(f"{kind} has no output head.", hint="Load it as a causal language model.")
    values = config.to_dict()
    scale = float(values.get("logit_scale") or 1.0) / float(values.get("logits_scaling") or 1.0)
    parts = ExitParts(body, layers, norm, head, scale, float(values.get("final_logit_softcapping") or 0.0))
    return replace(parts, pairs=_check(model, parts))


def _check(model: PreTrainedModel, parts: ExitParts) -> bool:
    """Compare g(x_L) with the model's own logits on a few tokens; return whether layers return tuples."""
    seen: list[Any] = []
    hook = parts.layers[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    training = model.training
    model.train(False)
    tokens = torch.arange(4, device=model.device)[None] % int(model.config.get_text_config(decoder=True).vocab_size)
    try:
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits
            own = parts.project(hidden_state(seen[-1]))
    finally:
        hook.remove()
        model.train(training)
    difference = float((own - logits).abs().max() / logits.abs().max().clamp(min=1))
    if not difference <= (TOLERANCE if logits.dtype == torch.float32 else 2e-2):
        raise UserError(
            f"norm and head of a model of type {model.config.model_type!r} do not give its own logits "
            f"(largest difference {difference:.2g}).",
            hint="This architecture is not supported.",
        )
    return isinstance(seen[-1], tuple)


def hidden_state(output: Any) -> Tensor:
    """Return the hidden state out of what a layer returns."""
    state: Tensor = output[0] if isinstance(output, tuple) else output
    return state


def check_exit(exit_layer: int, num_layers: int) -> None:
    """Refuse an exit that is none.

    Raises:
        UserError: outside 1 .. L-1; both are named.
    """
    if not 1 <= exit_layer <= num_layers - 1:
        raise UserError(
            f"exit {exit_layer} does not exist: the model has {num_layers} layers, exits are 1 to {num_layers - 1}.",
            where="--exit-layer",
        )


@contextmanager
def replaced_forwards(layers: nn.ModuleList, make: Any) -> Iterator[None]:
    """Replace the `forward` of every layer by `make(index, forward)` while the context is open."""
    # Attributes of the instance win over the class's method, and deleting them brings it back.
    for index, layer in enumerate(layers):
        if "forward" in vars(layer):
            raise UserError("the model's layers are patched already.", hint="Undo the other patch first.")
        layer.forward = make(index, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
