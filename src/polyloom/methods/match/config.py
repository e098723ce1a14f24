"""The configurations of the room's verbs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from polyloom.core.config import Config, StudyConfig
from polyloom.core.errors import UserError

Base = Literal["bag", "gru", "lstm", "cnn", "encoder", "esim", "re2"]
Block = Literal["none", "fa", "sfa", "mlp", "shuffled", "equal", "reference", "senet", "sknet"]


class DataConfig(Config):
    """What the verbs that read labelled pairs share."""

    data: str = Field("world", description="File of labelled pairs; world: made on the spot.")
    languages: list[str] = Field(["en"], min_length=1, description="World: languages of the pairs; de-en pairs two.")
    num_pairs: int = Field(2000, ge=16, description="World: training pairs.")
    hardness: int | None = Field(None, ge=0, le=3, description="World: 0 any other meaning ... 3 same words. [all]")
    first_column: str | None = Field(None, description="Column of the first text, where it is not recognised.")
    second_column: str | None = Field(None, description="Column of the second text.")
    label_column: str | None = Field(None, description="Column of the label or score.")
    side: str = Field("en", description="Files with a text in two languages (JSICK): en or ja.")
    task: Literal["classes", "scores"] | None = Field(None, description="What the labels are. [default: recognised]")
    score_low: float | None = Field(None, description="Least score of the scale. [default: 0]")
    score_high: float | None = Field(None, description="Largest score of the scale. [default: 1 or 5]")
    skip_bad: bool = Field(False, description="Leave bad rows out (each is named) instead of refusing the file.")

    @model_validator(mode="after")
    def _scale(self) -> DataConfig:
        low, high = self.score_low, self.score_high
        if (low is None) != (high is None):
            raise UserError("a scale has two ends.", where="--score-low, --score-high", hint="Give both.")
        if low is not None and high is not None and low >= high:
            raise UserError(f"the scale {low:g} to {high:g} is empty.", where="--score-low, --score-high")
        return self


class TrainConfig(DataConfig):
    """`polyloom match train`: a matcher from labelled pairs."""

    valid: str | None = Field(None, description="File of validation pairs. [default: split from --data]")
    test: str | None = Field(None, description="File of test pairs. [default: split from --data]")
    output: str | None = Field(None, description="Folder for the matcher. [default: in the run]")
    base: Base = Field("bag", description="Encoder or aligner of the pair.")
    block: Block = Field("fa", description="Block over the features.")
    loss: Literal["softmax", "regression", "cosine", "cosent", "contrastive"] | None = Field(
        None, description="Loss; contrastive for search. [default: by the labels]"
    )
    vectors: str | None = Field(
        None, description="First vectors: a text file (GloVe, fastText), a model folder, or texts: the training texts'."
    )
    vectors_kind: Literal["matrix", "static"] = Field(
        "matrix", description="Of a model folder: its embedding matrix, or a static table distilled from it."
    )
    encoder: str | None = Field(None, description="Hugging Face folder of base encoder (kept frozen).")
    freeze: bool = Field(False, description="Keep the word vectors as they are.")
    width: int = Field(128, ge=2, description="Width of the word vectors, unless --vectors has its own.")
    hidden: int = Field(48, ge=2, description="Width of recurrent layers and of the head.")
    num_branches: int = Field(3, ge=1, description="SFA: branches N.")
    max_length: int = Field(64, ge=2, description="Words of a text at most.")
    symmetric: bool = Field(False, description="Make the order of the two texts irrelevant.")
    overlap: bool = Field(True, description="esim, re2: mark the words that stand in both texts.")
    epochs: int = Field(8, ge=1, description="Epochs at most.")
    batch_size: int = Field(64, ge=2, description="Pairs in a batch.")
    learning_rate: float | None = Field(None, gt=0, description="Adam's. [default: by base]")
    dropout: float | None = Field(None, ge=0, lt=1, description="Of word vectors and head. [default: by base]")
    typos: float = Field(0.0, ge=0, le=1, description="Share of training words that are misspelled, anew each epoch.")
    hard_negatives: float = Field(
        0.0, ge=0, le=1, description="contrastive: share of a batch whose texts are near each other."
    )
    teacher: str | None = Field(
        None, description="Folder of a larger model to learn from: a matcher, or a Hugging Face cross-encoder."
    )
    teacher_weight: float = Field(0.5, ge=0, le=1, description="Its weight against the gold labels.")
    num_new_pairs: int = Field(0, ge=0, description="New pairs of the training texts that the teacher labels.")


class EvaluateConfig(DataConfig):
    """`polyloom match evaluate`: how good a trained matcher is on labelled pairs."""

    model: str = Field(description="Folder of a trained matcher.")
    train: str | None = Field(None, description="The training pairs: test pairs that stand there too are counted.")
    split: Literal["test", "valid", "train", "all"] = Field("test", description="Of a file with splits, which one.")
    typos: float = Field(0.0, ge=0, le=1, description="Share of words to misspell first.")


class MatchStudyConfig(StudyConfig, DataConfig):
    """`polyloom match study`: does attention over features help, against its controls?"""

    valid: str | None = Field(None, description="File of validation pairs. [default: split from --data]")
    test: str | None = Field(None, description="File of test pairs. [default: split from --data]")
    bases: list[Base] | None = Field(None, min_length=1, description="Bases to try. [default: by profile]")
    blocks: list[Block] | None = Field(None, min_length=1, description="Blocks beside none. [default: by profile]")
    num_seeds: int | None = Field(None, ge=2, description="Paired trainings. [default: by profile]")
    epochs: int | None = Field(None, ge=1, description="Epochs of every training. [default: by profile]")


class BenchConfig(Config):
    """`polyloom match bench`: speed on one thread, as CPU time and as ratios."""

    words: int = Field(10, ge=1, description="Words of a text.")
    num_texts: int = Field(1024, ge=8, description="Texts of a round.")
    rounds: int = Field(30, ge=3, description="Interleaved rounds.")
    width: int = Field(128, ge=2, description="Width of the word vectors.")
    encoder: str | None = Field(None, description="sentence-transformers or Hugging Face folder to time beside.")


class IndexConfig(Config):
    """`polyloom match index`: encode a corpus and keep its vectors; again on the same folder: add to it."""

    model: str = Field(description="Folder of a trained matcher.")
    data: str = Field(description="The corpus: one text a line, id<tab>text, or json lines with text.")
    output: str = Field(description="Folder of the index; texts are added where it exists.")
    kind: Literal["exact", "hnsw"] = Field("exact", description="exact, or a graph for large corpora (extra: search).")


class SearchConfig(Config):
    """`polyloom match search`: the nearest texts of an index."""

    index: str = Field(description="Folder of the index.")
    model: str = Field(description="The matcher that the index was built with.")
    query: list[str] = Field([], description="Texts to look for.")
    queries: str | None = Field(None, description="File of texts to look for, as a corpus.")
    relevant: str | None = Field(None, description="File query id<tab>corpus id of right answers: MAP, MRR, recall.")
    k: int = Field(10, ge=1, description="Answers of a query.")
    rerank: str | None = Field(None, description="A second matcher (any base) that orders what the index found.")
    candidates: int = Field(50, ge=1, description="Answers of the index that the second matcher reads.")


class DedupeConfig(Config):
    """`polyloom match dedupe`: groups of texts that say the same."""

    model: str = Field(description="Folder of a trained matcher.")
    data: str = Field(description="The texts, as a corpus.")
    threshold: float = Field(0.95, gt=-1, le=1, description="Least cosine of two that say the same.")
    pairs: str | None = Field(None, description="Labelled pairs that choose the threshold for --precision.")
    precision: float = Field(0.95, gt=0, le=1, description="Wanted share of true ones among found pairs.")


class ExportConfig(Config):
    """`polyloom match export`: a matcher without torch: numpy weights with their scorer, and ONNX."""

    model: str = Field(description="Folder of a trained matcher.")
    output: str | None = Field(None, description="Folder to write to. [default: in the run]")
    int8: bool = Field(False, description="Keep word vectors as 8-bit numbers.")
    onnx: bool = Field(False, description="Write matcher.onnx too (extra: search).")
    sentence_transformers: bool = Field(False, description="Write a folder that sentence-transformers opens.")
    rounds: int = Field(200, ge=10, description="Texts that latency is measured on.")


class ExplainConfig(Config):
    """`polyloom match explain`: which words and features carry a pair's score."""

    model: str = Field(description="Folder of a trained matcher.")
    first: str = Field("", description="First text.")
    second: str = Field("", description="Second text.")
    data: str | None = Field(None, description="Labelled pairs: what the block does class by class.")
    top: int = Field(10, ge=1, description="Features shown.")
