"""A range of layers of Llama and Granite models in few operations.

A tiny model spends its time in calls, not in arithmetic, so that each layer is a straight line: weights are transposed
once, query and key and value are one product and one
rotation, and a position's key and value are one write into a cache that all layers share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from polyloom.core.errors import UserError
from polyloom.generation.steps import PackedLayer, Steps, normed

EMPTY = torch.empty(0)


class Place(NamedTuple):
    """Where new tokens stand: `start` is their first position; `rows` holds all positions where rows differ."""

    tokens: Tensor | Sequence[int]
    start: int
    rows: Tensor | None = None
    turn: Tensor = EMPTY
    mask: Tensor | None = None


def as_rows(tokens: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """Return tokens [rows, T] on a device; a list is one row."""
    return tokens.to(device) if isinstance(tokens, Tensor) else torch.tensor([list(tokens)], device=device)


class _Layer(NamedTuple):
    """One layer's weights, transposed to [in, out]."""

    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    activation: Callable[[Tensor], Tensor]


class FusedRange:
    """Llama and Granite in few operations."""

    takes_rows = True

    def __init__(self, model: PreTrainedModel, num_positions: int) -> None:
        """Pack the weights as they are now; they are copied.

        Args:
            model: one that `supports_steps`.
            num_positions: positions that will be needed at most.
        """
        steps = Steps(model, num_positions)
        self.num_layers, self.num_positions = len(steps.layers), num_positions
        self.vocab_size = steps.head.shape[0]
        self.num_heads, self.num_groups, self.head_dim = steps.num_heads, steps.num_groups, steps.head_dim
        self.scale, self.residual_multiplier = steps.scale, steps.residual_multiplier
        self.embedding_multiplier, self.logits_scaling = steps.embedding_multiplier, steps.logits_scaling
        self.embedding = steps.embedding
        self.device = steps.embedding.device
        self.dim = steps.embedding.shape[1]
        self.root = steps.root
        order = self._order()
        self.layers = [_packed(layer, order) for layer in steps.layers]
        self.head = (steps.head * steps.norm).t().contiguous()
        half = self.head_dim // 2
        # Steps keeps the sine of the first half negated. Values are not turned: their factor is one.
        turn = torch.complex(steps.cos[:, :half], steps.sin[:, half:].contiguous())[:, None]
        turned = turn.expand(-1, self.num_heads + self.num_groups, -1)
        kept = torch.ones_like(turn).expand(-1, self.num_groups, -1)
        self.turn = torch.cat([turned, kept], dim=1)
        self.causal = EMPTY
        self.cache = EMPTY

    def _order(self) -> Tensor:
        """Return the order of the packed product's outputs: the pairs (i, i + half) that turn stand side by side.

        Queries and keys are permuted alike, which leaves their products as they were.
        """
        order = torch.arange(self.head_dim).view(2, -1).t().flatten()
        num_turned = (self.num_heads + self.num_groups) * self.head_dim
        rows = torch.arange(num_turned).view(-1, self.head_dim)[:, order].flatten()
        return torch.cat([rows, torch.arange(num_turned, num_turned + self.num_groups * self.head_dim)])

    def reserve(self, num_rows: int, num_positions: int) -> None:
        """Empty the cache and make room."""
        if num_positions > self.num_positions:
            raise UserError(f"{num_positions} positions are needed, {self.num_positions} were opened.")
        if self.cache.dim() == 5 and self.cache.shape[1] == num_rows and self.cache.shape[2] >= num_positions:
            return
        size = (self.num_layers, num_rows, num_positions, 2 * self.num_groups, self.head_dim)
        self.cache = self.embedding.new_zeros(size)
        if num_positions > len(self.causal):
            empty = self.embedding.new_full((num_positions, num_positions), float("-inf"))
            self.causal = empty.triu(1)

    def place(self, tokens: Tensor | Sequence[int], start: int | Tensor) -> Place:
        """Say where tokens stand."""
        if isinstance(start, int):
            width = tokens.shape[1] if isinstance(tokens, Tensor) else len(tokens)
            end = start + width
            return Place(
                tokens, start, None, self.turn[start:end], None if width == 1 else self.causal[start:end, :end]
            )
        tokens = as_rows(tokens, self.device)
        positions = start[:, None] + torch.arange(tokens.shape[1], device=self.device)
        end = int(positions.max()) + 1
        mask = self.causal[positions, :end]
        return Place(tokens, end - tokens.shape[1], positions, self.turn[positions].flatten(0, 1), mask[:, None])

    def embed(self, place: Place) -> Tensor:
        """Return x_0."""
        tokens = place.tokens
        if isinstance(tokens, Tensor):
            x = self.embedding[tokens]
        elif len(tokens) == 1:
            x = self.embedding[tokens[0]].view(1, 1, -1)
        else:
            x = self.embedding[torch.tensor(tokens, device=self.device)][None]
        return x if self.embedding_multiplier == 1 else x * self.embedding_multiplier

    def run(self, x: Tensor, place: Place, first: int, last: int, taps: list[Tensor] | None = None) -> Tensor:
        """Run layers first .. last-1."""
        rows, width = x.shape[0], x.shape[1]
        end = place.start + width
        groups = self.num_groups
        # One call each gives the views of all layers.
        cache = self.cache[first:last]
        keys = cache[:, :, :end, :groups].transpose(2, 3).unbind(0)
        values = cache[:, :, :end, groups:].transpose(2, 3).unbind(0)
        written = cache[:, :, place.start : end].unbind(0) if place.rows is None else cache.unbind(0)
        repeated = rows > 1 and place.turn.shape[0] != rows * width
        turn = place.turn.repeat(rows, 1, 1) if repeated else place.turn
        indexed = None if place.rows is None else (torch.arange(rows, device=x.device)[:, None], place.rows)
        x = x.reshape(rows * width, -1)
        for i, layer in enumerate(self.layers[first:last]):
            mixed = self._turned(layer, x, turn).view(rows, width, -1, self.head_dim)
            new = mixed[:, :, self.num_heads :]
            if indexed is None:
                written[i].copy_(new)
            else:
                written[i][indexed] = new
            attended = self._attend(mixed[:, :, : self.num_heads], keys[i], values[i], place.mask)
            x = self._mixed(layer, x, attended.reshape(rows * width, -1))
            if taps is not None:
                taps.append(x.view(rows, width, -1))
        return x.view(rows, width, -1)

    def _turned(self, layer: _Layer, x: Tensor, turn: Tensor) -> Tensor:
        """Return queries, keys and values [tokens, parts, half, 2], turned."""
        mixed = _product(normed(x, self.root), layer.qkv, layer.qkv_bias)
        pairs = torch.view_as_complex(mixed.view(len(x), -1, self.head_dim // 2, 2))
        return torch.view_as_real(pairs * turn)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attend; queries are [rows, width, heads, head_dim], and so is the answer."""
        attend = functional.scaled_dot_product_attention
        rows, width = queries.shape[0], queries.shape[1]
        if width == 1:
            # The queries that share a key head stand as positions beside each other.
            queries = queries.reshape(rows, self.num_groups, -1, self.head_dim)
            return attend(queries, keys, values, attn_mask=mask, scale=self.scale)
        shared = self.num_heads != self.num_groups
        queries = queries.transpose(1, 2)
        return attend(queries, keys, values, attn_mask=mask, scale=self.scale, enable_gqa=shared).transpose(1, 2)

    def _mixed(self, layer: _Layer, x: Tensor, attended: Tensor) -> Tensor:
        """Return x with the attention's and then the feed-forward part's product added."""
        x = self._added(x, attended, layer.out, layer.out_bias)
        gate, up = _product(normed(x, self.root), layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
        return self._added(x, layer.activation(gate).mul_(up), layer.down, layer.down_bias)

    def _added(self, x: Tensor, inner: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return torch.addmm(x, inner, weight, alpha=self.residual_multiplier)
        return torch.add(x, torch.addmm(bias, inner, weight), alpha=self.residual_multiplier)

    def logits(self, x: Tensor) -> Tensor:
        """Return g(x)."""
        logits = torch.mm(normed(x.reshape(-1, self.dim), self.root), self.head).view(*x.shape[:-1], -1)
        return logits / self.logits_scaling if self.logits_scaling != 1 else logits

    def keep_rows(self, rows: Tensor) -> None:
        """Drop the cache's other rows."""
        self.cache = self.cache[:, rows]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def _packed(given: PackedLayer, order: Tensor) -> _Layer:
    silu = isinstance(given.activation, nn.SiLU | SiLUActivation)
    return _Layer(
        qkv=given.qkv[order].t().contiguous(),
        qkv_bias=None if given.qkv_bias is None else given.qkv_bias[order],
        out=given.out.t().contiguous(),
        out_bias=given.out_bias,
        gate_up=given.gate_up.t().contiguous(),
        gate_up_bias=given.gate_up_bias,
        down=given.down.t().contiguous(),
        down_bias=given.down_bias,
        activation=functional.silu if silu else given.activation,
    )
