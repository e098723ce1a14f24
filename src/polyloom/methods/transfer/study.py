"""The room's verbs `train` and `evaluate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from polyloom.core.errors import UserError
from polyloom.core.files import json_lines, write_text
from polyloom.core.result import Artifact, Result, Scalar, Table
from polyloom.data.records import Example
from polyloom.methods.transfer.arms import find_arms
from polyloom.methods.transfer.config import TransferEvaluateConfig, TransferTrainConfig
from polyloom.methods.transfer.data import (
    Data,
    read_data,
    read_examples,
    read_trees,
    split_specs,
    tree_index,
    with_trees,
)
from polyloom.methods.transfer.diagnosis import attention_mass, attention_table, dictionary_report, tree_check
from polyloom.methods.transfer.kinship import language_report
from polyloom.methods.transfer.models import Loaded, Predictions, load_transfer, predict
from polyloom.methods.transfer.protocol import measure, metric_names, run_protocol, unknown_labels
from polyloom.methods.transfer.results import (
    LIMITATIONS,
    as_scalar,
    by_arm,
    compare_arms,
    comparison_table,
    difference_series,
    language_series,
    oracle_table,
    plain_verdicts,
    scalars_of,
    score_tables,
    slug,
    verdicts_of,
)
from polyloom.methods.transfer.sequences import Sequencer
from polyloom.metrics.statistics import Interval
from polyloom.metrics.tagging import Counts, bootstrap_score, score
from polyloom.models.device import choose_device, pin_threads
from polyloom.runs.folder import Run

WORLD_NOTE = (
    "CLDR world (synthetic sentences): trees by construction, and a dictionary of names, months and units alone."
)


def run_train(config: TransferTrainConfig, run: Run) -> Result:
    """Train the arms on every seed and compare them on every test language.

    Args:
        config: data, encoder, arms and settings.
        run: the run to store steps and models in.

    Returns:
        Scores by language, what each part added, and the models as artifacts.

    Raises:
        UserError: files, labels, trees or an encoder that do not fit.
    """
    arms = find_arms(config.arms)
    data = read_data(config, any(arm.trees != "none" for arm in arms.values()))
    if any(arm.lexical != "none" for arm in arms.values()) and not data.lexicons:
        raise UserError("an arm switches words and there is no dictionary.", where="--dictionaries", hint="Name one.")
    if any(arm.translated for arm in arms.values()) and not data.translations:
        raise UserError("an arm trains on translations and there are none.", where="--translations", hint="Name some.")
    return compare(config, data, run)


def compare(
    config: TransferTrainConfig,
    data: Data,
    run: Run,
    extra_limitations: Sequence[str] = (),
    extra_scalars: Mapping[str, Scalar] | None = None,
) -> Result:
    """Run the protocol on data and build the result."""
    targets, outcomes = run_protocol(config, data, run)
    groups = by_arm(outcomes)
    languages, metrics = list(data.tests), metric_names(targets)
    target_codes = [code for code in languages if code != data.source]
    compared = compare_arms(groups, target_codes, metrics[0], config.margin, config.seed) if target_codes else []
    tables = score_tables(groups, languages, metrics)
    if compared:
        tables["differences"] = comparison_table(compared, metrics[0])
    oracle = oracle_table(groups)
    if oracle is not None:
        tables["oracle"] = oracle
    tables["notices"] = Table(
        columns=["notice"], rows=[[one] for one in data.notices], title="What was found in the data"
    )
    lexical = dictionary_report(groups, data, metrics[0])
    by_language, language_scalars = language_report(groups, data, metrics[0], config.seed)
    tables |= lexical.tables | by_language
    num_cut = max(one.num_cut for one in outcomes)
    scalars = scalars_of(groups, data.source, languages, metrics, config.seed) if languages else {}
    return run.result(
        scalars=scalars
        | lexical.scalars
        | language_scalars
        | dict(extra_scalars or {})
        | {"num_cut_sequences": Scalar(value=num_cut), "num_seeds": Scalar(value=config.num_seeds)},
        tables=tables,
        series=language_series(groups, languages, metrics[0]) | difference_series(compared) | lexical.series,
        artifacts=_models(run),
        verdicts=verdicts_of(compared, metrics[0], config.num_seeds)
        or plain_verdicts(groups, target_codes, metrics[0]),
        limitations=[*LIMITATIONS, *extra_limitations, *([WORLD_NOTE] if config.data == ["world"] else [])],
    )


def _models(run: Run) -> dict[str, Artifact]:
    folder = run.path / "artifacts"
    found = sorted(folder.glob("*/transfer.json")) if folder.is_dir() else []
    return {
        path.parent.name: Artifact(
            path=str(path.relative_to(run.path)),
            media_type="application/json",
            description="Trained model: encoder, adaptor and heads; open it with transfer evaluate --model.",
        )
        for path in found
    }


# ---- evaluate


def run_evaluate(config: TransferEvaluateConfig, run: Run) -> Result:
    """Score a saved model on test files, language by language.

    Args:
        config: the model, the files, and what else to write.
        run: the run to store predictions in.

    Returns:
        Scores with intervals over sentences, the gap to the source, generalised pairs, and the predictions.

    Raises:
        UserError: no such model, files that do not fit it, or missing trees.
    """
    pin_threads()
    loaded = load_transfer(Path(config.model))
    if config.average_with:
        average(loaded, [load_transfer(Path(name)) for name in config.average_with])
    loaded.model.to(choose_device(config.device))
    tests, notices = read_tests(config, loaded)
    names = metric_names(loaded.model.targets)
    values = {
        code: run.once(f"scores {code}", partial(_score, loaded, examples, config, run, code))
        for code, examples in tests.items()
    }
    scalars, rows = _language_scores(values, names, config.seed)
    sources = [code for code in tests if code == config.source]
    targets = [code for code in tests if code != config.source]
    for name in names:
        if sources and targets:
            mean = float(np.mean([scalars[f"{slug(code)}_{slug(name)}"].value for code in targets]))
            own = float(scalars[f"{slug(config.source)}_{slug(name)}"].value or 0.0)
            scalars[f"target_{slug(name)}"] = Scalar(value=mean, unit="%")
            scalars[f"gap_{slug(name)}"] = Scalar(value=own - mean, unit="points")
    tables = {
        "scores": Table(
            columns=["language", "metric", "score", "low", "high", "examples"], rows=rows, title="Scores (%)"
        )
    }
    if config.generalised:
        tables["generalised"] = _generalised(loaded, tests, config, run)
        cells = [row[2] for row in tables["generalised"].rows if row[0] != row[1]]
        if cells:
            scalars["generalised_accuracy"] = Scalar(value=float(np.mean(np.asarray(cells, dtype=float))), unit="%")
    if config.tree_check or config.attention:
        more, found = _inside(loaded, tests, config, names[0])
        tables |= more
        scalars |= found
    tables["notices"] = Table(columns=["notice"], rows=[[one] for one in notices], title="What was found in the data")
    return run.result(
        scalars=scalars,
        tables=tables,
        artifacts=_predictions(run, list(tests), config),
        verdicts=[_gap_verdict(scalars, names[0], targets, config.source)],
        limitations=["Intervals are over the sentences of each file (1,000 bootstrap resamples), for this one model."],
    )


def _inside(
    loaded: Loaded, tests: Mapping[str, Sequence[Example]], config: TransferEvaluateConfig, metric: str
) -> tuple[dict[str, Table], dict[str, Scalar]]:
    """Look at what a model with a graph makes of its trees.

    Raises:
        UserError: the model has no graph.
    """
    if loaded.model.syntax is None:
        option = "--tree-check" if config.tree_check else "--attention"
        raise UserError("the model has no graph that could read a tree.", where=option, hint="Name a syn arm's model.")

    def judge(sequencer: Sequencer, examples: Sequence[Example]) -> float:
        said = predict(loaded.model, sequencer, examples, config.batch_size)
        return 100 * score(measure(said, examples, loaded.model.targets)[metric])

    tables: dict[str, Table] = {}
    scalars: dict[str, Scalar] = {}
    if config.tree_check:
        tables["trees"], scalars = tree_check(loaded, tests, judge, metric, config.seed)
    if config.attention:
        tables["attention"] = attention_table({code: attention_mass(loaded, one) for code, one in tests.items()})
    return tables, scalars


def average(loaded: Loaded, others: Sequence[Loaded]) -> None:
    """Replace a model's weights by the mean of its own and those of others of the same form (checkpoint averaging).

    Raises:
        UserError: the weights have other names or shapes.
    """
    states = [loaded.model.state_dict(), *(one.model.state_dict() for one in others)]
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in states]
    if any(one != shapes[0] for one in shapes):
        raise UserError("the models are of different forms.", where="--average-with", hint="Average seeds of one arm.")
    mean = {
        name: sum(state[name] for state in states) / len(states) if value.is_floating_point() else value
        for name, value in states[0].items()
    }
    loaded.model.load_state_dict(mean)


def read_tests(config: TransferEvaluateConfig, loaded: Loaded) -> tuple[dict[str, list[Example]], list[str]]:
    """Read the test files and, for a model with a graph, their trees.

    Raises:
        UserError: a language without trees, which the model needs.
    """
    files = split_specs(config.trees, "--trees")
    tests, notices = {}, []
    for code, paths in split_specs(config.test, "--test").items():
        found: Counter[str] = Counter()
        examples = read_examples(paths, code, config, found)
        trees, repairs = read_trees(code, files.get(code, []), config.strict)
        examples, missing = with_trees(examples, tree_index(trees))
        notices += [*(f"{count} {what}." for what, count in found.items()), *repairs]
        if loaded.model.syntax is not None:
            if not any(one.heads for example in examples for one in example.sentences):
                hint = f"Add --trees {code}=FILE, or train a parser with `transfer parse`."
                raise UserError(f"the model needs trees, and {code!r} has none.", where="--trees", hint=hint)
            if missing:
                notices.append(f"{missing} sentences of {code} have no tree: their words hang on [CLS].")
        notices += unknown_labels(code, examples, loaded.model.targets, config.strict)
        tests[code] = examples
    return tests, notices


def _score(
    loaded: Loaded, examples: Sequence[Example], config: TransferEvaluateConfig, run: Run, code: str
) -> dict[str, Any]:
    said = predict(loaded.model, loaded.sequencer, examples, config.batch_size)
    _write_predictions(said, examples, config, run, code)
    return {name: rows.tolist() for name, rows in measure(said, examples, loaded.model.targets).items()}


def _language_scores(
    values: Mapping[str, Mapping[str, Any]], names: Sequence[str], seed: int
) -> tuple[dict[str, Scalar], list[list[Any]]]:
    scalars, rows = {}, []
    for code, metrics in values.items():
        for name in names:
            counts: Counts = np.asarray(metrics[name], dtype=np.int64)
            found = bootstrap_score([counts], seed=seed)
            over = Interval(100 * found.value, 100 * found.low, 100 * found.high)
            scalars[f"{slug(code)}_{slug(name)}"] = as_scalar(over)
            rows.append([code, name, over.value, over.low, over.high, len(counts)])
    return scalars, rows


def _generalised(
    loaded: Loaded, tests: Mapping[str, Sequence[Example]], config: TransferEvaluateConfig, run: Run
) -> Table:
    """Score pairs whose first sentence is in one language and the second in another; differing labels are skipped."""
    sizes = {len(examples) for examples in tests.values()}
    if len(sizes) != 1 or any(len(one.sentences) != 2 for examples in tests.values() for one in examples):
        hint = "Give the same pairs in every language, line by line."
        raise UserError("generalised transfer needs parallel files of pairs.", where="--generalised", hint=hint)
    rows: list[list[Any]] = []
    for first, premises in tests.items():
        for second, hypotheses in tests.items():
            mixed = [
                replace(a, id=f"{first}-{second}-{a.id}", sentences=(a.sentences[0], b.sentences[1]))
                for a, b in zip(premises, hypotheses, strict=True)
                if a.label == b.label
            ]
            work = partial(_accuracy, loaded, mixed, config)
            rows.append(
                [first, second, run.once(f"pairs {first} {second}", work), len(mixed), len(premises) - len(mixed)]
            )
    columns = ["first sentence", "second sentence", "accuracy", "pairs", "skipped"]
    return Table(columns=columns, rows=rows, title="Generalised transfer (%)")


def _accuracy(loaded: Loaded, examples: Sequence[Example], config: TransferEvaluateConfig) -> float:
    said = predict(loaded.model, loaded.sequencer, examples, config.batch_size)
    return 100 * score(measure(said, examples, loaded.model.targets)[metric_names(loaded.model.targets)[0]])


def _write_predictions(
    said: Predictions, examples: Sequence[Example], config: TransferEvaluateConfig, run: Run, code: str
) -> None:
    rows = [
        {
            "id": one.id,
            "words": one.sentences[0].words,
            "gold": one.label,
            "label": label,
            "gold_tags": one.sentences[0].labels,
            "tags": tags,
        }
        for one, label, tags in zip(examples, said.labels, said.tags, strict=True)
    ]
    write_text(run.artifact(f"predictions/{code}.jsonl"), json_lines(rows))
    if config.xtreme != "none":
        write_text(run.artifact(f"xtreme/{config.xtreme}/test-{code}.tsv"), xtreme_lines(said))


def xtreme_lines(said: Predictions) -> str:
    """Return predictions as XTREME wants them: a label a line, or a tag a line and a blank line behind a sentence."""
    if any(said.labels):
        return "".join(f"{label}\n" for label in said.labels)
    return "".join("".join(f"{tag}\n" for tag in tags) + "\n" for tags in said.tags)


def _predictions(run: Run, codes: Sequence[str], config: TransferEvaluateConfig) -> dict[str, Artifact]:
    found = {
        f"predictions {code}": Artifact(
            path=f"artifacts/predictions/{code}.jsonl",
            media_type="application/jsonl",
            description=f"Predictions of {code}.",
        )
        for code in codes
    }
    if config.xtreme != "none":
        found |= {
            f"xtreme {code}": Artifact(
                path=f"artifacts/xtreme/{config.xtreme}/test-{code}.tsv",
                media_type="text/tab-separated-values",
                description=f"XTREME submission of {code}.",
            )
            for code in codes
        }
    return found


def _gap_verdict(scalars: Mapping[str, Scalar], metric: str, targets: Sequence[str], source: str) -> str:
    gap = scalars.get(f"gap_{slug(metric)}")
    if gap is None or not isinstance(gap.value, float):
        return f"{len(scalars)} scores; name the source language {source!r} among the tests to see the transfer gap."
    mean = scalars[f"target_{slug(metric)}"].value
    return f"{metric}: {mean:.1f} % on the mean of {', '.join(targets)}, {gap.value:.1f} points below {source}."
