"""Narrow proxies: small models on bytes of the world's text, trained alike but for width and parametrisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from polyloom.core.errors import PolyloomError
from polyloom.methods.pretrain.architecture import build, parameter_groups
from polyloom.methods.pretrain.method import Scaling, Shape, decoder
from polyloom.models.device import choose_device, pin_threads
from polyloom.training.config import TrainConfig
from polyloom.training.loop import TrainState, next_token_loss, train
from polyloom.training.packing import BatchAt, window_batches

BYTES = 256
HEAD_SIZE = 32
LAYERS = 2
BASE_WIDTH = 64
WINDOW_TOKENS = 64
BATCH_SIZE = 16
HELD_OUT_BATCHES = 8


@dataclass(frozen=True)
class Family:
    """What the proxies share: text as bytes to train on and to judge by, and all but the width."""

    train: Tensor
    held_out: Tensor
    layers: int = LAYERS
    head_size: int = HEAD_SIZE
    window_tokens: int = WINDOW_TOKENS
    batch_size: int = BATCH_SIZE

    def shape(self, width: int) -> Shape:
        """Return the member of a width; its inner width is 11/4 of it, so that every size grows by the same factor.

        Raises:
            UserError: the width is not a multiple of the head size.
        """
        return replace(decoder(width, self.layers, self.head_size, BYTES), ffn=int(2.75 * width))

    def batches(self, seed: int) -> BatchAt:
        """Return from a step to its batch of the training text; the order depends on the seed alone."""
        size = self.batch_size
        return window_batches(self.train, window_tokens=self.window_tokens, batch_size=size, seed=seed)


def world_family(languages: Sequence[str], seed: int, num_characters: int = 200_000) -> Family:
    """Make a family on the world's text.

    Args:
        languages: of the text.
        seed: of the world.
        num_characters: of each language to train on; a tenth of it is held out.
    """
    from polyloom.data import world

    train_texts = world.text_corpus(languages, num_characters, seed, "train")
    held_out = world.text_corpus(languages, num_characters // 10, seed, "valid")
    return Family(as_bytes(train_texts.values()), as_bytes(held_out.values()))


def as_bytes(groups: Iterable[Sequence[str]]) -> Tensor:
    """Return the UTF-8 bytes of the texts as token ids; the groups (languages) take turns."""
    lists = list(groups)
    longest = max(len(texts) for texts in lists)
    mixed = [texts[i] for i in range(longest) for texts in lists if i < len(texts)]
    return torch.frombuffer(bytearray("\n\n".join(mixed).encode()), dtype=torch.uint8).long()


def settings(
    steps: int, seed: int, batch_size: int, precision: Literal["auto", "float32"] = "auto", clip_norm: float = 1.0
) -> TrainConfig:
    """Return the training settings of a proxy: AdamW, cosine to a tenth, a tenth of the steps warm-up."""
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        warmup_steps=max(1, steps // 10),
        clip_norm=clip_norm,
        precision=precision,
        seed=seed,
        log_every=max(1, steps // 10),
    )


def make_member(
    family: Family, width: int, scaling: Scaling, seed: int
) -> tuple[LlamaForCausalLM, list[dict[str, Any]]]:
    """Return a member that is not trained yet, on its device, and the optimiser's groups."""
    pin_threads()
    shape = family.shape(width)
    model = build(shape, family.window_tokens, scaling, seed)
    torch.nn.Module.to(model, choose_device())
    return model, parameter_groups(model, shape, scaling)


def train_member(
    family: Family,
    width: int,
    scaling: Scaling,
    steps: int,
    seed: int,
    on_log: Callable[..., None] | None = None,
    checkpoints: Path | None = None,
) -> tuple[LlamaForCausalLM, TrainState | None]:
    """Train one member; the order of the data depends on the seed alone. A folder keeps a checkpoint of the end.

    Returns:
        The model, and the state at the end; None where the loss or a gradient ceased to be finite.
    """
    model, groups = make_member(family, width, scaling, seed)
    config = settings(steps, seed, family.batch_size).model_copy(update={"checkpoint_every": steps})
    try:
        return model, train(model, family.batches(seed), config, groups=groups, on_log=on_log, checkpoints=checkpoints)
    except PolyloomError:
        return model, None


def held_out_loss(family: Family, model: LlamaForCausalLM) -> float:
    """Return the mean loss in nats a byte on held-out text, the same windows for every member."""
    batch_at = window_batches(family.held_out, window_tokens=family.window_tokens, batch_size=family.batch_size)
    total, count = 0.0, 0
    model.eval()  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        for step in range(HELD_OUT_BATCHES):
            tokens = batch_at(step)["tokens"].to(model.device)
            summed, num_targets = next_token_loss(model, {"tokens": tokens})
            total, count = total + float(summed), count + num_targets
    return total / count


def final_loss(family: Family, width: int, scaling: Scaling, steps: int, seed: int) -> float | None:
    """Train a member and return its held-out loss; None where it diverged."""
    model, state = train_member(family, width, scaling, steps, seed)
    return None if state is None else held_out_loss(family, model)
