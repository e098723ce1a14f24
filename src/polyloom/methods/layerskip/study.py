"""The verbs `train`, `exits`, `generate` and `calibrate`."""

from __future__ import annotations

import math
import sys
import time
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
)
from polyloom.generation.text import decode_tokens
from polyloom.methods.layerskip.adaptive import Adaptive, describe
from polyloom.methods.layerskip.calibration import (
    DRAFT_LENGTHS,
    WORTH_IT,
    Costs,
    best_plan,
    decode_all,
    measure_costs,
    predict,
    record,
)
from polyloom.methods.layerskip.calibration import Cell as PairCell
from polyloom.methods.layerskip.config import CalibrateConfig, DataConfig, ExitsConfig, GenerateConfig, TrainVerbConfig
from polyloom.methods.layerskip.data import Tokens, by_group, prompt_tokens
from polyloom.methods.layerskip.embedded import Prepared, choose_prompts, fit, model_folder, open_runner, prepare
from polyloom.methods.layerskip.training import PRESETS, ExitScore, add_lora, score_exits
from polyloom.models.exits import check_exit, exit_parts
from polyloom.models.load import save_model
from polyloom.runs.folder import Run
from polyloom.training.config import TrainConfig

NUM_SCORED = 120
CALIBRATION_POSITION = 48


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
    skip = replace(PRESETS[config.preset], **{name: value for name, value in given.items() if value is not None})
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
        lr=config.lr,
        checkpoint_every=100,
        keep_checkpoints=1,
    )
    loss = fit(run, prepared.model, prepared.train, skip, settings, "train")
    model = merge() if merge else prepared.model
    folder = model_folder(run, config.out)
    save_model(model, folder, prepared.tokenizer)
    after = run.once("after", lambda: _scores(replace(prepared, model=model), test))
    scalars = _exit_scalars(after)
    scalars["num_steps"] = Scalar(value=config.steps)
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

    if config.mode == "plain":
        start = time.process_time()
        decoded = decode(
            prepared.model,
            [prompt],
            settings,
            tokenizer=prepared.tokenizer,
            on_text=lambda _, piece: _write(piece),
        )[0]
        result = Generated(list(decoded.tokens), decoded.text, decoded.finish_reason)
        return result, PLAIN, time.process_time() - start
    runner = open_runner(config, prepared, [prompt])
    if config.mode == "early-exit":
        if config.exit_layer is None:
            raise UserError("early exit needs an exit.", where="--exit-layer", hint="Name one, such as 2.")
        if config.temperature:
            raise UserError("early exit is greedy.", where="--temperature", hint="Leave it at 0.")
        start = time.process_time()
        tokens = list(plain_tokens(runner, prompt, config.max_new_tokens, prepared.ends, exit_layer=config.exit_layer))
        result = Generated(tokens, decode_tokens(prepared.tokenizer, tokens))
        return result, Plan(config.exit_layer), time.process_time() - start
    plan = _plan(config, prepared, runner)
    controller: Controller = Fixed(plan)
    if config.mode == "adaptive":
        controller = Adaptive(runner, measure_costs(runner, min(len(prompt), CALIBRATION_POSITION), 9), plan)
    start = time.process_time()
    result = generate(
        runner,
        prompt,
        settings,
        controller,
        ends=prepared.ends,
        tokenizer=prepared.tokenizer,
        on_text=_write,
    )
    return result, plan, time.process_time() - start


def _plan(config: GenerateConfig, prepared: Prepared, runner: LayerRange) -> Plan:
    """Return the pair that was given, or the calibrated one; the rest of the options on top."""
    if config.draft_tokens == 0:
        plan = PLAIN
    elif config.exit_layer is not None:
        plan = Plan(config.exit_layer, config.draft_tokens or 3)
    else:
        prompts = [one.prompt for one in choose_prompts(config, prepared, 6)]
        if not prompts:
            return PLAIN
        runner = open_runner(config, prepared, prompts)
        plan = best_plan(calibrate(runner, prompts, config.max_new_tokens, prepared.ends)[0])[0]
        if config.draft_tokens and plan.exit_layer:
            plan = replace(plan, draft_tokens=config.draft_tokens)
    return replace(plan, confidence=config.confidence, lookup=config.lookup)


def calibrate(
    runner: LayerRange, prompts: Sequence[Sequence[int]], budget: int, ends: frozenset[int]
) -> tuple[list[PairCell], Costs, float]:
    """Predict every pair from one plain decoding of the prompts; also return the costs and the CPU seconds it took."""
    start = time.process_time()
    traces = [record(runner, prompt, budget, ends) for prompt in prompts]
    position = min(CALIBRATION_POSITION, max(map(len, prompts)))
    costs = measure_costs(runner, position, max(DRAFT_LENGTHS) + 1)
    cells = predict(traces, costs, runner.num_layers)
    return cells, costs, time.process_time() - start


def run_calibrate(config: CalibrateConfig, run: Run) -> Result:
    """Choose exit and draft length from one plain decoding; with --sweep compare with decoding by every pair.

    Args:
        config: model, prompts and whether to sweep.
        run: keeps the steps.

    Raises:
        UserError: as `open_range`.
    """
    prepared = prepare(config, run)
    prompts = [one.prompt for one in choose_prompts(config, prepared)]
    runner = open_runner(config, prepared, prompts)
    cells, costs, seconds = calibrate(runner, prompts, config.max_new_tokens, prepared.ends)
    plan, speed = best_plan(cells)
    scalars = {
        "exit_layer": Scalar(value=plan.exit_layer),
        "draft_tokens": Scalar(value=plan.draft_tokens),
        "predicted_speed": Scalar(value=speed, unit="x plain"),
        "num_pairs": Scalar(value=len(cells)),
    }
    rows: list[list[Cell]] = [list(asdict(cell).values()) for cell in cells]
    columns = ["exit", "draft length", "tokens per round", "rounds", "predicted speed"]
    if config.sweep:
        measured = _sweep(run, runner, prompts, config.max_new_tokens, prepared.ends, cells)
        rows = [[*row, *found[:2]] for row, found in zip(rows, measured, strict=True)]
        columns += ["measured tokens per round", "measured speed"]
        scalars |= _sweep_scalars(cells, measured, plan, seconds)
    verdicts = [
        f"Fastest: {describe(plan)}, predicted {speed:.2f} times plain decoding."
        if plan.draft_tokens
        else _hopeless(cells)
    ]
    if config.sweep:
        verdicts.append(
            f"The choice reaches {scalars['choice_share_of_best'].value:.1%} of the sweep's best speed in "
            f"1/{1 / float(scalars['time_share'].value or 1):.0f} of its time."
        )
    series = {
        f"exit {exit_layer}": Series(
            x=[float(cell.draft_tokens) for cell in cells if cell.exit_layer == exit_layer],
            y=[cell.speed for cell in cells if cell.exit_layer == exit_layer],
            x_label="draft length",
            y_label="speed over plain decoding",
            group="predicted speed",
        )
        for exit_layer in range(1, runner.num_layers)
    }
    tables = {
        "pairs": Table(columns=columns, rows=rows, title="Every pair"),
        "costs": Table(
            columns=["new tokens", "one layer (us)", "norm, head, choice (us)"],
            rows=[[i + 1, c * 1e6, n * 1e6] for i, (c, n) in enumerate(zip(costs.layer, costs.head, strict=True))],
            title="Measured costs",
        ),
    }
    limitations = ["Costs are CPU seconds on one thread of this machine; predicted speeds leave prefill out."]
    return run.result(
        scalars=scalars,
        tables=tables,
        series=series,
        verdicts=verdicts,
        limitations=[*prepared.limitations, *limitations],
    )


def _hopeless(cells: Sequence[PairCell]) -> str:
    best = max(cells, key=lambda cell: cell.speed)
    return (
        f"Plain decoding: the best pair (exit {best.exit_layer}, draft {best.draft_tokens}) would give "
        f"{best.tau:.2f} tokens per round and {best.speed:.2f} times plain speed, below {WORTH_IT}. "
        "Train the exits with `polyloom layerskip train`."
    )


def _sweep(
    run: Run,
    runner: LayerRange,
    prompts: Sequence[Sequence[int]],
    budget: int,
    ends: frozenset[int],
    cells: Sequence[PairCell],
) -> list[list[float]]:
    """Decode with every pair; return tokens per round, speed over the plain decoding beside it, and seconds."""
    measured = []
    with run.progress("sweep", len(cells)) as advance:
        for cell in cells:
            plain, own, tau = [], [], 0.0
            for _ in range(2):
                start = time.process_time()
                decode_all(runner, prompts, budget, PLAIN, ends)
                middle = time.process_time()
                counts = decode_all(runner, prompts, budget, Plan(cell.exit_layer, cell.draft_tokens), ends)[1]
                own.append(time.process_time() - middle)
                plain.append(middle - start)
                tau = counts.tokens_per_round
            measured.append([tau, min(plain) / min(own), sum(own)])
            run.check_stop()
            advance(1)
    return measured


def _sweep_scalars(
    cells: Sequence[PairCell], measured: list[list[float]], plan: Plan, seconds: float
) -> dict[str, Scalar]:
    errors = [abs(cell.tau - tau) for cell, (tau, _, _) in zip(cells, measured, strict=True)]
    speeds = {(c.exit_layer, c.draft_tokens): row[1] for c, row in zip(cells, measured, strict=True)}
    chosen = speeds.get((plan.exit_layer, plan.draft_tokens), 1.0)
    sweep_seconds = sum(row.pop() for row in measured)
    return {
        "max_tau_error": Scalar(value=max(errors)),
        "choice_share_of_best": Scalar(value=chosen / max(speeds.values()), unit="share"),
        "time_share": Scalar(value=seconds / sweep_seconds, unit="of the sweep"),
    }


__all__ = ["ExitScore", "calibrate", "half_depth_ratio", "run_calibrate", "run_exits", "run_generate", "run_train"]
