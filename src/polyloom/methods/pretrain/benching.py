"""The verb `bench`: tokens a second beside a plain loop over Hugging Face's Llama."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM

from polyloom.core.result import Cell, Result, Scalar, Table
from polyloom.core.seeding import numpy_generator
from polyloom.methods.pretrain.architecture import build, llama_config, parameter_groups
from polyloom.methods.pretrain.config import BenchConfig
from polyloom.methods.pretrain.method import Scaling, Shape, training_flops_per_token
from polyloom.metrics.statistics import bootstrap_interval
from polyloom.models.device import autocast, choose_device, clock, clock_unit, pin_threads
from polyloom.runs.folder import Run
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train
from polyloom.training.stream import SampleStream
from polyloom.training.throughput import peak_flops


@dataclass(frozen=True)
class Size:
    """A model and its batches."""

    shape: Shape
    window_tokens: int
    batch_size: int = 8


SIZES = {
    "cpu": Size(Shape(layers=8, heads=8, width=256, ffn=640, vocab=8192), 256),
    "cuda": Size(Shape(layers=16, heads=16, width=1024, ffn=2688, vocab=32_768), 1024),
}
NUM_TOKENS = 200_000
SCALING = Scaling(lr=1e-3, matrix_lr=1e-3, std=0.02, matrix_std=0.02, base_width=64, weight_decay=0.1)


def ours(config: TrainConfig, stream: SampleStream, size: Size, device: torch.device) -> float:
    """Train with muP's groups, the watch and the sample stream; return seconds of the device's clock."""
    model, now = build(size.shape, size.window_tokens, SCALING), clock(device)
    nn.Module.to(model, device)
    start = now()
    train(model, stream, config, groups=parameter_groups(model, size.shape, SCALING))
    return now() - start


def plain(config: TrainConfig, stream: SampleStream, size: Size, device: torch.device) -> float:
    """Train as the library's documentation shows; return seconds of the device's clock."""
    model, now = LlamaForCausalLM(llama_config(size.shape, size.window_tokens)).train(), clock(device)
    nn.Module.to(model, device)
    start = now()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for step in range(config.steps):
        # Blocks of T tokens, as the library's example cuts them: the same shapes as ours, which has one more target.
        tokens = stream(step)["tokens"][:, :-1].to(device)
        with autocast(device, config.precision):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return now() - start


def run_bench(config: BenchConfig, run: Run) -> Result:
    """Train a model by both loops, interleaved, on the same batches.

    Args:
        config: device, steps, rounds, precision.
        run: keeps each round.

    Returns:
        Tokens a second of both, and ours over the plain loop's, paired within a round; the share of the device's peak.
    """
    pin_threads()
    size, device = SIZES[config.device], choose_device(config.device)
    tokens = numpy_generator(config.seed, "bench").integers(3, size.shape.vocab, NUM_TOKENS).astype(np.uint16)
    halves = {"a": tokens[: NUM_TOKENS // 2], "b": tokens[NUM_TOKENS // 2 :]}
    weights = {"a": 0.7, "b": 0.3}
    stream = SampleStream(halves, weights, window_tokens=size.window_tokens, batch_size=size.batch_size)
    settings = TrainConfig(
        steps=config.steps,
        batch_size=size.batch_size,
        lr=1e-3,
        warmup_steps=1,
        precision=config.precision,
        on_spike="note",
    )
    seconds: list[tuple[float, float]] = []
    with run.progress("bench: rounds", config.rounds + 1) as advance:
        for index in range(config.rounds + 1):
            run.check_stop()
            first, second = (ours, plain) if index % 2 else (plain, ours)
            pair = {loop: loop(settings, stream, size, device) for loop in (first, second)}
            # The first round warms up.
            seconds += [(pair[ours], pair[plain])] if index else []
            advance(1)
    ratios = [other / own for own, other in seconds]
    interval = bootstrap_interval(ratios, method="percentile", num_resamples=2000)
    num_tokens = config.steps * size.batch_size * size.window_tokens
    speeds = [num_tokens / median(values) for values in zip(*seconds, strict=True)]
    peak, source = peak_flops(device, config.precision)
    shares = [speed * training_flops_per_token(size.shape, size.window_tokens) / peak for speed in speeds]
    names, unit = ["ours", "plain loop over HF Llama"], clock_unit(device)
    rows: list[list[Cell]] = [list(row) for row in zip(names, speeds, shares, strict=True)]
    key = f"tokens_per_{unit.lower().replace(' ', '_')}"
    return run.result(
        scalars={
            "speed_over_hf_llama": Scalar(value=median(ratios), low=interval.low, high=interval.high, unit="x"),
            key: Scalar(value=speeds[0]),
            f"{key}_hf_llama": Scalar(value=speeds[1]),
            "mfu": Scalar(value=shares[0], unit=f"of the peak ({source})"),
        },
        tables={
            "speed": Table(
                columns=["loop", f"tokens per {unit}", "share of the peak"], rows=rows, title=f"In {config.precision}"
            )
        },
        verdicts=[f"The room trains {median(ratios):.2f} times as many tokens a {unit} as the plain loop."],
        limitations=[f"One model of {size.shape.layers} layers x {size.shape.width}; others have other proportions."],
    )
