"""The verb `calibrate`: predict every pair, choose, and with a sweep decode by every one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from polyloom.core.errors import UserError
from polyloom.core.result import Cell, Result, Scalar, Series, Table
from polyloom.generation.layer_range import LayerRange
from polyloom.generation.speculative import PLAIN, Plan
from polyloom.methods.layerskip.adaptive import describe
from polyloom.methods.layerskip.bench import Workload, ours
from polyloom.methods.layerskip.calibration import WORTH_IT, Costs, Trace, best_plan, calibrate, decode_all, predict
from polyloom.methods.layerskip.calibration import Cell as PairCell
from polyloom.methods.layerskip.config import CalibrateConfig
from polyloom.methods.layerskip.data import Tokens
from polyloom.methods.layerskip.embedded import choose_prompts, open_runner, prepare
from polyloom.methods.layerskip.notes import write_notes
from polyloom.methods.layerskip.timing import interleaved_seconds
from polyloom.models.device import clock
from polyloom.runs.folder import Run

NUM_RETIMED, RETIMED_ROUNDS = 4, 7


def run_calibrate(config: CalibrateConfig, run: Run) -> Result:
    """Choose exit and draft length from one plain decoding; with --sweep compare with decoding by every pair.

    Args:
        config: model, prompts and whether to sweep.
        run: keeps the steps.

    Raises:
        UserError: as `open_range`; a pair to save without a folder.
    """
    if config.save and not Path(config.model).is_dir():
        raise UserError("there is no folder to note the pair in.", where="--save", hint="Name a folder with --model.")
    prepared = prepare(config, run)
    chosen = choose_prompts(config, prepared)
    prompts = [one.prompt for one in chosen]
    runner = open_runner(config, prepared, prompts)
    cells, costs, traces, seconds = calibrate(runner, prompts, config.max_new_tokens, prepared.ends)
    plan, speed = best_plan(cells)
    if config.save:
        _save(config.model, plan, speed)
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
        share = _share_of_best(runner, prompts, config.max_new_tokens, prepared.ends, plan, cells, measured)
        scalars |= _sweep_scalars(cells, measured, seconds, share)
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
        "languages": _language_table(chosen, traces, costs, plan, runner.num_layers),
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


def _save(model: str, plan: Plan, speed: float) -> None:
    pair = {"exit_layer": plan.exit_layer, "draft_tokens": plan.draft_tokens, "predicted_speed": speed}
    write_notes(Path(model), plan=pair)


def _language_table(
    chosen: Sequence[Tokens], traces: Sequence[Trace], costs: Costs, plan: Plan, num_layers: int
) -> Table:
    """Return for each language what the chosen pair gives there, and the pair that would be best."""
    groups: dict[str, list[Trace]] = {}
    for one, trace in zip(chosen, traces, strict=True):
        groups.setdefault(one.group, []).append(trace)
    rows: list[list[Cell]] = []
    for name, own in sorted(groups.items()):
        cells = predict(own, costs, num_layers)
        best, speed = best_plan(cells)
        at = [c for c in cells if (c.exit_layer, c.draft_tokens) == (plan.exit_layer, plan.draft_tokens)]
        bits = [bit for trace in own for bit in trace.bits[plan.exit_layer - 1]] if at else []
        agreement = sum(bits) / len(bits) if bits else None
        tau = at[0].tau if at else 1.0
        rows.append([name, len(own), agreement, tau, best.exit_layer, best.draft_tokens, speed])
    return Table(
        columns=["language", "prompts", "agreement", "tokens per round", "own best exit", "its draft", "its speed"],
        rows=rows,
        title="The chosen pair in each language, and the pair that would be best there (predicted)",
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
    measured, now = [], clock(runner.device)
    with run.progress("sweep", len(cells)) as advance:
        for cell in cells:
            plain, own, tau = [], [], 0.0
            for _ in range(2):
                start = now()
                decode_all(runner, prompts, budget, PLAIN, ends)
                middle = now()
                counts = decode_all(runner, prompts, budget, Plan(cell.exit_layer, cell.draft_tokens), ends)[1]
                own.append(now() - middle)
                plain.append(middle - start)
                tau = counts.tokens_per_round
            measured.append([tau, min(plain) / min(own), sum(own)])
            run.check_stop()
            advance(1)
    return measured


def _sweep_scalars(
    cells: Sequence[PairCell], measured: list[list[float]], seconds: float, share: float
) -> dict[str, Scalar]:
    errors = [abs(cell.tau - tau) for cell, (tau, _, _) in zip(cells, measured, strict=True)]
    sweep_seconds = sum(row[2] for row in measured)
    return {
        "max_tau_error": Scalar(value=max(errors)),
        "choice_share_of_best": Scalar(value=share, unit="share"),
        "time_share": Scalar(value=seconds / sweep_seconds, unit="of the sweep"),
    }


def _share_of_best(
    runner: LayerRange,
    prompts: Sequence[Sequence[int]],
    budget: int,
    ends: frozenset[int],
    plan: Plan,
    cells: Sequence[PairCell],
    measured: list[list[float]],
) -> float:
    """Time the choice beside the sweep's best pairs again, interleaved; return its speed over the best one's.

    The best of many noisy times is too good by chance, which a second timing does not repeat.
    """
    order = sorted(range(len(cells)), key=lambda i: -measured[i][1])[:NUM_RETIMED]
    rivals = {Plan(cells[i].exit_layer, cells[i].draft_tokens) for i in order} | {plan}
    work = Workload([list(prompt) for prompt in prompts], budget, ends)
    alternatives = {
        f"{one.exit_layer} {one.draft_tokens}": ours(runner, work, one)
        for one in sorted(rivals, key=lambda one: (one.exit_layer, one.draft_tokens))
    }
    own = interleaved_seconds(alternatives, RETIMED_ROUNDS)
    best = min(median(seconds) for seconds in own.values())
    return best / median(own[f"{plan.exit_layer} {plan.draft_tokens}"])
