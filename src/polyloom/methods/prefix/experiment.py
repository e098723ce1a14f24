"""The embedded experiment's models, built and trained on the spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from polyloom.core.seeding import python_random
from polyloom.models.device import torch_generator
from polyloom.models.tiny import BOS_ID, EOS_ID, PAD_ID
from polyloom.models.tokenizers import encode_all
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train
from polyloom.training.packing import Batch, BatchAt

IGNORED = -100
MAX_POSITIONS = 512
EMBEDDING_STD = 0.05


@dataclass(frozen=True)
class Row:
    """Token ids of a text; the loss counts from `start` on."""

    tokens: list[int]
    start: int


def build_llama(vocab_size: int, width: int, num_layers: int, num_heads: int, seed: int) -> LlamaForCausalLM:
    """Build an untrained Llama with tied embeddings and a feed-forward of twice the width."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
    )
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                std = EMBEDDING_STD if "embed" in name else width**-0.5
                parameter.normal_(std=std, generator=torch_generator(seed, "weights", name))
    model.eval()  # type: ignore[no-untyped-call]
    return model


def as_rows(
    texts: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, *, all_tokens: bool = False
) -> list[Row]:
    """Tokenise (prompt, answer) as `<s> prompt answer </s>`; the loss is on the answer, or on all tokens."""
    heads, answers = (encode_all(tokenizer, column) for column in zip(*texts, strict=True))
    return [
        Row([BOS_ID, *head, *answer, EOS_ID], 1 if all_tokens else 1 + len(head))
        for head, answer in zip(heads, answers, strict=True)
    ]


def bucketed(rows: Sequence[Row], batch_size: int, seed: int) -> BatchAt:
    """Return the function from a step to its batch; texts of similar length go together, in an order drawn by epoch."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
    chunks = [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]
    permutations: dict[int, list[int]] = {}

    def batch_at(step: int) -> Batch:
        epoch, place = divmod(step, len(chunks))
        if epoch not in permutations:
            permutations[epoch] = list(range(len(chunks)))
            python_random(seed, "batches", epoch).shuffle(permutations[epoch])
        chosen = [rows[i] for i in chunks[permutations[epoch][place]]]
        width = max(len(row.tokens) for row in chosen)
        tokens = torch.full((len(chosen), width), PAD_ID)
        labels = torch.full((len(chosen), width), IGNORED)
        for i, row in enumerate(chosen):
            ids = torch.tensor(row.tokens)
            tokens[i, : len(ids)] = ids
            labels[i, row.start : len(ids)] = ids[row.start :]
        return {"tokens": tokens, "labels": labels}

    return batch_at


def labelled_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Return the summed cross entropy of the labelled tokens in nats, and their number."""
    logits = model(input_ids=batch["tokens"][:, :-1], use_cache=False).logits
    labels = batch["labels"][:, 1:]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss, int((labels != IGNORED).sum())


def fit(
    model: LlamaForCausalLM,
    rows: Sequence[Row],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    checkpoints: Path | None = None,
    on_step: Callable[[int], None] | None = None,
    check_stop: Callable[[], None] | None = None,
) -> None:
    """Train a model in place with AdamW, a warm-up of 30 steps and a linear decay to a tenth."""
    config = TrainConfig(
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup_steps=min(30, steps // 10),
        schedule="linear",
        weight_decay=0.01,
        precision="float32",
        log_every=steps,
        checkpoint_every=max(1, steps // 4),
        keep_checkpoints=1,
    )
    train(
        model,
        bucketed(rows, batch_size, seed),
        config,
        loss=labelled_loss,
        checkpoints=checkpoints,
        on_step=on_step,
        check_stop=check_stop,
    )
