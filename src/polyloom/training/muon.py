"""Muon for matrices beside AdamW for all else, as one optimiser of the loop.

torch's own Muon orthogonalises in bfloat16, which a CPU without such units emulates some 40 times slower than float32.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return U S' V^T for a matrix U S V^T, S' near 1, by Newton-Schulz iterations.

    Args:
        matrix: [rows, columns].

    Returns:
        [rows, columns], of the matrix's dtype.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16() if has_fast_bfloat16(matrix.device) else matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=LEAST_NORM)
    for _ in range(TURNS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = (x.T if tall else x).to(matrix.dtype)
    return found


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
            for parameter in group["params"] if group["muon"] else ():
                if parameter.grad is not None:
                    self._step(parameter, group)
        if self.adamw:
            self.adamw.step()

    def _step(self, parameter: Tensor, group: ParameterGroup) -> None:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].mul_(MOMENTUM).add_(gradient)
        update = orthogonalised(gradient + MOMENTUM * momentum)
        rows, columns = parameter.shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
