"""Muon for matrices beside AdamW for all else, as one optimiser of the loop.

torch's own Muon orthogonalises in bfloat16, which a CPU without such units emulates some 40 times slower than float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from polyloom.core.errors import UserError
from polyloom.models.device import has_fast_bfloat16
from polyloom.training.config import TrainConfig
from polyloom.training.engine import ParameterGroup

MOMENTUM = 0.95
# Jordan and others 2024: the quintic whose slope at 0 is steepest; five turns bring singular values to 0.68 - 1.14.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
TURNS = 5
LEAST_NORM = 1e-7
# Small matrices are stepped together, which saves calls; above so many numbers a copy of them would cost memory.
TOGETHER = 2**20


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return U S' V^T for each matrix U S V^T, S' near 1, by Newton-Schulz iterations.

    Args:
        matrices: [number, rows, columns].

    Returns:
        [number, rows, columns], of the matrices' dtype.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if has_fast_bfloat16(matrices.device) else matrices.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=LEAST_NORM)
    for _ in range(TURNS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def alike(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the parameters that have a gradient in lists of one shape, of at most `TOGETHER` numbers or one matrix."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_shape.setdefault(parameter.shape, []).append(parameter)
    for shape, members in by_shape.items():
        size = max(1, TOGETHER // shape.numel())
        yield from (members[start : start + size] for start in range(0, len(members), size))


class MuonWithAdamW(Optimizer):
    """Groups with `muon` true are stepped by Muon, the others by AdamW; both keep their state here.

    Muon's step is -lr sqrt(max(1, rows / columns)) O, O the orthogonalised Nesterov momentum: its spectral norm over
    sqrt(rows / columns) does not depend on the width, so that muP leaves lr alone (arXiv 2310.17813).
    """

    def __init__(self, groups: Sequence[ParameterGroup], config: TrainConfig, *, fused: bool) -> None:
        """Take the groups.

        Args:
            groups: with `lr`, `weight_decay`, and `muon` for matrices.
            config: AdamW's betas and epsilon.
            fused: AdamW's kernel.

        Raises:
            UserError: no group is Muon's.
        """
        if not any(group.get("muon") for group in groups):
            hint = "Mark the groups of matrices with muon, or use adamw."
            raise UserError("no group of parameters is Muon's.", where="optimizer", hint=hint)
        super().__init__([{"muon": False, **group} for group in groups], {"fused": fused})
        plain = [group for group in self.param_groups if not group["muon"]]
        self.adamw = AdamW(plain, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused) if plain else None
        if self.adamw:
            self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step both."""
        for group in self.param_groups:
            for parameters in alike(group["params"]) if group["muon"] else ():
                self._step(parameters, group)
        if self.adamw:
            self.adamw.step()

    def _step(self, parameters: Sequence[Tensor], group: ParameterGroup) -> None:
        """Step matrices of one shape."""
        updates = []
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momentum = state["momentum_buffer"].mul_(MOMENTUM).add_(gradient)
            updates.append(gradient + MOMENTUM * momentum)
        rows, columns = parameters[0].shape
        for parameter, update in zip(parameters, orthogonalised(torch.stack(updates)), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
