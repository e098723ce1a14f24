"""Models of the family: presets, building and drawing by muP's rules, AdamW's groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from polyloom.core.errors import UserError, closest
from polyloom.methods.pretrain.method import (
    Rule,
    Scaling,
    Shape,
    decoder,
    folded_rule,
    tensor_class,
)
from polyloom.models.device import torch_generator
from polyloom.models.tiny import BOS_ID, EOS_ID, PAD_ID

NORM_EPS = 1e-5
ROTARY_THETA = 10000.0


@dataclass(frozen=True)
class Preset:
    """A model of the family: its shape, context, muP's base width and multipliers as released.

    `source` says where the figures come from; a multiplier that is not known is 1.
    """

    shape: Shape
    context: int
    base_width: int
    input_mult: float
    output_mult: float
    source: str


def _tiny(layers: int, width: int) -> Preset:
    return Preset(decoder(width, layers, 32, 2048), 256, 64, 1.0, 1.0, "ours")


CARD_52B = "config of the released Tele-FLM-52B"
PRESETS = {
    "tele-flm-52b": Preset(Shape(64, 64, 8192, 21824, 80384), 4096, 512, 1.0, 0.5, CARD_52B),
    "tele-flm-52b-padded": Preset(Shape(64, 64, 8192, 21824, 81920), 4096, 512, 1.0, 0.5, "by arithmetic: 52.85 B"),
    "tele-flm-proxy": Preset(Shape(64, 4, 512, 1344, 81920), 4096, 512, 1.0, 1.0, "by arithmetic: 283 M"),
    "flm-2-52b-instruct": Preset(Shape(64, 64, 8192, 21824, 80896), 2048, 256, 1.0, 1.0, "its released config"),
    "tele-flm-1t": Preset(Shape(140, 160, 20480, 98304, 81920), 4096, 256, 1.0, 2.0, "its released config"),
    "tiny-2x64": _tiny(2, 64),
    "tiny-4x128": _tiny(4, 128),
    "tiny-8x256": _tiny(8, 256),
}


def find_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}.", where="--preset", hint=closest(name, PRESETS))
    return PRESETS[name]


def llama_config(shape: Shape, context: int, *, norm_eps: float = NORM_EPS, theta: float = ROTARY_THETA) -> LlamaConfig:
    """Return the plain Llama configuration of a shape; a grown model has a smaller epsilon in its norms."""
    values: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": context,
        "rms_norm_eps": norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": False,
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }
    return LlamaConfig(**values)


def build(
    shape: Shape, context: int, scaling: Scaling, seed: int = 0, config: LlamaConfig | None = None
) -> LlamaForCausalLM:
    """Build a model in plain Llama form, the multipliers folded into its tensors, and draw its initial values.

    Args:
        shape: the decoder.
        context: positions.
        scaling: muP's hyper-parameters.
        seed: every tensor has its own stream of it, named after the tensor.
        config: the shape's configuration, where it is not the plain one.

    Returns:
        The model, in training mode, in float32.
    """
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config or llama_config(shape, context))
    draw(model.named_parameters(), shape, scaling, seed)
    model.train()
    return model


def draw(parameters: Iterable[tuple[str, Tensor]], shape: Shape, scaling: Scaling, seed: int) -> None:
    """Draw initial values in place: normal by the rules' std, gains 1."""
    with torch.no_grad():
        for name, parameter in parameters:
            rule = folded_rule(name, shape, scaling)
            if tensor_class(name) == "vector":
                parameter.fill_(1.0)
            elif rule.std == 0:
                parameter.zero_()
            else:
                parameter.normal_(std=rule.std, generator=torch_generator(seed, "weights", name))


def shape_of(config: Any) -> Shape:
    """Read the shape of a Llama or Granite configuration.

    Raises:
        UserError: tied embeddings, grouped keys, biases or heads of a size of their own: the family has none of them.
    """
    values = config.to_dict()
    kind, heads, width = values.get("model_type"), values.get("num_attention_heads"), values.get("hidden_size")
    if kind not in ("llama", "granite"):
        raise UserError(f"a model of type {kind!r} is not of Llama's form.", hint="Name a Llama or Granite folder.")
    if values.get("tie_word_embeddings"):
        hint = "The shared tensor would need two multipliers. Untie them."
        raise UserError("the input and output embeddings are tied, which the plain form cannot fold.", hint=hint)
    if values.get("num_key_value_heads", heads) != heads:
        raise UserError("the heads share keys (grouped-query attention), which the family does not.")
    if values.get("attention_bias") or values.get("mlp_bias"):
        raise UserError("the model has biases, for which muP's table here has no row.")
    if values.get("head_dim", width // heads) != width // heads:
        raise UserError(f"the head size {values['head_dim']} is not the width {width} over {heads} heads.")
    return Shape(values["num_hidden_layers"], heads, width, values["intermediate_size"], values["vocab_size"])


def by_class(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return a model's parameters by the classes that a monitor tells apart, each there even where it is empty."""
    words = {"input": "embedding", "matrix": "matrix", "vector": "norm", "output": "head"}
    found: dict[str, list[Tensor]] = {word: [] for word in words.values()}
    for name, parameter in model.named_parameters():
        found[words[tensor_class(name)]].append(parameter)
    return found


def parameter_groups(model: nn.Module, shape: Shape, scaling: Scaling) -> list[dict[str, Any]]:
    """Return AdamW's groups by muP's rules, for a model in folded form.

    Args:
        model: its parameters carry the names of a Llama.
        shape: of the whole model.
        scaling: the hyper-parameters.

    Returns:
        Groups with `params`, `lr`, `weight_decay`, `eps`, `muon`, and `gradient_scale`, by which a global norm
        multiplies the group's gradients to be the unfolded form's.
    """
    groups: dict[tuple[Rule, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        rule = folded_rule(name, shape, scaling)
        muon = scaling.muon and tensor_class(name) == "matrix"
        key = Rule(0.0, rule.lr, rule.weight_decay, rule.eps, rule.fold), muon
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rule.lr,
            "weight_decay": rule.weight_decay,
            "eps": rule.eps,
            "gradient_scale": rule.fold,
            "muon": muon,
        }
        for (rule, muon), parameters in groups.items()
    ]
