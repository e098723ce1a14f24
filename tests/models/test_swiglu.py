"""Oracles of the exact SwiGLU forms: bits of plain autograd, saved units, double backward, and what is refused."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyloom.core.errors import UserError
from polyloom.models.patching import patch_mlp, unpatch_mlp
from polyloom.models.swiglu import (
    GEGLU,
    Bilinear,
    GatedMLP,
    ReGLU,
    SwiGLU,
    fair_hidden_size,
    saved_bytes,
    saved_units,
    split_gate_up,
    swiglu_down,
    swiglu_product,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MODES = ["A", "B"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def plain_product(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def plain_down(gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(F.silu(gate) * up, weight, bias)


def results(function: Callable[..., Tensor], *inputs: Tensor | None) -> list[Tensor]:
    """The output, and the gradients of a loss in every input that requires one."""
    leaves = [None if x is None else x.detach().requires_grad_(x.requires_grad) for x in inputs]
    y = function(*leaves)
    loss = (y.float() * torch.linspace(-1, 1, max(y.shape[-1], 1))[: y.shape[-1]]).square().sum()
    return [y.detach(), *torch.autograd.grad(loss, [x for x in leaves if x is not None and x.requires_grad])]


def assert_same_bits(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> Tensor:
    return torch.randn(*shape, dtype=torch.float32).to(dtype).requires_grad_(grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 24), (24,), (2, 3, 24), (2, 3, 5, 24), (0, 24)])
def test_both_forms_have_the_bits_of_plain(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    gate, up = drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype)
    weight, bias = drawn(16, 24, dtype=dtype), drawn(16, dtype=dtype)
    assert_same_bits(results(swiglu_product, gate, up), results(plain_product, gate, up))
    assert_same_bits(results(swiglu_down, gate, up, weight), results(plain_down, gate, up, weight))
    assert_same_bits(results(swiglu_down, gate, up, weight, bias), results(plain_down, gate, up, weight, bias))


@given(rows=st.integers(0, 5), ffn=st.integers(1, 9), hidden=st.integers(1, 7), grads=st.tuples(*[st.booleans()] * 4))
@settings(max_examples=60)
def test_any_subset_of_gradients_has_the_bits_of_plain(
    rows: int, ffn: int, hidden: int, grads: tuple[bool, bool, bool, bool]
) -> None:
    if not any(grads):
        grads = (True, *grads[1:])
    shapes = [(rows, ffn), (rows, ffn), (hidden, ffn), (hidden,)]
    inputs = [drawn(*shape, grad=grad) for shape, grad in zip(shapes, grads, strict=True)]
    assert_same_bits(results(swiglu_down, *inputs), results(plain_down, *inputs))
    if any(grads[:2]):
        assert_same_bits(results(swiglu_product, *inputs[:2]), results(plain_product, *inputs[:2]))


def test_strided_inputs_have_the_values_of_plain() -> None:
    gate = torch.randn(24, 9).t().requires_grad_()
    up = torch.randn(9, 48)[:, ::2].requires_grad_()
    weight = torch.randn(24, 16).t().requires_grad_()
    assert not gate.is_contiguous()
    assert_same_bits(results(swiglu_product, gate, up), results(plain_product, gate, up))
    for ours, plain in zip(results(swiglu_down, gate, up, weight), results(plain_down, gate, up, weight), strict=True):
        torch.testing.assert_close(ours, plain)


def test_mixed_dtypes_have_the_bits_and_dtypes_of_plain() -> None:
    gate, up = drawn(9, 24, dtype=torch.bfloat16), drawn(9, 24)
    assert_same_bits(results(swiglu_product, gate, up), results(plain_product, gate, up))
    assert_same_bits(results(swiglu_product, up, gate), results(plain_product, up, gate))


def test_gradcheck_and_gradgradcheck() -> None:
    gate, up, weight, bias = (drawn(*s, dtype=torch.float64) for s in ((2, 3, 4), (2, 3, 4), (5, 4), (5,)))
    assert torch.autograd.gradcheck(swiglu_product, (gate, up))
    assert torch.autograd.gradgradcheck(swiglu_product, (gate, up))
    assert torch.autograd.gradcheck(swiglu_down, (gate, up, weight, bias))
    assert torch.autograd.gradgradcheck(swiglu_down, (gate, up, weight, bias))


def test_gradient_penalty_has_the_values_of_plain() -> None:
    def penalty(function: Callable[..., Tensor]) -> Tensor:
        gate, up = (x.clone().requires_grad_() for x in pair)
        grads = torch.autograd.grad(function(gate, up).square().sum(), (gate, up), create_graph=True)
        (outer,) = torch.autograd.grad(sum((g.square().sum() for g in grads), torch.zeros(())), gate)
        return outer

    pair = torch.randn(2, 9, 24)
    torch.testing.assert_close(penalty(swiglu_product), penalty(plain_product))


@pytest.mark.parametrize("mode", MODES)
def test_second_backward_through_a_kept_graph_is_right(mode: str) -> None:
    block = SwiGLU(8, 24)
    patch_mlp(block, mode)
    x = drawn(5, 8)
    y = block(x).square().sum()
    first = torch.autograd.grad(y, [x, *block.parameters()], retain_graph=True)
    second = torch.autograd.grad(y, [x, *block.parameters()])
    assert_same_bits(list(first), list(second))


def test_backward_leaves_its_inputs_and_the_incoming_gradient_alone() -> None:
    gate, up, weight = drawn(5, 24), drawn(5, 24), drawn(8, 24)
    incoming = torch.randn(5, 24), torch.randn(5, 8)
    before = [x.detach().clone() for x in (gate, up, weight, *incoming)]
    torch.autograd.grad(swiglu_product(gate, up), (gate, up), incoming[0])
    torch.autograd.grad(swiglu_down(gate, up, weight), (gate, up, weight), incoming[1])
    assert_same_bits([x.detach() for x in (gate, up, weight, *incoming)], before)


def test_saved_tensor_that_was_written_to_is_noticed() -> None:
    gate, up = drawn(5, 24), drawn(5, 24)
    h = swiglu_product(gate * 1, held := up * 1)
    with torch.no_grad():
        held.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_saved_units_are_four_three_two(dtype: torch.dtype, bias: bool) -> None:
    block = SwiGLU(32, 88, bias=bias, dtype=dtype)
    x = drawn(3, 10, 32, dtype=dtype)
    units = [saved_units(block, x, 88)]
    for mode in MODES:
        patch_mlp(block, mode)
        units.append(saved_units(block, x, 88))
    assert units == [4.0, 3.0, 2.0]


def test_saved_bytes_counts_a_storage_once_and_leaves_out_what_is_known() -> None:
    x = torch.ones(100, requires_grad=True)
    assert saved_bytes(lambda: x * x) == 400
    assert saved_bytes(lambda: x * x, [x]) == 0
    assert saved_bytes(lambda: x * torch.sigmoid(x)) == 800


@pytest.mark.parametrize("mode", MODES)
def test_autocast_has_the_bits_of_plain(mode: str) -> None:
    block, x = SwiGLU(32, 88, bias=True), drawn(9, 32)

    def step() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            y = block(x)
        return [y.detach(), *torch.autograd.grad(y.float().square().sum(), [x, *block.parameters()])]

    plain = step()
    patch_mlp(block, mode)
    assert plain[0].dtype == torch.bfloat16
    assert_same_bits(step(), plain)


def test_form_b_keeps_the_autocast_state_of_its_forward_pass() -> None:
    gate, up, weight = drawn(5, 24), drawn(5, 24), drawn(8, 24)
    wanted = torch.autograd.grad(swiglu_down(gate, up, weight).square().sum(), (gate, up, weight))
    loss = swiglu_down(gate, up, weight).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(loss, (gate, up, weight))
    assert_same_bits(list(found), list(wanted))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile_traces_the_forms_whole(mode: str) -> None:
    block, x = SwiGLU(16, 40), drawn(5, 16)
    patch_mlp(block, mode)
    eager = block(x)
    wanted = torch.autograd.grad(eager.square().sum(), [x, *block.parameters()])
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)(x)
    found = torch.autograd.grad(compiled.square().sum(), [x, *block.parameters()])
    assert torch.equal(compiled, eager)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_checkpoint_around_a_patched_block(mode: str) -> None:
    block, x = SwiGLU(16, 40), drawn(5, 16)
    wanted = results(block, x)
    patch_mlp(block, mode)
    assert_same_bits(results(lambda x: torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False), x), wanted)


def test_gated_blocks_by_their_formula() -> None:
    x = torch.randn(5, 16)
    for kind, gate in ((SwiGLU, F.silu), (GEGLU, F.gelu), (ReGLU, F.relu), (Bilinear, lambda g: g)):
        block: GatedMLP = kind(16, 40)
        wanted = (gate(x @ block.gate_proj.weight.T) * (x @ block.up_proj.weight.T)) @ block.down_proj.weight.T
        torch.testing.assert_close(block(x), wanted)


@pytest.mark.parametrize(
    ("ungated", "multiple", "wanted"), [(3072, 1, 2048), (4 * 8192, 64, 21824), (4 * 256, 64, 640), (16, 64, 64)]
)
def test_fair_hidden_size(ungated: int, multiple: int, wanted: int) -> None:
    assert fair_hidden_size(ungated, multiple) == wanted


@given(st.integers(2, 100_000), st.integers(1, 256))
def test_fair_hidden_size_never_has_more_parameters(ungated: int, multiple: int) -> None:
    size = fair_hidden_size(ungated, multiple)
    assert size % multiple == 0
    assert 3 * size <= 2 * ungated or size == multiple
    assert 3 * (size + multiple) > 2 * ungated


def test_unequal_shapes_and_integers_are_refused() -> None:
    with pytest.raises(UserError, match=r"gate has shape \[2, 4\] and up \[4\]"):
        swiglu_product(torch.ones(2, 4), torch.ones(4))
    with pytest.raises(UserError, match="integer"):
        swiglu_product(torch.ones(2, dtype=torch.long), torch.ones(2, dtype=torch.long))
    with pytest.raises(UserError, match="columns must be gate's 4"):
        swiglu_down(torch.ones(2, 4), torch.ones(2, 4), torch.ones(3, 5))
    with pytest.raises(UserError, match="even last dimension; this one has 7"):
        split_gate_up(torch.ones(2, 7))


@pytest.fixture(scope="module")
def mesh():  # type: ignore[no-untyped-def]
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distribution")
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_dtensors_work_shard_by_shard_in_form_a(mesh) -> None:  # type: ignore[no-untyped-def]
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    gate, up = torch.randn(6, 8), torch.randn(6, 8)
    for placement in (Shard(0), Shard(1), Replicate()):
        sharded = [distribute_tensor(x, mesh, [placement]).requires_grad_() for x in (gate, up)]
        h = swiglu_product(*sharded)
        assert isinstance(h, DTensor)
        assert h.placements == (placement,)
        found = torch.autograd.grad(h.full_tensor().square().sum(), sharded)
        wanted = results(lambda g, u: plain_product(g, u) * 1, gate.requires_grad_(), up.requires_grad_())
        assert torch.equal(h.full_tensor().detach(), wanted[0])
        assert all(isinstance(g, DTensor) and g.shape == (6, 8) for g in found)
    with pytest.raises(UserError, match="Shard both alike"):
        swiglu_product(distribute_tensor(gate, mesh, [Shard(0)]), distribute_tensor(up, mesh, [Shard(1)]))
    with pytest.raises(UserError, match="and the other is not"):
        swiglu_product(distribute_tensor(gate, mesh, [Shard(0)]), up)
    partial = DTensor.from_local(gate, mesh, [Partial()])
    with pytest.raises(UserError, match="partial sums"):
        swiglu_product(partial, partial)


def test_form_b_refuses_sharded_weights_unless_rowwise_is_declared(mesh) -> None:  # type: ignore[no-untyped-def]
    from torch.distributed.tensor import Shard, distribute_tensor

    gate, up, weight = torch.randn(6, 8), torch.randn(6, 8), torch.randn(4, 8)
    sharded = [distribute_tensor(x, mesh, [Shard(1)]).requires_grad_() for x in (gate, up, weight)]
    with pytest.raises(UserError, match=r"it is sharded\. Use form A"):
        swiglu_down(*sharded)
    y = swiglu_down(*sharded, rowwise=True)
    torch.testing.assert_close(y.full_tensor(), plain_down(gate, up, weight))
    (dy,) = torch.autograd.grad(y.full_tensor().square().sum(), sharded[2])
    weight.requires_grad_()
    (wanted,) = torch.autograd.grad(plain_down(gate, up, weight).square().sum(), weight)
    torch.testing.assert_close(dy.full_tensor(), wanted)
    with pytest.raises(UserError, match="sharded over its columns"):
        swiglu_down(sharded[0], sharded[1], distribute_tensor(weight.detach(), mesh, [Shard(0)]), rowwise=True)


def test_patched_block_survives_deepcopy_and_state_dict() -> None:
    block = SwiGLU(8, 24)
    keys = list(block.state_dict())
    patch_mlp(block, "B")
    twin = copy.deepcopy(block)
    assert list(block.state_dict()) == keys
    assert unpatch_mlp(twin) == [""]
    assert type(twin) is SwiGLU
    assert isinstance(block, SwiGLU)
    assert type(block) is not SwiGLU
