"""The verb `bench`: tokens a CPU second beside a plain loop over Hugging Face's Llama."""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch
from transformers import LlamaForCausalLM

from polyloom.core.result import Cell, Result, Scalar, Table
from polyloom.core.seeding import numpy_generator
from polyloom.methods.pretrain.architecture import build, llama_config, parameter_groups
from polyloom.methods.pretrain.config import BenchConfig
from polyloom.methods.pretrain.method import Scaling, Shape
from polyloom.metrics.statistics import bootstrap_interval
from polyloom.models.device import autocast, pin_threads
from polyloom.runs.folder import Run
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train
from polyloom.training.stream import SampleStream

SHAPE = Shape(layers=8, heads=8, width=256, ffn=640, vocab=8192)
WINDOW_TOKENS, BATCH_SIZE, NUM_TOKENS = 256, 8, 200_000
SCALING = Scaling(lr=1e-3, matrix_lr=1e-3, std=0.02, matrix_std=0.02, base_width=64, weight_decay=0.1)


def ours(config: TrainConfig, stream: SampleStream) -> float:
    """Train with muP's groups, the watch and the sample stream; return CPU seconds."""
    model = build(SHAPE, WINDOW_TOKENS, SCALING)
    start = time.process_time()
    train(model, stream, config, groups=parameter_groups(model, SHAPE, SCALING))
    return time.process_time() - start


def plain(config: TrainConfig, stream: SampleStream) -> float:
    """Train as the library's documentation shows; return CPU seconds."""
    model = LlamaForCausalLM(llama_config(SHAPE, WINDOW_TOKENS)).train()
    start = time.process_time()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for step in range(config.steps):
        tokens = stream(step)["tokens"]
        with autocast(torch.device("cpu"), config.precision):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - start


def run_bench(config: BenchConfig, run: Run) -> Result:
    """Train a model of 8 layers x 256 by both loops, interleaved on one thread, on the same batches.

    Args:
        config: steps, rounds, precision.
        run: keeps each round.

    Returns:
        Tokens a CPU second of both, and ours over the plain loop's, paired within a round.
    """
    pin_threads()
    tokens = numpy_generator(config.seed, "bench").integers(3, SHAPE.vocab, NUM_TOKENS).astype(np.uint16)
    halves = {"a": tokens[: NUM_TOKENS // 2], "b": tokens[NUM_TOKENS // 2 :]}
    weights = {"a": 0.7, "b": 0.3}
    stream = SampleStream(halves, weights, window_tokens=WINDOW_TOKENS, batch_size=BATCH_SIZE)
    settings = TrainConfig(
        steps=config.steps, batch_size=BATCH_SIZE, lr=1e-3, warmup_steps=1, precision=config.precision, on_spike="note"
    )
    seconds: list[tuple[float, float]] = []
    with run.progress("bench: rounds", config.rounds + 1) as advance:
        for index in range(config.rounds + 1):
            run.check_stop()
            first, second = (ours, plain) if index % 2 else (plain, ours)
            pair = {first: first(settings, stream), second: second(settings, stream)}
            # The first round warms up.
            seconds += [(pair[ours], pair[plain])] if index else []
            advance(1)
    ratios = [other / own for own, other in seconds]
    interval = bootstrap_interval(ratios, method="percentile", num_resamples=2000)
    num_tokens = config.steps * BATCH_SIZE * WINDOW_TOKENS
    speeds = [num_tokens / median(values) for values in zip(*seconds, strict=True)]
    rows: list[list[Cell]] = [["ours", speeds[0]], ["plain loop over HF Llama", speeds[1]]]
    return run.result(
        scalars={
            "speed_over_hf_llama": Scalar(value=median(ratios), low=interval.low, high=interval.high, unit="x"),
            "tokens_per_cpu_second": Scalar(value=speeds[0]),
            "tokens_per_cpu_second_hf_llama": Scalar(value=speeds[1]),
        },
        tables={"speed": Table(columns=["loop", "tokens per CPU second"], rows=rows, title=f"In {config.precision}")},
        verdicts=[f"The room trains {median(ratios):.2f} times as many tokens a CPU second as the plain loop."],
        limitations=["One model of 8 layers x 256 on one thread; a GPU or a larger model has other proportions."],
    )
