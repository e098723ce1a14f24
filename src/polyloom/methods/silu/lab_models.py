"""Networks of the lab whose parameters carry a leading model axis: many seeds train together as one batched product.

Each network is a pair of functions, so that one training loop serves all tasks:

- `initialise(seed)` draws one model's parameters; `stack_models` gives them the axis `models`.
- `forward(parameters, inputs, probe)` maps [models, batch, ...] to [models, batch, ...] outputs. `probe(name, z)` is
  called with every linear layer's output z, which serves the data-scaled initialisation and the count of dead units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from polyloom.models.activations import Activation, resolve_activation
from polyloom.models.device import torch_generator

Parameters = dict[str, Tensor]
Probe = Callable[[str, Tensor], None]
GATED = {"swiglu": "silu", "reglu": "relu", "geglu": "gelu", "bilinear": "identity"}


@dataclass(frozen=True)
class Form:
    """An activation as the lab uses it: the function, and whether it gates a second product (arXiv 2002.05202)."""

    name: str
    function: Activation
    gated: bool


@dataclass(frozen=True)
class Network:
    """One architecture with one activation.

    Attributes:
        initialise: seed to parameters of one model, He-scaled.
        forward: parameters [models, ...] and inputs [models, batch, ...] to outputs.
        scales: linear layers in order, each with the standard deviation that data-scaled initialisation gives it.
        hidden: the layers whose outputs [models, rows, units, ...] enter the activation.
    """

    initialise: Callable[[int], Parameters]
    forward: Callable[[Parameters, Tensor, Probe], Tensor]
    scales: dict[str, float]
    hidden: tuple[str, ...]


def resolve_form(name: str) -> Form:
    """Find an activation of the registry, a user's `module:function`, or a gated form by its name.

    Raises:
        UserError: as `resolve_activation`.
    """
    return Form(name, resolve_activation(GATED.get(name, name)), name in GATED)


def no_probe(name: str, z: Tensor) -> None:
    """Look at nothing."""


def stack_models(network: Network, seeds: Sequence[int]) -> Parameters:
    """Draw the parameters of one model per seed; a seed that stands twice gives equal models.

    Returns:
        Name to [models, ...].
    """
    drawn = {seed: network.initialise(seed) for seed in dict.fromkeys(seeds)}
    return {name: torch.stack([drawn[seed][name] for seed in seeds]) for name in drawn[seeds[0]]}


def scale_by_data(network: Network, parameters: Parameters, inputs: Tensor) -> None:
    """Scale every linear layer in place, first to last, to its wanted output standard deviation on `inputs`.

    Args:
        network: names the layers and the deviations.
        parameters: [models, ...], He-initialised with zero biases.
        inputs: [models, batch, ...].

    Source: layer-sequential unit variance (arXiv 1511.06422), one pass: without biases the output is linear in the
    weight, so one division is exact.
    """
    found: dict[str, Tensor] = {}

    def spread(name: str, z: Tensor) -> None:
        found[name] = z.flatten(1).std(dim=1)

    for name, wanted in network.scales.items():
        with torch.no_grad():
            network.forward(parameters, inputs, spread)
            weight = parameters[f"{name}.weight"]
            factor = wanted / found[name].clamp_min(1e-8)
            weight.mul_(factor.view(-1, *[1] * (weight.dim() - 1)))


def _normal(generator: torch.Generator, *shape: int, fan_in: int, gain: float = 2.0) -> Tensor:
    return torch.randn(*shape, generator=generator) * math.sqrt(gain / fan_in)


def _linear(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """Map [models, rows, in] to [models, rows, out]."""
    bias = parameters.get(f"{name}.bias")
    weight = parameters[f"{name}.weight"]
    return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)


def _mlp_size(widths: Sequence[int], copies: int) -> int:
    last = len(widths) - 2
    return sum(
        (fan_in + 1) * fan_out * (copies if layer < last else 1)
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths))
    )


def fair_widths(widths: Sequence[int]) -> list[int]:
    """Return the hidden widths of the gated multilayer perceptron whose parameter count is nearest to the ungated one.

    Args:
        widths: input, hidden ..., output of the ungated one; all hidden widths are equal.
    """
    wanted = _mlp_size(widths, 1)

    def gated(hidden: int) -> list[int]:
        return [widths[0], *[hidden] * (len(widths) - 2), widths[-1]]

    best = min(range(1, widths[1] + 1), key=lambda hidden: abs(_mlp_size(gated(hidden), 2) - wanted))
    return gated(best)


def multilayer_perceptron(form: Form, widths: Sequence[int]) -> Network:
    """Return the classifier [models, batch, in] to [models, batch, classes].

    Args:
        form: activation; a gated one gets the parameter-fair width.
        widths: input, hidden ..., output.
    """
    sizes = fair_widths(widths) if form.gated else list(widths)
    last = len(sizes) - 2
    branches = {layer: ["gate", "up"] if form.gated and layer < last else ["up"] for layer in range(last + 1)}
    names = [f"{branch}{layer}" for layer, kinds in branches.items() for branch in kinds]

    def initialise(seed: int) -> Parameters:
        parameters: Parameters = {}
        for layer, kinds in branches.items():
            for branch in kinds:
                draw = torch_generator(seed, "weights", branch, layer)
                weight = _normal(draw, sizes[layer], sizes[layer + 1], fan_in=sizes[layer])
                parameters |= {f"{branch}{layer}.weight": weight}
                parameters |= {f"{branch}{layer}.bias": torch.zeros(1, sizes[layer + 1])}
        return parameters

    def forward(parameters: Parameters, inputs: Tensor, probe: Probe) -> Tensor:
        h = inputs
        for layer, kinds in branches.items():
            z = {branch: _linear(parameters, f"{branch}{layer}", h) for branch in kinds}
            for branch, value in z.items():
                probe(f"{branch}{layer}", value)
            if layer == last:
                return z["up"]
            h = form.function(z["gate"]) * z["up"] if form.gated else form.function(z["up"])
        raise AssertionError("a network has a last layer")

    entering = "gate" if form.gated else "up"
    return Network(initialise, forward, dict.fromkeys(names, 1.0), tuple(f"{entering}{i}" for i in range(last)))


def convolutions(form: Form, channels: Sequence[int], output_bias: Tensor) -> Network:
    """Return a stack of 3x3 convolutions, the first of stride 2, as grouped convolutions over the models.

    Args:
        form: activation after all but the last layer; not gated.
        channels: of the input, the hidden layers and the output.
        output_bias: [channels[-1]] initial bias of the last layer.
    """
    last = len(channels) - 2

    def initialise(seed: int) -> Parameters:
        parameters: Parameters = {}
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(channels)):
            weight = _normal(
                torch_generator(seed, "weights", layer), fan_out, fan_in, 3, 3, fan_in=9 * fan_in, gain=2.0
            )
            parameters[f"conv{layer}.weight"] = weight * (0.1 if layer == last else 1.0)
            parameters[f"conv{layer}.bias"] = output_bias.clone() if layer == last else torch.zeros(fan_out)
        return parameters

    def forward(parameters: Parameters, inputs: Tensor, probe: Probe) -> Tensor:
        num_models, batch = inputs.shape[:2]
        h = inputs.transpose(0, 1).flatten(1, 2)
        for layer in range(last + 1):
            weight, bias = parameters[f"conv{layer}.weight"].flatten(0, 1), parameters[f"conv{layer}.bias"].flatten()
            z = F.conv2d(h, weight, bias, stride=2 if layer == 0 else 1, padding=1, groups=num_models)
            by_model = z.view(batch, num_models, -1, *z.shape[2:]).transpose(0, 1)
            probe(f"conv{layer}", by_model)
            if layer == last:
                return by_model
            h = form.function(z)
        raise AssertionError("a network has a last layer")

    # The head keeps its small draws and its bias: its scale says how sure the first predictions are.
    scales = {f"conv{layer}": 1.0 for layer in range(last)}
    return Network(initialise, forward, scales, tuple(f"conv{layer}" for layer in range(last)))


@dataclass(frozen=True)
class TransformerSize:
    """Sizes of the character model."""

    num_symbols: int
    context: int
    width: int = 48
    num_layers: int = 2
    num_heads: int = 3


def _rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def transformer(form: Form, size: TransformerSize) -> Network:
    """Return the causal character model: [models, batch, context] symbols to [models, batch, context, symbols] logits.

    A gated form gets 2/3 of the inner width, so that the parameters are equal.
    """
    d, layers = size.width, range(size.num_layers)
    inner = round(8 * d / 3) if form.gated else 4 * d
    residual = 1.0 / math.sqrt(2 * size.num_layers)
    shapes: dict[str, tuple[int, int, float]] = {}
    for i in layers:
        shapes |= {f"qkv{i}": (d, 3 * d, 1.0), f"out{i}": (d, d, residual**2)}
        shapes |= {f"gate{i}": (d, inner, 2.0)} if form.gated else {}
        shapes |= {f"up{i}": (d, inner, 2.0), f"down{i}": (inner, d, residual**2)}
    shapes["head"] = (d, size.num_symbols, 0.25)

    def initialise(seed: int) -> Parameters:
        parameters = {
            f"{name}.weight": _normal(torch_generator(seed, "weights", name), i, o, fan_in=i, gain=gain)
            for name, (i, o, gain) in shapes.items()
        }
        draw = torch_generator(seed, "weights", "embedding")
        parameters["symbols"] = 0.3 * torch.randn(size.num_symbols, d, generator=draw)
        parameters["positions"] = 0.1 * torch.randn(size.context, d, generator=draw)
        return parameters

    def forward(parameters: Parameters, inputs: Tensor, probe: Probe) -> Tensor:
        num_models, batch, context = inputs.shape

        def linear(name: str, x: Tensor) -> Tensor:
            z = _linear(parameters, name, x)
            probe(name, z)
            return z

        offsets = torch.arange(num_models).view(-1, 1, 1) * size.num_symbols
        h = F.embedding(inputs + offsets, parameters["symbols"].flatten(0, 1))
        h = (h + parameters["positions"][:, None, :context]).reshape(num_models, batch * context, d)
        for i in layers:
            qkv = linear(f"qkv{i}", _rms_norm(h))
            q, k, v = qkv.view(num_models * batch, context, 3, size.num_heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + linear(f"out{i}", mixed.transpose(1, 2).reshape(num_models, batch * context, d))
            x = _rms_norm(h)
            up = linear(f"up{i}", x)
            inner_values = form.function(linear(f"gate{i}", x)) * up if form.gated else form.function(up)
            h = h + linear(f"down{i}", inner_values)
        return linear("head", _rms_norm(h)).view(num_models, batch, context, -1)

    entering = "gate" if form.gated else "up"
    scales = {
        name: residual if name.startswith("down") else 1.0 for name in shapes if name.startswith(("gate", "up", "down"))
    }
    return Network(initialise, forward, scales, tuple(f"{entering}{i}" for i in layers))


class BatchedAdamW:
    """AdamW (arXiv 1711.05101) over one flat buffer that holds all models; each model has its own learning rate."""

    def __init__(
        self,
        parameters: Parameters,
        learning_rates: Tensor,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        """Take over the parameters.

        Args:
            parameters: [models, ...]; copied into the flat buffer.
            learning_rates: [models].
            betas: decay of the moments.
            eps: added to the root of the second moment.
            weight_decay: decoupled; on everything.
        """
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.flat = torch.cat([value.flatten() for value in parameters.values()])
        rates = [
            learning_rates.view(-1, *[1] * (value.dim() - 1)).expand_as(value).flatten()
            for value in parameters.values()
        ]
        self.learning_rates = torch.cat(rates).to(self.flat.dtype)
        self.first, self.second = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.num_steps = 0
        self.parameters: Parameters = {}
        for (name, value), part in zip(
            parameters.items(), torch.split(self.flat, [value.numel() for value in parameters.values()]), strict=True
        ):
            self.parameters[name] = part.view_as(value).requires_grad_()

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], factor: float = 1.0) -> None:
        """Take one step.

        Args:
            gradients: one per parameter, in their order.
            factor: of the learning rates, from the schedule.
        """
        self.num_steps += 1
        first_decay, second_decay = self.betas
        gradient = torch.cat([value.flatten() for value in gradients])
        self.first.lerp_(gradient, 1 - first_decay)
        self.second.mul_(second_decay).addcmul_(gradient, gradient, value=1 - second_decay)
        if self.weight_decay:
            self.flat.addcmul_(self.flat, self.learning_rates, value=-factor * self.weight_decay)
        root = self.second.sqrt().div_(math.sqrt(1 - second_decay**self.num_steps)).add_(self.eps)
        direction = torch.div(self.first, root, out=root)
        self.flat.addcmul_(direction, self.learning_rates, value=-factor / (1 - first_decay**self.num_steps))
