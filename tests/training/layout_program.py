"""A small sharded run, started by torchrun: `-m tests.training.layout_program FOLDER STEPS PP DP TP [words]`.

The first process prints a line `losses: ...`. Words: `sp` (sequence parallel), `interleaved`, `ckpt` (saves every two
steps and resumes), `moments` (begins with those of the folder), `memory` (form A and activation checkpointing), `docs`
(documents in the rows), `die` (process 1 ends by SIGKILL at step 2, its time in the file `died`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from polyloom.models.device import pin_threads, torch_generator
from polyloom.training.config import TrainConfig
from polyloom.training.layouts import Layout, assemble, check_layout, make_mesh
from polyloom.training.loop import TrainState, next_token_loss, train
from polyloom.training.monitor import Monitor
from polyloom.training.packing import Batch, window_batches
from polyloom.training.parallel import join_world
from polyloom.training.sharded import Sharded

WINDOW, BATCH = 16, 8


def llama() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=WINDOW, tie_word_embeddings=False,
    )  # fmt: skip


def values(name: str, shape: torch.Size) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.empty(shape).normal_(std=0.2, generator=torch_generator(0, name))


def settings(steps: int, words: list[str]) -> TrainConfig:
    more: dict[str, Any] = {"memory_saving_swiglu": "A", "activation_checkpointing": True} if "memory" in words else {}
    # `async` beside `ckpt` writes behind the training.
    return TrainConfig(
        steps=steps, batch_size=BATCH, lr=5e-3, warmup_steps=0, clip_norm=0.5, precision="float32", log_every=1,
        schedule="constant",
        checkpoint_every=2 if "ckpt" in words else 0, async_checkpoints="async" in words, **more,
    )  # fmt: skip


def batches() -> Any:
    stream = torch.randint(0, 64, (3000,), generator=torch.Generator().manual_seed(0))
    return window_batches(stream, window_tokens=WINDOW, batch_size=BATCH)


def classes(model: nn.Module) -> dict[str, list[torch.Tensor]]:
    found: dict[str, list[torch.Tensor]] = {"gain": [], "head": [], "other": []}
    for name, parameter in model.named_parameters():
        kind = "gain" if parameter.dim() == 1 else "head" if "lm_head" in name else "other"
        found[kind].append(parameter)
    return found


def main(folder: Path, steps: int, layout: Layout, words: list[str]) -> None:
    pin_threads()
    lines: list[dict[str, Any]] = []
    with join_world(torch.device("cpu")) as world:
        config = llama()
        check_layout(layout, config, WINDOW, BATCH)
        training = settings(steps, words)
        engine, model = None, LlamaForCausalLM(config)
        if layout.num_processes > 1:
            mesh = make_mesh(layout, torch.device("cpu"))
            engine = Sharded(assemble(config, layout, mesh, WINDOW, values, training), layout, mesh, training)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(values(name, parameter.shape))

        def batch_at(step: int) -> Batch:
            if "die" in words and step == 2 and world.rank == 1:
                (folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            batch = {**batches()(step), "source": torch.arange(BATCH) % 3}
            # Documents of six tokens, the last two of a row padding.
            numbers = (torch.arange(WINDOW + 1) // 6).masked_fill(torch.arange(WINDOW + 1) >= WINDOW - 1, -1)
            return batch | ({"document": numbers.expand(BATCH, -1)} if "docs" in words else {})

        monitor = Monitor(classes(engine.model if engine else model), ["a", "b", "c"])
        if engine:
            engine.see = monitor.see
        checkpoints = folder / "checkpoints" if "ckpt" in words else None
        state: TrainState = train(
            engine.model if engine else model, batch_at, training, engine=engine, checkpoints=checkpoints,
            moments=folder / "moments" if "moments" in words else None,
            loss=partial(next_token_loss, see=monitor.see), monitor=monitor, on_log=lambda **line: lines.append(line),
        )  # fmt: skip
        assert state.step == steps
        if world.is_main:
            seen = [
                {name: value for name, value in line.items() if "/" in name or name == "max_logit"} for line in lines
            ]
            rows = [(line["loss"], line["gradient_norm"], found) for line, found in zip(lines, seen, strict=True)]
            print("losses:", json.dumps(rows), flush=True)


if __name__ == "__main__":
    sizes = [int(word) for word in sys.argv[3:6]]
    words = sys.argv[6:]
    schedule = "interleaved-1f1b" if "interleaved" in words else "1f1b"
    made = Layout(*sizes, sequence_parallel="sp" in words, schedule=schedule, num_micro_batches=2)  # type: ignore[arg-type]
    main(Path(sys.argv[1]), int(sys.argv[2]), made, words)
