"""The configurations of the room's verbs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyloom.core.config import Config, StudyConfig

FORMATS = Literal["auto", "iob2", "panx", "facebook", "mtop", "xnli", "xnli-mt", "paws-x", "pairs", "jsonl", "conllu"]
Device = Literal["auto", "cpu", "cuda", "mps"]


class TransferTrainConfig(Config):
    """`polyloom transfer train`: arms that differ by one setting, on the same seeds and batches."""

    data: list[str] = Field(
        ["world"], min_length=1, description="Labelled files of the source language; world: the embedded world."
    )
    language: str = Field("en", description="The source language.")
    dev: list[str] = Field([], description="Held-out files of the source language. [default: a tenth of the data]")
    test: list[str] = Field([], description="Test files as LANGUAGE=FILE; the source language may be among them.")
    target_dev: list[str] = Field(
        [], description="LANGUAGE=FILE with target labels for the oracle alone; they choose nothing."
    )
    trees: list[str] = Field([], description="CoNLL-U files as LANGUAGE=FILE, matched to the data by their words.")
    dictionaries: list[str] = Field(
        [], description="Dictionaries and gazetteers from the source, as LANGUAGE=FILE; the first named comes first."
    )
    translations: list[str] = Field(
        [], description="The data in machine translation, as LANGUAGE=FILE, line by line: for the arm translate."
    )
    format: FORMATS = Field("auto", description="What labelled files are written in.")
    strict: bool = Field(False, description="Refuse faulty trees and tags in place of repairing and counting them.")
    task: Literal["auto", "sentence", "tags", "intent"] = Field(
        "auto", description="sentence or pair classes, tags, or intent with slots; auto: what the labels are."
    )
    arms: list[str] = Field(
        ["base", "lex", "syn", "lexsyn"],
        min_length=1,
        description="base, lex, syn, lexsyn and the controls lex-static, lex-all, lex-mix, syn-upos, syn-tree, "
        "syn-random, syn-chain, lexsyn-random, translate, xmixup.",
    )
    num_seeds: int = Field(3, ge=1, description="Seeds of every arm.")

    encoder: str = Field(
        "tiny", description="Hugging Face folder or hub id; tiny: a small BERT made on the spot; words: a BiGRU."
    )
    width: int = Field(128, ge=8, description="words: width of embeddings and of each direction.")
    pretrain: list[str] = Field(
        [], description="Text or CoNLL-U files for masked language modelling before the task. [default: the trees]"
    )
    pretrain_epochs: int = Field(1, ge=0, description="Passes over that text; 0 leaves the encoder as it is.")
    vocabulary: int = Field(4000, ge=300, description="tiny: pieces of the tokenizer, trained on that text.")
    lora_rank: int = Field(0, ge=0, description="Train low-rank updates of the encoder alone (peft); 0 trains it all.")
    adapter_width: int = Field(
        0, ge=0, description="Train bottleneck adapters of this width behind the frozen encoder's layers; 0: none."
    )
    language_texts: list[str] = Field(
        [], description="LANGUAGE=FILE: raw text that an adapter of the language learns first (MAD-X)."
    )
    teacher_weight: float = Field(
        0.0, ge=0, description="Train a second time, towards what the first model says (xTune's second stage)."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that a checkpoint ships.")

    rate: float = Field(0.5, ge=0, le=1, description="Share of the words that are switched.")
    mix: float = Field(1.0, ge=0, le=1, description="Share of the sentences that are switched at all.")
    switching: Literal["count", "cosda"] = Field(
        "count", description="count: that share of each sentence; cosda: each word by itself. Drawn anew every epoch."
    )
    per: Literal["word", "sentence"] = Field("word", description="Draw the language for each word or sentence.")
    choose: Literal["first", "uniform", "pos", "freq", "sense"] = Field(
        "first", description="Which translation is taken."
    )
    among: Literal["all", "covered", "outside"] = Field("all", description="Words that the rate counts.")
    weights: list[str] = Field([], description="LANGUAGE=NUMBER: how often a language is drawn. [default: 1 each]")
    protect: list[str] = Field(
        [], description="Words that never change: numbers, urls, placeholders, signs, labels, or an expression."
    )
    scripts: list[str] = Field([], description="LANGUAGE=SCRIPT: keep those translations, such as zh=Hans.")
    reverse: bool = Field(False, description="Turn the dictionaries round.")
    avoid: list[str] = Field(
        [], description="Register or region of translations to leave out: LABEL or LANGUAGE=LABEL, such as dated."
    )
    prefer: list[str] = Field(
        [], description="Register or region of translations to take alone where there are some, such as es=Mexico."
    )
    phrases: bool = Field(False, description="Make one word of each phrase that a dictionary has, such as New York.")
    sync_pairs: bool = Field(False, description="Switch a word of a pair alike in both sentences.")
    inflect: list[str] = Field(
        [], description="LANGUAGE=FILE: treebanks whose forms translations take, by the features of the source's trees."
    )
    crf: bool = Field(False, description="Score and decode tags as a chain (a linear-chain CRF).")
    consistency: float = Field(0.0, ge=0, description="Weight of the symmetric KL of a text and its switched form.")

    mixup: float = Field(
        0.5, ge=0, le=1, description="Share of the translation in mixed states (xmixup) and word vectors (lex-mix)."
    )

    graph_layers: int = Field(4, ge=1, description="L: layers of graph attention.")
    graph_heads: int = Field(4, ge=1, description="H: heads of graph attention.")
    radius: int = Field(1, ge=0, description="delta: tree distance that a graph layer looks over.")
    syntactic_heads: int = Field(1, ge=1, description="S: slices that are spread over the encoder's heads.")
    syntactic_layers: list[int] | None = Field(None, description="Encoder layers to fuse, from 0. [default: all]")
    fuse: Literal["all", "first"] = Field("all", description="all heads (LS-mBERT) or the first S (Syntax-mBERT).")
    upos: bool = Field(True, description="Add part-of-speech embeddings to the graph.")
    deprel: bool = Field(False, description="Add relation embeddings to the graph.")
    structural_weight: float = Field(1.0, ge=0, description="lambda of the structural loss.")
    zero_init: bool = Field(False, description="Begin with zero fusion: exactly at the encoder.")

    epochs: int = Field(10, ge=1, description="Passes over the data.")
    batch_size: int = Field(32, ge=1, description="Examples in a step.")
    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of the steps with growing learning rate.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Of the heads; for tiny also of states, for words of all.")
    max_length: int = Field(128, ge=8, description="Pieces of a sequence; longer ones are cut and counted.")
    select: Literal["last", "dev", "switched-dev", "average"] = Field(
        "last", description="Checkpoint: the last, the best on dev or on switched dev, or the mean of the last half."
    )
    save: Literal["none", "first", "all"] = Field(
        "first", description="Models to keep: of no, the first or every seed."
    )
    margin: float = Field(1.0, gt=0, description="Difference of scores that counts as none, in points.")
    device: Device = Field("auto", description="Where to train.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Forward passes; auto: bfloat16 on a GPU that multiplies it."
    )


class TransferEvaluateConfig(Config):
    """`polyloom transfer evaluate`: a saved model's scores for each language."""

    model: str = Field(description="Folder that `transfer train` wrote (artifacts/ARM-seedN).")
    average_with: list[str] = Field([], description="Folders of the same arm, whose weights are averaged with it.")
    test: list[str] = Field(min_length=1, description="Test files as LANGUAGE=FILE.")
    source: str = Field("en", description="The language that the gap is measured from.")
    trees: list[str] = Field([], description="CoNLL-U files as LANGUAGE=FILE.")
    format: FORMATS = Field("auto", description="What the test files are written in.")
    strict: bool = Field(False, description="Refuse faulty trees and tags in place of repairing and counting them.")
    generalised: bool = Field(False, description="Pair tasks: first sentence in one language, second in another.")
    xtreme: Literal["none", "xnli", "pawsx", "panx", "udpos"] = Field(
        "none", description="Write predictions as this task's folder of an XTREME submission."
    )
    tree_check: bool = Field(
        False, description="Score with random, chained and flat trees and without parts of speech, too."
    )
    attention: bool = Field(False, description="Measure how much attention goes to neighbours in the tree.")
    batch_size: int = Field(64, ge=1, description="Examples in a forward pass.")
    device: Device = Field("auto", description="Where to run.")


class TransferStudyConfig(StudyConfig):
    """`polyloom transfer study`: four arms on the embedded world, two target languages, with intervals."""

    languages: list[str] = Field(["de", "es"], min_length=1, description="Target languages of the embedded world.")
    task: Literal["tags", "sentence"] = Field("tags", description="Tagging with trees, or classes of phrases.")
    num_seeds: int | None = Field(None, ge=2, description="Paired seeds. [default: by profile]")
