"""The configurations of the room's verbs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyloom.core.config import Config, StudyConfig
from polyloom.methods.select.cleaning import Cleaning
from polyloom.methods.select.method import Aggregation

SCORERS_HELP = (
    "tfidf, char, bm25, latent, minilm, or a sentence encoder's folder or hub id, with late: before it for token-level "
    "MaxSim or idf: for weighted means; several are fused by rank."
)


class PoolConfig(Config):
    """What every verb that reads a pool takes."""

    pool: str = Field(
        "world",
        description="Folder of Natural Instructions, promptsource, BIG-Bench or BBH; a json, jsonl, csv or tsv file; "
        "hf:NAME; world.",
    )
    cleaning: Cleaning = Field("drop", description="Placeholders of instructions: drop, keep, replace or names.")
    languages: list[str] = Field(
        ["en", "de", "es", "tr", "fr", "it"], min_length=1, max_length=6, description="Languages of the world."
    )
    split: str | None = Field(None, description="Take only tasks of this split, where the pool names splits.")


class TargetConfig(PoolConfig):
    """What every verb that scores a pool for a target takes."""

    target: list[str] = Field([], description="The target task's instruction, once for each wording.")
    target_task: str | None = Field(None, description="A task of the pool as the target; it is left out of the pool.")
    target_file: str | None = Field(None, description="The target as a file in any of the pool's formats, or a text.")
    scorers: list[str] = Field(["tfidf", "char", "bm25"], min_length=1, description=SCORERS_HELP)
    aggregation: Aggregation = Field("mean", description="Over instruction pairs: mean, max, mean_of_max, soft, vote.")
    dictionary: str | None = Field(
        None, description="Bilingual dictionary that maps the target's words to the pool's language, for word scorers."
    )
    k: int = Field(5, ge=1, description="How many tasks to choose.")
    cache: str | None = Field(None, description="Folder of cached embeddings. [default: the user's cache folder]")
    head: str | None = Field(None, description="Aligned head that `polyloom select align` wrote.")


class RankConfig(TargetConfig):
    """`polyloom select rank`: the tasks of a pool, ranked for a target by instructions alone."""

    transfers: str | None = Field(None, description="CSV of measured gains (source,target,gain) for a prior.")
    prior: Literal["popularity", "pivots"] = Field(
        "popularity", description="Gains on other targets: their mean, or weighted by how near those are to this one."
    )
    prior_weight: float = Field(0.5, ge=0, le=1, description="Weight of the prior where --transfers is given.")
    exclude_same_source: bool = Field(False, description="Leave out tasks made from the target's own data set.")
    diversify: bool = Field(False, description="Choose by maximal marginal relevance instead of score alone.")
    rerank: Literal["gradient", "fisher"] | None = Field(
        None,
        description="Order the first 4 k tasks anew by examples: gradient (LESS) or fisher (Task2Vec). Needs examples "
        "of the target.",
    )
    num_probes: int = Field(
        0, ge=0, description="Tasks at the edge of k to train with and without, 50 steps each, in search of harm."
    )
    model: str = Field("tiny", description="Of --rerank and --num-probes: a Hugging Face folder or hub id; tiny.")
    num_examples: int = Field(0, ge=0, description="Write so many examples of each chosen task to subset.jsonl.")
    pick: Literal["random", "weighted"] = Field(
        "random", description="Examples at random, or those most like the target's examples and unlike each other."
    )


class ExplainConfig(TargetConfig):
    """`polyloom select explain`: which instruction pairs decide, and what changes without each wording."""


class StabilityConfig(TargetConfig):
    """`polyloom select stability`: how much of the selection stays when wordings are dropped."""

    num_drops: int = Field(200, ge=10, description="Random halves of the wordings to try.")


class LintConfig(PoolConfig):
    """`polyloom select lint`: defects of a pool's instructions."""

    num_examples: int = Field(50, ge=0, description="Examples of each task to look for in its instructions.")


class AlignConfig(PoolConfig):
    """`polyloom select align`: adapt an encoder to a meta-dataset's instructions, guarded on unseen categories."""

    encoder: str = Field("latent", description="latent, minilm, or a sentence encoder's folder or hub id.")
    recipe: Literal["head", "last-n", "paper"] = Field(
        "head", description="head: a linear map; last-n: the last layers; paper: the whole encoder, 5 epochs at 1e-6."
    )
    positives: Literal["same_category", "same_task"] = Field("same_category", description="What makes a pair alike.")
    lr: float | None = Field(None, gt=0, description="Learning rate. [default: by recipe]")
    num_epochs: int | None = Field(None, ge=1, description="Passes over the pairs. [default: by recipe]")
    num_layers: int = Field(1, ge=1, description="Layers that last-n trains.")
    max_unseen_drop: float = Field(0.01, ge=0, description="Largest fall of P@5 on categories held out.")
    stop_early: bool = Field(True, description="Stop before development categories fall by more than that.")
    cache: str | None = Field(None, description="Folder of cached embeddings. [default: the user's cache folder]")


class EvaluateConfig(PoolConfig):
    """`polyloom select evaluate`: judge selections by categories, a reference selection or measured transfers."""

    scorers: list[str] = Field(["tfidf", "char", "bm25"], min_length=1, description=SCORERS_HELP)
    aggregation: Aggregation = Field("mean", description="Over instruction pairs: mean, max, mean_of_max, soft, vote.")
    reference: str | None = Field(
        None, description="JSON of target -> chosen tasks to compare with; insta-p3: the paper's three published ones."
    )
    transfers: str | None = Field(None, description="CSV of measured gains (source,target,gain).")
    parallel: str | None = Field(
        None, description="JSON lines of the pool's tasks told in other languages: task, language, instruction."
    )
    dictionary: str | None = Field(None, description="Bilingual dictionary for the instructions of --parallel.")
    k: int = Field(5, ge=1, description="How many tasks a selection has.")
    smallest_category: int = Field(5, ge=2, description="Smallest category whose tasks serve as queries.")
    cache: str | None = Field(None, description="Folder of cached embeddings. [default: the user's cache folder]")


class TuneConfig(TargetConfig):
    """`polyloom select tune`: tune a model on the selection and on its rivals, all at one budget."""

    model: str = Field("tiny", description="Hugging Face folder or hub id of a causal or encoder-decoder model; tiny.")
    test_file: str | None = Field(None, description="JSON lines with input, output and options of the target.")
    arms: list[Literal["selected", "all", "random", "worst", "oracle", "instances", "gradients"]] = Field(
        ["selected", "all", "random", "worst"], min_length=1, description="Mixtures to tune on."
    )
    num_seeds: int = Field(3, ge=1, description="Seeds of model, order and random choice.")
    steps: int = Field(240, ge=1, description="Optimiser steps of every arm.")
    batch_size: int = Field(16, ge=1, description="Examples a step.")
    lr: float | None = Field(None, gt=0, description="Learning rate. [default: 4e-3 for tiny, 5e-5 otherwise]")
    num_test: int = Field(64, ge=1, description="Test examples of a world target.")


class SelectStudyConfig(StudyConfig):
    """`polyloom select study`: rank the world's tasks, then tune at one budget on what was and was not chosen."""

    languages: list[str] = Field(
        ["en", "de", "es", "tr", "fr", "it"], min_length=2, max_length=6, description="Languages of the world."
    )
    scorers: list[str] = Field(
        ["latent"], min_length=1, description=SCORERS_HELP + " latent is aligned with the pool's operations first."
    )
    targets: list[str] = Field(
        [], description="Tasks of the world in its last language. [default: those that the rule of the benchmark chose]"
    )
    num_seeds: int | None = Field(None, ge=1, description="Seeds. [default: by profile]")
