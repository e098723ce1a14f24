"""The small multilingual model that the tour takes along: how it is trained, and how it and others are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.models.device import choose_device, pin_threads
from polyloom.models.tiny import build_tiny
from polyloom.models.tokenizers import sample_texts, train_tokenizer
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train
from polyloom.training.packing import pack, window_batches

WINDOW_TOKENS = 128
BATCH_SIZE = 16
TOKENIZER_BYTES = 1_000_000


@dataclass(frozen=True)
class Budget:
    """How much a small model gets: characters a language, vocabulary, training steps, characters tested."""

    num_characters: int
    vocab_size: int
    steps: int
    test_characters: int
    size: str = "llama-4x128"


def train_small(
    texts: Mapping[str, Sequence[str]],
    budget: Budget,
    seed: int,
    *,
    checkpoints: Path | None = None,
    on_log: Callable[..., None] | None = None,
    on_step: Callable[[int], Any] | None = None,
    check_stop: Callable[[], None] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Train a tokenizer on a balanced sample and a model on all of the texts, going on from a checkpoint.

    Args:
        texts: by language.
        budget: vocabulary, steps and size.
        seed: of everything drawn.
        checkpoints: folder for them; none are kept without.
        on_log: as `train` calls it.
        on_step: called with the steps done.
        check_stop: raises when the run has been asked to stop.

    Returns:
        The model in evaluation mode, on its device, and the tokenizer.
    """
    pin_threads()
    sample = sample_texts(texts, TOKENIZER_BYTES, seed=seed)
    tokenizer = train_tokenizer(sample, budget.vocab_size)
    model = build_tiny(budget.size, len(tokenizer), seed)
    nn.Module.to(model, choose_device())
    stream = pack((text for items in texts.values() for text in items), tokenizer)
    every = 50 if checkpoints else 0
    config = TrainConfig(
        seed=seed, steps=budget.steps, batch_size=BATCH_SIZE, checkpoint_every=every, keep_checkpoints=1
    )
    batch_at = window_batches(stream, window_tokens=WINDOW_TOKENS, batch_size=BATCH_SIZE, seed=seed)
    train(
        model,
        batch_at,
        config,
        checkpoints=checkpoints,
        on_log=on_log,
        on_step=on_step,
        check_stop=check_stop,
    )
    return model, tokenizer
