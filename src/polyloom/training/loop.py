"""The training loop: AdamW, accumulation over tokens, clipping, logging, evaluation, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from polyloom.core.errors import PolyloomError, Stopped
from polyloom.core.seeding import derive_seed
from polyloom.models.device import autocast
from polyloom.training.checkpoints import load_checkpoint, save_checkpoint
from polyloom.training.config import TrainConfig
from polyloom.training.packing import Batch, BatchAt
from polyloom.training.parallel import World, join_world
from polyloom.training.schedules import lr_factor

Loss = Callable[[nn.Module, Batch], tuple[Tensor, int]]
ParameterGroup = dict[str, Any]


@dataclass
class TrainState:
    """Where a training run stands; saved with every checkpoint.

    `step` counts optimiser steps, `num_tokens` targets over all processes, `loss` is the last step's mean in nats,
    `best` the lowest evaluation, `best_step` its step, `num_worse` the evaluations since, `stopped_early` says whether
    patience ended it.
    """

    step: int = 0
    num_tokens: int = 0
    loss: float | None = None
    best: float | None = None
    best_step: int = 0
    num_worse: int = 0
    stopped_early: bool = False


def next_token_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Return the summed next-token cross entropy in nats and the number of targets.

    Args:
        model: a causal language model of transformers.
        batch: `tokens` [rows, T+1].
    """
    tokens = batch["tokens"]
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    targets = tokens[:, 1:]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
    return loss, targets.numel()


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
    checkpoints: Path | None = None,
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
        groups: AdamW's parameter groups with their own `lr` and `weight_decay`; `parameter_groups` where absent.
        checkpoints: the folder to save to and resume from; nothing is saved without.
        on_log: called with step, loss (nats), gradient_norm, lr, tokens_per_second (wall clock), and with step and
            the evaluation's values.
        on_step: called after each step with 1, and on resume with the steps that were done before: a progress bar.
        evaluate: returns named values; the first is minimised by early stopping. Called every `config.eval_every` steps
            and after the last, with the model in evaluation mode.
        check_stop: raises `Stopped` when the run has been asked to stop; a checkpoint is saved first.

    Returns:
        The state at the end; the model is in evaluation mode.

    Raises:
        PolyloomError: the loss or a gradient is not finite.
        Stopped: the run was asked to stop.
    """
    device = next(model.parameters()).device
    optimizer = _optimizer(groups or parameter_groups(model, config), config, device)
    with join_world(device) as world, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        saved = load_checkpoint(checkpoints, model, optimizer) if checkpoints else None
        state = TrainState(**saved) if saved else TrainState()
        world.share([parameter.detach() for parameter in model.parameters()])
        log = on_log if world.is_main and on_log else _ignore
        if on_step and state.step:
            on_step(state.step)

        def save() -> None:
            if checkpoints and world.is_main:
                save_checkpoint(checkpoints, state.step, model, optimizer, asdict(state), config.keep_checkpoints)
            world.wait()

        clock = (time.perf_counter(), state.num_tokens)
        while state.step < config.steps and not state.stopped_early:
            model.train()
            norm = _step(model, loss, optimizer, batch_at(state.step), config, state, world)
            if on_step:
                on_step(1)
            done = state.step == config.steps
            if state.step % config.log_every == 0 or done:
                now = (time.perf_counter(), state.num_tokens)
                speed = (now[1] - clock[1]) / (now[0] - clock[0])
                lr = optimizer.param_groups[0]["lr"]
                log(step=state.step, loss=state.loss, gradient_norm=norm, lr=lr, tokens_per_second=speed)
                clock = now
            if evaluate and config.eval_every and (state.step % config.eval_every == 0 or done):
                model.eval()
                _judge(evaluate(), state, config, log)
            stop = _stop_requested(check_stop, device, world)
            if stop or (config.checkpoint_every and state.step % config.checkpoint_every == 0):
                save()
            if stop:
                raise stop
    model.eval()
    return state


def _optimizer(groups: Sequence[ParameterGroup], config: TrainConfig, device: torch.device) -> AdamW:
    """Return AdamW over the groups; each keeps its own peak learning rate, which the schedule scales."""
    fused = device.type in ("cpu", "cuda")
    optimizer = AdamW(list(groups), betas=(config.beta1, config.beta2), eps=config.eps, fused=fused)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def _step(
    model: nn.Module, loss: Loss, optimizer: AdamW, batch: Batch, config: TrainConfig, state: TrainState, world: World
) -> float:
    """Do one optimiser step and return the gradient norm before clipping."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device = parameters[0].device
    torch.manual_seed(derive_seed(config.seed, "step", state.step, world.rank))
    total = torch.zeros(2, dtype=torch.float64)
    for part in _micro_batches(batch, config, world):
        on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in part.items()}
        with autocast(device, config.precision):
            summed, num_targets = loss(model, on_device)
        summed.backward()  # type: ignore[no-untyped-call]
        total += torch.tensor([summed.item(), num_targets], dtype=torch.float64)
    if world.size > 1:
        total = world.sum(total.to(device)).cpu()
    summed_loss, num_tokens = total.tolist()
    world.sum_gradients(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, 1 / max(1.0, num_tokens))
    norm = torch.nn.utils.get_total_norm(gradients)
    _check_finite(summed_loss, norm, state.step, optimizer)
    if config.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, norm)
    factor = lr_factor(state.step, config)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    optimizer.step()
    optimizer.zero_grad()
    state.step += 1
    state.num_tokens += int(num_tokens)
    state.loss = summed_loss / max(1.0, num_tokens)
    return float(norm)


def _micro_batches(batch: Batch, config: TrainConfig, world: World) -> list[Batch]:
    """Cut this process's rows out of the batch, and those into micro-batches."""
    rows = range(config.batch_size * world.rank // world.size, config.batch_size * (world.rank + 1) // world.size)
    size = config.micro_batch_size or len(rows)
    starts = range(rows.start, rows.stop, size) if rows else []
    return [{name: tensor[i : min(i + size, rows.stop)] for name, tensor in batch.items()} for i in starts]


def _check_finite(loss: float, norm: Tensor, step: int, optimizer: AdamW) -> None:
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
