"""Running a range of a model's layers over new tokens, with one key-value cache whose length is only a number.

Rejected tokens are not removed from the cache: the next ones are written over them. `FusedRange` is for what
`supports_steps` covers; `ModelRange` goes through any other model's own forward, layers outside the range stepped over.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from polyloom.core.errors import UserError
from polyloom.generation.cache import GrowingLayer, cache_keyword
from polyloom.generation.steps import Steps, supports_steps
from polyloom.models.exits import ExitParts, exit_parts, hidden_state, replaced_forwards

CHECK_TOKENS = 6
TOLERANCE = 1e-4
EMPTY = torch.empty(0)


@dataclass(frozen=True)
class Place:
    """Where new tokens stand: `start` is their first position, or one per row where rows differ."""

    tokens: Tensor
    start: int
    rows: Tensor | None
    turn: Tensor = EMPTY
    mask: Tensor | None = None


@runtime_checkable
class LayerRange(Protocol):
    """A model as a range of layers."""

    num_layers: int
    vocab_size: int
    takes_rows: bool
    num_positions: int

    def reserve(self, num_rows: int, num_positions: int) -> None:
        """Empty the cache and make room."""

    def place(self, tokens: Tensor, start: int | Tensor) -> Place:
        """Say where tokens [rows, T] stand: from position `start` on, an int or one per row [rows]."""

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


class FusedRange:
    """Llama and Granite in few operations: packed products, rotary positions as one complex product."""

    takes_rows = True

    def __init__(self, model: PreTrainedModel, num_positions: int) -> None:
        """Pack the weights as they are now.

        Args:
            model: one that `supports_steps`.
            num_positions: positions that will be needed at most.
        """
        self.steps = steps = Steps(model, num_positions)
        self.num_layers = len(steps.layers)
        self.vocab_size = steps.head.shape[0]
        self.num_positions = num_positions
        self.num_turned = steps.num_heads + steps.num_groups
        half = steps.head_dim // 2
        # Pairs (i, i + half) are laid side by side, so that turning is one complex product. Queries and keys are
        # permuted alike, which leaves their products as they were.
        order = torch.arange(steps.head_dim).view(2, half).t().flatten()
        rows = torch.arange(self.num_turned * steps.head_dim).view(self.num_turned, -1)[:, order].flatten()
        values = torch.arange(rows.numel(), steps.layers[0].qkv.shape[0])
        index = torch.cat([rows, values])
        self.qkv = [layer.qkv[index].contiguous() for layer in steps.layers]
        self.qkv_bias = [None if layer.qkv_bias is None else layer.qkv_bias[index] for layer in steps.layers]
        # Steps keeps the sine of the first half negated.
        self.turn = torch.complex(steps.cos[:, :half], steps.sin[:, half:].contiguous()).unsqueeze(1)
        self.causal = torch.ones(0, 0, dtype=torch.bool)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def reserve(self, num_rows: int, num_positions: int) -> None:
        """Empty the cache and make room."""
        steps = self.steps
        if num_positions > self.num_positions:
            raise UserError(f"{num_positions} positions are needed, {self.num_positions} were opened.")
        if self.keys and self.keys[0].shape[0] == num_rows and self.keys[0].shape[2] >= num_positions:
            return
        size = (num_rows, steps.num_groups, num_positions, steps.head_dim)
        self.keys = [steps.embedding.new_zeros(size) for _ in steps.layers]
        self.values = [steps.embedding.new_zeros(size) for _ in steps.layers]
        if num_positions > len(self.causal):
            self.causal = torch.ones(
                num_positions, num_positions, dtype=torch.bool, device=steps.embedding.device
            ).tril()

    def place(self, tokens: Tensor, start: int | Tensor) -> Place:
        """Say where tokens stand."""
        width = tokens.shape[1]
        if isinstance(start, int):
            end = start + width
            return Place(
                tokens, start, None, self.turn[start:end], None if width == 1 else self.causal[start:end, :end]
            )
        positions = start[:, None] + torch.arange(width, device=tokens.device)
        end = int(positions.max()) + 1
        mask = torch.arange(end, device=tokens.device) <= positions[:, :, None]
        return Place(tokens, end - width, positions, self.turn[positions], mask[:, None])

    def embed(self, place: Place) -> Tensor:
        """Return x_0."""
        x = self.steps.embedding[place.tokens]
        multiplier = self.steps.embedding_multiplier
        return x if multiplier == 1 else x * multiplier

    def run(self, x: Tensor, place: Place, first: int, last: int, taps: list[Tensor] | None = None) -> Tensor:
        """Run layers first .. last-1."""
        steps, head_dim = self.steps, self.steps.head_dim
        heads, turned, epsilon, alpha = steps.num_heads, self.num_turned, steps.epsilon, steps.residual_multiplier
        rows, width = x.shape[0], x.shape[1]
        dims = x.shape[-1:]
        start, end = place.start, place.start + width
        indexed = None if place.rows is None else torch.arange(rows, device=x.device)[:, None]
        shared = steps.num_heads != steps.num_groups
        for i in range(first, last):
            layer = steps.layers[i]
            inner = functional.rms_norm(x, dims, layer.norm, epsilon)
            mixed = functional.linear(inner, self.qkv[i], self.qkv_bias[i]).view(rows, width, -1, head_dim)
            pairs = torch.view_as_complex(mixed[:, :, :turned].reshape(rows, width, turned, -1, 2))
            spun = torch.view_as_real(pairs * place.turn).flatten(-2)
            keys, values = self.keys[i], self.values[i]
            if indexed is None:
                keys[:, :, start:end] = spun[:, :, heads:].transpose(1, 2)
                values[:, :, start:end] = mixed[:, :, turned:].transpose(1, 2)
            else:
                keys[indexed, :, place.rows] = spun[:, :, heads:]
                values[indexed, :, place.rows] = mixed[:, :, turned:]
            out = functional.scaled_dot_product_attention(
                spun[:, :, :heads].transpose(1, 2),
                keys[:, :, :end],
                values[:, :, :end],
                attn_mask=place.mask,
                scale=steps.scale,
                enable_gqa=shared,
            )
            out = functional.linear(out.transpose(1, 2).reshape(rows, width, -1), layer.out, layer.out_bias)
            x = torch.add(x, out, alpha=alpha)
            inner = functional.rms_norm(x, dims, layer.mlp_norm, epsilon)
            gate, up = functional.linear(inner, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
            x = torch.add(x, functional.linear(layer.activation(gate) * up, layer.down, layer.down_bias), alpha=alpha)
            if taps is not None:
                taps.append(x)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Return g(x)."""
        steps = self.steps
        logits = functional.linear(functional.rms_norm(x, x.shape[-1:], steps.norm, steps.epsilon), steps.head)
        return logits / steps.logits_scaling if steps.logits_scaling != 1 else logits

    def keep_rows(self, rows: Tensor) -> None:
        """Drop the cache's other rows."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]


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
        self.model = model
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

    def place(self, tokens: Tensor, start: int | Tensor) -> Place:
        """Say where tokens stand."""
        assert isinstance(start, int)
        return Place(tokens, start, None)

    def embed(self, place: Place) -> Tensor:
        """Return a placeholder: the model's own forward embeds, adds positions and scales."""
        return place.tokens

    def run(self, x: Tensor, place: Place, first: int, last: int, taps: list[Tensor] | None = None) -> Tensor:
        """Run layers first .. last-1."""
        for layer in self.pointed:
            layer.seek(place.start)
        width = place.tokens.shape[1]
        positions = torch.arange(place.start, place.start + width, device=x.device).clamp(max=self.last_position)[None]
        self._range, self._taps = (first, last), taps
        self._state = None if first == 0 else x
        given: dict[str, Any] = {self.cache_keyword: self.cache}
        if self.takes_positions:
            given["position_ids"] = positions
        with replaced_forwards(self.parts.layers, self._gate):
            self.parts.body(input_ids=place.tokens, use_cache=True, **given)
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
