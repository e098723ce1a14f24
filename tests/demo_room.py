"""A room for tests of the machinery around rooms: its verbs count, fail and refuse."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from pydantic import Field

from polyloom.core import registry
from polyloom.core.config import StudyConfig
from polyloom.core.errors import UserError
from polyloom.core.registry import RoomCard, TourStep, Verb
from polyloom.core.result import Result, Scalar
from polyloom.runs.folder import Run


class DemoConfig(StudyConfig):
    """How many steps, and what goes wrong."""

    num_steps: int = Field(3, ge=1, description="Number of steps.")
    seconds: float = Field(0.0, ge=0, description="Length of a step.")
    kill_at: int = Field(-1, description="The step at which the process is killed, once.")
    model: str | None = Field(None, description="A model folder.")


def run_count(config: DemoConfig, run: Run) -> Result:
    """Add up the steps, one memoised step at a time."""
    values = []
    with run.progress("count", config.num_steps) as advance:
        for step in range(config.num_steps):
            values.append(run.once(f"step {step}", lambda step=step: _one(config, run, step)))
            advance(1)
    return run.result(scalars={"total": Scalar(value=sum(values))}, verdicts=[f"counted to {config.num_steps}"])


def _one(config: DemoConfig, run: Run, step: int) -> int:
    run.log(step=step, loss=1.0 / (1 + step))
    time.sleep(config.seconds)
    while (run.path / "hold").exists() and not run.stop_requested:
        time.sleep(0.05)
    marker = run.path / "killed"
    if step == config.kill_at and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return step


def run_fail(config: DemoConfig, run: Run) -> Result:
    """Fail as a defect does."""
    raise ZeroDivisionError("a defect")


def run_refuse(config: DemoConfig, run: Run) -> Result:
    """Refuse the input."""
    raise UserError("is no model.", where=str(config.model), hint="Give a model folder.")


def run_die(config: DemoConfig, run: Run) -> Result:
    """End as a process does that the system kills for its memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _card(name: str, step: str, order: int, *materials: str) -> RoomCard:
    verbs = {"count": run_count, "fail": run_fail, "refuse": run_refuse, "die": run_die, "study": run_count}
    return RoomCard(
        name=name,
        title=name.capitalize(),
        question="Does it count?",
        papers=(),
        verbs=tuple(
            Verb(verb, f"{verb}.", "tests.demo_room:DemoConfig", f"tests.demo_room:{run.__name__}")
            for verb, run in verbs.items()
        ),
        order=order,
        tour=TourStep(verb=step, inputs={name: name for name in materials}),
    )


CARD = _card("demo", "study", 1, "model")
CARDS = {card.name: card for card in (CARD, _card("broken", "fail", 2), _card("dying", "die", 3))}
# Enough training to be killed in the middle of.
TOUR_BUDGET: dict[str, Any] = {
    "num_characters": 4_000,
    "vocab_size": 300,
    "steps": 120,
    "test_characters": 600,
    "size": "llama-2x64",
}


if __name__ == "__main__":
    registry.rooms = lambda: CARDS
    from polyloom.cli import main
    from polyloom.tour import steps

    steps.COMMAND[2] = "tests.demo_room"
    if "serve" in sys.argv:
        from polyloom.web import jobs

        jobs.COMMAND[2] = "tests.demo_room"
    if any("tour" in word for word in sys.argv):
        from polyloom.tour import base_model

        base_model.BUDGETS["quick"] = base_model.Budget(**TOUR_BUDGET)
    main(sys.argv[1:])
