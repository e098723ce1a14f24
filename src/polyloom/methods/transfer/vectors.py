"""Vectors of words from any Hugging Face encoder: in context for alignment, without it for the choice of a sense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.methods.transfer.sequences import num_positions

BATCH_SIZE = 32


def context_vectors(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, ...]], layer: int = -1
) -> Iterator[NDArray[np.float32]]:
    """Yield one vector a word for each text: the mean of its pieces at a layer.

    Args:
        model: an encoder in evaluation mode.
        tokenizer: its fast tokenizer.
        texts: words of each text; those beyond the encoder's length get the vector of the last word that fits.
        layer: number of the hidden state; -1 is the last, 8 is mBERT's best for alignment (arXiv 2004.08728).

    Raises:
        UserError: the tokenizer cannot say which word a piece belongs to, or there is no such layer.
    """
    if not tokenizer.is_fast:
        raise UserError("its tokenizer has no fast form.", where="--model", hint="Use a model with tokenizer.json.")
    limit = min(tokenizer.model_max_length, num_positions(model) or 512)
    for start in range(0, len(texts), BATCH_SIZE):
        batch = [list(text) for text in texts[start : start + BATCH_SIZE]]
        encoded = tokenizer(
            batch, is_split_into_words=True, padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        with torch.inference_mode():
            states = model(**encoded.to(model.device), output_hidden_states=True).hidden_states
        if not -len(states) <= layer < len(states):
            raise UserError(f"the encoder has no layer {layer}.", where="--layer", hint=f"It has {len(states) - 1}.")
        for i, words in enumerate(batch):
            yield _pool(states[layer][i].float().cpu().numpy(), encoded.word_ids(i), len(words))


def _pool(states: NDArray[np.float32], word_ids: Sequence[int | None], num_words: int) -> NDArray[np.float32]:
    sums = np.zeros((num_words, states.shape[1]), dtype=np.float32)
    counts = np.zeros(num_words, dtype=np.float32)
    for state, word in zip(states, word_ids, strict=True):
        if word is not None:
            sums[word] += state
            counts[word] += 1
    last = np.zeros(states.shape[1], dtype=np.float32)
    for word in range(num_words):
        if counts[word]:
            last = sums[word] = sums[word] / counts[word]
        else:
            sums[word] = last
    return sums


def vocabulary_frequency(tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Rank whole words by their place in an encoder's vocabulary: earlier pieces are more frequent in training text.

    Args:
        tokenizer: word pieces (`##` continues), SentencePiece (`▁` begins) or byte-level BPE (`Ġ` begins).

    Returns:
        1 / (1 + id) for each piece that is a word by itself; a word that is not there counts 0.
    """
    found: dict[str, float] = {}
    for piece, number in tokenizer.get_vocab().items():
        word = piece.lstrip("▁Ġ")
        if word and not piece.startswith("##"):
            found[word] = max(found.get(word, 0.0), 1 / (1 + number))
    return found


class WordVectors:
    """Vectors of words without context: the mean input embedding of their pieces. Called with a word."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the input embeddings of a model.

        Args:
            model: any model with input embeddings (d wide).
            tokenizer: its tokenizer.
        """
        weight: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        self._table = weight.detach().float().cpu().numpy()
        self._tokenizer = tokenizer
        self._cached = lru_cache(maxsize=100_000)(self._vector)

    def __call__(self, word: str) -> NDArray[np.float32]:
        """Return the vector (d) of a word."""
        return self._cached(word)

    def _vector(self, word: str) -> NDArray[np.float32]:
        ids = self._tokenizer(word, add_special_tokens=False)["input_ids"]
        vector: NDArray[np.float32] = self._table[ids].mean(0) if ids else np.zeros(self._table.shape[1], np.float32)
        return vector
