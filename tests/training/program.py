"""A small training run in a process of its own: `python -m tests.training.program FOLDER STEPS`.

It prints each finished step, goes on from the checkpoints in FOLDER, and writes FOLDER/final.safetensors.
The model has dropout and the loss draws from torch's global stream, so a resumed run has random streams to get wrong.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from polyloom.models.device import pin_threads
from polyloom.models.tiny import build_tiny
from polyloom.training.config import TrainConfig
from polyloom.training.loop import next_token_loss, train
from polyloom.training.packing import Batch, window_batches


def noisy_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Replace a tenth of the inputs by random tokens."""
    noise = torch.randint(0, 50, batch["tokens"].shape)
    tokens = torch.where(torch.rand(noise.shape) < 0.1, noise, batch["tokens"])
    return next_token_loss(model, {"tokens": tokens})


def run(folder: Path, steps: int, *, exact: bool) -> None:
    """Train in `folder`; `exact` leaves out what is random per process, for comparing numbers of processes."""
    pin_threads(1)
    model = build_tiny("llama-2x64", 50, seed=1)
    model.config.attention_dropout = 0.0 if exact else 0.1
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = model.config.attention_dropout
    stream = torch.randint(0, 50, (700,), generator=torch.Generator().manual_seed(0))
    config = TrainConfig(
        steps=steps, batch_size=6, micro_batch_size=2, lr=1e-3, warmup_steps=3, checkpoint_every=2, seed=7,
        precision="float32", eval_every=5, patience=100,
    )  # fmt: skip
    train(
        model,
        window_batches(stream, window_tokens=16, batch_size=6, seed=7),
        config,
        loss=next_token_loss if exact else noisy_loss,
        checkpoints=folder / "checkpoints",
        on_step=lambda _: print("step", flush=True),
        evaluate=lambda: {"value": float(model.lm_head.weight.detach().norm())},
    )
    if os.environ.get("RANK", "0") == "0":
        save_file(model.state_dict(), folder / "final.safetensors")


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), exact="exact" in sys.argv)
