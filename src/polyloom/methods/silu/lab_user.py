"""The lab on a user's own task (`--task module:build`), or on a Hugging Face model that goes on training (`--model`).

`build(activation, seed)` returns a model (`nn.Module`), data (a mapping with `train`, `validation` and `test`, each a
sequence of batches) and `loss(model, batch)`, a scalar tensor. Models train one after the other with AdamW.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyloom.core.errors import UserError
from polyloom.core.files import read_text
from polyloom.core.result import Result
from polyloom.methods.silu.config import SiluStudyConfig
from polyloom.methods.silu.lab_analysis import analyse
from polyloom.methods.silu.lab_result import Study, study_result
from polyloom.methods.silu.lab_tasks import Metric, Task, Values
from polyloom.methods.silu.lab_training import MAX_WIDENINGS, Advance, Plan, best_rate, schedule
from polyloom.models.activations import Activation, Pointwise, resolve_activation
from polyloom.models.device import clock, torch_generator
from polyloom.models.load import load_model, load_tokenizer
from polyloom.runs.folder import Run

Loss = Callable[[nn.Module, Any], Tensor]
Build = Callable[[Activation | None, int], tuple[nn.Module, Mapping[str, Sequence[Any]], Loss]]
PARTS = ("train", "validation", "test")
ACTIVATION_ATTRIBUTES = ("act_fn", "act", "activation_fn", "activation")
AS_LOADED = "as loaded"
OWN_GRID = tuple(10.0 ** (exponent / 2) for exponent in range(-8, -3))
MODEL_GRID = tuple(10.0 ** (exponent / 2) for exponent in range(-10, -5))
MAX_SCORED_BATCHES = 16


@dataclass(frozen=True)
class Problem:
    """A user's problem: its name, how to build it, its forms (the baseline first), rates and what to say about it."""

    name: str
    build: Build
    forms: tuple[str, ...]
    rates: tuple[float, ...]
    notes: tuple[str, ...]


def run_user_study(config: SiluStudyConfig, run: Run) -> Result:
    """Compare activations on the user's own task or model by held-out loss.

    Raises:
        UserError: `--model` without `--data`, both kinds at once, or a task that does not keep to its form.
    """
    problem = _find_problem(config)
    full = config.profile == "full"
    steps = (300 if full else 60) if config.task else (60 if full else 20)
    seeds = config.num_seeds or (10 if full else 5)
    plan = Plan(steps, 1, 5, problem.rates, 2 if full else 1, seeds, ("he",), problem.forms, False)
    task = _as_task(problem)
    units: dict[tuple[str, str, str], dict[str, Any]] = {}
    with run.progress(f"lab: {problem.name}", total=len(plan.forms)) as advance:
        for form in plan.forms:
            units[problem.name, form, "he"] = run.once(
                f"{problem.name}/{form}",
                lambda form=form: run_own_unit(  # type: ignore[misc]
                    problem, task, form, plan, config.seed, lambda _: run.check_stop()
                ),
            )
            advance(1)
    plans, step_seconds = (
        {problem.name: plan},
        {problem.name: {f: units[problem.name, f, "he"]["step_seconds"] for f in plan.forms}},
    )
    margins = {"accuracy": config.margin, "loss": config.loss_margin}
    tested, convergence = analyse([task], plans, units, margins, step_seconds)
    study = Study(
        [task], plans, units, tested, convergence, step_seconds, {}, None, None, (), config.profile, embedded=False
    )
    return study_result(study, run)


def _find_problem(config: SiluStudyConfig) -> Problem:
    if config.task is not None and config.model is not None:
        raise UserError("--task and --model are two studies.", hint="Give one of them.")
    if config.task is not None:
        forms = tuple(dict.fromkeys([config.baseline, *(config.activations or ("silu", "gelu"))]))
        if len(forms) < 2:
            raise UserError("there is nothing to compare.", where="--activations", hint="Name at least two.")
        return Problem("own", load_build(config.task), forms, OWN_GRID, ())
    if config.data is None or config.model is None:
        raise UserError("--model needs text to train on.", where="--data", hint="Name a file of plain text.")
    forms = tuple(dict.fromkeys([AS_LOADED, *(config.activations or ("relu", "silu", "gelu"))]))
    notes = (
        "model: the baseline keeps the activation that the model was trained with, which favours it in a short run.",
        "model: the seeds differ in the order of the batches alone.",
    )
    return Problem("model", build_from_model(config.model, Path(config.data)), forms, MODEL_GRID, notes)


def load_build(name: str) -> Build:
    """Import the user's `module:build`; the current folder is searched.

    Raises:
        UserError: it cannot be imported, or is not callable.
    """
    module_name, _, attribute = name.rpartition(":")
    hint = "Write module:build, with build(activation, seed) -> model, data, loss."
    if not module_name:
        raise UserError(f"{name!r} names no function.", where="--task", hint=hint)
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module_name), attribute, None)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{name} cannot be imported ({reason}).", where="--task", hint=hint) from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise UserError(f"{module_name} has no function {attribute!r}.", where="--task", hint=hint)
    build: Build = found
    return build


def swap_activation(model: nn.Module, function: Activation) -> int:
    """Put a function in the place of every activation module of a Hugging Face model; returns how many.

    Raises:
        UserError: no module of the model holds an activation under a known name.
    """
    swapped = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in ACTIVATION_ATTRIBUTES and not any(child.parameters()):
                setattr(module, name, Pointwise(function))
                swapped += 1
    if not swapped:
        raise UserError("the model has no activation that can be swapped.", where="--model")
    return swapped


def build_from_model(source: str, data: Path, context: int = 64, batch_size: int = 4) -> Build:
    """Return the builder that loads a causal model, swaps its activation, and cuts a text into windows.

    Args:
        source: Hugging Face folder or hub id.
        data: plain text; its last fifth is held out, half for validation and half for the test.
        context: tokens of a window.
        batch_size: windows of a batch.

    Raises:
        UserError: no model or tokenizer, or a text that is too short.
    """
    tokenizer = load_tokenizer(source, load_model(source))
    ids = torch.tensor(tokenizer(read_text(data), verbose=False)["input_ids"])
    windows = ids[: len(ids) // context * context].view(-1, context)
    batches = list(torch.split(windows, batch_size))
    held_out = len(batches) // 10
    if held_out < 1:
        raise UserError(f"holds {len(ids)} tokens, too few for ten batches of windows.", where=str(data))
    parts = {
        "train": batches[: -2 * held_out],
        "validation": batches[-2 * held_out : -held_out],
        "test": batches[-held_out:],
    }

    def loss(net: Any, batch: Tensor) -> Any:
        tokens = batch.to(net.device)
        return net(input_ids=tokens, labels=tokens).loss

    def build(activation: Activation | None, seed: int) -> tuple[nn.Module, Mapping[str, Sequence[Any]], Loss]:
        model = load_model(source, device="auto")
        if activation is not None:
            swap_activation(model, activation)
        return model, parts, loss

    return build


def _build(problem: Problem, form: str, seed: int) -> tuple[nn.Module, Mapping[str, Sequence[Any]], Loss]:
    """Call the user's function under a seeded generator, and check what it returns."""
    function = None if form == AS_LOADED else resolve_activation(form)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = problem.build(function, seed)
    hint = "build(activation, seed) returns a model, a mapping of train, validation and test batches, and loss."
    if not isinstance(built, tuple) or len(built) != 3 or not isinstance(built[0], nn.Module):
        raise UserError("build returned something else than model, data, loss.", where="--task", hint=hint)
    missing = [part for part in PARTS if not built[1].get(part)]
    if missing:
        raise UserError(f"the task's data has no {missing[0]} batches.", where="--task", hint=hint)
    return built


def _score(model: nn.Module, batches: Sequence[Any], loss: Loss) -> float:
    model.eval()
    with torch.no_grad():
        values = [float(loss(model, batch)) for batch in batches[:MAX_SCORED_BATCHES]]
    model.train()
    return math.fsum(values) / len(values)


@dataclass(frozen=True)
class _Outcome:
    steps: list[int]
    validation: list[float]
    test: list[float]
    diverged: bool
    seconds: float
    num_parameters: int


def train_own(
    problem: Problem, form: str, plan: Plan, seed: int, rate: float, advance: Advance | None = None
) -> _Outcome:
    """Train one model of the user's problem with AdamW and the lab's schedule.

    Raises:
        UserError: the loss is no scalar that carries a gradient.
    """
    model, data, loss = _build(problem, form, seed)
    model.train()
    parameters = [value for value in model.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    stream = torch_generator(seed, "batches")
    order = torch.cat([torch.randperm(len(data["train"]), generator=stream) for _ in range(plan.num_steps)])
    moments = sorted({round((i + 1) * plan.num_steps / plan.num_evaluations) for i in range(plan.num_evaluations)})
    before = _score(model, data["validation"], loss)
    curves: dict[str, list[float]] = {"validation": [], "test": []}
    seconds, now = 0.0, clock(parameters[0].device)
    for step in range(plan.num_steps):
        started = now()
        optimiser.param_groups[0]["lr"] = rate * schedule(step, plan.num_steps)
        value = loss(model, data["train"][int(order[step])])
        if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
            raise UserError("the task's loss is no scalar tensor with a gradient.", where="--task")
        optimiser.zero_grad()
        torch.autograd.backward(value)
        optimiser.step()
        seconds += now() - started
        if step + 1 in moments:
            for part, curve in curves.items():
                curve.append(_score(model, data[part], loss))
        if advance:
            advance(1)
    last = curves["validation"][-1]
    # A finite stand-in keeps a diverged run in the means: twice the untrained loss.
    limit = 2.0 * abs(before) if math.isfinite(before) else 1e3
    tamed = {part: [min(v, limit) if math.isfinite(v) else limit for v in curve] for part, curve in curves.items()}
    diverged = not (math.isfinite(last) and last <= limit)
    count = sum(value.numel() for value in model.parameters())
    return _Outcome(moments, tamed["validation"], tamed["test"], diverged, seconds / plan.num_steps, count)


def run_own_unit(
    problem: Problem, task: Task, form: str, plan: Plan, seed: int, advance: Advance | None = None
) -> dict[str, Any]:
    """Tune the learning rate and train the test seeds of one activation: the form of `lab_training.run_unit`."""
    tuning: dict[float, list[_Outcome]] = {}
    factor, wanted, widened = plan.learning_rates[1] / plan.learning_rates[0], list(plan.learning_rates), 0
    while wanted:
        for rate in wanted:
            seeds = plan.seeds(seed, task.name, "tuning")
            tuning[rate] = [train_own(problem, form, plan, s, rate, advance) for s in seeds]
        scores = {rate: [outcome.validation[-1] for outcome in found] for rate, found in tuning.items()}
        rates, best = sorted(tuning), best_rate(task, scores)
        at_edge = {rates[0]: best / factor, rates[-1]: best * factor}
        wanted = [at_edge[best]] if best in at_edge and widened < MAX_WIDENINGS else []
        widened += len(wanted)
    test = [train_own(problem, form, plan, s, best, advance) for s in plan.seeds(seed, task.name, "test")]
    everything = {rate: [*found, *(test if rate == best else [])] for rate, found in sorted(tuning.items())}
    return {
        "best_rate": best,
        "widened": widened,
        "validation": {f"{rate:.4g}": scores[rate] for rate in rates},
        "tuning_curves": {f"{rate:.4g}": [o.validation for o in tuning[rate]] for rate in rates},
        "test_curves": {f"{best:.4g}": [o.validation for o in test]},
        "learning_curves": [o.test for o in test],
        "steps": test[0].steps,
        "metrics": {"loss": [o.test[-1] for o in test]},
        "diverged": {f"{rate:.4g}": sum(o.diverged for o in found) / len(found) for rate, found in everything.items()},
        "dead_units": [],
        "num_parameters": test[0].num_parameters,
        "step_seconds": sorted(o.seconds for o in test)[len(test) // 2],
    }


def _as_task(problem: Problem) -> Task:
    def unused(*_: Any) -> Any:
        raise AssertionError("a user's problem trains its own models")

    def nothing(*_: Any) -> Values:
        return {}

    return Task(
        name=problem.name,
        title="your own task" if problem.name == "own" else "your model, trained further",
        network=unused,
        takes_gated=False,
        num_train=1,
        fetch=unused,
        loss=unused,
        score=unused,
        measure=nothing,
        held_out=torch.zeros(0),
        primary="loss",
        metrics={"loss": Metric(False, "loss", "mean loss on the test batches")},
        noise_levels=(),
        notes=problem.notes,
    )
