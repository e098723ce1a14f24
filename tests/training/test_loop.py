from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from polyloom.core.errors import PolyloomError, Stopped
from polyloom.models.tiny import build_tiny
from polyloom.training.config import TrainConfig
from polyloom.training.engine import group_norm
from polyloom.training.loop import next_token_loss, parameter_groups, train
from polyloom.training.packing import Batch, window_batches
from polyloom.training.schedules import lr_factor

ROOT = Path(__file__).parents[2]
STREAM = torch.randint(0, 50, (900,), generator=torch.Generator().manual_seed(0))
BATCH_AT = window_batches(STREAM, window_tokens=12, batch_size=6, seed=0)


def config(**values: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 6, "batch_size": 6, "warmup_steps": 2, "precision": "float32", **values})


def model_of(seed: int = 0) -> Any:
    return build_tiny("llama-2x64", 50, seed=seed)


def equal(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def assert_close(one: nn.Module, two: nn.Module, atol: float) -> None:
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_against_a_plain_loop(clip_norm: float) -> None:
    settings = config(weight_decay=0.2, lr=1e-3, clip_norm=clip_norm)
    ours, plain = model_of(), model_of()
    state = train(ours, BATCH_AT, settings)
    matrices = [p for p in plain.parameters() if p.dim() > 1]
    gains = [p for p in plain.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.2}, {"params": gains, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * lr_factor(step, settings)
        tokens = BATCH_AT(step)["tokens"]
        loss = plain(input_ids=tokens, labels=tokens).loss
        loss.backward()
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(plain.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    assert state.loss == pytest.approx(loss.item(), rel=1e-5)
    assert_close(ours, plain, 2e-5)


@pytest.mark.parametrize("micro_batch_size", [1, 4, 6, 100])
def test_accumulation_changes_nothing(micro_batch_size: int) -> None:
    whole, parts = model_of(), model_of()
    one = train(whole, BATCH_AT, config(lr=1e-3))
    two = train(parts, BATCH_AT, config(lr=1e-3, micro_batch_size=micro_batch_size))
    assert one.num_tokens == two.num_tokens == 6 * 6 * 12
    assert one.loss == pytest.approx(two.loss, rel=1e-5)
    assert_close(whole, parts, 2e-5)


def masked_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Count targets of even ids only: every row has its own number of them."""
    tokens = batch["tokens"]
    targets = torch.where(tokens[:, 1:] % 2 == 0, tokens[:, 1:], -100)
    logits = model(input_ids=tokens[:, :-1]).logits
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return loss, int((targets >= 0).sum())


def test_ragged_micro_batches_weigh_by_tokens() -> None:
    whole, parts = model_of(), model_of()
    one = train(whole, BATCH_AT, config(lr=1e-3), loss=masked_loss)
    two = train(parts, BATCH_AT, config(lr=1e-3, micro_batch_size=1), loss=masked_loss)
    assert one.loss == pytest.approx(two.loss, rel=1e-5)
    assert 0 < one.num_tokens == two.num_tokens < 6 * 6 * 12
    assert_close(whole, parts, 2e-5)


def test_weight_decay_is_on_matrices_alone() -> None:
    model = build_tiny("bert-2x64", 50)
    decayed, free = parameter_groups(model, config(weight_decay=0.3))
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in free["params"]} == {1}
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_groups_keep_the_ratio_of_their_rates() -> None:
    model = model_of()
    frozen = model.lm_head.weight.detach().clone()
    groups = [
        {"params": [p for n, p in model.named_parameters() if n != "lm_head.weight"], "lr": 1e-3, "weight_decay": 0.0},
        {"params": [model.lm_head.weight], "lr": 0.0, "weight_decay": 0.0},
    ]
    before = model.model.norm.weight.detach().clone()
    train(model, BATCH_AT, config(), groups=groups)
    assert torch.equal(model.lm_head.weight, frozen)
    assert not torch.equal(model.model.norm.weight, before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns_a_pattern_by_heart(precision: str) -> None:
    model = model_of()
    pattern = window_batches(torch.arange(50).repeat(20), window_tokens=16, batch_size=8)
    state = train(model, pattern, config(steps=120, batch_size=8, lr=5e-3, precision=precision))
    assert state.loss is not None
    assert state.loss < 0.1
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[7, 8, 9]])).logits[0, -1].argmax() == 10


def test_the_norm_of_millions_of_gradients_is_exact() -> None:
    matrix, gain = nn.Parameter(torch.zeros(4096, 512)), nn.Parameter(torch.zeros(512))
    for parameter in (matrix, gain):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    assert matrix.grad is not None
    assert gain.grad is not None
    exact = (matrix.grad.double().square().sum() + 9 * gain.grad.double().square().sum()).sqrt()
    norm = group_norm([{"params": [matrix]}, {"params": [gain], "gradient_scale": 3.0}])
    assert float(norm / exact - 1) == pytest.approx(0, abs=1e-8)


def test_logs_and_progress() -> None:
    lines: list[dict[str, Any]] = []
    ticks: list[int] = []
    train(
        model_of(), BATCH_AT, config(steps=5, log_every=2, eval_every=3),
        on_log=lambda **values: lines.append(values), on_step=ticks.append, evaluate=lambda: {"bpb": 1.0, "other": 2.0},
    )  # fmt: skip
    logs = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logs] == [2, 4, 5]
    assert all(line.keys() == {"step", "loss", "gradient_norm", "lr", "tokens_per_second"} for line in logs)
    assert all(line["gradient_norm"] > 0 and line["tokens_per_second"] > 0 for line in logs)
    assert [line for line in lines if "loss" not in line] == [
        {"step": step, "bpb": 1.0, "other": 2.0} for step in (3, 5)
    ]
    assert ticks == [1] * 5


def test_patience_ends_a_run_that_gets_worse() -> None:
    values: Iterator[float] = iter([3.0, 2.0, 2.5, 2.0, 9.0, 9.0])
    state = train(
        model_of(), BATCH_AT, config(steps=50, eval_every=2, patience=2), evaluate=lambda: {"loss": next(values)}
    )
    assert (state.step, state.best, state.best_step, state.stopped_early) == (8, 2.0, 4, True)


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_what_is_not_finite_stops_the_run_before_it_reaches_the_weights(tmp_path: Path, what: str) -> None:
    model, calls = model_of(), [0]

    def loss(module: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        summed, count = next_token_loss(module, batch)
        calls[0] += 1
        if calls[0] < 5:
            return summed, count
        # The square root of zero has an infinite slope.
        bad = module.get_parameter("lm_head.weight").sub(module.get_parameter("lm_head.weight")).abs().sqrt().sum()
        return (summed * float("nan") if what == "loss" else summed + bad), count

    with pytest.raises(PolyloomError, match=f"the {what} is not finite at step 4") as caught:
        train(model, BATCH_AT, config(checkpoint_every=2), loss=loss, checkpoints=tmp_path)
    assert caught.value.exit_code == 1
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert [p.name for p in tmp_path.iterdir() if "4" in p.name] == ["step-00000004"]


def test_a_stop_request_saves_and_the_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    unbroken, stopped, resumed = model_of(), model_of(), model_of(seed=9)
    whole = train(unbroken, BATCH_AT, config(steps=9))
    calls = [0]

    def check_stop() -> None:
        calls[0] += 1
        if calls[0] == 4:
            raise Stopped("asked to stop.")

    with pytest.raises(Stopped):
        train(stopped, BATCH_AT, config(steps=9), checkpoints=tmp_path, check_stop=check_stop)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]
    assert not equal(unbroken, stopped)
    ticks: list[int] = []
    again = train(resumed, BATCH_AT, config(steps=9), checkpoints=tmp_path, on_step=ticks.append)
    assert ticks == [4, 1, 1, 1, 1, 1]
    assert again == whole
    assert equal(unbroken, resumed)


def test_the_callers_random_stream_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(model_of(), BATCH_AT, config(steps=2))
    assert torch.equal(torch.get_rng_state(), before)


def program(folder: Path, steps: int = 40) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.training.program", str(folder), str(steps)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


@pytest.mark.slow
def test_a_run_killed_at_a_random_step_resumes_bit_for_bit(tmp_path: Path) -> None:
    unbroken = program(tmp_path / "unbroken")
    victim = program(tmp_path / "killed")
    assert victim.stdout is not None
    steps = random.SystemRandom().sample(range(3, 20), k=2)
    for num_lines in steps:
        for _ in range(num_lines):
            assert victim.stdout.readline().startswith("step"), f"killed after {steps} steps"
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        assert not (tmp_path / "killed" / "final.safetensors").exists()
        victim = program(tmp_path / "killed")
        assert victim.stdout is not None
    finish(victim)
    finish(unbroken)
    one, two = (load_file(tmp_path / name / "final.safetensors") for name in ("unbroken", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one), f"killed after {steps} steps"
