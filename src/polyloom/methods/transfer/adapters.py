"""Bottleneck adapters behind the layers of a frozen encoder: one set for the task, one for each language (MAD-X).

Language adapters learn raw text by masked language modelling; the task's adapters are trained on top of the source's
and are read with the target's. The graph's adaptor changes keys and values alone, so that both work in one encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyloom.core.errors import UserError
from polyloom.core.seeding import derive_seed
from polyloom.methods.transfer.adaptor import find_attention


class Bottleneck(nn.Module):
    """h + U relu(D h); U is 0 at first, so that training starts at the encoder itself."""

    def __init__(self, width: int, bottleneck: int) -> None:
        """Draw D.

        Args:
            width: of the states.
            bottleneck: of the inner layer.
        """
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Return the states [..., width] with what the bottleneck adds."""
        adapted: Tensor = states + self.up(torch.relu(self.down(states)))
        return adapted


def find_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the encoder's layers, the modules that hold one attention each, in their order."""
    paths = []
    for one in find_attention(model):
        parts = one.path.split(".")
        last = max((i for i, part in enumerate(parts) if part.isdecimal()), default=None)
        if last is None:
            hint = "Leave --adapter-width out; --lora-rank works with any."
            raise UserError(f"the layers of a {type(model).__name__} are in no list.", where="--encoder", hint=hint)
        paths.append(".".join(parts[: last + 1]))
    return [model.get_submodule(path) for path in dict.fromkeys(paths)]


class Adapters(nn.Module):
    """Adapters of all layers: the task's, and those of the languages, of which one is in use at a time.

    Source: Pfeiffer and others (2020), MAD-X, arXiv 2005.00052, without its invertible adapters of the embeddings.
    """

    def __init__(self, model: PreTrainedModel, bottleneck: int, languages: Sequence[str] = (), seed: int = 0) -> None:
        """Hook adapters in behind every layer, and freeze the encoder.

        Args:
            model: the encoder.
            bottleneck: inner width.
            languages: codes that get adapters of their own.
            seed: of fresh weights.
        """
        super().__init__()
        layers = find_layers(model)
        width = int(model.config.get_text_config().hidden_size)
        self.bottleneck = bottleneck
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "adapters"))
            self.task = nn.ModuleList(Bottleneck(width, bottleneck) for _ in layers)
            self.languages = nn.ModuleDict(
                {code: nn.ModuleList(Bottleneck(width, bottleneck) for _ in layers) for code in languages}
            )
        self.languages.requires_grad_(False)
        model.requires_grad_(False)
        self.active = ""
        self._handles = [layer.register_forward_hook(self._hook(index)) for index, layer in enumerate(layers)]

    def use(self, language: str) -> None:
        """Read with this language's adapters; a language without any is read without."""
        self.active = language

    def _hook(self, index: int) -> Any:
        def adapt(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            if self.active in self.languages:
                states = self.languages[self.active][index](states)  # type: ignore[index]
            states = self.task[index](states)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return adapt

    def remove(self) -> None:
        """Take the hooks out: the encoder is the plain one again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
