"""The configurations of the room's verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from polyloom.core.config import Config, StudyConfig

PriorName = Literal[
    "none",
    "sft",
    "refined",
    "pseudo",
    "lexicon-gate",
    "language-gate",
    "gold",
    "file",
    "translation-memory",
    "constant",
    "small-lm",
    "wrong-language",
    "foreign-content",
]
DictionaryFormat = Literal["auto", "muse", "dictd", "tei", "wiktextract", "csv", "tsv", "wiktionary"]
Task = Literal["translate", "summarize", "tag", "own"]


class DictionaryOptions(Config):
    """A bilingual dictionary and how it is read."""

    dictionary: Path | None = Field(None, description="Bilingual dictionary, source to target; gzip is opened.")
    dictionary_format: DictionaryFormat = Field("auto", description="What the dictionary is written in.")
    invert: bool = Field(False, description="Turn the dictionary round (translations ranked by counts).")
    encoding: str = Field("utf-8", description="Encoding of text files.")


class PriorOptions(DictionaryOptions):
    """A base model, its inputs, and where prior tokens come from."""

    base: str = Field("", description="Base model: Hugging Face folder or hub id, causal or encoder-decoder.")
    input: Path | None = Field(None, description="Texts: plain (one a line) or .jsonl; - reads standard input.")
    text_field: str = Field("text", description="Key of a JSON line's source text.")
    reference_field: str = Field("reference", description="Key of a JSON line's reference (gold priors, searches).")
    source_language: str = Field("en", description="Language code of the texts.")
    target_language: str = Field("", description="Language code of the answers.")
    template: str = Field("", description="Prompt in Jinja with source, source_lang, target_lang. [default: by task]")
    prior: list[PriorName] = Field(["none"], min_length=1, description="Prior sources; the first that has tokens wins.")
    k: int = Field(2, ge=0, description="Prior tokens.")
    sft: str = Field("", description="Tuned model, for the sources sft, wrong-language and foreign-content.")
    small: str = Field("", description="Small task model or small LM, for the sources refined and small-lm.")
    small_template: str = Field("{{ source }}", description="The small model's prompt.")
    priors: Path | None = Field(None, description="JSON lines {id, prior} for the source file.")
    memory: Path | None = Field(None, description="JSON lines with text and reference: translation memory, or shots.")
    constant: str = Field("", description="Fixed opener for the source constant.")
    wrong_language: str = Field("", description="Language asked for instead, for the control wrong-language.")
    max_rank: int = Field(20, ge=1, description="small-lm: a proposed token is kept while the base ranks it below.")
    heal: bool = Field(False, description="Drop a text prior's last token where its word may go on.")
    informative: bool = Field(True, description="Extend a pseudo prior until a token tells the language.")
    max_new_tokens: int = Field(128, ge=1, description="Budget of an answer, the prior not counted.")
    batch_size: int = Field(16, ge=1, description="Rows decoded together.")
    trust_remote_code: bool = Field(False, description="Run Python code that a checkpoint ships.")


class TranslateConfig(PriorOptions):
    """`polyloom prefix translate`: translate with prior tokens."""

    shots: int = Field(0, ge=0, description="Examples from --memory in front of each prompt.")
    in_context: Literal["plain", "urial"] = Field("plain", description="How the examples are written.")
    stop: list[str] = Field(["\n"], description="Texts that end an answer.")
    candidates: int = Field(
        1,
        ge=1,
        le=16,
        description="Priors tried per text: each source's, and a first word's translations; the best answer is kept.",
    )
    beams: int = Field(1, ge=1, le=64, description="Hypotheses of a beam search behind each prior; 1 is greedy.")
    reconstruction: float = Field(
        0.0, ge=0, description="With --candidates: weight of the source's log-probability behind an answer."
    )
    output: Path | None = Field(None, description="Also write the answers here, as JSON lines.")
    prefill: Literal["last_turn", "continue_final_message"] = Field(
        "continue_final_message", description="How a server takes a prefilled turn (base http://host/v1#model)."
    )


class GenerateConfig(TranslateConfig):
    """`polyloom prefix generate`: any task with prior tokens."""

    task: Task = Field("own", description="translate, summarize, tag, or own (needs --template).")

    @model_validator(mode="after")
    def _has_template(self) -> GenerateConfig:
        if self.task == "own" and not self.template:
            raise ValueError("the task own needs a template")
        return self


class PriorConfig(PriorOptions):
    """`polyloom prefix prior`: build priors, or search the best source and k on a small development set."""

    task: Task = Field("translate", description="translate, summarize, tag, or own (needs --template).")
    search: bool = Field(False, description="Compare all given sources at every k up to --k on the references.")


class DecideConfig(PriorOptions):
    """`polyloom prefix decide`: the decision-space report of a base model against its tuned form."""

    task: Task = Field("translate", description="translate, summarize, tag, or own (needs --template).")
    positions: int = Field(20, ge=1, description="Answer positions compared.")
    sft_template: str = Field("", description="The tuned model's own prompt, where it differs.")
    threshold: float = Field(0.95, gt=0, le=1, description="Agreement at which a position counts as aligned.")


class EvaluateConfig(Config):
    """`polyloom prefix evaluate`: score one or several files of answers."""

    outputs: list[Path] = Field(..., min_length=1, description="JSON lines of answers; each file is one system.")
    references: Path | None = Field(None, description="References: plain or .jsonl. [default: in the outputs]")
    output_field: str = Field("output", description="Key of an answer.")
    reference_field: str = Field("reference", description="Key of a reference.")
    source_field: str = Field("source", description="Key of a source, for the copy rate.")
    target_language: str = Field(..., description="Language code of the answers.")
    languages: list[str] = Field([], description="Codes to identify among. [default: all that are known]")
    task: Task = Field("translate", description="tag adds word accuracy and F1, summarize ROUGE-L and LaSE.")
    baseline: int = Field(0, ge=0, description="Position of the system that Rel is relative to (the SFT model's file).")
    sentencepiece: Path | None = Field(None, description="SentencePiece model for spBLEU (FLORES-200's).")
    encoder: str = Field("", description="Sentence encoder for LaSE (LaBSE's folder).")
    encoding: str = Field("utf-8", description="Encoding of text files.")


class DictionaryConfig(DictionaryOptions):
    """`polyloom prefix dictionary`: read a bilingual dictionary, measure its hit rate, notice a reversed one."""

    source_language: str = Field("en", description="Language code of the headwords.")
    target_language: str = Field("", description="Language code of the translations; Wiktextract's are chosen by it.")
    text: Path | None = Field(None, description="Source texts to measure the hit rate on: plain or .jsonl.")
    text_field: str = Field("text", description="Key of a JSON line's source text.")
    word: list[str] = Field([], description="Words to look up.")
    output: Path | None = Field(None, description="Write the entries here as source<tab>target lines.")


class PrefixStudyConfig(StudyConfig):
    """`polyloom prefix study`: the embedded experiment."""

    targets: list[str] = Field(["de", "fr", "cs"], min_length=2, max_length=4, description="Languages beside English.")
    num_seeds: int | None = Field(None, ge=1, description="Seeds of corpus, models and training. [default: by profile]")

    @field_validator("targets")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if "en" in value or len(set(value)) != len(value):
            raise ValueError("give other languages than English, each once")
        return value
