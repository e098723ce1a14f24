"""Bits per byte: what a language model spends on text, comparable between tokenizers and languages."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

GZIP_WINDOW_BYTES = 32768


@dataclass(frozen=True)
class DocumentScore:
    """What one document costs: its negative log-likelihood in nats, its UTF-8 bytes, its tokens."""

    nats: float
    num_bytes: int
    num_tokens: int


def bits_per_byte(scores: Iterable[DocumentScore]) -> float:
    """Return the sum of nats over ln 2 times the sum of bytes.

    Args:
        scores: documents with at least one byte in all.
    """
    scores = list(scores)
    return math.fsum(score.nats for score in scores) / (math.log(2) * sum(score.num_bytes for score in scores))


def score_documents(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    window_tokens: int = 256,
    batch_size: int = 16,
) -> list[DocumentScore]:
    """Score each text with a causal language model, every byte once.

    A text's first token is conditioned on `<s>` (`</s>` where the tokenizer has none); specials and padding count
    neither as tokens nor as bytes. Text longer than a window is read in windows that overlap by half, of which the new
    half is scored.

    Args:
        model: returns `.logits` [batch tokens vocabulary]; the precision is that of the surrounding autocast.
        tokenizer: its tokenizer.
        texts: the documents.
        window_tokens: T, tokens that the model sees at once.
        batch_size: windows a forward pass.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = [
        tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        for text in texts
    ]
    nats = token_nats(model, ids, start, window_tokens=window_tokens, batch_size=batch_size)
    return [DocumentScore(n, len(text.encode()), len(tokens)) for n, text, tokens in zip(nats, texts, ids, strict=True)]


def token_nats(
    model: nn.Module, sequences: Sequence[Sequence[int]], start_id: int, *, window_tokens: int, batch_size: int
) -> list[float]:
    """Return each sequence's negative log-likelihood in nats, its first token conditioned on `start_id`.

    Args:
        model: returns `.logits` [batch tokens vocabulary].
        sequences: token ids of each document.
        start_id: the token before the first.
        window_tokens: T; at least 2.
        batch_size: windows a forward pass.
    """
    full = [[start_id, *sequence] for sequence in sequences]
    windows = [(d, *window) for d, ids in enumerate(full) for window in _windows(len(ids) - 1, window_tokens)]
    windows.sort(key=lambda window: window[2] - window[1])
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    nats: list[list[float]] = [[] for _ in full]
    with torch.inference_mode():
        for first in range(0, len(windows), batch_size):
            batch = windows[first : first + batch_size]
            width = max(end - begin for _, begin, end, _ in batch)
            # Padding stands behind the text, where a causal model does not see it.
            rows = [full[d][b : e + 1] + [start_id] * (width - (e - b)) for d, b, e, _ in batch]
            tokens = torch.tensor(rows, device=device)
            logits = model(input_ids=tokens[:, :-1]).logits
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
            for row, (d, b, e, s) in zip(losses.view(len(batch), width).double().cpu(), batch, strict=True):
                nats[d] += row[s - b : e - b].tolist()
    return [math.fsum(parts) for parts in nats]


def _windows(num_targets: int, window_tokens: int) -> list[tuple[int, int, int]]:
    """Cut targets 0..n-1 into (begin, end, first scored): windows of T whose new half, at most T/2, is scored."""
    edges = [0, *range(window_tokens, num_targets, max(1, window_tokens // 2)), num_targets]
    return [(max(0, end - window_tokens), end, scored) for scored, end in pairwise(edges) if end > scored]


def byte_frequency_scores(train_texts: Iterable[str], texts: Sequence[str]) -> list[DocumentScore]:
    """Score texts by the frequencies of single bytes (order 0) in the training text, one added to each of the 256.

    Args:
        train_texts: where the frequencies come from.
        texts: what is scored; a byte is a token.
    """
    counts = Counter[int]()
    for text in train_texts:
        counts.update(text.encode())
    total = counts.total() + 256
    cost = [math.log(total / (counts[byte] + 1)) for byte in range(256)]
    encoded = [text.encode() for text in texts]
    return [DocumentScore(math.fsum(cost[byte] for byte in data), len(data), len(data)) for data in encoded]


def gzip_scores(train_texts: Iterable[str], texts: Sequence[str]) -> list[DocumentScore]:
    """Score texts by gzip's algorithm (DEFLATE, level 9, no header), primed with the training text's last 32 KiB.

    Args:
        train_texts: what the window is filled with; none at all is plain compression.
        texts: each is compressed by itself; the scores are in nats like a model's.
    """
    dictionary = "\n\n".join(train_texts).encode()[-GZIP_WINDOW_BYTES:]
    scores = []
    for text in texts:
        data = text.encode()
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15, zlib.DEF_MEM_LEVEL, zlib.Z_DEFAULT_STRATEGY, dictionary)
        size = len(compressor.compress(data) + compressor.flush())
        scores.append(DocumentScore(size * 8 * math.log(2), len(data), len(data)))
    return scores
