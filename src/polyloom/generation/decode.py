"""Batched decoding of a local Hugging Face model, causal or encoder-decoder.

Rows are padded on the left with position ids that start at each row's first token, keys and values are cached, and a
row leaves the batch as soon as it has finished. A row's text depends on its own prompt, settings and seed alone (up to
floating-point ties, which a matrix product of another shape may break differently).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.generation.cache import cache_keyword, keep_rows, new_cache
from polyloom.generation.sampling import Decoding as Decoding
from polyloom.generation.sampling import TokenChooser
from polyloom.generation.steps import Steps, all_kept, supports_steps
from polyloom.generation.text import TextStream, decode_tokens
from polyloom.models.padding import pad_rows

FinishReason = Literal["eos", "stop", "length"]
RESERVED_TOKENS = 256
MIN_STEPS = 4


@dataclass(frozen=True)
class Decoded:
    """One continuation.

    Attributes:
        tokens: the new tokens, with the end token or the token that completed a stop text as the last.
        text: their text without the end token and special tokens, cut before a stop text; empty without a tokenizer.
        finish_reason: an end token came, a stop text came, or the budget was used up.
        logprobs: log-probability of each token under the model (temperature 1), if asked for.
    """

    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None = None


@dataclass
class _Row:
    index: int
    settings: Decoding
    stream: TextStream | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"


@dataclass
class _Batch:
    rows: list[_Row]
    inputs: Tensor
    positions: Tensor
    mask: Tensor
    padded: bool
    length: int
    cache: Any
    chooser: TokenChooser
    fixed: dict[str, Any]
    encoder: dict[str, Any]


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Decoding | Sequence[Decoding] = Decoding(),  # noqa: B008 (frozen)
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    eos_tokens: Sequence[int] | None = None,
    decoder_prefixes: Sequence[Sequence[int]] | None = None,
    batch_size: int = 32,
    on_text: Callable[[int, str], None] | None = None,
    before_step: Callable[[], None] | None = None,
) -> list[Decoded]:
    """Continue prompts.

    Args:
        model: a causal language model, or an encoder-decoder model (prompts then feed the encoder).
        prompts: token ids of each prompt, special tokens included.
        settings: one for all prompts, or one for each.
        tokenizer: gives the text; needed for stop texts and `on_text`.
        eos_tokens: tokens that end a text; by default those of the model's generation config, none if empty.
        decoder_prefixes: for encoder-decoder models: tokens that the answer is made to begin with, not repeated in
            the result. (For a causal model append them to the prompt.)
        batch_size: prompts decoded at a time; those of similar length go together.
        on_text: called with the prompt's number and each new piece of its text.
        before_step: called before every step; what it raises ends the decoding.

    Returns:
        One continuation per prompt, in the order of the prompts.

    Raises:
        UserError: an empty prompt, a token outside the vocabulary, a prompt and budget beyond the model's positions,
            a stop text without a tokenizer, or a model that cannot be decoded this way.
        PolyloomError: the model gave NaN.
    """
    each = [settings] * len(prompts) if isinstance(settings, Decoding) else list(settings)
    prefixes = [list(one) for one in decoder_prefixes or [()] * len(prompts)]
    _check_inputs(model, prompts, each, prefixes, tokenizer, on_text)
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}.")
    ends = frozenset(model_eos_tokens(model) if eos_tokens is None else eos_tokens)
    results: list[Decoded | None] = [None] * len(prompts)
    streaming = on_text is not None
    for chunk in _chunks(prompts, prefixes, batch_size):
        rows = [_Row(i, each[i], _stream(tokenizer, each[i], streaming)) for i in chunk]
        with _evaluating(model), torch.inference_mode():
            batch = _prepare(model, [list(prompts[i]) for i in chunk], [prefixes[i] for i in chunk], rows)
            _run(model, batch, ends, on_text, before_step)
        for row in rows:
            results[row.index] = _finished(row, tokenizer, on_text)
    return [one for one in results if one is not None]


def model_eos_tokens(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the tokens that end a text: of the generation config, else of the config; may be none."""
    value = _special_token(model, "eos_token_id")
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _special_token(model: PreTrainedModel, name: str) -> int | list[int] | None:
    """Look a token up in the generation config, then in the config; not every config class has every one."""
    own = getattr(model.generation_config, name, None)
    value: int | list[int] | None = getattr(model.config.get_text_config(decoder=True), name, None)
    return value if own is None else own


def max_positions(model: PreTrainedModel) -> int | None:
    """Return how many positions the decoder of `model` has, or None where they are not bounded (T5, ALiBi)."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(limit) if limit else None


def _check_inputs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Decoding],
    prefixes: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase | None,
    on_text: Callable[[int, str], None] | None,
) -> None:
    if not len(prompts) == len(settings) == len(prefixes):
        raise UserError(f"{len(prompts)} prompts, {len(settings)} settings and {len(prefixes)} prefixes do not match.")
    if tokenizer is None and (on_text is not None or any(one.stop for one in settings)):
        raise UserError("stop texts and streaming need a tokenizer.")
    encoder_decoder = bool(model.config.is_encoder_decoder)
    if cache_keyword(model) is None:
        raise UserError(f"a model of type {model.config.model_type!r} has no key-value cache to decode with.")
    if not encoder_decoder and any(prefixes):
        raise UserError("decoder prefixes are for encoder-decoder models.", hint="Append them to the prompt.")
    vocabulary = cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings
    limit = max_positions(model)
    for number, (prompt, prefix, one) in enumerate(zip(prompts, prefixes, settings, strict=True)):
        where = f"prompt {number}"
        if not prompt:
            raise UserError("is empty.", where=where, hint="Begin it with the beginning-of-text token, or give text.")
        tokens = [*prompt, *prefix]
        if min(tokens) < 0 or max(tokens) >= vocabulary:
            raise UserError(f"holds a token outside 0..{vocabulary - 1}.", where=where, hint="Check the tokenizer.")
        num_tokens = len(prefix) + 1 if encoder_decoder else len(prompt)
        # The last new token is never fed back, so it needs no position.
        if limit and num_tokens + one.max_new_tokens - 1 > limit:
            raise UserError(
                f"{num_tokens} tokens and {one.max_new_tokens} new ones exceed the model's {limit} positions.",
                where=where,
                hint="Shorten it or lower the budget.",
            )


def _parameters(model: PreTrainedModel) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)


def _chunks(
    prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]], batch_size: int
) -> Iterator[list[int]]:
    """Yield the prompts' numbers in batches of similar length, and of equal prefix length.

    Unequal decoder prefixes would need padding in front of the decoder, which learned positions do not forgive.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prefixes[i]), len(prompts[i])))
    chunk: list[int] = []
    for i in order:
        if chunk and (len(chunk) == batch_size or len(prefixes[i]) != len(prefixes[chunk[0]])):
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk


def _stream(tokenizer: PreTrainedTokenizerBase | None, settings: Decoding, streaming: bool) -> TextStream | None:
    return TextStream(tokenizer, settings.stop) if tokenizer is not None and (settings.stop or streaming) else None


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)


def _prepare(model: PreTrainedModel, prompts: list[list[int]], prefixes: list[list[int]], rows: list[_Row]) -> _Batch:
    device = model.device
    encoder: dict[str, Any] = {}
    parameters = _parameters(model)
    if model.config.is_encoder_decoder:
        tokens, encoder_mask = pad_rows(prompts, device)
        states = model.get_encoder()(input_ids=tokens, attention_mask=encoder_mask, return_dict=True)
        encoder = {"states": states[0], "mask": encoder_mask}
        start = decoder_start(model)
        prompts = [[start, *prefix] for prefix in prefixes]
    inputs, mask = pad_rows(prompts, device, left=True)
    budget = max(row.settings.max_new_tokens for row in rows)
    cache = new_cache(model, inputs.shape[-1] + min(budget, RESERVED_TOKENS))
    room = torch.ones(len(rows), budget, dtype=mask.dtype, device=device)
    return _Batch(
        rows=list(rows),
        inputs=inputs,
        positions=(mask.cumsum(dim=-1) - 1).clamp(min=0),
        mask=torch.cat([mask, room], dim=-1),
        padded=bool((mask == 0).any()),
        length=inputs.shape[-1],
        cache=cache,
        chooser=TokenChooser([row.settings for row in rows], device),
        fixed={str(cache_keyword(model)): cache, "use_cache": True, "return_dict": True}
        | ({"logits_to_keep": 1} if "logits_to_keep" in parameters else {}),
        encoder=encoder,
    )


def decoder_start(model: PreTrainedModel) -> int:
    """Return the token that an encoder-decoder model's answers begin behind.

    Raises:
        UserError: its configuration names none.
    """
    for name in ("decoder_start_token_id", "bos_token_id"):
        value = _special_token(model, name)
        if isinstance(value, int):
            return value
    raise UserError("the config names no decoder start token.", hint="Set decoder_start_token_id.")


def _forward(model: PreTrainedModel, batch: _Batch, takes_positions: bool) -> Tensor:
    """Feed the waiting tokens; return the logits after the last of them, float32 [rows, vocabulary]."""
    given: dict[str, Any] = dict(batch.fixed)
    if batch.encoder:
        given["encoder_outputs"] = (batch.encoder["states"],)
        given["attention_mask"] = batch.encoder["mask"]
        given["decoder_input_ids"] = batch.inputs
    else:
        given["input_ids"] = batch.inputs
        # Without padding the mask says nothing, and models answer sooner without one.
        given["attention_mask"] = batch.mask[:, : batch.length] if batch.padded else None
        if takes_positions:
            given["position_ids"] = batch.positions
    logits: Tensor = model(**given).logits
    return logits[:, -1].float()


def _run(
    model: PreTrainedModel,
    batch: _Batch,
    ends: frozenset[int],
    on_text: Callable[[int, str], None] | None,
    before_step: Callable[[], None] | None,
) -> None:
    takes_positions = "position_ids" in _parameters(model)
    budget = max(row.settings.max_new_tokens for row in batch.rows)
    can_step = budget > MIN_STEPS and supports_steps(model) and all_kept(batch.cache)
    steps = Steps(model, batch.length + budget) if can_step else None
    _drop_finished(batch, [row.settings.max_new_tokens > 0 for row in batch.rows])
    first = True
    while batch.rows:
        if before_step is not None:
            before_step()
        if steps is None or first:
            logits = _forward(model, batch, takes_positions)
        else:
            mask = batch.mask[:, : batch.length] if batch.padded else None
            logits = steps(batch.inputs, batch.positions, mask, batch.cache)
        first = False
        tokens = batch.chooser.choose(logits)
        chosen = tokens.tolist()
        if any(row.settings.logprobs for row in batch.rows):
            scores = logits.log_softmax(dim=-1).gather(-1, tokens[:, None]).squeeze(-1).tolist()
            for row, score in zip(batch.rows, scores, strict=True):
                row.logprobs.append(score)
        going = [_append(row, token, ends, on_text) for row, token in zip(batch.rows, chosen, strict=True)]
        batch.inputs = tokens[:, None]
        batch.positions = batch.positions[:, -1:] + 1
        batch.length += 1
        _drop_finished(batch, going)


def _append(row: _Row, token: int, ends: frozenset[int], on_text: Callable[[int, str], None] | None) -> bool:
    """Add a token to a row; return whether the row goes on."""
    row.tokens.append(token)
    if token in ends:
        row.finish_reason = "eos"
        return False
    if row.stream is not None:
        piece = row.stream.push(token)
        if piece and on_text is not None:
            on_text(row.index, piece)
        if row.stream.stopped:
            row.finish_reason = "stop"
            return False
    return len(row.tokens) < row.settings.max_new_tokens


def _drop_finished(batch: _Batch, going: list[bool]) -> None:
    if all(going):
        return
    kept = [number for number, goes in enumerate(going) if goes]
    batch.rows = [batch.rows[number] for number in kept]
    if not kept:
        return
    rows = torch.tensor(kept, device=batch.inputs.device)
    batch.inputs, batch.positions, batch.mask = batch.inputs[rows], batch.positions[rows], batch.mask[rows]
    batch.encoder = {name: value[rows] for name, value in batch.encoder.items()}
    batch.chooser.keep_rows(kept)
    keep_rows(batch.cache, rows)


def _finished(
    row: _Row, tokenizer: PreTrainedTokenizerBase | None, on_text: Callable[[int, str], None] | None
) -> Decoded:
    text = ""
    if row.stream is not None:
        rest = row.stream.finish()
        if rest and on_text is not None:
            on_text(row.index, rest)
        if row.stream.stopped:
            row.finish_reason = "stop"
        text = row.stream.text
    elif tokenizer is not None:
        text = decode_tokens(tokenizer, row.tokens[:-1] if row.finish_reason == "eos" else row.tokens)
    logprobs = tuple(row.logprobs) if row.settings.logprobs else None
    return Decoded(tuple(row.tokens), text, row.finish_reason, logprobs)
