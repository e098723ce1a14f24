"""The training loop: AdamW, accumulation over tokens, clipping, logging, evaluation, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from polyloom.core.errors import PolyloomError, Stopped
from polyloom.training.config import TrainConfig
from polyloom.training.documents import inside_documents, targets_inside
from polyloom.training.engine import Engine, Loss, ParameterGroup, Replicated, See
from polyloom.training.memory import saving_memory
from polyloom.training.moments import load_moments
from polyloom.training.monitor import Monitor
from polyloom.training.muon import MuonWithAdamW
from polyloom.training.packing import Batch, BatchAt
from polyloom.training.parallel import World, join_world
from polyloom.training.schedules import lr_factor
from polyloom.training.watch import Spike, Watch

MAX_INTERVENTIONS = 20


@dataclass
class TrainState:
    """Where a training run stands; saved with every checkpoint.

    `step` counts optimiser steps, `num_tokens` targets over all processes, `loss` is the last step's mean in nats,
    `best` the lowest evaluation, `best_step` its step, `num_worse` the evaluations since, `stopped_early` says whether
    patience ended it. `num_spikes` counts spikes, `num_passed` batches that rewinding has passed over; `losses` and
    `norms` are what the watch remembers.
    """

    step: int = 0
    num_tokens: int = 0
    loss: float | None = None
    best: float | None = None
    best_step: int = 0
    num_worse: int = 0
    stopped_early: bool = False
    num_spikes: int = 0
    num_passed: int = 0
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)


def next_token_loss(model: nn.Module, batch: Batch, see: See | None = None) -> tuple[Tensor, int]:
    """Return the summed next-token cross entropy in nats and the number of targets.

    Args:
        model: a causal language model of transformers.
        batch: `tokens` [rows, T+1]; `source` [rows] where rows have one; `document` [rows, T+1] keeps attention,
            positions and targets inside each document.
        see: looks at the logits: a monitor.
    """
    tokens = batch["tokens"]
    more, targets, num_targets = {}, tokens[:, 1:], tokens[:, 1:].numel()
    if "document" in batch:
        positions, mask = inside_documents(batch["document"][:, :-1])
        more = {"position_ids": positions, "attention_mask": mask}
        targets = targets_inside(tokens, batch["document"])
        num_targets = int((targets >= 0).sum())
    logits = model(input_ids=tokens[:, :-1], use_cache=False, **more).logits
    if see:
        see(logits, targets, batch.get("source"))
    loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
    return loss, num_targets


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
    """Return AdamW's groups: matrices with weight decay, all else (gains, biases) without.

    Args:
        model: its parameters that require gradients are taken.
        config: lr and weight_decay.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    others = [parameter for parameter in parameters if parameter.dim() <= 1]
    return [
        {"params": group, "lr": config.lr, "weight_decay": decay}
        for group, decay in ((matrices, config.weight_decay), (others, 0.0))
        if group
    ]


def train(
    model: nn.Module,
    batch_at: BatchAt,
    config: TrainConfig,
    *,
    loss: Loss = next_token_loss,
    groups: Sequence[ParameterGroup] | None = None,
    engine: Engine | None = None,
    monitor: Monitor | None = None,
    checkpoints: Path | None = None,
    moments: Path | None = None,
    on_log: Callable[..., None] | None = None,
    on_step: Callable[[int], Any] | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    check_stop: Callable[[], None] | None = None,
) -> TrainState:
    """Train a model in place, going on from the newest checkpoint where there is one.

    Every random number of a step comes from a stream of the seed and the step, so that a resumed run repeats the
    unbroken one (bit for bit on one CPU thread). Under torchrun each process takes its share of every batch's rows.

    Args:
        model: the model, on its device.
        batch_at: from a step to its batch: tensors whose first dimension is `config.batch_size`.
        config: the configuration.
        loss: from the model and rows of a batch to the summed loss and the number of targets that it is summed over.
        groups: the optimiser's: `lr`, `weight_decay`, `eps`, `gradient_scale` of the norm, `muon` where it is to step;
            else `parameter_groups`.
        engine: of a model that is sharded over processes; by default each process holds it whole.
        monitor: adds to the logged steps what it sees; it is fed where the loss is computed.
        checkpoints: the folder to save to and resume from; nothing is saved without.
        moments: folder of AdamW's moments to begin with, where there is no checkpoint; see `write_moments`.
        on_log: called with step, loss (nats), gradient_norm, lr, tokens_per_second; and evaluations, and spikes.
        on_step: called after each step with 1, and on resume with the steps that were done before: a progress bar.
        evaluate: returns named values; the first is minimised by early stopping. Called every `config.eval_every` steps
            and after the last, with the model in evaluation mode.
        check_stop: raises `Stopped` when the run has been asked to stop; a checkpoint is saved first.

    Returns:
        The state at the end; the model is in evaluation mode.

    Raises:
        PolyloomError: the loss or a gradient is not finite, or a spike stops the run; Stopped: it was asked to.
    """
    device = next(model.parameters()).device
    optimizer = _optimizer(groups or parameter_groups(model, config), config, device, fused=engine is None)
    saving = saving_memory(model, config) if engine is None else nullcontext()
    with join_world(device) as world, saving, torch.random.fork_rng([device] if device.type == "cuda" else []):
        engine = engine or Replicated(model, loss, config, world)
        engine.start(optimizer)
        state = _restored(engine, optimizer, checkpoints, moments)
        log = on_log if world.is_main and on_log else _ignore
        if on_step and state.step:
            on_step(state.step)
        clock = (time.perf_counter(), state.num_tokens)
        while state.step < config.steps and not state.stopped_early:
            model.train()
            logged = (state.step + 1) % config.log_every == 0 or state.step + 1 == config.steps
            watching = monitor.begin(logged) if monitor else None
            norm, spike = _step(engine, optimizer, batch_at(state.step + state.num_passed), config, state, watching)
            if spike:
                log(step=state.step, spike=spike.what, value=spike.value, limit=spike.limit, action=config.on_spike)
                if config.on_spike == "rewind":
                    state = _rewind(engine, checkpoints, state, spike)
                    _save(engine, checkpoints, state, config)
                    continue
            if on_step:
                on_step(1)
            if logged:
                clock = _log_step(log, state, norm, optimizer, clock, watching.values(engine) if watching else {})
            if evaluate and config.eval_every and (state.step % config.eval_every == 0 or state.step == config.steps):
                model.eval()
                _judge(evaluate(), state, config, log)
            _end_step(engine, checkpoints, state, config, _stop_requested(check_stop, device, world))
        engine.settle(wait=True)
    model.eval()
    return state


def _restored(engine: Engine, optimizer: Optimizer, checkpoints: Path | None, moments: Path | None) -> TrainState:
    """Return where to begin: the newest checkpoint's state, or a new one, with moments where they are given."""
    saved = engine.load(checkpoints) if checkpoints else None
    if moments and not saved:
        load_moments(moments, engine.named_parameters(), optimizer)
    return TrainState(**saved) if saved else TrainState()


def _save(engine: Engine, checkpoints: Path | None, state: TrainState, config: TrainConfig) -> None:
    if checkpoints:
        engine.save(checkpoints, state.step, asdict(state), config.keep_checkpoints)


def _end_step(
    engine: Engine, checkpoints: Path | None, state: TrainState, config: TrainConfig, stop: Stopped | None
) -> None:
    """Save where it is time to, and stop where that is asked for."""
    engine.settle(wait=False)
    if stop or (config.checkpoint_every and state.step % config.checkpoint_every == 0):
        _save(engine, checkpoints, state, config)
    if stop:
        engine.settle(wait=True)
        raise stop


def _log_step(
    log: Callable[..., None],
    state: TrainState,
    norm: float,
    optimizer: Optimizer,
    clock: tuple[float, int],
    more: Mapping[str, float],
) -> tuple[float, int]:
    """Log a step with the speed since `clock`; return the time and the tokens of now."""
    now = (time.perf_counter(), state.num_tokens)
    speed = (now[1] - clock[1]) / (now[0] - clock[0])
    lr = optimizer.param_groups[0]["lr"]
    log(step=state.step, loss=state.loss, gradient_norm=norm, lr=lr, tokens_per_second=speed, **more)
    return now


def _optimizer(
    groups: Sequence[ParameterGroup], config: TrainConfig, device: torch.device, *, fused: bool
) -> Optimizer:
    """Return the optimiser over the groups; each keeps its own peak learning rate, which the schedule scales."""
    # Neither the fused nor the multi-tensor kernel takes a mixture of sharded and plain parameters.
    kernel = {"fused": device.type in ("cpu", "cuda")} if fused else {"foreach": False}
    optimizer: Optimizer
    if config.optimizer == "muon":
        optimizer = MuonWithAdamW(groups, config, fused=kernel.get("fused", False))
    else:
        optimizer = AdamW(list(groups), betas=(config.beta1, config.beta2), eps=config.eps, **kernel)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def _step(
    engine: Engine,
    optimizer: Optimizer,
    batch: Batch,
    config: TrainConfig,
    state: TrainState,
    monitor: Monitor | None = None,
) -> tuple[float, Spike | None]:
    """Do one optimiser step; return the gradient norm before clipping, and the spike where there was one.

    A spike that is skipped leaves the weights as they are, one that rewinds or stops leaves all as it is.
    """
    summed_loss, num_tokens = engine.accumulate(batch, state.step)
    norm = engine.scale_gradients(1 / max(1.0, num_tokens))
    mean_loss, norm_value = summed_loss / max(1.0, num_tokens), float(norm)
    spike = None
    if config.on_spike != "off":
        watch = Watch(state.losses, state.norms)
        spike = watch.look(mean_loss, norm_value)
        if spike and config.on_spike == "note" and math.isfinite(spike.value):
            watch.take(mean_loss, norm_value)
    leaves = spike is not None and config.on_spike in ("skip", "rewind")
    if not leaves:
        _check_finite(summed_loss, norm, state.step, optimizer)
        if spike and config.on_spike == "stop":
            raise _spike_error(state.step, spike)
        if monitor:
            monitor.before_step(engine, optimizer.param_groups)
        if config.clip_norm:
            engine.clip(norm, config.clip_norm)
        factor = lr_factor(state.step, config)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        optimizer.step()
        if monitor:
            monitor.after_step(engine)
    optimizer.zero_grad()
    if spike:
        state.num_spikes += 1
        if leaves and state.num_spikes > MAX_INTERVENTIONS:
            raise _spike_error(state.step, spike)
        if config.on_spike == "rewind":
            return norm_value, spike
    state.step += 1
    state.num_tokens += int(num_tokens)
    if not leaves:
        state.loss = mean_loss
    return norm_value, spike


def _rewind(engine: Engine, checkpoints: Path | None, state: TrainState, spike: Spike) -> TrainState:
    """Go back to the newest checkpoint; the data up to and with the spike's batch is passed over from there on."""
    engine.settle(wait=True)
    saved = engine.load(checkpoints) if checkpoints else None
    if saved is None:
        raise _spike_error(state.step, spike, "There is no checkpoint yet to go back to; lower --checkpoint-every. ")
    back = TrainState(**saved)
    back.num_passed = state.num_passed + state.step + 1 - back.step
    back.num_spikes = state.num_spikes
    return back


def _spike_error(step: int, spike: Spike, why: str = "") -> PolyloomError:
    return PolyloomError(
        f"the {spike.what} rose to {spike.value:.4g} at step {step} (limit {spike.limit:.4g}).",
        hint=f"{why}Lower the learning rate or lengthen the warm-up; the last checkpoint is intact.",
    )


def _check_finite(loss: float, norm: Tensor, step: int, optimizer: Optimizer) -> None:
    if math.isfinite(loss) and bool(torch.isfinite(norm)):
        return
    what = "loss" if not math.isfinite(loss) else "gradient norm"
    raise PolyloomError(
        f"the {what} is not finite at step {step} (lr {optimizer.param_groups[0]['lr']:.3g}).",
        hint="Lower the learning rate or lengthen the warm-up; the last checkpoint is intact.",
    )


def _judge(values: Mapping[str, float], state: TrainState, config: TrainConfig, log: Callable[..., None]) -> None:
    """Log an evaluation and count how long the first of its values has not improved."""
    log(step=state.step, **values)
    value = next(iter(values.values()))
    if math.isfinite(value) and (state.best is None or value < state.best):
        state.best, state.best_step, state.num_worse = value, state.step, 0
    else:
        state.num_worse += 1
    state.stopped_early = bool(config.patience) and state.num_worse >= config.patience


def _stop_requested(check_stop: Callable[[], None] | None, device: torch.device, world: World) -> Stopped | None:
    """Return the request to stop, which counts when it has reached any of the processes."""
    request = None
    if check_stop:
        try:
            check_stop()
        except Stopped as stopped:
            request = stopped
    if world.size > 1 and world.sum(torch.tensor(float(request is not None), device=device)) > 0:
        return request or Stopped("another process was asked to stop.")
    return request


def _ignore(**values: Any) -> None:
    pass
