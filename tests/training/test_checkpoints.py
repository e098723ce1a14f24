from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from polyloom.core.errors import UserError
from polyloom.models.tiny import build_tiny
from polyloom.training.checkpoints import is_whole, load_checkpoint, save_checkpoint


def stepped(seed: int, num_steps: int) -> tuple[nn.Module, AdamW]:
    model = build_tiny("llama-2x64", 40, seed=seed)
    optimizer = AdamW(model.parameters(), lr=0.01, fused=True)
    for step in range(num_steps):
        model(input_ids=torch.full((1, 4), step)).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def same(one: tuple[nn.Module, AdamW], two: tuple[nn.Module, AdamW]) -> bool:
    for a, b in zip(one[0].parameters(), two[0].parameters(), strict=True):
        if not torch.equal(a, b):
            return False
        state = (one[1].state[a], two[1].state[b])
        if state[0].keys() != state[1].keys() or not all(torch.equal(state[0][k], state[1][k]) for k in state[0]):
            return False
    return True


def test_a_checkpoint_restores_weights_moments_and_state(tmp_path: Path) -> None:
    saved = stepped(0, 3)
    path = save_checkpoint(tmp_path, 3, *saved, {"note": "x"})
    assert path.name == "step-00000003"
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix not in (".safetensors", ".json")]
    fresh = stepped(1, 0)
    assert not same(saved, fresh)
    assert load_checkpoint(tmp_path, *fresh) == {"step": 3, "note": "x"}
    assert same(saved, fresh)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "absent", *stepped(0, 0)) is None


def test_the_newest_are_kept(tmp_path: Path) -> None:
    pair = stepped(0, 1)
    for step in (8, 9, 10, 11):
        save_checkpoint(tmp_path, step, *pair, {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]
    assert load_checkpoint(tmp_path, *pair) == {"step": 11}


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "no manifest"])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    first, second = stepped(0, 1), stepped(0, 2)
    save_checkpoint(tmp_path, 1, *first, {})
    path = save_checkpoint(tmp_path, 2, *second, {})
    file = path / ("manifest.json" if damage == "no manifest" else "optimizer.safetensors")
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
    file.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    if damage in ("remove", "no manifest"):
        file.unlink()
    fresh = stepped(5, 0)
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(tmp_path, *fresh) == {"step": 1}
    assert "step-00000002 is torn" in caplog.text
    assert same(fresh, first)
    for torn in tmp_path.glob("step-*"):
        (torn / "state.json").write_text(json.dumps({"step": 99}))
    with pytest.raises(UserError, match="every checkpoint is torn"):
        load_checkpoint(tmp_path, *fresh)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = stepped(0, 1)
    path = save_checkpoint(tmp_path, 1, *pair, {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("polyloom.training.checkpoints.save_file", full)
    with pytest.raises(UserError, match=r"No space left on device.*resume"):
        save_checkpoint(tmp_path, 2, *pair, {})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert is_whole(path)


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, *stepped(0, 1), {})
    other = build_tiny("llama-2x64", 41)
    with pytest.raises(UserError, match="is of another model"):
        load_checkpoint(tmp_path, other, AdamW(other.parameters(), fused=True))


def test_shared_tensors_are_saved_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = AdamW(model.parameters())
    save_checkpoint(tmp_path, 0, model, optimizer, {})
    expected = model[0].weight.detach().clone()
    model[0].weight.data.zero_()
    load_checkpoint(tmp_path, model, optimizer)
    assert torch.equal(model[1].weight, expected)
