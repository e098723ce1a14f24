"""The room's study: models trained with and without LayerSkip at equal steps, their exits, and decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from polyloom.core.result import Artifact, Cell, Result, Scalar, Series, Table
from polyloom.generation.layer_range import open_range
from polyloom.generation.speculative import Plan
from polyloom.generation.text import decode_tokens
from polyloom.methods.layerskip.adaptive import describe
from polyloom.methods.layerskip.bench import Decoder, Workload, ours, ours_plain, texts_of, theirs
from polyloom.methods.layerskip.calibration import best_plan, calibrate, decode_all, predict, record
from polyloom.methods.layerskip.config import DataConfig, LayerSkipStudyConfig
from polyloom.methods.layerskip.data import Tokens, by_group, tokenize
from polyloom.methods.layerskip.embedded import (
    FEED_FORWARD,
    MAX_TOKENS,
    NUM_LAYERS,
    TOKENIZER_TEXTS,
    VOCABULARY,
    WIDTH,
    Prepared,
    choose_prompts,
    fit,
    load_examples,
)
from polyloom.methods.layerskip.study import half_depth_ratio
from polyloom.methods.layerskip.timing import interleaved_seconds, speed_over
from polyloom.methods.layerskip.training import PRESETS, Mode, build_llama, score_exits
from polyloom.models.device import pin_threads
from polyloom.models.load import load_model, save_model
from polyloom.models.tokenizers import train_tokenizer
from polyloom.runs.folder import Run
from polyloom.training.config import TrainConfig

STEPS = {"quick": 80, "full": 600}
NUM_PROMPTS = {"quick": 9, "full": 24}
ROUNDS = {"quick": 7, "full": 9}
MODES: dict[str, tuple[Mode, ...]] = {"quick": ("both", "baseline"), "full": ("both", "baseline", "ld", "ee")}
MODE_NAMES = {"both": "LayerSkip", "baseline": "without", "ld": "layer dropout alone", "ee": "early-exit loss alone"}
BATCH_SIZE, QUICK_LANGUAGES, NUM_SCORED, NUM_SHOWN = 16, 3, 90, 3
Curves = dict[str, list[dict[str, float]]]


def run_study(config: LayerSkipStudyConfig, run: Run) -> Result:
    """Train with and without LayerSkip at equal steps; calibrate; decode plainly and self-speculatively.

    Args:
        config: profile and languages.
        run: keeps checkpoints, models and steps.

    Returns:
        Exit curves of each model, the chosen pair, its speed-up with the texts side by side, acceptance by language.

    Raises:
        UserError: a language without sentence templates.
    """
    pin_threads()
    quick = config.profile == "quick"
    languages = config.languages[:QUICK_LANGUAGES] if quick else config.languages
    data = DataConfig(seed=config.seed, languages=languages, num_prompts=NUM_PROMPTS[config.profile])
    train_examples, test_examples, limitations = load_examples(data)
    tokenizer = train_tokenizer([one.prompt + one.response for one in train_examples[:TOKENIZER_TEXTS]], VOCABULARY)
    train_set, test = tokenize(tokenizer, train_examples, MAX_TOKENS), tokenize(tokenizer, test_examples)
    curves: Curves = {}
    for mode in MODES[config.profile]:
        folder = run.artifact(f"model-{mode}")
        if not folder.exists():
            model = build_llama(NUM_LAYERS, WIDTH, FEED_FORWARD, len(tokenizer), config.seed)
            settings = TrainConfig(
                seed=config.seed,
                steps=STEPS[config.profile],
                batch_size=BATCH_SIZE,
                lr=6e-3 if quick else 4e-3,
                checkpoint_every=50,
                keep_checkpoints=1,
            )
            fit(run, model, train_set, PRESETS["embedded"].ablated(mode), settings, mode)
            save_model(model, folder, tokenizer)
        curves[mode] = run.once(f"exits {mode}", partial(_score, str(folder), test))
    model = load_model(run.artifact("model-both"))
    prepared = Prepared(model, tokenizer, train_set, test, limitations)
    decoded = run.once("decode", lambda: _decode(data, prepared, ROUNDS[config.profile]))
    scalars = _scalars(curves, decoded)
    limitations += [
        "One training seed: differences between the models have no interval. Speeds are CPU seconds on one thread.",
    ]
    if quick:
        limitations.append(
            f"{STEPS['quick']} training steps are too few to judge the answers, and too few to decide between settings "
            "that are close; --profile full trains longer and adds the two ablations."
        )
    if len(languages) < len(config.languages):
        limitations.append(f"The quick profile takes the first {QUICK_LANGUAGES} languages: {', '.join(languages)}.")
    return run.result(
        scalars=scalars,
        tables=_tables(curves, decoded),
        series=_series(curves, decoded),
        artifacts={
            "model": Artifact(
                path="artifacts/model-both",
                media_type="inode/directory",
                description="the model trained with LayerSkip",
            )
        },
        verdicts=_verdicts(scalars, decoded),
        limitations=limitations,
    )


def _score(folder: str, test: Sequence[Tokens]) -> list[dict[str, float]]:
    return [asdict(score) for score in score_exits(load_model(folder), test[:NUM_SCORED])[0]]


def _decode(data: DataConfig, prepared: Prepared, rounds: int) -> dict[str, Any]:
    """Calibrate on some prompts, then decode others plainly, self-speculatively and with transformers."""
    chosen = choose_prompts(data, prepared, 2 * data.num_prompts)
    sample, used = chosen[: data.num_prompts], chosen[data.num_prompts :]
    prompts = [one.prompt for one in used]
    runner = open_range(prepared.model, max(len(one.prompt) for one in chosen) + data.max_new_tokens + 16)
    cells, costs, _, _ = calibrate(runner, [one.prompt for one in sample], data.max_new_tokens, prepared.ends)
    plan, predicted = best_plan(cells)
    work = Workload(prompts, data.max_new_tokens, prepared.ends)
    alternatives: dict[str, Decoder] = {
        "plain": ours_plain(runner, work),
        "speculative": ours(runner, work, plan),
        "hf": theirs(prepared.model, work),
    }
    texts = {name: texts_of(decoder) for name, decoder in alternatives.items()}
    seconds = interleaved_seconds(alternatives, rounds)
    groups: dict[str, list[float]] = {}
    for name, group in by_group(chosen).items():
        traces = [record(runner, one.prompt, data.max_new_tokens, prepared.ends) for one in group]
        own = predict(traces, costs, runner.num_layers)
        best = best_plan(own)
        tau = next((c.tau for c in own if (c.exit_layer, c.draft_tokens) == (plan.exit_layer, plan.draft_tokens)), 1.0)
        counts = decode_all(runner, [one.prompt for one in group], data.max_new_tokens, plan, prepared.ends)[1]
        groups[name] = [counts.acceptance, tau, best[0].exit_layer, best[0].draft_tokens, best[1]]
    counts = decode_all(runner, prompts, data.max_new_tokens, plan, prepared.ends)[1]
    shown = [
        [decode_tokens(prepared.tokenizer, one) for one in (prompt, plain, own)]
        for prompt, plain, own in sorted(
            zip(prompts, texts["plain"], texts["speculative"], strict=True), key=lambda one: -len(one[1])
        )[:NUM_SHOWN]
    ]
    return {
        "plan": [plan.exit_layer, plan.draft_tokens],
        "predicted": predicted,
        "over_plain": asdict(speed_over(seconds["plain"], seconds["speculative"])),
        "over_hf": asdict(speed_over(seconds["hf"], seconds["speculative"])),
        "same": texts["plain"] == texts["speculative"],
        "same_as_hf": texts["plain"] == texts["hf"],
        "num_texts": len(prompts),
        "num_tokens": sum(map(len, texts["plain"])),
        "acceptance": counts.acceptance,
        "tau": counts.tokens_per_round,
        "groups": groups,
        "shown": shown,
        "cells": [[c.exit_layer, c.draft_tokens, c.tau, c.speed] for c in cells],
    }


def _scalars(curves: Curves, decoded: dict[str, Any]) -> dict[str, Scalar]:
    scalars = {
        "speed_over_plain": Scalar(**decoded["over_plain"], unit="x"),
        "speed_over_hf_greedy": Scalar(**decoded["over_hf"], unit="x"),
        "same_tokens": Scalar(value=decoded["same"]),
        "same_tokens_as_hf": Scalar(value=decoded["same_as_hf"]),
        "exit_layer": Scalar(value=decoded["plan"][0]),
        "draft_tokens": Scalar(value=decoded["plan"][1]),
        "predicted_speed": Scalar(value=decoded["predicted"], unit="x plain"),
        "acceptance": Scalar(value=decoded["acceptance"], unit="share"),
        "tokens_per_round": Scalar(value=decoded["tau"]),
        "last_layer_ratio": Scalar(
            value=math.exp(curves["both"][-1]["nats"] - curves["baseline"][-1]["nats"]), unit="x without"
        ),
    }
    for mode, scores in curves.items():
        scalars[f"half_depth_ratio_{mode}"] = Scalar(value=half_depth_ratio(scores), unit="x full depth")
        scalars[f"perplexity_{mode}"] = Scalar(value=math.exp(scores[-1]["nats"]))
    return scalars


def _tables(curves: Curves, decoded: dict[str, Any]) -> dict[str, Table]:
    shown: list[list[Cell]] = [
        [prompt, plain, own, "yes" if plain == own else "NO"] for prompt, plain, own in decoded["shown"]
    ]
    exits: list[list[Cell]] = [
        [
            exit_layer,
            *(math.exp(scores[exit_layer - 1]["nats"]) for scores in curves.values()),
            *(scores[exit_layer - 1]["agreement"] for scores in curves.values()),
        ]
        for exit_layer in range(1, NUM_LAYERS + 1)
    ]
    names = [MODE_NAMES[mode] for mode in curves]
    return {
        "texts": Table(
            columns=["prompt", "plain decoding", "self-speculative", "same"], rows=shown, title="Texts side by side"
        ),
        "languages": Table(
            columns=["language", "acceptance", "tokens per round", "own best exit", "own best draft", "its speed"],
            rows=[[name, *row] for name, row in decoded["groups"].items()],
            title="The chosen pair in each language, and the pair that would be best there (predicted)",
        ),
        "exits": Table(
            columns=["exit", *(f"perplexity, {n}" for n in names), *(f"agreement, {n}" for n in names)],
            rows=exits,
            title="Every exit, with the right tokens given",
        ),
    }


def _series(curves: Curves, decoded: dict[str, Any]) -> dict[str, Series]:
    x = [float(number) for number in range(1, NUM_LAYERS + 1)]
    series = {}
    for mode, scores in curves.items():
        series[f"perplexity {MODE_NAMES[mode]}"] = Series(
            x=x,
            y=[math.exp(score["nats"]) for score in scores],
            x_label="exit layer",
            y_label="perplexity",
            group="perplexity by exit",
        )
        series[f"agreement {MODE_NAMES[mode]}"] = Series(
            x=x,
            y=[score["agreement"] for score in scores],
            x_label="exit layer",
            y_label="agreement with the last layer",
            group="agreement by exit",
        )
    for exit_layer in range(1, NUM_LAYERS):
        own = [cell for cell in decoded["cells"] if cell[0] == exit_layer]
        series[f"exit {exit_layer}"] = Series(
            x=[float(cell[1]) for cell in own],
            y=[cell[3] for cell in own],
            x_label="draft length",
            y_label="speed over plain decoding",
            group="predicted speed",
        )
    return series


def _verdicts(scalars: dict[str, Scalar], decoded: dict[str, Any]) -> list[str]:
    over, hf = scalars["speed_over_plain"], scalars["speed_over_hf_greedy"]
    plan = Plan(*decoded["plan"])
    interval = f"{over.value:.2f} [{over.low:.2f}, {over.high:.2f}]"
    same = f"the same text ({decoded['num_texts']} of {decoded['num_texts']})" if decoded["same"] else "DIFFERENT text"
    if not plan.draft_tokens:
        first = "No exit of this model is good enough to draft: plain decoding stays the fastest."
    elif over.low is not None and over.low <= 1:
        first = f"Undecided: {describe(plan)} gives {same} at {interval} times the speed of plain decoding."
    else:
        first = (
            f"{describe(plan).capitalize()} gives {same} {interval} times as fast as plain decoding, and "
            f"{hf.value:.1f} times as fast as transformers' `generate`."
        )
    return [
        first,
        f"At half depth perplexity is {scalars['half_depth_ratio_both'].value:.2f} times the last layer's, "
        f"and without LayerSkip {scalars['half_depth_ratio_baseline'].value:.2f} times, after equal steps.",
        f"The last layer's perplexity is {scalars['last_layer_ratio'].value:.2f} times that without LayerSkip.",
    ]
