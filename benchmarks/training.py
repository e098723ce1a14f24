"""The training loop beside a bare loop over the same Hugging Face Llama: CPU seconds, one thread, interleaved.

Run: python benchmarks/training.py [--steps 10] [--rounds 7]
Both train a model of the same weights on the same batches in the same precision with AdamW and clipping. The bare loop
is what its library's documentation shows: `model(input_ids, labels)`, `backward`, `clip_grad_norm_`, `AdamW.step`.
Prints the medians of CPU seconds a step and of the rounds' ratios, ours over bare (below 1 is faster).
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from polyloom.models.device import autocast, pin_threads
from polyloom.models.tiny import build_tiny
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train
from polyloom.training.packing import window_batches

VOCAB_SIZE = 2048
WINDOW_TOKENS = 128
BATCH_SIZE = 16


def ours(name: str, stream: Tensor, config: TrainConfig) -> float:
    model = build_tiny(name, VOCAB_SIZE)
    batch_at = window_batches(stream, window_tokens=WINDOW_TOKENS, batch_size=BATCH_SIZE)
    start = time.process_time()
    train(model, batch_at, config)
    return time.process_time() - start


def bare(name: str, stream: Tensor, config: TrainConfig) -> float:
    model = build_tiny(name, VOCAB_SIZE).train()
    batch_at = window_batches(stream, window_tokens=WINDOW_TOKENS, batch_size=BATCH_SIZE)
    start = time.process_time()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    for step in range(config.steps):
        tokens = batch_at(step)["tokens"]
        with autocast(torch.device("cpu"), config.precision):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    pin_threads(1)
    stream = torch.randint(3, VOCAB_SIZE, (100_000,), generator=torch.Generator().manual_seed(0))
    print("| model | precision | ours, CPU s/step | bare, CPU s/step | ratio (lowest to highest) |")
    print("| --- | --- | --- | --- | --- |")
    for name in ("llama-2x64", "llama-4x128"):
        for precision in ("float32", "bfloat16"):
            config = TrainConfig.model_validate(
                {"steps": arguments.steps, "batch_size": BATCH_SIZE, "precision": precision, "log_every": 1}
            )
            ours(name, stream, config)
            bare(name, stream, config)
            pairs = [(ours(name, stream, config), bare(name, stream, config)) for _ in range(arguments.rounds)]
            ratios = sorted(a / b for a, b in pairs)
            seconds = [statistics.median(side) / arguments.steps for side in zip(*pairs, strict=True)]
            print(
                f"| {name} | {precision} | {seconds[0]:.4f} | {seconds[1]:.4f} "
                f"| {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
