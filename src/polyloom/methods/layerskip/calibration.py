"""One plain decoding predicts self-speculation's rounds exactly for every exit and draft length; costs are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch

from polyloom.generation.layer_range import LayerRange
from polyloom.generation.sampling import Decoding
from polyloom.generation.speculative import PLAIN, Counts, Fixed, Plan, Round, probability, speculate
from polyloom.methods.layerskip.method import replay_rounds, round_cost, run_lengths
from polyloom.models.device import clock

DRAFT_LENGTHS = (1, 2, 3, 4, 5, 6, 8)
WORTH_IT = 1.02
POSITION = 48


@dataclass(frozen=True)
class Trace:
    """One plain decoding.

    Attributes:
        tokens: its tokens.
        bits: for every exit 1 .. L-1, whether it gave each token behind the first.
        confidences: the probability of the token that it gave there.
    """

    tokens: list[int]
    bits: list[list[bool]]
    confidences: list[list[float]]


class _Recorder:
    """A controller of plain steps that keeps every exit's choice."""

    def __init__(self, runner: LayerRange) -> None:
        self.runner = runner
        self.bits: list[list[bool]] = [[] for _ in range(runner.num_layers - 1)]
        self.confidences: list[list[float]] = [[] for _ in range(runner.num_layers - 1)]
        self.wants_states = True

    def plan(self) -> Plan:
        return PLAIN

    def observe(self, done: Round) -> None:
        agreed, sure = agreements(self.runner, done)
        for bits, new in zip(self.bits, agreed, strict=True):
            bits += new
        for confidences, values in zip(self.confidences, sure, strict=True):
            confidences += values


def agreements(runner: LayerRange, done: Round) -> tuple[list[list[bool]], list[list[float]]]:
    """Return for exits 1 .. L-1 whether each would have given the round's tokens, and how sure it was of its own.

    Args:
        runner: the model.
        done: a round with its states.
    """
    assert done.states is not None
    with torch.inference_mode():
        logits = runner.logits(done.states[:-1])
        best, tokens = logits.max(-1)
        agreed: list[list[bool]] = (tokens == torch.tensor(done.emitted, device=tokens.device)).tolist()
        sure: list[list[float]] = (best - logits.logsumexp(-1)).exp().tolist()
    return agreed, sure


def record(runner: LayerRange, prompt: Sequence[int], budget: int, ends: frozenset[int]) -> Trace:
    """Decode a prompt plainly and keep the agreement bits of every exit."""
    recorder = _Recorder(runner)
    rounds = speculate(runner, prompt, Decoding(budget), recorder, ends=ends)
    return Trace([token for tokens in rounds for token in tokens], recorder.bits, recorder.confidences)


@dataclass(frozen=True)
class Costs:
    """Measured seconds: c_T of one layer and n_T of the rest of a pass, for T = 1, 2, ... new tokens.

    `confidence` is what it takes to know how probable a drafted token is.
    """

    layer: list[float]
    head: list[float]
    confidence: float = 0.0


def measure_costs(runner: LayerRange, position: int, widest: int, rounds: int = 15) -> Costs:
    """Measure c_T and n_T by the device's clock, interleaved over T; each is the median of paired rounds.

    Args:
        runner: the model.
        position: how much text stands before the new tokens.
        widest: largest T.
        rounds: measurements of each T.
    """
    runner.reserve(1, position + widest)
    widths = range(1, widest + 1)
    runs: dict[int, list[float]] = {width: [] for width in widths}
    heads: dict[int, list[float]] = {width: [] for width in widths}
    sure: list[float] = []
    now = clock(runner.device)
    with torch.inference_mode():
        for index in range(rounds + 1):
            for width in widths:
                tokens = [1] * width
                start = now()
                place = runner.place(tokens, position)
                x = runner.embed(place)
                middle = now()
                x = runner.run(x, place, 0, runner.num_layers)
                ran = now()
                logits = runner.logits(x)
                logits.argmax(-1).tolist()
                done = now()
                if index and width == 1:
                    probability(logits[0, 0])
                    sure.append(now() - done)
                if index:
                    runs[width].append((ran - middle) / runner.num_layers)
                    heads[width].append(done - ran + middle - start)
    layer, head = ([median(seconds[width]) for width in widths] for seconds in (runs, heads))
    return Costs(layer, head, median(sure))


@dataclass(frozen=True)
class Cell:
    """One pair's prediction: tokens per round, exact; rounds; and speed over plain decoding by measured cost."""

    exit_layer: int
    draft_tokens: int
    tau: float
    rounds: int
    speed: float


def predict(
    traces: Sequence[Trace], costs: Costs, num_layers: int, draft_lengths: Sequence[int] = DRAFT_LENGTHS
) -> list[Cell]:
    """Predict every pair from plain decodings.

    Args:
        traces: of sample prompts.
        costs: measured up to the longest draft plus one.
        num_layers: L.
        draft_lengths: gammas.

    Returns:
        One cell per exit and draft length.
    """
    num_tokens = sum(len(trace.tokens) - 1 for trace in traces)
    plain = num_layers * costs.layer[0] + costs.head[0]
    cells = []
    for exit_layer in range(1, num_layers):
        lengths = [run_lengths(trace.bits[exit_layer - 1]) for trace in traces]
        for gamma in draft_lengths:
            rounds = sum(replay_rounds(one, gamma) for one in lengths)
            tau = num_tokens / rounds if rounds else 1.0
            cost = round_cost(exit_layer, gamma, num_layers, costs.layer, costs.head)
            cells.append(Cell(exit_layer, gamma, tau, rounds, tau * plain / cost))
    return cells


def best_plan(cells: Sequence[Cell]) -> tuple[Plan, float]:
    """Return the fastest pair and its predicted speed; plain decoding where none is worth it."""
    best = max(cells, key=lambda cell: cell.speed)
    if best.speed < WORTH_IT:
        return PLAIN, 1.0
    return Plan(best.exit_layer, best.draft_tokens), best.speed


def decode_all(
    runner: LayerRange,
    prompts: Sequence[Sequence[int]],
    budget: int,
    plan: Plan,
    ends: frozenset[int],
    on_done: Callable[[int], None] | None = None,
) -> tuple[list[list[int]], Counts]:
    """Decode prompts greedily with one plan; return their tokens and the counts over all."""
    counts, texts = Counts(), []
    for prompt in prompts:
        own = Counts()
        rounds = speculate(runner, prompt, Decoding(budget), Fixed(plan), ends=ends, counts=own)
        texts.append([token for tokens in rounds for token in tokens])
        counts.add(own)
        if on_done:
            on_done(1)
    return texts, counts


class Calibration(NamedTuple):
    """What one plain decoding of sample prompts tells: every pair, the costs, the decoding, and its seconds."""

    cells: list[Cell]
    costs: Costs
    traces: list[Trace]
    seconds: float


def calibrate(runner: LayerRange, prompts: Sequence[Sequence[int]], budget: int, ends: frozenset[int]) -> Calibration:
    """Predict every pair from one plain decoding of the prompts."""
    now = clock(runner.device)
    start = now()
    traces = [record(runner, prompt, budget, ends) for prompt in prompts]
    position = min(POSITION, max(map(len, prompts)))
    costs = measure_costs(runner, position, max(DRAFT_LENGTHS) + 1)
    return Calibration(predict(traces, costs, runner.num_layers), costs, traces, now() - start)
