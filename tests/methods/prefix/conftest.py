"""Tiny random models and tokenizers of the two common kinds, and a pair of saved folders: a base and its tuned form."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from polyloom.methods.prefix.experiment import build_llama
from polyloom.models.load import save_model
from polyloom.models.tokenizers import train_tokenizer
from tests import families
from tests.families import sharpened

TEXT = [
    "Translate the dog to German: der Hund. The cat and the dogs, Hunde und Katzen!",
    "日本語の犬と猫",
    "été à Paris",
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXT * 40, 330)


@pytest.fixture(scope="session")
def piece_tokenizer() -> PreTrainedTokenizerFast:
    """A SentencePiece-like BPE: blanks are U+2581, one is put in front, unknown characters fall back to bytes."""
    words = ["▁Hund", "▁der", "Hund", "▁dog", "▁German", ":", "▁", "\n"]
    letters = sorted({c for text in TEXT[:1] for c in text if c != " "} | {c for word in words for c in word})
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": i + 3 for i in range(256)}
    for token in [*letters, "Hu", "nd", "▁d", "er", "og", *words]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [("H", "u"), ("n", "d"), ("Hu", "nd"), ("▁", "Hund"), ("▁", "d"), ("e", "r"), ("▁d", "er"), ("o", "g")]
    merges.append(("▁d", "og"))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?!)"), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def base(byte_tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return sharpened(build_llama(len(byte_tokenizer), 32, 2, 4, 0), 0)


@pytest.fixture(scope="session")
def tuned(base: PreTrainedModel) -> PreTrainedModel:
    model = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def t5(byte_tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return sharpened(families.t5(vocab_size=len(byte_tokenizer), eos_token_id=2, pad_token_id=0), 3)


@pytest.fixture(scope="session")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
    byte_tokenizer: PreTrainedTokenizerFast,
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    t5: PreTrainedModel,
) -> dict[str, Path]:
    """Save base, tuned form, an encoder-decoder, another family, and one with another tokenizer."""
    root = tmp_path_factory.mktemp("models")
    other = train_tokenizer([text.upper() for text in TEXT] * 40, 330)
    gpt2 = families.gpt2(vocab_size=len(byte_tokenizer), n_layer=1)
    foreign = LlamaForCausalLM(base.config)
    for name, model, tokenizer in (
        ("base", base, byte_tokenizer),
        ("tuned", tuned, byte_tokenizer),
        ("t5", t5, byte_tokenizer),
        ("gpt2", gpt2, byte_tokenizer),
        ("foreign", foreign, other),
    ):
        save_model(model, root / name, tokenizer)
    return {name: root / name for name in ("base", "tuned", "t5", "gpt2", "foreign")}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    rows = [("a", "the dog", "der Hund"), ("b", "the cat", "die Katze")]
    lines = [json.dumps({"id": i, "text": text, "reference": reference}) + "\n" for i, text, reference in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def muse(tmp_path: Path) -> Path:
    path = tmp_path / "en-de.txt"
    path.write_text("dog Hund\ncat Katze\nthe der\nthe die\n", encoding="utf-8")
    return path
