"""What a recipe says: shape, muP's hyper-parameters, layout and training settings, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig

from polyloom.core.errors import UserError
from polyloom.methods.pretrain.architecture import NORM_EPS, ROTARY_THETA, draw, find_preset, llama_config
from polyloom.methods.pretrain.config import TrainVerbConfig
from polyloom.methods.pretrain.forms import Source, open_source
from polyloom.methods.pretrain.method import Scaling, Shape, decoder
from polyloom.training.config import TrainConfig
from polyloom.training.layouts import Layout, check_layout
from polyloom.training.moments import has_moments

VOCAB_MULTIPLE = 128


@dataclass(frozen=True)
class Recipe:
    """A training run's model and settings.

    Attributes:
        shape: of the model.
        context: its positions.
        scaling: muP's hyper-parameters.
        layout: the processes.
        training: settings of the loop.
        source: the model to go on training, whose multipliers are folded; None where values are drawn.
    """

    shape: Shape
    context: int
    scaling: Scaling
    layout: Layout
    training: TrainConfig
    source: Source | None

    def config(self) -> LlamaConfig:
        """Return the plain Llama configuration."""
        return llama_config(self.shape, self.context, norm_eps=self.norm_eps, theta=self.theta)

    @property
    def norm_eps(self) -> float:
        """Epsilon of the norms: the source's."""
        return self.source.norm_eps if self.source else NORM_EPS

    @property
    def theta(self) -> float:
        """Base of the rotary positions: the source's."""
        return self.source.theta if self.source else ROTARY_THETA

    @property
    def moments(self) -> Path | None:
        """The folder of AdamW's moments beside the source, which growth has left there."""
        folder = self.source.folder / "moments" if self.source and not self.scaling.muon else None
        return folder if folder and has_moments(folder) else None

    def values(self, name: str, shape: torch.Size) -> Tensor:
        """Return a tensor's initial values in folded form: drawn by muP's rules, or the source's."""
        if self.source is not None:
            return self.source.folded(name)
        tensor = torch.empty(shape)
        draw([(name, tensor)], self.shape, self.scaling, self.training.seed)
        return tensor


def padded(num_tokens: int, tp: int = 1) -> int:
    """Return the embedding rows for a vocabulary: the next multiple of 128 tp; rows beyond it are never targets."""
    multiple = VOCAB_MULTIPLE * tp
    return -(-num_tokens // multiple) * multiple


def make_recipe(config: TrainVerbConfig, num_tokens: int) -> Recipe:
    """Resolve a configuration for a tokenizer's vocabulary.

    Args:
        config: the verb's configuration.
        num_tokens: tokens of the tokenizer.

    Raises:
        UserError: an unknown preset, sizes that do not divide, a vocabulary that the model lacks, a bad layout.
    """
    names = set(TrainConfig.model_fields)
    training = TrainConfig(**{name: value for name, value in config.model_dump().items() if name in names})
    layout = Layout(
        config.pp, config.dp, config.tp, config.sequence_parallel, config.pipeline_schedule, config.num_micro_batches
    )
    preset = find_preset(config.preset)
    source = open_source(Path(config.model)) if config.model else None
    if source is not None:
        shape = source.shape
        if num_tokens > shape.vocab:
            what = f"the tokenizer has {num_tokens} tokens, the model embeds {shape.vocab}."
            raise UserError(what, where="--tokenizer", hint="Use the tokenizer that the model was trained with.")
    else:
        shape = _drawn_shape(config, padded(num_tokens, config.tp))
    base_width = preset.base_width if config.base_width is None else config.base_width
    scaling = Scaling(
        lr=config.lr,
        matrix_lr=config.matrix_lr or config.lr,
        std=config.std,
        matrix_std=config.matrix_std,
        input_mult=config.input_mult,
        output_mult=config.output_mult,
        base_width=base_width,
        base_depth=config.base_depth,
        depth_power=config.depth_power,
        weight_decay=config.weight_decay,
        eps=config.eps,
        muon=config.optimizer == "muon",
    )
    _check_muon(config, layout)
    check_layout(layout, llama_config(shape, config.window_tokens), config.window_tokens, config.batch_size)
    return Recipe(shape, max(config.window_tokens, preset.context), scaling, layout, training, source)


def _check_muon(config: TrainVerbConfig, layout: Layout) -> None:
    if config.optimizer != "muon":
        return
    if layout.num_processes > 1:
        what = "muon needs whole matrices, which a layout splits; it is proven for one process."
        raise UserError(what, where="optimizer", hint="Use adamw, or leave pp, dp and tp at 1.")
    if config.base_depth:
        what = "the depth rule is stated for AdamW; what muon needs is not known."
        raise UserError(what, where="base_depth", hint="Leave it at 0, or use adamw.")


def _drawn_shape(config: TrainVerbConfig, vocab: int) -> Shape:
    shape = find_preset(config.preset).shape
    if config.width is not None and config.width != shape.width:
        shape = decoder(config.width, shape.layers, shape.head_size, vocab)
    return replace(shape, layers=config.layers or shape.layers, vocab=vocab)
