"""Masked language modelling on raw text: an encoder reads a domain before it learns a task of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.seeding import derive_seed, numpy_generator, python_random
from polyloom.models.device import DeviceName, choose_device
from polyloom.models.padding import pad_rows
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train
from polyloom.training.packing import Batch

IGNORED = -100
MASKED_SHARE = 0.15
ROW_TOKENS = 128
BATCH_SIZE = 32


class MaskedModel(nn.Module):
    """An encoder with the head of masked language modelling; its output embedding is the input embedding."""

    def __init__(self, encoder: PreTrainedModel, seed: int, also: nn.Module | None = None) -> None:
        """Draw the head; `also` holds what else is trained."""
        super().__init__()
        self.encoder, self.also = encoder, also
        embedding: Any = encoder.get_input_embeddings()
        width, inner = int(encoder.config.get_text_config().hidden_size), int(embedding.embedding_dim)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "masked head"))
            self.transform = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.LayerNorm(inner))
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))

    def forward(self, batch: Batch) -> Tensor:
        """Return the summed cross entropy of the masked tokens, in nats."""
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        states = self.encoder(**given).last_hidden_state
        chosen = batch["masked"] != IGNORED
        embedding: Any = self.encoder.get_input_embeddings()
        logits = self.transform(states[chosen]) @ embedding.weight.T + self.bias
        return nn.functional.cross_entropy(logits.float(), batch["masked"][chosen], reduction="sum")


def masked_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Return the summed loss of a `MaskedModel` and the number of masked tokens."""
    return model(batch), int((batch["masked"] != IGNORED).sum())


def mask_tokens(ids: Tensor, free: Tensor, mask: int, num_tokens: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Hide 15 % of the tokens: 80 % become the mask, 10 % a random token, 10 % stay (BERT's rule).

    Args:
        ids: [rows, T].
        free: which of them may be hidden [rows, T]; at least one is.
        mask: id of the mask token.
        num_tokens: size of the vocabulary.
        seed: of the draw.
        step: of the training.

    Returns:
        What the encoder reads, and what the hidden tokens were, -100 elsewhere; both [rows, T].
    """
    generator = numpy_generator(seed, "masks", step)
    draw, kind = (torch.from_numpy(generator.random(tuple(ids.shape))) for _ in range(2))
    chosen = free & (draw < MASKED_SHARE)
    if not chosen.any():
        chosen.view(-1)[int(free.flatten().nonzero()[0])] = True
    hidden = ids.masked_fill(chosen & (kind < 0.8), mask)
    other = chosen & (kind >= 0.9)
    hidden[other] = torch.from_numpy(generator.integers(0, num_tokens, int(other.sum())))
    return hidden, ids.masked_fill(~chosen, IGNORED)


def learn_masked(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    num_epochs: int,
    learning_rate: float,
    seed: int,
    device: DeviceName = "auto",
    checkpoints: Path | None = None,
    progress: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
    check_stop: Callable[[], None] | None = None,
) -> float:
    """Train an encoder, in place, to fill masked tokens of texts.

    Args:
        encoder: any that takes `input_ids` and `attention_mask`.
        tokenizer: its own, with a mask token.
        texts: raw text, cut into rows of 128 tokens.
        num_epochs: passes over them.
        learning_rate: peak of AdamW's.
        seed: of masks, order and head.
        device: where it is trained; the encoder is on the CPU afterwards.
        checkpoints: folder to save to and go on from.
        progress: makes a progress bar of a label and a total.
        check_stop: raises when the run has been asked to stop.

    Returns:
        The last batch's loss, nats a masked token.

    Raises:
        UserError: a tokenizer without a mask token, or no text.
    """
    mask = tokenizer.mask_token_id
    if mask is None:
        raise UserError("has no mask token, so it cannot read raw text.", where="tokenizer")
    stream = [i for text in texts for i in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    rows = [stream[i : i + ROW_TOKENS] for i in range(0, len(stream), ROW_TOKENS)]
    if not rows:
        raise UserError("the raw text is empty.", hint="Give a file with lines of text.")
    steps_an_epoch = -(-len(rows) // BATCH_SIZE)

    def batch_at(step: int) -> Batch:
        epoch, place = divmod(step, steps_an_epoch)
        order = list(range(len(rows)))
        python_random(seed, "rows", epoch).shuffle(order)
        chosen = [rows[order[(place * BATCH_SIZE + i) % len(order)]] for i in range(BATCH_SIZE)]
        ids, seen = pad_rows(chosen, filler=tokenizer.pad_token_id or 0)
        hidden, masked = mask_tokens(ids, seen.bool(), int(mask), len(tokenizer), seed, step)
        return {"input_ids": hidden, "attention_mask": seen, "masked": masked}

    steps = num_epochs * steps_an_epoch
    settings = TrainConfig(
        seed=seed, steps=steps, batch_size=BATCH_SIZE, lr=learning_rate, min_lr_ratio=0.0, schedule="linear",
        warmup_steps=steps // 10, beta2=0.999, weight_decay=0.01, precision="float32",
        checkpoint_every=min(100, steps_an_epoch), keep_checkpoints=1,
    )  # fmt: skip
    head = MaskedModel(encoder, seed).to(choose_device(device))
    with progress("read the domain", steps) as advance:
        state = train(
            head, batch_at, settings, loss=masked_loss, checkpoints=checkpoints, on_step=advance, check_stop=check_stop
        )
    encoder.to("cpu")  # type: ignore[arg-type]
    assert state.loss is not None
    return state.loss
