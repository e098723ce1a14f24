"""The verbs `train`, `exits` and `generate`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.result import Artifact, Cell, Result, Scalar, Series, Table
from polyloom.generation.layer_range import LayerRange
from polyloom.generation.sampling import Decoding
from polyloom.generation.speculative import (
    PLAIN,
    Controller,
    Fixed,
    Generated,
    Plan,
    check_request,
    generate,
    plain_tokens,
    take,
)
from polyloom.generation.text import decode_tokens
from polyloom.methods.layerskip.adaptive import Adaptive
from polyloom.methods.layerskip.calibration import best_plan, calibrate
from polyloom.methods.layerskip.config import DataConfig, ExitsConfig, GenerateConfig, TrainVerbConfig
from polyloom.methods.layerskip.data import Tokens, by_group, prompt_tokens
from polyloom.methods.layerskip.embedded import Prepared, choose_prompts, fit, model_folder, open_runner, prepare
from polyloom.methods.layerskip.notes import read_plan, write_notes
from polyloom.methods.layerskip.training import PRESETS, RATES, ExitScore, add_lora, score_exits
from polyloom.models.device import clock
from polyloom.models.exits import check_exit, exit_parts
from polyloom.models.load import save_model
from polyloom.runs.folder import Run
from polyloom.training.config import TrainConfig

NUM_SCORED = 120
CALIBRATION_PROMPTS = 6


def run_train(config: TrainVerbConfig, run: Run) -> Result:
    """Train a model with layer dropout and the early-exit loss; the checkpoint is an ordinary one.

    Args:
        config: model, data and LayerSkip's settings.
        run: keeps checkpoints and the model.

    Returns:
        Perplexity and agreement of every exit before and after.

    Raises:
        UserError: settings outside their range, an unusable model, or data without answers.
    """
    given = {name: getattr(config, name) for name in ("p_max", "e_scale", "curriculum", "rotation")}
    preset = config.preset or ("embedded" if config.model == "tiny" else "code-llama1-7b")
    skip = replace(PRESETS[preset], **{name: value for name, value in given.items() if value is not None})
    skip = replace(skip, loss_scale=config.loss_scale, distill=config.distill, floor=config.exit_floor)
    prepared = prepare(config, run, loaded=config.model != "tiny")
    parts = exit_parts(prepared.model)
    skip = replace(skip, rotation=min(skip.rotation, parts.num_layers) if config.rotation is None else skip.rotation)
    skip = skip.ablated(config.mode)
    test = prepared.test[:NUM_SCORED]
    before = run.once("before", lambda: _scores(prepared, test))
    merge = add_lora(prepared.model, config.lora_rank, max(1, parts.num_layers // 2)) if config.lora_rank else None
    settings = TrainConfig(
        seed=config.seed,
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr or RATES[preset],
        checkpoint_every=100,
        keep_checkpoints=1,
    )
    loss = fit(run, prepared.model, prepared.train, skip, settings, "train")
    model = merge() if merge else prepared.model
    folder = model_folder(run, config.out)
    save_model(model, folder, prepared.tokenizer)
    after = run.once("after", lambda: _scores(replace(prepared, model=model), test))
    recipe = {"preset": preset, "mode": config.mode, "steps": config.steps, "lora_rank": config.lora_rank}
    write_notes(folder, recipe=recipe | asdict(skip), exits=after)
    scalars = _exit_scalars(after)
    scalars["num_steps"] = Scalar(value=config.steps)
    scalars["num_skipped_batches"] = Scalar(value=loss.num_skipped_batches)
    scalars["layer_rows_run"] = Scalar(value=loss.num_layer_rows)
    increase = math.exp(after[-1]["nats"] - before[-1]["nats"]) - 1
    scalars["last_layer_increase"] = Scalar(value=increase, unit="share")
    verdicts = [_exit_verdict(after)]
    if config.model != "tiny" and increase > config.max_loss_increase:
        verdicts.append(
            f"Warning: the last layer's perplexity rose by {increase:.1%}. Lower --e-scale or --p-max, "
            "raise --rotation, or train longer."
        )
    artifacts = {}
    if config.out is None:
        artifacts["model"] = Artifact(path="artifacts/model", media_type="inode/directory", description="the model")
    return run.result(
        scalars=scalars,
        tables={"exits": _exit_table(after, "After training"), "settings": _settings_table(asdict(skip))},
        series=_exit_series({"before": before, "after": after}),
        artifacts=artifacts,
        verdicts=verdicts,
        limitations=prepared.limitations,
    )


def _settings_table(values: dict[str, Any]) -> Table:
    return Table(
        columns=["setting", "value"], rows=[[name, value] for name, value in values.items()], title="LayerSkip"
    )


def _scores(prepared: Prepared, examples: Sequence[Tokens]) -> list[dict[str, float]]:
    return [asdict(score) for score in score_exits(prepared.model, examples)[0]]


def _exit_scalars(scores: Sequence[dict[str, float]]) -> dict[str, Scalar]:
    scalars = {}
    for number, score in enumerate(scores, start=1):
        scalars[f"perplexity_exit_{number}"] = Scalar(value=math.exp(score["nats"]))
        scalars[f"agreement_exit_{number}"] = Scalar(value=score["agreement"], unit="share")
    scalars["half_depth_ratio"] = Scalar(value=half_depth_ratio(scores), unit="x full depth")
    return scalars


def half_depth_ratio(scores: Sequence[dict[str, float]]) -> float:
    """Return the perplexity at half depth over the full depth's."""
    return math.exp(scores[len(scores) // 2 - 1]["nats"] - scores[-1]["nats"])


def _exit_verdict(scores: Sequence[dict[str, float]]) -> str:
    half = len(scores) // 2
    return (
        f"At half depth (exit {half}) perplexity is {half_depth_ratio(scores):.2f} times the last layer's, and "
        f"{scores[half - 1]['agreement']:.0%} of the tokens agree with it."
    )


def _exit_table(scores: Sequence[dict[str, float]], title: str) -> Table:
    rows: list[list[Cell]] = [[i, math.exp(s["nats"]), s["agreement"]] for i, s in enumerate(scores, start=1)]
    return Table(columns=["exit", "perplexity", "agreement with the last layer"], rows=rows, title=title)


def _exit_series(curves: dict[str, list[dict[str, float]]]) -> dict[str, Series]:
    """Return perplexity and agreement curves, one of each per name."""
    series = {}
    for name, scores in curves.items():
        x = [float(number) for number in range(1, len(scores) + 1)]
        series[f"perplexity {name}"] = Series(
            x=x,
            y=[math.exp(score["nats"]) for score in scores],
            x_label="exit layer",
            y_label="perplexity",
            group="perplexity by exit",
        )
        series[f"agreement {name}"] = Series(
            x=x,
            y=[score["agreement"] for score in scores],
            x_label="exit layer",
            y_label="agreement with the last layer",
            group="agreement by exit",
        )
    return series


def run_exits(config: ExitsConfig, run: Run) -> Result:
    """Report perplexity, agreement and exact answers of every exit, and agreement by language.

    Args:
        config: model and prompts with answers.
        run: keeps the steps.

    Raises:
        UserError: a model without readable layers, or prompts without answers.
    """
    prepared = prepare(config, run)
    test = prepared.test[: max(NUM_SCORED, config.num_prompts)]
    scores = run.once("scores", lambda: _scores(prepared, test))
    groups = run.once("groups", lambda: {n: _scores(prepared, one) for n, one in by_group(test).items()})
    prompts = [one for one in choose_prompts(config, prepared) if one.response]
    limitations = list(prepared.limitations)
    try:
        runner = open_runner(config, prepared, [one.prompt for one in prompts]) if prompts else None
    except UserError as error:
        runner = None
        limitations.append(f"Exact answers were not counted: {error}")
    exact = run.once("exact", lambda: _exact_matches(config, prepared, runner, prompts) if runner else [])
    scalars = _exit_scalars(scores)
    for number, share in enumerate(exact, start=1):
        scalars[f"exact_match_exit_{number}"] = Scalar(value=share, unit="share")
    rows: list[list[Cell]] = [[name, *(score["agreement"] for score in one)] for name, one in groups.items()]
    columns = ["language", *(f"exit {number}" for number in range(1, len(scores) + 1))]
    table = _exit_table(scores, "Every exit, with the right tokens given")
    if exact:
        merged = [[*row, share] for row, share in zip(table.rows, exact, strict=True)]
        table = Table(columns=[*table.columns, "exact answers"], rows=merged, title=table.title)
    return run.result(
        scalars=scalars,
        tables={"exits": table, "languages": Table(columns=columns, rows=rows, title="Agreement by language")},
        series=_exit_series({"": scores}),
        verdicts=[_exit_verdict(scores)],
        limitations=limitations,
    )


def _exact_matches(
    config: DataConfig, prepared: Prepared, runner: LayerRange, prompts: Sequence[Tokens]
) -> list[float]:
    shares = []
    for exit_layer in range(1, runner.num_layers + 1):
        hits = 0
        for one in prompts:
            last = exit_layer if exit_layer < runner.num_layers else 0
            answer = list(plain_tokens(runner, one.prompt, config.max_new_tokens, prepared.ends, exit_layer=last))
            said = decode_tokens(prepared.tokenizer, answer).strip()
            hits += said == decode_tokens(prepared.tokenizer, one.response).strip()
        shares.append(hits / len(prompts))
    return shares


def _write(piece: str) -> None:
    sys.stderr.write(piece)


def run_generate(config: GenerateConfig, run: Run) -> Result:
    """Continue one prompt; its text streams to standard error.

    Args:
        config: prompt, mode and sampling.
        run: keeps the tiny model, where it is trained.

    Raises:
        UserError: no such exit, an empty prompt, a text beyond the model's positions, or layers that cannot be
            rolled back.
    """
    prepared = prepare(config, run)
    num_layers = exit_parts(prepared.model).num_layers
    if config.exit_layer is not None:
        check_exit(config.exit_layer, num_layers)
    if config.prompt is None:
        prompt = choose_prompts(config, prepared, 1)[0].prompt
    else:
        prompt = prompt_tokens(prepared.tokenizer, config.prompt)
    from polyloom.generation.decode import max_positions

    vocabulary = int(prepared.model.config.get_text_config(decoder=True).vocab_size)
    settings = Decoding(
        config.max_new_tokens, config.temperature, config.top_k, config.top_p, config.seed, tuple(config.stop)
    )
    check_request(prompt, settings, vocabulary, max_positions(prepared.model) or 10**9)
    result, plan, seconds = _generate(config, prepared, prompt, settings)
    sys.stderr.write("\n")
    counts = result.counts
    scalars = {
        "num_tokens": Scalar(value=len(result.tokens)),
        "tokens_per_round": Scalar(value=counts.tokens_per_round),
        "acceptance": Scalar(value=counts.acceptance, unit="share"),
        "exit_layer": Scalar(value=plan.exit_layer),
        "draft_tokens": Scalar(value=plan.draft_tokens),
        "tokens_per_cpu_second": Scalar(value=len(result.tokens) / seconds, unit="1/s"),
    }
    asked = decode_tokens(prepared.tokenizer, prompt)
    return run.result(
        scalars=scalars,
        tables={"text": Table(columns=["prompt", "continuation"], rows=[[asked, result.text]], title="Text")},
        verdicts=[f"{len(result.tokens)} tokens by {config.mode}, ended by {result.finish_reason}."],
        limitations=prepared.limitations,
    )


def _generate(
    config: GenerateConfig, prepared: Prepared, prompt: list[int], settings: Decoding
) -> tuple[Generated, Plan, float]:
    from polyloom.generation.decode import decode

    now = clock(prepared.model.device)
    if config.mode == "plain":
        start = now()
        decoded = decode(
            prepared.model,
            [prompt],
            settings,
            tokenizer=prepared.tokenizer,
            on_text=lambda _, piece: _write(piece),
        )[0]
        result = Generated(list(decoded.tokens), decoded.text, decoded.finish_reason)
        return result, PLAIN, now() - start
    runner = open_runner(config, prepared, [prompt])
    if config.mode == "early-exit":
        if config.exit_layer is None:
            raise UserError("early exit needs an exit.", where="--exit-layer", hint="Name one, such as 2.")
        if config.temperature:
            raise UserError("early exit is greedy.", where="--temperature", hint="Leave it at 0.")
        start = now()
        tokens = plain_tokens(runner, prompt, config.max_new_tokens, prepared.ends, exit_layer=config.exit_layer)
        result = Generated()
        take(result, ([token] for token in tokens), settings.stop, prepared.ends, prepared.tokenizer, _write)
        return result, Plan(config.exit_layer), now() - start
    plan, controller = _controller(config, prepared, runner)
    start = now()
    result = generate(
        runner,
        prompt,
        settings,
        controller,
        ends=prepared.ends,
        tokenizer=prepared.tokenizer,
        on_text=_write,
    )
    return result, plan, now() - start


def _controller(config: GenerateConfig, prepared: Prepared, runner: LayerRange) -> tuple[Plan, Controller]:
    """Return the plan that was given, what is left open calibrated, and the controller that follows or adapts it."""
    exit_layer, gamma = config.exit_layer, config.draft_tokens
    if gamma == 0 or (exit_layer and gamma and config.mode != "adaptive"):
        plan = Plan(exit_layer if gamma and exit_layer else 0, gamma or 0, config.confidence, config.lookup)
        return plan, Fixed(plan)
    noted = read_plan(config.model, runner.num_layers) if exit_layer is gamma is None else None
    if noted is not None and config.mode != "adaptive":
        plan = replace(noted, confidence=config.confidence, lookup=config.lookup)
        return plan, Fixed(plan)
    prompts = [one.prompt for one in choose_prompts(config, prepared, CALIBRATION_PROMPTS)]
    if not prompts:
        return PLAIN, Fixed(PLAIN)
    sample = open_runner(config, prepared, prompts)
    cells, costs, traces, _ = calibrate(sample, prompts, config.max_new_tokens, prepared.ends)
    allowed = [c for c in cells if exit_layer in (None, c.exit_layer) and gamma in (None, c.draft_tokens)] or cells
    plan = replace(best_plan(allowed)[0], confidence=config.confidence, lookup=config.lookup)
    return plan, Adaptive(runner, costs, traces=traces) if config.mode == "adaptive" else Fixed(plan)


__all__ = ["ExitScore", "half_depth_ratio", "run_exits", "run_generate", "run_train"]
