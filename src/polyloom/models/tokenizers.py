"""Byte-level BPE tokenizers trained on the spot, and what they do to each language."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from polyloom.core.errors import UserError
from polyloom.core.seeding import python_random

SPECIALS = ("<pad>", "<s>", "</s>")
SMALLEST_VOCABULARY = len(SPECIALS) + 256


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, split_digits: bool = False, min_frequency: int = 2
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer. It has all 256 bytes, so it encodes any text and needs no `<unk>`.

    Args:
        texts: the training text.
        vocab_size: tokens wanted, the three specials `<pad> <s> </s>` (ids 0 1 2) among them.
        split_digits: every digit is its own token.
        min_frequency: how often a pair has to occur to be merged.

    Returns:
        The tokenizer; `save_pretrained` writes it as tokenizer.json. It may have fewer tokens where the text is small.

    Raises:
        UserError: a vocabulary below 259 tokens, or no text.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"a byte-level vocabulary needs at least {SMALLEST_VOCABULARY} tokens (got {vocab_size}).",
            where="--vocab-size",
        )
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level]) if split_digits else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    num_texts = 0

    def counted() -> Iterable[str]:
        nonlocal num_texts
        for text in texts:
            num_texts += 1
            yield text

    tokenizer.train_from_iterator(counted(), trainer=trainer)
    if num_texts == 0:
        raise UserError("there is no text to train a tokenizer on.")
    pad, bos, eos = SPECIALS
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode text alone: no special token is added, and the text's own `</s>` is spelled in ordinary tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return ids


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Encode each text as `encode` does, in one call: for short texts most of the time is in the calls."""
    if not texts:
        return []
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    ids: list[list[int]] = tokenizer(list(texts), return_attention_mask=False, **options)["input_ids"]
    return ids


def temperature_weights(sizes: Mapping[str, int], alpha: float = 0.3) -> dict[str, float]:
    """Return sampling weights p_l ~ n_l^alpha that lift small languages.

    Args:
        sizes: bytes (or documents) of each language.
        alpha: 1 keeps the mixture as it is, 0 makes all languages equal.
    """
    powers = {language: size**alpha for language, size in sizes.items() if size > 0}
    total = sum(powers.values())
    return {language: power / total for language, power in powers.items()}


def sample_texts(texts: Mapping[str, Sequence[str]], num_bytes: int, *, alpha: float = 0.3, seed: int = 0) -> list[str]:
    """Sample about `num_bytes` bytes over languages by `temperature_weights`, no text twice.

    Args:
        texts: texts of each language.
        num_bytes: UTF-8 bytes wanted; a language that has less than its share gives all it has.
        alpha: as in `temperature_weights`.
        seed: each language is shuffled by its own stream.
    """
    sizes = {language: sum(len(text.encode()) for text in items) for language, items in texts.items()}
    sample = []
    for language, weight in temperature_weights(sizes, alpha).items():
        order = list(texts[language])
        python_random(seed, "tokenizer sample", language).shuffle(order)
        budget = weight * num_bytes
        for text in order:
            if budget <= 0:
                break
            sample.append(text)
            budget -= len(text.encode())
    return sample


@dataclass(frozen=True)
class Compression:
    """What a tokenizer does to one language.

    `parity` is its tokens per byte over those of the best language; `round_trip` says that decoding gives all the
    text back.
    """

    num_bytes: int
    num_tokens: int
    bytes_per_token: float
    parity: float
    round_trip: bool


def compression(tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, Sequence[str]]) -> dict[str, Compression]:
    """Measure bytes per token, parity and round trip of each language that has text.

    Args:
        tokenizer: the tokenizer.
        texts: texts of each language.
    """
    counts = {}
    for language, items in texts.items():
        ids = [encode(tokenizer, text) for text in items]
        exact = all(tokenizer.decode(i) == text for i, text in zip(ids, items, strict=True))
        counts[language] = (sum(len(text.encode()) for text in items), sum(map(len, ids)), exact)
    rates = {language: tokens / size for language, (size, tokens, _) in counts.items() if size}
    return {
        language: Compression(size, tokens, size / tokens, rates[language] / min(rates.values()), exact)
        for language, (size, tokens, exact) in counts.items()
        if size
    }
