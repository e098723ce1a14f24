"""The one protocol: every arm on every seed, the same batches, each language scored; source dev alone chooses."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from polyloom.core.errors import UserError, closest
from polyloom.core.seeding import derive_seed
from polyloom.data.records import Example
from polyloom.methods.transfer.arms import Arm, check_leak, find_arms, plan_of
from polyloom.methods.transfer.config import TransferTrainConfig
from polyloom.methods.transfer.data import Data
from polyloom.methods.transfer.encoders import PRETRAIN_BATCH, Start, make_start
from polyloom.methods.transfer.lexicon import Lexicons
from polyloom.methods.transfer.models import Predictions, TransferModel, predict, save_transfer
from polyloom.methods.transfer.sequences import Sequencer, Targets, find_targets
from polyloom.methods.transfer.switching import Aids, SwitchPlan, count_switches, switch_all
from polyloom.methods.transfer.training import (
    ArmModel,
    Materials,
    default_average,
    load_snapshot,
    merge_lora,
    parameter_count,
    steps_of,
    train_stages,
)
from polyloom.metrics.tagging import Counts, exact_counts, label_counts, score, span_counts, word_counts
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

# A test file in which more of the labels than this are none of the training data's is of another task.
UNKNOWN_ABOVE = 0.05
FULL_SWITCH = SwitchPlan(rate=1.0, among="covered")
NUM_PREDICTED = 1000


@dataclass(frozen=True)
class Outcome:
    """One arm on one seed.

    `counts` is language -> metric -> [sentences, 3]; `oracle` the scores on target dev of each epoch; `chosen` the
    epoch that was taken, 0 for an average.
    """

    arm: str
    seed: int
    counts: Mapping[str, Mapping[str, Counts]]
    cpu_seconds: float
    num_parameters: int
    num_cut: int
    realised_rate: float
    chosen: int
    oracle: Mapping[str, Sequence[float]]

    def value(self, language: str, metric: str) -> float:
        """Return a score in percent."""
        return 100 * score(self.counts[language][metric])


def metric_names(targets: Targets) -> list[str]:
    """Return the metrics of a task, the main one first."""
    if targets.labels and targets.tags:
        return ["intent accuracy", "slot F1", "exact match"]
    if targets.labels:
        return ["accuracy"]
    return ["span F1"] if any(tag[:2] == "B-" for tag in targets.tags) else ["tag accuracy"]


def measure(said: Predictions, examples: Sequence[Example], targets: Targets) -> dict[str, Counts]:
    """Return the counts of every metric of a task, a row for each example.

    Args:
        said: predictions.
        examples: with their labels.
        targets: what the task is.
    """
    gold_labels = [example.label for example in examples]
    gold_tags = [example.sentences[0].labels for example in examples]
    found = {}
    for name in metric_names(targets):
        if name in ("accuracy", "intent accuracy"):
            found[name] = label_counts(gold_labels, said.labels)
        elif name in ("slot F1", "span F1"):
            found[name] = span_counts(gold_tags, said.tags)
        elif name == "exact match":
            found[name] = exact_counts(gold_labels, said.labels, gold_tags, said.tags)
        else:
            found[name] = word_counts(gold_tags, said.tags)
    return found


def unknown_labels(language: str, examples: Sequence[Example], targets: Targets, strict: bool = False) -> list[str]:
    """Say which labels of a test set training never had: they count as wrong.

    Args:
        language: of the test set.
        examples: with their labels.
        targets: what training had.
        strict: refuse the first.

    Returns:
        A sentence, or nothing.

    Raises:
        UserError: they are too many for the same task, or any under `strict`; the first place is named.
    """
    gold = [(one.label, one) for one in examples] if targets.labels else []
    gold += [(tag, one) for one in examples for tag in one.sentences[0].labels] if targets.tags else []
    known = {*targets.labels, *targets.tags}
    unknown = [(label, one) for label, one in gold if label not in known]
    if len(unknown) > (0 if strict else UNKNOWN_ABOVE * len(gold)):
        label, one = unknown[0]
        what = f"the label {label!r} is none of the training data's ({len(unknown)} of {len(gold)} are none)."
        raise UserError(what, where=one.sentences[0].source or language, hint=closest(label, known))
    if not unknown:
        return []
    names = ", ".join(sorted({label for label, _ in unknown}))
    return [f"{len(unknown)} labels of {language} are none of the training data's and count as wrong: {names}."]


@dataclass(frozen=True)
class Bench:
    """What every arm of a run shares."""

    config: TransferTrainConfig
    data: Data
    targets: Targets
    run: Run
    advance: Callable[[int], None]


def run_protocol(config: TransferTrainConfig, data: Data, run: Run) -> tuple[Targets, list[Outcome]]:
    """Train and score every arm on every seed; each finished one is stored, so that a killed run goes on behind it.

    Args:
        config: settings.
        data: what to train and test on.
        run: the run to store steps and models in.

    Returns:
        The task's targets, and an outcome for each seed and arm.

    Raises:
        UserError: labels that do not fit, a leak, or an arm that the encoder cannot take.
    """
    arms = find_arms(config.arms)
    targets = find_targets(data.train, config.task)
    check_leak(list(arms.values()), config, targets)
    pin_threads()
    for language, examples in (data.tests | data.oracles).items():
        data.notices += unknown_labels(language, examples, targets, config.strict)
    _, steps = steps_of(len(data.train), config)
    reading = -(-len(data.texts) // PRETRAIN_BATCH) * config.pretrain_epochs if config.encoder == "tiny" else 0
    outcomes = []
    with run.progress(
        "training", config.num_seeds * (len(arms) * steps * (2 if config.teacher_weight else 1) + reading)
    ) as advance:
        bench = Bench(config, data, targets, run, advance)
        for number in range(config.num_seeds):
            # The encoder is made when the first arm needs it: a resumed run may need none.
            start = cache(partial(_start, bench, number))
            for name, arm in arms.items():
                value = run.once(f"{name} seed {number}", partial(_work, bench, name, arm, number, start))
                outcomes.append(_outcome(name, number, value))
    return targets, outcomes


def _seed(bench: Bench, number: int) -> int:
    return derive_seed(bench.config.seed, "transfer", number)


def _start(bench: Bench, number: int) -> Start:
    hooks = {"check_stop": bench.run.check_stop, "on_step": bench.advance}
    folder = bench.run.checkpoints / f"start-{number}"
    return make_start(bench.config, bench.data, _seed(bench, number), folder, **hooks)


def _outcome(name: str, number: int, value: dict[str, Any]) -> Outcome:
    counts = {
        language: {metric: np.asarray(rows, dtype=np.int64) for metric, rows in metrics.items()}
        for language, metrics in value.pop("counts").items()
    }
    return Outcome(name, number, counts, **value)


def _work(bench: Bench, name: str, arm: Arm, number: int, make: Callable[[], Start]) -> dict[str, Any]:
    """Train one arm on one seed and return what `Outcome` holds, as JSON."""
    config, data, targets, run = bench.config, bench.data, bench.targets, bench.run
    seed, start = _seed(bench, number), make()
    aids = make_aids(config, data, start)
    materials = Materials(
        start.encoder,
        start.pieces,
        data.train,
        targets,
        data.lexicons,
        aids,
        data.translations,
        start.languages,
        data.source,
    )
    folder = run.checkpoints / f"{name}-seed{number}"
    log = partial(run.log, arm=name, seed=number)
    began = time.process_time()
    built, snapshots = train_stages(
        arm, materials, config, seed, folder, on_log=log, on_step=bench.advance, check_stop=run.check_stop
    )
    chosen, oracle = choose_epoch(built, snapshots, config, data, targets, aids, seed)
    cpu_seconds = time.process_time() - began
    counts = {}
    for language, examples in data.tests.items():
        said = predict(built.model, built.sequencer, examples)
        counts[language] = {metric: rows.tolist() for metric, rows in measure(said, examples, targets).items()}
    num_parameters = parameter_count(built.model)
    if config.save == "all" or (config.save == "first" and number == 0):
        _save(built, start, config, name, run.artifact(f"{name}-seed{number}/transfer.json").parent)
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "counts": counts,
        "cpu_seconds": round(cpu_seconds, 2),
        "num_parameters": num_parameters,
        "num_cut": len(built.sequencer.cut),
        "realised_rate": _realised(arm, config, data, targets, aids, seed),
        "chosen": chosen,
        "oracle": oracle,
    }


def _realised(arm: Arm, config: TransferTrainConfig, data: Data, targets: Targets, aids: Aids, seed: int) -> float:
    plan = plan_of(arm, config, targets)
    if plan is None or not data.lexicons:
        return 0.0
    some = data.train[:NUM_PREDICTED]
    return count_switches(
        some, switch_all(some, plan, data.lexicons, seed=seed, aids=aids), plan, data.lexicons
    ).realised_rate


def make_aids(config: TransferTrainConfig, data: Data, start: Start) -> Aids:
    """Return what a translation's choice needs: counts of the text's words, or the encoder's vectors; and the forms."""
    aids = Aids(inflect=data.inflector)
    if config.choose == "freq":
        words = [word for text in data.texts for word in text]
        names, numbers = np.unique(np.asarray(words), return_counts=True)
        return replace(aids, frequency=dict(zip(names.tolist(), map(float, numbers), strict=True)))
    if config.choose == "sense" and isinstance(start.encoder, PreTrainedModel):
        embedding: Any = start.encoder.get_input_embeddings()
        table = embedding.weight.detach().float().cpu().numpy()
        return replace(aids, embed=lambda word: np.asarray(table[list(start.pieces(word))].mean(0)))
    return aids


def switched_examples(
    examples: Sequence[Example], plan: SwitchPlan, lexicons: Lexicons, seed: int, aids: Aids | None = None
) -> list[Example]:
    """Return examples with their words switched and their labels kept."""
    found = switch_all(examples, plan, lexicons, seed=seed, aids=aids)
    return [Example(e.id, s.sentences, e.label, e.language) for e, s in zip(examples, found, strict=True)]


def choose_epoch(
    built: ArmModel,
    snapshots: Sequence[Path],
    config: TransferTrainConfig,
    data: Data,
    targets: Targets,
    aids: Aids,
    seed: int,
) -> tuple[int, dict[str, list[float]]]:
    """Load the weights that the selection takes, and say what each epoch would have given on target dev.

    Args:
        built: the model after the last epoch; changed in place.
        snapshots: of each epoch; empty where the last is taken.
        config: `select`.
        data: source dev chooses; target dev is only printed.
        targets: the task.
        aids: for switched dev.
        seed: of the switching of dev.

    Returns:
        The epoch from 1 (0 for an average), and the scores in percent of each epoch by language.
    """
    if not snapshots:
        return config.epochs, {}
    dev = data.dev
    if config.select == "switched-dev":
        dev = switched_examples(dev, FULL_SWITCH, data.lexicons, seed, aids)
    main = metric_names(targets)[0]
    values: list[float] = []
    oracle: dict[str, list[float]] = {code: [] for code in data.oracles}
    for path in snapshots:
        load_snapshot(built.model, [path])
        values.append(_score(built.model, built.sequencer, dev, targets, main))
        for code, examples in data.oracles.items():
            oracle[code].append(_score(built.model, built.sequencer, examples, targets, main))
    if config.select == "average":
        load_snapshot(built.model, default_average(snapshots))
        return 0, oracle
    best = len(snapshots) - 1 if config.select == "last" else int(np.argmax(values))
    load_snapshot(built.model, [snapshots[best]])
    return best + 1, oracle


def _score(
    model: TransferModel, sequencer: Sequencer, examples: Sequence[Example], targets: Targets, main: str
) -> float:
    return round(100 * score(measure(predict(model, sequencer, examples), examples, targets)[main]), 4)


def _save(built: ArmModel, start: Start, config: TransferTrainConfig, name: str, folder: Path) -> None:
    if config.lora_rank and isinstance(built.model.encoder, PreTrainedModel):
        merge_lora(built.model.encoder)
    about = {"arm": name, "language": config.language, "encoder": config.encoder}
    save_transfer(built.model, built.sequencer, folder, about, start.tokenizer)
