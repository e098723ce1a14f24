"""The configurations of the model and training verbs."""

from __future__ import annotations

from pydantic import Field

from polyloom.core.config import Config


class CoordinateCheckConfig(Config):
    """`polyloom pretrain coordinate-check`: do activations keep their size when the width grows?"""

    widths: list[int] = Field([64, 128, 256, 512], min_length=2, description="Widths, multiples of 32.")
    lr: float = Field(1e-2, gt=0, description="Learning rate at the base width 64.")
    steps: int = Field(4, ge=1, description="Steps before the measurement.")
    num_seeds: int = Field(3, ge=1, description="Seeds to average over.")
