"""The verb `switch`: code-switched data, previewed and exported with their realised rates."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import read_text, write_text
from polyloom.core.result import Artifact, Result, Scalar, Table
from polyloom.data.dictionaries import Dictionary
from polyloom.data.labelled import from_record, read_labelled
from polyloom.data.records import Example, Sentence, split_words
from polyloom.data.treebanks import join_trees, read_conllu
from polyloom.data.world import NOTICE, World, records
from polyloom.methods.transfer.data import split_specs
from polyloom.methods.transfer.data_config import SwitchConfig
from polyloom.methods.transfer.inflection import Inflector, read_inflector
from polyloom.methods.transfer.lexicon import (
    Hits,
    hits_of,
    lexicon_notices,
    open_lexicons,
    phrased,
    read_weights,
    world_lexicon,
)
from polyloom.methods.transfer.prompts import prompt_report
from polyloom.methods.transfer.switching import Aids, SwitchCounts, Switched, SwitchPlan, count_switches, switch_all
from polyloom.metrics.statistics import wilson_interval
from polyloom.runs.folder import Run

WORLD_TARGETS = ("de", "es", "zh")
NUM_WORLD_EXAMPLES = 400


def run_switch(config: SwitchConfig, run: Run) -> Result:
    """Switch a data set, write it out and say at what rates.

    Raises:
        UserError: data, dictionaries or settings that do not fit.
    """
    plan = _plan(config)
    examples, notices = _examples(config)
    lexicons = _lexicons(config)
    if config.phrases:
        examples = phrased(examples, lexicons)
    hits = hits_of(lexicons, examples)
    aids = _aids(config)
    epochs: list[list[Switched]] = []
    with run.progress("epochs", config.num_epochs) as advance:
        for epoch in range(config.num_epochs):
            made = switch_all(
                examples, plan, lexicons, seed=config.seed, epoch=epoch, num_workers=config.num_workers, aids=aids
            )
            epochs.append(made)
            run.check_stop()
            advance(1)
    exported = "".join(_export(examples, epochs))
    equal = all(_same(examples, plan, lexicons, config, number, aids, epochs[0]) for number in config.check_workers)
    write_text(run.artifact("switched.jsonl"), exported)
    write_text(run.artifact("replacements.tsv"), _log(epochs))
    counts = count_switches(examples, epochs[0], plan, lexicons)
    prompt_scalars, prompts, answers = prompt_report(config, run, examples, plan, lexicons, aids)
    scalars = _switch_scalars(counts, exported) | prompt_scalars
    if config.check_workers:
        scalars["equal_at_any_worker_count"] = Scalar(value=equal)
    return run.result(
        scalars=scalars,
        tables={
            "languages": _language_table(counts, hits),
            "preview": _preview(examples, epochs[0], config.preview),
        },
        artifacts={
            "switched": Artifact(
                path="artifacts/switched.jsonl",
                media_type="application/jsonl",
                description="switched data, labels and trees beside",
            ),
            "replacements": Artifact(
                path="artifacts/replacements.tsv",
                media_type="text/tab-separated-values",
                description="every word that was replaced",
            ),
        }
        | prompts,
        verdicts=[
            f"{counts.replaced} of {counts.words} words were replaced ({counts.realised_rate:.1%} at rate "
            f"{config.rate:g}); {counts.out_of_dictionary_share:.1%} of those that may be are in no dictionary.",
            *lexicon_notices(hits),
            *answers,
            *([] if equal else ["The data differ between numbers of processes: please report this."]),
        ],
        limitations=[
            *(f"{number} {what}." for what, number in notices.items()),
            "A translation is put in the place of its word, in the source's order"
            + (", in a form of the treebank where one agrees." if config.inflect else ", as the dictionary has it."),
            *([NOTICE] if config.data == "world" else []),
        ],
    )


def _plan(config: SwitchConfig) -> SwitchPlan:
    dynamic = config.mode != "paper" if config.dynamic is None else config.dynamic
    return SwitchPlan(
        config.rate,
        config.mode,
        config.per,
        config.choose,
        config.among,
        dynamic,
        config.mix,
        config.sync_pairs,
        tuple(config.protect),
        read_weights(config.weights, {spec.partition("=")[0] for spec in config.dictionaries} or WORLD_TARGETS),
    )


def _examples(config: SwitchConfig) -> tuple[list[Example], Counter[str]]:
    if config.data == "world":
        number = config.num_examples or NUM_WORLD_EXAMPLES
        world = World([config.language], seed=config.seed)
        rows = records(world, "tagging", (config.language,), number)
        return [from_record(row, "world", f"world-{i}") for i, row in enumerate(rows)], Counter()
    read = read_labelled(Path(config.data), format=config.format, language=config.language)
    examples = list(read.examples[: config.num_examples])
    notices = Counter(read.notices)
    if config.trees:
        examples, notices["texts without a tree"] = _with_trees(examples, config.trees)
    return examples, +notices


def _with_trees(examples: Sequence[Example], path: Path) -> tuple[list[Example], int]:
    """Join every sentence with its tree; those without one stay as they are, and are counted."""
    numbered = [
        replace(sentence, id=f"{i} {j}") for i, one in enumerate(examples) for j, sentence in enumerate(one.sentences)
    ]
    joined, num_missing = join_trees(numbered, read_conllu(path).sentences)
    found = {sentence.id: sentence for sentence in joined}
    return [
        replace(one, sentences=tuple(found.get(f"{i} {j}", sentence) for j, sentence in enumerate(one.sentences)))
        for i, one in enumerate(examples)
    ], num_missing


def _lexicons(config: SwitchConfig) -> dict[str, Dictionary]:
    if config.dictionaries:
        return open_lexicons(
            config.dictionaries,
            scripts=config.scripts,
            reverse=config.reverse,
            format=config.dictionary_format,
            avoid=config.avoid,
            prefer=config.prefer,
        )
    targets = [code for code in WORLD_TARGETS if code != config.language]
    world = World([config.language, *targets], seed=config.seed)
    return {code: world_lexicon(world, config.language, code) for code in targets}


def _aids(config: SwitchConfig) -> Aids:
    return replace(_choice_aids(config), inflect=_inflector(config))


def _inflector(config: SwitchConfig) -> Inflector | None:
    if not config.inflect:
        return None
    if config.trees is None:
        hint = "Add --trees FILE of the source language."
        raise UserError("forms are chosen by the features of the source's trees.", where="--inflect", hint=hint)
    return read_inflector([config.trees], split_specs(config.inflect, "--inflect"))


def _choice_aids(config: SwitchConfig) -> Aids:
    if config.choose == "freq" and config.frequency_text:
        return Aids(Counter(word for name in config.frequency_text for word in split_words(read_text(Path(name)))))
    if config.choose not in ("freq", "sense") or config.model is None:
        return Aids()
    from polyloom.methods.transfer.vectors import WordVectors, vocabulary_frequency
    from polyloom.models.load import load_model, load_tokenizer

    tokenizer = load_tokenizer(config.model)
    if config.choose == "freq":
        return Aids(vocabulary_frequency(tokenizer))
    return Aids(embed=WordVectors(load_model(config.model, "encoder"), tokenizer))


def _export(examples: Sequence[Example], epochs: Sequence[Sequence[Switched]]) -> Iterator[str]:
    for epoch, made in enumerate(epochs):
        for example, switched in zip(examples, made, strict=True):
            name = example.id if len(epochs) == 1 else f"{example.id}-epoch{epoch}"
            row: dict[str, Any] = {"id": name, "language": example.language}
            parts = [_columns(*both) for both in zip(switched.sentences, example.sentences, strict=True)]
            row |= parts[0] if len(parts) == 1 else dict(zip(("premise", "hypothesis"), parts, strict=True))
            if example.label:
                row["label"] = example.label
            yield json.dumps(row, ensure_ascii=False) + "\n"


def _columns(switched: Sentence, original: Sentence) -> dict[str, Any]:
    columns = {"words": switched.words, "original": original.words}
    optional = {name: getattr(switched, name) for name in ("upos", "heads", "deprels", "labels")}
    return columns | {name: values for name, values in optional.items() if values}


def _log(epochs: Sequence[Sequence[Switched]]) -> str:
    lines = ["epoch\texample\tsentence\tposition\tword\ttranslation\tlanguage\tplace\n"]
    for epoch, made in enumerate(epochs):
        lines += ["\t".join(map(str, (epoch, *one))) + "\n" for switched in made for one in switched.replacements]
    return "".join(lines)


def _same(
    examples: Sequence[Example],
    plan: SwitchPlan,
    lexicons: dict[str, Dictionary],
    config: SwitchConfig,
    number: int,
    aids: Aids,
    wanted: list[Switched],
) -> bool:
    return switch_all(examples, plan, lexicons, seed=config.seed, num_workers=number, aids=aids) == wanted


def _switch_scalars(counts: SwitchCounts, exported: str) -> dict[str, Scalar]:
    low_high = wilson_interval(counts.replaced, max(1, counts.words))
    scalars = {
        "num_examples": Scalar(value=counts.examples),
        "num_words": Scalar(value=counts.words),
        "num_replaced": Scalar(value=counts.replaced),
        "realised_rate": Scalar(value=counts.realised_rate, low=low_high.low, high=low_high.high),
        "touched_share": Scalar(value=counts.touched / max(1, counts.examples)),
        "protected_share": Scalar(value=1 - counts.eligible / max(1, counts.words)),
        "out_of_dictionary_share": Scalar(value=counts.out_of_dictionary_share),
        "sha256": Scalar(value=hashlib.sha256(exported.encode()).hexdigest()),
    }
    return scalars


def _language_table(counts: SwitchCounts, hits: Sequence[Hits]) -> Table:
    rows = [
        [
            one.language,
            counts.languages[one.language],
            counts.languages[one.language] / max(1, counts.replaced),
            one.rate,
        ]
        for one in hits
    ]
    return Table(columns=["language", "replaced", "share", "dictionary coverage"], rows=rows, title="Languages")


def _preview(examples: Sequence[Example], made: Sequence[Switched], number: int) -> Table:
    rows: list[list[Any]] = []
    for example, switched in list(zip(examples, made, strict=True))[:number]:
        before = " / ".join(" ".join(sentence.words) for sentence in example.sentences)
        rows.append([example.id, before, " / ".join(" ".join(sentence.words) for sentence in switched.sentences)])
    return Table(columns=["id", "before", "after"], rows=rows, title="Preview")
