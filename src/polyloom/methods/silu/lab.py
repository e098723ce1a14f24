"""The activation lab behind `polyloom silu study`: what is run, in which order, and where it is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from polyloom.core.errors import MissingExtra, UserError
from polyloom.core.result import Result
from polyloom.methods.silu.config import SiluStudyConfig
from polyloom.methods.silu.lab_analysis import Calibration, Units, analyse, planted_null
from polyloom.methods.silu.lab_cost import activation_costs, batched_speedup, step_costs
from polyloom.methods.silu.lab_models import GATED, resolve_form
from polyloom.methods.silu.lab_result import Study, study_result
from polyloom.methods.silu.lab_tasks import Task, digits_task, shapes_task, text_task, world_texts
from polyloom.methods.silu.lab_training import Init, Plan, run_unit
from polyloom.models.device import one_thread
from polyloom.runs.folder import Run

TaskName = Literal["digits", "shapes", "text"]
GRID = tuple(10.0 ** (exponent / 2) for exponent in range(-6, -1))
BOTH: tuple[Init, ...] = ("he", "lsuv")
HE: tuple[Init, ...] = ("he",)

QUICK_PLANS: dict[str, Plan] = {
    "digits": Plan(300, 32, 10, GRID, 3, 30, BOTH, ("relu", "silu", "gelu", "swiglu"), False),
    "shapes": Plan(120, 16, 4, GRID, 1, 5, HE, ("relu", "silu"), False),
    "text": Plan(40, 16, 4, GRID, 1, 12, HE, ("relu", "silu", "swiglu"), False),
}
# Thirteen pairs give p values down to .00024: below .05 in a family of a hundred tests. Ten pairs would not.
FULL_PLANS: dict[str, Plan] = {
    "digits": Plan(500, 32, 10, GRID, 5, 20, BOTH, ("relu", "silu", "gelu", "tanh", "swiglu", "reglu"), True),
    "shapes": Plan(140, 16, 4, GRID, 2, 13, BOTH, ("relu", "silu", "gelu"), False),
    "text": Plan(90, 16, 4, GRID, 1, 13, BOTH, ("relu", "silu", "gelu", "swiglu", "reglu"), False),
}


def run_study(config: SiluStudyConfig, run: Run) -> Result:
    """Compare activations on paired seeds, with tuned learning rates, intervals and corrected tests.

    Every (task, activation, initialisation) is a step of the run: a killed lab resumes at the one it was in.

    Args:
        config: tasks, activations, margins and profile.
        run: the run to store steps in.

    Returns:
        Tables of every comparison, learning rate, convergence, cost and power; noise and learning curves; verdicts
        that follow from the rules of `compare_paired` alone.

    Raises:
        UserError: an unknown activation, nothing to compare, or a task of one's own that cannot be used.
    """
    with one_thread():
        if config.model is not None or config.task is not None:
            from polyloom.methods.silu.lab_user import run_user_study

            return run_user_study(config, run)
        return _run_embedded(config, run)


def _run_embedded(config: SiluStudyConfig, run: Run) -> Result:
    tasks, notes = _make_tasks(config)
    plans = {task.name: make_plan(config, task) for task in tasks}
    units: dict[tuple[str, str, str], dict[str, Any]] = {}
    for task in tasks:
        units |= _run_task(config, run, task, plans[task.name])
    tasks, plans, failures = _without_failures(tasks, plans, units)
    step_seconds = {task.name: run.once(f"cost/{task.name}", _cost_of(task, plans[task.name])) for task in tasks}
    margins = {"accuracy": config.margin, "loss": config.loss_margin}
    tested, convergence = analyse(tasks, plans, units, margins, step_seconds)
    forms = list(dict.fromkeys(form for plan in plans.values() for form in plan.forms))
    pointwise = [resolve_form(name) for name in forms if name not in GATED]
    study = Study(
        tasks=tasks,
        plans=plans,
        units=units,
        tested=tested,
        convergence=convergence,
        step_seconds=step_seconds,
        activation_costs=run.once("cost/activations", lambda: activation_costs(pointwise, rounds=15)),
        calibration=_calibrate(config, run, tasks, plans, units, margins),
        speedup=_measure_speedup(run, tasks, plans),
        notes=[*notes, *failures],
        profile=config.profile,
    )
    return study_result(study, run)


def make_plan(config: SiluStudyConfig, task: Task) -> Plan:
    """Return the protocol of a task: the profile's, with the activations and seeds that the user asked for.

    Raises:
        UserError: fewer than two activations fit the task.
    """
    plan = (QUICK_PLANS if config.profile == "quick" else FULL_PLANS)[task.name]
    wanted = config.activations or list(plan.forms)
    fitting = [name for name in dict.fromkeys([config.baseline, *wanted]) if task.takes_gated or name not in GATED]
    for name in fitting:
        resolve_form(name)
    if len(fitting) < 2 or fitting[0] != config.baseline:
        raise UserError(
            f"{config.baseline!r} has nothing to be compared with on the task {task.name}.",
            where="--activations",
            hint=f"Name two activations{'' if task.takes_gated else ' that are not gated'}, or leave the task out.",
        )
    return replace(plan, forms=tuple(fitting), num_seeds=config.num_seeds or plan.num_seeds)


def _make_tasks(config: SiluStudyConfig) -> tuple[list[Task], list[str]]:
    """Make the tasks; one whose library is absent is left out and said."""
    full = config.profile == "full"
    makers: dict[TaskName, Callable[[], Task]] = {
        "digits": lambda: digits_task(config.seed),
        "shapes": lambda: shapes_task(config.seed, 800 if full else 500, 200 if full else 100),
        "text": lambda: text_task(
            world_texts(config.languages, 150_000 if full else 60_000, config.seed), 200 if full else 100
        ),
    }
    tasks, notes = [], []
    for name in dict.fromkeys(config.tasks):
        try:
            tasks.append(makers[name]())
        except MissingExtra as error:
            notes.append(f"The task {name} was skipped: {error}")
    if not tasks:
        raise UserError("no task is left to run.", where="--tasks", hint=" ".join(notes) or "Name at least one.")
    return tasks, notes


def _run_task(config: SiluStudyConfig, run: Run, task: Task, plan: Plan) -> dict[tuple[str, str, str], dict[str, Any]]:
    work: list[tuple[str, str, Init]] = [(form, form, init) for init in plan.inits for form in plan.forms]
    if task.name == "digits":
        work.append((f"{plan.forms[0]} (copy)", plan.forms[0], plan.inits[0]))
    units: dict[tuple[str, str, str], dict[str, Any]] = {}
    with run.progress(f"lab: {task.name}", total=2 * plan.num_steps * len(work)) as advance:
        for position, (label, form, init) in enumerate(work):
            counter = _Counter(advance, position * 2 * plan.num_steps, 2 * plan.num_steps, run)
            # The second policy is tested on final values alone, so it needs no test seeds at the other rates.
            own = plan if init == plan.inits[0] else replace(plan, every_rate=False)
            units[task.name, label, init] = run.once(
                f"{task.name}/{label}/{init}",
                lambda form=form, init=init, own=own, counter=counter: run_unit(  # type: ignore[misc]
                    task, resolve_form(form), init, own, config.seed, counter.advance
                ),
            )
            counter.finish()
    return units


class _Counter:
    """Advances a bar by a unit's steps, no further than its share, and lets a stop through between steps."""

    def __init__(self, advance: Callable[[int], None], start: int, share: int, run: Run) -> None:
        self._advance, self._left, self._run = advance, share, run

    def advance(self, steps: int) -> None:
        self._run.check_stop()
        counted = min(steps, self._left)
        self._left -= counted
        if counted:
            self._advance(counted)

    def finish(self) -> None:
        if self._left:
            self._advance(self._left)
            self._left = 0


def _without_failures(
    tasks: Sequence[Task], plans: Mapping[str, Plan], units: Units
) -> tuple[list[Task], dict[str, Plan], list[str]]:
    """Leave out activations that diverged at every learning rate, and tasks whose baseline did; say each."""
    kept_tasks, kept_plans, notes = [], {}, []
    for task in tasks:
        plan = plans[task.name]
        failed = {
            form
            for form in plan.forms
            for init in plan.inits
            if all(share == 1.0 for share in units[task.name, form, init]["diverged"].values())
        }
        notes += [f"{task.name}: every learning rate diverged for {form}; it is left out." for form in sorted(failed)]
        forms = tuple(form for form in plan.forms if form not in failed)
        if plan.forms[0] in failed or len(forms) < 2:
            notes.append(f"{task.name}: nothing is left to compare.")
            continue
        kept_tasks.append(task)
        kept_plans[task.name] = replace(plan, forms=forms)
    return kept_tasks, kept_plans, notes


def _cost_of(task: Task, plan: Plan) -> Callable[[], dict[str, float]]:
    return lambda: step_costs(task, [resolve_form(name) for name in plan.forms], plan, rounds=9)


def _calibrate(
    config: SiluStudyConfig,
    run: Run,
    tasks: Sequence[Task],
    plans: Mapping[str, Plan],
    units: Units,
    margins: Mapping[str, float],
) -> Calibration | None:
    for task in tasks:
        plan = plans[task.name]
        copy = units.get((task.name, f"{plan.forms[0]} (copy)", plan.inits[0]))
        if copy is not None:
            baseline = units[task.name, plan.forms[0], plan.inits[0]]
            return planted_null(task, baseline, copy, margins, config.seed)
    return None


def _measure_speedup(run: Run, tasks: Sequence[Task], plans: Mapping[str, Plan]) -> dict[str, float] | None:
    task = next((task for task in tasks if task.name == "digits"), None)
    name = next((name for name in plans["digits"].forms if name not in GATED), None) if task else None
    if task is None or name is None:
        return None
    plan, form = replace(plans["digits"], num_steps=50), resolve_form(name)
    found: dict[str, float] = run.once(
        "speedup", lambda: batched_speedup(task, form, plan, num_models=80, num_alone=4, rounds=3)
    )
    return found
