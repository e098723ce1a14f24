"""The tour: material first, then every room's step, two or more at a time, then one page."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from polyloom.core import registry
from polyloom.core.errors import PolyloomError, Stopped, UserError, closest
from polyloom.core.registry import RoomCard
from polyloom.core.result import Result, Scalar, Series, Table, read_result
from polyloom.runs.folder import Run
from polyloom.tour.config import TourConfig
from polyloom.tour.steps import step_run, work


def run_tour(config: TourConfig, run: Run) -> Result:
    """Make or take the model, run every room's step, and gather what they found.

    A step that fails is reported in its section, and the others go on; `failed_steps` counts them.

    Raises:
        UserError: an unknown room, or material that cannot be used.
        Stopped: the tour was asked to stop; steps that were at work have saved.
    """
    cards = tour_rooms(config)
    base = Result.model_validate(run.once("base", lambda: _base(config, run)))
    materials = {
        "model": config.model or str(run.artifact("model").resolve()),
        "text": tuple(str(path.resolve()) for path in config.text),
        "languages": config.languages,
    }
    errors = _work_all(run, {card.name: step_run(run, card, materials) for card in cards})
    return _gather(run, base, cards, errors)


def tour_rooms(config: TourConfig) -> list[RoomCard]:
    """Return the cards of the rooms that have a step, in their order, or those that the configuration names.

    Raises:
        UserError: a name that is no room with a step.
    """
    cards = {name: card for name, card in registry.rooms().items() if card.tour}
    for name in config.rooms:
        if name not in cards:
            raise UserError(f"there is no room {name!r} in the tour.", where="--rooms", hint=closest(name, cards))
    return [card for name, card in cards.items() if not config.rooms or name in config.rooms]


def _base(config: TourConfig, run: Run) -> Any:
    from polyloom.tour.base_model import gather_text, measure_model, prepare_model

    material = gather_text(config)
    source = prepare_model(config, run, material)
    return measure_model(config, run, material, source).model_dump(mode="json")


def _work_all(run: Run, folders: dict[str, Path]) -> dict[str, str]:
    """Work on all steps, as many at a time as there are cores; returns the errors of those that failed by room."""
    processes: list[subprocess.Popen[str]] = []
    stopped = False
    errors: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=_num_workers()) as pool:
        futures: dict[Future[str | None], str] = {
            pool.submit(work, folder, run, processes): name for name, folder in folders.items()
        }
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            if run.stop_requested:
                for future in pending:
                    future.cancel()
                for process in processes:
                    process.terminate()
            for future in done:
                stopped |= _note(future, futures[future], errors)
    if stopped or run.stop_requested:
        run.request_stop()
        run.check_stop()
    return errors


def _note(future: Future[str | None], room: str, errors: dict[str, str]) -> bool:
    """Note the error of an ended step; returns whether it was stopped."""
    if future.cancelled():
        return True
    try:
        error = future.result()
    except Stopped:
        return True
    except PolyloomError as refused:
        error = str(refused)
    if error:
        errors[room] = error
    return False


def _num_workers() -> int:
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _gather(run: Run, base: Result, cards: list[RoomCard], errors: dict[str, str]) -> Result:
    """Put the base's figures and every room's first verdict, its headline, into one result."""
    scalars: dict[str, Scalar] = dict(base.scalars)
    tables: dict[str, Table] = dict(base.tables)
    series: dict[str, Series] = dict(base.series)
    verdicts, limitations = list(base.verdicts), list(base.limitations)
    rows: list[list[str | int | float | bool | None]] = []
    for card in cards:
        step = f"{run.id}-{card.name}"
        if card.name in errors:
            rows.append([card.name, step, "failed", errors[card.name]])
            verdicts.append(f"{card.name} failed: {errors[card.name]}")
            continue
        result = read_result(run.path.parent / step / "result.json")
        headline = next(iter(result.verdicts), "no verdict")
        rows.append([card.name, step, "done", headline])
        verdicts.append(f"{card.name}: {headline}")
        limitations += [line for line in result.limitations if line not in limitations]
    tables["steps"] = Table(columns=["room", "run", "status", "verdict"], rows=rows, title="Steps of the tour")
    scalars["num_steps"] = Scalar(value=len(cards))
    scalars["failed_steps"] = Scalar(value=len(errors))
    return run.result(scalars=scalars, tables=tables, series=series, verdicts=verdicts, limitations=limitations)
