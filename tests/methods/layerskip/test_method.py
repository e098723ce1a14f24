"""The paper's mathematics: hand values, invariants, gradients, and the laws of drafts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from polyloom.core.errors import UserError
from polyloom.methods.layerskip.method import (
    acceptance,
    active_exits,
    drop_rows,
    dropout_rates,
    early_exit_loss,
    exit_scale,
    exit_weights,
    layer_curve,
    replay_drafts,
    replay_rounds,
    run_lengths,
    speed_up,
    time_curve,
    tokens_per_round,
)


def test_layer_curve_has_the_papers_values() -> None:
    assert layer_curve(5) == pytest.approx([0, 0.189207, 0.414214, 0.681793, 1], abs=1e-6)
    assert layer_curve(1) == [0.0]
    for num_layers, mean in ((32, 0.0889088), (24, 0.0890375)):
        assert sum(dropout_rates(num_layers, 0.2, 0, 1, "constant")) / num_layers == pytest.approx(mean, abs=1e-7)


def test_time_curve_grows_from_0_to_1() -> None:
    assert [time_curve(step, 3, "exp") for step in range(3)] == pytest.approx([0, 0.414214, 1], abs=1e-6)
    assert time_curve(0, 100, "constant") == 1


def test_exit_scale_and_weights_have_the_papers_values() -> None:
    assert exit_scale(4, 1.0) == [0, 1, 3, 6]
    assert exit_scale(4, 0.5) == [0, 0.5, 1.5, 4.5]
    weights = exit_weights(range(4), 4, 0.5)
    assert weights == pytest.approx({1: 0.076923, 2: 0.230769, 3: 0.692308}, abs=1e-6)
    assert exit_weights(range(4), 4, 0.0) == {3: 1.0}
    assert exit_weights([0], 4, 1.0) == {3: 1.0}
    assert exit_weights([0, 3], 4, 1.0, floor=True)[0] == pytest.approx(1 / 7)
    # torchtune: running sums over the selected layers' (l+1), the last layer unscaled.
    assert exit_weights([1, 3], 4, 0.5, "sum") == pytest.approx({1: 1 / 7, 3: 6 / 7})


@given(st.integers(2, 40), st.floats(0, 1), st.integers(0, 100), st.sampled_from(["paper", "sum", "linear", "inv"]))
def test_weights_sum_to_one(num_layers: int, e_scale: float, step: int, kind: str) -> None:
    active = active_exits(step, num_layers, "rotational", min(4, num_layers), 100)
    assert sum(exit_weights(active, num_layers, e_scale, kind).values()) == pytest.approx(1)


def test_curricula_turn_on_the_layers_of_the_paper() -> None:
    assert [active_exits(step, 8, "rotational", 4, 100) for step in (0, 1, 3)] == [[0, 4, 7], [1, 5, 7], [3, 7]]
    over = [layer for step in range(4) for layer in active_exits(step, 8, "rotational", 4, 0, always_last=False)]
    assert sorted(over) == list(range(8))
    gradual = [active_exits(step, 4, "gradual", 1, 80) for step in (0, 9, 10, 19, 20, 29, 30, 79)]
    assert gradual == [[3], [3], [2, 3], [2, 3], [1, 2, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dropout_rates(4, 1.0, 0, 1, "constant"), "must be in"),
        (lambda: exit_scale(4, 1.5), "--e-scale"),
        (lambda: active_exits(0, 8, "rotational", 9, 10), "1 to 8"),
        (lambda: active_exits(0, 8, "rotational", 0, 10), "1 to 8"),
        (lambda: active_exits(0, 8, "gradual", 1, 0), "number of steps"),
    ],
)
def test_settings_outside_their_range_are_refused(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_loss_is_the_weighted_cross_entropy_of_each_exit() -> None:
    torch.manual_seed(0)
    states = {layer: torch.randn(2, 5, 6) for layer in range(3)}
    head = torch.randn(6, 7)
    labels = torch.randint(0, 7, (2, 5))
    labels[0, :3] = -100
    weights = {1: 0.25, 2: 0.75}
    loss, parts = early_exit_loss(states, labels, weights, lambda x: x @ head)
    by_hand = {
        layer: functional.cross_entropy((states[layer] @ head).flatten(0, 1), labels.flatten(), reduction="sum")
        for layer in weights
    }
    assert float(loss) == pytest.approx(float(sum(weights[layer] * by_hand[layer] for layer in weights)), rel=1e-5)
    assert parts == pytest.approx({layer: float(value) for layer, value in by_hand.items()}, rel=1e-5)


def test_distillation_adds_the_divergence_from_a_fixed_last_layer() -> None:
    torch.manual_seed(0)
    states = {layer: torch.randn(1, 4, 6, requires_grad=True) for layer in (0, 1)}
    labels = torch.randint(0, 6, (1, 4))
    plain, _ = early_exit_loss(states, labels, {0: 0.5, 1: 0.5}, lambda x: x)
    taught, _ = early_exit_loss(states, labels, {0: 0.5, 1: 0.5}, lambda x: x, distill=1.0)
    p, q = states[1][0].softmax(-1), states[0][0].softmax(-1)
    divergence = (p * (p / q).log()).sum().item()
    assert (taught - plain).item() == pytest.approx(0.5 * divergence, rel=1e-4)
    (gradient,) = torch.autograd.grad(taught - plain, states[1], allow_unused=True)
    assert gradient is None or float(gradient.abs().max()) < 1e-6


def test_dropped_rows_pass_and_kept_rows_are_those_of_a_smaller_batch() -> None:
    torch.manual_seed(0)
    x, matrix = torch.randn(6, 3, 4), torch.randn(4, 4)

    def layer(rows_in: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        assert torch.equal(rows_in, x[rows])
        return rows_in + rows_in @ matrix

    keep = torch.tensor([True, False, True, True, False, True])
    out = drop_rows(keep, x, layer)
    assert torch.equal(out[~keep], x[~keep])
    assert torch.allclose(out[keep], layer(x[keep], keep.nonzero().squeeze(-1)), atol=1e-6)
    assert torch.equal(drop_rows(torch.zeros(6, dtype=torch.bool), x, layer), x)
    assert torch.equal(drop_rows(torch.ones(6, dtype=torch.bool), x, layer), layer(x, torch.arange(6)))


def test_acceptance_is_one_minus_total_variation() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
    assert float(acceptance(p, q)) == pytest.approx(0.7)
    assert float(acceptance(p, q)) == pytest.approx(1 - float((p - q).abs().sum()) / 2)


def test_tokens_per_round_and_speed_have_the_published_values() -> None:
    assert tokens_per_round(0.8, 3) == pytest.approx(2.952)
    assert tokens_per_round(1.0, 3) == 4
    flat, free = [1.0] * 10, [0.0] * 10
    assert speed_up(tokens_per_round(0.8, 3), 8, 3, 32, flat, free) == pytest.approx(1.686857, abs=1e-6)
    assert speed_up(tokens_per_round(0.9, 9), 4, 9, 32, flat, free) == pytest.approx(3.07, abs=0.005)


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 9))
def test_replay_equals_a_walk_over_the_bits(bits: list[bool], gamma: int) -> None:
    at, rounds = 0, 0
    while at < len(bits):
        accepted = 0
        while accepted < gamma and at + accepted < len(bits) and bits[at + accepted]:
            accepted += 1
        at += accepted + 1
        rounds += 1
    assert replay_rounds(run_lengths(bits), gamma) == rounds


def test_replay_with_thresholds_by_hand() -> None:
    lengths, confident = run_lengths([True, True, False, True, True]), run_lengths([True, False, True, True, True])
    # Drafts one token and stops unsure; then at 2 drafts two, of which the first is wrong; then the last two.
    assert replay_drafts(lengths, confident, 2) == [1, 2, 2]
    assert len(replay_drafts(lengths, [9] * 5, 2)) == replay_rounds(lengths, 2)
    assert replay_drafts(lengths, [0] * 5, 2) == [0] * 5


def test_perfect_and_hopeless_drafts_bound_the_rounds() -> None:
    assert replay_rounds(run_lengths([True] * 12), 3) == 3
    assert replay_rounds(run_lengths([False] * 12), 3) == 12
    assert math.isclose(tokens_per_round(0.0, 5), 1.0)
