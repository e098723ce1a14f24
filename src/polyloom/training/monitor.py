"""The monitor of a long run: what each class of tensors does and what each source costs, at the steps that are logged.

Between logged steps it does nothing. At one it keeps a copy of the weights for the length of the optimiser's step and
computes the loss of each source from logits that are there; neither touches what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from polyloom.training.engine import Engine, ParameterGroup


class Monitor:
    """Gradient norm and update / weight ratio by class, the largest logit, the loss by source."""

    def __init__(self, classes: Mapping[str, Sequence[Tensor]], sources: Sequence[str] = ()) -> None:
        """Take what is told apart.

        Args:
            classes: this process's parameters by class; every process names the same classes in the same order.
            sources: names of the sources that a batch's `source` numbers.
        """
        self.classes, self.sources = classes, sources
        self.active = False
        self._reset()

    def _reset(self) -> None:
        self.found: dict[str, float] = {}
        self.max_logit = -math.inf
        self.losses = torch.zeros(max(1, len(self.sources)), 2, dtype=torch.float64)
        self.before: dict[str, list[Tensor]] = {}

    def begin(self, active: bool) -> Monitor | None:
        """Look at the step that begins, or not; return the monitor where it does."""
        self.active = active
        if active:
            self._reset()
        return self if active else None

    def see(self, logits: Tensor, targets: Tensor, sources: Tensor | None) -> None:
        """Take logits [rows, T, vocabulary] of the step, with targets [rows, T] (-100: none) and sources [rows]."""
        if not self.active:
            return
        with torch.no_grad():
            logits = logits.detach().float()
            self.max_logit = max(self.max_logit, float(_local(logits).max()))
            if sources is None or not self.sources:
                return
            each: Any = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            rows = _local(each).view_as(targets).sum(dim=1).double().cpu()
            counts = (targets >= 0).sum(dim=1).double().cpu()
            self.losses.index_add_(0, sources.cpu(), torch.stack([rows, counts], dim=1))

    def before_step(self, engine: Engine, groups: Sequence[ParameterGroup]) -> None:
        """Take the gradients, before they are clipped, and keep the weights."""
        scales = {p: float(group.get("gradient_scale", 1.0)) for group in groups for p in group["params"]}
        parts = [[(p.grad, scales[p]) for p in part if p.grad is not None] for part in self.classes.values()]
        for name, total in zip(self.classes, engine.totals(parts), strict=True):
            self.found[f"gradient_norm/{name}"] = math.sqrt(total)
        self.before = {name: [p.detach().clone() for p in part] for name, part in self.classes.items()}

    def after_step(self, engine: Engine) -> None:
        """Compare the weights with those before the step."""
        weights = [[(p.detach(), 1.0) for p in part] for part in self.classes.values()]
        updates = [
            [(p.detach() - old, 1.0) for p, old in zip(part, self.before[name], strict=True)]
            for name, part in self.classes.items()
        ]
        totals = engine.totals([*weights, *updates])
        for name, weight, update in zip(self.classes, totals, totals[len(weights) :], strict=False):
            # Both have as many entries: the ratio of their norms is that of their root mean squares.
            self.found[f"update_ratio/{name}"] = math.sqrt(update / weight) if weight else 0.0
        self.before = {}

    def values(self, engine: Engine) -> dict[str, float]:
        """Return what the step showed; all processes call it."""
        found = dict(self.found)
        max_logit = float(engine.world.max(torch.tensor(self.max_logit, device=engine.device)))
        if math.isfinite(max_logit):
            found["max_logit"] = max_logit
        losses = engine.world.sum((self.losses * engine.loss_share).to(engine.device)).tolist()
        for name, (loss, count) in zip(self.sources, losses, strict=False):
            if count:
                found[f"loss/{name}"] = loss / count
        return found


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
