"""The verbs on one matcher: train and evaluate."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from polyloom.core.errors import UserError, closest
from polyloom.core.result import Artifact, Cell, Result, Scalar, Series, Table
from polyloom.core.seeding import python_random
from polyloom.methods.match.augmentation import misspell_all
from polyloom.methods.match.baselines import tfidf_cosine
from polyloom.methods.match.calibration import calibration_error
from polyloom.methods.match.config import EvaluateConfig, TrainConfig
from polyloom.methods.match.data import Pair, Pairs, leaks, read_pairs
from polyloom.methods.match.distil import make_lesson, open_teacher
from polyloom.methods.match.folder import load, save
from polyloom.methods.match.index import exact_search
from polyloom.methods.match.loading import initial_of, load_splits, reading_of, recipe_of
from polyloom.methods.match.models import SIAMESE, num_parameters
from polyloom.methods.match.scores import confusion, f1_scores
from polyloom.methods.match.training import (
    Recipe,
    Trained,
    class_numbers,
    default_loss,
    fit,
    is_positive,
    match_scores,
    targets,
)
from polyloom.metrics.agreement import auroc
from polyloom.metrics.ranking import (
    average_precision,
    mean_over_queries,
    ranked_relevance,
    recall_at,
    reciprocal_rank,
)
from polyloom.metrics.statistics import bootstrap_interval, pearson, spearman, wilson_interval
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

PREVIEW_ROWS = 5


def run_train(config: TrainConfig, run: Run) -> Result:
    """Train a matcher and judge it on the test pairs.

    Args:
        config: data, base, block and recipe.
        run: takes the matcher where no output folder is named.

    Returns:
        Test scores, the training curve, a preview of what was read.

    Raises:
        UserError: data that cannot be read, one class alone, vectors that do not fit.
    """
    pin_threads()
    splits = load_splits(config, valid=config.valid, test=config.test)
    recipe = recipe_of(config)
    initial = initial_of(config, splits["train"])
    folder = Path(config.output) if config.output else run.artifact("matcher")
    with run.progress("train", config.epochs) as advance:

        def after_epoch(epoch: int, score: float) -> None:
            run.log(epoch=epoch, valid=score)
            advance(1)
            run.check_stop()

        trained = _taught(config, splits, recipe, initial=initial, after_epoch=after_epoch)
    save(trained, folder)
    scalars, tables = judge(trained, splits["test"])
    scalars |= {
        "parameters": Scalar(value=num_parameters(trained.model)),
        "parameters_with_embeddings": Scalar(value=num_parameters(trained.model, embeddings=True)),
        "training_cpu_seconds": Scalar(value=trained.seconds, unit="CPU s"),
        "best_valid": Scalar(value=max(epoch["valid"] for epoch in trained.curve)),
    }
    same, shared = leaks(splits["train"], splits["test"])
    scalars |= {"leaked_pairs": Scalar(value=same), "shared_texts": Scalar(value=shared)}
    epochs: list[float | None] = [epoch["epoch"] for epoch in trained.curve]
    curve = {
        name: Series(x=epochs, y=[epoch[name] for epoch in trained.curve], x_label="epoch", y_label=name, group=title)
        for name, title in (("loss", "training loss"), ("valid", "validation score"))
    }
    artifacts = {}
    if not config.output:
        artifacts["matcher"] = Artifact(
            path="artifacts/matcher", media_type="inode/directory", description="The trained matcher."
        )
    return run.result(
        scalars=scalars,
        tables={"preview": _preview(splits), **tables},
        series=curve,
        artifacts=artifacts,
        verdicts=[
            f"{config.base} with {config.block}: {_main(scalars)} on {len(splits['test'].items)} test pairs after "
            f"{trained.seconds:.0f} CPU-seconds."
        ],
        limitations=_limits(trained, splits, same, shared, initial.note if initial else ""),
    )


def _taught(config: TrainConfig, splits: dict[str, Pairs], recipe: Recipe, **given: Any) -> Trained:
    """Train on the labels, or on what a teacher says of them."""
    train, seed = splits["train"], config.seed
    if config.teacher is None:
        if config.num_new_pairs:
            raise UserError("new pairs have no labels without a teacher.", where="--num-new-pairs")
        return fit(train, splits["valid"], recipe, seed, **given)
    loss = recipe.loss or default_loss(train.task, recipe.base)
    if loss not in ("softmax", "regression", "cosent", "cosine"):
        raise UserError(f"the loss {loss!r} has no soft targets.", where="--teacher")
    if train.task == "classes" and loss != "softmax":
        raise UserError(f"the loss {loss!r} learns no chances of classes.", where="--teacher")
    classes = train.classes() if train.task == "classes" else []
    lesson = make_lesson(
        train,
        targets(train, classes, loss),
        classes,
        open_teacher(Path(config.teacher)),
        config.teacher_weight,
        config.num_new_pairs,
        seed,
    )
    return fit(lesson.pairs, splits["valid"], recipe, seed, soft=lesson.targets, **given)


def _main(scalars: dict[str, Scalar]) -> str:
    name = "accuracy" if "accuracy" in scalars else "spearman"
    item = scalars[name]
    interval = "" if item.low is None or item.high is None else f" [{item.low:.3f}, {item.high:.3f}]"
    return f"{name} {float(item.value or 0):.3f}{interval}"


def _preview(splits: dict[str, Pairs]) -> Table:
    rows: list[list[Cell]] = [
        [name, pair.first, pair.second, pair.label] for name in splits for pair in splits[name].items[:PREVIEW_ROWS]
    ]
    title = f"What was read: {next(iter(splits.values())).layout}"
    return Table(columns=["split", "first text", "second text", "label"], rows=rows, title=title)


def _limits(trained: Trained, splits: dict[str, Pairs], same: int, shared: int, note: str) -> list[str]:
    notes = list(dict.fromkeys(note for pairs in splits.values() for note in pairs.notes)) + ([note] if note else [])
    longest = trained.model.shape.max_length
    texts = splits["train"].texts()
    cut = sum(len(trained.vocabulary.pieces(text)) > longest for text in texts)
    if cut:
        notes.append(f"{cut} of {len(texts)} training texts are longer than {longest} words and were cut.")
    if same or shared:
        notes.append(
            f"{same} of {len(splits['test'].items)} test pairs stand in training too, {shared} share a text with it."
        )
    counts = [sum(pair.label == name for pair in splits["train"].items) for name in trained.classes]
    if counts and max(counts) > 10 * min(counts):
        notes.append("The classes are more than 10 to 1 out of balance: look at macro F1 beside accuracy.")
    return notes


def judge(trained: Trained, pairs: Pairs) -> tuple[dict[str, Scalar], dict[str, Table]]:
    """Return all scores of a matcher on labelled pairs.

    Raises:
        UserError: labels of another kind than it was trained on.
    """
    if pairs.task != trained.task:
        raise UserError(f"the pairs hold {pairs.task}, the matcher learned {trained.task}.", where=pairs.layout)
    targets(pairs, trained.classes, trained.loss)
    predicted = trained.predict(pairs.items)
    swapped = [Pair(pair.second, pair.first, pair.label) for pair in pairs.items]
    turned = trained.predict(swapped)
    scalars: dict[str, Scalar] = {"num_pairs": Scalar(value=len(pairs.items))}
    tables: dict[str, Table] = {}
    if trained.loss == "softmax":
        given = [trained.classes[i] for i in predicted.argmax(1)]
        counts = confusion([pair.label for pair in pairs.items], given, trained.classes)
        right = int(np.diag(counts).sum())
        interval = wilson_interval(right, len(given))
        f1 = f1_scores(counts)
        scalars["accuracy"] = Scalar.of(interval)
        scalars["macro_f1"] = Scalar(value=float(f1.mean()))
        scalars |= _calibration(trained, pairs, predicted)
        scalars["flip_rate"] = Scalar(value=float((predicted.argmax(1) != turned.argmax(1)).mean()))
        rows: list[list[Cell]] = [
            [name, *map(int, line), float(f)] for name, line, f in zip(trained.classes, counts, f1, strict=True)
        ]
        tables["confusion"] = Table(columns=["wanted", *trained.classes, "F1"], rows=rows, title="Confusion")
        tables |= _by_category(pairs, given)
    match = match_scores(trained, predicted)
    if pairs.task == "scores":
        wanted = np.asarray([float(pair.label) for pair in pairs.items])
        scalars |= _correlations(predicted, wanted)
        if trained.loss == "regression":
            scalars["mse"] = Scalar(value=float(((predicted - wanted) ** 2).mean()))
    elif match is not None:
        positive = [is_positive(pair.label) for pair in pairs.items]
        scalars["auc"] = Scalar(value=auroc(positive, match))
        if len(trained.classes) == 2 and trained.loss == "softmax":
            name = next(name for name in trained.classes if is_positive(name))
            scalars["f1"] = Scalar(value=float(f1[trained.classes.index(name)]))
        scalars |= _at_threshold(trained, match, positive) | _rankings(pairs, match, positive)
        scalars |= _retrieval(trained, pairs, positive)
    scalars |= _soft_baseline(pairs)
    return scalars, tables


def _correlations(predicted: Any, wanted: Any) -> dict[str, Scalar]:
    stacked = np.arange(len(wanted)).astype(float)

    def rho(rows: Any) -> Any:
        flat = np.atleast_2d(rows).astype(int)
        # A resample of equal scores has no correlation: it counts as none.
        values = np.nan_to_num([spearman(predicted[line], wanted[line])[0] for line in flat])
        return np.asarray(values if np.ndim(rows) > 1 else values[0])

    interval = bootstrap_interval(stacked, rho, method="percentile", num_resamples=500)
    return {
        "spearman": Scalar.of(interval),
        "pearson": Scalar(value=pearson(predicted, wanted)[0]),
    }


def _calibration(trained: Trained, pairs: Pairs, chances: Any) -> dict[str, Scalar]:
    """Return how far confidence is from accuracy, with the temperature and without it."""
    wanted = class_numbers(trained, pairs)
    plain = np.power(np.maximum(chances, 1e-300), trained.temperature)
    plain /= plain.sum(1, keepdims=True)
    return {
        "calibration_error": Scalar(value=calibration_error(chances, wanted)),
        "calibration_error_before": Scalar(value=calibration_error(plain, wanted)),
        "temperature": Scalar(value=trained.temperature),
    }


def _at_threshold(trained: Trained, match: Any, positive: list[bool]) -> dict[str, Scalar]:
    """Return precision and recall of the matches from the threshold on that validation pairs chose."""
    if trained.threshold is None or not any(positive):
        return {}
    called, right = np.asarray(match) >= trained.threshold, np.asarray(positive)
    hits = int((called & right).sum())
    return {
        "threshold": Scalar(value=trained.threshold),
        "threshold_precision": Scalar(value=hits / max(1, int(called.sum()))),
        "threshold_recall": Scalar(value=hits / int(right.sum())),
    }


def _by_category(pairs: Pairs, given: list[str]) -> dict[str, Table]:
    groups: dict[str, list[bool]] = defaultdict(list)
    for pair, answer in zip(pairs.items, given, strict=True):
        if pair.category:
            groups[pair.category].append(pair.label == answer)
    if not 1 < len(groups) < 40:
        return {}
    rows: list[list[Cell]] = []
    for name, right in sorted(groups.items()):
        interval = wilson_interval(sum(right), len(right))
        rows.append([name, len(right), interval.value, interval.low, interval.high])
    columns = ["category", "pairs", "accuracy", "low", "high"]
    return {"categories": Table(columns=columns, rows=rows, title="Accuracy by category")}


def _rankings(pairs: Pairs, match: Any, positive: list[bool]) -> dict[str, Scalar]:
    """Return MAP and MRR over first texts that have several candidates, one of them right."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs.items):
        groups[pair.first].append(i)
    lists = [
        ranked_relevance([match[i] for i in rows], [positive[i] for i in rows])
        for rows in groups.values()
        if len(rows) > 1 and any(positive[i] for i in rows)
    ]
    if not lists:
        return {}
    return {
        "map": Scalar(value=mean_over_queries([average_precision(line) for line in lists])),
        "mrr": Scalar(value=mean_over_queries([reciprocal_rank(line) for line in lists])),
        "num_queries": Scalar(value=len(lists)),
    }


def _retrieval(trained: Trained, pairs: Pairs, positive: list[bool], k: int = 10) -> dict[str, Scalar]:
    """Search each matching pair's second text among all second texts, by the cosine of vectors."""
    if trained.model.shape.base not in SIAMESE or not any(positive):
        return {}
    texts = list(dict.fromkeys(pair.second for pair in pairs.items))
    wanted = [pair for pair, ok in zip(pairs.items, positive, strict=True) if ok]
    if len(texts) < 2:
        return {}
    rows, _ = exact_search(
        trained.vectors(texts), trained.vectors([pair.first for pair in wanted]), min(100, len(texts))
    )
    lists = [[float(texts[j] == pair.second) for j in line] for pair, line in zip(wanted, rows, strict=True)]
    found = [recall_at(line, k) for line in lists]
    return {
        "retrieval_mrr": Scalar(value=mean_over_queries([reciprocal_rank(line) for line in lists])),
        "retrieval_recall_at_10": Scalar(value=sum(0 if math.isnan(x) else x for x in found) / len(found)),
    }


def _soft_baseline(pairs: Pairs) -> dict[str, Scalar]:
    """Return what the cosine of word counts, weighted by rarity, is worth on the same pairs."""
    cosine = tfidf_cosine(pairs.items)
    if pairs.task == "scores":
        return {"tfidf_spearman": Scalar(value=spearman(cosine, [float(pair.label) for pair in pairs.items])[0])}
    positive = [is_positive(pair.label) for pair in pairs.items]
    return {"tfidf_auc": Scalar(value=auroc(positive, cosine))} if any(positive) and not all(positive) else {}


def run_evaluate(config: EvaluateConfig, run: Run) -> Result:
    """Judge a trained matcher on labelled pairs.

    Args:
        config: the matcher and the pairs.
        run: the run.

    Returns:
        Accuracy, F1 and AUC, or Spearman and Pearson; MAP and MRR where texts have several candidates.

    Raises:
        UserError: no matcher, pairs that cannot be read, labels that it does not know.
    """
    pin_threads()
    trained = load(Path(config.model))
    pairs = _evaluated(config)
    limitations = list(pairs.notes)
    if config.typos:
        pairs = misspelled(pairs, config.typos, config.seed)
        limitations.append(f"{config.typos:.0%} of the words of three letters or more were misspelled.")
    scalars, tables = judge(trained, pairs)
    if config.train:
        same, shared = leaks(read_pairs(Path(config.train), reading_of(config)), pairs)
        scalars |= {"leaked_pairs": Scalar(value=same), "shared_texts": Scalar(value=shared)}
        limitations.append(f"{same} of the pairs stand in training too, {shared} share a text with it.")
    if "flip_rate" in scalars and float(scalars["flip_rate"].value or 0) > 0:
        limitations.append(
            f"Swapping the two texts changes {scalars['flip_rate'].value:.1%} of the answers; train with --symmetric "
            "where the order means nothing."
        )
    main = _main(scalars) if scalars.keys() & {"accuracy", "spearman"} else f"AUC {scalars['auc'].value:.3f}"
    preview = _preview({config.split: pairs})
    return run.result(
        scalars=scalars,
        tables={"preview": preview, **tables},
        verdicts=[f"{trained.model.shape.base} with {trained.model.shape.block}: {main}, {len(pairs.items)} pairs."],
        limitations=limitations,
    )


def misspelled(pairs: Pairs, share: float, seed: int) -> Pairs:
    """Return the pairs with a share of their words misspelled."""
    texts = misspell_all(pairs.texts(), share, python_random(seed, "typos"))
    items = [replace(pair, first=a, second=b) for pair, a, b in zip(pairs.items, texts[::2], texts[1::2], strict=True)]
    return replace(pairs, items=items)


def _evaluated(config: EvaluateConfig) -> Pairs:
    if config.data == "world":
        split = "train" if config.split == "all" else config.split
        return load_splits(config)[split]
    pairs = read_pairs(Path(config.data), reading_of(config))
    if config.split == "all" or not any(pair.split for pair in pairs.items):
        return pairs
    kept = [pair for pair in pairs.items if pair.split == config.split]
    if not kept:
        names = {pair.split for pair in pairs.items}
        raise UserError(f"has no {config.split} pairs.", where=config.data, hint=closest(config.split, names))
    return Pairs(kept, pairs.task, pairs.scale, pairs.notes, pairs.layout)
