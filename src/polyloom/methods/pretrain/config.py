"""The configurations of the model and training verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from polyloom.core.config import Config, StudyConfig
from polyloom.training.config import TrainConfig

SEARCHED = ("lr", "matrix_lr", "std", "matrix_std", "input_mult", "output_mult")


class CoordinateCheckConfig(Config):
    """`polyloom pretrain coordinate-check`: do activations keep their size when the width grows?"""

    widths: list[int] = Field([64, 128, 256, 512], min_length=2, description="Widths, multiples of 32.")
    lr: float = Field(1e-2, gt=0, description="Learning rate at the base width 64.")
    steps: int = Field(4, ge=1, description="Steps before the measurement.")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon steps the matrices by Muon.")
    num_seeds: int = Field(3, ge=1, description="Seeds to average over.")


class TrainVerbConfig(TrainConfig):
    """`polyloom pretrain train`: from documents to a checkpoint; one file holds the whole recipe."""

    data: list[str] = Field(
        [], description="Files and folders, as `pretrain corpus` reads or writes them. [default: the embedded world]"
    )
    languages: list[str] = Field([], description="Keep these languages. [default: all; of the world: six]")
    corpus: dict[str, Any] = Field(
        {}, description="Options of `pretrain corpus` to clean --data by first, in a YAML file. [default: as it is]"
    )
    tokenizer: str | None = Field(None, description="Tokenizer folder or hub id. [default: trained on the data]")
    vocab_size: int = Field(2048, ge=259, description="Tokens of a tokenizer that is trained here.")
    mixture: dict[str, float] = Field(
        {}, description="Share of each domain/language in the samples, in a YAML file. [default: by their tokens]"
    )
    max_epochs: float = Field(0, ge=0, description="How often a source may be seen; 0 is without limit.")
    on_exhausted: Literal["error", "renormalise"] = Field("error", description="What then happens.")
    window_tokens: int = Field(128, ge=2, description="T, targets of a sample; the context of the model.")
    doc_mask: bool = Field(
        False, description="Pack whole documents (best fit); attention and positions stay inside each. [cut a stream]"
    )
    preset: str = Field("tiny-4x128", description="A shape by name, such as tele-flm-52b.")
    layers: int | None = Field(None, ge=1, description="Layers. [default: the preset's]")
    width: int | None = Field(None, ge=1, description="Hidden size. [default: the preset's]")
    model: str | None = Field(None, description="Hugging Face folder to go on training. [default: drawn anew]")
    matrix_lr: float | None = Field(None, gt=0, description="Peak learning rate of matrices at the base width. [lr]")
    std: float = Field(0.05, gt=0, description="Standard deviation of the embeddings at the start.")
    matrix_std: float = Field(0.05, gt=0, description="Standard deviation of matrices at the base width.")
    input_mult: float = Field(1.0, gt=0, description="Factor on the embeddings.")
    output_mult: float = Field(1.0, gt=0, description="Factor on the logits.")
    base_width: int | None = Field(None, ge=0, description="Width at which m = 1; 0: standard form. [the preset's]")
    base_depth: int = Field(0, ge=0, description="Layers at which the depth rule is neutral; 0: no depth rule.")
    depth_power: float = Field(1.0, ge=0.5, le=1, description="a of the depth rule (CompleteP).")
    dp: int = Field(1, ge=1, description="Processes that share rows, parameters and moments (FSDP2).")
    tp: int = Field(1, ge=1, description="Processes that share each matrix.")
    pp: int = Field(1, ge=1, description="Pipeline stages.")
    sequence_parallel: bool = Field(False, description="With tp: split norms and residuals over the sequence.")
    pipeline_schedule: Literal["1f1b", "gpipe", "interleaved-1f1b"] = Field("1f1b", description="With pp.")
    num_micro_batches: int = Field(2, ge=1, description="With pp: parts of a process's rows.")
    launch: bool = Field(True, description="Start the processes here; off prepares the run for your own torchrun.")
    prediction: Path | None = Field(
        None, description="Run of `predict --target-steps`, or its prediction.json: says at logged steps if on track."
    )
    out: Path | None = Field(None, description="Folder for the model. [default: in the run]")
    checkpoint_every: int = Field(100, ge=0, description="Steps between checkpoints; 0 saves only when stopped.")
    on_spike: Literal["off", "note", "skip", "rewind", "stop"] = Field(
        "note", description="What a spike of loss or gradient norm does; rewind goes back a checkpoint, past its data."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay at the base width.")
    monitor: bool = Field(
        True, description="At logged steps: gradient norm and update / weight by class, largest logit, loss by source."
    )


class ExportConfig(Config):
    """`polyloom pretrain export`: a checkpoint in other forms, its logits compared."""

    model: str = Field("tiny", description="Folder in Llama, Granite or TeleFLM form; tiny: made on the spot.")
    forms: list[Literal["granite", "llama", "teleflm"]] = Field(
        ["granite", "llama"], min_length=1, description="Forms to write: granite, llama (folded), teleflm."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Of the tensors written.")
    out: Path | None = Field(None, description="Folder for a folder of each form. [default: in the run]")


class GrowConfig(Config):
    """`polyloom pretrain grow`: a larger model with the same function."""

    model: str = Field("tiny", description="Folder in Llama or Granite form; tiny: trained on the spot.")
    width: int | None = Field(None, ge=1, description="New hidden size, a multiple of the head size.")
    ffn: int | None = Field(None, ge=1, description="New inner width. [default: by the family's rule]")
    layers: int | None = Field(None, ge=1, description="New number of layers.")
    moments: Path | None = Field(
        None, description="Run folder of the `train` that made the model: AdamW's moments grow with it."
    )
    out: Path | None = Field(None, description="Folder for the grown model. [default: in the run]")


class PlanConfig(Config):
    """`polyloom pretrain plan`: memory, arithmetic and layouts of a model on so many devices."""

    preset: str = Field("tele-flm-52b-padded", description="A shape by name, such as tele-flm-52b.")
    layers: int | None = Field(None, ge=1, description="Layers. [default: the preset's]")
    width: int | None = Field(None, ge=1, description="Hidden size. [default: the preset's]")
    num_devices: int = Field(896, ge=1, description="Devices.")
    device_gigabytes: float = Field(80.0, gt=0, description="Memory of one.")
    device_teraflops: float = Field(312.0, gt=0, description="Peak of one in bfloat16.")
    mfu: float = Field(0.45, gt=0, le=1, description="Share of the peak that is reached.")
    num_tokens: float = Field(2e12, gt=0, description="Tokens to train on.")
    batch_size: int = Field(1344, ge=1, description="Rows of a step, over all devices.")
    window_tokens: int = Field(4096, ge=1, description="T, targets of a row.")
    micro_batch_size: int = Field(1, ge=1, description="Rows of a micro-batch.")
    activation_checkpointing: bool = Field(True, description="Keep each layer's input alone.")
    memory_saving_swiglu: Literal["off", "A", "B"] = Field("A", description="Form of SwiGLU.")
    max_tp: int = Field(8, ge=1, description="Largest tp: the devices that a fast link joins.")


class SearchConfig(Config):
    """`polyloom pretrain search`: the best learning rate by width, in muP and in the standard form; or a grid."""

    widths: list[int] = Field([64, 256], min_length=1, description="Widths, multiples of 32; the first is the base.")
    lowest_exponent: int = Field(-9, description="Learning rates are powers of two: the lowest.")
    highest_exponent: int = Field(-3, description="And the highest.")
    steps: int = Field(60, ge=8, description="Steps of each run.")
    num_seeds: int = Field(3, ge=1, description="Seeds of each cell.")
    languages: list[str] = Field(["en", "de", "tr"], min_length=1, description="Languages of the world's text.")
    data: list[str] = Field([], description="Your own text in place of the world's, as `pretrain corpus` reads it.")
    grid: dict[str, list[float]] = Field(
        {},
        description="Values of lr, matrix_lr, std, matrix_std, input_mult, output_mult to search on the first width by "
        "successive halving, in a YAML file. [default: compare learning rates over widths]",
    )

    @model_validator(mode="after")
    def _consistent(self) -> SearchConfig:
        if self.highest_exponent - self.lowest_exponent < 2:
            raise ValueError("three learning rates are needed: lower lowest_exponent")
        unknown = self.grid.keys() - set(SEARCHED)
        if unknown:
            raise ValueError(f"the grid names {min(unknown)!r}; it can hold {', '.join(SEARCHED)}")
        if any(not values or min(values) <= 0 for values in self.grid.values()):
            raise ValueError("every value of the grid is above 0, and each key has one")
        return self


class PredictConfig(Config):
    """`polyloom pretrain predict`: the loss of a larger model, with an interval, or that it is not resolved."""

    table: Path | None = Field(
        None, description="CSV of your runs: parameters, loss, and seed, step where they differ. [default: train some]"
    )
    target: float | None = Field(None, gt=0, description="Parameters to predict for. [default: 4 times the largest]")
    target_steps: int | None = Field(
        None, ge=2, description="Predict the whole curve to this step, from losses of several sizes and steps."
    )
    published: bool = Field(False, description="Predict the losses that others published, from their smaller models.")
    widths: list[int] = Field([32, 64, 96, 128, 192], min_length=4, description="Widths to train, multiples of 32.")
    steps: int = Field(250, ge=8, description="Steps of each; all widths take the same.")
    num_seeds: int = Field(3, ge=1, description="Seeds of each width.")
    lr: float = Field(2**-6, gt=0, description="Learning rate at the base width 64.")
    languages: list[str] = Field(["en", "de", "tr"], min_length=1, description="Languages of the world's text.")


class MixtureConfig(Config):
    """`polyloom pretrain mixture`: shares of the sources, from how each loss falls with them."""

    table: Path | None = Field(
        None,
        description="CSV of your runs: weight:NAME and loss:NAME columns, the first row to compare with. [train some]",
    )
    data: list[str] = Field([], description="Text of two or more domain/languages, as `pretrain corpus` reads it.")
    languages: list[str] = Field(["en", "de", "tr"], min_length=2, description="Languages of the world's text.")
    importance: dict[str, float] = Field(
        {}, description="What each loss counts for, in a YAML file; one that is not named counts nothing. [all alike]"
    )
    num_mixtures: int = Field(12, ge=4, description="Proxies to train, each under its own shares.")
    width: int = Field(64, ge=32, description="Of the proxies, a multiple of 32.")
    steps: int = Field(100, ge=8, description="Steps of each.")
    lr: float = Field(2**-6, gt=0, description="Learning rate at the base width 64.")
    num_seeds: int = Field(3, ge=2, description="New seeds that compare the proposal with the first run's shares.")

    @model_validator(mode="after")
    def _consistent(self) -> MixtureConfig:
        if any(value < 0 for value in self.importance.values()) or (
            self.importance and not sum(self.importance.values())
        ):
            raise ValueError("importance is 0 or above, and above 0 somewhere")
        return self


class VerifyConfig(Config):
    """`polyloom pretrain verify`: do many processes, a kill and another layout give the numbers of one process?"""

    layouts: list[str] = Field(
        ["2x2x2"], description="Layouts pp x dp x tp to compare with one process over 5 steps; none skips it."
    )
    sequence_parallel: bool = Field(False, description="With tp: split norms and residuals over the sequence.")
    reshard: bool = Field(True, description="Save with dp 2, go on with tp 2.")
    kill: bool = Field(True, description="End a run by SIGKILL, resume it, compare the weights.")


class PretrainStudyConfig(StudyConfig):
    """`polyloom pretrain study`: tokenizer table, muP check, prediction and bits per byte of a small model."""

    model: str | None = Field(None, description="A model folder to measure. [default: trained on the spot]")
    text: list[Path] = Field([], description="Your text. [default: the world]")
    languages: list[str] = Field(
        ["en", "de", "es", "ru", "zh", "ja"], min_length=1, description="The world's languages."
    )


class BenchConfig(Config):
    """`polyloom pretrain bench`: tokens a CPU second, or a second of a GPU, beside a plain loop over HF's Llama."""

    device: Literal["cpu", "cuda"] = Field("cpu", description="cuda trains a larger model, of 0.3 billion parameters.")
    steps: int = Field(3, ge=1, description="Steps of a round.")
    rounds: int = Field(5, ge=2, description="Interleaved rounds; ratios are paired within a round.")
    precision: Literal["float32", "bfloat16"] = Field("bfloat16", description="Of the forward passes.")
