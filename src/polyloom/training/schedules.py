"""Learning-rate schedules, as factors of each parameter group's own peak."""

from __future__ import annotations

import math

from polyloom.training.config import TrainConfig


def lr_factor(step: int, config: TrainConfig) -> float:
    """Return the factor on every group's learning rate at an optimiser step.

    Linear warm-up from 1/warmup_steps to 1; then `cosine` and `linear` fall to `min_lr_ratio` at the last step, `wsd`
    stays and falls linearly over the last `decay_fraction` of the steps, `constant` stays.

    Args:
        step: the step, from 0.
        config: schedule, steps, warmup_steps, decay_fraction, min_lr_ratio.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    last = config.steps - 1
    begin = config.warmup_steps
    if config.schedule == "wsd":
        begin = max(begin, config.steps - math.ceil(config.decay_fraction * config.steps))
    progress = min(1.0, max(0.0, (step - begin) / max(1, last - begin)))
    fall = (1 - math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else progress
    return 1.0 - (1.0 - config.min_lr_ratio) * fall
