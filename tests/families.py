"""Tiny random models of several families: width 32, two layers, four heads; changes are of their configurations."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 61
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def llama(**changes: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**LLAMA | changes))


def mistral(**changes: Any) -> MistralForCausalLM:
    return MistralForCausalLM(MistralConfig(**LLAMA | changes))


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    shape = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    return GPT2LMHeadModel(GPT2Config(**shape | changes))


def bloom(**changes: Any) -> BloomForCausalLM:
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    return BloomForCausalLM(BloomConfig(**shape | changes))


def t5(**changes: Any) -> T5ForConditionalGeneration:
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
    layers = {"num_layers": 2, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(**shape | layers | changes))


def bart(**changes: Any) -> BartForConditionalGeneration:
    side = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
    shape = {f"{name}_{key}": value for name in ("encoder", "decoder") for key, value in side.items()}
    more = {"vocab_size": VOCABULARY, "d_model": 32, "max_position_embeddings": 128, "forced_eos_token_id": None}
    return BartForConditionalGeneration(BartConfig(**shape | more | changes))


def sharpened(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Give weights that make choices vary with the prompt."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "position" not in name:
                parameter.normal_(0, 0.25, generator=generator)
    return model.train(False)
