"""Less memory for the backward pass: the exact SwiGLU forms and activation checkpointing, on while a model trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaMLP

from polyloom.core.errors import UserError
from polyloom.models.patching import Mode, patch_mlp, unpatch_mlp
from polyloom.training.config import TrainConfig


@contextmanager
def saving_memory(model: nn.Module, config: TrainConfig) -> Iterator[None]:
    """Train with the memory-saving forms that the configuration names; neither changes a gradient.

    Args:
        model: a model of transformers where one of the forms is on.
        config: memory_saving_swiglu, activation_checkpointing.

    Raises:
        UserError: the model has no gated SiLU block, or cannot checkpoint its layers.
    """
    if config.memory_saving_swiglu != "off":
        patch_mlp(model, config.memory_saving_swiglu)
    if config.activation_checkpointing:
        checkpoint_layers(model)
    try:
        yield
    finally:
        if config.memory_saving_swiglu != "off":
            unpatch_mlp(model)
        if config.activation_checkpointing:
            checkpoint_layers(model, on=False)


def save_mlp_memory(model: nn.Module, config: LlamaConfig, mode: Mode) -> None:
    """Give the blocks of a Llama whose weights are not there yet the memory-saving form.

    It is proved on a small block of the same class and activation, as `patch_mlp` does it.

    Args:
        model: holds Llama's gated blocks, on the meta device or split.
        config: their configuration.
        mode: the form.
    """
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
    small = LlamaConfig(**shape, hidden_act=config.hidden_act, mlp_bias=config.mlp_bias)  # type: ignore[arg-type]
    proof = nn.ModuleList([LlamaMLP(small)])  # type: ignore[no-untyped-call]
    patch_mlp(proof, mode)
    patched: Any = type(proof[0])
    for module in model.modules():
        if type(module) is LlamaMLP:
            module.__class__ = patched


def checkpoint_layers(model: nn.Module, on: bool = True) -> None:
    """Make every decoder layer keep its input alone, or all again.

    Raises:
        UserError: the model has no layers that can.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        what = f"{type(model).__name__} cannot checkpoint its layers."
        raise UserError(what, where="--activation-checkpointing", hint="Turn it off.")
    for layer in layers:
        vars(layer)["gradient_checkpointing"] = on
        vars(layer)["_gradient_checkpointing_func"] = partial(checkpoint, use_reentrant=False)
