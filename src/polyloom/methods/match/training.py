"""The recipe: Adam, plateau schedule, early stop on the validation score; and the trained matcher with its folder."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from polyloom.core.errors import UserError, closest
from polyloom.core.seeding import derive_seed, numpy_generator, python_random
from polyloom.methods.match.augmentation import hard_batches, misspell_all
from polyloom.methods.match.calibration import best_threshold, fit_temperature, softmax
from polyloom.methods.match.data import Pair, Pairs, Task, check_classes
from polyloom.methods.match.method import Dropout
from polyloom.methods.match.models import ALIGNED, Matcher, Shape
from polyloom.methods.match.tokens import AnyVocabulary, build_vocabulary
from polyloom.methods.match.vectors import Initial
from polyloom.metrics.statistics import spearman

Loss = Literal["softmax", "regression", "cosine", "cosent", "contrastive"]
COMPARING = ("cosine", "cosent", "contrastive")  # losses that compare vectors: these pool by the mean alone
Floats = NDArray[np.float64]
POSITIVE = ("1", "same", "entailment", "entails", "duplicate", "true", "yes")
COSENT_SCALE, CONTRASTIVE_SCALE = 20.0, 20.0
# Chosen on validation pairs, see benchmarks/match.md; other bases have 3e-3 and 0.3.
RATES = {"bag": 6e-3, "re2": 1e-3}
DROPOUTS = {"re2": 0.1}
AVERAGED_STEPS = 100  # about so many of the last steps' weights are averaged: single ones swing by points
LEAST_RATE = 1 / 8  # of the first learning rate


@dataclass(frozen=True)
class Recipe:
    """How a matcher is built and trained. The sizes are the small default, for a minute on one thread."""

    base: str = "bag"
    block: str = "none"
    loss: Loss | None = None
    width: int = 128
    hidden: int = 48
    max_length: int = 64
    epochs: int = 8
    batch_size: int = 64
    learning_rate: float | None = None
    dropout: float | None = None
    patience: int = 5
    symmetric: bool = False
    num_branches: int = 3
    floor: int = 60
    encoder: str = ""
    freeze: bool = False
    typos: float = 0.0
    hard_negatives: float = 0.0
    overlap: bool = True

    @property
    def rate(self) -> float:
        """Adam's learning rate: the one asked for, or the base's."""
        return self.learning_rate or RATES.get(self.base, 3e-3)

    @property
    def dropped(self) -> float:
        """The share that is dropped of embeddings and heads: the one asked for, or the base's."""
        return DROPOUTS.get(self.base, 0.3) if self.dropout is None else self.dropout


@dataclass
class Trained:
    """A matcher with all that is needed to use it."""

    model: Matcher
    vocabulary: AnyVocabulary
    task: Task
    classes: list[str]
    scale: tuple[float, float] = (0.0, 1.0)
    loss: Loss = "softmax"
    temperature: float = 1.0
    threshold: float | None = None
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def number(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the numbered words of texts."""
        return [self.vocabulary.encode(text, self.model.shape.max_length) for text in texts]

    def number_pairs(self, pairs: Sequence[Pair]) -> list[list[int]]:
        """Return the numbered words of pairs, the first and the second text in turn."""
        return self.number([text for pair in pairs for text in (pair.first, pair.second)])

    @torch.inference_mode()
    def outputs(
        self, pairs: Sequence[Pair], numbered: Sequence[list[int]] | None = None, batch_size: int = 128
    ) -> Floats:
        """Return what the model says of pairs: logits [pairs, classes], or a number each [pairs, 1].

        `numbered` is what `number_pairs` gave for them, for who asks again and again.
        """
        self.model.eval()
        ids = self.number_pairs(pairs) if numbered is None else numbered
        first, second = ids[::2], ids[1::2]
        order = sorted(range(len(pairs)), key=lambda i: len(first[i]) + len(second[i]))
        results: list[Floats | None] = [None] * len(pairs)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            output = self.model(stack([first[i] for i in rows] + [second[i] for i in rows]))
            for i, value in zip(rows, output.reshape(len(rows), -1).double().numpy(), strict=True):
                results[i] = value
        return np.asarray(results)

    def predict(self, pairs: Sequence[Pair], numbered: Sequence[list[int]] | None = None) -> Floats:
        """Return class probabilities [pairs, classes] or scores [pairs] on the data's scale.

        A matcher that was trained to compare vectors gives the cosine, in [-1, 1]. `numbered` is as in `outputs`.
        """
        return self.read(self.outputs(pairs, numbered))

    def read(self, outputs: Floats) -> Floats:
        """Turn what `outputs` gave into what `predict` returns."""
        if self.loss == "softmax":
            return softmax(outputs / self.temperature)
        if self.loss == "regression":
            low, high = self.scale
            return np.asarray(low + (high - low) / (1 + np.exp(-outputs[:, 0])))
        return outputs[:, 0]

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str], batch_size: int = 256) -> NDArray[np.float32]:
        """Return the vectors [texts, vector_size] of texts, of length 1."""
        self.model.eval()
        ids = self.number(texts)
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        result = np.zeros((len(texts), self.model.vector_size), dtype=np.float32)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            result[rows] = functional.normalize(self.model.vectors(stack([ids[i] for i in rows]))).numpy()
        return result


def stack(rows: Sequence[Sequence[int]]) -> Tensor:
    """Pad numbered texts on the right with 0 into one matrix."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    padded = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
    padded[np.arange(padded.shape[1])[None] < lengths[:, None]] = np.fromiter(chain.from_iterable(rows), dtype=np.int64)
    return torch.from_numpy(padded)


def is_positive(label: str) -> bool:
    """Say whether a class name means that the texts match."""
    return label.lower() in POSITIVE


def match_scores(trained: Trained, predicted: Floats) -> Floats | None:
    """Return from `predict` a number per pair that grows with matching; None where no class means it."""
    if trained.loss != "softmax":
        return predicted
    match = next((i for i, name in enumerate(trained.classes) if is_positive(name)), None)
    return None if match is None else predicted[:, match]


def default_loss(task: Task, base: str) -> Loss:
    """Return the loss that fits a task: softmax over classes, CoSENT of vectors, regression where there are none."""
    if task == "classes":
        return "softmax"
    return "regression" if base in ALIGNED else "cosent"


def cosent(cosine: Tensor, target: Tensor) -> Tensor:
    """Return log(1 + sum over pairs i, j with target_i > target_j of exp(s (cos_j - cos_i)))."""
    differences = COSENT_SCALE * (cosine[None, :] - cosine[:, None])
    wrong = differences[target[:, None] > target[None, :]]
    return torch.logsumexp(torch.cat([wrong.new_zeros(1), wrong]), 0)


def contrastive(model: Matcher, ids: Tensor, target: Tensor) -> Tensor:
    """Return the in-batch softmax loss: each first text finds its own second one among those of the whole batch.

    Pairs that do not match take no row, but their second texts stay as hard negatives; the texts of all pairs with the
    same second text count as right.
    """
    first, second = ids.chunk(2)
    u, v = functional.normalize(model.vectors(ids)).chunk(2)
    scores = CONTRASTIVE_SCALE * u @ v.T
    width = max(first.shape[1], second.shape[1])
    key = functional.pad(second, (0, width - second.shape[1]))
    same = (key[:, None] == key[None]).all(2)
    own = torch.eye(len(u), dtype=torch.bool)
    scores = scores.masked_fill(same & ~own, -torch.inf)
    rows = target > 0.5
    if not rows.any():
        return 0 * scores[own].sum()
    return functional.cross_entropy(scores[rows], torch.arange(len(u))[rows])


def loss_of(model: Matcher, loss: Loss, ids: Tensor, target: Tensor) -> Tensor:
    """Return the loss of a batch of stacked pairs; `target` holds class numbers or scores in [0, 1]."""
    if loss == "contrastive":
        return contrastive(model, ids, target)
    output = model(ids)
    if loss == "softmax":
        # Chances of each class where a teacher has a say, else class numbers.
        return functional.cross_entropy(output, target if target.ndim > 1 else target.long())
    if loss == "regression":
        return functional.binary_cross_entropy_with_logits(output[:, 0], target)
    return cosent(output, target) if loss == "cosent" else functional.mse_loss(output, target)


def targets(pairs: Pairs, classes: Sequence[str], loss: Loss) -> Tensor:
    """Return the training targets.

    Raises:
        UserError: a class that training did not have (file and line are named).
    """
    if pairs.task == "scores":
        low, high = pairs.scale
        return torch.tensor([(float(pair.label) - low) / (high - low) for pair in pairs.items])
    unknown = next((pair for pair in pairs.items if pair.label not in classes), None)
    if unknown is not None:
        what = f"the label {unknown.label!r} is none of the training set's."
        raise UserError(what, where=unknown.where, hint=closest(unknown.label, classes))
    if loss == "softmax":
        return torch.tensor([float(classes.index(pair.label)) for pair in pairs.items])
    return torch.tensor([float(is_positive(pair.label)) for pair in pairs.items])


def main_score(trained: Trained, pairs: Pairs, predicted: Floats | None = None) -> float:
    """Return accuracy for classes, Spearman's correlation for scores: what early stopping looks at."""
    predicted = trained.predict(pairs.items) if predicted is None else predicted
    if trained.loss == "softmax":
        return float((predicted.argmax(1) == class_numbers(trained, pairs)).mean())
    wanted = targets(pairs, trained.classes, trained.loss).numpy()
    value = spearman(predicted, wanted)[0] if len(predicted) > 2 else 0.0
    return 0.0 if np.isnan(value) else value


def class_numbers(trained: Trained, pairs: Pairs) -> NDArray[np.int64]:
    """Return the numbers of the pairs' classes."""
    return np.asarray([trained.classes.index(pair.label) for pair in pairs.items])


def calibrate(trained: Trained, valid: Pairs, numbered: Sequence[list[int]] | None = None) -> None:
    """Choose on validation pairs what makes chances fit (the temperature), and from which score on a pair matches."""
    outputs = trained.outputs(valid.items, numbered)
    if trained.loss == "softmax":
        trained.temperature = fit_temperature(outputs, class_numbers(trained, valid))
    match = None if trained.task == "scores" else match_scores(trained, trained.read(outputs))
    positive = [is_positive(pair.label) for pair in valid.items]
    if match is not None and any(positive):
        trained.threshold = best_threshold(match, positive)


def build(train: Pairs, recipe: Recipe, seed: int, initial: Initial | None = None) -> Trained:
    """Make a matcher with fresh weights for a training set.

    Args:
        train: the training pairs; their words become the vocabulary.
        recipe: sizes and loss.
        seed: of the weights.
        initial: first vectors, with their own vocabulary where they have one.

    Raises:
        UserError: one class alone, or a loss that does not fit the task or base.
    """
    loss = recipe.loss or default_loss(train.task, recipe.base)
    if train.task == "classes":
        check_classes(train)
    if (loss == "softmax") != (train.task == "classes") and loss in ("softmax", "regression"):
        raise UserError(f"the loss {loss!r} does not fit labels that are {train.task}.", where="--loss")
    if loss in COMPARING and recipe.base in ALIGNED:
        raise UserError(f"the loss {loss!r} needs a vector of each text.", where="--loss", hint="Use another --base.")
    classes = train.classes() if train.task == "classes" else []
    if loss in COMPARING and classes and not any(is_positive(name) for name in classes):
        hint = f"Name the matching one: {', '.join(POSITIVE)}."
        raise UserError(f"none of the classes {', '.join(classes)} says that texts match.", where="--loss", hint=hint)
    vocabulary = initial.vocabulary if initial and initial.vocabulary else build_vocabulary(train.texts())
    width = initial.width if initial else recipe.width
    num_outputs = {"softmax": len(classes), "regression": 1}.get(loss, 0)
    shape = Shape(
        base=recipe.base,
        block=recipe.block,
        vocab_size=len(vocabulary),
        width=width,
        hidden=recipe.hidden,
        num_outputs=num_outputs,
        max_length=recipe.max_length,
        dropout=recipe.dropped,
        symmetric=recipe.symmetric,
        num_branches=recipe.num_branches,
        floor=recipe.floor,
        encoder=recipe.encoder,
        pooling="mean" if loss in COMPARING else "both",
        overlap=recipe.overlap and recipe.base in ALIGNED,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        model = Matcher(shape)
    if initial is not None and initial.rows is not None:
        initial.put_into(model, vocabulary)
    elif initial is None and loss in COMPARING:
        weigh_by_rarity(model, [vocabulary.encode(text, recipe.max_length) for text in dict.fromkeys(train.texts())])
    return Trained(model, vocabulary, train.task, classes, train.scale, loss)


@torch.no_grad()
def weigh_by_rarity(model: Matcher, texts: Sequence[Sequence[int]]) -> None:
    """Scale random word vectors by how rare their words are, so that training starts from weighted word counts.

    The mean of such vectors has nearly the cosine of TF-IDF (random vectors are nearly orthogonal).

    Args:
        model: its embedding is changed.
        texts: numbered ones, each once.
    """
    rows: Tensor = model.embedding.weight  # type: ignore[assignment]
    counts = torch.bincount(torch.tensor([i for text in texts for i in set(text)]), minlength=len(rows))
    rarity = torch.log((1 + len(texts)) / (1 + counts.float()))
    rows *= (rarity / rarity.mean())[:, None]


def batches(lengths: Sequence[int], batch_size: int, rng: np.random.Generator) -> list[list[int]]:
    """Cut a shuffled order into batches of pairs of about equal length; a single pair joins the batch before it."""
    order = rng.permutation(len(lengths))
    pool = batch_size * 16
    cut = []
    for start in range(0, len(order), pool):
        part = sorted(order[start : start + pool].tolist(), key=lambda i: lengths[i])
        cut += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    if len(cut) > 1 and len(cut[-1]) == 1:
        cut[-2] += cut.pop()
    rng.shuffle(cut)
    return cut


class Average:
    """The exponential average of a model's weights, which is what is judged and kept."""

    def __init__(self, model: Matcher) -> None:
        self.model, self.num_steps = model, 0
        self.live = [value for value in model.state_dict().values() if value.is_floating_point()]
        self.mean = [value.clone() for value in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step; the first ones count less, so that the start is soon forgotten."""
        self.num_steps += 1
        share = max(1 / AVERAGED_STEPS, 10 / (10 + self.num_steps))
        torch._foreach_lerp_(self.mean, self.live, share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average."""
        for value, mean in zip(self.live, self.mean, strict=True):
            held = value.clone()
            value.copy_(mean)
            mean.copy_(held)


class _Rows:
    """The training pairs as numbers, and the order of their batches in each epoch."""

    def __init__(self, trained: Trained, train: Pairs, recipe: Recipe, seed: int) -> None:
        self.trained, self.texts, self.recipe, self.seed = trained, train.texts(), recipe, seed
        if recipe.hard_negatives and trained.loss != "contrastive":
            hint = "Use --loss contrastive, or leave --hard-negatives out."
            raise UserError("only the contrastive loss has negatives.", where="--hard-negatives", hint=hint)
        self._number(self.texts)

    def _number(self, texts: Sequence[str]) -> None:
        ids = self.trained.number(texts)
        self.lengths = [max(len(a), len(b)) for a, b in zip(ids[::2], ids[1::2], strict=True)]
        self.padded = stack(ids).view(len(self.lengths), 2, -1)

    def batches(self, epoch: int, rng: np.random.Generator) -> list[list[int]]:
        """Return the rows of each batch of an epoch, whose words are misspelled anew where that is asked for."""
        if self.recipe.typos:
            self._number(misspell_all(self.texts, self.recipe.typos, python_random(self.seed, "typos", epoch)))
        if self.recipe.hard_negatives and epoch:
            # Before the first epoch the vectors are random and nobody is near.
            vectors = self.trained.vectors(self.texts[1::2])
            self.trained.model.train()
            return hard_batches(vectors, self.recipe.batch_size, self.recipe.hard_negatives, rng)
        return batches(self.lengths, self.recipe.batch_size, rng)

    def stacked(self, rows: list[int]) -> Tensor:
        """Return the numbered texts of some pairs, the first ones on the second ones."""
        batch = self.padded[rows, :, : max(self.lengths[i] for i in rows)]
        return batch.transpose(0, 1).flatten(0, 1)


def _trainable(model: Matcher, recipe: Recipe) -> list[torch.nn.Parameter]:
    if recipe.freeze:
        model.embedding.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UserError("nothing is left to train.", where="--freeze", hint="Add a block, or a loss with a head.")
    return parameters


def fit(
    train: Pairs,
    valid: Pairs,
    recipe: Recipe,
    seed: int,
    *,
    initial: Initial | None = None,
    after_epoch: Callable[[int, float], None] | None = None,
    soft: Tensor | None = None,
    after_backward: Callable[[int, Matcher], None] | None = None,
) -> Trained:
    """Train a matcher and keep the weights of its best epoch on the validation pairs.

    Args:
        train: training pairs.
        valid: pairs that choose the epoch and the learning rate's cuts.
        recipe: sizes, loss and schedule.
        seed: of weights, order and dropout.
        initial: first vectors.
        after_epoch: called with the epoch and its validation score.
        soft: targets of the training pairs in the place of their labels, as `distil.make_lesson` gives.
        after_backward: called with the epoch (from 1) and the model while it holds a step's gradients.

    Raises:
        UserError: as `build`; no validation pairs.
    """
    started = time.process_time()
    trained = build(train, recipe, seed, initial)
    if not valid.items:
        raise UserError("there are no validation pairs.", hint="Give more data, or a file with --valid.")
    model, loss = trained.model, trained.loss
    target = targets(train, trained.classes, loss) if soft is None else soft
    targets(valid, trained.classes, loss)
    rows, judged = _Rows(trained, train, recipe, seed), trained.number_pairs(valid.items)
    parameters = _trainable(model, recipe)
    optimiser = torch.optim.Adam(parameters, lr=recipe.rate, fused=True)
    # Without a floor, some unlucky early epochs halve the rate until nothing moves (ESIM on 32 pairs stopped so).
    least = recipe.rate * LEAST_RATE
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, "max", factor=0.5, patience=0, min_lr=least)
    average = Average(model)
    best, kept, waited = -np.inf, copy.deepcopy(model.state_dict()), 0
    rng = numpy_generator(seed, "order")
    for number, module in enumerate(model.modules()):
        if isinstance(module, Dropout):
            module.rng = numpy_generator(seed, "dropout", number)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "dropout"))
        for epoch in range(recipe.epochs):
            model.train()
            total = 0.0
            for chosen in rows.batches(epoch, rng):
                optimiser.zero_grad()
                value = loss_of(model, loss, rows.stacked(chosen), target[chosen])
                value.backward()  # type: ignore[no-untyped-call]
                if after_backward:
                    after_backward(epoch + 1, model)
                torch.nn.utils.clip_grad_norm_(parameters, 10.0)
                optimiser.step()
                average.update()
                total += value.item() * len(chosen)
            average.swap()
            score = main_score(trained, valid, trained.predict(valid.items, judged))
            schedule.step(score)
            trained.curve.append({"epoch": epoch + 1, "loss": total / len(target), "valid": score})
            if after_epoch:
                after_epoch(epoch + 1, score)
            waited = 0 if score > best else waited + 1
            if score > best:
                best, kept = score, copy.deepcopy(model.state_dict())
            average.swap()
            if waited >= recipe.patience or score >= 1:
                break
    model.load_state_dict(kept)
    model.eval()
    calibrate(trained, valid, judged)
    trained.seconds = time.process_time() - started
    return trained
