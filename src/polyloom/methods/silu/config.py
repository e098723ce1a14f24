"""The configurations of the room's verbs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyloom.core.config import Config, StudyConfig


class FactsConfig(Config):
    """`polyloom silu facts`: the fact sheet of one activation."""

    activation: str = Field("silu", description="A name of the registry, or your own function as module:function.")


class MemoryConfig(Config):
    """`polyloom silu memory`: what the exact forms A and B save, and the proof that they change no bit."""

    model: str = Field(
        "tiny", description="Hugging Face folder or hub id to prove the patch on; tiny: made on the spot."
    )
    num_tokens: int = Field(1024, ge=1, description="Tokens of the measured block.")
    hidden_size: int = Field(256, ge=1, description="Width of the measured block.")
    intermediate_size: int = Field(688, ge=1, description="Inner width (ffn) of the measured block.")
    rounds: int = Field(40, ge=3, description="Interleaved timing rounds; ratios are paired within a round.")


class AdviseConfig(Config):
    """`polyloom silu advise`: bytes that each form would save on a model, and its time cost on this machine."""

    model: str = Field("tiny", description="Hugging Face folder or hub id; only its configuration is read.")
    batch_size: int = Field(1, ge=1, description="Sequences in a batch.")
    sequence_length: int = Field(4096, ge=1, description="Tokens in a sequence.")
    rounds: int = Field(20, ge=3, description="Interleaved timing rounds.")


class SiluStudyConfig(StudyConfig):
    """`polyloom silu study`: the activation lab."""

    tasks: list[Literal["digits", "shapes", "text"]] = Field(
        ["digits", "shapes", "text"], description="Embedded tasks to run: digits, shapes, text."
    )
    activations: list[str] | None = Field(
        None,
        min_length=1,
        description="Activations to compare: registry names, swiglu, reglu, geglu, module:function. [default: by task]",
    )
    baseline: str = Field("relu", description="The activation that the others are compared with.")
    num_seeds: int | None = Field(None, ge=2, description="Paired test seeds of every task. [default: by profile]")
    margin: float = Field(0.005, gt=0, description="Largest accuracy difference that counts as none.")
    loss_margin: float = Field(0.01, gt=0, description="Largest loss difference that counts as none, in nats.")
    languages: list[str] = Field(["en", "de", "tr"], min_length=1, description="Languages of the embedded text task.")
    task: str | None = Field(None, description="Your own task as module:build; it replaces the embedded ones.")
    model: str | None = Field(None, description="Hugging Face causal model to go on training with swapped activations.")
    data: str | None = Field(None, description="Text file for --model: plain text, one document after the other.")
