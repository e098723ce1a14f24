"""Why a pair got its score: words by leaving them out, features by their gates, branches by their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from polyloom.core.errors import UserError
from polyloom.core.result import Cell, Result, Scalar, Series, Table
from polyloom.methods.match.config import ExplainConfig
from polyloom.methods.match.data import Pair, read_pairs
from polyloom.methods.match.folder import load
from polyloom.methods.match.method import FeatureAttention, SelectiveFeatureAttention, masked_mean
from polyloom.methods.match.models import SIAMESE
from polyloom.methods.match.tokens import Vocabulary
from polyloom.methods.match.training import Trained, is_positive, stack
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

Floats = NDArray[np.float64]
REPORT_BATCH = 128


@dataclass(frozen=True)
class Explanation:
    """What carries a pair's score.

    Attributes:
        score: the chance of `target`, or the score itself.
        target: the class that is explained; empty for scores.
        words: for both texts each word with the fall of the score when it is left out.
        gates: FA's e [2, features] of both texts; None without FA.
        branch_means: SFA's weight of each branch [2, branches], averaged over features; None without SFA.
        without_gate: the score when every gate is set to its mean; None without FA.
    """

    score: float
    target: str
    words: tuple[list[tuple[str, float]], list[tuple[str, float]]]
    gates: Floats | None = None
    branch_means: Floats | None = None
    without_gate: float | None = None


def _value(trained: Trained, ids: list[list[int]], target: int | None) -> float:
    """Judge one pair of numbered texts: the chance of class `target`, or the score."""
    trained.model.eval()
    with torch.inference_mode():
        output = trained.model(stack(ids)).double().reshape(-1)
    if trained.loss == "softmax":
        assert target is not None
        return float((output / trained.temperature).softmax(0)[target])
    if trained.loss == "regression":
        low, high = trained.scale
        return float(low + (high - low) * torch.sigmoid(output[0]))
    return float(output[0])


def explain(trained: Trained, first: str, second: str) -> Explanation:
    """Explain the judgement of a pair: of the class that means a match, or else of the likeliest one.

    Args:
        trained: the matcher.
        first: a text.
        second: another.
    """
    target = _target(trained, first, second)
    ids = trained.number([first, second])
    score = _value(trained, ids, target)
    effects = []
    for side, text in enumerate((first, second)):
        pieces = trained.vocabulary.pieces(text)[: len(ids[side])]
        falls = []
        for i in range(len(ids[side])):
            shorter = [list(row) for row in ids]
            del shorter[side][i]
            # A text of one word has nothing left: an unknown one stands in.
            shorter[side] = shorter[side] or trained.number([""])[0]
            falls.append(score - _value(trained, shorter, target))
        effects.append(list(zip(pieces, falls, strict=True)))
    name = trained.classes[target] if target is not None else ""
    gates, without, branches = _inside(trained, ids, target)
    return Explanation(score, name, (effects[0], effects[1]), gates, branches, without)


def _target(trained: Trained, first: str, second: str) -> int | None:
    if trained.loss != "softmax":
        return None
    likeliest = int(trained.predict([Pair(first, second, "")])[0].argmax())
    return next((i for i, name in enumerate(trained.classes) if is_positive(name)), likeliest)


def _inside(
    trained: Trained, ids: list[list[int]], target: int | None
) -> tuple[Floats | None, float | None, Floats | None]:
    block = trained.model.the_block
    if trained.model.shape.base not in SIAMESE or not isinstance(block, FeatureAttention | SelectiveFeatureAttention):
        return None, None, None
    with torch.inference_mode():
        weights = block_weights(trained, block, ids).numpy()
    if isinstance(block, SelectiveFeatureAttention):
        return None, None, weights
    fixed = FixedGate(float(weights.mean()))
    trained.model.block = fixed
    try:
        without = _value(trained, ids, target)
    finally:
        trained.model.block = block
    return weights, without, None


def block_weights(
    trained: Trained, block: FeatureAttention | SelectiveFeatureAttention, ids: list[list[int]]
) -> torch.Tensor:
    """Return FA's gates [texts, features], or SFA's weight of each branch [texts, branches], of numbered texts."""
    X, mask = trained.model.states(stack(ids))
    if isinstance(block, SelectiveFeatureAttention):
        return block.attend(X, mask)[1].mean(2).double()
    return block.gate(masked_mean(X, mask)).double()


class FixedGate(torch.nn.Module):
    """The counterfactual: every feature gets one factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, X: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scale the sequence."""
        return X * self.factor * mask[:, :, None]


@dataclass(frozen=True)
class ClassReport:
    """What a block does to the pairs of each class.

    Attributes:
        classes: names; the label of every pair.
        means: FA's mean gate of each class [classes, features], or SFA's weight of each branch [classes, branches].
        features: those whose gates differ most between classes, the largest difference first; empty with SFA.
        words: for each of them the words that have most of it; empty where a feature is no column of the embedding.
        entropy: mean entropy of a gate in bits: 1 where it is 0.5, 0 where it is shut or open; NaN with SFA.
        decided: share of each class's pairs that a branch has most weight in [classes, branches]; empty with FA.
    """

    classes: list[str]
    means: Floats
    features: list[int]
    words: list[list[str]]
    entropy: float
    decided: Floats


@torch.inference_mode()
def class_report(trained: Trained, pairs: Sequence[Pair], top: int = 10) -> ClassReport:
    """Say what FA or SFA does class by class.

    Args:
        trained: a matcher with a vector of each text and FA or SFA.
        pairs: labelled ones.
        top: features to name.

    Raises:
        UserError: another base or block.
    """
    model, block = trained.model, trained.model.the_block
    if model.shape.base not in SIAMESE or not isinstance(block, FeatureAttention | SelectiveFeatureAttention):
        what = f"base {model.shape.base!r} with block {model.shape.block!r} has no gates to report."
        raise UserError(what, where="--model", hint="Train a matcher with --block fa or sfa and a vector of each text.")
    model.eval()
    parts = []
    for start in range(0, len(pairs), REPORT_BATCH):
        texts = [text for pair in pairs[start : start + REPORT_BATCH] for text in (pair.first, pair.second)]
        found = block_weights(trained, block, trained.number(texts))
        parts.append(found.view(-1, 2, found.shape[1]).mean(1))
    values = torch.cat(parts).numpy()
    classes = sorted({pair.label for pair in pairs})
    labels = np.asarray([classes.index(pair.label) for pair in pairs])
    means = np.stack([values[labels == i].mean(0) for i in range(len(classes))])
    if isinstance(block, SelectiveFeatureAttention):
        decided = np.stack(
            [
                np.bincount(values[labels == i].argmax(1), minlength=values.shape[1]) / (labels == i).sum()
                for i in range(len(classes))
            ]
        )
        return ClassReport(classes, means, [], [], float("nan"), decided)
    features = np.argsort(-np.ptp(means, axis=0), kind="stable")[:top].tolist()
    e = np.clip(values, 1e-9, 1 - 1e-9)
    entropy = float((-e * np.log2(e) - (1 - e) * np.log2(1 - e)).mean())
    return ClassReport(classes, means, features, [_nearest(trained, i) for i in features], entropy, np.zeros((0, 0)))


def _nearest(trained: Trained, feature: int, number: int = 5) -> list[str]:
    """Return the words whose vectors point most along a feature (of a bag: there a feature is a column)."""
    if trained.model.shape.base != "bag" or not isinstance(trained.vocabulary, Vocabulary):
        return []
    weight: torch.Tensor = trained.model.embedding.weight  # type: ignore[assignment]
    rows = weight.detach()[1 : 1 + len(trained.vocabulary.known)]
    along = rows[:, feature] / rows.norm(dim=1).clamp(min=1e-12)
    return [trained.vocabulary.known[i] for i in along.topk(min(number, len(rows))).indices.tolist()]


# ---- the verb


def run_explain(config: ExplainConfig, run: Run) -> Result:
    """Show which words and features carry a pair's score, or what the block does to each class of labelled pairs.

    Args:
        config: the matcher, and two texts or a file of pairs.
        run: the run.

    Returns:
        The score, each word's share in it, FA's gates or SFA's branches; or their means by class.

    Raises:
        UserError: no matcher there, nothing to explain, or no gates.
    """
    pin_threads()
    trained = load(Path(config.model))
    if config.data is not None:
        return _of_classes(trained, config, run)
    if not (config.first and config.second):
        raise UserError("there is nothing to explain.", where="--first, --second", hint="Give two texts, or --data.")
    found = explain(trained, config.first, config.second)
    rows: list[list[Cell]] = [
        [side, word, fall] for side, items in zip(("first", "second"), found.words, strict=True) for word, fall in items
    ]
    tables = {"words": Table(columns=["text", "word", "fall when left out"], rows=rows, title="Words")}
    scalars = {"score": Scalar(value=found.score)}
    tables |= _inside_tables(found, config.top)
    if found.without_gate is not None:
        scalars["score_without_gate"] = Scalar(value=found.without_gate)
    series = {
        side: Series(
            x=list(range(len(items))),
            y=[fall for _, fall in items],
            x_names=[f"{i + 1} {word}" for i, (word, _) in enumerate(items)],
            y_label="fall of the score without the word",
            group=f"words of the {side} text",
            kind="bar",
        )
        for side, items in zip(("first", "second"), found.words, strict=True)
    }
    side, word, fall = max(rows, key=lambda row: abs(float(row[2] or 0)))
    what = f"chance of {found.target!r}" if found.target else "score"
    return run.result(
        scalars=scalars,
        tables=tables,
        series=series,
        verdicts=[
            f"The {what} is {found.score:.3f}; the word that moves it most is {word!r} "
            f"of the {side} text ({fall:+.3f})."
        ],
        limitations=["A word's share is the change when it alone is left out; words that act together share it."],
    )


def _inside_tables(found: Explanation, top: int) -> dict[str, Table]:
    if found.branch_means is not None:
        rows: list[list[Cell]] = [
            [f"branch {n + 1}", *(float(x) for x in found.branch_means[:, n])]
            for n in range(found.branch_means.shape[1])
        ]
        return {"branches": Table(columns=["branch", "first", "second"], rows=rows, title="SFA: mean branch weights")}
    if found.gates is None:
        return {}
    mean = found.gates.mean(0)
    order = np.argsort(-np.abs(mean - mean.mean()))[:top]
    rows = [[int(d), *(float(x) for x in found.gates[:, d]), bool(mean[d] > mean.mean())] for d in order]
    columns = ["feature", "first", "second", "raised"]
    return {"features": Table(columns=columns, rows=rows, title="FA: the gates farthest from their mean")}


def _of_classes(trained: Trained, config: ExplainConfig, run: Run) -> Result:
    found = class_report(trained, read_pairs(Path(config.data or "")).items, config.top)
    scalars: dict[str, Scalar] = {"num_classes": Scalar(value=len(found.classes))}
    if found.features:
        rows: list[list[Cell]] = [
            [feature, *map(float, found.means[:, feature]), ", ".join(words)]
            for feature, words in zip(found.features, found.words, strict=True)
        ]
        title = "FA: the gates that differ most between classes"
        table = Table(columns=["feature", *found.classes, "words that have most of it"], rows=rows, title=title)
        scalars["gate_entropy_bits"] = Scalar(value=found.entropy, unit="bits")
        widest = float(np.ptp(found.means[:, found.features[0]]))
        scalars["largest_class_difference"] = Scalar(value=widest)
        verdict = f"The gate of feature {found.features[0]} differs by {widest:.3f} between classes, the most of all."
    else:
        rows = [
            [name, *map(float, mean), *map(float, share)]
            for name, mean, share in zip(found.classes, found.means, found.decided, strict=True)
        ]
        heads = [
            f"{what} {n + 1}" for what in ("weight of branch", "led by branch") for n in range(found.means.shape[1])
        ]
        table = Table(columns=["class", *heads], rows=rows, title="SFA: branch weights and who leads, by class")
        widest = float(np.ptp(found.means, axis=0).max())
        scalars["largest_class_difference"] = Scalar(value=widest)
        verdict = f"Mean branch weights differ by at most {widest:.3f} between classes."
    return run.result(
        scalars=scalars,
        tables={"classes": table},
        verdicts=[verdict],
        limitations=["Gates of a pair are the means of its two texts; differences of means say nothing of causes."],
    )
