from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from polyloom.models.tiny import build_tiny
from polyloom.training.config import TrainConfig
from polyloom.training.loop import next_token_loss, train
from polyloom.training.monitor import Monitor
from polyloom.training.packing import Batch, window_batches

STREAM = torch.randint(0, 50, (1500,), generator=torch.Generator().manual_seed(0))
WINDOWS = window_batches(STREAM, window_tokens=12, batch_size=4, seed=0)


def batch_at(step: int) -> Batch:
    return {**WINDOWS(step), "source": torch.tensor([0, 1, 1, 2])}


def classes(model: nn.Module) -> dict[str, list[torch.Tensor]]:
    return {
        "norm": [p for p in model.parameters() if p.dim() == 1],
        "matrix": [p for p in model.parameters() if p.dim() > 1],
        "none": [],
    }


def run(steps: int = 4, watch: bool = True, **values: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
    model = build_tiny("llama-2x64", 50)
    lines: list[dict[str, Any]] = []
    config = TrainConfig(steps=steps, batch_size=4, precision="float32", log_every=2, warmup_steps=0, **values)
    monitor = Monitor(classes(model), ["a", "b", "c"]) if watch else None
    train(
        model, batch_at, config, loss=partial(next_token_loss, see=monitor.see if monitor else None), monitor=monitor,
        on_log=lambda **line: lines.append(line),
    )  # fmt: skip
    return model, lines


def test_a_monitor_changes_no_bit() -> None:
    watched, _ = run()
    plain, lines = run(watch=False)
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), plain.parameters(), strict=True))
    assert not any("/" in name for line in lines for name in line)


@pytest.mark.parametrize("micro_batch_size", [0, 3])
def test_what_it_sees_is_computed_by_hand(micro_batch_size: int) -> None:
    _, lines = run(steps=2, lr=1e-3, schedule="constant", weight_decay=0.0, micro_batch_size=micro_batch_size)
    before, _ = run(steps=1, watch=False, lr=1e-3, schedule="constant", weight_decay=0.0)
    after, _ = run(steps=2, watch=False, lr=1e-3, schedule="constant", weight_decay=0.0)
    line = lines[-1]
    batch = batch_at(1)
    logits = before(input_ids=batch["tokens"][:, :-1]).logits
    each = nn.functional.cross_entropy(logits.transpose(1, 2), batch["tokens"][:, 1:], reduction="none").mean(dim=1)
    each.mean().backward()
    logits, each = logits.detach(), each.detach()
    for name, rows in {"a": [0], "b": [1, 2], "c": [3]}.items():
        assert line[f"loss/{name}"] == pytest.approx(float(each[rows].mean()), rel=1e-5)
    assert line["max_logit"] == pytest.approx(float(logits.max()), rel=1e-4)
    for name, part in classes(before).items():
        norm = float(torch.cat([torch.zeros(1), *(p.grad.flatten() for p in part if p.grad is not None)]).norm())
        assert line[f"gradient_norm/{name}"] == pytest.approx(norm, rel=1e-4)
        old, new = (
            torch.cat([torch.zeros(1), *(p.detach().flatten() for p in classes(m)[name])]) for m in (before, after)
        )
        ratio = float((new - old).norm() / new.norm()) if part else 0.0
        assert line[f"update_ratio/{name}"] == pytest.approx(ratio, rel=1e-3)


def test_classes_add_up_to_the_global_norm_and_only_logged_steps_are_seen() -> None:
    _, lines = run(steps=5)
    assert [line["step"] for line in lines] == [2, 4, 5]
    for line in lines:
        total = sum(line[f"gradient_norm/{name}"] ** 2 for name in ("norm", "matrix", "none"))
        assert total**0.5 == pytest.approx(line["gradient_norm"], rel=1e-5)


def test_a_skipped_step_has_no_update() -> None:
    model = build_tiny("llama-2x64", 50)
    monitor = Monitor(classes(model), ["a", "b", "c"])
    lines: list[dict[str, Any]] = []
    config = TrainConfig(steps=20, batch_size=4, precision="float32", log_every=20, on_spike="skip", clip_norm=0.0)

    def loss(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        summed, count = next_token_loss(module, batch, monitor.see)
        return (summed * 100 if monitor.active else summed), count

    train(model, batch_at, config, loss=loss, monitor=monitor, on_log=lambda **line: lines.append(line))
    last = next(line for line in lines if "lr" in line)
    assert "max_logit" in last
    assert not any(name.startswith(("update_ratio", "gradient_norm/")) for name in last)
