"""Prior-aware beam: several priors for each text, each continued by its own beams; the base model keeps one answer.

Beams are not shared between priors: a prior in the right language is improbable at its first token, which is why it is
needed, and would leave a common beam before its continuation could show what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from polyloom.generation.decode import Decoding, decoder_start, model_eos_tokens
from polyloom.generation.scoring import score_continuations
from polyloom.generation.text import decode_tokens
from polyloom.methods.prefix.method import Generation, answer_text, generate_with_priors
from polyloom.methods.prefix.priors import Prior, answer_tokens

BackPrompt = Callable[[int, str], list[int]]
"""From a row's number and an answer to the prompt that asks for the answer's source."""


class _AtStop(StoppingCriteria):
    """Ends a hypothesis whose new tokens hold a stop text; a beam is compared with others as it then stands."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], start: int) -> None:
        self.tokenizer, self.stop, self.start = tokenizer, stop, start

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        texts = [decode_tokens(self.tokenizer, row[self.start :].tolist()) for row in input_ids]
        done = [any(stop in text for stop in self.stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)


@torch.inference_mode()
def beam_answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    prior: Sequence[int],
    settings: Decoding,
    num_beams: int,
) -> Generation:
    """Continue one prior by beam search, the library's own, and keep its best hypothesis.

    Args:
        model: causal or encoder-decoder.
        tokenizer: its tokenizer.
        prompt: token ids.
        prior: token ids, possibly none.
        settings: budget and stop texts.
        num_beams: hypotheses kept at each step; the score is the mean log-probability of a hypothesis's new tokens.
    """
    ends = frozenset(model_eos_tokens(model))
    encoder_decoder = bool(model.config.is_encoder_decoder)
    if prior and prior[-1] in ends:
        text = answer_text(tokenizer, prompt, prior, ends, encoder_decoder)
        return Generation(tuple(prior), (), text, "eos")
    tokens = torch.tensor([[*prompt] if encoder_decoder else [*prompt, *prior]], device=model.device)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    start = tokens.shape[1]
    if encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[decoder_start(model), *prior]], device=model.device)
        start = 1 + len(prior)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=settings.max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),
        decoder_start_token_id=decoder_start(model) if encoder_decoder else None,
    )
    stopping = [_AtStop(tokenizer, settings.stop, start)] if settings.stop else []
    output = model.generate(**inputs, generation_config=config, stopping_criteria=stopping)  # type: ignore[operator]
    new = output[0, start:].tolist()
    end = next((i + 1 for i, token in enumerate(new) if token in ends), len(new))
    whole = Generation(tuple(prior), tuple(new[:end]), "", "eos" if new[end - 1 : end] and new[end - 1] in ends else "")
    text = answer_text(tokenizer, prompt, whole.all_tokens, ends, encoder_decoder)
    cut = text
    for stop in settings.stop:
        cut = cut.split(stop)[0]
    reason = whole.finish_reason or ("stop" if cut != text else "length")
    return Generation(whole.prior, whole.tokens, cut, reason)


def continue_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    priors: Sequence[Sequence[int]],
    settings: Decoding,
    *,
    num_beams: int = 1,
    batch_size: int = 32,
) -> list[Generation]:
    """Continue each prior: greedily in batches, or each row by beam search."""
    if num_beams == 1:
        return generate_with_priors(model, tokenizer, prompts, priors, settings, batch_size=batch_size)
    rows = zip(prompts, priors, strict=True)
    return [beam_answer(model, tokenizer, prompt, prior, settings, num_beams) for prompt, prior in rows]


@dataclass(frozen=True)
class Chosen:
    """The answer that won for one text, its prior, and how many priors were tried."""

    prior: Prior
    answer: Generation
    num_tried: int

    @property
    def noted(self) -> Prior:
        """The prior, with how many it was chosen from."""
        note = f"best of {self.num_tried}" if self.num_tried > 1 else ""
        return replace(self.prior, note=", ".join(part for part in (self.prior.note, note) if part))


def choose_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Prior]],
    answer: Callable[[Sequence[Sequence[int]], Sequence[Prior]], list[Generation]],
    *,
    back: tuple[float, BackPrompt, Sequence[str]] | None = None,
    batch_size: int = 32,
) -> list[Chosen]:
    """Answer behind every option of each text and keep the answer that the base model finds best.

    Args:
        model: the base model.
        tokenizer: its tokenizer.
        prompts: token ids of each text's prompt.
        options: priors of each text, at least one.
        answer: continues priors.
        back: weight, prompt and sources of the reconstruction: an answer's score is the mean log-probability of its
            tokens, the prior's included, plus the weight times that of its source behind it, asked for by the prompt.
        batch_size: rows scored together.

    Returns:
        One answer for each text.
    """
    flat = [(row, prior) for row, priors in enumerate(options) for prior in priors]
    answers = answer([prompts[row] for row, _ in flat], [prior for _, prior in flat])
    scored = [i for i, one in enumerate(answers) if one.all_tokens]

    def means(contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[float]:
        found = score_continuations(model, contexts, targets, batch_size=batch_size)
        return [sum(values) / len(values) for values in found]

    own = means([prompts[flat[i][0]] for i in scored], [answers[i].all_tokens for i in scored])
    scores = dict(zip(scored, own, strict=True))
    if back is not None:
        weight, prompt_of, sources = back
        contexts = [prompt_of(flat[i][0], answers[i].text.strip()) for i in scored]
        targets = [answer_tokens(tokenizer, c, sources[flat[i][0]]) for i, c in zip(scored, contexts, strict=True)]
        for i, value in zip(scored, means(contexts, targets), strict=True):
            scores[i] += weight * value
    best: dict[int, int] = {}
    for i, (row, _) in enumerate(flat):
        if row not in best or scores.get(i, float("-inf")) > scores.get(best[row], float("-inf")):
            best[row] = i
    return [Chosen(flat[best[row]][1], answers[best[row]], len(options[row])) for row in range(len(options))]
