"""One-token steps of Llama and Granite models with few operations.

A tiny model spends most of a step in the library's module calls, not in arithmetic. Here the same step is a straight
line: query, key and value in one product, gate and up in another, rotary tables computed once. It is used only for
models that are exactly of the library's own parts; whatever was patched, adapted, hooked or set up otherwise is
decoded through the model itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, GraniteForCausalLM, LlamaForCausalLM, PreTrainedModel
from transformers.models.granite import modeling_granite as granite
from transformers.models.llama import modeling_llama as llama

from polyloom.generation.cache import GrowingLayer

PARTS: dict[type, tuple[type, ...]] = {
    LlamaForCausalLM: (llama.LlamaModel, llama.LlamaDecoderLayer, llama.LlamaAttention, llama.LlamaMLP),
    GraniteForCausalLM: (
        granite.GraniteModel,
        granite.GraniteDecoderLayer,
        granite.GraniteAttention,
        granite.GraniteMLP,
    ),
}
SMALL_PARTS = (
    llama.LlamaRMSNorm,
    llama.LlamaRotaryEmbedding,
    granite.GraniteRMSNorm,
    granite.GraniteRotaryEmbedding,
    nn.Linear,
    nn.Embedding,
    nn.ModuleList,
)
FIXED_ROTARY = ("default", "linear", "llama3")
MAX_PARAMETERS = 64_000_000


@dataclass(frozen=True)
class PackedLayer:
    """One layer's weights as `Steps` multiplies by them; norms' weights and sqrt(dim) are folded into those behind."""

    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    activation: nn.Module


def supports_steps(model: PreTrainedModel) -> bool:
    """Whether `Steps` computes what the model computes: every part of it is the library's own, unhooked, in float32.

    Larger models gain nothing, so that their weights are not copied for it.
    """
    if type(model) not in PARTS or model.num_parameters() > MAX_PARAMETERS:
        return False
    if model.config._attn_implementation != "sdpa" or model.model.rotary_emb.rope_type not in FIXED_ROTARY:
        return False
    for name, module in model.named_modules():
        known = type(module) in (type(model), *PARTS[type(model)], *SMALL_PARTS) or name.endswith(".mlp.act_fn")
        if not known or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return False
    return all(parameter.dtype == torch.float32 for parameter in model.parameters())


class Steps:
    """Computes the logits after one more token per row, given a cache that the model itself has filled."""

    def __init__(self, model: PreTrainedModel, num_positions: int) -> None:
        """Pack the weights as they are now.

        Args:
            model: one that `supports_steps`.
            num_positions: positions that will be needed.
        """
        config, body = model.config, model.model
        attention = body.layers[0].self_attn
        self.head_dim: int = attention.head_dim
        self.num_heads, self.num_groups = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.scale: float = attention.scaling
        dim = int(config.hidden_size)
        self.root = torch.tensor((dim * config.rms_norm_eps) ** 0.5, device=body.embed_tokens.weight.device)
        scaled = isinstance(model, GraniteForCausalLM)
        self.embedding_multiplier: float = config.embedding_multiplier if scaled else 1.0
        self.residual_multiplier: float = config.residual_multiplier if scaled else 1.0
        self.logits_scaling: float = config.logits_scaling if scaled else 1.0
        self.embedding: Tensor = body.embed_tokens.weight
        self.norm: Tensor = body.norm.weight * dim**0.5
        self.head: Tensor = model.lm_head.weight
        self.layers = [_packed(layer, dim**0.5) for layer in body.layers]
        positions = torch.arange(num_positions, device=self.embedding.device)[None]
        cos, sin = body.rotary_emb(self.embedding, position_ids=positions)
        half = self.head_dim // 2
        # Swapping the halves is then a rotation, without a negation at every step.
        self.cos, self.sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)

    def __call__(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache) -> Tensor:
        """Take one step.

        Args:
            tokens: [rows, 1].
            positions: [rows, 1].
            mask: [rows, length], 1 where a token stands, the new one included; None without padding.
            cache: keys and values so far; the new ones are added.

        Returns:
            Logits [rows, vocabulary].
        """
        rows = tokens.shape[0]
        attended = None if mask is None else mask[:, None, None, :].bool()
        cos, sin = self.cos[positions], self.sin[positions]
        x = self.embedding[tokens[:, 0]] * self.embedding_multiplier
        for layer, memory in zip(self.layers, cache.layers, strict=True):
            mixed = self._attend(layer, memory, x, rows, cos, sin, attended)
            x = torch.add(x, mixed, alpha=self.residual_multiplier)
            gate, up = functional.linear(normed(x, self.root), layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
            mixed = functional.linear(layer.activation(gate) * up, layer.down, layer.down_bias)
            x = torch.add(x, mixed, alpha=self.residual_multiplier)
        logits = functional.linear(normed(x, self.root) * self.norm, self.head)
        return logits / self.logits_scaling if self.logits_scaling != 1 else logits

    def _attend(
        self, layer: PackedLayer, memory: Any, x: Tensor, rows: int, cos: Tensor, sin: Tensor, attended: Tensor | None
    ) -> Tensor:
        heads = functional.linear(normed(x, self.root), layer.qkv, layer.qkv_bias).view(rows, -1, self.head_dim)
        turning = heads[:, : self.num_heads + self.num_groups]
        half = self.head_dim // 2
        turned = turning * cos + torch.cat([turning[..., half:], turning[..., :half]], dim=-1) * sin
        new_keys, new_values = turned[:, self.num_heads :, None], heads[:, self.num_heads + self.num_groups :, None]
        keys, values = memory.update(new_keys, new_values)
        # The queries that share a key head stand as positions beside each other.
        queries = turned[:, : self.num_heads].reshape(rows, self.num_groups, -1, self.head_dim)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=attended, scale=self.scale)
        return functional.linear(mixed.reshape(rows, -1), layer.out, layer.out_bias)


def normed(x: Tensor, root: Tensor) -> Tensor:
    """Return x over its root mean square and over sqrt(dim), which the weights behind hold.

    x / sqrt(mean(x^2) + eps) is sqrt(dim) x / hypot(|x|, sqrt(dim eps)): three operations, where the library's norm
    takes a dozen on a CPU.

    Args:
        x: [..., dim].
        root: sqrt(dim eps).
    """
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), root)


def all_kept(cache: Cache) -> bool:
    """Whether every layer of `cache` keeps all positions, as `Steps` presumes."""
    return all(type(layer) is GrowingLayer for layer in cache.layers)


def _packed(layer: Any, root: float) -> PackedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    qkv, qkv_bias = _stack(attention.q_proj, attention.k_proj, attention.v_proj)
    gate_up, gate_up_bias = _stack(mlp.gate_proj, mlp.up_proj)
    return PackedLayer(
        qkv=qkv * (layer.input_layernorm.weight * root),
        qkv_bias=qkv_bias,
        out=attention.o_proj.weight,
        out_bias=attention.o_proj.bias,
        gate_up=gate_up * (layer.post_attention_layernorm.weight * root),
        gate_up_bias=gate_up_bias,
        down=mlp.down_proj.weight,
        down_bias=mlp.down_proj.bias,
        activation=mlp.act_fn,
    )


def _stack(*parts: nn.Linear) -> tuple[Tensor, Tensor | None]:
    biases: list[Tensor] = [part.bias for part in parts if part.bias is not None]
    return torch.cat([part.weight for part in parts]), torch.cat(biases) if biases else None
