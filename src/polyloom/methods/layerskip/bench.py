"""Our loops beside transformers' on the same prompts: what is timed and compared, and energy where it is counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from polyloom.generation.layer_range import LayerRange
from polyloom.generation.sampling import Decoding
from polyloom.generation.speculative import Controller, Fixed, Plan, plain_tokens, speculate
from polyloom.methods.layerskip.embedded import quiet_generate

Decoder = list[Callable[[], list[int]]]
"""Decodes each prompt of a workload to its new tokens."""


@dataclass(frozen=True)
class Workload:
    """What is decoded: prompts, budget and end tokens."""

    prompts: Sequence[list[int]]
    budget: int
    ends: frozenset[int]


def ours(runner: LayerRange, work: Workload, plan: Plan) -> Decoder:
    """Return the work of decoding each prompt with a plan."""
    return [partial(_one, runner, prompt, work, Fixed(plan)) for prompt in work.prompts]


def ours_plain(runner: LayerRange, work: Workload) -> Decoder:
    """Return the work of decoding each prompt plainly, in the shortest loop."""
    return [partial(_plain, runner, prompt, work) for prompt in work.prompts]


def ours_adaptive(runner: LayerRange, work: Workload, controller: Controller) -> Decoder:
    """Return the work of decoding each prompt with one controller, which learns from one to the next."""
    return [partial(_one, runner, prompt, work, controller) for prompt in work.prompts]


def _one(runner: LayerRange, prompt: list[int], work: Workload, controller: Controller) -> list[int]:
    rounds = speculate(runner, prompt, Decoding(work.budget), controller, ends=work.ends)
    return [token for tokens in rounds for token in tokens]


def _plain(runner: LayerRange, prompt: list[int], work: Workload) -> list[int]:
    return list(plain_tokens(runner, prompt, work.budget, work.ends))


def theirs(model: PreTrainedModel, work: Workload, **options: Any) -> Decoder:
    """Return the work of transformers' `generate` on each prompt, greedy."""
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]

    def decode(prompt: list[int]) -> list[int]:
        with quiet_generate(), warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            tokens = torch.tensor([prompt], device=model.device)
            output = generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                max_new_tokens=work.budget,
                pad_token_id=0,
                eos_token_id=sorted(work.ends) or None,
                **options,
            )
        return [int(token) for token in output[0, len(prompt) :]]

    return [partial(decode, prompt) for prompt in work.prompts]


def texts_of(decoder: Decoder) -> list[list[int]]:
    """Decode every prompt."""
    return [decode() for decode in decoder]


def slices_layers(model: PreTrainedModel) -> bool:
    """Say whether transformers' early exit works on a model: exits 1 and L-1 give the same greedy text."""
    work = Workload([[1, 2, 3]], 4, frozenset())
    try:
        return texts_of(theirs(model, work, assistant_early_exit=1)) == texts_of(theirs(model, work))
    except (IndexError, ValueError, TypeError, AttributeError, RuntimeError):
        return False


def token_costs(model: PreTrainedModel, plan: Plan, num_layers: int, tau: float) -> tuple[float, float]:
    """Return multiply-adds times two, and bytes of weights read, per token, from the shapes alone.

    Args:
        model: the model; every matrix of its layers and head is used once per position.
        plan: the pair; a plain one gives a plain step.
        num_layers: L.
        tau: tokens per round.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head_size = sum(p.numel() for p in head.parameters())
    embeddings: Any = model.get_input_embeddings()
    tied = head.weight.data_ptr() == embeddings.weight.data_ptr()
    total = sum(p.numel() for p in model.parameters())
    layer = (total - embeddings.weight.numel() - (0 if tied else head_size)) / num_layers
    itemsize = next(model.parameters()).element_size()
    gamma, exit_layer = plan.draft_tokens, plan.exit_layer
    if not gamma:
        return 2 * (num_layers * layer + head_size), itemsize * (num_layers * layer + head_size)
    positions = (gamma + 1) * exit_layer * layer + (gamma + 1) * (num_layers - exit_layer) * layer
    flops = 2 * (positions + (2 * gamma + 1) * head_size) / tau
    read = itemsize * ((gamma + 1) * exit_layer * layer + (num_layers - exit_layer) * layer + (gamma + 1) * head_size)
    return flops, read / tau


@dataclass(frozen=True)
class Divergence:
    """Where a text leaves plain decoding's: prompt, position, both tokens, and the gap of the two best logits there."""

    prompt: int
    exit_layer: int
    draft_tokens: int
    position: int
    plain: int
    other: int
    gap: float


def first_divergence(plain: Sequence[int], other: Sequence[int]) -> int | None:
    """Return the first position at which two texts differ; None where they are equal."""
    for position, (a, b) in enumerate(zip(plain, other, strict=False)):
        if a != b:
            return position
    return None if len(plain) == len(other) else min(len(plain), len(other))


def logit_gap(model: PreTrainedModel, prompt: Sequence[int], plain: Sequence[int], position: int, other: int) -> float:
    """Return how far the other token's logit lies below plain decoding's, by the model's own forward."""
    tokens = torch.tensor([[*prompt, *plain[:position]]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=tokens, use_cache=False).logits[0, -1]
    return float(logits.max() - logits[other])
