from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from polyloom.core.errors import PolyloomError
from polyloom.models.tiny import build_tiny
from polyloom.training.config import TrainConfig
from polyloom.training.loop import next_token_loss, train
from polyloom.training.packing import Batch, window_batches
from polyloom.training.watch import Watch, loss_limit, norm_limit

STREAM = torch.randint(0, 50, (1500,), generator=torch.Generator().manual_seed(0))
BATCH_AT = window_batches(STREAM, window_tokens=12, batch_size=4, seed=0)
BAD = 24


def test_limits_are_median_and_mad() -> None:
    losses = [2.0, 2.1, 1.9] * 10
    assert loss_limit(losses) == pytest.approx(2.0 + 6 * 0.1)
    assert loss_limit([2.0] * 30) == pytest.approx(2.0 + 6 * 0.02)
    assert norm_limit([1.0] * 16) == 4.0
    assert loss_limit([2.0] * 15) == norm_limit([1.0] * 15) == math.inf


def test_a_watch_finds_spikes_and_what_is_not_finite() -> None:
    watch = Watch([2.0] * 20, [1.0] * 20)
    assert watch.look(2.05, 1.1) is None
    loss, norm = watch.look(9.0, 1.0), watch.look(2.0, 9.0)
    assert loss is not None
    assert norm is not None
    assert (loss.what, norm.what) == ("loss", "gradient norm")
    bad = watch.look(math.nan, 1.0)
    assert bad is not None
    assert bad.limit == math.inf
    assert len(watch.losses) == 21
    for _ in range(100):
        watch.take(1.0, 1.0)
    assert len(watch.losses) == len(watch.norms) == 64


def spiking(bad: tuple[int, ...] = (BAD,)) -> Any:
    """Return a batch function whose batches number `bad` hold -1, and a loss that explodes on them."""

    def batch_at(index: int) -> Batch:
        flag = torch.full((4,), -1 if index in bad else 0)
        return {**BATCH_AT(index), "flag": flag, "index": torch.full((4,), index)}

    return batch_at


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    summed, count = next_token_loss(model, batch)
    return (summed * 50 if int(batch["flag"][0]) < 0 else summed), count


def run(action: str, folder: Path | None = None, steps: int = 40, **more: Any) -> tuple[Any, Any, list[dict[str, Any]]]:
    model = build_tiny("llama-2x64", 50)
    lines: list[dict[str, Any]] = []
    config = TrainConfig.model_validate(
        {
            "steps": steps, "batch_size": 4, "lr": 1e-3, "warmup_steps": 2, "precision": "float32", "on_spike": action,
            "checkpoint_every": 10 if folder else 0, "clip_norm": 0.0, "schedule": "constant", **more,
        }
    )  # fmt: skip
    state = train(model, spiking(), config, loss=loss, checkpoints=folder, on_log=lambda **line: lines.append(line))
    return model, state, [line for line in lines if "spike" in line]


def test_a_skipped_spike_leaves_the_weights_alone() -> None:
    skipped, state, events = run("skip")
    assert [(event["step"], event["action"]) for event in events] == [(BAD + 1, "skip")]
    assert (state.step, state.num_spikes) == (40, 1)
    noted, _, again = run("note")
    assert len(again) == 1
    assert not all(torch.equal(a, b) for a, b in zip(skipped.parameters(), noted.parameters(), strict=True))


def test_a_rewind_goes_back_and_passes_over_the_data(tmp_path: Path) -> None:
    model, state, events = run("rewind", tmp_path / "a")
    assert [event["action"] for event in events] == ["rewind"]
    # Back from step 24 to the checkpoint of step 20: batches 20 to 24 are passed over.
    assert (state.step, state.num_passed, state.num_spikes) == (40, BAD + 1 - 20, 1)
    resumed, second, _ = run("rewind", tmp_path / "b", steps=27)
    assert second.step == 27
    resumed, second, _ = run("rewind", tmp_path / "b", steps=40)
    assert second.num_passed == state.num_passed
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_stop_and_off() -> None:
    with pytest.raises(PolyloomError, match=f"the loss rose to .* at step {BAD} "):
        run("stop")
    _, state, events = run("off")
    assert not events
    assert state.losses == []


def test_rewinding_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(ValidationError, match="rewind needs checkpoint_every"):
        TrainConfig(on_spike="rewind")


def test_forms_that_save_memory_change_no_bit() -> None:
    plain, _, _ = run("off", steps=6)
    for more in ({"memory_saving_swiglu": "A"}, {"memory_saving_swiglu": "B"}, {"activation_checkpointing": True}):
        saving, _, _ = run("off", steps=6, **more)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), saving.parameters(), strict=True)), more
        assert type(saving.model.layers[0].mlp).__name__ == "LlamaMLP"
        assert not saving.model.layers[0].gradient_checkpointing
