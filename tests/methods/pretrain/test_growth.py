"""Growth and the moments that go with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from polyloom.core.errors import UserError
from polyloom.methods.pretrain.architecture import NORM_EPS, build, llama_config
from polyloom.methods.pretrain.forms import tensor_names
from polyloom.methods.pretrain.growth import Growth, grow_moment, grow_tensor, grown_steps
from polyloom.methods.pretrain.method import Scaling, Shape
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train
from polyloom.training.moments import read_moments, write_moments
from polyloom.training.packing import window_batches

OLD = Shape(layers=2, heads=2, width=64, ffn=128, vocab=50)
STREAM = torch.randint(0, 50, (1500,), generator=torch.Generator().manual_seed(0))
BATCH_AT = window_batches(STREAM, window_tokens=12, batch_size=4, seed=0)


def config(steps: int, **values: Any) -> TrainConfig:
    base = {"batch_size": 4, "lr": 1e-3, "warmup_steps": 0, "schedule": "constant", "clip_norm": 0.0}
    return TrainConfig(**{**base, "precision": "float32", "weight_decay": 0.0, "steps": steps, **values})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("run")
    model = build(OLD, 16, Scaling(std=0.3, matrix_std=0.3))
    train(model, BATCH_AT, config(10, checkpoint_every=10), checkpoints=folder / "checkpoints")
    return folder, {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("new", [replace(OLD, layers=3), replace(OLD, width=96, heads=3), replace(OLD, ffn=192)])
def test_old_entries_take_the_step_that_the_small_model_would_take(
    trained: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, new: Shape
) -> None:
    folder, before = trained
    growth = Growth(OLD, new, 0.3, 0)
    small = build(OLD, 16, Scaling())
    train(small, BATCH_AT, config(11), checkpoints=folder / "checkpoints")
    values, steps = read_moments(folder)
    names = tensor_names(new)
    write_moments(tmp_path / "m", grown_steps(names, steps, growth), lambda key: grow_moment(key, values, growth))
    large = build(new, 16, Scaling(), config=llama_config(new, 16, norm_eps=NORM_EPS * growth.norm_eps_factor))
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            parameter.copy_(grow_tensor(name, before.__getitem__, growth))
    start = {name: p.detach().clone() for name, p in large.named_parameters()}
    train(large, lambda step: BATCH_AT(10), config(1), moments=tmp_path / "m")
    after, moved = dict(small.named_parameters()), 0.0
    # The third layer is the new one.
    for name, parameter in after.items():
        place = tuple(slice(size) for size in parameter.shape)
        grown = large.get_parameter(name)
        small_step = (parameter - before[name]).detach()
        large_step = (grown.detach() - start[name])[place]
        torch.testing.assert_close(large_step, small_step, atol=3e-5, rtol=0)
        moved = max(moved, float(small_step.abs().max()))
    assert moved > 5e-4


def test_new_entries_begin_without_moments(trained: tuple[Path, dict[str, torch.Tensor]]) -> None:
    values, steps = read_moments(trained[0])
    growth = Growth(OLD, replace(OLD, width=96, heads=3, layers=3), 0.3, 0)
    key = "exp_avg_sq.model.layers.0.self_attn.q_proj.weight"
    grown = grow_moment(key, values, growth)
    assert torch.equal(grown[:64, :64], values[key])
    assert not grown[64:].any()
    assert not grown[:, 64:].any()
    assert not grow_moment("exp_avg.model.layers.2.mlp.up_proj.weight", values, growth).any()
    counts = grown_steps(tensor_names(growth.new), steps, growth)
    assert (counts["lm_head.weight"], counts["model.layers.2.mlp.up_proj.weight"]) == (10, 0)
    gains = "exp_avg_sq.model.norm.weight"
    torch.testing.assert_close(grow_moment(gains, values, growth)[:64], values[gains] * 1.5)


def test_moments_that_do_not_fit_are_refused(trained: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    values, steps = read_moments(trained[0])
    other = Growth(replace(OLD, ffn=96), replace(OLD, ffn=192), 0.3, 0)
    with pytest.raises(UserError, match=r"--moments: the moments of .* are missing or of another size"):
        grow_moment("exp_avg.model.layers.0.mlp.up_proj.weight", values, other)
    with pytest.raises(UserError, match="holds no whole checkpoint"):
        read_moments(tmp_path)
    write_moments(tmp_path / "m", steps, values.__getitem__)
    with pytest.raises(UserError, match=r"holds no moments of the size of model\.embed_tokens\.weight"):
        train(build(replace(OLD, vocab=60), 16, Scaling()), BATCH_AT, config(1), moments=tmp_path / "m")


def test_a_run_grows_with_its_moments_and_trains_on(cli: Any, tmp_path: Path) -> None:
    words = ["--preset", "tiny-2x64", "--vocab-size", "300", "--window-tokens", "32", "--batch-size", "8"]
    words += ["--languages", "en", "--precision", "float32"]
    assert cli("pretrain", "train", *words, "--steps", "20", "--checkpoint-every", "10", "--run", "a").exit_code == 0
    run = tmp_path / "runs" / "a"
    model, grown = run / "artifacts" / "model", tmp_path / "grown"
    done = cli("pretrain", "grow", "--model", model, "--width", "96", "--moments", run, "--out", grown, "--json")
    assert done.exit_code == 0, done.stderr
    scalars = json.loads(done.stdout)["scalars"]
    assert scalars["moments_of_step"]["value"] == 20
    assert scalars["logits_difference"]["value"] <= 1e-5
    more = [*words, "--model", grown, "--tokenizer", model, "--steps", "2"]
    on = cli("pretrain", "train", *more, "--checkpoint-every", "1", "--run", "b", "--json")
    assert on.exit_code == 0, on.stderr
    result = json.loads(on.stdout)
    assert any("moments that growth left" in line for line in result["limitations"])
    old = json.loads((run / "result.json").read_text())["scalars"]["loss"]["value"]
    assert result["scalars"]["loss"]["value"] < old + 0.5
    steps = load_file(tmp_path / "runs" / "b" / "checkpoints" / "step-00000002" / "optimizer.safetensors")
    assert int(steps["step.lm_head.weight"]) == 22
    config = json.loads((tmp_path / "runs" / "b" / "artifacts" / "model" / "config.json").read_text())
    assert config["rms_norm_eps"] == pytest.approx(1e-5 * 64 / 96)
