"""The mathematics against hand values, gradients and invariants."""

import itertools
import math

import pytest
import torch

from polyloom.methods.docre import method
from polyloom.methods.docre.bench import BenchConfig, dense_bilinear, loop_loss, step_material
from polyloom.methods.docre.inputs import windows
from polyloom.methods.docre.training import loss_of

LOGITS = torch.tensor([[1.0, 2.0, 0.0, -1.0]], dtype=torch.float64)


def labels(*positive: int) -> torch.Tensor:
    row = torch.zeros(1, 4, dtype=torch.float64)
    row[0, list(positive)] = 1
    return row


@pytest.mark.parametrize(("positive", "value"), [((1,), 0.7208676), ((), 1.4401897), ((1, 2), 2.9421399)])
def test_adaptive_threshold_loss_has_its_hand_values(positive: tuple[int, ...], value: float) -> None:
    assert method.adaptive_threshold_loss(LOGITS, labels(*positive)).item() == pytest.approx(value, abs=1e-6)


def test_threshold_loss_ignores_column_zero_does_not_write_and_is_shift_invariant() -> None:
    given = labels(0, 1)
    loss = method.adaptive_threshold_loss(LOGITS, given)
    assert given[0, 0] == 1
    assert loss.item() == pytest.approx(method.adaptive_threshold_loss(LOGITS + 7, labels(1)).item())
    assert method.adaptive_threshold_loss(LOGITS, labels(1, 2, 3)).isfinite()


@pytest.mark.parametrize(("positive", "value"), [((1,), 0.8051167), ((1, 2), 2.7977717)])
def test_adaptive_focal_loss_has_its_hand_values(positive: tuple[int, ...], value: float) -> None:
    assert method.adaptive_focal_loss(LOGITS, labels(*positive)).item() == pytest.approx(value, abs=1e-6)


def test_balanced_softmax_has_its_hand_value() -> None:
    assert method.balanced_softmax_loss(LOGITS, labels(1)).item() == pytest.approx(1.7534515, abs=1e-6)


def test_evidence_loss_has_its_hand_value_and_both_means() -> None:
    s = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    v = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert method.evidence_loss(s, v).item() == pytest.approx(0.3465736, abs=1e-6)
    assert method.evidence_loss(s, v, "reference").item() == pytest.approx(0.3465736 / 2, abs=1e-6)
    assert method.evidence_loss(s[1:], v[1:]).item() == 0


@pytest.mark.parametrize(
    ("logits", "cap", "chosen"),
    [([1, 2, 1.5, 3], 1, [3]), ([1, 1, 0, 0], 4, []), ([1, 2, 2, 2], 1, [1, 2, 3]), ([1, 2, 1.5, 3], 4, [1, 2, 3])],
)
def test_predict_classes_caps_and_is_strict(logits: list[float], cap: int, chosen: list[int]) -> None:
    found = method.predict_classes(torch.tensor([logits], dtype=torch.float32), cap)
    assert found.nonzero()[:, 1].tolist() == chosen


def test_pooling_has_its_hand_values() -> None:
    hidden = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [5.0, 5.0]])
    pooled = method.pool_mentions(hidden, torch.tensor([0, 1]), torch.tensor([0, 0]), 2)
    assert pooled[0].tolist() == pytest.approx([math.log(2), math.log(4)])
    assert pooled[1].tolist() == [0, 0]
    attention = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]] * 2)
    q = method.pair_attention(attention, torch.tensor([0]), torch.tensor([1]))
    assert q.tolist() == [[0, 1, 0]]


def test_losses_pass_gradcheck() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.float64)
    for loss in (method.adaptive_threshold_loss, method.adaptive_focal_loss, method.balanced_softmax_loss):
        assert torch.autograd.gradcheck(lambda logits, f=loss: f(logits, y), (x,))
    s = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda one: method.evidence_loss(one, y), (s,))


def test_group_bilinear_equals_all_outer_products_with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "BLOCK_PAIRS", 3)
    torch.manual_seed(0)
    head = method.PairHead(4, 5, width=8, block=4).double()
    left, right = (torch.randn(7, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ours = method.group_bilinear(left, right, head.bilinear.weight, 4) + head.bilinear.bias
    dense = dense_bilinear(left, right, head)
    assert torch.allclose(ours, dense, atol=1e-12)
    inputs = (left, right, head.bilinear.weight)
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), inputs), torch.autograd.grad(dense.square().sum(), inputs), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-10)


def test_vectorised_step_equals_the_loop() -> None:
    model, batch = step_material(BenchConfig(num_documents=2))
    ours, loop = loss_of(model, batch), loop_loss(model, batch)
    assert ours.item() == pytest.approx(loop.item(), rel=1e-6)
    single = sum(loss_of(model, [one]).item() * len(one.pairs) for one in batch) / sum(len(o.pairs) for o in batch)
    assert ours.item() == pytest.approx(single, rel=1e-5)


def test_fusion_is_set_algebra() -> None:
    a, b, c = (0, "P", 1), (1, "P", 0), (0, "Q", 1)
    original = {a: 2.0, b: -1.0, c: 11.0}
    assert method.fuse(original, {}, 0.0) == {c}
    assert method.fuse(original, original, 100.0) == {a, c}
    assert method.fuse({a: -1.0}, {a: 2.0}, 0.5) == {a}


@pytest.mark.parametrize("count", [5, 10, 11, 20, 21, 97])
def test_windows_cover_everything(count: int) -> None:
    found = windows(count, 10, overlap=3)
    assert {i for a, b in found for i in range(a, b)} == set(range(count))
    assert all(b - a <= 10 for a, b in found)
    assert count <= 20 or all(b - c >= 3 for (_, b), (c, _) in itertools.pairwise(found))
