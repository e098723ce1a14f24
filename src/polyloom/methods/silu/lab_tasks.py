"""The lab's embedded tasks: digits, made shapes, and character text. Each is one `Task`, so that one trainer fits all.

A task measures models together: `Predict` maps inputs [models, examples, ...] to outputs with the same leading axes.
Corruptions are drawn per seed, so that two activations with one seed meet the same ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from polyloom.core.errors import MissingExtra, UserError
from polyloom.methods.silu import detection
from polyloom.methods.silu.lab_models import (
    Form,
    Network,
    TransformerSize,
    convolutions,
    multilayer_perceptron,
    transformer,
)
from polyloom.metrics.statistics import expected_calibration_error
from polyloom.models.device import torch_generator

Predict = Callable[[Tensor], Tensor]
Split = Literal["validation", "test"]
Part = Literal["train", "validation", "test"]
Values = dict[str, list[float]]
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Metric:
    """How to read a value: which way is better, whether a margin of accuracy or of loss applies, what it is."""

    higher_is_better: bool
    unit: Literal["accuracy", "loss"]
    meaning: str


@dataclass(frozen=True)
class Task:
    """One problem of the lab.

    Attributes:
        name: of the task.
        title: what it is, in words.
        network: the architecture for a form of activation.
        takes_gated: whether a gated form fits the architecture.
        num_train: training examples; their indices are shuffled per seed and epoch.
        fetch: indices [...] to inputs [..., ...] and targets [..., ...].
        loss: outputs and targets [models, batch, ...] to [models].
        score: the primary metric on a split, [models].
        measure: every metric on the test split and the noise curve (`noise <level>`), for models of these seeds.
        held_out: validation inputs [examples, ...].
        primary: name of the primary metric.
        metrics: the metrics that are tested.
        noise_levels: of the noise curve; level 0 is the primary metric.
        notes: what the report must say about the data.
    """

    name: str
    title: str
    network: Callable[[Form], Network]
    takes_gated: bool
    num_train: int
    fetch: Callable[[Tensor], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Predict, Split, int], list[float]]
    measure: Callable[[Predict, Sequence[int]], Values]
    held_out: Tensor
    primary: str
    metrics: dict[str, Metric]
    noise_levels: tuple[float, ...]
    notes: tuple[str, ...] = ()


def _for_models(inputs: Tensor, num_models: int) -> Tensor:
    return inputs.expand(num_models, *inputs.shape)


def _draw(seeds: Sequence[int], name: str, shape: Sequence[int]) -> Tensor:
    """Draw standard normal values [models, *shape], one stream per seed."""
    return torch.stack([torch.randn(*shape, generator=torch_generator(seed, "corruption", name)) for seed in seeds])


def _draw_integers(seeds: Sequence[int], name: str, high: int, shape: Sequence[int]) -> Tensor:
    streams = [torch_generator(seed, "corruption", name) for seed in seeds]
    return torch.stack([torch.randint(high, tuple(shape), generator=stream) for stream in streams])


def _accuracy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> list[float]:
    """Return the (weighted) share of right predictions, [models]; a model that gives NaN is wrong."""
    right = (logits.argmax(-1) == labels) & logits.isfinite().all(-1)
    if weights is None:
        return [float(value) for value in right.double().mean(1)]
    return [float(value) for value in (right * weights).sum(1) / weights.sum(1)]


def _calibration_errors(logits: Tensor, labels: Tensor) -> list[float]:
    """Return the ECE [models] of logits [models, examples, classes]; 1 for a model that gives NaN."""
    confidence, predicted = torch.softmax(logits, -1).max(-1)
    right = predicted == labels
    return [
        expected_calibration_error(p.numpy(), hit.numpy()) if bool(p.isfinite().all()) else 1.0
        for p, hit in zip(confidence.double(), right, strict=True)
    ]


def area_under_curve(levels: Sequence[float], values: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean height of each model's curve over the levels (trapezoids), [models].

    Args:
        levels: ascending.
        values: [levels, models].
    """
    curve, widths = np.asarray(values), np.diff(np.asarray(levels))
    areas = (widths[:, None] * (curve[1:] + curve[:-1]) / 2).sum(0)
    return [float(area) / levels[-1] for area in areas]


def _mean_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    num_models = outputs.shape[0]
    loss = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
    return loss.view(num_models, -1).mean(1)


ACCURACY = Metric(True, "accuracy", "share of right predictions on clean test data")
NOISE_AREA = Metric(True, "accuracy", "mean height of the curve of the primary metric over the noise levels")
CALIBRATION = Metric(False, "accuracy", "expected calibration error, 15 bins")


def digits_task(seed: int, num_train: int = 1000) -> Task:
    """Return the classification of 8x8 digits (scikit-learn's copy of the UCI set), 1000 / 397 / 400 images.

    Args:
        seed: of the split.
        num_train: images used of the 1000 for training.

    Raises:
        MissingExtra: scikit-learn is absent.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", extra="lab") from error
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch_generator(seed, "digits", "split"))
    images = torch.tensor(data.data, dtype=torch.float32)[order] / 16.0
    labels = torch.tensor(data.target, dtype=torch.int64)[order]
    x, y = images[:num_train], labels[:num_train]
    parts = {"validation": (images[1000:1397], labels[1000:1397]), "test": (images[1397:], labels[1397:])}
    levels = (0.1, 0.2, 0.3, 0.5)

    def score(predict: Predict, split: Split, num_models: int) -> list[float]:
        inputs, wanted = parts[split]
        return _accuracy(predict(_for_models(inputs, num_models)), wanted)

    def measure(predict: Predict, seeds: Sequence[int]) -> Values:
        inputs, wanted = parts["test"]
        clean = _for_models(inputs, len(seeds))
        logits = predict(clean)
        noise = _draw(seeds, "noise", inputs.shape)
        found = {"accuracy": _accuracy(logits, wanted), "ece": _calibration_errors(logits, wanted)}
        for level in levels:
            found[f"noise {level:g}"] = _accuracy(predict(clean + level * noise), wanted)
        curve = [found["accuracy"], *(found[f"noise {level:g}"] for level in levels)]
        ranks = torch.stack([torch.randperm(10, generator=torch_generator(s, "corruption", "prior")) for s in seeds])
        return found | {
            "noise_area": area_under_curve((0.0, *levels), curve),
            "shift": _accuracy(predict(_shift(inputs, seeds)), wanted),
            "contrast": _accuracy(predict(0.5 + 0.4 * (clean - 0.5)), wanted),
            "occlusion": _accuracy(predict(_occlude(inputs, seeds)), wanted),
            "class_prior": _accuracy(logits, wanted, (0.7 ** ranks.double())[:, wanted]),
        }

    return Task(
        name="digits",
        title="8x8 handwritten digits, multilayer perceptron 64-32-32-10",
        network=lambda form: multilayer_perceptron(form, (64, 32, 32, 10)),
        takes_gated=True,
        num_train=num_train,
        fetch=lambda index: (x[index], y[index]),
        loss=_mean_cross_entropy,
        score=score,
        measure=measure,
        held_out=parts["validation"][0],
        primary="accuracy",
        metrics={
            "accuracy": ACCURACY,
            "noise_area": NOISE_AREA,
            "shift": Metric(True, "accuracy", "accuracy on images moved by one pixel"),
            "contrast": Metric(True, "accuracy", "accuracy at 0.4 of the contrast"),
            "occlusion": Metric(True, "accuracy", "accuracy with a 3x3 block blanked"),
            "class_prior": Metric(True, "accuracy", "accuracy under an uneven class prior (0.7 from class to class)"),
            "ece": CALIBRATION,
        },
        noise_levels=levels,
        notes=("digits: the test split has 400 images, so one image is 0.25 points.",),
    )


def _shift(inputs: Tensor, seeds: Sequence[int]) -> Tensor:
    """Move every image by one pixel, left, right, up or down; [models, images, 64]."""
    images = F.pad(inputs.view(-1, 8, 8), (1, 1, 1, 1))
    moved = torch.stack([images[:, 1 + dy : 9 + dy, 1 + dx : 9 + dx] for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))])
    direction = _draw_integers(seeds, "shift", 4, [len(inputs)])
    return moved.flatten(2)[direction, torch.arange(len(inputs))]


def _occlude(inputs: Tensor, seeds: Sequence[int]) -> Tensor:
    """Blank a 3x3 block of every image; [models, images, 64]."""
    corner = _draw_integers(seeds, "occlusion", 6, [len(inputs), 2])
    place = torch.arange(8)
    rows, columns = ((place >= corner[..., i, None]) & (place < corner[..., i, None] + 3) for i in range(2))
    return inputs * ~(rows[..., :, None] & columns[..., None, :]).flatten(2)


def shapes_task(seed: int, num_train: int, num_test: int) -> Task:
    """Return the detection of made shapes: mean AP at IoU 0.5.

    Args:
        seed: of the images.
        num_train: training images.
        num_test: test images; half as many for validation.
    """
    train = detection.make_scenes(num_train, seed, "train")
    parts = {
        "validation": detection.make_scenes(num_test // 2, seed, "validation"),
        "test": detection.make_scenes(num_test, seed, "test"),
    }
    levels = (0.1, 0.2, 0.3, 0.5)

    def precision(outputs: Tensor, scenes: detection.Scenes) -> list[float]:
        return [
            detection.mean_average_precision(*detection.decode(one), scenes.boxes, scenes.classes) for one in outputs
        ]

    def score(predict: Predict, split: Split, num_models: int) -> list[float]:
        return precision(predict(_for_models(parts[split].images, num_models)), parts[split])

    def measure(predict: Predict, seeds: Sequence[int]) -> Values:
        scenes = parts["test"]
        clean = _for_models(scenes.images, len(seeds))
        noise = _draw(seeds, "noise", scenes.images.shape)
        found = {"map": precision(predict(clean), scenes)}
        for level in levels:
            found[f"noise {level:g}"] = precision(predict(clean + level * noise), scenes)
        curve = [found["map"], *(found[f"noise {level:g}"] for level in levels)]
        return found | {
            "noise_area": area_under_curve((0.0, *levels), curve),
            "contrast": precision(predict(0.6 * clean), scenes),
        }

    return Task(
        name="shapes",
        title="made 32x32 images of squares, discs and triangles, anchor-free detector",
        network=lambda form: convolutions(form, (1, 16, 16, 16, detection.HEAD_CHANNELS), detection.HEAD_BIAS),
        takes_gated=False,
        num_train=num_train,
        fetch=lambda index: (train.images[index], train.targets[index]),
        loss=detection.detection_loss,
        score=score,
        measure=measure,
        held_out=parts["validation"].images,
        primary="map",
        metrics={
            "map": Metric(True, "accuracy", "mean over the classes of the average precision at IoU 0.5"),
            "noise_area": NOISE_AREA,
            "contrast": Metric(True, "accuracy", "mean average precision at 0.6 of the contrast"),
        },
        noise_levels=levels,
        notes=("shapes: the images are made; they stand for no photograph.",),
    )


def character_vocabulary(texts: Sequence[str], size: int = 120) -> list[str]:
    """Return the most frequent characters, ties by code point, behind one that stands for all others."""
    counts = Counter("".join(texts))
    return [UNKNOWN, *sorted(counts, key=lambda c: (-counts[c], c))[: size - 1]]


def text_task(texts: dict[Part, str], num_test: int, context: int = 32) -> Task:
    """Return next-character prediction on three splits of a text.

    Args:
        texts: `train`, `validation` and `test`.
        num_test: test windows; half as many for validation.
        context: characters of a window.

    Raises:
        UserError: a split is too short.
    """
    symbols = character_vocabulary([texts["train"]])
    numbers = {symbol: index for index, symbol in enumerate(symbols)}
    codes = {name: torch.tensor([numbers.get(c, 0) for c in text]) for name, text in texts.items()}
    wanted: dict[Part, int] = {"train": 10 * context, "validation": num_test // 2 * context, "test": num_test * context}
    for name, length in wanted.items():
        if len(codes[name]) <= length:
            raise UserError(f"the {name} text has {len(codes[name])} characters, the task needs {length + 1}.")
    train, steps = codes["train"], torch.arange(context)
    size = TransformerSize(num_symbols=len(symbols), context=context)
    levels = (0.05, 0.1, 0.2, 0.3)

    def windows(split: Split) -> tuple[Tensor, Tensor]:
        count = wanted[split] // context
        # Windows from the whole split: documents that stand side by side are alike.
        starts = torch.linspace(0, len(codes[split]) - context - 1, count).long()[:, None] + steps
        return codes[split][starts], codes[split][starts + 1]

    def losses(outputs: Tensor, targets: Tensor) -> list[float]:
        found = _mean_cross_entropy(outputs, _for_models(targets, len(outputs)))
        # A model that diverged knows less than one that guesses evenly; a finite value keeps it in the means.
        limit = 2.0 * float(np.log(len(symbols)))
        return [float(value) for value in found.double().nan_to_num(limit, limit, limit).clamp_max(limit)]

    def score(predict: Predict, split: Split, num_models: int) -> list[float]:
        inputs, targets = windows(split)
        return losses(predict(_for_models(inputs, num_models)), targets)

    def measure(predict: Predict, seeds: Sequence[int]) -> Values:
        inputs, targets = windows("test")
        clean = _for_models(inputs, len(seeds))
        outputs = predict(clean)
        found = {"loss": losses(outputs, targets)}
        found["ece"] = _calibration_errors(outputs.flatten(1, 2), targets.flatten())
        other = _draw_integers(seeds, "symbols", len(symbols), inputs.shape)
        order = _draw_integers(seeds, "noise", 10_000, inputs.shape) / 10_000
        for level in levels:
            found[f"noise {level:g}"] = losses(predict(torch.where(order < level, other, clean)), targets)
        curve = [found["loss"], *(found[f"noise {level:g}"] for level in levels)]
        return found | {"noise_area": area_under_curve((0.0, *levels), curve)}

    def fetch(index: Tensor) -> tuple[Tensor, Tensor]:
        places = index[..., None] + steps
        return train[places], train[places + 1]

    return Task(
        name="text",
        title="next character of template-made text, 2-layer transformer of width 48",
        network=lambda form: transformer(form, size),
        takes_gated=True,
        num_train=len(train) - context - 1,
        fetch=fetch,
        loss=_mean_cross_entropy,
        score=score,
        measure=measure,
        held_out=windows("validation")[0],
        primary="loss",
        metrics={
            "loss": Metric(False, "loss", "mean cross-entropy of the next character on test text, in nats"),
            "noise_area": Metric(False, "loss", "mean height of the loss curve over shares of replaced characters"),
            "ece": CALIBRATION,
        },
        noise_levels=levels,
        notes=("text: the embedded text is made from templates; real text is harder.",),
    )


def world_texts(languages: Sequence[str], num_characters: int, seed: int) -> dict[Part, str]:
    """Return the embedded world's text in these languages as three splits, documents mixed over the languages."""
    from polyloom.data.world import text_corpus

    texts: dict[Part, str] = {}
    splits: dict[Part, tuple[str, float]] = {
        "train": ("train", 1.0),
        "validation": ("valid", 0.15),
        "test": ("test", 0.25),
    }
    for part, (split, share) in splits.items():
        corpus = text_corpus(list(languages), int(num_characters * share / len(languages)), seed, split)
        longest = max(len(documents) for documents in corpus.values())
        texts[part] = "\n".join(
            documents[i] for i in range(longest) for documents in corpus.values() if i < len(documents)
        )
    return texts
