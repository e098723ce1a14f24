"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from polyloom.core.errors import UserError
from polyloom.models.tiny import build_tiny
from polyloom.training import checkpoints
from polyloom.training.checkpoints import is_whole
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train
from polyloom.training.packing import window_batches

ROOT = Path(__file__).parents[2]
STREAM = torch.randint(0, 50, (900,), generator=torch.Generator().manual_seed(0))
BATCH_AT = window_batches(STREAM, window_tokens=12, batch_size=6, seed=0)


def run(folder: Path, steps: int, **values: Any) -> Any:
    model = build_tiny("llama-2x64", 50, seed=int(steps > 6))
    config = TrainConfig(
        steps=steps,
        batch_size=6,
        warmup_steps=2,
        precision="float32",
        checkpoint_every=2,
        schedule="constant",
        **values,
    )
    train(model, BATCH_AT, config, checkpoints=folder)
    return model


def test_it_writes_the_bytes_of_a_checkpoint_that_is_waited_for(tmp_path: Path) -> None:
    waited, behind = run(tmp_path / "a", 6), run(tmp_path / "b", 6, async_checkpoints=True)
    assert all(torch.equal(a, b) for a, b in zip(waited.parameters(), behind.parameters(), strict=True))
    names = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert names == ["step-00000004", "step-00000006"]
    for name in names:
        for part in checkpoints.PARTS:
            assert (tmp_path / "a" / name / part).read_bytes() == (tmp_path / "b" / name / part).read_bytes()
    resumed, unbroken = run(tmp_path / "b", 9, async_checkpoints=True), run(tmp_path / "a", 9)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), unbroken.parameters(), strict=True))


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on, write = threading.Event(), checkpoints.replace_folder
    whole: list[list[str]] = []

    def slow(new: Path, folder: Path) -> None:
        if folder.name == "step-00000004":
            # Nothing but a later step sets it: were the save waited for, this would run into its time.
            assert going_on.wait(timeout=60)
            whole.append([path.name for path in folder.parent.glob("step-*") if is_whole(path)])
        write(new, folder)

    def batch_at(step: int) -> Any:
        if step == 5:
            going_on.set()
        return BATCH_AT(step)

    monkeypatch.setattr(checkpoints, "replace_folder", slow)
    config = TrainConfig(steps=6, batch_size=6, checkpoint_every=2, async_checkpoints=True, precision="float32")
    train(build_tiny("llama-2x64", 50), batch_at, config, checkpoints=tmp_path)
    # While the second one was being written, the first one was there and whole.
    assert whole == [["step-00000002"]]
    assert is_whole(tmp_path / "step-00000006")


def test_a_disk_that_is_full_is_said_and_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = checkpoints.replace_folder

    def full(new: Path, folder: Path) -> None:
        if folder.name == "step-00000004":
            raise OSError(28, "No space left on device")
        write(new, folder)

    monkeypatch.setattr(checkpoints, "replace_folder", full)
    with pytest.raises(UserError, match=r"step-00000004: cannot be written \(No space left on device\)"):
        run(tmp_path, 6, async_checkpoints=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert is_whole(tmp_path / "step-00000002")


KILLED = """
import os, signal, sys
from pathlib import Path
from polyloom.training import checkpoints
from tests.training.test_async_checkpoints import run

write = checkpoints.write_json

def kill(path, value):
    if path.name == "manifest.json" and (Path(sys.argv[1]) / "step-00000002").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, value)

checkpoints.write_json = kill
run(Path(sys.argv[1]), 6, async_checkpoints=True)
"""


def test_a_process_killed_while_it_saves_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "k")], cwd=ROOT, check=False, timeout=200)
    assert done.returncode == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "k").iterdir())
    assert [name for name in left if name.startswith("step-")] == ["step-00000002"]
    assert any(name.startswith(".saving-") for name in left)
    resumed, unbroken = run(tmp_path / "k", 6, async_checkpoints=True), run(tmp_path / "u", 6)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), unbroken.parameters(), strict=True))
    assert not any(path.name.startswith(".saving-") for path in (tmp_path / "k").iterdir())
