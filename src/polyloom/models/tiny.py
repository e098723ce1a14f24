"""Tiny models, built on the spot: decoders in Llama and Granite form, encoders in BERT form.

| name | form | layers | width | heads | feed-forward |
| --- | --- | --- | --- | --- | --- |
| `llama-2x64`, `llama-4x128`, `llama-8x256` | Llama: RMSNorm, rotary positions, SwiGLU, untied embeddings | 2 4 8 | 64 128 256 | 2 4 8 | 128 320 640 |
| `granite-2x64`, `granite-4x128` | the same with Granite's multipliers, all of them neutral | 2 4 | 64 128 | 2 4 | 128 320 |
| `bert-2x64`, `bert-4x128` | BERT: LayerNorm, learned positions, GELU | 2 4 | 64 128 | 2 4 | 256 512 |
"""  # noqa: E501

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import (
    BertConfig,
    BertModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from polyloom.core.errors import UserError, closest
from polyloom.models.device import torch_generator

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
MAX_POSITIONS = 1024
HEAD_SIZE = 32
MATRIX_STD = 0.02
# With 0.02 here as well, the first norm magnifies the gradients of the embeddings, and models of four layers stay for
# long on a plateau that larger embeddings leave early.
EMBEDDING_STD = 0.1


@dataclass(frozen=True)
class TinySize:
    """The size of a tiny model; heads have 32 dimensions each."""

    form: Literal["llama", "granite", "bert"]
    num_layers: int
    width: int

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return self.width // HEAD_SIZE

    @property
    def feed_forward(self) -> int:
        """Inner width: 4d for BERT; for SwiGLU 8d/3 rounded down to a multiple of 64, as Tele-FLM does."""
        return 4 * self.width if self.form == "bert" else 64 * (8 * self.width // 3 // 64)


SIZES = (
    TinySize("llama", 2, 64),
    TinySize("llama", 4, 128),
    TinySize("llama", 8, 256),
    TinySize("granite", 2, 64),
    TinySize("granite", 4, 128),
    TinySize("bert", 2, 64),
    TinySize("bert", 4, 128),
)
TINY = {f"{size.form}-{size.num_layers}x{size.width}": size for size in SIZES}


def build_tiny(name: str, vocab_size: int, seed: int = 0) -> PreTrainedModel:
    """Build an untrained tiny model.

    Args:
        name: a key of `TINY`, such as `llama-4x128`.
        vocab_size: rows of the embeddings.
        seed: every parameter is drawn from its own stream of this seed, named after the parameter.

    Returns:
        The model, in evaluation mode.

    Raises:
        UserError: there is no such name.
    """
    if name not in TINY:
        raise UserError(f"there is no tiny model {name!r}.", hint=closest(name, TINY))
    with torch.random.fork_rng(devices=[]):
        model = _build(TINY[name], vocab_size)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                std = EMBEDDING_STD if "embed" in parameter_name else MATRIX_STD
                parameter.normal_(std=std, generator=torch_generator(seed, "weights", parameter_name))
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _build(size: TinySize, vocab_size: int) -> PreTrainedModel:
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": size.width,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": size.num_heads,
        "intermediate_size": size.feed_forward,
        "max_position_embeddings": MAX_POSITIONS,
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "initializer_range": MATRIX_STD,
    }
    if size.form == "bert":
        return BertModel(BertConfig(**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    shape |= {"rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    if size.form == "granite":
        # Granite's own default for attention_multiplier is 1, which is not the 1/sqrt(head size) of everyone else.
        return GraniteForCausalLM(GraniteConfig(**shape, attention_multiplier=HEAD_SIZE**-0.5))
    return LlamaForCausalLM(LlamaConfig(**shape))
