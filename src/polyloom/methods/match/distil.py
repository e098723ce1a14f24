"""Learning from a larger model: a teacher's soft labels of the training pairs, and of new pairs of their texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyloom.core.errors import UserError
from polyloom.core.seeding import python_random
from polyloom.methods.match.data import Pair, Pairs
from polyloom.methods.match.folder import load
from polyloom.models.load import load_model, load_tokenizer

Floats = NDArray[np.float64]
BATCH = 32
MAX_LENGTH = 256


@dataclass(frozen=True)
class Teacher:
    """A model that judges pairs: chances [pairs, classes] by the names of its classes, or scores [pairs] in [0, 1]."""

    judge: Callable[[Sequence[Pair]], Floats]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lesson:
    """What a matcher learns from: pairs, and a target for each: chances [pairs, classes], or scores [pairs]."""

    pairs: Pairs
    targets: Tensor


def open_teacher(folder: Path) -> Teacher:
    """Open a matcher's folder, or a Hugging Face cross-encoder (a classifier of pairs; one output is a score).

    Raises:
        UserError: neither is there.
    """
    if (folder / "matcher.json").is_file():
        trained = load(folder)
        low, high = trained.scale

        def judge(pairs: Sequence[Pair]) -> Floats:
            found = trained.predict(pairs)
            return found if trained.loss == "softmax" else (found - low) / (high - low)

        if trained.loss not in ("softmax", "regression"):
            what = f"was trained to compare vectors ({trained.loss}): its cosine is on no scale."
            raise UserError(what, where=str(folder), hint="Name a teacher of classes or of scores.")
        return Teacher(judge, tuple(trained.classes))
    model = load_model(folder, "classifier", device="auto")
    tokenizer = load_tokenizer(folder, model)

    @torch.inference_mode()
    def read(pairs: Sequence[Pair]) -> Floats:
        parts = []
        for start in range(0, len(pairs), BATCH):
            part = pairs[start : start + BATCH]
            given = tokenizer(
                [pair.first for pair in part],
                [pair.second for pair in part],
                padding=True,
                truncation=True,
                max_length=MAX_LENGTH,
                return_tensors="pt",
            ).to(model.device)
            parts.append(model(**given).logits.cpu().double())
        logits = torch.cat(parts)
        return np.asarray(torch.sigmoid(logits[:, 0]) if logits.shape[1] == 1 else logits.softmax(1))

    settings: Any = model.config
    size = int(settings.num_labels)
    names = tuple(str(settings.id2label[i]) for i in range(size)) if size > 1 else ()
    return Teacher(read, names)


def make_lesson(
    train: Pairs, gold: Tensor, classes: Sequence[str], teacher: Teacher, weight: float, num_new: int, seed: int
) -> Lesson:
    """Mix gold labels with a teacher's, and let it judge new pairs of the training texts.

    Args:
        train: the training pairs.
        gold: their targets, as of `training.targets`.
        classes: the matcher's, in the order of its outputs; empty for scores.
        teacher: the larger model.
        weight: of the teacher's word on labelled pairs; the gold label has the rest.
        num_new: pairs of a first and another pair's second text, which the teacher alone labels.
        seed: of their draw.

    Raises:
        UserError: the teacher judges another thing than the labels say.

    Source: Hinton et al. (2015), soft labels; Thakur et al. (2021), Augmented SBERT, for the new pairs.
    """
    order = _order_of(classes, teacher)
    if classes:
        gold = torch.eye(len(classes))[gold.long()]
    said = torch.from_numpy(teacher.judge(train.items)[..., order]).float()
    new = recombined(train, num_new, seed)
    judged = torch.from_numpy(teacher.judge(new)[..., order]).float() if new else said[:0]
    if classes:
        labelled = [replace(pair, label=classes[i]) for pair, i in zip(new, judged.argmax(1).tolist(), strict=True)]
    else:
        low, high = train.scale
        scores = (low + (high - low) * judged).tolist()
        labelled = [replace(pair, label=f"{score:.4f}") for pair, score in zip(new, scores, strict=True)]
    targets = torch.cat([(1 - weight) * gold + weight * said, judged])
    return Lesson(replace(train, items=[*train.items, *labelled]), targets)


def _order_of(classes: Sequence[str], teacher: Teacher) -> list[int] | slice:
    """Return which of the teacher's outputs each class is."""
    if not classes and not teacher.classes:
        return slice(None)
    if bool(classes) != bool(teacher.classes):
        kinds = {True: "classes", False: "scores"}
        what = f"it gives {kinds[bool(teacher.classes)]}, and the labels are {kinds[bool(classes)]}."
        raise UserError(what, where="--teacher")
    names = [name.casefold() for name in teacher.classes]
    lacking = [name for name in classes if name.casefold() not in names]
    if lacking:
        what = f"it knows no class {lacking[0]!r}; it knows {', '.join(teacher.classes)}."
        raise UserError(what, where="--teacher", hint="Name its classes (id2label) as the data do.")
    return [names.index(name.casefold()) for name in classes]


def recombined(train: Pairs, number: int, seed: int) -> list[Pair]:
    """Return new pairs of a first text and the second text of another pair; none of them stands in training."""
    rng = python_random(seed, "recombined")
    seen = {(pair.first, pair.second) for pair in train.items}
    found: list[Pair] = []
    for _ in range(20 * number):
        if len(found) == number:
            break
        pair = (rng.choice(train.items).first, rng.choice(train.items).second)
        if pair not in seen:
            seen.add(pair)
            found.append(Pair(*pair, "", "new pair"))
    return found
