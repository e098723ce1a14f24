"""The verb `compare`: arms and minds on the same seeds."""

from __future__ import annotations

from typing import Any

from polyloom.core.errors import UserError, closest
from polyloom.core.files import write_text
from polyloom.core.result import Result, Scalar, Table
from polyloom.methods.commons.config import CompareConfig
from polyloom.methods.commons.logs import LoggedRun, event_runs
from polyloom.methods.commons.play import EVENTS, group_series, play_all, scripted_limitation, setting_of
from polyloom.methods.commons.runner import Job, Ledger, check_specs
from polyloom.methods.commons.scoring import ETHICS, group_scalars, limitations, runs_table
from polyloom.metrics.statistics import compare_paired, correct_family
from polyloom.metrics.survival import log_rank
from polyloom.runs.folder import Run


def run_compare(config: CompareConfig, run: Run) -> Result:
    """Compare arms and minds on the same seeds: paired intervals, survival curves, log-rank tests."""
    cells = [(arm, mind) for arm in config.arms for mind in config.minds]
    names = {cell: f"{cell[0]}/{cell[1]}" for cell in cells}
    base = config.baseline or names[cells[0]]
    if base not in names.values():
        raise UserError(f"there is no {base!r}.", where="--baseline", hint=closest(base, names.values()))
    if config.num_seeds < 2 or len(cells) < 2:
        raise UserError("needs at least 2 seeds and 2 cells.", where="--num-seeds, --arms, --minds")
    jobs: list[Job] = []
    for arm, mind in cells:
        setting = setting_of(config, arm)
        check_specs(config, [mind], config.num_agents)
        for i in range(config.num_seeds):
            jobs.append(Job(f"{len(jobs):05d}", setting, [mind], config.seed + i, len(jobs)))
    texts, costs = play_all(config, jobs, Ledger(config.price_in, config.price_out, config.budget), run)
    path = run.artifact("events.jsonl")
    write_text(path, "".join(texts))
    logged = event_runs(path)
    groups = {names[cell]: logged[i * config.num_seeds : (i + 1) * config.num_seeds] for i, cell in enumerate(cells)}
    scalars: dict[str, Scalar] = dict(costs)
    for name, runs in groups.items():
        scalars |= group_scalars(runs, f"{name}.")
    table, verdicts = _paired(groups, base, config.margin, config.seed)
    return run.result(
        scalars=scalars,
        tables={"paired": table, "runs": runs_table(logged)},
        series=group_series(groups),
        artifacts={"events": EVENTS},
        verdicts=verdicts,
        limitations=[
            *limitations(logged),
            ETHICS,
            *scripted_limitation(config.minds),
            f"{config.num_seeds} seeds: the smallest difference that would be found is in the table.",
        ],
    )


def _paired(groups: dict[str, list[LoggedRun]], base: str, margin: float, seed: int) -> tuple[Table, list[str]]:
    """Compare every group with the base by efficiency over seeds, Holm-corrected together."""
    comparisons, names, curves = [], [], []
    for name, runs in groups.items():
        pairs = [(a, b) for a, b in zip(runs, groups[base], strict=True) if a.counts and b.counts]
        if name == base or len(pairs) < 2:
            continue
        scores = [(a.score().efficiency, b.score().efficiency) for a, b in pairs]
        comparisons.append(compare_paired([a for a, _ in scores], [b for _, b in scores], margin=margin, seed=seed))
        names.append(name)
        lives = [
            ([r.trajectory.num_months for r in side], [r.trajectory.collapsed for r in side])
            for side in zip(*pairs, strict=True)
        ]
        curves.append(log_rank(*lives[0], *lives[1]))
    rows: list[list[Any]] = []
    verdicts = []
    for name, one, p in zip(names, correct_family(comparisons), curves, strict=True):
        difference = one.difference
        rows.append(
            [
                name,
                one.num_pairs,
                one.mean_a,
                one.mean_b,
                difference.value,
                difference.low,
                difference.high,
                one.corrected_p,
                p,
                one.minimum_detectable,
                one.word,
            ]
        )
        verdicts.append(f"{name} against {base}, efficiency: {one.word} ({difference.value:+.1f} points).")
    columns = [
        "group",
        "pairs",
        "efficiency %",
        "base %",
        "difference",
        "low",
        "high",
        "corrected p",
        "log-rank p",
        "detectable difference",
        "word",
    ]
    return Table(columns=columns, rows=rows, title=f"Against {base}"), verdicts
