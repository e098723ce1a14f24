from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from polyloom.core.errors import UserError
from polyloom.training.layouts import Layout, check_layout, stage_layers
from polyloom.training.moments import read_moments, write_moments
from polyloom.training.sharded_checkpoints import is_whole, read_whole

ROOT = Path(__file__).parents[2]
Lines = list[Any]


def fork(folder: Path, *cases: str) -> list[Lines]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.layout_fork", str(folder), *cases]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line.removeprefix("losses: ")) for line in done.stdout.splitlines() if line.startswith("losses")]


def worst(one: Lines, two: Lines) -> float:
    return max(abs(a[0] - b[0]) for a, b in zip(one, two, strict=True))


@pytest.mark.slow
def test_every_layout_gives_the_losses_and_norms_of_one_process(tmp_path: Path) -> None:
    cases = ["1x2x1:5", "2x1x1:5:gpipe", "1x1x2:5", "2x1x2:5:sp,interleaved", "1x2x2:5:sp,memory", "2x2x2:5"]
    one, *others = fork(tmp_path, "1x1x1:5", *cases)
    for case, found in zip(cases, others, strict=True):
        assert worst(one, found) <= 1e-5, case
        assert found[0][1] == pytest.approx(one[0][1], rel=1e-6), case
        # Norms, ratios, logits and losses that the monitor saw, at the first step and the last.
        assert len(one[0][2]) == 3 + 3 + 1 + 3
        assert found[-1][2] == pytest.approx(one[-1][2], rel=2e-3, abs=1e-6), case
        # A pipeline sees no logits at its first step.
        assert len(found[0][2]) == (6 if case[0] == "2" else 10)
        assert found[0][2] == pytest.approx({name: one[0][2][name] for name in found[0][2]}, rel=2e-3), case
    alone, pipeline, spread = fork(tmp_path, "1x1x1:3:docs", "2x1x1:3:docs", "1x2x2:3:sp,docs")
    assert max(worst(alone, pipeline), worst(alone, spread)) <= 1e-5
    assert worst(alone[:1], one[:1]) > 1e-3
    # The losses move enough for a wrong gradient to show.
    assert max(line[0] for line in one) - min(line[0] for line in one) > 0.1


@pytest.mark.slow
def test_a_checkpoint_of_one_layout_goes_on_in_another(tmp_path: Path) -> None:
    (one,) = fork(tmp_path / "one", "1x1x1:6")
    saved, tensors, pipeline = fork(tmp_path / "many", "1x2x1:2:ckpt", "1x1x2:4:ckpt", "2x1x1:6:ckpt")
    assert worst(one, saved + tensors + pipeline) <= 5e-6
    behind, on = fork(tmp_path / "behind", "1x2x1:4:ckpt,async", "1x1x2:6:ckpt,async")
    assert worst(one, behind + on) <= 5e-6
    left = sorted(path.name for path in (tmp_path / "behind" / "checkpoints").iterdir())
    assert left == ["step-00000004", "step-00000006"]
    same, resumed, unbroken = fork(tmp_path / "same", "1x2x1:2:ckpt", "1x2x1:4:ckpt", "1x2x1:4")
    assert same + resumed == unbroken
    checkpoints = tmp_path / "many" / "checkpoints"
    assert sorted(path.name for path in checkpoints.glob("step-*")) == ["step-00000004", "step-00000006"]
    newest = checkpoints / "step-00000006"
    assert not list(newest.glob(".metadata"))
    whole = read_whole(checkpoints)
    assert whole["lm_head.weight"].shape == (64, 32)
    assert len(whole) == 3 + 4 * 9
    values, counts = read_moments(checkpoints)
    assert len(values) == 2 * len(whole)
    assert set(counts.values()) == {6}
    write_moments(tmp_path / "many" / "moments", counts, values.__getitem__)
    alone, spread = fork(tmp_path / "many", "1x1x1:2:moments", "1x2x2:2:moments")
    assert worst(alone, spread) <= 1e-5
    assert worst(alone[1:], one[1:2]) > 1e-4
    part = next(newest.glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-8])
    assert not is_whole(newest)
    assert is_whole(checkpoints / "step-00000004")


@pytest.mark.slow
def test_a_process_that_dies_while_saving_ends_the_job_within_a_minute_and_it_resumes(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process: Any = subprocess.Popen(
        [*launcher, "-m", "tests.training.layout_program", str(tmp_path), "200", "1", "2", "1", "die", "ckpt", "async"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _, errors = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "exitcode  : -9" in errors
    assert time.time() - (tmp_path / "died").stat().st_mtime < 60
    (unbroken,) = fork(tmp_path / "other", "1x2x1:6")
    (resumed,) = fork(tmp_path, "1x2x1:6:ckpt,async")
    assert resumed == unbroken[-len(resumed) :]
    assert is_whole(tmp_path / "checkpoints" / "step-00000006")


CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
    vocab_size=256,
)  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(tp=8), "tp: 8 does not divide the 4 heads. Choose 1, 2, 4."),
        (Layout(tp=3), "tp: 3 does not divide the 4 heads"),
        (Layout(dp=3), "dp: 3 does not divide the 8 rows of a batch. Choose 1, 2."),
        (Layout(pp=8), "pp: 8 stages are more than the 4 layers"),
        (Layout(pp=4, schedule="interleaved-1f1b"), "8 stages are more than the 4 layers"),
        (Layout(pp=2, num_micro_batches=3), "3 micro-batches do not divide the 8 rows of a process"),
        (Layout(tp=4, sequence_parallel=True), "4 does not divide the 30 tokens of a window"),
    ],
)
def test_a_layout_that_does_not_divide_is_named(layout: Layout, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_layout(layout, CONFIG, 30, 8)
    assert message in str(caught.value)


def test_stages_are_even_and_hold_every_layer_once() -> None:
    for layers in range(1, 9):
        for stages in range(1, layers + 1):
            cut = stage_layers(layers, stages)
            assert [i for part in cut for i in part] == list(range(layers))
            assert max(map(len, cut)) - min(map(len, cut)) <= 1
    assert Layout(pp=4, num_micro_batches=12).bubble == pytest.approx(3 / 15)
