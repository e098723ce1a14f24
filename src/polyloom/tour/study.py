"""The tour: its model first, then every room's step, the longest first and as many at a time as there are cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from polyloom.core import registry
from polyloom.core.errors import PolyloomError, Stopped, UserError, closest
from polyloom.core.registry import RoomCard
from polyloom.core.result import Result, Scalar, Series, Table, read_result
from polyloom.runs.folder import Run
from polyloom.tour.config import TourConfig
from polyloom.tour.steps import Worker, start_worker, step_run, work


def run_tour(config: TourConfig, run: Run) -> Result:
    """Make or take the model, run every room's step, and gather what they found.

    Steps that take no model begin while it is made. A step that fails is reported in its section, and the others go on;
    `failed_steps` counts them.

    Raises:
        UserError: an unknown room, or material that cannot be used.
        Stopped: the tour was asked to stop; steps that were at work have saved.
    """
    cards = tour_rooms(config)
    steps = _Steps(run, min(_num_workers(), len(cards)))

    def start(cards: Iterable[RoomCard]) -> None:
        materials = _materials(config, run)
        steps.start({card.name: step_run(run, card, materials) for card in sorted(cards, key=_cost, reverse=True)})

    def start_without_model() -> None:
        start(card for card in cards if not _takes_model(card))

    try:
        base = Result.model_validate(run.once("base", lambda: _base(config, run, start_without_model)))
        steps.free_core()
        start(cards)
        errors = steps.wait()
    finally:
        steps.close()
    return _gather(run, base, cards, errors)


def _materials(config: TourConfig, run: Run) -> dict[str, object]:
    return {
        "model": config.model or str(run.artifact("model").resolve()),
        "text": tuple(str(path.resolve()) for path in config.text),
        "languages": config.languages,
    }


def _cost(card: RoomCard) -> float:
    return card.tour.cpu_seconds if card.tour else 0.0


def _takes_model(card: RoomCard) -> bool:
    return card.tour is not None and "model" in card.tour.inputs.values()


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


def _base(config: TourConfig, run: Run, on_accepted: Callable[[], None]) -> Any:
    """Make and measure the model; `on_accepted` is called when the material can be used, before the long work."""
    from polyloom.tour.base_model import check_model, gather_text, measure_model, prepare_model

    material = gather_text(config)
    check_model(config)
    on_accepted()
    source = prepare_model(config, run, material)
    return measure_model(config, run, material, source).model_dump(mode="json")


class _Steps:
    """Works on steps, one fewer than there are cores at a time until `free_core`: the model is made on the other."""

    def __init__(self, run: Run, num_workers: int) -> None:
        self._run, self._num_workers = run, num_workers
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        self._workers: list[Worker] = []
        self._pool = ThreadPoolExecutor(num_workers)
        self._futures: dict[str, Future[str | None]] = {}
        self._model_made = threading.Event()
        self._pool.submit(self._model_made.wait)

    def start(self, folders: dict[str, Path]) -> None:
        """Have these steps done, in this order, but those that were started before; by room."""
        while len(self._workers) < self._num_workers:
            self._workers.append(start_worker())
            self._idle.put(self._workers[-1])
        for room, folder in folders.items():
            if room not in self._futures:
                self._futures[room] = self._pool.submit(work, folder, self._run, self._idle)

    def free_core(self) -> None:
        """Let the steps have the core that the model was made on."""
        self._model_made.set()

    def wait(self) -> dict[str, str]:
        """Wait for all steps and return the errors of those that failed, by room."""
        pending = set(self._futures.values())
        while pending and not self._run.stop_requested:
            pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED).not_done
        self._run.check_stop()
        found = {room: _error_of(future) for room, future in self._futures.items()}
        return {room: error for room, error in found.items() if error}

    def close(self) -> None:
        """End the workers; a step at work saves first."""
        self.free_core()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.terminate()
        self._pool.shutdown()
        # One that stands in for a worker that died is known to the queue alone.
        while not self._idle.empty():
            self._workers.append(self._idle.get())
        for worker in dict.fromkeys(self._workers):
            worker.terminate()
            worker.communicate()


def _error_of(future: Future[str | None]) -> str | None:
    """Return the error of an ended step.

    Raises:
        Stopped: somebody stopped the step.
    """
    try:
        return future.result()
    except Stopped:
        raise
    except PolyloomError as refused:
        return str(refused)


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
