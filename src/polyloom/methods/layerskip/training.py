"""Training with layer dropout and the early-exit loss on any causal model, and what each exit is then worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from polyloom.core.errors import MissingExtra, UserError
from polyloom.methods.layerskip.data import Tokens, pad_examples
from polyloom.methods.layerskip.method import (
    IGNORED_LABEL,
    Curriculum,
    LossScale,
    TimeCurve,
    active_exits,
    drop_rows,
    dropout_rates,
    early_exit_loss,
    exit_weights,
)
from polyloom.models.device import torch_generator
from polyloom.models.exits import ExitParts, exit_parts, hidden_state, replaced_forwards
from polyloom.models.tiny import BOS_ID, EMBEDDING_STD, EOS_ID, HEAD_SIZE, MATRIX_STD, MAX_POSITIONS, PAD_ID
from polyloom.training.packing import Batch

Mode = Literal["both", "ld", "ee", "baseline"]
MAX_ROWS = 16


@dataclass(frozen=True)
class Skip:
    """LayerSkip's hyper-parameters: p_max, e_scale, curriculum with its period R, and the curve of S(t)."""

    p_max: float = 0.1
    e_scale: float = 1.0
    curriculum: Curriculum = "rotational"
    rotation: int = 4
    time: TimeCurve = "exp"
    loss_scale: LossScale = "paper"
    always_last: bool = True
    floor: bool = False
    distill: float = 0.0

    def ablated(self, mode: Mode) -> Skip:
        """Return the settings with dropout (`ld`), early-exit loss (`ee`), both, or neither."""
        changes: dict[str, Any] = {}
        if mode in ("ee", "baseline"):
            changes["p_max"] = 0.0
        if mode in ("ld", "baseline"):
            changes |= {"e_scale": 0.0, "distill": 0.0, "floor": False}
        return Skip(**{**self.__dict__, **changes})


PRESETS: dict[str, Skip] = {
    "embedded": Skip(0.1, 1.0, "rotational", 4, "exp"),
    "continual-llama2-7b": Skip(0.1, 0.2, "rotational", 8, "constant"),
    "continual-llama2-13b": Skip(0.1, 0.1, "rotational", 39, "constant"),
    "continual-llama3-8b": Skip(0.1, 0.1, "rotational", 8, "constant"),
    "continual-llama3.2-1b": Skip(0.1, 0.1, "rotational", 8, "constant"),
    "scratch-llama2-1.5b": Skip(0.1, 0.2, "rotational", 23, "exp"),
    "scratch-llama2-7b": Skip(0.2, 0.2, "rotational", 31, "exp"),
    "code-llama1-7b": Skip(0.1, 1.0, "rotational", 16, "constant"),
    "task-topv2-1.5b": Skip(0.2, 1.0, "gradual", 1, "constant"),
}
"""The paper's settings (section 5, tables 8 to 10), and the embedded default's."""

RATES: dict[str, float] = {
    "embedded": 4e-3,
    "continual-llama2-7b": 3e-5,
    "continual-llama2-13b": 2e-5,
    "continual-llama3-8b": 3e-5,
    "continual-llama3.2-1b": 3e-5,
    "scratch-llama2-1.5b": 8e-4,
    "scratch-llama2-7b": 8e-4,
    "code-llama1-7b": 1e-4,
    "task-topv2-1.5b": 1e-4,
}
"""Peak learning rates of the presets; the paper gives none for the two Llama 3 models, which take Llama 2 7B's."""


@dataclass
class LayerSkipLoss:
    """The loss of the training loop, with the layers of its model under dropout while `installed`."""

    parts: ExitParts
    skip: Skip
    num_steps: int
    seed: int
    exit_losses: dict[int, float] = field(default_factory=dict)
    num_layer_rows: int = 0
    num_skipped_batches: int = 0
    _keep: list[Tensor | None] = field(default_factory=list)
    _states: dict[int, Tensor] = field(default_factory=dict)
    _wanted: frozenset[int] = frozenset()

    @contextmanager
    def installed(self) -> Iterator[LayerSkipLoss]:
        """Put dropout and the capture of hidden states into the layers while the context is open."""
        with replaced_forwards(self.parts.layers, self._layer):
            yield self

    def _layer(self, index: int, forward: Any) -> Any:
        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            keep = self._keep[index] if self._keep else None
            if keep is None:
                output = forward(hidden_states, *args, **kwargs)
                state = hidden_state(output)
                self.num_layer_rows += len(hidden_states)
            else:
                size = len(hidden_states)

                def kept(x: Tensor, rows: Tensor) -> Tensor:
                    self.num_layer_rows += len(x)
                    if len(x) == size:
                        return hidden_state(forward(x, *args, **kwargs))
                    chosen = {name: select_rows(value, rows, size) for name, value in kwargs.items()}
                    return hidden_state(forward(x, *(select_rows(value, rows, size) for value in args), **chosen))

                state = drop_rows(keep, hidden_states, kept)
                output = (state,) if self.parts.pairs else state
            if index in self._wanted:
                self._states[index] = state
            return output

        return run

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return J summed over the label positions, and their number.

        Args:
            model: the model, in training mode; dropout is off in evaluation mode.
            batch: `inputs` and `labels` [rows, tokens], `step` and `row` [rows].
        """
        inputs, labels = batch["inputs"], batch["labels"]
        num_targets = int((labels != IGNORED_LABEL).sum())
        if num_targets == 0:
            self.num_skipped_batches += 1
            return next(model.parameters()).sum() * 0.0, 0
        step, num_layers, skip = int(batch["step"][0]), self.parts.num_layers, self.skip
        self._keep = self._draw(step, batch["row"]) if model.training else []
        active = active_exits(step, num_layers, skip.curriculum, skip.rotation, self.num_steps, skip.always_last)
        weights = exit_weights(active, num_layers, skip.e_scale, skip.loss_scale, skip.floor)
        self._wanted = frozenset(weights) | ({num_layers - 1} if skip.distill else frozenset())
        self._states = {}
        self.parts.body(input_ids=inputs, use_cache=False)
        loss, exit_losses = early_exit_loss(self._states, labels, weights, self.parts.project, skip.distill)
        self._states, self._keep = {}, []
        self.exit_losses |= {layer: value / num_targets for layer, value in exit_losses.items()}
        return loss, num_targets

    def _draw(self, step: int, rows: Tensor) -> list[Tensor | None]:
        """Draw the kept rows of every layer, from a stream of the step and the layer: the same in every process."""
        rates = dropout_rates(self.parts.num_layers, self.skip.p_max, step, self.num_steps, self.skip.time)
        first = int(rows[0])
        kept: list[Tensor | None] = []
        for layer, rate in enumerate(rates):
            if rate == 0:
                kept.append(None)
                continue
            generator = torch_generator(self.seed, "layer dropout", step, first, layer)
            kept.append(torch.rand(len(rows), generator=generator) >= rate)
        return kept


def select_rows(value: Any, rows: Tensor, num_rows: int) -> Any:
    """Take the rows of whatever a layer is given per row: tensors and tuples of tensors of that first size."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.dim() and value.shape[0] == num_rows else value
    if isinstance(value, tuple):
        return tuple(select_rows(one, rows, num_rows) for one in value)
    return value


def build_llama(num_layers: int, width: int, feed_forward: int, vocab_size: int, seed: int) -> PreTrainedModel:
    """Build an untrained Llama of the tiny models' kind (heads of 32) at any depth."""
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=width,
                num_hidden_layers=num_layers,
                num_attention_heads=width // HEAD_SIZE,
                intermediate_size=feed_forward,
                max_position_embeddings=MAX_POSITIONS,
                pad_token_id=PAD_ID,
                bos_token_id=BOS_ID,
                eos_token_id=EOS_ID,
                rms_norm_eps=1e-5,
                tie_word_embeddings=False,
            )
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                std = EMBEDDING_STD if "embed" in name else MATRIX_STD
                parameter.normal_(std=std, generator=torch_generator(seed, "weights", name))
    model.train(False)
    return model


def add_lora(model: PreTrainedModel, rank: int, num_layers: int) -> Callable[[], PreTrainedModel]:
    """Train low-rank updates of the first layers and the norms alone; the rest of the model is frozen.

    Args:
        model: the model, changed in place.
        rank: of the updates.
        num_layers: layers 0 .. num_layers-1 get them, so that the last layer's output changes little.

    Returns:
        A function that merges the updates and returns the ordinary model.

    Raises:
        MissingExtra: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtra("peft", extra="lora") from error
    linear = sorted(
        {name.rpartition(".")[2] for name, module in model.base_model.named_modules() if isinstance(module, nn.Linear)}
    )
    if not linear:
        raise UserError("the model has no linear projections that LoRA could serve.", where="--lora-rank")
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=linear,
        layers_to_transform=list(range(num_layers)),
        init_lora_weights=True,
    )
    adapted = get_peft_model(model, config)

    def merge() -> PreTrainedModel:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        merged: Any = adapted.merge_and_unload()
        result: PreTrainedModel = merged
        return result

    return merge


@dataclass(frozen=True)
class ExitScore:
    """What one exit is worth: mean nats of a label token, and how often it agrees with the last layer."""

    nats: float
    agreement: float


def score_exits(model: PreTrainedModel, examples: Sequence[Tokens]) -> tuple[list[ExitScore], int]:
    """Score every exit on the answers of examples, with the right tokens given (teacher forcing).

    Args:
        model: a causal language model in evaluation mode.
        examples: with answers.

    Returns:
        The score of exits 1 .. L, and the number of label tokens.

    Raises:
        UserError: no example has an answer.
    """
    usable = [one for one in examples if one.response]
    if not usable:
        raise UserError("no example has an answer to score.", where="--data", hint="Give prompts with responses.")
    parts = exit_parts(model)
    nats = torch.zeros(parts.num_layers, dtype=torch.float64)
    agreed = torch.zeros(parts.num_layers, dtype=torch.float64)
    total = 0
    for start in range(0, len(usable), MAX_ROWS):
        inputs, labels = (part.to(model.device) for part in pad_examples(usable[start : start + MAX_ROWS]))
        kept = labels != IGNORED_LABEL
        states = hidden_states(parts, inputs)
        with torch.inference_mode():
            best = parts.project(states[-1][kept]).argmax(-1)
            for layer, state in enumerate(states):
                logits = parts.project(state[kept]).float()
                nats[layer] += float(nn.functional.cross_entropy(logits, labels[kept], reduction="sum"))
                agreed[layer] += int((logits.argmax(-1) == best).sum())
        total += int(kept.sum())
    scores = [ExitScore(n / total, a / total) for n, a in zip(nats.tolist(), agreed.tolist(), strict=True)]
    return scores, total


def hidden_states(parts: ExitParts, inputs: Tensor) -> list[Tensor]:
    """Return x_1 .. x_L of token ids [rows, tokens], not normed; no gradients."""
    states: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output: states.append(hidden_state(output)))
        for layer in parts.layers
    ]
    try:
        with torch.inference_mode():
            parts.body(input_ids=inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return states
