"""What the training loop can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from polyloom.core.config import Config


class TrainConfig(Config):
    """Configuration of one training run. A batch's size and content do not depend on how many processes share it."""

    steps: int = Field(300, ge=1, description="Optimiser steps.")
    batch_size: int = Field(16, ge=1, description="Rows per step, over all processes.")
    micro_batch_size: int = Field(0, ge=0, description="Rows per forward pass of a process; 0 takes all at once.")
    lr: float = Field(4e-3, gt=0, description="Peak learning rate.")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="Lowest learning rate, as a share of the peak.")
    schedule: Literal["cosine", "wsd", "linear", "constant"] = Field("cosine", description="Learning-rate schedule.")
    warmup_steps: int = Field(20, ge=0, description="Steps of linear warm-up.")
    decay_fraction: float = Field(0.2, gt=0, le=1, description="Share of the steps in which wsd decays.")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: orthogonalised momentum for matrices, AdamW for all else."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first-moment decay.")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's second-moment decay.")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's weight decay, on matrices alone.")
    clip_norm: float = Field(1.0, ge=0, description="Clip the global gradient norm to this; 0 leaves it.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Forward passes; auto is bfloat16 where the hardware multiplies it."
    )
    log_every: int = Field(10, ge=1, description="Steps between log lines.")
    eval_every: int = Field(0, ge=0, description="Steps between evaluations; 0 evaluates never.")
    patience: int = Field(0, ge=0, description="Stop after so many evaluations without improvement; 0 never does.")
    checkpoint_every: int = Field(0, ge=0, description="Steps between checkpoints; 0 saves only when stopped.")
    on_spike: Literal["off", "note", "skip", "rewind", "stop"] = Field(
        "off", description="What a spike of loss or gradient norm does; rewind goes back a checkpoint, past its data."
    )
    monitor: bool = Field(
        False, description="At logged steps: gradient norm and update / weight by class, largest logit, loss by source."
    )
    memory_saving_swiglu: Literal["off", "A", "B"] = Field(
        "off", description="Exact SwiGLU that keeps 3 (A) or 2 (B) of 4 units for the backward pass."
    )
    activation_checkpointing: bool = Field(
        False, description="Keep each layer's input alone and run it again in the backward pass."
    )
    async_checkpoints: bool = Field(
        False, description="Write checkpoints while training goes on; costs a copy of weights and moments."
    )
    keep_checkpoints: int = Field(2, ge=1, description="Checkpoints to keep, the newest.")

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.patience and not self.eval_every:
            raise ValueError("patience needs eval_every")
        if self.on_spike == "rewind" and not self.checkpoint_every:
            raise ValueError("on_spike rewind needs checkpoint_every")
        return self
