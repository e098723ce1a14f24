"""Running a range of a model's layers over new tokens, with one key-value cache whose length is only a number.

Rejected tokens are not removed from the cache: the next ones are written over them. `FusedRange` is for what
`supports_steps` covers; `ModelRange` goes through any other model's own forward, layers outside the range stepped over.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from polyloom.core.errors import UserError
from polyloom.generation.cache import GrowingLayer, cache_keyword
from polyloom.generation.fused_range import FusedRange, Place, as_rows
from polyloom.generation.steps import supports_steps
from polyloom.models.exits import ExitParts, exit_parts, hidden_state, replaced_forwards

CHECK_TOKENS = 6
TOLERANCE = 1e-4


@runtime_checkable
class LayerRange(Protocol):
    """A model as a range of layers."""

    device: torch.device
    num_layers: int
    vocab_size: int
    takes_rows: bool
    num_positions: int

    def reserve(self, num_rows: int, num_positions: int) -> None:
        """Empty the cache and make room."""

    def place(self, tokens: Tensor | Sequence[int], start: int | Tensor) -> Place:
        """Say where tokens [rows, T], or those of one row, stand: from position `start` on, or one per row [rows]."""

    def embed(self, place: Place) -> Tensor:
        """Return x_0 [rows, T, dim]."""

    def run(self, x: Tensor, place: Place, first: int, last: int, taps: list[Tensor] | None = None) -> Tensor:
        """Run layers first .. last-1 on x, writing keys and values; `taps` takes x after each of them."""

    def logits(self, x: Tensor) -> Tensor:
        """Return g(x), [..., vocab]."""

    def keep_rows(self, rows: Tensor) -> None:
        """Drop the cache's other rows."""


def open_range(model: PreTrainedModel, num_positions: int) -> LayerRange:
    """Return the fastest runner that a model allows, checked against the model's own logits.

    Args:
        model: a causal language model in evaluation mode.
        num_positions: the longest text, prompt and continuation together.

    Raises:
        UserError: layers that cannot be rolled back (a window shorter than the text, recurrent states), an architecture
            whose parts cannot be read, or logits that differ from the model's (the difference is named).
    """
    fused = supports_steps(model)
    runner: LayerRange = FusedRange(model, num_positions) if fused else ModelRange(model, num_positions)
    tokens = torch.arange(1, CHECK_TOKENS + 1, device=model.device)[None] % runner.vocab_size
    with torch.inference_mode():
        runner.reserve(1, CHECK_TOKENS)
        place = runner.place(tokens, 0)
        x = runner.run(runner.embed(place), place, 0, 1)
        own = runner.logits(runner.run(x, place, 1, runner.num_layers))
        theirs = model(input_ids=tokens, use_cache=False).logits
    difference = float((own - theirs).abs().max() / theirs.abs().max().clamp(min=1))
    if not difference <= (TOLERANCE if theirs.dtype == torch.float32 else 2e-2):
        raise UserError(
            f"layer ranges of a model of type {model.config.model_type!r} do not give its own logits "
            f"(largest difference {difference:.2g}).",
            hint="Decode it plainly: polyloom layerskip generate --mode plain.",
        )
    return runner


class _PointedLayer(GrowingLayer):  # type: ignore[no-untyped-call]
    """A cache layer whose length can be set."""

    def seek(self, length: int) -> None:
        if self.buffers is not None:
            self.keys, self.values = self.buffers[0][:, :, :length], self.buffers[1][:, :, :length]


class ModelRange:
    """Any model through its own forward: layers outside the range hand their input on, the first one takes ours."""

    takes_rows = False

    def __init__(self, model: PreTrainedModel, num_positions: int) -> None:
        """Find the model's parts.

        Args:
            model: a causal language model.
            num_positions: the longest text.

        Raises:
            UserError: no readable parts, or caches that cannot be rolled back.
        """
        self.parts: ExitParts = exit_parts(model)
        check_cache(model, num_positions)
        self.model, self.device = model, model.device
        self.num_layers = self.parts.num_layers
        self.num_positions = num_positions
        self.vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
        limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self.last_position = int(limit) - 1 if limit else num_positions
        self.takes_positions = "position_ids" in inspect.signature(self.parts.body.forward).parameters
        self.cache_keyword = str(cache_keyword(self.parts.body))
        self.cache = DynamicCache()
        self.pointed: list[_PointedLayer] = []
        self._range = (0, self.num_layers)
        self._state: Tensor | None = None
        self._taps: list[Tensor] | None = None

    def reserve(self, num_rows: int, num_positions: int) -> None:
        """Empty the cache and make room."""
        if num_rows != 1:
            raise UserError("this architecture is decoded one prompt at a time.")
        self.cache = DynamicCache()
        self.pointed = [_PointedLayer(num_positions) for _ in range(self.num_layers)]
        self.cache.layers = list(self.pointed)

    def place(self, tokens: Tensor | Sequence[int], start: int | Tensor) -> Place:
        """Say where tokens stand."""
        assert isinstance(start, int)
        return Place(as_rows(tokens, self.device), start)

    def embed(self, place: Place) -> Tensor:
        """Return a placeholder: the model's own forward embeds, adds positions and scales."""
        return as_rows(place.tokens, self.device)

    def run(self, x: Tensor, place: Place, first: int, last: int, taps: list[Tensor] | None = None) -> Tensor:
        """Run layers first .. last-1."""
        for layer in self.pointed:
            layer.seek(place.start)
        tokens = as_rows(place.tokens, self.device)
        width = tokens.shape[1]
        positions = torch.arange(place.start, place.start + width, device=x.device).clamp(max=self.last_position)[None]
        self._range, self._taps = (first, last), taps
        self._state = None if first == 0 else x
        given: dict[str, Any] = {self.cache_keyword: self.cache}
        if self.takes_positions:
            given["position_ids"] = positions
        with replaced_forwards(self.parts.layers, self._gate):
            self.parts.body(input_ids=tokens, use_cache=True, **given)
        assert self._state is not None
        return self._state

    def _gate(self, index: int, forward: Any) -> Any:
        first, last = self._range

        def gated(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not first <= index < last:
                return (hidden_states,) if self.parts.pairs else hidden_states
            state = hidden_states if self._state is None else self._state
            output = forward(state, *args, **kwargs)
            self._state = state = hidden_state(output)
            if self._taps is not None:
                self._taps.append(state)
            return output

        return gated

    def logits(self, x: Tensor) -> Tensor:
        """Return g(x)."""
        return self.parts.project(x)

    def keep_rows(self, rows: Tensor) -> None:
        """Do nothing: there is one row."""


def check_cache(model: PreTrainedModel, num_positions: int) -> None:
    """Refuse a model whose cache forgets or mixes what a rejected token left.

    Raises:
        UserError: recurrent or linear-attention layers, or a window shorter than the text; it is named.
    """
    config: Any = model.config.get_text_config(decoder=True)
    values = config.to_dict()
    kinds = set(values.get("layer_types") or ["full_attention"])
    hint = "Use --mode plain; polyloom layerskip exits still reports its exits."
    recurrent = kinds - {"full_attention", "sliding_attention", "attention", "chunked_attention"}
    if recurrent or model._is_stateful:
        what = ", ".join(sorted(recurrent)) or "recurrent"
        raise UserError(f"the model has {what} layers, whose state cannot be rolled back.", hint=hint)
    windowed = values.get("sliding_window") and (kinds != {"full_attention"} or "layer_types" not in values)
    if "chunked_attention" in kinds or (windowed and values["sliding_window"] < num_positions):
        window = values.get("sliding_window") or values.get("attention_chunk_size")
        raise UserError(
            f"the text ({num_positions} positions) is longer than the attention window ({window}), "
            "whose cache forgets what a rejected draft overwrote.",
            hint=hint,
        )
