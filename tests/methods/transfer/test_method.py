"""Oracles of the mathematics: hand values, invariants, receptive fields, and torch-geometric."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polyloom.methods.transfer.method import (
    PAD_DISTANCE,
    Fusion,
    GraphAttention,
    StructuralProbes,
    SyntaxGraph,
    depth_loss,
    distance_loss,
    masked_softmax,
    mix_states,
    neighbours,
    piece_heads,
    sequence_heads,
    spread_slices,
    symmetric_kl,
    topological_order,
    tree_distances,
)

LOSSES = [2, 3, 0, 6, 6, 3]  # The increase reflects lower credit losses


@st.composite
def trees(draw: st.DrawFn) -> list[int]:
    """Draw heads of a tree with one root, in any order of words."""
    size = draw(st.integers(1, 14))
    order = draw(st.permutations(range(1, size + 1)))
    heads = [0] * size
    for place in range(1, size):
        heads[order[place] - 1] = order[draw(st.integers(0, place - 1))]
    return heads


def test_distances_of_the_worked_sentence():
    distances, depths = tree_distances(LOSSES)
    assert distances.tolist() == [
        [0, 1, 2, 4, 4, 3],
        [1, 0, 1, 3, 3, 2],
        [2, 1, 0, 2, 2, 1],
        [4, 3, 2, 0, 2, 1],
        [4, 3, 2, 2, 0, 1],
        [3, 2, 1, 1, 1, 0],
    ]
    assert depths.tolist() == [2, 1, 0, 2, 2, 1]


def test_pieces_and_special_positions_of_the_worked_sentence():
    pieces = piece_heads([2, 4, 4, 0], [1, 1, 1, 2])
    assert pieces == [2, 4, 4, 0, 4]
    heads = sequence_heads([pieces], [1])
    assert heads == [0, 3, 5, 5, 1, 5, 6]
    assert tree_distances(heads)[1].tolist() == [0, 3, 2, 2, 1, 2, 3]


def test_both_sentences_of_a_pair_hang_on_cls_and_each_separator_on_the_piece_before_it():
    assert sequence_heads([[0, 1], [2, 0]], [1, 1]) == [0, 1, 2, 3, 6, 1, 6]
    # RoBERTa writes two separators between the sentences: both hang on the same piece.
    assert sequence_heads([[0], [0]], [2, 1]) == [0, 1, 2, 2, 1, 5]


@given(trees())
def test_distances_equal_shortest_paths(heads: list[int]):
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(heads)))
    graph.add_edges_from((node, head - 1) for node, head in enumerate(heads) if head)
    distances, depths = tree_distances(heads)
    paths = dict(networkx.all_pairs_shortest_path_length(graph))
    assert distances.tolist() == [[paths[i][j] for j in range(len(heads))] for i in range(len(heads))]
    assert (distances == distances.T).all()
    assert int((distances == 1).sum()) == 2 * (len(heads) - 1)
    assert depths.tolist() == [paths[heads.index(0)][i] for i in range(len(heads))]


@given(trees(), st.data())
def test_a_tree_over_pieces_is_a_tree_and_keeps_the_words_paths(heads: list[int], data: st.DataObject):
    numbers = data.draw(st.lists(st.integers(1, 3), min_size=len(heads), max_size=len(heads)))
    pieces, _ = tree_distances(piece_heads(heads, numbers))
    first = np.concatenate([[0], np.cumsum(numbers)[:-1]]).astype(int)
    assert (pieces[np.ix_(first, first)] == tree_distances(heads)[0]).all()


@pytest.mark.parametrize(("heads", "what"), [([2, 1], "0 roots"), ([0, 0], "2 roots"), ([0, 3, 2], "cycle")])
def test_what_is_no_tree_is_refused(heads: list[int], what: str):
    with pytest.raises(ValueError, match=what):
        topological_order(heads)


def test_words_need_pieces():
    with pytest.raises(ValueError, match="at least one piece"):
        piece_heads([0], [0])


def hand_layer() -> GraphAttention:
    layer = GraphAttention(2, 1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2)[None])
        layer.receiver.copy_(torch.tensor([[[1.0], [0.0]]]))
        layer.sender.copy_(torch.tensor([[[0.0], [1.0]]]))
    return layer


def test_graph_attention_of_a_chain_by_hand():
    nodes = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]])
    chain = torch.tensor([[[0, 1, 2], [1, 0, 1], [2, 1, 0]]])
    expected = torch.tensor([[0.2689, 0.7311], [1.4205, 1.5752], [1.4621, 1.7311]])
    assert torch.allclose(hand_layer()(nodes, neighbours(chain, 1))[0], expected, atol=1e-4)


def random_adjacency(size: int) -> torch.Tensor:
    heads = sequence_heads([[0, *range(1, size - 2)]], [1])
    return torch.from_numpy(tree_distances(heads)[0].astype(np.int64))[None]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_graph_attention_equals_torch_geometric():
    from torch_geometric.nn import GATConv

    torch.manual_seed(0)
    layer = GraphAttention(12, 4, 6).eval()
    distances = random_adjacency(9)
    adjacency = neighbours(distances, 2)
    peer = GATConv(12, 6, heads=4, concat=True, negative_slope=0.2, add_self_loops=False, bias=False)
    with torch.no_grad():
        peer.lin.weight.copy_(layer.weight.transpose(1, 2).reshape(24, 12))
        peer.att_dst.copy_(layer.receiver[..., 0][None])
        peer.att_src.copy_(layer.sender[..., 0][None])
    nodes = torch.randn(1, 9, 12)
    receiver, sender = adjacency[0].nonzero(as_tuple=True)
    ours, theirs = layer(nodes, adjacency)[0], peer(nodes[0], torch.stack([sender, receiver]))
    assert (ours - theirs).abs().max() < 1e-5


def test_attention_rows_sum_to_one_and_rows_without_neighbours_are_zero():
    mask = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    weights = masked_softmax(torch.randn(3, 3), mask)
    assert torch.allclose(weights.sum(-1), torch.tensor([1.0, 0.0, 1.0]))
    assert (weights[~mask] == 0).all()


def test_permuted_nodes_give_permuted_outputs():
    torch.manual_seed(1)
    layer, nodes, distances = GraphAttention(8, 2, 4), torch.randn(1, 7, 8), random_adjacency(7)
    order = torch.randperm(7)
    shuffled = layer(nodes[:, order], neighbours(distances[:, order][:, :, order], 1))
    assert torch.allclose(layer(nodes, neighbours(distances, 1))[:, order], shuffled, atol=1e-6)


@pytest.mark.parametrize(("radius", "layers"), [(0, 2), (1, 1), (1, 3), (2, 2)])
def test_the_receptive_field_is_layers_times_radius(radius: int, layers: int):
    torch.manual_seed(2)
    graph = SyntaxGraph(8, num_layers=layers, num_heads=2, head_width=4, radius=radius, dropout=0.0).double()
    distances = random_adjacency(10)
    nodes = torch.randn(1, 10, 8, dtype=torch.float64, requires_grad=True)
    tags = torch.ones(1, 10, dtype=torch.long)
    for target in range(10):
        g = graph(nodes, distances, tags, tags)[0, target]
        (gradient,) = torch.autograd.grad(g @ torch.randn_like(g), nodes)
        reached = gradient[0].abs().sum(-1) > 0
        assert reached.tolist() == (distances[0, target] <= radius * layers).tolist()


def test_a_radius_beyond_the_tree_is_full_attention():
    torch.manual_seed(3)
    layer, nodes, distances = GraphAttention(8, 2, 4), torch.randn(1, 6, 8), random_adjacency(6)
    everything = torch.ones(1, 6, 6, dtype=torch.bool)
    assert torch.equal(layer(nodes, neighbours(distances, int(distances.max()))), layer(nodes, everything))


def test_the_embeddings_that_come_in_are_not_written_to():
    graph = SyntaxGraph(8, num_layers=1, num_heads=1, head_width=4, num_upos=21, num_deprels=42)
    nodes, tags = torch.randn(1, 5, 8), torch.ones(1, 5, dtype=torch.long)
    before = nodes.clone()
    graph(nodes, random_adjacency(5), tags, tags)
    assert torch.equal(nodes, before)


def test_slices_are_spread_over_the_heads():
    slices = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])  # S = 2 slices of width 2
    assert spread_slices(slices, 4, 2).tolist() == [[[1, 2, 1, 2, 3, 4, 3, 4]]]
    assert spread_slices(slices, 4, 2, "first").tolist() == [[[1, 2, 3, 4, 0, 0, 0, 0]]]


def test_zero_fusion_adds_nothing():
    key, value = Fusion(6, 1, 4, 3, zero=True)(torch.randn(2, 5, 6))
    assert not key.any()
    assert not value.any()


def test_a_constant_graph_leaves_the_attention_as_it_is():
    """A key shift that is the same at all positions cancels in the softmax: only the values change the output."""
    torch.manual_seed(4)
    query, key, value = torch.randn(3, 1, 2, 5, 4)
    shift = torch.randn(4)
    plain = nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(nn.functional.scaled_dot_product_attention(query, key + shift, value), plain, atol=1e-6)
    both = nn.functional.scaled_dot_product_attention(query, key + shift, value + shift)
    assert torch.allclose(both, plain + shift, atol=1e-5)


def test_structural_losses_by_hand():
    distances = torch.tensor([[[0, 1], [1, 0]]])
    transformed = torch.tensor([[[0.0], [3.0**0.5]]])
    assert distance_loss(transformed, distances).item() == pytest.approx(1.0, abs=1e-6)
    assert depth_loss(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[0, 1]])).item() == pytest.approx(2.0)
    perfect = torch.tensor([[[0.0], [1.0]]])
    assert distance_loss(perfect, distances).item() == 0
    assert depth_loss(perfect, torch.tensor([[0, 1]])).item() == 0


def test_structural_losses_ignore_padding_and_rotations():
    torch.manual_seed(5)
    transformed, distances = torch.randn(1, 6, 4), random_adjacency(6)
    depths = distances[:, 0]
    padded = nn.functional.pad(transformed, (0, 0, 0, 3), value=7.0)
    padded_distances = nn.functional.pad(distances, (0, 3, 0, 3), value=PAD_DISTANCE)
    padded_depths = nn.functional.pad(depths, (0, 3), value=PAD_DISTANCE)
    assert torch.allclose(distance_loss(padded, padded_distances), distance_loss(transformed, distances))
    assert torch.allclose(depth_loss(padded, padded_depths), depth_loss(transformed, depths))
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    assert torch.allclose(distance_loss(transformed @ rotation, distances), distance_loss(transformed, distances))


def test_probes_begin_in_their_range():
    probes = StructuralProbes(256, 64)
    assert probes.distance.abs().max() <= 0.05 < 2 * probes.depth.abs().max()


def test_symmetric_kl_is_zero_at_equality_and_symmetric():
    p, q = torch.randn(2, 3, 5)
    assert torch.allclose(symmetric_kl(p, q), symmetric_kl(q, p))
    assert symmetric_kl(p, p + 1.0).abs().max() < 1e-6
    first, second = torch.tensor([[0.0, 0.0]]), torch.log(torch.tensor([[0.25, 0.75]]))
    expected = (0.5 - 0.25) * np.log(0.5 / 0.25) + (0.5 - 0.75) * np.log(0.5 / 0.75)
    assert symmetric_kl(first, second).item() == pytest.approx(expected, abs=1e-6)


def test_mixed_states_by_hand():
    target, source = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0], [9.0, 9.0], [0.0, 4.0]]])
    mask = torch.tensor([[1, 0, 1]])
    assert mix_states(target, source, mask, 1.0).tolist() == target.tolist()
    # Both sources are orthogonal to the target: their mean is taken, and the pad is not.
    assert mix_states(target, source, mask, 0.25).tolist() == [[[0.25, 2.25]]]
