"""The adaptive mode on a mixed stream: prompts of the data in turn with prompts of random tokens."""

from __future__ import annotations

from typing import TypeVar

from polyloom.core.result import Scalar
from polyloom.generation.layer_range import LayerRange
from polyloom.generation.speculative import PLAIN, Plan
from polyloom.methods.layerskip.adaptive import Adaptive
from polyloom.methods.layerskip.bench import Decoder, Workload, ours, ours_adaptive, ours_plain, texts_of
from polyloom.methods.layerskip.calibration import Costs, Trace, predict, record
from polyloom.methods.layerskip.config import BenchConfig
from polyloom.methods.layerskip.embedded import random_prompts
from polyloom.methods.layerskip.timing import interleaved_seconds, speed_over

NOISE_LENGTH = 16
NUM_RIVALS = 3
T = TypeVar("T")


def adaptive_scalars(
    runner: LayerRange, sample: list[list[int]], work: Workload, costs: Costs, config: BenchConfig
) -> dict[str, Scalar]:
    """Time the adaptive mode on a mixed stream beside plain decoding and the fixed pairs that are best on that stream.

    The adaptive mode begins with evidence of other prompts; the fixed pairs are those that a calibration on the very
    stream predicts to be fastest, and the fastest of them when timed is the one that counts.

    Args:
        runner: the model.
        sample: prompts that are not in the stream.
        work: prompts of the stream.
        costs: measured.
        config: rounds and seed.
    """
    noise = _noise(work, runner.vocab_size, config.seed)
    other = _noise(Workload(sample, work.budget, work.ends), runner.vocab_size, config.seed + 1)
    traces = [*_traces(runner, Workload(sample, work.budget, work.ends)), *_traces(runner, other)]
    cells = predict([*_traces(runner, work), *_traces(runner, noise)], costs, runner.num_layers)
    best = sorted(cells, key=lambda cell: -cell.speed)[:NUM_RIVALS]
    controller = Adaptive(runner, costs, traces=_in_turn(traces))
    alternatives: dict[str, Decoder] = {
        "plain": [*ours_plain(runner, work), *ours_plain(runner, noise)],
        "adaptive": [*ours_adaptive(runner, work, controller), *ours_adaptive(runner, noise, controller)],
    }
    for plan in (PLAIN, *(Plan(cell.exit_layer, cell.draft_tokens) for cell in best)):
        alternatives[f"{plan.exit_layer} {plan.draft_tokens}"] = [*ours(runner, work, plan), *ours(runner, noise, plan)]
    alternatives = {name: _in_turn(decoder) for name, decoder in alternatives.items()}
    same = texts_of(alternatives["plain"]) == texts_of(alternatives["adaptive"])
    seconds = interleaved_seconds(alternatives, config.rounds)
    fixed = min((name for name in seconds if name != "adaptive"), key=lambda name: sum(seconds[name]))
    return {
        "mixed_adaptive_over_plain": Scalar.of(speed_over(seconds["plain"], seconds["adaptive"]), "x"),
        "mixed_adaptive_over_best_fixed": Scalar.of(speed_over(seconds[fixed], seconds["adaptive"]), "x"),
        "mixed_same_tokens": Scalar(value=same),
    }


def _noise(work: Workload, vocab_size: int, seed: int) -> Workload:
    """Return as many prompts of random tokens; nothing ends their text before half the budget."""
    prompts = random_prompts(vocab_size, len(work.prompts), NOISE_LENGTH, seed)
    return Workload(prompts, max(1, work.budget // 2), frozenset())


def _traces(runner: LayerRange, work: Workload) -> list[Trace]:
    return [record(runner, prompt, work.budget, work.ends) for prompt in work.prompts]


def _in_turn(items: list[T]) -> list[T]:
    """Return the first half's items and the second half's in turn."""
    half = len(items) // 2
    return [one for pair in zip(items[:half], items[half:], strict=True) for one in pair]
