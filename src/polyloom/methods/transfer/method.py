"""The mathematics of LS-mBERT: trees over word pieces, graph attention, fusion into attention, the structural loss.

The body of the paper (arXiv 2404.16627) numbers few of its steps; names here follow the equation map of the card.
Trees are lists of heads that count from 1, 0 being the root; tensors are batches of padded sequences whose first
position is [CLS], the root of every tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

PAD_DISTANCE = 99_999
NEGATIVE_SLOPE = 0.2
XAVIER_GAIN = 1.414
PROBE_RANGE = 0.05
Fuse = Literal["all", "first"]


# ---- trees


def piece_heads(heads: Sequence[int], num_pieces: Sequence[int]) -> list[int]:
    """Turn a tree over words into a tree over pieces.

    The first piece of a word is its node and hangs on the first piece of the word's head; later pieces hang on the
    first piece of their own word.

    Args:
        heads: head of each word from 1, 0 for a root; several roots are allowed.
        num_pieces: pieces of each word, at least 1.

    Returns:
        Head of each piece from 1, 0 for a root.

    Raises:
        ValueError: a word without a piece, or unequal lengths.
    """
    if len(heads) != len(num_pieces) or any(number < 1 for number in num_pieces):
        raise ValueError(f"{len(heads)} heads and {len(num_pieces)} words of at least one piece each")
    first = np.concatenate([[1], 1 + np.cumsum(num_pieces)]).tolist()
    result = []
    for word, (head, number) in enumerate(zip(heads, num_pieces, strict=True)):
        result.append(first[head - 1] if head else 0)
        result += [first[word]] * (number - 1)
    return result


def sequence_heads(sentences: Sequence[Sequence[int]], separators: Sequence[int]) -> list[int]:
    """Join the piece trees of one or two sentences into the tree of the whole sequence.

    [CLS] is the root, the roots of all sentences hang on it, and separators hang on the last piece before them.

    Args:
        sentences: heads of the pieces of each sentence, from 1, 0 for a root.
        separators: special tokens behind each sentence.

    Returns:
        Head of each position from 1; the first, [CLS], has 0.
    """
    result = [0]
    for heads, number in zip(sentences, separators, strict=True):
        start = len(result)
        result += [head + start if head else 1 for head in heads]
        result += [len(result)] * number
    return result


def topological_order(heads: Sequence[int]) -> list[int]:
    """Return the positions from 0, every head before its dependants.

    Raises:
        ValueError: not one root, or a cycle.
    """
    children: list[list[int]] = [[] for _ in heads]
    for node, head in enumerate(heads):
        if head:
            children[head - 1].append(node)
    order = [node for node, head in enumerate(heads) if not head]
    if len(order) != 1:
        raise ValueError(f"the tree has {len(order)} roots")
    for node in order:
        order += children[node]
    if len(order) != len(heads):
        raise ValueError(f"{len(heads) - len(order)} nodes lie on a cycle")
    return order


def tree_distances(heads: Sequence[int]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Return the path lengths between all nodes and the depths, in one pass over a topological order.

    D[i, j] = D[parent(i), j] + 1 for every j placed before i: O(N^2), no shortest-path search.

    Args:
        heads: head of each node from 1, 0 for the one root.

    Returns:
        D [N, N] and depth [N], the distance to the root.

    Raises:
        ValueError: not a tree.
    """
    order = topological_order(heads)
    distances = np.zeros((len(heads), len(heads)), dtype=np.int16)
    placed = np.asarray(order)
    for number, node in enumerate(order[1:], start=1):
        before = placed[:number]
        distances[node, before] = distances[heads[node] - 1, before] + 1
        distances[before, node] = distances[node, before]
    return distances, distances[order[0]].copy()


# ---- graph attention


def neighbours(distances: Int[Tensor, "batch n n"], radius: int) -> Bool[Tensor, "batch n n"]:
    """Return A_ij = 1 iff D_ij <= delta: every node is its own neighbour, pads have none."""
    return distances <= radius


def masked_softmax(
    scores: Float[Tensor, "*batch n m"], mask: Bool[Tensor, "*batch n m"]
) -> Float[Tensor, "*batch n m"]:
    """Return the softmax over the last dimension where `mask` is true; a row without any is zero."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(-1) * mask


class GraphAttention(nn.Module):
    """One graph attention layer: H heads of width h over the neighbours of each node.

    Z = G W; s_ij = LeakyReLU(Z_i a1 + Z_j a2); alpha = softmax over the neighbours; O_i = sum_j alpha_ij Z_j. No
    non-linearity follows and there is no bias.
    """

    def __init__(self, width: int, num_heads: int, head_width: int, dropout: float = 0.0) -> None:
        """Draw W, a1 and a2 by Xavier's uniform rule with gain 1.414.

        Args:
            width: of the nodes that come in.
            num_heads: H.
            head_width: h; nodes go out with H h values.
            dropout: of the attention weights.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, width, head_width))
        self.receiver = nn.Parameter(torch.empty(num_heads, head_width, 1))
        self.sender = nn.Parameter(torch.empty(num_heads, head_width, 1))
        self.dropout = dropout
        for parameter in (self.weight, self.receiver, self.sender):
            for head in parameter:
                nn.init.xavier_uniform_(head, gain=XAVIER_GAIN)

    def forward(
        self, nodes: Float[Tensor, "batch n width"], adjacency: Bool[Tensor, "batch n n"]
    ) -> Float[Tensor, "batch n out"]:
        """Return the new nodes, all heads beside each other.

        Args:
            nodes: G.
            adjacency: A; row i holds the neighbours that node i gathers from.
        """
        num_heads, width, head_width = self.weight.shape
        joined = self.weight.transpose(0, 1).reshape(width, num_heads * head_width)
        z = (nodes @ joined).view(*nodes.shape[:2], num_heads, head_width).transpose(1, 2)
        scores = functional.leaky_relu(z @ self.receiver + (z @ self.sender).transpose(2, 3), NEGATIVE_SLOPE)
        alpha = masked_softmax(scores, adjacency[:, None].expand_as(scores))
        gathered = functional.dropout(alpha, self.dropout, self.training) @ z
        return gathered.transpose(1, 2).flatten(2)


class SyntaxGraph(nn.Module):
    """The graph encoder: word embeddings plus tag embeddings, L layers of graph attention, LayerNorm.

    G^0 = E + U(upos) [+ R(deprel)]; G^l = dropout(GAT(G^{l-1})); g = LayerNorm(G^L).
    """

    def __init__(
        self,
        width: int,
        *,
        num_layers: int = 4,
        num_heads: int = 4,
        head_width: int = 64,
        radius: int = 1,
        num_upos: int = 0,
        num_deprels: int = 0,
        dropout: float = 0.1,
        eps: float = 1e-12,
    ) -> None:
        """Build the graph encoder.

        Args:
            width: d of the encoder's word embeddings.
            num_layers: L.
            num_heads: H.
            head_width: d divided by the attention heads of the encoder.
            radius: delta, the largest tree distance that a layer looks over; 0 leaves each node alone.
            num_upos: rows of the part-of-speech embedding; 0 leaves it out.
            num_deprels: rows of the relation embedding; 0 leaves it out.
            dropout: of attention weights and of each layer's output.
            eps: of the LayerNorm.
        """
        super().__init__()
        self.radius = radius
        self.dropout = dropout
        self.upos = nn.Embedding(num_upos, width, padding_idx=0) if num_upos else None
        self.deprel = nn.Embedding(num_deprels, width, padding_idx=0) if num_deprels else None
        out = num_heads * head_width
        self.layers = nn.ModuleList(
            GraphAttention(width if layer == 0 else out, num_heads, head_width, dropout) for layer in range(num_layers)
        )
        self.norm = nn.LayerNorm(out, eps=eps)

    def forward(
        self,
        embeddings: Float[Tensor, "batch n width"],
        distances: Int[Tensor, "batch n n"],
        upos: Int[Tensor, "batch n"],
        deprel: Int[Tensor, "batch n"],
    ) -> Float[Tensor, "batch n out"]:
        """Return g; the embeddings that came in are not written to.

        Args:
            embeddings: E, the encoder's word embeddings before positions, segments and norm.
            distances: D, padded with `PAD_DISTANCE`.
            upos: ids of the parts of speech, 0 at pads.
            deprel: ids of the relations, 0 at pads.
        """
        nodes = embeddings
        if self.upos is not None:
            nodes = nodes + self.upos(upos)
        if self.deprel is not None:
            nodes = nodes + self.deprel(deprel)
        adjacency = neighbours(distances, self.radius)
        for layer in self.layers:
            nodes = functional.dropout(layer(nodes, adjacency), self.dropout, self.training)
        normed: Tensor = self.norm(nodes)
        return normed


# ---- fusion


def spread_slices(
    slices: Float[Tensor, "batch n slices_width"], num_heads: int, head_width: int, fuse: Fuse = "all"
) -> Float[Tensor, "batch n heads_width"]:
    """Lay S slices out over the attention heads.

    `all` (LS-mBERT): head j gets slice floor(j S / n_heads). `first` (Syntax-mBERT): the first S heads get one slice
    each, the others nothing.

    Args:
        slices: [batch, n, S h].
        num_heads: key or value heads, a multiple of S.
        head_width: h.
        fuse: which heads are changed.
    """
    parts = slices.view(*slices.shape[:2], -1, head_width)
    num_slices = parts.shape[-2]
    if fuse == "all":
        return parts.repeat_interleave(num_heads // num_slices, dim=-2).flatten(-2)
    return functional.pad(slices, (0, (num_heads - num_slices) * head_width))


class Fusion(nn.Module):
    """What one encoder layer gets from the graph: dK = g Wk + bk and dV = g Wv + bv, spread over the heads."""

    def __init__(
        self, width: int, num_slices: int, num_heads: int, head_width: int, fuse: Fuse = "all", zero: bool = False
    ) -> None:
        """Build the two projections.

        Args:
            width: of g.
            num_slices: S, the syntactic heads.
            num_heads: key and value heads of the layer.
            head_width: of one of them.
            fuse: as in `spread_slices`.
            zero: begin with zeros, so that training starts exactly at the encoder without the graph.
        """
        super().__init__()
        self.shape = (num_heads, head_width, fuse)
        self.key = nn.Linear(width, num_slices * head_width)
        self.value = nn.Linear(width, num_slices * head_width)
        if zero:
            for projection in (self.key, self.value):
                nn.init.zeros_(projection.weight)
                nn.init.zeros_(projection.bias)

    def forward(
        self, g: Float[Tensor, "batch n width"]
    ) -> tuple[Float[Tensor, "batch n heads"], Float[Tensor, "batch n heads"]]:
        """Return dK and dV, which are added to the layer's keys and values."""
        return spread_slices(self.key(g), *self.shape), spread_slices(self.value(g), *self.shape)


# ---- structural loss


def distance_loss(transformed: Float[Tensor, "batch n rank"], distances: Int[Tensor, "batch n n"]) -> Float[Tensor, ""]:
    """Return L_dist = mean over sentences of (1/n^2) sum_ij | ||B (g_i - g_j)||^2 - D_ij |, pads left out.

    Args:
        transformed: B g.
        distances: D, padded with `PAD_DISTANCE`.
    """
    squares = transformed.square().sum(-1)
    predicted = squares[:, :, None] + squares[:, None] - 2 * transformed @ transformed.transpose(1, 2)
    kept = distances < PAD_DISTANCE
    errors = (predicted.clamp_min(0) - distances).abs() * kept
    return (errors.sum((1, 2)) / kept.sum((1, 2)).clamp_min(1)).mean()


def depth_loss(transformed: Float[Tensor, "batch n rank"], depths: Int[Tensor, "batch n"]) -> Float[Tensor, ""]:
    """Return L_depth = mean over sentences of (1/n) sum_i | ||C g_i||^2 - depth_i |, pads left out.

    Args:
        transformed: C g.
        depths: distance of each node to [CLS], padded with `PAD_DISTANCE`.
    """
    kept = depths < PAD_DISTANCE
    errors = (transformed.square().sum(-1) - depths).abs() * kept
    return (errors.sum(1) / kept.sum(1).clamp_min(1)).mean()


class StructuralProbes(nn.Module):
    """The matrices B and C of the structural loss, drawn from U(-0.05, 0.05)."""

    def __init__(self, width: int, rank: int) -> None:
        """Draw both matrices.

        Args:
            width: of g.
            rank: of the space that distances are measured in.
        """
        super().__init__()
        self.distance = nn.Parameter(torch.empty(width, rank).uniform_(-PROBE_RANGE, PROBE_RANGE))
        self.depth = nn.Parameter(torch.empty(width, rank).uniform_(-PROBE_RANGE, PROBE_RANGE))

    def forward(
        self,
        g: Float[Tensor, "batch n width"],
        distances: Int[Tensor, "batch n n"],
        depths: Int[Tensor, "batch n"],
    ) -> Float[Tensor, ""]:
        """Return L_dist + L_depth."""
        return distance_loss(g @ self.distance, distances) + depth_loss(g @ self.depth, depths)


# ---- consistency


def symmetric_kl(
    first: Float[Tensor, "*rows classes"], second: Float[Tensor, "*rows classes"]
) -> Float[Tensor, "*rows"]:
    """Return KL(p || q) + KL(q || p) of the softmax of two sets of logits, a value a row.

    Source: xTune (arXiv 2106.08226), example consistency between a text and its augmentation.
    """
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum(-1)


def mix_states(
    target: Float[Tensor, "batch n width"],
    source: Float[Tensor, "batch m width"],
    source_mask: Int[Tensor, "batch m"],
    ratio: float,
) -> Float[Tensor, "batch n width"]:
    """Return ratio h_T + (1 - ratio) Attention(h_T, h_S, h_S): each state of a translation nears the source's.

    Args:
        target: states of the translation.
        source: states of the text it translates.
        source_mask: 1 where the source has a piece.
        ratio: 1 leaves the translation alone.

    Source: X-Mixup (arXiv 2205.04182), its cross-attention without parameters of its own.
    """
    scores = target @ source.transpose(1, 2) / source.shape[-1] ** 0.5
    weights = masked_softmax(scores, (source_mask > 0)[:, None].expand_as(scores))
    return ratio * target + (1 - ratio) * weights @ source
