"""One arm on one seed: batches that all arms share, switched words, losses, snapshots, and the choice among them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyloom.core.errors import MissingExtra, UserError
from polyloom.core.seeding import numpy_generator
from polyloom.data.records import Example
from polyloom.methods.transfer.arms import Arm, heads_of, plan_of, syntax_of
from polyloom.methods.transfer.config import TransferTrainConfig
from polyloom.methods.transfer.method import mix_states, symmetric_kl
from polyloom.methods.transfer.models import Batch, Outputs, TransferModel, WordEncoder, task_loss
from polyloom.methods.transfer.sequences import IGNORED, Pieces, Sequencer, Targets
from polyloom.methods.transfer.switching import Aids, SwitchPlan, switch_example
from polyloom.models.device import choose_device, has_fast_bfloat16
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train

POOL_BATCHES = 50
ORIGINAL = "original."
TRANSLATED = "translated."


@dataclass
class Materials:
    """What every arm of a seed starts from."""

    encoder: PreTrainedModel | WordEncoder
    pieces: Pieces
    examples: Sequence[Example]
    targets: Targets
    lexicons: Mapping[str, Any] = field(default_factory=dict)
    aids: Aids = field(default_factory=Aids)
    translations: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    languages: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    source: str = ""


def batch_rows(sizes: Sequence[int], batch_size: int, seed: int) -> Callable[[int], list[int]]:
    """Return the function from a step to its examples: a pure function of seed and step, the same for all arms.

    Every epoch is a new permutation; within pools of 50 batches examples are sorted by size, so that a batch holds
    texts of like length, and the batches are shuffled. The last batch of an epoch is filled up from its beginning.

    Args:
        sizes: words of each example.
        batch_size: examples in a step.
        seed: of the permutations.
    """
    per_epoch = -(-len(sizes) // batch_size)
    known: dict[int, list[list[int]]] = {}

    def epoch_batches(epoch: int) -> list[list[int]]:
        generator = numpy_generator(seed, "batches", epoch)
        order = generator.permutation(len(sizes)).tolist()
        order += order[: per_epoch * batch_size - len(order)]
        while len(order) < per_epoch * batch_size:
            order += order[: per_epoch * batch_size - len(order)]
        pool = POOL_BATCHES * batch_size
        batches = []
        for start in range(0, len(order), pool):
            rows = sorted(order[start : start + pool], key=lambda i: sizes[i])
            batches += [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        return [batches[i] for i in generator.permutation(len(batches)).tolist()]

    def rows_at(step: int) -> list[int]:
        epoch = step // per_epoch
        if epoch not in known:
            known.clear()
            known[epoch] = epoch_batches(epoch)
        return known[epoch][step % per_epoch]

    return rows_at


def steps_of(num_examples: int, config: TransferTrainConfig) -> tuple[int, int]:
    """Return steps in an epoch and in all."""
    per_epoch = -(-num_examples // config.batch_size)
    return per_epoch, per_epoch * config.epochs


@dataclass
class ArmModel:
    """A trained arm."""

    model: TransferModel
    sequencer: Sequencer


def build_arm(arm: Arm, materials: Materials, config: TransferTrainConfig, seed: int) -> ArmModel:
    """Build an arm's model before training: the same encoder and heads as every other arm of the seed.

    Raises:
        MissingExtra: LoRA is asked for and peft is not installed.
        UserError: the encoder cannot take the graph.
    """
    encoder = copy.deepcopy(materials.encoder)
    if config.lora_rank and config.adapter_width:
        raise UserError("low-rank updates and bottleneck adapters are two ways of one thing.", where="--lora-rank")
    if config.lora_rank and isinstance(encoder, PreTrainedModel):
        add_lora(encoder, config.lora_rank)
    syntax = syntax_of(arm, config)
    model = TransferModel(
        encoder,
        materials.targets,
        syntax=syntax,
        adapter_width=config.adapter_width,
        languages=list(materials.languages),
        crf=config.crf,
        dropout=config.dropout,
        seed=seed,
    )
    if model.adapters is not None:
        for code, weights in materials.languages.items():
            model.adapters.languages[code].load_state_dict(weights)
        model.adapters.use(materials.source)
    if arm.lexical == "mixed":
        model.mix(config.mixup)
    sequencer = Sequencer(materials.pieces, config.max_length, materials.targets, heads_of(arm, seed))
    return ArmModel(model.to(choose_device(config.device)), sequencer)


def add_lora(encoder: PreTrainedModel, rank: int) -> Any:
    """Put low-rank updates beside all linear modules of an encoder, in place, and freeze the rest.

    Returns:
        peft's wrapper; its `merge_and_unload` gives the ordinary encoder.

    Raises:
        MissingExtra: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtra("peft", extra="lora") from error
    names = {path.rpartition(".")[2] for path, part in encoder.named_modules() if isinstance(part, nn.Linear)}
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(names - {"dense_pooler"}))
    return get_peft_model(encoder, settings)


def merge_lora(encoder: PreTrainedModel) -> None:
    """Write the updates of `add_lora` into the weights, in place."""
    from peft.tuners.lora import LoraLayer

    for path, module in list(encoder.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent = encoder.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], module.get_base_layer())
    for parameter in encoder.parameters():
        parameter.requires_grad_(True)


def arm_batches(
    arm: Arm, built: ArmModel, materials: Materials, config: TransferTrainConfig, seed: int
) -> Callable[[int], Batch]:
    """Return the function from a step to an arm's batch: the shared examples, switched where the arm says so."""
    examples = materials.examples
    per_epoch, _ = steps_of(len(examples), config)
    rows_at = batch_rows([sum(len(one.words) for one in e.sentences) for e in examples], config.batch_size, seed)
    plan = plan_of(arm, config, materials.targets)
    codes = sorted(materials.translations) if arm.translated else []

    def batch_at(step: int) -> Batch:
        epoch, rows = step // per_epoch, rows_at(step)
        chosen = [examples[i] for i in rows]
        switched = _switched(chosen, plan, materials, seed, epoch)
        mixes = arm.lexical == "mixed"
        batch = built.sequencer.batch(chosen if mixes else switched)
        if mixes:
            batch["mixed"] = built.sequencer.mixed(chosen, switched)
        if plan and config.consistency:
            batch |= _prefixed(ORIGINAL, built.sequencer.batch(chosen))
        if codes:
            code = codes[step % len(codes)]
            batch |= _prefixed(TRANSLATED, built.sequencer.batch([materials.translations[code][i] for i in rows]))
        return batch

    return batch_at


def _switched(
    examples: Sequence[Example], plan: SwitchPlan | None, materials: Materials, seed: int, epoch: int
) -> Sequence[Example]:
    if plan is None:
        return examples
    return [switch_example(one, plan, materials.lexicons, seed, epoch, materials.aids) for one in examples]


def _prefixed(prefix: str, batch: Batch) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in batch.items()}


def _part(prefix: str, batch: Batch) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in batch.items() if name.startswith(prefix)}


def arm_loss(
    arm: Arm, config: TransferTrainConfig, teacher: TransferModel | None = None
) -> Callable[[nn.Module, Batch], tuple[Tensor, int]]:
    """Return an arm's loss: task, lambda times structure, consistency, translations, and what a teacher says.

    Source: L = L_task + lambda (L_dist + L_depth); xTune (arXiv 2106.08226) for the consistencies: of a text and its
    switched form (its first stage), and of a model and the one of the first stage (its second).
    """

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        outputs: Outputs = model(batch)
        size = len(batch["input_ids"])
        total = _supervised(outputs, batch, config)
        if teacher is not None:
            with torch.no_grad():
                said = teacher(batch)
            total = total + config.teacher_weight * agreement(said, outputs, batch, batch)
        if original := _part(ORIGINAL, batch):
            plain: Outputs = model(original)
            total = total + _supervised(plain, original, config)
            total = total + config.consistency * agreement(plain, outputs, original, batch)
        if translated := _part(TRANSLATED, batch):
            other: Outputs = model(translated)
            total = total + _supervised(other, translated, config)
            if arm.mixup:
                total = total + _mixed(model, outputs, other, batch, translated, config)
        return total * size, size

    return loss


def _mixed(
    model: Any, source: Outputs, target: Outputs, batch: Batch, translated: Batch, config: TransferTrainConfig
) -> Tensor:
    """Return the task loss of mixed states, and how far the translation is from them."""
    mixed = mix_states(target.states, source.states, batch["attention_mask"], config.mixup)
    outputs: Outputs = model.read(mixed, translated)
    return task_loss(outputs, translated) + agreement(target, outputs, translated, translated)


def _supervised(outputs: Outputs, batch: Batch, config: TransferTrainConfig) -> Tensor:
    total = task_loss(outputs, batch)
    return total if outputs.structure is None else total + config.structural_weight * outputs.structure


def agreement(first: Outputs, second: Outputs, first_batch: Batch, second_batch: Batch) -> Tensor:
    """Return the mean symmetric KL of what a model says of texts and of their switched forms, over classes and words.

    Args:
        first: outputs of the texts.
        second: outputs of the switched texts, which have the same words.
        first_batch: the texts' batch.
        second_batch: the switched texts' batch.
    """
    parts = []
    if first.label is not None and second.label is not None:
        parts.append(symmetric_kl(first.label.float(), second.label.float()).mean())
    if first.tags is not None and second.tags is not None:
        # A switched word may lie beyond the cut in one of the two.
        kept = (first_batch["tags"] != IGNORED) & (second_batch["tags"] != IGNORED)
        if bool(kept.any()):
            parts.append(symmetric_kl(first.tags[kept].float(), second.tags[kept].float()).mean())
    return torch.stack(parts).sum() if parts else first.states.new_zeros(())


def loop_settings(
    config: TransferTrainConfig, seed: int, num_examples: int, device: torch.device, wants_snapshots: bool
) -> TrainConfig:
    """Return the training loop's settings: linear decay to 0, clipping at 1, an evaluation at the end of each epoch."""
    per_epoch, steps = steps_of(num_examples, config)
    fast = config.precision == "auto" and device.type == "cuda" and has_fast_bfloat16(device)
    precision = config.precision if config.precision != "auto" else "bfloat16" if fast else "float32"
    return TrainConfig(
        seed=seed,
        steps=steps,
        batch_size=config.batch_size,
        lr=config.learning_rate,
        min_lr_ratio=0.0,
        schedule="linear",
        warmup_steps=round(config.warmup * steps),
        beta2=0.999,
        weight_decay=config.weight_decay,
        clip_norm=1.0,
        precision=precision,
        log_every=max(1, per_epoch // 4),
        eval_every=per_epoch if wants_snapshots else 0,
        checkpoint_every=0,
    )


def train_stages(
    arm: Arm, materials: Materials, config: TransferTrainConfig, seed: int, folder: Path, **hooks: Any
) -> tuple[ArmModel, list[Path]]:
    """Train one arm; with a teacher's weight twice, the second time towards what the first model says.

    Arguments and returns as `train_arm`'s, of the last stage.
    """
    if not config.teacher_weight:
        return train_arm(arm, materials, config, seed, folder, **hooks)
    first, _ = train_arm(arm, materials, config, seed, folder / "first", **hooks)
    return train_arm(arm, materials, config, seed, folder, teacher=first.model.eval().requires_grad_(False), **hooks)


def train_arm(
    arm: Arm,
    materials: Materials,
    config: TransferTrainConfig,
    seed: int,
    folder: Path,
    *,
    teacher: TransferModel | None = None,
    on_step: Callable[[int], Any] | None = None,
    on_log: Callable[..., None] | None = None,
    check_stop: Callable[[], None] | None = None,
) -> tuple[ArmModel, list[Path]]:
    """Train one arm, going on from its checkpoint where there is one.

    Args:
        arm: what to add to the base.
        materials: shared by the arms of the seed.
        config: settings.
        seed: of batches, switching, new parameters and dropout.
        folder: for checkpoints and for a snapshot of the weights after every epoch, where the choice needs them.
        teacher: a trained model of the arm, whose answers the new one is to give.
        on_step: advances a progress bar.
        on_log: as in `training.loop.train`.
        check_stop: raises when the run is asked to stop; a checkpoint is saved first.

    Returns:
        The model after the last epoch, and the snapshots of all epochs.
    """
    built = build_arm(arm, materials, config, seed)
    per_epoch, _ = steps_of(len(materials.examples), config)
    wants_snapshots = config.select != "last" or bool(config.target_dev)
    snapshots = [folder / f"epoch-{epoch + 1:03d}.safetensors" for epoch in range(config.epochs)]
    steps_done = 0

    def count(number: int) -> None:
        nonlocal steps_done
        steps_done += number
        if on_step:
            on_step(number)

    def snapshot() -> Mapping[str, float]:
        epoch = steps_done // per_epoch
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().clone() for name, value in built.model.state_dict().items()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, snapshots[epoch - 1])
        return {"epoch": float(epoch)}

    train(
        built.model,
        arm_batches(arm, built, materials, config, seed),
        loop_settings(config, seed, len(materials.examples), next(built.model.parameters()).device, wants_snapshots),
        loss=arm_loss(arm, config, teacher),
        checkpoints=folder / "checkpoint",
        on_log=on_log,
        on_step=count,
        evaluate=snapshot if wants_snapshots else None,
        check_stop=check_stop,
    )
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return built, snapshots if wants_snapshots else []


def load_snapshot(model: TransferModel, paths: Sequence[Path]) -> None:
    """Load a snapshot into a model, or the mean of several (checkpoint averaging)."""
    states = [load_file(path) for path in paths]
    mean = {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }
    model.load_state_dict(mean, strict=False)


def default_average(snapshots: Sequence[Path]) -> list[Path]:
    """Return the snapshots of the last half of the epochs."""
    return list(snapshots[len(snapshots) // 2 :])


def parameter_count(model: nn.Module) -> int:
    """Return the number of trained parameters."""
    return int(
        np.sum([parameter.numel() for parameter in model.parameters() if parameter.requires_grad], dtype=np.int64)
    )
