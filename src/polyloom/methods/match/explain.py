"""Why a pair got its score: words by leaving them out, features by their gates, branches by their weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from polyloom.methods.match.data import Pair
from polyloom.methods.match.method import FeatureAttention, SelectiveFeatureAttention, masked_mean
from polyloom.methods.match.models import SIAMESE
from polyloom.methods.match.training import Trained, is_positive, stack

Floats = NDArray[np.float64]


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
    if trained.model.shape.base not in SIAMESE or block is None:
        return None, None, None
    with torch.inference_mode():
        X, mask = trained.model.states(stack(ids))
        if isinstance(block, SelectiveFeatureAttention):
            return None, None, block.attend(X, mask)[1].mean(2).double().numpy()
        if not isinstance(block, FeatureAttention):
            return None, None, None
        gates = block.gate(masked_mean(X, mask)).double().numpy()
    fixed = FixedGate(float(gates.mean()))
    trained.model.block = fixed
    try:
        without = _value(trained, ids, target)
    finally:
        trained.model.block = block
    return gates, without, None


class FixedGate(torch.nn.Module):
    """The counterfactual: every feature gets one factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, X: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scale the sequence."""
        return X * self.factor * mask[:, :, None]
