"""The configurations of the verbs that work on data: corpus, tokenizer, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from polyloom.core.config import Config
from polyloom.data.shards import Format
from polyloom.data.web import Extractor
from polyloom.methods.pretrain.corpus.language import Identifier


class CorpusConfig(Config):
    """`polyloom pretrain corpus`: from folders of documents to clean shards and their data card."""

    input: list[str] = Field(
        [],
        description="Files and folders (txt, jsonl, csv, parquet, html, warc, UDHR xml; .gz, .zst), or DOMAIN=PATH. "
        "[default: documents with planted duplicates, which are measured]",
    )
    out: Path | None = Field(None, description="Folder for the shards. [default: in the run]")
    text_key: str = Field("text", description="Key or column of the text.")
    encodings: list[str] = Field(["utf-8"], min_length=1, description="Encodings to try, in this order.")
    extractor: Extractor = Field("auto", description="What takes text out of HTML: trafilatura, plain, or auto.")
    max_document_bytes: int = Field(64 << 20, ge=1, description="Longer lines and documents are left out and counted.")
    languages: list[str] = Field([], description="Keep these languages alone. [default: all]")
    language_id: Identifier = Field("py3langid", description="py3langid, lingua, or none: trust the input's own tags.")
    min_language_probability: float = Field(0.65, ge=0, le=1, description="Below it a text is dropped.")
    heuristics: bool = Field(True, description="Apply the rules of Gopher, FineWeb and C4.")
    rules: dict[str, dict[str, Any]] = Field(
        {}, description="Thresholds by language, `*` for all; their names are in corpus/rules.py. In a YAML file."
    )
    quality_good: list[str] = Field([], description="Texts of the quality that is wanted: trains a classifier.")
    quality_random: list[str] = Field([], description="Texts of the usual quality, for the same classifier.")
    min_quality: float = Field(0.5, ge=0, le=1, description="Least probability of the good kind.")
    paragraphs: bool = Field(True, description="Keep each paragraph of 40 or more characters once per language.")
    near_duplicates: bool = Field(True, description="Drop near duplicates by MinHash.")
    shingle_words: int = Field(5, ge=1, description="Words of a shingle; characters where no spaces are written.")
    num_bands: int = Field(14, ge=1, description="Bands of the signature.")
    num_rows: int = Field(8, ge=1, description="Rows of a band.")
    min_jaccard: float = Field(
        0.7, ge=0, le=1, description="Candidates are dropped from this exact Jaccard on; 0 trusts the bands."
    )
    protect: list[str] = Field([], description="Test sets: documents that share a 13-gram with them are dropped.")
    contaminated: Literal["drop", "cut"] = Field("drop", description="Drop such documents, or cut the paragraphs.")
    private: bool = Field(True, description="Put placeholders for e-mail and IP addresses, card and identity numbers.")
    shares: dict[str, float] = Field(
        {}, description="Wanted share of each domain or domain/language, in a YAML file; too much of one is cut."
    )
    tokenizer: Path | None = Field(None, description="Tokenizer folder: the card then counts tokens too.")
    format: Format = Field("jsonl.zst", description="jsonl, jsonl.gz, jsonl.zst or parquet.")
    num_shards: int | None = Field(None, ge=1, description="Shards of each cell. [default: 256 MB of input a shard]")
    split_bytes: int = Field(256 << 20, ge=1, description="Large JSON lines are read in parts of this size.")
    executor: Literal["local", "ray"] = Field("local", description="Processes of this machine, or a Ray cluster.")
    num_workers: int = Field(1, ge=1, description="Processes; 1 works in this one.")
    rank: int = Field(0, ge=0, description="This job's number among --num-ranks that share --out.")
    num_ranks: int = Field(1, ge=1, description="Jobs that share the work, as in a SLURM array.")
    rank_timeout_seconds: float = Field(3600, gt=0, description="How long a rank waits for the others' tasks.")
    keep_stages: bool = Field(False, description="Keep the intermediate files of the stages.")
    verify: bool = Field(False, description="Measure language id and losses of labelled documents; write no shards.")
    num_planted: int = Field(300, ge=20, description="Base documents of the planted measurement.")

    @model_validator(mode="after")
    def _consistent(self) -> CorpusConfig:
        if self.rank >= self.num_ranks:
            raise ValueError(f"rank {self.rank} of {self.num_ranks} ranks: count from 0")
        if self.num_ranks > 1 and self.out is None:
            raise ValueError("several ranks need one --out folder that all of them see")
        if bool(self.quality_good) != bool(self.quality_random):
            raise ValueError("a quality model needs both --quality-good and --quality-random")
        if any(share < 0 for share in self.shares.values()):
            raise ValueError("a share is negative")
        return self


WORLD_LANGUAGES = ["en", "de", "es", "ru", "zh", "ja"]
TEXT = "Files and folders, as `pretrain corpus` reads or writes them. [default: the embedded world]"


class TokenizerConfig(Config):
    """`polyloom pretrain tokenizer`: byte-level BPE on a balanced sample, and what it does to each language."""

    data: list[str] = Field([], description=TEXT)
    languages: list[str] = Field([], description="Keep these languages. [default: all; of the world: six]")
    vocab_size: int = Field(4096, ge=259, description="Tokens, the three specials among them.")
    alpha: float = Field(0.3, ge=0, le=1, description="Sampling p ~ n^alpha: 1 as mixed, 0 all languages equal.")
    sample_bytes: int | None = Field(
        None, ge=1, description="Bytes to train on. [default: half of the text, at most 20 MB]"
    )
    split_digits: bool = Field(False, description="Every digit is a token of its own.")
    compare: list[str] = Field([], description="Other tokenizers: folders or hub ids.")
    baselines: bool = Field(True, description="Train two controls of the same size: as mixed, and one language only.")
    test_bytes: int = Field(50_000, ge=1, description="Held-out bytes of each domain and language to measure on.")
    out: Path | None = Field(None, description="Folder for the tokenizer. [default: in the run]")


class EvaluateConfig(Config):
    """`polyloom pretrain evaluate`: bits per byte by language and domain, and benchmarks on the same checkpoint."""

    models: list[str] = Field(
        ["tiny"],
        min_length=1,
        description="Hugging Face folders or hub ids, the first is compared with the others; tiny: trained here.",
    )
    data: list[str] = Field([], description=TEXT)
    languages: list[str] = Field([], description="Keep these languages. [default: all; of the world: six]")
    weights: dict[str, float] = Field(
        {}, description="Weight of each domain/language, domain or language. [default: all languages equal]"
    )
    test_bytes: int = Field(20_000, ge=1, description="Bytes of each domain and language to score.")
    window_tokens: int | None = Field(
        None, ge=2, description="T; windows overlap by half. [default: the model's positions, at most 1024]"
    )
    batch_size: int = Field(16, ge=1, description="Windows a forward pass.")
    margin: float = Field(0.01, gt=0, description="Difference in bits per byte that counts as none.")
    cloze: int = Field(40, ge=0, description="Synthetic cloze questions a language of the world; 0 asks none.")
    benchmarks: list[str] = Field(
        [], description="lm-evaluation-harness tasks, for example bbh, humaneval, ceval-valid."
    )
    benchmark_path: Path | None = Field(None, description="Folder with task files of your own.")
    num_fewshot: int | None = Field(None, ge=0, description="Examples before each question. [default: the task's]")
    limit: int | None = Field(None, ge=1, description="Questions of each task. [default: all]")
    allow_code: bool = Field(False, description="Let tasks run the code that the model writes (HumanEval).")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Of the forward passes.")
    tiny_steps: int = Field(150, ge=1, description="Training steps of the tiny model.")
