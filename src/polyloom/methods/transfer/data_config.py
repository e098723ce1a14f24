"""The configurations of the verbs that prepare data: `switch`, `parse` and `dictionary`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from polyloom.core.config import Config
from polyloom.data.dictionaries import Format
from polyloom.data.labelled import LabelledFormat


class SwitchConfig(Config):
    """`polyloom transfer switch`: preview and export code-switched data, with the realised rates."""

    data: str = Field("world", description="Labelled file of the source language; world: tagged sentences.")
    format: LabelledFormat = Field("auto", description="What the data are written in.")
    language: str = Field("en", description="The source language.")
    trees: Path | None = Field(None, description="CoNLL-U file matched by words: parts of speech for --choose pos.")
    num_examples: int | None = Field(None, ge=1, description="The first examples alone. [default: all; 400 of world]")
    dictionaries: list[str] = Field([], description="LANGUAGE=FILE for each target. [default: the world's de, es, zh]")
    dictionary_format: Format = Field("auto", description="What the dictionaries are written in.")
    scripts: list[str] = Field([], description="LANGUAGE=SCRIPT: keep those translations, such as zh=Hans.")
    reverse: bool = Field(False, description="Turn the dictionaries round.")
    avoid: list[str] = Field(
        [], description="Register or region of translations to leave out: LABEL or LANGUAGE=LABEL, such as dated."
    )
    prefer: list[str] = Field(
        [], description="Register or region of translations to take alone where there are some, such as es=Mexico."
    )
    rate: float = Field(0.5, ge=0, le=1, description="Share of the words that are drawn.")
    mode: Literal["count", "cosda", "paper"] = Field(
        "count",
        description="count: floor(n rate) words; cosda: each by itself; paper: the released rule, static, first "
        "translation (with --among outside: its rule for entities).",
    )
    per: Literal["word", "sentence"] = Field("word", description="Draw the language for each word or sentence.")
    choose: Literal["first", "uniform", "pos", "freq", "sense"] = Field(
        "first", description="Translation: the first, any, by part of speech, by frequency, by the sense in context."
    )
    among: Literal["all", "covered", "outside"] = Field(
        "all", description="Draw among all words, those in a dictionary, or those outside labelled spans."
    )
    dynamic: bool | None = Field(None, description="Draw anew each epoch. [default: yes, but for --mode paper]")
    mix: float = Field(1.0, ge=0, le=1, description="Probability that an example is switched at all.")
    sync_pairs: bool = Field(False, description="Switch a word of both texts of a pair alike.")
    protect: list[str] = Field(
        [], description="Words that never change: numbers, urls, placeholders, signs, labels, or an expression."
    )
    inflect: list[str] = Field(
        [], description="LANGUAGE=FILE: treebanks whose forms translations take, by the features in --trees."
    )
    phrases: bool = Field(False, description="Make one word of each phrase that a dictionary has, such as New York.")
    weights: list[str] = Field([], description="LANGUAGE=NUMBER: how often a language is drawn. [default: 1 each]")
    frequency_text: list[str] = Field(
        [], description="Text of the target languages, for --choose freq. [default: the order of --model's vocabulary]"
    )
    model: str | None = Field(None, description="Hugging Face encoder for --choose sense (its embeddings) and freq.")
    shots: int = Field(
        0, ge=0, description="Write few-shot prompts of as many examples, switched into the question's language."
    )
    queries: list[str] = Field([], description="LANGUAGE=FILE: questions of the prompts. [default: the world's]")
    decoder: str | None = Field(
        None, description="Causal language model that answers them, where they ask for classes."
    )
    num_epochs: int = Field(1, ge=1, description="Passes to export; dynamic switching differs in each.")
    num_workers: int = Field(1, ge=1, description="Processes; the data are the same for any number.")
    check_workers: list[int] = Field([], description="Switch with these numbers of processes, too, and compare.")
    preview: int = Field(8, ge=0, description="Examples shown in the report.")


class ParseConfig(Config):
    """`polyloom transfer parse`: train a parser from a treebank, check trees, parse text."""

    treebank: str = Field("world", description="CoNLL-U file to train and score on; world: the embedded world's trees.")
    language: str = Field("de", description="Language of the world's trees, or of stanza's models.")
    backend: Literal["udpipe", "stanza", "file"] = Field(
        "udpipe", description="udpipe: train here; stanza: its installed models; file: the trees of --predicted."
    )
    model: Path | None = Field(None, description="A UDPipe model to use in place of training one.")
    predicted: Path | None = Field(None, description="CoNLL-U file of predicted trees, for --backend file.")
    num_train: int | None = Field(
        None, ge=1, description="Train on the first sentences. [default: four fifths; 120 of world]"
    )
    num_test: int | None = Field(None, ge=1, description="Score on the last ones. [default: those not trained on]")
    test: Path | None = Field(None, description="Another CoNLL-U file to score on.")
    iterations: int | None = Field(None, ge=1, description="Passes of the trainer. [default: 5; 2 on the world]")
    text: Path | None = Field(None, description="File to parse: a sentence a line, or labelled data.")
    format: LabelledFormat | Literal["text"] = Field("text", description="What --text is written in.")
    strict: bool = Field(False, description="Refuse a faulty tree in place of leaving it out.")


class TransferDictionaryConfig(Config):
    """`polyloom transfer dictionary`: read, check, turn round, or induce a dictionary from parallel text."""

    dictionary: Path | None = Field(None, description="A dictionary to read in place of inducing one.")
    dictionary_format: Format = Field("auto", description="What it is written in.")
    reverse: bool = Field(False, description="Turn it round.")
    script: str | None = Field(None, description="Keep translations in this script, such as Latn, Hans or Hant.")
    avoid: list[str] = Field([], description="Register or region of translations to leave out, such as dated.")
    prefer: list[str] = Field(
        [], description="Register or region of translations to take alone where there are some, such as Mexico."
    )
    source_text: Path | None = Field(
        None, description="Parallel text: source lines, or both languages with ' ||| ' or TAB. [default: the world's]"
    )
    target_text: Path | None = Field(None, description="Target lines of the same texts.")
    columns: list[int] = Field([0], min_length=1, description="Columns of .csv files that hold text, from 0.")
    source_language: str = Field("en", description="Language of the headwords.")
    target_language: str = Field("de", description="Language of the translations.")
    num_pairs: int | None = Field(None, ge=1, description="Induce from the first pairs; the others estimate precision.")
    method: Literal["ibm1", "argmax", "itermax", "ask"] = Field(
        "ibm1",
        description="ibm1: from counts alone; argmax, itermax: alignments by --model's similarities; ask: what a chat "
        "model says of the words of --text.",
    )
    source_vectors: Path | None = Field(
        None, description="Word vectors in text (fastText's .vec) to induce from by CSLS, in place of parallel text."
    )
    target_vectors: Path | None = Field(None, description="Those of the target language, in the same space.")
    num_words: int = Field(20_000, ge=1, description="Words of a file, the most frequent: of vectors, or to ask for.")
    model: str | None = Field(
        None, description="Encoder for argmax and itermax; chat model to ask: a folder or http://host/v1#name."
    )
    layer: int = Field(-1, description="Its hidden state; -1 is the last.")
    iterations: int = Field(4, ge=1, description="Passes of expectation maximisation.")
    tension: float = Field(4.0, ge=0, description="Preference for the diagonal; 0 is IBM model 1 as published.")
    smoothing: float = Field(1.0, ge=0, description="Links added to each word's total.")
    threshold: float = Field(
        0.25, ge=0, lt=1, description="Least product of both directions' probabilities, or least cosine of vectors."
    )
    min_count: int = Field(3, ge=1, description="Least number of sightings of either word.")
    mutual: bool = Field(True, description="Keep a pair only if each is the other's best.")
    reference: Path | None = Field(None, description="Held-out dictionary to score the best translations against.")
    text: Path | None = Field(
        None, description="Text whose words are looked up (hit rate, and the other direction's), or asked for."
    )
