"""Tiny random models of several families, and a byte-level tokenizer that needs no training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests import families

VOCABULARY = 260
BOS, EOS, PAD = 256, 257, 258
SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": partial(families.llama, **SPECIAL),
    "mistral": partial(families.mistral, **SPECIAL, sliding_window=8),
    "gpt2": partial(families.gpt2, **SPECIAL),
    "bloom": partial(families.bloom, **SPECIAL),
    "t5": partial(families.t5, **SPECIAL, num_layers=3, num_decoder_layers=2, decoder_start_token_id=PAD),
    "bart": partial(families.bart, **SPECIAL, decoder_start_token_id=EOS),
}
CAUSAL = ("llama", "mistral", "gpt2", "bloom")
ENCODER_DECODER = ("t5", "bart")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def family() -> Callable[[str], PreTrainedModel]:
    """Give the tiny model of a family; its weights are large enough that its choices vary with the prompt."""
    made: dict[str, PreTrainedModel] = {}

    def get(name: str) -> PreTrainedModel:
        if name not in made:
            torch.manual_seed(sum(name.encode()))
            made[name] = families.sharpened(FAMILIES[name](), sum(name.encode()))
        return made[name]

    return get


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte (ids are positions in the byte-level alphabet), and three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    vocabulary |= {"<bos>": BOS, "<eos>": EOS, "<pad>": PAD, "<unk>": 259}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
