"""The configurations of the room's verbs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyloom.core.config import Config, StudyConfig

ModelKind = Literal["loglinear", "atlop", "dreeam"]


class _DataConfig(Config):
    data: str = Field("world", description="DocRED-style JSON file; world: documents of the embedded world.")
    more_data: list[str] = Field([], description="Further files, or world:LANGUAGE, of any language or domain.")
    schema_map: str | None = Field(
        None, description="JSON file {types: {old: new}, relations: {old: new or null}} for data of another schema."
    )
    language: str = Field("ja", description="Language of the embedded world's documents.")
    num_documents: int = Field(60, ge=1, description="How many of the embedded world's documents.")
    strict: bool = Field(False, description="Refuse files with defects instead of repairing and counting them.")


class CheckConfig(_DataConfig):
    """`polyloom docre check`: totals, defects and repairs of a file."""

    schema_file: str | None = Field(None, description="rel2id.json: every relation has to be in it.")


class TrainConfig(_DataConfig):
    """`polyloom docre train`: train a model of relations."""

    kind: ModelKind = Field("loglinear", description="loglinear (seconds), atlop, or dreeam with evidence guidance.")
    dev_data: str | None = Field(
        None, description="Labelled documents to choose the margin (loglinear) or best epoch (by Ign F1) on."
    )
    start: str | None = Field(None, description="A model of the same kind to go on from; new relations are added.")
    store: str | None = Field(None, description="Annotation store: train on what was accepted there, not on --data.")
    project: str = Field("docre", description="With --store: which project.")
    annotator: str = Field("adjudicated", description="With --store: whose triples.")
    replay: list[str] = Field(
        [], description="With --start: labelled files of old, of which a tenth is trained on too."
    )
    keep_weight: float = Field(0.1, ge=0, description="With --start: weight of keeping old relations' logits.")
    teacher: str | None = Field(None, description="dreeam: a model whose attention on tokens is followed.")
    attention_weight: float = Field(0.1, ge=0, description="dreeam: weight of following the teacher's attention.")
    raw_text: list[str] = Field([], description="atlop, dreeam: text of the domain for the encoder to read first.")
    raw_epochs: int = Field(1, ge=1, description="Passes over the raw text.")
    encoder: str = Field("tiny", description="Hugging Face encoder for atlop and dreeam; tiny: made on the spot.")
    num_epochs: int = Field(5, ge=1, description="Passes over the documents.")
    learning_rate: float = Field(5e-5, gt=0, description="Of the encoder; the head's is twice that, at least 1e-4.")
    batch_size: int = Field(4, ge=1, description="Documents in a step of atlop and dreeam.")
    loss: Literal["adaptive", "focal"] = Field(
        "adaptive", description="atlop, dreeam: ATLOP's adaptive threshold, or KD-DocRE's adaptive focal loss."
    )
    evidence_weight: float = Field(0.1, ge=0, description="dreeam: weight of the evidence loss.")
    evidence_mean: Literal["annotated", "reference"] = Field(
        "annotated", description="dreeam: average over pairs with evidence, or (reference) over all positive ones."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where atlop and dreeam are trained.")


class PredictConfig(_DataConfig):
    """`polyloom docre predict`: write predicted triples."""

    model: str = Field(description="Folder that `docre train` wrote.")
    second: str | None = Field(None, description="Another model folder; the scores of both are added.")
    margin: float | None = Field(None, description="Score that a triple has to exceed. [default: the model's]")
    dev_data: list[str] = Field(
        [], description="Labelled files to choose margin and fusion threshold on: one, or one for each of the data."
    )
    fusion: bool = Field(False, description="dreeam: fuse with evidence-only pseudo-documents (ISF).")
    fusion_threshold: float = Field(0.0, description="What undecided fused triples have to reach.")
    closure: bool = Field(False, description="Add inverse and symmetric triples.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where atlop and dreeam run.")


class EvaluateConfig(Config):
    """`polyloom docre evaluate`: official scores of predictions, or cross-validation of the log-linear model."""

    data: str | None = Field(None, description="Gold file. [default: the scorer's worked example]")
    more_data: list[str] = Field([], description="Further gold files, of any language; each has its row.")
    predictions: str | None = Field(None, description="Predictions: JSON array of title, h_idx, t_idx, r.")
    train_data: str | None = Field(None, description="Training file whose facts Ign F1 leaves out.")
    smoothing: Literal["official", "atlop"] = Field("official", description="Divisor of Ign precision.")
    num_folds: int = Field(0, ge=0, description="Cross-validate the log-linear model in this many folds.")
    source_data: str | None = Field(None, description="With folds: documents of another language to transfer from.")


class ProjectConfig(_DataConfig):
    """`polyloom docre project`: translate documents with their mentions marked, and project the annotation."""

    language: str = Field("en", description="Language of the source documents.")
    target: str = Field("ja", description="Language to translate into.")
    translator: str = Field(
        "identity",
        description="identity, dictionary, seq2seq:DIR, or a chat model (folder or http://host/v1#name).",
    )
    dictionary: str | None = Field(None, description="TAB-separated source and target words for `dictionary`.")
    aligner: str | None = Field(
        None, description="Folder of a multilingual encoder that looks for mentions whose marks were lost."
    )
    drop_rate: float = Field(0.0, ge=0, le=1, description="Noise: share of marks that the translator loses.")
    swallow_rate: float = Field(0.0, ge=0, le=1, description="Noise: share of marks that swallow a following particle.")
    min_entities: float = Field(0.8, ge=0, le=1, description="Drop a document that keeps a smaller share of entities.")
    alignments: str | None = Field(None, description="Predicted word alignments to score, i-j from 0.")
    gold_alignments: str | None = Field(None, description="Gold alignments of the same lines, from 1; p is possible.")


class RecommendConfig(_DataConfig):
    """`polyloom docre recommend`: pre-filled triples for annotators, and the edit steps that they leave."""

    model: str | None = Field(None, description="Model folder. [default: trained on --train-data]")
    train_data: str = Field("world", description="Labelled documents to train on; world: the embedded world's.")
    knowledge_base: str | None = Field(
        None, description="TAB-separated head, relation, tail. [default: the training facts]"
    )
    num_train_documents: int = Field(80, ge=1, description="How many of the world's documents to train on.")
    store: str | None = Field(
        None, description="Annotation store for the recommendations: a file or a postgresql:// address."
    )
    blind: bool = Field(True, description="With --store: leave every tenth document without recommendations.")


class ExtractConfig(_DataConfig):
    """`polyloom docre extract`: relations by a language model in context, as JSON under a schema."""

    num_documents: int = Field(4, ge=1, description="How many of the embedded world's documents.")
    model: str = Field("tiny", description="Chat model: folder, hub id or http://host/v1#name; tiny: random weights.")
    mode: Literal["list", "relation", "pairs"] = Field(
        "list", description="Ask for all triples at once, per relation type, or per candidate pair of the classifier."
    )
    train_data: str = Field("world", description="Labelled documents to choose demonstrations from.")
    num_demonstrations: int = Field(1, ge=0, description="Solved examples in the prompt.")
    demonstrations: Literal["similar", "random", "cover"] = Field(
        "similar", description="The most similar documents, any, or those that together show most relations."
    )
    verify: bool = Field(False, description="Ask about each triple once more, and keep those that the model affirms.")
    max_triples: int = Field(16, ge=1, description="Most triples that constrained decoding writes a document.")
    constrained: bool = Field(True, description="Local models: decode under the grammar of the schema.")


class GraphConfig(_DataConfig):
    """`polyloom docre graph`: a knowledge graph with evidence, updated, queried and exported."""

    num_documents: int = Field(5, ge=1, description="How many of the embedded world's documents.")
    predictions: str | None = Field(None, description="Use these predicted triples in place of the labels.")
    graph: str | None = Field(None, description="An existing graph.json to update.")
    retract: str | None = Field(None, description="Title of a document to take back.")
    query: str | None = Field(None, description="Name of an entity to look up.")


class ExplainConfig(_DataConfig):
    """`polyloom docre explain`: what a model gets wrong, by class, and where its evidence lies."""

    num_documents: int = Field(20, ge=1, description="How many of the embedded world's documents.")
    model: str | None = Field(None, description="Model folder of any kind. [default: a log-linear one of the world]")
    title: str | None = Field(None, description="The document to draw. [default: the first]")


class ConvertConfig(_DataConfig):
    """`polyloom docre convert`: to and from brat, doccano, Label Studio."""

    num_documents: int = Field(5, ge=1, description="How many of the embedded world's documents.")
    source_format: Literal["docred", "brat", "doccano", "label-studio"] = Field("docred", description="Of --data.")
    target_format: Literal["docred", "brat", "doccano", "label-studio"] = Field("brat", description="To write.")


class BenchConfig(Config):
    """`polyloom docre bench`: CPU time of a training step and memory of the pair head."""

    rounds: int = Field(6, ge=3, description="Interleaved timing rounds; ratios are paired within a round.")
    num_documents: int = Field(4, ge=1, description="Documents in a step.")


class DocreStudyConfig(StudyConfig):
    """`polyloom docre study`: recommend, count edits, draw the graph, on the embedded world's documents."""

    language: str = Field("ja", description="Language of the documents.")
    source_language: str = Field("en", description="Language that labels are carried over from.")
    num_train_documents: int | None = Field(None, ge=20, description="Training documents. [default: by profile]")
