"""The model that is tuned, or whose gradients are compared: how it is made, its budget, and the world's examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.methods.select.data import Pool, PoolTask
from polyloom.methods.select.tuning import definition_prompt, plain_prompt, pool_tokenizer, small_model
from polyloom.methods.select.world_pool import world_examples
from polyloom.models.load import load_model, load_tokenizer, model_kind
from polyloom.training.config import TrainConfig

BATCH_SIZE = 16
EXAMPLES_OF_MANY, EXAMPLES_OF_FEW, FEW = 30, 400, 12
TINY_LR, MODEL_LR = 4e-3, 5e-5


@dataclass(frozen=True)
class Learner:
    """How a model is made, and what it is told."""

    source: str
    tokenizer: PreTrainedTokenizerBase
    config: TrainConfig

    def make(self, seed: int) -> PreTrainedModel:
        """Return the model before tuning."""
        if self.source == "tiny":
            return small_model(len(self.tokenizer), seed)
        return load_model(self.source, model_kind(self.source), device="auto")

    @property
    def prompt(self) -> Any:
        """The layout of its prompts."""
        return plain_prompt if self.source == "tiny" else definition_prompt


def make_learner(
    source: str, tasks: Sequence[PoolTask], steps: int, batch_size: int = BATCH_SIZE, lr: float | None = None
) -> Learner:
    """Return the learner of a model with its budget.

    Args:
        source: `tiny`, which learns its tokenizer from the tasks and steps its matrices by Muon; a folder or hub id.
        tasks: with examples.
        steps: optimiser steps.
        batch_size: examples a step.
        lr: learning rate; by default 4e-3 for tiny, 5e-5 otherwise.
    """
    tiny = source == "tiny"
    tokenizer = pool_tokenizer(tasks) if tiny else load_tokenizer(source)
    rate = lr or (TINY_LR if tiny else MODEL_LR)
    config = train_config(steps, batch_size, rate, "muon" if tiny else "adamw")
    # Rows of a step differ in length by a lot: half of them at a time are padded less.
    halves = {"micro_batch_size": -(-batch_size // 2)} if tiny else {}
    return Learner(source, tokenizer, config.model_copy(update=halves))


def with_examples(pool: Pool, chosen: Sequence[int], languages: Sequence[str], seed: int) -> Pool:
    """Return the world's pool with examples of the chosen tasks: more of each where few are chosen."""
    num = EXAMPLES_OF_FEW if len(chosen) <= FEW else EXAMPLES_OF_MANY
    wanted = set(chosen)
    tasks = tuple(
        replace(task, examples=world_examples(task.id, languages, "train", num, seed)) if number in wanted else task
        for number, task in enumerate(pool.tasks)
    )
    return Pool(tasks, pool.where, pool.notes)


def train_config(steps: int, batch_size: int, lr: float, optimizer: Literal["adamw", "muon"] = "adamw") -> TrainConfig:
    """Return the budget of one arm."""
    return TrainConfig(
        optimizer=optimizer,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup_steps=max(1, steps // 8),
        weight_decay=0.01,
        precision="float32",
        log_every=10**6,
    )
