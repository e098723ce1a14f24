"""From documents to batches: one token stream, cut into windows, drawn as a pure function of seed and step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.models.device import torch_generator
from polyloom.models.tokenizers import encode

Batch = Mapping[str, Tensor]
BatchAt = Callable[[int], Batch]


def pack(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Tokenise documents into one stream `<s> document </s> <s> document </s> ...`.

    Args:
        texts: the documents.
        tokenizer: its ids of `<s>` and `</s>` are set between documents, where it has them.

    Returns:
        Token ids [tokens].
    """
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream: list[int] = []
    for text in texts:
        stream += begin + encode(tokenizer, text) + end
    return torch.tensor(stream, dtype=torch.int64)


def window_batches(stream: Tensor, *, window_tokens: int, batch_size: int, seed: int = 0) -> BatchAt:
    """Cut a stream into windows of T targets and return the function from a step to its batch.

    Windows hold T+1 tokens at stride T, so every token but the first is a target once an epoch. The stream's rest that
    fills no window is left out. Sample i = step * batch_size + row is window i mod n of the permutation of epoch
    i div n: what a step trains on depends on the seed and the step alone.

    Args:
        stream: token ids [tokens].
        window_tokens: T.
        batch_size: rows of a batch.
        seed: of the permutations, one for each epoch.

    Returns:
        A function from a step to `{"tokens": [batch_size, T+1]}`.

    Raises:
        UserError: the stream fills no window.
    """
    num_windows = (len(stream) - 1) // window_tokens
    if num_windows < 1:
        raise UserError(
            f"the text has {len(stream)} tokens, one window needs {window_tokens + 1}.",
            hint="Give more text or a shorter window.",
        )

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> Tensor:
        return torch.randperm(num_windows, generator=torch_generator(seed, "epoch", epoch))

    offsets = torch.arange(window_tokens + 1)

    def batch_at(step: int) -> Batch:
        samples = range(step * batch_size, (step + 1) * batch_size)
        windows = torch.stack([permutation(i // num_windows)[i % num_windows] for i in samples])
        return {"tokens": stream[windows[:, None] * window_tokens + offsets]}

    return batch_at
