"""The embedded default: a log-linear model of pairs under the adaptive-threshold loss, trained in seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from polyloom.core.errors import UserError
from polyloom.core.files import read_json, write_json
from polyloom.core.seeding import python_random
from polyloom.methods.docre.data import Document, evidence_by_rule, name_facts
from polyloom.methods.docre.features import PairFeatures
from polyloom.methods.docre.method import adaptive_threshold_loss
from polyloom.methods.docre.schema import INVERSE
from polyloom.metrics.relations import Fact, Prediction

Floats = NDArray[np.float64]
Signature = tuple[str, str, str]


@dataclass(frozen=True)
class Candidates:
    """A document's pairs that the schema's types allow, with features and gold classes."""

    title: str
    pairs: list[tuple[int, int]]
    types: list[tuple[str, str]]
    features: list[list[str]]
    gold: list[list[str]]


def candidates(document: Document, types: set[tuple[str, str]] | None, *, lexical: bool = True) -> Candidates:
    """Work out the features of a document's pairs.

    Args:
        document: any.
        types: (head type, tail type) pairs that can have a relation; None takes all.
        lexical: as in `PairFeatures`.
    """
    features = PairFeatures(document, lexical=lexical)
    gold: dict[tuple[int, int], list[str]] = {}
    for triple in document.triples or ():
        gold.setdefault((triple.head, triple.tail), []).append(triple.relation)
    kinds = [document.entity_type(i) for i in range(len(document.entities))]
    pairs = [(h, t) for h, t in document.pairs() if types is None or (kinds[h], kinds[t]) in types]
    return Candidates(
        document.title,
        pairs,
        [(kinds[h], kinds[t]) for h, t in pairs],
        [features.pair(h, t) for h, t in pairs],
        [gold.get(pair, []) for pair in pairs],
    )


def type_signatures(documents: Sequence[Document]) -> Counter[Signature]:
    """Count (head type, relation, tail type) over the gold triples."""
    return Counter(
        (document.entity_type(triple.head), triple.relation, document.entity_type(triple.tail))
        for document in documents
        for triple in document.triples or ()
    )


@dataclass
class LogLinear:
    """Weights of features, one column a class; class 0 is the threshold.

    Attributes:
        relations: names of classes 1, 2, ...
        rows: feature to row.
        weights: [features, classes].
        signatures: the (head type, relation, tail type) that training held.
        lexical: whether names and words are features.
        margin: a relation is predicted when its logit is above the threshold's by more.
        calibration: slope and offset of P(correct) = sigmoid(slope * score + offset).
        name_facts: (head name, relation, tail name) of training: the knowledge base to compare with.
    """

    relations: list[str]
    rows: dict[str, int]
    weights: Tensor
    signatures: list[Signature]
    lexical: bool = True
    margin: float = 0.0
    calibration: tuple[float, float] = (1.0, 0.0)
    name_facts: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def types(self) -> set[tuple[str, str]]:
        """Pairs of entity types that can have a relation."""
        return {(head, tail) for head, _, tail in self.signatures}

    def scores(self, found: Candidates, *, average_inverse: bool = True) -> Floats:
        """Return logit minus threshold [pairs, relations]; what the types exclude is -inf.

        Args:
            found: the candidates of one document.
            average_inverse: average each score with that of the inverse relation of the turned pair.
        """
        if not found.pairs:
            return np.zeros((0, len(self.relations)))
        index = [[self.rows[f] for f in features if f in self.rows] for features in found.features]
        flat, offsets = _bags(index)
        logits = F.embedding_bag(flat, self.weights, offsets, mode="sum")
        scores = (logits[:, 1:] - logits[:, :1]).numpy().astype(float)
        if average_inverse:
            scores = self._averaged(found, scores)
        allowed = set(self.signatures)
        mask = {
            kinds: np.array([(kinds[0], r, kinds[1]) in allowed for r in self.relations]) for kinds in set(found.types)
        }
        return np.where(np.array([mask[kinds] for kinds in found.types]), scores, -np.inf)

    def _averaged(self, found: Candidates, scores: Floats) -> Floats:
        place = {pair: i for i, pair in enumerate(found.pairs)}
        columns = {relation: i for i, relation in enumerate(self.relations)}
        turned = [place.get((t, h), -1) for h, t in found.pairs]
        rows = np.array(turned)
        result = scores.copy()
        for relation, column in columns.items():
            other = columns.get(INVERSE.get(relation, ""))
            if other is not None:
                both = rows >= 0
                result[both, column] = (scores[both, column] + scores[rows[both], other]) / 2
        return result

    def probability(self, score: float) -> float:
        """Return the calibrated chance that a triple of this score is correct."""
        slope, offset = self.calibration
        return float(1 / (1 + np.exp(-np.clip(slope * score + offset, -50, 50))))


def _bags(index: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    flat = torch.tensor([i for row in index for i in row], dtype=torch.long)
    offsets = torch.tensor(np.cumsum([0, *map(len, index[:-1])]), dtype=torch.long)
    return flat, offsets


# Adagrad's first sums of squared gradients: of fresh weights, and of those that are to stay near where they are.
FRESH, KEPT = 1e-6, 0.1


@dataclass(frozen=True)
class Training:
    """How the weights are found.

    Attributes:
        num_epochs: passes over the pairs.
        learning_rate: Adagrad's.
        batch_pairs: pairs a step.
        min_count: a feature that occurs less often is left out.
        decay: of the weights.
        seed: of the order.
        keep_start: a model to go on from is only to be extended: its weights move slowly, its margin stays.
    """

    num_epochs: int = 5
    learning_rate: float = 0.3
    batch_pairs: int = 512
    min_count: int = 3
    decay: float = 1e-5
    seed: int = 0
    keep_start: bool = False


def fit(
    data: Sequence[Candidates],
    signatures: Counter[Signature],
    *,
    lexical: bool = True,
    training: Training = Training(),
    on_epoch: Callable[[int], None] = lambda count: None,
    start: LogLinear | None = None,
) -> LogLinear:
    """Train the model with Adagrad on the adaptive-threshold loss.

    Args:
        data: candidates of the training documents.
        signatures: of the training documents.
        lexical: how the features were made.
        training: epochs, rate, batch size, least count of a feature, weight decay, seed.
        on_epoch: called with 1 after each epoch.
        start: a model to go on from, whose features, relations and weights are kept (incremental training).

    Returns:
        The model with margin 0 and no calibration.
    """
    relations = sorted({r for _, r, _ in signatures} | set(start.relations if start else ()))
    counts = Counter(f for one in data for features in one.features for f in features)
    rows = dict(start.rows) if start else {}
    for feature, count in counts.items():
        if count >= training.min_count:
            rows.setdefault(feature, len(rows))
    weights = torch.zeros(max(1, len(rows)), len(relations) + 1)
    if start:
        columns = [0, *(1 + relations.index(r) for r in start.relations)]
        weights[: len(start.rows), columns] = start.weights[: len(start.rows)]
    index, gold = _rows(data, rows, {r: 1 + i for i, r in enumerate(relations)})
    squares = torch.full_like(weights, FRESH)
    if start and training.keep_start:
        squares[: len(start.rows), columns] = KEPT
    order = list(range(len(index)))
    for epoch in range(training.num_epochs):
        python_random(training.seed, "log-linear", epoch).shuffle(order)
        for low in range(0, len(order), training.batch_pairs):
            chosen = order[low : low + training.batch_pairs]
            _step(weights, squares, [index[i] for i in chosen], [gold[i] for i in chosen], training)
        on_epoch(1)
    known = set(signatures) | set(start.signatures if start else ())
    return LogLinear(relations, rows, weights, sorted(known), lexical)


def _rows(
    data: Sequence[Candidates], rows: dict[str, int], columns: dict[str, int]
) -> tuple[list[NDArray[np.int64]], list[list[int]]]:
    index = [
        np.array([rows[f] for f in features if f in rows], dtype=np.int64) for one in data for features in one.features
    ]
    return index, [[columns[r] for r in gold] for one in data for gold in one.gold]


def _step(
    weights: Tensor, squares: Tensor, index: list[NDArray[np.int64]], gold: list[list[int]], training: Training
) -> None:
    """Make one Adagrad step on the rows that the batch touches."""
    every = np.concatenate(index)
    place = np.zeros(len(weights), dtype=np.int64)
    place[every] = 1
    touched = np.flatnonzero(place)
    place[touched] = np.arange(len(touched))
    flat = place[every]
    used = torch.from_numpy(touched)
    local = weights[used].requires_grad_()
    offsets = torch.from_numpy(np.cumsum([0, *map(len, index[:-1])]))
    logits = F.embedding_bag(torch.from_numpy(flat), local, offsets, mode="sum")
    labels = torch.zeros_like(logits)
    labels[[i for i, columns in enumerate(gold) for _ in columns], [c for columns in gold for c in columns]] = 1
    adaptive_threshold_loss(logits, labels).backward()  # type: ignore[no-untyped-call]
    assert local.grad is not None
    gradient = local.grad + training.decay * local.detach()
    total = squares[used].addcmul_(gradient, gradient)
    squares[used] = total
    weights[used] = local.detach().addcdiv_(gradient, total.sqrt_(), value=-training.learning_rate)


@dataclass(frozen=True)
class Ranked:
    """One scored triple of a document and whether it is gold."""

    prediction: Prediction
    correct: bool


def rank(model: LogLinear, data: Sequence[Candidates], *, average_inverse: bool = True) -> list[Ranked]:
    """Return all triples that the types allow, best first, without evidence."""
    ranked = []
    for one in data:
        scores = model.scores(one, average_inverse=average_inverse)
        for i, j in zip(*np.nonzero(scores > MIN_SCORE), strict=True):
            (head, tail), relation = one.pairs[i], model.relations[j]
            prediction = Prediction(one.title, head, relation, tail, (), float(scores[i, j]))
            ranked.append(Ranked(prediction, relation in one.gold[i]))
    return sorted(ranked, key=lambda item: -item.prediction.score)


MIN_SCORE = -12.0


def best_margin(ranked: Sequence[Ranked], num_gold: int) -> float:
    """Return the score above which micro F1 is highest; equal scores stay together."""
    best, margin, correct = 0.0, 0.0, 0
    for count, item in enumerate(ranked, 1):
        correct += item.correct
        last = count == len(ranked)
        if not last and ranked[count].prediction.score == item.prediction.score:
            continue
        f1 = 2 * correct / (count + num_gold)
        if f1 > best:
            following = MIN_SCORE if last else ranked[count].prediction.score
            best, margin = f1, (item.prediction.score + following) / 2
    return margin


def calibrate(ranked: Sequence[Ranked], *, num_steps: int = 50) -> tuple[float, float]:
    """Return slope and offset of a logistic curve from score to the chance of being correct (Platt, 1999)."""
    if not ranked:
        return 1.0, 0.0
    x = np.array([[item.prediction.score, 1.0] for item in ranked])
    y = np.array([float(item.correct) for item in ranked])
    # Platt's targets keep a separable sample finite.
    y = np.where(y > 0, (y.sum() + 1) / (y.sum() + 2), 1 / (len(y) - y.sum() + 2))
    w = np.array([1.0, 0.0])
    for _ in range(num_steps):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -50, 50)))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (p - y))
        w = w - np.clip(step, -1, 1)
    return float(w[0]), float(w[1])


def train_model(
    documents: Sequence[Document],
    *,
    held_out: Sequence[Document] = (),
    lexical: bool = True,
    training: Training = Training(),
    on_epoch: Callable[[int], None] = lambda count: None,
    cache: dict[Any, Candidates] | None = None,
    start: LogLinear | None = None,
) -> LogLinear:
    """Train on documents; margin and calibration come from documents that training does not see.

    Args:
        documents: with gold triples.
        held_out: documents to choose the margin on; by default every fifth of `documents`, which then are in the
            final training too (two trainings).
        lexical: names and words as features.
        training: as in `fit`.
        on_epoch: as in `fit`.
        cache: candidates by document, filled here.
        start: as in `fit`.

    Raises:
        UserError: no gold triple.
    """
    labelled = [document for document in documents if document.triples is not None]
    signatures = type_signatures(labelled)
    if not signatures:
        raise UserError("the documents hold no gold triple to train on.", hint="Give labelled documents.")
    types = {(head, tail) for head, _, tail in signatures}
    store = {} if cache is None else cache

    def found(document: Document) -> Candidates:
        key = (id(document), lexical, frozenset(types))
        if key not in store:
            store[key] = candidates(document, types, lexical=lexical)
        return store[key]

    def fitted(chosen: Sequence[Document]) -> LogLinear:
        data = [found(document) for document in chosen]
        return fit(data, signatures, lexical=lexical, training=training, on_epoch=on_epoch, start=start)

    judge = list(held_out) or labelled[::5]
    judged_by = fitted(labelled) if held_out else fitted([d for i, d in enumerate(labelled) if i % 5] or labelled)
    ranked = rank(judged_by, [found(document) for document in judge])
    num_gold = sum(len(document.triples or ()) for document in judge)
    model = judged_by if held_out else fitted(labelled)
    model.margin, model.calibration = best_margin(ranked, num_gold), calibrate(ranked)
    if start and training.keep_start and not held_out:
        model.margin, model.calibration = start.margin, start.calibration
    model.name_facts = sorted(name_facts(labelled))
    return model


def predict(
    model: LogLinear, documents: Sequence[Document], *, margin: float | None = None, least_probability: float = 0.0
) -> list[Prediction]:
    """Predict triples, with the first-mention rule's evidence.

    Args:
        model: trained.
        documents: labelled or not.
        margin: predicted above it; by default the model's own. -inf leaves the probability alone to decide.
        least_probability: calibrated chance of being correct that a triple needs to have.
    """
    above = model.margin if margin is None else margin
    types = model.types
    predictions = []
    for document in documents:
        found = candidates(document, types, lexical=model.lexical)
        for item in rank(model, [found]):
            one = item.prediction
            if one.score > above and model.probability(one.score) >= least_probability:
                evidence = evidence_by_rule(document, one.head, one.tail)
                predictions.append(one._replace(evidence=evidence))
    return predictions


def type_prior(documents: Sequence[Document], test: Sequence[Document], held_out: Sequence[Document]) -> set[Fact]:
    """Predict by type and position alone: the baseline that a model has to beat.

    Each (head type, relation, tail type, head in title, tail in title, same sentence, order) has the share of its
    pairs that are gold in `documents`; facts of cells above a share are predicted, which is chosen on `held_out`.
    """
    share = _cell_shares(documents)
    ranked = sorted(_cell_facts(held_out, share), key=lambda item: -item[0])
    gold = {document.fact(t) for document in held_out for t in document.triples or ()}
    best, least, correct = 0.0, 1.0, 0
    for count, (value, fact) in enumerate(ranked, 1):
        correct += fact in gold
        if (count == len(ranked) or ranked[count][0] != value) and 2 * correct / (count + len(gold)) > best:
            best, least = 2 * correct / (count + len(gold)), value
    return {fact for value, fact in _cell_facts(test, share) if value >= least}


def _cell(document: Document, kinds: Sequence[str], head: int, tail: int) -> tuple[Any, ...]:
    title = "".join(document.title.split())
    a, b = document.entities[head][0], document.entities[tail][0]
    together = bool({m.sentence for m in document.entities[head]} & {m.sentence for m in document.entities[tail]})
    order = (a.sentence, a.start) < (b.sentence, b.start)
    return (
        kinds[head], kinds[tail], "".join(a.name.split()) in title, "".join(b.name.split()) in title, together, order
    )  # fmt: skip


def _cells(documents: Sequence[Document]) -> list[tuple[Document, tuple[int, int], tuple[Any, ...]]]:
    rows = []
    for document in documents:
        kinds = [document.entity_type(i) for i in range(len(document.entities))]
        rows += [(document, (h, t), _cell(document, kinds, h, t)) for h, t in document.pairs()]
    return rows


def _cell_shares(documents: Sequence[Document]) -> dict[tuple[Any, ...], dict[str, float]]:
    totals: Counter[tuple[Any, ...]] = Counter()
    hits: dict[tuple[Any, ...], Counter[str]] = {}
    gold = {id(d): {} for d in documents}  # type: dict[int, dict[tuple[int, int], list[str]]]
    for document in documents:
        for triple in document.triples or ():
            gold[id(document)].setdefault((triple.head, triple.tail), []).append(triple.relation)
    for document, pair, cell in _cells(documents):
        totals[cell] += 1
        hits.setdefault(cell, Counter()).update(gold[id(document)].get(pair, ()))
    return {cell: {r: n / totals[cell] for r, n in counts.items()} for cell, counts in hits.items()}


def _cell_facts(
    documents: Sequence[Document], share: dict[tuple[Any, ...], dict[str, float]]
) -> list[tuple[float, Fact]]:
    return [
        (value, (document.title, head, relation, tail))
        for document, (head, tail), cell in _cells(documents)
        for relation, value in share.get(cell, {}).items()
    ]


def save_model(model: LogLinear, folder: Path) -> None:
    """Write the model as weights.safetensors and model.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weights": model.weights.contiguous()}, folder / "weights.safetensors")
    write_json(
        folder / "model.json",
        {
            "kind": "docre-loglinear",
            "version": 1,
            "relations": ["Na", *model.relations],
            "features": list(model.rows),
            "signatures": [list(one) for one in model.signatures],
            "lexical": model.lexical,
            "margin": model.margin,
            "calibration": list(model.calibration),
            "name_facts": [list(one) for one in model.name_facts],
        },
    )


def load_model(folder: Path) -> LogLinear:
    """Read a model that `save_model` wrote.

    Raises:
        UserError: no such model, or a schema without the threshold class as its first.
    """
    value = read_json(folder / "model.json")
    if not isinstance(value, dict) or value.get("kind") != "docre-loglinear":
        raise UserError("is no log-linear model.", where=str(folder), hint="Give a folder that `docre train` wrote.")
    if value["relations"][:1] != ["Na"]:
        raise UserError(
            "lists no class 0 (Na), which is the threshold.", where=str(folder / "model.json"), hint="Train it again."
        )
    return LogLinear(
        value["relations"][1:],
        {feature: i for i, feature in enumerate(value["features"])},
        load_file(folder / "weights.safetensors")["weights"],
        [(h, r, t) for h, r, t in value["signatures"]],
        value["lexical"],
        value["margin"],
        (value["calibration"][0], value["calibration"][1]),
        [(h, r, t) for h, r, t in value["name_facts"]],
    )
