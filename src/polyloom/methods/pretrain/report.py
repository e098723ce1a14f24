"""The room's figures: the curves of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyloom.core.result import Series

CURVES = {
    "loss": ("nats per token", "loss"),
    "expected_loss": ("nats per token", "loss"),
    "gradient_norm": ("global norm", "gradient norm"),
    "max_logit": ("largest logit", "largest logit"),
}
# What a name before a slash stands for: the part behind it is a class of tensors or a source.
FAMILIES = {
    "gradient_norm": ("norm", "gradient norm by class"),
    "update_ratio": ("update over weight", "update over weight by class"),
    "loss": ("nats per token", "loss by source"),
}


def training_curves(logs: Sequence[dict[str, Any]]) -> dict[str, Series]:
    """Return the curves of logged steps; those of a monitor stand together by what they measure.

    Args:
        logs: lines of `metrics.jsonl` that hold a step.
    """
    names = list(dict.fromkeys(name for line in logs for name in line))
    curves = {}
    for name in names:
        family, slash, part = name.partition("/")
        if slash and family in FAMILIES:
            label, group = FAMILIES[family]
            curves[f"{family.replace('_', ' ')}: {part}"] = _curve(logs, name, label, group)
        elif name in CURVES:
            curves[name] = _curve(logs, name, *CURVES[name])
    return curves


def _curve(logs: Sequence[dict[str, Any]], name: str, label: str, group: str) -> Series:
    lines = [line for line in logs if name in line]
    return Series(
        x=[float(line["step"]) for line in lines],
        y=[line[name] for line in lines],
        x_label="step",
        y_label=label,
        group=group,
    )
