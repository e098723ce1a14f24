"""The verbs `bench` and `verify`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from polyloom.core.result import Cell, Result, Scalar, Series, Table
from polyloom.generation.layer_range import open_range
from polyloom.generation.speculative import PLAIN, Plan
from polyloom.methods.layerskip.adaptive import Adaptive, describe
from polyloom.methods.layerskip.bench import (
    Decoder,
    Divergence,
    Workload,
    first_divergence,
    logit_gap,
    ours,
    ours_adaptive,
    ours_plain,
    slices_layers,
    texts_of,
    theirs,
    token_costs,
)
from polyloom.methods.layerskip.calibration import best_plan, calibrate, decode_all
from polyloom.methods.layerskip.config import BenchConfig, VerifyConfig
from polyloom.methods.layerskip.embedded import (
    choose_prompts,
    placed,
    prepare,
    random_prompts,
    shrunk_model,
    useless_model,
)
from polyloom.methods.layerskip.energy import joules_per_token, measure_idle_watts, open_counter
from polyloom.methods.layerskip.sampling_test import sampling_p_values
from polyloom.methods.layerskip.stream import adaptive_scalars
from polyloom.methods.layerskip.timing import interleaved_seconds, speed_over
from polyloom.models.device import clock, clock_unit, pin_threads
from polyloom.runs.folder import Run

RANDOM_LENGTH = 32
SEARCH_PROMPTS, SEARCH_TOKENS = 3, 24
RANDOM_MODELS: dict[str, Callable[[int], PreTrainedModel]] = {
    "shrunk": shrunk_model,
    "shrunk-large": partial(shrunk_model, width=2048, feed_forward=5632, vocab_size=32_000),
    "useless": useless_model,
}


class Loaded(NamedTuple):
    """A model, prompts to calibrate on, prompts to time, and remarks."""

    model: PreTrainedModel
    sample: list[list[int]]
    work: Workload
    limitations: list[str]


def _load(config: BenchConfig | VerifyConfig, run: Run) -> Loaded:
    num = config.num_prompts
    if config.model in RANDOM_MODELS:
        pin_threads()
        model = placed(RANDOM_MODELS[config.model](config.seed).to(getattr(torch, config.dtype)), config)
        prompts = random_prompts(int(model.config.vocab_size), 2 * num, RANDOM_LENGTH, config.seed)
        work = Workload(prompts[num:], config.max_new_tokens, frozenset())
        limits = ["Random weights: the figures are of the loops, not of a language model."]
        return Loaded(model, prompts[:num], work, limits)
    prepared = prepare(config, run)
    chosen = [one.prompt for one in choose_prompts(config, prepared, 2 * num)]
    limits = list(prepared.limitations)
    if len(chosen) > 1:
        num = min(num, len(chosen) // 2)
    else:
        num = 0
        limits.append("There is one prompt: what is calibrated on is what is timed.")
    work = Workload(chosen[num : num + config.num_prompts], config.max_new_tokens, prepared.ends)
    return Loaded(prepared.model, chosen[:num] or chosen, work, limits)


def run_bench(config: BenchConfig, run: Run) -> Result:
    """Time our loops beside transformers' on the same prompts, one thread, CPU seconds, interleaved.

    Args:
        config: model, prompts, rounds.
        run: keeps the tiny model, where it is trained.

    Returns:
        Ratios of the best calibrated pair over plain decoding and over each peer; whether all tokens are equal.

    Raises:
        UserError: as `open_range`.
    """
    model, sample, work, limitations = _load(config, run)
    runner = open_range(model, max(RANDOM_LENGTH, *map(len, [*sample, *work.prompts])) + work.budget + 16)
    cells, costs, traces, _ = calibrate(runner, sample, work.budget, work.ends)
    plan, predicted = best_plan(cells)
    alternatives: dict[str, Decoder] = {
        "plain": ours_plain(runner, work),
        "speculative": ours(runner, work, plan),
        "hf_greedy": theirs(model, work),
        "hf_prompt_lookup": theirs(model, work, prompt_lookup_num_tokens=8),
    }
    if config.adaptive:
        alternatives["adaptive"] = ours_adaptive(runner, work, Adaptive(runner, costs, traces=traces))
    limitations = [*limitations, _add_early_exit(alternatives, model, work, runner.num_layers)]
    texts = {name: texts_of(decoder) for name, decoder in alternatives.items()}
    with run.progress("bench", config.rounds + 1) as advance:
        seconds = interleaved_seconds(alternatives, config.rounds, advance, clock=clock(model.device))
    ratios = {name: speed_over(own, seconds["speculative"]) for name, own in seconds.items() if name != "speculative"}
    scalars = {f"speed_over_{name}": Scalar.of(ratio, "x") for name, ratio in ratios.items()}
    num_tokens = sum(map(len, texts["plain"]))
    different = {name: _num_different(texts["plain"], text) for name, text in texts.items()}
    counts = decode_all(runner, work.prompts, work.budget, plan, work.ends)[1]
    scalars |= {
        "exit_layer": Scalar(value=plan.exit_layer),
        "draft_tokens": Scalar(value=plan.draft_tokens),
        "predicted_speed": Scalar(value=predicted, unit="x plain"),
        "acceptance": Scalar(value=counts.acceptance, unit="share"),
        "tokens_per_round": Scalar(value=counts.tokens_per_round),
        "same_tokens": Scalar(value=different["speculative"] == 0),
        "same_tokens_as_hf": Scalar(value=different["hf_greedy"] == 0),
    }
    if config.adaptive:
        scalars["adaptive_over_plain"] = Scalar.of(speed_over(seconds["plain"], seconds["adaptive"]), "x")
        scalars |= adaptive_scalars(runner, sample, work, costs, config)
    tau, unit = counts.tokens_per_round, clock_unit(model.device)
    scalars |= _cost_scalars(model, plan, runner.num_layers, tau)
    scalars |= _energy_scalars(model.device, config.watts, alternatives, seconds, num_tokens)
    rows: list[list[Cell]] = [
        [name, num_tokens / min(own), speed_over(seconds["plain"], own).value, different[name]]
        for name, own in seconds.items()
    ]
    return run.result(
        scalars=scalars,
        tables={
            "speeds": Table(
                columns=["method", f"tokens per {unit}", "speed over plain", "texts that differ"],
                rows=rows,
                title=f"{len(work.prompts)} prompts, {num_tokens} tokens, {config.rounds} rounds",
            )
        },
        series={"speed": _speed_series(rows)},
        verdicts=[_bench_verdict(plan, scalars)],
        limitations=[
            *limitations,
            *_energy_remark(scalars),
            f"Ratios of {unit}s, {_machine(model.device)}, prefill included.",
        ],
    )


def _machine(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)}" if device.type == "cuda" else "one thread of this machine"


def _speed_series(rows: list[list[Cell]]) -> Series:
    return Series(
        x=[float(i) for i in range(len(rows))],
        y=[float(row[2] or 0) for row in rows],
        x_names=[str(row[0]) for row in rows],
        y_label="speed over our plain decoding",
        group="speed",
        kind="bar",
    )


def _bench_verdict(plan: Plan, scalars: dict[str, Scalar]) -> str:
    over = scalars["speed_over_plain"]
    return (
        f"{describe(plan).capitalize()} gives {'' if scalars['same_tokens'].value else 'NOT '}the same text "
        f"{over.value:.2f} times as fast as our plain decoding and "
        f"{scalars['speed_over_hf_greedy'].value:.2f} times as fast as transformers' greedy `generate`."
    )


def _energy_remark(scalars: dict[str, Scalar]) -> list[str]:
    if "joules_per_token_plain" in scalars:
        return []
    return ["No energy counter (RAPL, NVML) can be read here; --watts gives an estimate from CPU seconds."]


def _add_early_exit(alternatives: dict[str, Decoder], model: PreTrainedModel, work: Workload, num_layers: int) -> str:
    """Add transformers' early exit at its best exit, where it works; return what to say of it."""
    if not slices_layers(model):
        return "transformers' early exit does not work on this architecture."
    exit_layer = _best_peer_exit(model, work, num_layers)
    alternatives["hf_early_exit"] = theirs(model, work, assistant_early_exit=exit_layer)
    return f"transformers' early exit runs at exit {exit_layer}, its best here."


def _best_peer_exit(model: PreTrainedModel, work: Workload, num_layers: int) -> int:
    few = Workload(work.prompts[:SEARCH_PROMPTS], min(work.budget, SEARCH_TOKENS), work.ends)
    candidates = {str(e): theirs(model, few, assistant_early_exit=e) for e in range(1, num_layers)}
    seconds = interleaved_seconds(candidates, 1, clock=clock(model.device))
    return int(min(seconds, key=lambda name: min(seconds[name])))


def _num_different(a: list[list[int]], b: list[list[int]]) -> int:
    return sum(one != other for one, other in zip(a, b, strict=True))


def _cost_scalars(model: PreTrainedModel, plan: Plan, num_layers: int, tau: float) -> dict[str, Scalar]:
    flops, read = token_costs(model, plan, num_layers, tau)
    plain_flops, plain_read = token_costs(model, PLAIN, num_layers, 1.0)
    return {
        "flops_per_token": Scalar(value=flops),
        "flops_per_token_plain": Scalar(value=plain_flops),
        "weight_bytes_per_token": Scalar(value=read, unit="B"),
        "weight_bytes_per_token_plain": Scalar(value=plain_read, unit="B"),
    }


def _energy_scalars(
    device: torch.device,
    watts: float | None,
    alternatives: dict[str, Decoder],
    seconds: dict[str, list[float]],
    num_tokens: int,
) -> dict[str, Scalar]:
    """Return joules per token, counted where the machine counts; else, if watts are given, an estimate."""
    found = open_counter(device)
    idle = measure_idle_watts(found[1]) if found else 0.0
    scalars = {}
    for name in ("plain", "speculative"):
        if found:
            joules = joules_per_token(found[1], alternatives[name], idle)
            scalars[f"joules_per_token_{name}"] = Scalar(value=joules, unit=f"J ({found[0]}, idle subtracted)")
        elif watts is not None:
            joules = watts * min(seconds[name]) / num_tokens
            scalars[f"joules_per_token_{name}"] = Scalar(value=joules, unit="J (ESTIMATE: CPU seconds x --watts)")
    return scalars


def run_verify(config: VerifyConfig, run: Run) -> Result:
    """Compare every exit and draft length with plain decoding and with transformers, token by token.

    Args:
        config: model, prompts, draft lengths, and the gap of logits that counts as a tie.
        run: fails (exit code 1) where a difference is no tie.

    Returns:
        How many texts were compared, how many differ by a numerical tie, and each of these with its gap.

    Raises:
        PolyloomError: a difference that is no tie.
        UserError: as `open_range`.
    """
    from polyloom.core.errors import PolyloomError

    model, _, work, limitations = _load(config, run)
    runner = open_range(model, max(map(len, work.prompts)) + work.budget + 16)
    plain = texts_of(ours_plain(runner, work))
    library = texts_of(theirs(model, work))
    found = [_divergence(model, work, plain, text, row, 0, 0) for row, text in enumerate(library)]
    pairs = [(e, g) for e in range(1, runner.num_layers) for g in config.draft_lengths]
    with run.progress("verify", len(pairs)) as advance:
        for exit_layer, gamma in pairs:
            texts = decode_all(runner, work.prompts, work.budget, Plan(exit_layer, gamma), work.ends)[0]
            found += [_divergence(model, work, plain, one, i, exit_layer, gamma) for i, one in enumerate(texts)]
            run.check_stop()
            advance(1)
    differences = [one for one in found if one is not None]
    num_compared = len(found)
    num_tokens = sum(map(len, plain)) * (len(pairs) + 1)
    bugs = [one for one in differences if one.gap > config.tolerance]
    rows: list[list[Cell]] = [[*asdict(one).values(), "BUG" if one in bugs else "numerical tie"] for one in differences]
    if bugs:
        worst = max(bugs, key=lambda one: one.gap)
        raise PolyloomError(
            f"prompt {worst.prompt}, exit {worst.exit_layer}, draft {worst.draft_tokens} leaves plain decoding at "
            f"{worst.position} (token {worst.other} for {worst.plain}, logit gap {worst.gap:.3g}): no tie.",
            hint="Please report it with the model's config.json.",
        )
    scalars: dict[str, Scalar] = {
        "num_texts": Scalar(value=num_compared),
        "num_tokens": Scalar(value=num_tokens),
        "num_ties": Scalar(value=len(differences)),
        "tie_share": Scalar(value=len(differences) / num_tokens, unit="share"),
    }
    verdicts = [
        f"All {num_compared} texts ({len(pairs)} pairs and transformers' greedy `generate`) equal plain decoding"
        + (f", but for {len(differences)} numerical ties." if differences else ", token by token.")
    ]
    if config.num_draws:
        p_values = run.once("sampling", lambda: sampling_p_values(config.num_draws, config.seed))
        for name, p in p_values.items():
            scalars[f"sampling_p_{name}"] = Scalar(value=p)
        verdicts.append(
            f"Sampled pairs of tokens follow the whole model's law: p = {min(p_values.values()):.3f} or more "
            f"(chi-square, {config.num_draws:,} draws each)."
        )
    columns = ["prompt", "exit", "draft", "position", "plain token", "other token", "logit gap", "class"]
    return run.result(
        scalars=scalars,
        tables={"differences": Table(columns=columns, rows=rows, title="Differences (exit 0: transformers)")},
        verdicts=verdicts,
        limitations=[*limitations, f"Compared in {next(model.parameters()).dtype} on this machine."],
    )


def _divergence(
    model: PreTrainedModel,
    work: Workload,
    plain: list[list[int]],
    text: list[int],
    row: int,
    exit_layer: int,
    gamma: int,
) -> Divergence | None:
    position = first_divergence(plain[row], text)
    if position is None:
        return None
    other = text[position] if position < len(text) else -1
    if position >= len(plain[row]) or other < 0:
        return Divergence(row, exit_layer, gamma, position, -1, other, float("inf"))
    gap = logit_gap(model, work.prompts[row], plain[row], position, other)
    return Divergence(row, exit_layer, gamma, position, plain[row][position], other, gap)
