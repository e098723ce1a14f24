from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from polyloom.training.parallel import World, join_world
from tests.training.program import run

ROOT = Path(__file__).parents[2]


def test_alone_the_world_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_world(torch.device("cpu")) as world:
        assert world == World(rank=0, size=1)
        assert world.is_main
        assert float(world.sum(torch.tensor(3.0))) == 3.0
        world.wait()


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    run(tmp_path / "one", 8, exact=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "tests.training.program", str(tmp_path / "two"), "8", "exact"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "final.safetensors") for name in ("one", "two"))
    worst = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert worst <= 1e-6
    assert sorted(p.name for p in (tmp_path / "two" / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]
