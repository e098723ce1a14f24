"""The verb `dictionary`: read, checked, turned round, or induced from parallel text and scored."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import read_text, write_text
from polyloom.core.result import Artifact, Result, Scalar, Table
from polyloom.data.dictionaries import Dictionary, read_dictionary
from polyloom.data.records import split_words
from polyloom.data.world import NOTICE, World, records
from polyloom.generation import connect
from polyloom.methods.transfer.asking import GROUP, Asked, ask_dictionary, frequent_words
from polyloom.methods.transfer.data_config import TransferDictionaryConfig
from polyloom.methods.transfer.induction import (
    InductionOptions,
    Pair,
    align,
    held_out_hits,
    induce,
    induce_from_links,
    precision_at_1,
    read_parallel,
    tsv,
    words_to_align,
)
from polyloom.methods.transfer.lexicon import (
    count_hits,
    keep_labels,
    keep_script,
    lexicon_notices,
    world_lexicon,
)
from polyloom.methods.transfer.static import induce_from_vectors, read_vectors
from polyloom.metrics.statistics import wilson_interval
from polyloom.runs.folder import Run

NUM_WORLD_PAIRS = 3000
HELD_OUT = 10
MAX_ROWS = 20
_Part = tuple[dict[str, Scalar], dict[str, Table], list[str]]


def run_dictionary(config: TransferDictionaryConfig, run: Run) -> Result:
    """Read or induce a dictionary, score it, and measure its hit rate.

    Raises:
        UserError: files or settings that do not fit.
    """
    started = time.process_time()
    made = _make(config, run)
    found = made.dictionary
    seconds = time.process_time() - started
    found = found.inverted() if config.reverse else found
    found = keep_script(found, config.script) if config.script else found
    tables = _label_table(found)
    found = keep_labels(found, config.avoid, config.prefer) if config.avoid or config.prefer else found
    write_text(run.artifact("dictionary.tsv"), tsv(found))
    scalars = {
        "num_entries": Scalar(value=len(found.entries)),
        "num_translations": Scalar(value=sum(map(len, found.entries.values()))),
        "num_malformed": Scalar(value=found.num_malformed),
        "cpu_seconds": Scalar(value=seconds, unit="s"),
    }
    verdicts = [f"{len(found.entries)} headwords ({found.format}) are in artifacts/dictionary.tsv."]
    tables["entries"] = _entries_table(found)
    if made.num_pairs:
        scalars["num_pairs"] = Scalar(value=made.num_pairs)
    for part in (
        _count_asked(made.asked),
        _score_held_out(found, made.held_out, config),
        _score_reference(found, config),
        _score_text(found, config),
    ):
        scalars |= part[0]
        tables |= part[1]
        verdicts += part[2]
    return run.result(
        scalars=scalars,
        tables=tables,
        artifacts={
            "dictionary": Artifact(
                path="artifacts/dictionary.tsv",
                media_type="text/tab-separated-values",
                description="source, target, score",
            )
        },
        verdicts=verdicts,
        limitations=[
            "A reference dictionary lists base forms and misses right translations: P@1 against it is a lower bound.",
            *([NOTICE] if _is_of_the_world(config) else []),
            *(["What a model says may be wrong both ways: score it against --reference."] if made.asked else []),
        ],
    )


@dataclass(frozen=True)
class _Made:
    """A dictionary and what it was made of: pairs of texts, of which some are held out, or a model's answers."""

    dictionary: Dictionary
    num_pairs: int = 0
    held_out: Sequence[Pair] = ()
    asked: Asked | None = None


def _make(config: TransferDictionaryConfig, run: Run) -> _Made:
    """Read, ask for or induce the dictionary that the settings name.

    Raises:
        UserError: nothing of it is sure enough.
    """
    if config.dictionary:
        return _Made(
            read_dictionary(config.dictionary, format=config.dictionary_format, target_language=config.target_language)
        )
    if config.method == "ask":
        asked = _ask(config, run)
        if not asked.num_confirmed:
            what = f"the model answered for {asked.num_answered} of {asked.num_asked} words, and none stayed."
            raise UserError(what, where="--model", hint="Try --no-mutual, or another model.")
        return _Made(asked.dictionary, asked=asked)
    if config.source_vectors or config.target_vectors:
        made = _Made(_from_vectors(config))
    else:
        pairs = _parallel(config)
        number = config.num_pairs or max(1, len(pairs) - len(pairs) // HELD_OUT)
        made = _Made(_induce(config, pairs[:number]), min(number, len(pairs)), pairs[number:])
    if not made.dictionary.entries:
        raise UserError("no pair of words is sure enough.", where="--threshold", hint="Lower it, or --min-count.")
    return made


def _count_asked(asked: Asked | None) -> _Part:
    if asked is None:
        return {}, {}, []
    counts = ("num_asked", "num_answered", "num_confirmed")
    text = f"Of {asked.num_asked} words the model translated {asked.num_answered}, and {asked.num_confirmed} stayed."
    return {name: Scalar(value=getattr(asked, name)) for name in counts}, {}, [text]


def _is_of_the_world(config: TransferDictionaryConfig) -> bool:
    return not (config.dictionary or config.source_text or config.source_vectors or config.method == "ask")


def _ask(config: TransferDictionaryConfig, run: Run) -> Asked:
    if config.model is None or config.text is None:
        hint = "Name a chat model with --model (a folder, or http://host/v1#name) and a text with --text."
        raise UserError("needs a model and words.", where="--method ask", hint=hint)
    words = frequent_words(read_text(config.text), config.num_words)
    if not words:
        raise UserError("holds no word.", where=str(config.text))
    model = connect(config.model, cache=run.path / "replies.sqlite", seed=config.seed)
    lists = -(-len(words) // GROUP) * (2 if config.mutual else 1)
    with run.progress("dictionary: lists", lists) as advance:
        return ask_dictionary(model, words, config.source_language, config.target_language, config.mutual, advance)


def _parallel(config: TransferDictionaryConfig) -> list[Pair]:
    if config.source_text:
        texts = read_parallel(config.source_text, config.target_text, columns=config.columns)
    else:
        both = (config.source_language, config.target_language)
        rows = records(World(list(both), seed=config.seed), "parallel", both, NUM_WORLD_PAIRS)
        translations = [row["translation"] for row in rows]
        texts = list(dict.fromkeys((one[both[0]], one[both[1]]) for one in translations))
    return [pair for a, b in texts if all(pair := (words_to_align(a), words_to_align(b)))]


def _induce(config: TransferDictionaryConfig, pairs: Sequence[Pair]) -> Dictionary:
    options = InductionOptions(
        config.iterations, config.tension, config.smoothing, config.threshold, config.min_count, config.mutual
    )
    if config.method == "ibm1":
        return induce(pairs, options)
    assert config.method != "ask"
    if config.model is None:
        raise UserError("needs an encoder.", where=f"--method {config.method}", hint="Name one with --model.")
    from polyloom.methods.transfer.vectors import context_vectors
    from polyloom.models.load import load_model, load_tokenizer

    model, tokenizer = load_model(config.model, "encoder", device="auto"), load_tokenizer(config.model)
    links = align(pairs, lambda texts: context_vectors(model, tokenizer, texts, config.layer), config.method)
    return induce_from_links(pairs, links, options)


def _from_vectors(config: TransferDictionaryConfig) -> Dictionary:
    if not (config.source_vectors and config.target_vectors):
        raise UserError("vectors of one language induce nothing.", where="--source-vectors", hint="Name both files.")
    source, target = (read_vectors(path, config.num_words) for path in (config.source_vectors, config.target_vectors))
    return induce_from_vectors(source, target, config.threshold, config.mutual)


def _score_held_out(found: Dictionary, pairs: Sequence[Pair], config: TransferDictionaryConfig) -> _Part:
    if not pairs or config.reverse:
        return {}, {}, []
    hits, total = held_out_hits(found, pairs)
    if not total:
        return {}, {}, []
    interval = wilson_interval(hits, total)
    scalar = Scalar(value=hits / total, low=interval.low, high=interval.high)
    words = sum(len(source) for source, _ in pairs)
    text = f"On {len(pairs)} held-out pairs the best translation stands in {hits / total:.1%} of the places."
    return {"held_out_hit_rate": scalar, "held_out_coverage": Scalar(value=total / words)}, {}, [text]


def _score_reference(found: Dictionary, config: TransferDictionaryConfig) -> _Part:
    if config.reference:
        reference = read_dictionary(config.reference, target_language=config.target_language)
    elif _is_of_the_world(config):
        both = (config.source_language, config.target_language)
        reference = world_lexicon(World(list(both), seed=config.seed), *both)
    else:
        return {}, {}, []
    score = precision_at_1(found, reference)
    if not score.num_known:
        return {}, {}, ["The reference has none of the headwords."]
    interval = wilson_interval(score.num_right, score.num_known)
    same = wilson_interval(score.num_same_form, score.num_known)
    scalars = {
        "precision_at_1": Scalar(value=score.precision, low=interval.low, high=interval.high),
        "precision_at_1_any_form": Scalar.of(same),
        "num_in_reference": Scalar(value=score.num_known),
    }
    wrong = Table(
        columns=["headword", "best translation", "reference"],
        rows=[list(row) for row in score.wrong[:MAX_ROWS]],
        title="Best translations of which the reference has no form",
    )
    text = (
        f"P@1 {score.precision:.3f} on the {score.num_known} headwords of the reference; {same.value:.3f} when another "
        "form of the same word counts."
    )
    return scalars, {"not_in_reference": wrong}, [text]


def _score_text(found: Dictionary, config: TransferDictionaryConfig) -> _Part:
    if not config.text:
        return {}, {}, []
    hits = count_hits(config.target_language, found, [split_words(read_text(config.text))])
    scalars = {"hit_rate": Scalar(value=hits.rate), "reversed_hit_rate": Scalar(value=hits.reversed_rate)}
    text = f"{hits.rate:.1%} of {hits.num_words} words are headwords."
    return scalars, {}, [text, *lexicon_notices([hits])]


def _label_table(found: Dictionary) -> dict[str, Table]:
    """Return the registers and regions that `--avoid` and `--prefer` may name, the most frequent first."""
    known = Counter(label for own in found.entries.values() for one in own for label in one.labels)
    rows: list[list[Any]] = [[label, number] for label, number in known.most_common(MAX_ROWS)]
    title = "Registers and regions of the translations"
    return {"labels": Table(columns=["label", "translations"], rows=rows, title=title)} if rows else {}


def _entries_table(found: Dictionary) -> Table:
    rows: list[list[Any]] = [
        [head, ", ".join(one.text for one in own[:3]), own[0].score]
        for head, own in list(found.entries.items())[:MAX_ROWS]
    ]
    return Table(columns=["headword", "translations", "score of the first"], rows=rows, title="First entries")
