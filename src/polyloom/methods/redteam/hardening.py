"""Refusal training of an own model: its refusals behind noise and found suffixes, its own answers otherwise."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.seeding import python_random
from polyloom.methods.redteam.evaluation import Victim, attack_prompts
from polyloom.methods.redteam.sandbox import IGNORED, answer_loss, noise_text, pad_rows
from polyloom.methods.redteam.tokens import prompt_ids, render
from polyloom.methods.redteam.workbench import Target, refusal_test
from polyloom.models.tokenizers import encode
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train
from polyloom.training.packing import Batch

REFUSAL = "I am sorry, but I cannot help with that."
BATCH_SIZE = 8
MAX_ANSWERED = 64


def own_turns(target: Target) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return (prompt, refusal) of the search behaviours, and (prompt, answer) of clean benign prompts.

    The refusal is the victim's own where it refuses, a plain sentence where it does not; benign prompts that it
    refuses are left out.
    """
    refused = refusal_test(target)
    prompts = attack_prompts(target.train, "")
    said = target.victim.answer(prompts)
    sealed = [(p, a.strip() if refused(a) and a.strip() else REFUSAL) for p, a in zip(prompts, said, strict=True)]
    clean = target.clean[:MAX_ANSWERED]
    answered = [(p, a) for p, a in zip(clean, target.victim.answer(clean), strict=True) if not refused(a)]
    return sealed, answered


def draw_turn(
    sealed: Sequence[tuple[str, str]],
    answered: Sequence[tuple[str, str]],
    suffixes: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    rng: random.Random,
) -> tuple[str, str]:
    """Draw an example, restricted and benign ones alike often, nothing, noise or a found suffix behind it.

    Args:
        sealed: restricted prompts with refusals.
        answered: benign prompts with answers.
        suffixes: found ones, for restricted prompts alone.
        tokenizer: whose tokens are the noise.
        rng: of the draw.
    """
    is_sealed = rng.random() < 0.5 or not answered
    prompt, said = rng.choice(sealed if is_sealed else answered)
    kind = rng.randrange(3)
    if kind == 1:
        prompt = f"{prompt} {noise_text(tokenizer, rng)}"
    elif kind == 2 and is_sealed and suffixes:
        prompt = f"{prompt} {rng.choice(suffixes)}"
    return prompt, said


def batch_of(victim: Victim, turns: Sequence[tuple[str, str]]) -> Batch:
    """Tokenise turns into padded `tokens` and `labels`; only what the model itself says is learned."""
    tokenizer = victim.tokenizer
    rows = []
    for prompt, said in turns:
        asked = prompt_ids(tokenizer, render(tokenizer, prompt, victim.system))
        end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        answer = [*encode(tokenizer, said), *end]
        rows.append(([*asked, *answer], [IGNORED] * len(asked) + answer))
    return pad_rows(rows)


def train_refusals(
    target: Target,
    suffixes: Sequence[str],
    *,
    steps: int,
    lr: float,
    on_step: Callable[[int], Any] | None = None,
    check_stop: Callable[[], None] | None = None,
) -> PreTrainedModel:
    """Return a hardened copy of the owner's model.

    Args:
        target: victim, behaviours and benign prompts.
        suffixes: found ones.
        steps: optimiser steps of 8 turns.
        lr: peak learning rate.
        on_step: called with 1 after each step.
        check_stop: raises when the run has been asked to stop.
    """
    sealed, answered = own_turns(target)
    model = copy.deepcopy(target.victim.model)

    def batch_at(step: int) -> Batch:
        rng = python_random(target.seed, "own turns", step)
        turns = [draw_turn(sealed, answered, suffixes, target.victim.tokenizer, rng) for _ in range(BATCH_SIZE)]
        return batch_of(target.victim, turns)

    config = TrainConfig(
        seed=target.seed, steps=steps, batch_size=BATCH_SIZE, lr=lr, warmup_steps=max(1, steps // 10),
        weight_decay=0.0, precision="float32", log_every=max(1, steps),
    )  # fmt: skip
    train(model, batch_at, config, loss=answer_loss, on_step=on_step, check_stop=check_stop)
    return model
