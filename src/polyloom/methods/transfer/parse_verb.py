"""The verb `parse`: a parser trained offline, scored beside chains of words, and run on text."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import read_text, write_text
from polyloom.core.result import Artifact, Result, Scalar, Table
from polyloom.data.labelled import read_labelled
from polyloom.data.records import Sentence, split_words
from polyloom.data.treebanks import attachment, conllu, join_trees, read_conllu
from polyloom.data.world import NOTICE
from polyloom.methods.transfer import parsing
from polyloom.methods.transfer.data_config import ParseConfig
from polyloom.runs.folder import Run

NUM_WORLD_TREES = 120
# The world's sentences are few kinds: they are learned at once.
WORLD_ITERATIONS = 2


def run_parse(config: ParseConfig, run: Run) -> Result:
    """Train or load a parser, score it beside chains of words, and parse a text.

    Raises:
        UserError: a treebank, model or text that does not fit.
        MissingExtra: ufal.udpipe or stanza is not installed.
    """
    bank = _treebank(config)
    train, test = _split(config, bank)
    run.check_stop()
    started = time.process_time()
    parser = _parser(config, run, [bank.blocks[i] for i in train])
    train_seconds = run.once("seconds of training", lambda: time.process_time() - started)
    gold = list(parsing.read_trainable(config.test, strict=config.strict).sentences) if config.test else test
    scalars: dict[str, Scalar] = {}
    tables = {"faults": _fault_table(bank)}
    verdicts = []
    if gold:
        predicted = parser([replace(one, upos=(), heads=(), deprels=()) for one in gold])
        scalars, verdict = _parse_scores(config, gold, predicted)
        verdicts.append(verdict)
    if _trains(config):
        scalars["train_cpu_seconds"] = Scalar(value=train_seconds, unit="s")
        scalars["num_train_sentences"] = Scalar(value=len(train))
    scalars["num_left_out"] = Scalar(value=bank.num_left_out)
    artifacts = {}
    if _trains(config):
        artifacts["model"] = Artifact(
            path="artifacts/parser.udpipe", media_type="application/octet-stream", description="the UDPipe model"
        )
    if config.text:
        parsed = parsing.parse_texts(parser, _texts_to_parse(config, config.text))
        write_text(run.artifact("parsed.conllu"), conllu(parsed))
        artifacts["parsed"] = Artifact(
            path="artifacts/parsed.conllu", media_type="text/plain", description="the parsed text as CoNLL-U"
        )
        scalars["num_parsed"] = Scalar(value=len(parsed))
    return run.result(
        scalars=scalars,
        tables=tables,
        artifacts=artifacts,
        verdicts=verdicts,
        limitations=[
            "Words are given: the scores are of tagging and parsing, not of finding words in raw text.",
            "UDPipe's parser makes projective trees alone.",
            *([NOTICE] if config.treebank == "world" else []),
        ],
    )


def _trains(config: ParseConfig) -> bool:
    return config.backend == "udpipe" and config.model is None


def _treebank(config: ParseConfig) -> parsing.Trainable:
    if config.treebank == "world":
        number = (config.num_train or NUM_WORLD_TREES) + (config.num_test or NUM_WORLD_TREES // 4)
        return parsing.world_trainable(config.language, number, config.seed)
    return parsing.read_trainable(Path(config.treebank), strict=config.strict)


def _split(config: ParseConfig, bank: parsing.Trainable) -> tuple[range, list[Sentence]]:
    total = len(bank.sentences)
    if not _trains(config):
        return range(0), list(bank.sentences[-config.num_test :] if config.num_test else bank.sentences)
    default = NUM_WORLD_TREES if config.treebank == "world" else total - total // 5
    num_train = config.num_train or (total - config.num_test if config.num_test else default)
    num_test = config.num_test or (0 if config.test else total - num_train)
    if num_train + num_test > total or num_train < 1:
        what = f"{num_train} sentences to train on and {num_test} to test on are more than the {total} of the treebank."
        raise UserError(what, where="--num-train", hint="Lower one of them.")
    return range(num_train), list(bank.sentences[total - num_test :])


def _parser(config: ParseConfig, run: Run, blocks: Sequence[str]) -> parsing.Parser:
    if config.backend == "stanza":
        return parsing.StanzaParser(config.language)
    if config.backend == "file":
        if config.predicted is None:
            raise UserError("needs a file of trees.", where="--backend file", hint="Name it with --predicted.")
        return _FileParser(config.predicted)
    if config.model:
        return parsing.UDPipeParser(config.model)
    path = run.artifact("parser.udpipe")
    usual = WORLD_ITERATIONS if config.treebank == "world" else parsing.NUM_ITERATIONS
    if not path.exists():
        with run.progress("training the parser", 1) as advance:
            parsing.train_udpipe(blocks, path, iterations=config.iterations or usual)
            advance(1)
    return parsing.UDPipeParser(path)


class _FileParser:
    """The trees of a CoNLL-U file, matched by words."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._trees = read_conllu(path).sentences

    def __call__(self, sentences: Iterable[Sentence]) -> list[Sentence]:
        wanted = list(sentences)
        joined, num_missing = join_trees(wanted, self._trees)
        if num_missing:
            what = f"has no tree for {num_missing} of {len(wanted)} sentences."
            raise UserError(what, where=str(self._path), hint="Its words have to be those of the sentences.")
        return joined


def _parse_scores(
    config: ParseConfig, gold: Sequence[Sentence], predicted: Sequence[Sentence]
) -> tuple[dict[str, Scalar], str]:
    found = attachment(gold, predicted)
    low, high = parsing.resampled(parsing.sentence_counts(gold, predicted), config.seed)
    chains = {
        "left_chain_uas": attachment(gold, [parsing.left_chain(one) for one in gold]).uas,
        "right_chain_uas": attachment(gold, [parsing.right_chain(one) for one in gold]).uas,
    }
    scalars = {
        name: Scalar(value=100 * value, low=100 * getattr(low, name), high=100 * getattr(high, name), unit="%")
        for name, value in (("uas", found.uas), ("las", found.las), ("upos", found.upos))
    }
    scalars |= {name: Scalar(value=100 * value, unit="%") for name, value in chains.items()}
    scalars["num_test_sentences"] = Scalar(value=len(gold))
    scalars["num_test_words"] = Scalar(value=found.num_words)
    best = max(chains.values())
    verdict = (
        f"UAS {found.uas:.1%}, LAS {found.las:.1%}, UPOS {found.upos:.1%} on {len(gold)} sentences; "
        f"a chain of words has UAS {best:.1%}."
    )
    return scalars, verdict


def _fault_table(bank: parsing.Trainable) -> Table:
    rows: list[list[Any]] = [[kind, number] for kind, number in bank.faults.most_common()]
    return Table(columns=["fault", "number"], rows=rows, title="Faults of the treebank's trees")


def _texts_to_parse(config: ParseConfig, path: Path) -> list[Sentence]:
    if config.format == "text":
        lines = [line.strip() for line in read_text(path).replace("\r\n", "\n").split("\n")]
        found = [Sentence(split_words(line), id=str(n), text=line) for n, line in enumerate(lines, 1) if line]
    else:
        read = read_labelled(path, format=config.format, language=config.language)
        found = [sentence for example in read.examples for sentence in example.sentences if sentence.words]
    if not found:
        raise UserError("holds no sentence.", where=str(path))
    return found
