from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from polyloom.core.errors import UserError
from polyloom.methods.pretrain.architecture import PRESETS, build, llama_config, parameter_groups, shape_of
from polyloom.methods.pretrain.method import (
    Scaling,
    Shape,
    count_non_embedding,
    count_parameters,
    decoder,
    feed_forward,
    fold,
    folded_rule,
    native_rule,
    parabola_minimum,
    slope,
    tensor_class,
    training_flops_per_token,
)
from polyloom.training.config import TrainConfig
from polyloom.training.engine import group_norm
from polyloom.training.loop import next_token_loss, train
from polyloom.training.packing import window_batches

SHAPE = Shape(layers=2, heads=2, width=64, ffn=128, vocab=50)
WIDE = Scaling(lr=0.01, matrix_lr=0.01, base_width=32, weight_decay=0.1, input_mult=4.0, output_mult=0.5)


@pytest.mark.parametrize(
    ("name", "millions"), [("tele-flm-52b-padded", 52_849.3), ("tele-flm-proxy", 283.2), ("tele-flm-1t", 1_083_800)]
)
def test_parameter_counts_of_the_family(name: str, millions: float) -> None:
    assert count_parameters(PRESETS[name].shape) / 1e6 == pytest.approx(millions, rel=2e-4)


@pytest.mark.parametrize(("width", "ffn"), [(8192, 21824), (512, 1344), (10240, 27264)])
def test_feed_forward_of_the_family(width: int, ffn: int) -> None:
    assert feed_forward(width) == ffn


def test_counts_agree_with_transformers() -> None:
    model = LlamaForCausalLM(llama_config(SHAPE, 16))
    assert count_parameters(SHAPE) == sum(p.numel() for p in model.parameters())
    assert count_non_embedding(SHAPE) == sum(p.numel() for p in model.model.layers.parameters()) + 64
    assert shape_of(model.config) == SHAPE


def test_flops_are_those_of_torch_s_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = LlamaForCausalLM(llama_config(SHAPE, 16))
    model.set_attn_implementation("eager")
    tokens = torch.zeros(3, 17, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        next_token_loss(model, {"tokens": tokens})[0].backward()
    # The rotary tables are computed once a sequence, outside of the layers.
    assert counter.get_total_flops() / (3 * 16) == pytest.approx(training_flops_per_token(SHAPE, 16), rel=0.01)


def test_groups_are_those_of_the_mup_package() -> None:
    from mup import MuAdamW, MuReadout, set_base_shapes

    def llama(width: int) -> LlamaForCausalLM:
        shape = Shape(2, width // 16, width, 4 * width, 50)
        model = LlamaForCausalLM(llama_config(shape, 16))
        model.lm_head = MuReadout(width, 50, bias=False)
        return model

    target = llama(128)
    set_base_shapes(target, llama(32), delta=llama(64), rescale_params=False)
    theirs = MuAdamW(target.parameters(), lr=0.01, weight_decay=0.1)
    names = {id(p): name for name, p in target.named_parameters()}
    expected = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in theirs.param_groups for p in g["params"]}
    shape = Shape(2, 8, 128, 512, 50)
    ours = {n: native_rule(n, shape, replace(WIDE, input_mult=1.0)) for n in expected}
    assert sum(value == (0.0025, 0.4) for value in expected.values()) == 14
    for name, (lr, decay) in expected.items():
        assert ours[name].lr == pytest.approx(lr, rel=1e-12), name
        # The package decays gains, which the table leaves out.
        assert ours[name].weight_decay == pytest.approx(0.0 if "norm" in name else decay, rel=1e-12), name


def test_without_a_base_the_groups_are_those_of_plain_adamw() -> None:
    stream = torch.randint(0, 50, (900,), generator=torch.Generator().manual_seed(0))
    batch_at = window_batches(stream, window_tokens=12, batch_size=4, seed=0)
    config = TrainConfig(steps=5, batch_size=4, lr=4e-3, weight_decay=0.1, precision="float32")
    scaling = Scaling(weight_decay=0.1)
    plain, ours = build(SHAPE, 16, scaling), build(SHAPE, 16, scaling)
    train(plain, batch_at, config)
    train(ours, batch_at, config, groups=parameter_groups(ours, SHAPE, scaling))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))


def test_muon_leaves_the_rate_of_matrices_to_their_shape() -> None:
    scaling = replace(WIDE, muon=True, matrix_lr=0.02)
    model = build(SHAPE, 16, scaling)
    groups = parameter_groups(model, SHAPE, scaling)
    chosen = [(g["lr"], g["weight_decay"], g["gradient_scale"]) for g in groups if g["muon"]]
    assert chosen == [(0.02, 0.1, 1.0)]
    plain = {n: folded_rule(n, SHAPE, WIDE) for n, _ in model.named_parameters()}
    # Nothing but the matrices changes, and their initial values do not.
    for name, rule in plain.items():
        ours = folded_rule(name, SHAPE, scaling)
        assert ours.std == rule.std
        assert (ours == rule) == (tensor_class(name) != "matrix")


class Unfolded(torch.nn.Module):
    """The form with multipliers, written out: what the folded form has to equal."""

    def __init__(self, shape: Shape, scaling: Scaling) -> None:
        super().__init__()
        self.inner = LlamaForCausalLM(llama_config(shape, 16))
        self.scaling, self.m, self.branch = scaling, scaling.m(shape.width), scaling.r(shape.layers) ** -1.0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        model = self.inner.model
        x = self.scaling.input_mult * model.embed_tokens(tokens)
        positions = model.rotary_emb(x, position_ids=torch.arange(tokens.shape[1])[None])
        for layer in model.layers:
            x = x + self.branch * layer.self_attn(layer.input_layernorm(x), positions, None)[0]
            x = x + self.branch * layer.mlp(layer.post_attention_layernorm(x))
        return self.scaling.output_mult / self.m * self.inner.lm_head(model.norm(x))


@pytest.mark.parametrize("base_depth", [0, 1])
def test_folding_is_exact_over_twenty_steps_with_clipping(base_depth: int) -> None:
    scaling = replace(WIDE, base_depth=base_depth, matrix_std=0.1, std=0.1, zero_start=False)
    folded = build(SHAPE, 16, scaling, seed=3).double()
    native = Unfolded(SHAPE, scaling).double()
    theirs = dict(native.inner.named_parameters())
    groups = []
    with torch.no_grad():
        for name, parameter in folded.named_parameters():
            rule = native_rule(name, SHAPE, scaling)
            theirs[name].copy_(parameter / folded_rule(name, SHAPE, scaling).fold)
            group = {"params": [theirs[name]], "lr": rule.lr, "weight_decay": rule.weight_decay, "eps": rule.eps}
            groups.append(group)
    one = torch.optim.AdamW(groups)
    two = torch.optim.AdamW(parameter_groups(folded, SHAPE, scaling))
    tokens = torch.randint(0, 50, (2, 13), generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        plain = native(tokens[:, :-1])
        torch.nn.functional.cross_entropy(plain.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        expected = torch.nn.utils.clip_grad_norm_(native.parameters(), 0.5)
        logits = folded(input_ids=tokens[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        norm = group_norm(two.param_groups)
        torch.testing.assert_close(norm, expected, rtol=1e-9, atol=0)
        torch.nn.utils.clip_grads_with_norm_(folded.parameters(), 0.5, norm)
        for optimizer in (one, two):
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(logits, plain, rtol=0, atol=1e-9)


@given(st.floats(0.01, 100), st.integers(1, 64))
def test_a_fold_keeps_the_decay_of_a_step(c: float, factor: int) -> None:
    shape = decoder(32 * factor, 2, 32, 64)
    rule = native_rule("model.layers.0.mlp.up_proj.weight", shape, replace(WIDE, base_width=32))
    folded = fold(rule, c)
    assert folded.lr * folded.weight_decay == pytest.approx(0.001, rel=1e-9)
    assert folded.lr / folded.std == pytest.approx(rule.lr / rule.std, rel=1e-9)
    assert rule.std**2 * factor == pytest.approx(0.0025, rel=1e-9)


def test_depth_rule_leaves_the_ends_alone() -> None:
    scaling = replace(WIDE, base_depth=2, depth_power=0.5)
    deep = replace(SHAPE, layers=8)
    hidden = "model.layers.3.mlp.down_proj.weight"
    assert native_rule(hidden, deep, scaling).lr == pytest.approx(0.01 / 2 * 4**-0.5)
    assert folded_rule(hidden, deep, scaling).fold == pytest.approx(4**-0.5)
    assert native_rule("model.norm.weight", deep, scaling).lr == 0.01
    assert folded_rule("model.embed_tokens.weight", deep, scaling).fold == 4.0


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.bias", "transformer.wte.weight", "weight"])
def test_a_tensor_without_a_class_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no class"):
        tensor_class(name)


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="width 100 is not a multiple of the head size 32"):
        decoder(100, 2, 32, 64)
    with pytest.raises(UserError, match="not a multiple of the 3 heads"):
        Shape(1, 3, 64, 64, 64)


def test_slope_and_parabola() -> None:
    assert slope([64, 128, 256], [1.0, 2.0, 4.0]) == pytest.approx(1.0)
    assert slope([64, 128], [0.0, 0.0]) == 0.0
    x = np.array([-3.0, -2.0, -1.0])
    assert parabola_minimum(x, (x + 1.7) ** 2) == pytest.approx(-1.7)
    assert parabola_minimum(x, -(x**2)) == -3.0
    assert math.isclose(parabola_minimum(x, np.array([3.0, 2.0, 1.0])), -1.0)
