"""The configurations of the room's verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from polyloom.core.config import Config, StudyConfig

PresetName = Literal[
    "embedded",
    "continual-llama2-7b",
    "continual-llama2-13b",
    "continual-llama3-8b",
    "continual-llama3.2-1b",
    "scratch-llama2-1.5b",
    "scratch-llama2-7b",
    "code-llama1-7b",
    "task-topv2-1.5b",
]
MODEL = "Hugging Face folder or hub id; tiny: trained here on the world's semantic parses."


class DataConfig(Config):
    """What the verbs share: the model, and where prompts come from."""

    model: str = Field("tiny", description=MODEL)
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where the model runs.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Of your model's weights.")
    data: Path | None = Field(
        None, description="Your prompts: .tsv (TOPv2, Hinglish-TOP), .jsonl, .jsonl.gz, or a text as one prompt."
    )
    train_data: Path | None = Field(None, description="Prompts that --data must not repeat: those are left out.")
    languages: list[str] = Field(["en", "de", "tr"], min_length=1, description="Languages of the embedded parses.")
    num_prompts: int = Field(24, ge=1, description="Prompts to decode.")
    max_new_tokens: int = Field(64, ge=1, description="Budget of each continuation.")
    steps: int = Field(300, ge=2, description="Training steps of the tiny model.")
    batch_size: int = Field(16, ge=1, description="Pairs per training step.")


class TrainVerbConfig(DataConfig):
    """`polyloom layerskip train`: layer dropout and early-exit loss."""

    preset: PresetName | None = Field(
        None,
        description="Settings of the paper; the options below change them. "
        "[default: embedded for tiny, code-llama1-7b, which fine-tunes, for a model of yours]",
    )
    mode: Literal["both", "ld", "ee", "baseline"] = Field(
        "both", description="Dropout, early-exit loss, both, neither."
    )
    p_max: float | None = Field(None, description="Dropout rate of the last layer. [default: the preset's]")
    e_scale: float | None = Field(None, description="Weight of early exits, 0 to 1. [default: the preset's]")
    curriculum: Literal["rotational", "gradual", "none"] | None = Field(
        None, description="Which exits are trained when. [default: the preset's]"
    )
    rotation: int | None = Field(None, description="Period R of the rotation. [default: the preset's]")
    loss_scale: Literal["paper", "sum", "linear", "uniform", "sqrt", "inv"] = Field(
        "paper", description="How exits weigh by depth; sum is torchtune's."
    )
    distill: float = Field(0.0, ge=0, description="Weight of the last layer's distribution as a teacher of the exits.")
    exit_floor: bool = Field(False, description="Train the first exit too, which the paper's weights leave out.")
    lora_rank: int = Field(0, ge=0, description="Train low-rank updates of the early half alone; 0 trains everything.")
    lr: float | None = Field(None, gt=0, description="Peak learning rate. [default: the preset's]")
    out: Path | None = Field(None, description="Folder for the trained model. [default: in the run]")
    max_loss_increase: float = Field(
        0.08, gt=0, description="Warn where the last layer's perplexity rises by more than this share."
    )


class ExitsConfig(DataConfig):
    """`polyloom layerskip exits`: what every exit is worth."""


class GenerateConfig(DataConfig):
    """`polyloom layerskip generate`: continue a prompt."""

    prompt: str | None = Field(None, description="The prompt. [default: the first of --data]")
    mode: Literal["speculative", "adaptive", "early-exit", "plain"] = Field(
        "speculative", description="early-exit loses quality; the others give the whole model's text."
    )
    exit_layer: int | None = Field(None, description="Exit E, 1 to layers - 1. [default: noted, else calibrated]")
    draft_tokens: int | None = Field(None, ge=0, description="Draft length; 0 is plain. [default: calibrated]")
    confidence: float = Field(0.0, ge=0, lt=1, description="End a draft before a token less probable than this.")
    lookup: int = Field(
        0, ge=0, description="Draft from the text where its last so many tokens stood before; 0: never."
    )
    temperature: float = Field(0.0, ge=0, description="0 is greedy.")
    top_k: int = Field(0, ge=0, description="Keep the k most probable tokens; 0 keeps all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Keep the smallest set of tokens with this mass.")
    stop: list[str] = Field([], description="Texts that end the continuation.")


class CalibrateConfig(DataConfig):
    """`polyloom layerskip calibrate`: the fastest exit and draft length on your prompts."""

    sweep: bool = Field(False, description="Also decode with every pair, to check the prediction.")
    save: bool = Field(False, description="Note the pair beside the model, where generate and serve find it.")


class BenchConfig(DataConfig):
    """`polyloom layerskip bench`: our loops beside transformers', interleaved."""

    model: str = Field(
        "tiny",
        description=MODEL + " shrunk, shrunk-large: 24M and 750M random weights whose late layers are shrunk; "
        "useless: no exit is any good.",
    )
    rounds: int = Field(5, ge=1, description="Interleaved rounds.")
    adaptive: bool = Field(False, description="Also time the adaptive mode: on the prompts, and mixed with noise.")
    watts: float | None = Field(None, gt=0, description="Watts of a busy core, for an estimate without a counter.")


class VerifyConfig(DataConfig):
    """`polyloom layerskip verify`: is the text equal to plain decoding's?"""

    draft_lengths: list[int] = Field([1, 3, 5, 8], min_length=1, description="Draft lengths to try at every exit.")
    tolerance: float = Field(1e-3, gt=0, description="Largest gap of the two best logits that counts as a tie.")
    num_draws: int = Field(0, ge=0, description="Sampled pairs for the chi-square test of the sampling rule; 0: none.")


class ServeConfig(DataConfig):
    """`polyloom layerskip serve`: OpenAI-compatible completions."""

    host: str = Field("127.0.0.1", description="Address to listen on; others than loopback are reachable by others.")
    port: int = Field(8000, ge=0, le=65535, description="Port; 0 takes a free one.")
    mode: Literal["speculative", "adaptive", "plain"] = Field("speculative", description="How texts are decoded.")
    max_requests: int = Field(0, ge=0, description="Stop after so many requests; 0 serves until stopped.")


class LayerSkipStudyConfig(StudyConfig):
    """`polyloom layerskip study`: train with and without LayerSkip, then decode."""

    languages: list[str] = Field(
        ["en", "de", "tr"], min_length=1, description="Languages of the parses; the quick profile takes three."
    )
