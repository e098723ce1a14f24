"""Growing a model without changing its function: wider, with more heads, wider inside, deeper."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polyloom.core.errors import UserError
from polyloom.methods.pretrain.method import Shape, feed_forward
from polyloom.models.device import torch_generator


@dataclass(frozen=True)
class Growth:
    """From one shape to a larger one, and the standard deviation of what is new."""

    old: Shape
    new: Shape
    std: float
    seed: int

    def __post_init__(self) -> None:
        """Refuse a target that is smaller somewhere, or whose heads have another size."""
        for name in ("layers", "heads", "width", "ffn"):
            before, after = getattr(self.old, name), getattr(self.new, name)
            if after < before:
                raise UserError(f"the model has {before} {name}, the target {after}.", hint="Growing only adds.")
        if self.new.vocab != self.old.vocab:
            raise UserError("the vocabulary stays when a model grows.")
        if self.new.head_size != self.old.head_size:
            raise UserError(
                f"the head size would change from {self.old.head_size} to {self.new.head_size}.",
                hint=f"Choose a width and heads with {self.old.head_size} a head.",
            )

    @property
    def norm_eps_factor(self) -> float:
        """d / D: the mean square of a stream with zeros added is so much smaller."""
        return self.old.width / self.new.width


def target_shape(old: Shape, *, width: int | None = None, ffn: int | None = None, layers: int | None = None) -> Shape:
    """Return the shape to grow to; heads follow the width, and so does the inner width where it is not named.

    Raises:
        UserError: a width that is not a multiple of the head size.
    """
    width = width or old.width
    if width % old.head_size:
        raise UserError(f"the width {width} is not a multiple of the head size {old.head_size}.", where="--width")
    inner = ffn or (old.ffn if width == old.width else max(old.ffn, feed_forward(width)))
    return replace(old, width=width, heads=width // old.head_size, ffn=inner, layers=layers or old.layers)


def new_layer_sources(old_layers: int, new_layers: int) -> list[int | None]:
    """Say for each new layer which old one it is; None is a layer that begins as the identity.

    New layers are spread evenly; one that is added stands behind an old one.
    """
    places = [(index + 1) * new_layers // old_layers - 1 for index in range(old_layers)]
    starts = [0, *(place + 1 for place in places[:-1])]
    by_place = dict(zip(starts, range(old_layers), strict=True))
    return [by_place.get(index) for index in range(new_layers)]


def grow_tensor(name: str, values: Callable[[str], Tensor], growth: Growth) -> Tensor:
    """Return a tensor of the grown model.

    What writes to the stream (embedding, o_proj, down_proj) gets zeros for its new coordinates; what reads from it
    gets random columns, which meet zeros. Gains become g sqrt(d / D), so that the norm of the longer vector gives the
    same. New heads and new inner units are random, and what reads them is zero. A new layer's o_proj and down_proj are
    zero, which leaves the stream as it is.

    Args:
        name: of the new model's tensor.
        values: from a name to the old model's tensor.
        growth: both shapes.
    """
    source = _old_name(name, growth)
    module = name.split(".")[-2]
    shape = _new_size(module, growth.new)
    if module.endswith("norm"):
        return _gains(values(source) if source else None, growth)
    grown = _fresh(name, shape, growth) if _may_be_random(module) else torch.zeros(shape)
    if source is None:
        return torch.zeros(shape) if module in ("o_proj", "down_proj") else grown
    old = values(source)
    if module in ("o_proj", "down_proj"):
        # New rows write to new coordinates, new columns read new heads or units: both are zero.
        grown = torch.zeros(shape)
    grown[: old.shape[0], : old.shape[1]] = old
    return grown


def grow_moment(key: str, values: Mapping[str, Tensor], growth: Growth) -> Tensor:
    """Return AdamW's moment of a tensor of the grown model: old entries keep theirs, new ones begin at zero.

    A gain that became g sqrt(d / D) has a gradient sqrt(D / d) as large, and so its moments.

    Args:
        key: `exp_avg.NAME` or `exp_avg_sq.NAME` of the new model.
        values: the old model's moments by such keys.
        growth: both shapes.

    Raises:
        UserError: a moment that is missing or of another size than the old model's tensor.
    """
    part, _, name = key.partition(".")
    module = name.split(".")[-2]
    grown = torch.zeros(_new_size(module, growth.new))
    source = _old_name(name, growth)
    if source is None:
        return grown
    old = values.get(f"{part}.{source}")
    if old is None or tuple(old.shape) != _new_size(module, growth.old):
        raise UserError(f"the moments of {source} are missing or of another size.", where="--moments")
    if module.endswith("norm"):
        old = old * math.sqrt(growth.new.width / growth.old.width) ** (1 if part == "exp_avg" else 2)
    grown[tuple(slice(size) for size in old.shape)] = old
    return grown


def grown_steps(names: Sequence[str], steps: Mapping[str, int], growth: Growth) -> dict[str, int]:
    """Return the optimiser's steps of each tensor of the grown model: 0 for those of new layers."""
    sources = {name: _old_name(name, growth) for name in names}
    return {name: 0 if source is None else steps.get(source, 0) for name, source in sources.items()}


def _old_name(name: str, growth: Growth) -> str | None:
    parts = name.split(".")
    if "layers" not in parts:
        return name
    index = int(parts[2])
    source = new_layer_sources(growth.old.layers, growth.new.layers)[index]
    return None if source is None else ".".join([*parts[:2], str(source), *parts[3:]])


def _new_size(module: str, shape: Shape) -> tuple[int, ...]:
    d, ffn, vocab = shape.width, shape.ffn, shape.vocab
    sizes = {"gate_proj": (ffn, d), "up_proj": (ffn, d), "down_proj": (d, ffn)}
    sizes |= {"embed_tokens": (vocab, d), "lm_head": (vocab, d)}
    return sizes.get(module, (d,) if module.endswith("norm") else (d, d))


def _may_be_random(module: str) -> bool:
    return module not in ("embed_tokens", "o_proj", "down_proj")


def _fresh(name: str, shape: tuple[int, ...], growth: Growth) -> Tensor:
    return torch.empty(shape).normal_(std=growth.std, generator=torch_generator(growth.seed, "grow", name))


def _gains(old: Tensor | None, growth: Growth) -> Tensor:
    factor = math.sqrt(growth.old.width / growth.new.width)
    grown = torch.full((growth.new.width,), factor)
    if old is not None:
        grown[: old.shape[0]] = old * factor
    return grown


def random_std(values: Callable[[str], Tensor]) -> float:
    """Return the root mean square of the first layer's gate, by which new entries are drawn."""
    return float(values("model.layers.0.mlp.gate_proj.weight").float().square().mean().sqrt())
