"""FA and SFA against hand values, plain formulas, public modules and invariants."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from polyloom.core.errors import UserError
from polyloom.methods.match.method import (
    BLOCKS,
    BiRecurrent,
    Dropout,
    FeatureAttention,
    ResidualMLP,
    SelectiveFeatureAttention,
    bottleneck_width,
    branch_weights,
    fa_parameters,
    make_block,
    masked_max,
    masked_mean,
    pool,
    reverse_by_length,
    selection_bounds,
    sfa_parameters,
)


def draw(batch: int = 5, tokens: int = 7, dim: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([7, 3, 1, 5, 6])[:batch]
    mask = torch.arange(tokens)[None] < lengths[:, None]
    X = torch.randn(batch, tokens, dim, generator=generator, dtype=dtype)
    return X * mask[:, :, None], mask


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small_blocks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    made = {name: make_block(name, 32, max_length=8, floor=8) for name in BLOCKS if name != "none"}
    return {name: block.eval() for name, block in made.items() if block is not None}


def test_fa_by_hand() -> None:
    block = FeatureAttention(2, 1, norm="none")
    with torch.no_grad():
        block.squeeze.weight.copy_(torch.tensor([[1.0, 0.0]]))
        block.squeeze.bias.zero_()
        block.excite.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        block.excite.bias.zero_()
    U = block(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.ones(1, 2, dtype=torch.bool))
    e = 1 / (1 + math.exp(-math.tanh(2.0)))
    expected = torch.tensor([[[e, 2 * (1 - e)], [3 * e, 4 * (1 - e)]]])
    assert e == pytest.approx(0.72393, abs=5e-6)
    torch.testing.assert_close(U, expected, atol=1e-6, rtol=0)


def test_fa_with_a_zero_excitation_halves_and_with_a_large_one_keeps() -> None:
    X, mask = draw()
    block = FeatureAttention(6, 4, norm="none")
    nn.init.zeros_(block.excite.weight)
    nn.init.zeros_(block.excite.bias)
    torch.testing.assert_close(block(X, mask), X / 2, rtol=0, atol=0)
    nn.init.constant_(block.excite.bias, 100.0)
    torch.testing.assert_close(block(X, mask), X, rtol=0, atol=0)


def test_fa_commutes_with_the_order_of_positions() -> None:
    X, _ = draw()
    mask = torch.ones(5, 7, dtype=torch.bool)
    block = FeatureAttention(6, 4).eval()
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    torch.testing.assert_close(block(X[:, order], mask), block(X, mask)[:, order])


def test_senet_preset_is_squeeze_and_excitation_over_channels() -> None:
    block = make_block("senet", 32)
    assert isinstance(block, FeatureAttention)
    X = torch.randn(2, 7, 32)
    image = X.transpose(1, 2)[:, :, :, None]
    s = image.mean((2, 3))
    e = torch.sigmoid(block.excite(torch.relu(block.squeeze(s))))
    expected = (image * e[:, :, None, None])[:, :, :, 0].transpose(1, 2)
    torch.testing.assert_close(block(X, torch.ones(2, 7, dtype=torch.bool)), expected)


def test_parameter_counts() -> None:
    assert count(FeatureAttention(600, 60)) == fa_parameters(600, 60) == 73_860
    assert count(SelectiveFeatureAttention(600, 100, 60, 3)) == sfa_parameters(600) == 282_460
    assert count(ResidualMLP(600, 60)) == 73_860


@pytest.mark.parametrize(("length", "width"), [(5, 12), (11, 18), (25, 26), (64, 34), (100, 38)])
def test_bottleneck_width_follows_the_length(length: int, width: int) -> None:
    assert bottleneck_width(length, floor=1) == width
    assert bottleneck_width(length) == 60


def test_branch_weights_by_hand() -> None:
    v = branch_weights(torch.tensor([0.2, 0.5, 0.9])[None, :, None])
    torch.testing.assert_close(v[0, :, 0], torch.tensor([0.2292, 0.3093, 0.4615]), atol=1e-4, rtol=0)


@given(st.integers(1, 6), st.integers(0, 1000))
def test_branch_weights_sum_to_one_within_their_bounds(num_branches: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.sigmoid(4 * torch.randn(3, num_branches, 8, generator=generator))
    v = branch_weights(a)
    low, high = selection_bounds(num_branches)
    assert float((v.sum(1) - 1).abs().max()) <= 1e-6
    assert float(v.min()) >= low - 1e-6
    assert float(v.max()) <= high + 1e-6


def test_selection_bounds() -> None:
    for num_branches, wanted in ((2, (0.2689, 0.7311)), (3, (0.1554, 0.5761)), (4, (0.1092, 0.4754))):
        assert selection_bounds(num_branches) == pytest.approx(wanted, abs=5e-5)


def test_reference_weights_sum_to_one_over_the_whole_batch_and_depend_on_it() -> None:
    a = torch.rand(6, 3, 24, generator=torch.Generator().manual_seed(0))
    v = branch_weights(a, normalise="reference")
    torch.testing.assert_close(v.sum(), torch.tensor(1.0))
    assert float(v.sum(1).mean()) == pytest.approx(1 / (6 * 24), rel=1e-5)
    assert not torch.allclose(branch_weights(a[:1], normalise="reference"), v[:1])


def reference_sfa(block: SelectiveFeatureAttention, X: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The released block's arithmetic written out in numpy: parallel GRUs joined by their states, one normaliser."""

    def w(name: str) -> np.ndarray[Any, Any]:
        return block.state_dict()[name].numpy()

    def sigmoid(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return 1 / (1 + np.exp(-x))

    def gru(name: str, rows: np.ndarray[Any, Any], h: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        outputs = []
        for row in rows.transpose(1, 0, 2):
            i = row @ w(f"{name}.weight_ih_l0").T + w(f"{name}.bias_ih_l0")
            g = h @ w(f"{name}.weight_hh_l0").T + w(f"{name}.bias_hh_l0")
            (ir, iz, inew), (hr, hz, hnew) = np.split(i, 3, 1), np.split(g, 3, 1)
            z = sigmoid(iz + hz)
            h = (1 - z) * np.tanh(inew + sigmoid(ir + hr) * hnew) + z * h
            outputs.append(h)
        return np.stack(outputs, 1)

    H = X @ w("bottleneck_in.weight").T + w("bottleneck_in.bias")
    states = [np.zeros((len(X), block.d1 // 2))] * 2
    branches = []
    for n in range(block.num_branches):
        ahead = gru(f"branches.{n}.ahead", H, states[0])
        back = gru(f"branches.{n}.back", H[:, ::-1], states[1])
        states = [ahead[:, -1], back[:, -1]]
        branches.append(np.concatenate([ahead, back[:, ::-1]], 2))
    F = np.stack(branches, 1)
    z = np.tanh((F.mean((1, 2)) + F.max((1, 2))) @ w("squeeze.weight").T + w("squeeze.bias"))
    heads = []
    for n in range(block.num_branches):
        head = z @ w(f"heads.{n}.weight").T + w(f"heads.{n}.bias")
        scale = w(f"norms.{n}.weight") / np.sqrt(w(f"norms.{n}.running_var") + 1e-6)
        heads.append(sigmoid((head - w(f"norms.{n}.running_mean")) * scale + w(f"norms.{n}.bias")))
    powers = np.exp(np.stack(heads, 1))
    V = (powers / powers.sum())[:, :, None] * F
    return V.sum(1) @ w("bottleneck_out.weight").T + w("bottleneck_out.bias")


def test_compatible_mode_is_the_released_arithmetic() -> None:
    torch.manual_seed(1)
    block = SelectiveFeatureAttention(6, 8, 5, 3, stack="state", normalise="reference").double().eval()
    X, mask = torch.randn(4, 7, 6, dtype=torch.double), torch.ones(4, 7, dtype=torch.bool)
    with torch.no_grad():
        assert float((block(X, mask) - torch.from_numpy(reference_sfa(block, X.numpy()))).abs().max()) < 1e-7


def test_one_branch_is_the_bottlenecked_recurrence() -> None:
    X, mask = draw()
    block = SelectiveFeatureAttention(6, 8, 4, 1).eval()
    U, v = block.attend(X, mask)
    assert bool((v == 1).all())
    start = block.bottleneck_in(X) * mask[:, :, None]
    branch = block.branches[0]
    assert isinstance(branch, BiRecurrent)
    torch.testing.assert_close(U, block.bottleneck_out(branch(start, mask)) * mask[:, :, None])


def test_recurrent_halves_are_one_bidirectional_module() -> None:
    ours = BiRecurrent(6, 4)
    theirs = nn.GRU(6, 4, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for name, value in ours.ahead.named_parameters():
            getattr(theirs, name).copy_(value)
        for name, value in ours.back.named_parameters():
            getattr(theirs, f"{name}_reverse").copy_(value)
    X, mask = draw()
    packed = nn.utils.rnn.pack_padded_sequence(X, mask.sum(1), batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    torch.testing.assert_close(ours(X, mask), expected)


def test_stacked_branches_are_a_deep_gru() -> None:
    block = SelectiveFeatureAttention(6, 8, 4, 3).eval()
    deep = nn.GRU(8, 4, num_layers=3, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for n, branch in enumerate(block.branches):
            assert isinstance(branch, BiRecurrent)
            for half, end in ((branch.ahead, ""), (branch.back, "_reverse")):
                for name, value in half.named_parameters():
                    getattr(deep, name.replace("l0", f"l{n}") + end).copy_(value)
    X, mask = torch.randn(3, 7, 6), torch.ones(3, 7, dtype=torch.bool)
    torch.testing.assert_close(block.split(X, mask)[:, -1], deep(block.bottleneck_in(X))[0])


# The released arithmetic, a control, is not mask-aware.
@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in ("none", "reference")])
def test_padding_and_batch_change_nothing(name: str) -> None:
    block = small_blocks()[name]
    X, mask = draw(dim=32)
    padded = torch.cat([X, torch.randn(5, 4, 32)], 1)
    longer = torch.cat([mask, torch.zeros(5, 4, dtype=torch.bool)], 1)
    with torch.no_grad():
        U, V = block(X, mask), block(padded, longer)
        alone = torch.cat([block(X[i : i + 1], mask[i : i + 1]) for i in range(5)])
    assert float((V[:, :7] - U).abs().max()) < 1e-5
    assert float(V[~longer].abs().max()) == 0
    assert float((alone - U).abs().max()) < 1e-5


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_a_single_text_can_be_trained_on(norm: Any) -> None:
    X, mask = draw(batch=1)
    for block in (FeatureAttention(6, 4, norm=norm), SelectiveFeatureAttention(6, 8, 4, norm=norm)):
        assert bool(block.train()(X, mask).isfinite().all())


def test_gradients_are_those_of_finite_differences() -> None:
    X, mask = draw(batch=3, dim=3, dtype=torch.double)
    X.requires_grad_()
    fa = FeatureAttention(3, 2).double()
    sfa = SelectiveFeatureAttention(3, 4, 2, 2, dropout=0.0).double()
    assert torch.autograd.gradcheck(lambda x: fa(x, mask), (X,))
    assert torch.autograd.gradcheck(lambda x: sfa(x, mask), (X,))
    assert torch.autograd.gradcheck(lambda x: pool(x, mask), (X,))


def test_the_gate_is_not_detached() -> None:
    """Through e every feature of U depends on every feature of X; without it the Jacobian would be diagonal."""
    block = FeatureAttention(3, 2, norm="none").double()
    mask = torch.ones(1, 2, dtype=torch.bool)
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x, mask).sum(1), torch.randn(1, 2, 3).double())
    assert int((jacobian[0, :, 0, 0].abs() > 1e-9).sum()) == 9


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in ("none", "equal")])
def test_every_parameter_has_a_gradient_and_moves(name: str) -> None:
    block = small_blocks()[name].train()
    before = copy.deepcopy(dict(block.named_parameters()))
    optimiser = torch.optim.Adam(block.parameters(), lr=0.01)
    for step in range(20):
        torch.manual_seed(step)
        X, mask = draw(dim=32)
        optimiser.zero_grad()
        (block(X + torch.randn_like(X), mask) * torch.randn_like(X)).sum().backward()
        optimiser.step()
    moved = {key: float((value - before[key]).detach().abs().max()) for key, value in block.named_parameters()}
    assert min(moved.values()) > 1e-5, moved


def test_pooling_is_the_masked_mean_and_maximum() -> None:
    X, mask = draw()
    expected = torch.cat([masked_mean(X, mask), masked_max(X, mask)], 1)
    torch.testing.assert_close(pool(X, mask), expected)
    torch.testing.assert_close(pool(X.clone().requires_grad_(), mask).detach(), expected)
    torch.testing.assert_close(masked_mean(X, mask)[1], X[1, :3].mean(0))
    torch.testing.assert_close(masked_max(X, mask)[1], X[1, :3].amax(0))


def test_reversal_is_its_own_inverse() -> None:
    X, mask = draw()
    turned = reverse_by_length(X, mask)
    torch.testing.assert_close(turned[1, :3], X[1, :3].flip(0), rtol=0, atol=0)
    torch.testing.assert_close(reverse_by_length(turned, mask), X, rtol=0, atol=0)


def test_dropout_keeps_the_mean_and_its_share() -> None:
    layer = Dropout(0.3).train()
    dropped = layer(torch.ones(64, 50, 100))
    assert float((dropped == 0).float().mean()) == pytest.approx(77 / 256, abs=0.003)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.005)
    whole = Dropout(0.3, whole_text=True).train()(torch.ones(4, 50, 10))
    assert bool((whole == whole[:, :1]).all())


def test_refusals_and_rounding() -> None:
    assert SelectiveFeatureAttention(6, 7, 4).d1 == 8
    with pytest.raises(UserError, match="at least 1"):
        SelectiveFeatureAttention(6, 8, 4, 0)
    with pytest.raises(UserError, match="at least 1"):
        FeatureAttention(6, 0)
    with pytest.raises(UserError, match="no state"):
        SelectiveFeatureAttention(6, 8, 4, cell="conv", stack="state")
