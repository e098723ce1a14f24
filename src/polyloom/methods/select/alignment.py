"""Alignment of an encoder to a meta-dataset's instructions: pairs, the cosine regression, the head and the guard."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyloom.core.seeding import python_random
from polyloom.methods.select.method import unit_rows
from polyloom.models.device import torch_generator

POSITIVE_SHARE = 0.4
NEGATIVE_COSINE = 0.3
MAX_NEGATIVE_USES = 4
MAX_DRAWS = 200
PairOfTexts = tuple[int, int, float]


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts by number with label 1 or 0, and how many negatives could not be found."""

    pairs: tuple[PairOfTexts, ...]
    num_positive: int
    num_negative: int
    num_without_negative: int


def build_pairs(
    groups: Sequence[str], vectors: Float[np.ndarray, "n d"], seed: int = 0, share: float = POSITIVE_SHARE
) -> Pairs:
    """Pair texts of one group as positives and of two groups as negatives.

    Of a group's unordered pairs a random share is kept: floor(0.4 n (n - 1) / 2). Every text gets one negative, drawn
    from other groups until its cosine under the unaligned encoder is below 0.3; a text serves at most 4 times. The
    search is bounded, so that a pool of near-equal texts ends with fewer negatives instead of never.

    Args:
        groups: the group of every text: its task, or its category.
        vectors: of the unaligned encoder.
        seed: of the draws.
        share: of the positives to keep.

    Source: the reference's builder (spec 2.3), bounded.
    """
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    positives: list[PairOfTexts] = []
    for group, numbers in members.items():
        every = [(a, b, 1.0) for place, a in enumerate(numbers) for b in numbers[place + 1 :]]
        rng = python_random(seed, "positives", group)
        positives += sorted(rng.sample(every, math.floor(share * len(every) + 1e-9)))
    unit = unit_rows(vectors)
    uses = [0] * len(groups)
    negatives: list[PairOfTexts] = []
    rng = python_random(seed, "negatives")
    for number, group in enumerate(groups):
        for _ in range(MAX_DRAWS):
            other = rng.randrange(len(groups))
            if groups[other] == group or uses[other] >= MAX_NEGATIVE_USES:
                continue
            if float(unit[number] @ unit[other]) < NEGATIVE_COSINE:
                uses[other] += 1
                negatives.append((number, other, 0.0))
                break
    return Pairs((*positives, *negatives), len(positives), len(negatives), len(groups) - len(negatives))


def cosine_loss(
    a: Float[Tensor, "pairs d"], b: Float[Tensor, "pairs d"], labels: Float[Tensor, "pairs"]
) -> Float[Tensor, ""]:
    """Return L = mean_p (cos(E(x_p), E(y_p)) - label_p)^2.

    Source: spec 2.3.
    """
    return (nn.functional.cosine_similarity(a, b, dim=-1) - labels).square().mean()


def head_loss(
    weight: Float[Tensor, "d d"],
    a: Float[Tensor, "pairs d"],
    b: Float[Tensor, "pairs d"],
    labels: Float[Tensor, "pairs"],
) -> Float[Tensor, ""]:
    """Return the loss of a linear head: E(x) = x W."""
    return cosine_loss(a @ weight, b @ weight, labels)


@dataclass(frozen=True)
class HeadRun:
    """A trained head: the weights after every epoch (the identity first) and the training losses."""

    weights: tuple[Float[np.ndarray, "d d"], ...]
    losses: tuple[float, ...]


def train_head(
    vectors: Float[np.ndarray, "n d"],
    pairs: Sequence[PairOfTexts],
    *,
    lr: float = 1e-4,
    num_epochs: int = 3,
    batch_size: int = 16,
    seed: int = 0,
    after_epoch: Callable[[], None] | None = None,
) -> HeadRun:
    """Train a d x d matrix from the identity, the encoder frozen.

    Args:
        vectors: of the unaligned encoder; they are scaled to length 1.
        pairs: numbers of two texts and their label.
        lr: AdamW's learning rate; 0 changes nothing.
        num_epochs: passes over the pairs.
        batch_size: pairs a step.
        seed: of the order.
        after_epoch: called after every epoch (progress, stop).
    """
    x = torch.from_numpy(unit_rows(vectors).astype(np.float32))
    first = torch.tensor([a for a, _, _ in pairs])
    second = torch.tensor([b for _, b, _ in pairs])
    labels = torch.tensor([label for _, _, label in pairs])
    weight = nn.Parameter(torch.eye(x.shape[1]))
    optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=0.0)
    weights, losses = [weight.detach().numpy().copy()], []
    for epoch in range(num_epochs):
        order = torch.randperm(len(pairs), generator=torch_generator(seed, "head", epoch))
        total = 0.0
        for chunk in order.split(batch_size):  # type: ignore[no-untyped-call]
            loss = head_loss(weight, x[first[chunk]], x[second[chunk]], labels[chunk])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(chunk)
        losses.append(total / len(pairs))
        weights.append(weight.detach().numpy().copy())
        if after_epoch:
            after_epoch()
    return HeadRun(tuple(weights), tuple(losses))


def neighbour_precision(
    vectors: Float[np.ndarray, "n d"],
    categories: Sequence[str],
    owners: Sequence[int],
    queries: Sequence[int],
    k: int = 5,
) -> float:
    """Return the share of each query's k nearest texts of other tasks that have its category, averaged over queries.

    Args:
        vectors: of all texts.
        categories: of each text.
        owners: the task of each text.
        queries: numbers of the texts that ask.
        k: neighbours.
    """
    unit = unit_rows(vectors)
    total = 0.0
    for query in queries:
        scores = unit @ unit[query]
        scores[np.asarray(owners) == owners[query]] = -np.inf
        nearest = np.lexsort((np.arange(len(scores)), -scores))[:k]
        total += sum(categories[i] == categories[query] for i in nearest) / k
    return total / max(1, len(queries))


@dataclass(frozen=True)
class Split:
    """A category-disjoint split of tasks: seen to train on, dev to stop by, unseen to judge by."""

    seen: tuple[str, ...]
    dev: tuple[str, ...]
    unseen: tuple[str, ...]


def split_categories(categories: Sequence[str], seed: int = 0, smallest: int = 5) -> Split:
    """Split the categories that have `smallest` tasks or more: half seen, a quarter dev, a quarter unseen."""
    counts = {name: sum(one == name for one in categories) for name in sorted(set(categories)) if name}
    names = [name for name, count in counts.items() if count >= smallest]
    python_random(seed, "category split").shuffle(names)
    quarter = max(1, len(names) // 4)
    dev, unseen, seen = names[:quarter], names[quarter : 2 * quarter], names[2 * quarter :]
    return Split(tuple(sorted(seen)), tuple(sorted(dev)), tuple(sorted(unseen)))
