"""The lab: batched seeds equal seeds alone (Q15), equal activations give equal values (Q13), rules, whole runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from polyloom.core.errors import MissingExtra, Stopped, UserError
from polyloom.methods.silu import lab, lab_analysis, lab_cost, lab_models, lab_tasks, lab_training
from polyloom.methods.silu.config import SiluStudyConfig
from polyloom.methods.silu.lab_training import Plan
from polyloom.metrics.survival import median_survival
from polyloom.runs.folder import Run

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SMALL = Plan(12, 8, 3, RATES, 1, 3, ("he",), ("relu", "silu"), False)
LINES = ["the cat sat on the mat and the dog ran after the red ball", "der Hund lief dem roten Ball nach", "kedi 123"]


def small_text() -> lab_tasks.Task:
    text = "\n".join(LINES * 60)
    return lab_tasks.text_task({"train": text, "validation": text[:2000], "test": text[1000:4000]}, num_test=20)


@pytest.fixture(scope="module")
def digits() -> lab_tasks.Task:
    return lab_tasks.digits_task(0)


def make_task(name: str, digits: lab_tasks.Task) -> lab_tasks.Task:
    return {"digits": lambda: digits, "shapes": lambda: lab_tasks.shapes_task(0, 40, 10), "text": small_text}[name]()


@pytest.mark.parametrize("init", ["he", "lsuv"])
@pytest.mark.parametrize(
    ("name", "form"),
    [("digits", "silu"), ("digits", "swiglu"), ("shapes", "relu"), ("text", "gelu"), ("text", "reglu")],
)
def test_batched_models_equal_models_trained_alone(name: str, form: str, init: Any, digits: lab_tasks.Task) -> None:
    task, resolved = make_task(name, digits), lab_models.resolve_form(form)
    models = [(11, 1e-3), (12, 1e-3), (11, 1e-2)]
    together = lab_training.train_models(task, resolved, init, models, SMALL)
    for index, model in enumerate(models):
        alone = lab_training.train_models(task, resolved, init, [model], SMALL)
        for key, value in alone.parameters.items():
            assert torch.allclose(together.parameters[key][index], value[0], atol=1e-5, rtol=1e-5), key
        assert together.curves["validation"][index] == pytest.approx(alone.curves["validation"][0], abs=1e-3)


def test_batched_training_equals_plain_pytorch(digits: lab_tasks.Task) -> None:
    found = lab_cost.batched_speedup(
        digits,
        lab_models.resolve_form("silu"),
        replace(SMALL, num_steps=40, batch_size=32),
        num_models=6,
        num_alone=3,
        rounds=1,
    )
    assert found["max_difference"] < 1e-5
    assert found["speedup"] > 0


def test_batched_adamw_equals_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    start = {"a": torch.randn(2, 3, 4, generator=draw), "b": torch.randn(2, 5, generator=draw)}
    rates = torch.tensor([1e-2, 1e-1], dtype=torch.float64)
    ours = lab_models.BatchedAdamW(start, rates, weight_decay=0.1)
    theirs = [{name: value[i].clone().requires_grad_() for name, value in start.items()} for i in range(2)]
    peers = [
        torch.optim.AdamW(list(values.values()), lr=float(rate), weight_decay=0.1)
        for values, rate in zip(theirs, rates, strict=True)
    ]
    for _ in range(20):
        gradients = [torch.randn(value.shape, generator=draw) for value in start.values()]
        ours.step(gradients)
        for index, (values, peer) in enumerate(zip(theirs, peers, strict=True)):
            for value, gradient in zip(values.values(), gradients, strict=True):
                value.grad = gradient[index].clone()
            peer.step()
    for name, value in ours.parameters.items():
        expected = torch.stack([values[name] for values in theirs])
        assert torch.allclose(value, expected, atol=1e-6)


def test_one_diverging_model_leaves_the_others_alone(digits: lab_tasks.Task) -> None:
    form = lab_models.resolve_form("relu2")
    models = [(1, 1e-3), (1, 1e6)]
    trained = lab_training.train_models(digits, form, "he", models, replace(SMALL, num_steps=40))
    alone = lab_training.train_models(digits, form, "he", models[:1], replace(SMALL, num_steps=40))
    assert trained.diverged == [False, True]
    assert trained.curves["validation"][0] == pytest.approx(alone.curves["validation"][0], abs=3e-3)


def test_two_copies_of_relu_differ_by_exactly_nothing(digits: lab_tasks.Task) -> None:
    plan = replace(SMALL, num_seeds=4)
    relu = lab_models.resolve_form("relu")
    first = lab_training.run_unit(digits, relu, "he", plan, 0)
    second = lab_training.run_unit(digits, replace(relu, name="other"), "he", plan, 0)
    margins = {"accuracy": 0.005, "loss": 0.01}
    null = lab_analysis.planted_null(digits, first, second, margins, seed=0, num_draws=5)
    assert null.largest_difference == 0.0
    assert sum(null.rates.values()) == pytest.approx(1.0)
    other = lab_training.run_unit(digits, lab_models.resolve_form("tanh"), "he", plan, 0)
    assert lab_analysis.planted_null(digits, first, other, margins, seed=0, num_draws=1).largest_difference > 0.0


def test_pairing_shares_draws_and_batches(digits: lab_tasks.Task) -> None:
    relu, silu = (digits.network(lab_models.resolve_form(name)) for name in ("relu", "silu"))
    a, b = (lab_models.stack_models(network, [5, 6]) for network in (relu, silu))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["up0.weight"][0], a["up0.weight"][1])
    one, two = (lab_training.batch_indices(digits, 5, 40, 32) for _ in range(2))
    assert torch.equal(one, two)
    assert len(set(one[:31].flatten().tolist())) == 31 * 32


def test_tuning_and_test_seeds_are_disjoint() -> None:
    plan = replace(SMALL, num_tuning_seeds=5, num_seeds=20)
    tuning, test = plan.seeds(0, "digits", "tuning"), plan.seeds(0, "digits", "test")
    assert len(set(tuning) | set(test)) == 25
    assert plan.seeds(1, "digits", "test") != test


@pytest.mark.parametrize("name", ["digits", "text"])
def test_gated_forms_have_equal_parameters(name: str, digits: lab_tasks.Task) -> None:
    task = make_task(name, digits)
    sizes = {}
    for form in ("silu", "swiglu"):
        drawn = task.network(lab_models.resolve_form(form)).initialise(0)
        sizes[form] = sum(value.numel() for value in drawn.values())
    assert sizes["swiglu"] == pytest.approx(sizes["silu"], rel=0.02)


@pytest.mark.parametrize("form", ["silu", "tanh", "swiglu"])
def test_data_scaling_gives_unit_outputs(form: str, digits: lab_tasks.Task) -> None:
    network = digits.network(lab_models.resolve_form(form))
    parameters = lab_training.initial_parameters(digits, network, "lsuv", [1, 2], 32)
    inputs = torch.stack([digits.fetch(lab_training.batch_indices(digits, s, 4, 32).flatten())[0] for s in (1, 2)])
    spreads = {}
    network.forward(parameters, inputs, lambda name, z: spreads.update({name: z.flatten(1).std(1)}))
    for name, wanted in network.scales.items():
        assert spreads[name].detach().tolist() == pytest.approx([wanted, wanted], rel=1e-4)


def test_causal_model_does_not_see_the_next_character() -> None:
    task = small_text()
    network = task.network(lab_models.resolve_form("swiglu"))
    parameters = lab_models.stack_models(network, [1, 2])
    inputs = task.fetch(torch.tensor([[0, 5], [7, 9]]))[0]
    changed = inputs.clone()
    changed[..., 20:] = 0
    before, after = (network.forward(parameters, x, lab_models.no_probe) for x in (inputs, changed))
    assert torch.allclose(before[:, :, :20], after[:, :, :20], atol=1e-6)
    assert not torch.allclose(before[:, :, 20:], after[:, :, 20:])


def test_dead_units_are_counted(digits: lab_tasks.Task) -> None:
    form = lab_models.resolve_form("relu")
    network = digits.network(form)
    parameters = lab_models.stack_models(network, [1, 1])
    parameters["up0.bias"][1] = -1e3
    inputs = digits.held_out[:50].expand(2, 50, 64)
    alive, dead = lab_training.dead_units(network, form, parameters, inputs)
    assert alive < 0.2
    # All 32 units of the first layer are dead; of the second, those that a zero input leaves at 0.
    assert dead >= 0.5
    smooth = lab_models.resolve_form("silu")
    assert lab_training.dead_units(digits.network(smooth), smooth, parameters, inputs)[0] == 0.0


def test_the_grid_is_widened_while_the_best_rate_is_at_its_edge(digits: lab_tasks.Task) -> None:
    low = tuple(1e-6 * 10**i for i in range(5))
    unit = lab_training.run_unit(digits, lab_models.resolve_form("relu"), "he", replace(SMALL, learning_rates=low), 0)
    assert unit["widened"] >= 1
    assert unit["best_rate"] >= 1e-2
    assert len(unit["validation"]) == 5 + unit["widened"]


def test_convergence_keeps_the_failures() -> None:
    curves = [[0.1, 0.6, 0.9], [0.1, 0.2, 0.3], [0.7, 0.4, 0.9]]
    times, reached = lab_analysis.arrival(curves, [10, 20, 30], 0.5, higher_is_better=True)
    assert (times, reached) == ([20.0, 30.0, 10.0], [True, False, True])
    assert median_survival(times, reached) == 20.0
    assert lab_analysis.arrival([[3.0, 2.0]], [1, 2], 2.5, higher_is_better=False) == ([2.0], [True])


def test_equal_seconds_gives_the_slower_form_fewer_steps() -> None:
    assert lab_analysis.steps_at_equal_seconds({"a": 1.0, "b": 2.0}, 100) == {"a": 100.0, "b": 50.0}
    assert lab_analysis.value_at_step([0.0, 1.0], [50, 100], 75.0) == 0.5
    assert lab_analysis.value_at_step([0.25, 1.0], [50, 100], 10.0) == 0.25


def test_area_under_the_noise_curve_by_hand() -> None:
    area = lab_tasks.area_under_curve((0.0, 0.1, 0.5), [[1.0, 0.5], [0.8, 0.5], [0.4, 0.5]])
    assert area == pytest.approx([(0.1 * 0.9 + 0.4 * 0.6) / 0.5, 0.5])


def test_corruptions_change_what_they_say(digits: lab_tasks.Task) -> None:
    image = digits.held_out[:3]
    moved = lab_tasks._shift(image, [1, 2])
    assert moved.shape == (2, 3, 64)
    views = [image.view(-1, 8, 8)[:, 1:7, 1:7], moved[0].view(-1, 8, 8)]
    neighbours = [views[1][:, 1 + dy : 7 + dy, 1 + dx : 7 + dx] for dy, dx in ((0, -1), (0, 1), (-1, 0), (1, 0))]
    for index in range(3):
        assert any(torch.equal(views[0][index], neighbour[index]) for neighbour in neighbours)
    covered = lab_tasks._occlude(torch.ones(4, 64), [1])
    assert covered.sum((0, 2)).tolist() == [55.0] * 4


def test_costs_per_element() -> None:
    forms = [lab_models.resolve_form(name) for name in ("relu", "silu", "dsilu")]
    costs = lab_cost.activation_costs(forms, rounds=2, num_elements=1024, repeats=1)
    assert costs["relu"]["saved_bytes"] == costs["silu"]["saved_bytes"] == 4.0
    assert costs["dsilu"]["saved_bytes"] > 4.0
    assert all(value > 0 for cost in costs.values() for value in cost.values())


def tiny_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {
        name: replace(plan, num_steps=6, num_evaluations=2, batch_size=4) for name, plan in lab.QUICK_PLANS.items()
    }
    plans["digits"] = replace(plans["digits"], num_seeds=6, num_tuning_seeds=2)
    monkeypatch.setattr(lab, "QUICK_PLANS", plans)


def test_study_of_two_tasks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_plans(monkeypatch)
    result = lab.run_study(SiluStudyConfig(tasks=["digits", "text"], num_seeds=6), run)
    assert result.scalars["planted_null_difference"].value == 0.0
    assert isinstance(result.scalars["batched_speedup"].value, float)
    assert result.scalars["digits_seeds"].value == 6
    words = {row[-1] for row in result.tables["digits_comparisons"].rows}
    assert words <= {"better", "worse", "no difference larger than the margin", "undecided"}
    assert any("with 6 seeds the smallest detectable difference is" in verdict for verdict in result.verdicts)
    assert any("oise robustness" in verdict for verdict in result.verdicts)
    assert {"at equal seconds" in row[1] for row in result.tables["digits_comparisons"].rows} == {True, False}
    assert len(result.tables["cost"].rows) == 4
    assert result.limitations
    again = lab.run_study(SiluStudyConfig(tasks=["digits", "text"], num_seeds=6), run)
    assert again.tables == result.tables, "a second call reads every step back"


def test_a_stopped_study_resumes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_plans(monkeypatch)
    config = SiluStudyConfig(tasks=["text"], activations=["silu"])
    real, calls = lab.run_unit, []

    def stop_after_one(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments[1].name)
        if len(calls) == 2:
            run.request_stop()
        return real(*arguments)

    monkeypatch.setattr(lab, "run_unit", stop_after_one)
    with pytest.raises(Stopped):
        lab.run_study(config, run)
    resumed = Run(run.path, run.manifest, run.config)
    result = lab.run_study(config, resumed)
    assert calls == ["relu", "silu", "silu"], "the finished unit is not trained again"
    assert "text_silu_difference" in result.scalars


def test_absent_scikit_learn_skips_the_task_and_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_plans(monkeypatch)

    def absent(seed: int) -> lab_tasks.Task:
        raise MissingExtra("scikit-learn", extra="lab")

    monkeypatch.setattr(lab, "digits_task", absent)
    result = lab.run_study(SiluStudyConfig(tasks=["digits", "text"], activations=["silu"]), run)
    assert "scikit-learn is not installed" in result.verdicts[0]
    assert "text_silu_difference" in result.scalars
    with pytest.raises(UserError, match="no task is left"):
        lab.run_study(SiluStudyConfig(tasks=["digits"]), run)


def test_an_activation_that_always_diverges_is_left_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_plans(monkeypatch)
    real = lab.run_unit

    def diverge(task: Any, form: Any, *rest: Any) -> dict[str, Any]:
        unit = real(task, form, *rest)
        return unit | {"diverged": dict.fromkeys(unit["diverged"], 1.0)} if form.name == "gelu" else unit

    monkeypatch.setattr(lab, "run_unit", diverge)
    result = lab.run_study(SiluStudyConfig(tasks=["text"], activations=["silu", "gelu"]), run)
    assert result.verdicts[0] == "text: every learning rate diverged for gelu; it is left out."
    assert "text_gelu_difference" not in result.scalars


def test_bad_requests_are_one_line(run: Run) -> None:
    with pytest.raises(UserError, match="Did you mean 'silu'"):
        lab.run_study(SiluStudyConfig(tasks=["text"], activations=["silo"]), run)
    with pytest.raises(UserError, match="nothing to be compared with"):
        lab.run_study(SiluStudyConfig(tasks=["shapes"], activations=["swiglu"]), run)
    with pytest.raises(UserError, match="--data"):
        lab.run_study(SiluStudyConfig(model="x"), run)
    with pytest.raises(UserError, match="two studies"):
        lab.run_study(SiluStudyConfig(model="x", task="m:build"), run)
    with pytest.raises(UserError, match="needs 321"):
        lab_tasks.text_task({"train": "ab", "validation": "ab", "test": "ab"}, num_test=4)


OWN_TASK = """
import torch

def build(activation, seed):
    draw = torch.Generator().manual_seed(0)
    batches = [(x, x.sin()) for x in torch.randn(12, 16, 1, generator=draw)]
    model = torch.nn.ModuleList([torch.nn.Linear(1, 16), torch.nn.Linear(16, 1)])
    def loss(model, batch):
        return (model[1](activation(model[0](batch[0]))) - batch[1]).square().mean()
    return model, {"train": batches[:8], "validation": batches[8:10], "test": batches[10:]}, loss

def no_data(activation, seed):
    return torch.nn.Linear(1, 1), {"train": [1]}, None
"""


def test_own_task(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mytask.py").write_text(OWN_TASK)
    monkeypatch.chdir(tmp_path)
    result = lab.run_study(SiluStudyConfig(task="mytask:build", activations=["silu"], num_seeds=3), run)
    assert result.scalars["own_seeds"].value == 3
    assert result.tables["own_comparisons"].rows[0][1] == "loss"
    assert result.series["own learning silu"].y[-1] is not None
    for name, message in {
        "mytask": "names no function",
        "mytask:nothing": "has no function 'nothing'",
        "nomodule:build": "cannot be imported",
        "mytask:no_data": "no validation batches",
    }.items():
        with pytest.raises(UserError, match=message):
            lab.run_study(SiluStudyConfig(task=name), Run(tmp_path / name.replace(":", "-"), run.manifest, run.config))


def test_model_of_ones_own(run: Run, tmp_path: Path) -> None:
    from polyloom.methods.silu.lab_user import AS_LOADED, swap_activation
    from polyloom.models.load import save_model
    from polyloom.models.tiny import build_tiny
    from polyloom.models.tokenizers import train_tokenizer

    folder, tokenizer = tmp_path / "model", train_tokenizer(LINES * 20, 300)
    save_model(build_tiny("llama-2x64", len(tokenizer)), folder, tokenizer)
    data = tmp_path / "text.txt"
    data.write_text("\n".join(LINES * 80), encoding="utf-8")
    config = SiluStudyConfig(model=str(folder), data=str(data), activations=["relu"], num_seeds=2)
    result = lab.run_study(config, run)
    assert result.tables["activations"].rows[0][2] == AS_LOADED
    assert result.tables["model_comparisons"].rows[0][2] == "relu"
    with pytest.raises(UserError, match="no activation"):
        swap_activation(torch.nn.Linear(2, 2), torch.relu)


def test_cli_answers_a_bad_activation_in_one_line(cli: Callable[..., Any]) -> None:
    answer = cli("silu", "study", "--tasks", "text", "--activations", "silo")
    assert answer.exit_code == 2
    assert "Did you mean 'silu'" in answer.stderr


@pytest.mark.slow
def test_quick_profile_is_deterministic_and_decides_what_it_can(cli: Callable[..., Any]) -> None:
    first = cli("silu", "study", "--tasks", "digits", "--json")
    second = cli("silu", "study", "--tasks", "digits", "--json")
    import json

    a, b = json.loads(first.stdout), json.loads(second.stdout)

    def timeless(value: dict[str, Any]) -> list[list[Any]]:
        rows = value["tables"]["digits_comparisons"]["rows"]
        return [row[:8] for row in rows if "seconds" not in row[1]]

    assert timeless(a) == timeless(b)
    assert a["scalars"]["planted_null_difference"]["value"] == 0.0
    assert a["scalars"]["planted_null_false_rate"]["value"] <= 0.1
    assert math.isfinite(a["scalars"]["batched_speedup"]["value"])
