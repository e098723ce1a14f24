"""How probable a local model finds given continuations: for choosing between options without parsing a reply."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polyloom.core.errors import UserError
from polyloom.generation.decode import decoder_start, max_positions
from polyloom.models.padding import pad_rows


def score_continuations(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
) -> list[list[float]]:
    """Return log P(c_t | prompt, c_<t) of every token of each continuation.

    Args:
        model: a causal language model, or an encoder-decoder model (prompts then feed the encoder).
        prompts: token ids.
        continuations: token ids, one sequence for each prompt.
        batch_size: rows computed at a time; those of similar length go together.

    Returns:
        For each pair the natural log-probabilities of the continuation's tokens (sum them for the sequence).

    Raises:
        UserError: an empty prompt or continuation, or a pair longer than the model's positions.
    """
    encoder_decoder = bool(model.config.is_encoder_decoder)
    limit = max_positions(model)
    for number, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        if not prompt or not continuation:
            raise UserError("the prompt or the continuation is empty.", where=f"pair {number}")
        length = max(len(prompt), len(continuation)) if encoder_decoder else len(prompt) + len(continuation)
        if limit and length > limit:
            raise UserError(f"is longer than the model's {limit} positions.", where=f"pair {number}")
    pairs = [(list(a), list(b)) for a, b in zip(prompts, continuations, strict=True)]
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    scores: list[list[float]] = [[] for _ in pairs]
    training = model.training
    model.train(False)
    try:
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            score = _score_answers if encoder_decoder else _score
            for i, values in zip(chunk, score(model, [pairs[i] for i in chunk]), strict=True):
                scores[i] = values
    finally:
        model.train(training)
    return scores


@torch.inference_mode()
def _score(model: PreTrainedModel, pairs: list[tuple[list[int], list[int]]]) -> list[list[float]]:
    # The last token predicts nothing that is asked for. Padding stands behind, where a causal model cannot see it.
    tokens, mask = pad_rows([(prompt + continuation)[:-1] for prompt, continuation in pairs], model.device)
    logits: Tensor = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    scores = []
    for row, (prompt, continuation) in enumerate(pairs):
        span = slice(len(prompt) - 1, len(prompt) - 1 + len(continuation))
        logprobs = logits[row, span].float().log_softmax(dim=-1)
        chosen = torch.tensor(continuation, device=model.device)[:, None]
        values: list[float] = logprobs.gather(-1, chosen).squeeze(-1).tolist()
        scores.append(values)
    return scores


@torch.inference_mode()
def _score_answers(model: PreTrainedModel, pairs: list[tuple[list[int], list[int]]]) -> list[list[float]]:
    """Score by an encoder-decoder model: prompts through the encoder, answers behind the decoder's start token."""
    start = decoder_start(model)
    tokens, mask = pad_rows([prompt for prompt, _ in pairs], model.device)
    answers, _ = pad_rows([[start, *continuation[:-1]] for _, continuation in pairs], model.device)
    logits: Tensor = model(input_ids=tokens, attention_mask=mask, decoder_input_ids=answers, use_cache=False).logits
    scores = []
    for row, (_, continuation) in enumerate(pairs):
        logprobs = logits[row, : len(continuation)].float().log_softmax(dim=-1)
        chosen = torch.tensor(continuation, device=model.device)[:, None]
        values: list[float] = logprobs.gather(-1, chosen).squeeze(-1).tolist()
        scores.append(values)
    return scores
