"""Key-value caches for decoding: grown in place, rows dropped as they finish."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A full-attention layer's keys and values inside a buffer, so that a step writes one position and copies nothing.

    `keys` and `values` are views of the filled part, shape [batch, heads, length, head_dim]; everything else that
    transformers does with a dynamic layer (crop, row selection, mask sizes) works on these views.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new positions and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.buffers is None or end > self.buffers[0].shape[-2]:
            self.capacity = max(self.capacity, end if start == 0 else 2 * end)
            self.buffers = (self._enlarged(self.keys, key_states), self._enlarged(self.values, value_states))
        keys, values = self.buffers
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def _enlarged(self, filled: Tensor | None, new: Tensor) -> Tensor:
        batch, num_heads, _, head_dim = new.shape
        buffer = new.new_empty(batch, num_heads, self.capacity, head_dim)
        if filled is not None and filled.numel():
            buffer[:, :, : filled.shape[-2]] = filled
        return buffer

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices`."""
        if self.buffers is None:
            return
        length = self.get_seq_length()
        self.buffers = (self.buffers[0][indices], self.buffers[1][indices])
        self.keys, self.values = self.buffers[0][:, :, :length], self.buffers[1][:, :, :length]

    def reset(self) -> None:
        """Forget everything."""
        self.buffers = None
        super().reset()


def cache_keyword(module: nn.Module) -> str | None:
    """Return the name by which a module's forward takes its key-value cache, or None where it takes none.

    It is `cache` since transformers 5.24 and `past_key_values` before.
    """
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in parameters), None)


def new_cache(model: PreTrainedModel, capacity: int) -> Cache:
    """Make an empty cache that fits a model.

    Args:
        model: a causal or encoder-decoder model.
        capacity: positions to reserve; a longer text enlarges the cache.

    Returns:
        A cache whose full-attention layers grow in place; sliding, linear and other layers are the library's own.
    """
    if model.config.is_encoder_decoder:
        return EncoderDecoderCache(_growing(model, capacity), DynamicCache(config=model.config))
    return _growing(model, capacity)


def _growing(model: PreTrainedModel, capacity: int) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keep_rows(cache: Cache, rows: Tensor) -> None:
    """Drop every row of `cache` that is not in `rows` (int64 indices)."""
    with torch.inference_mode():
        cache.batch_select_indices(rows)
