"""Rivals that need more than instructions: instance retrieval (RoE), gradient similarity (LESS), and random choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.seeding import numpy_generator, python_random
from polyloom.methods.select.data import Pair, Pool, PoolTask
from polyloom.methods.select.lexical import build_index
from polyloom.methods.select.tuning import Prompt, answer_loss, batches

STORED_INSTANCES, QUERY_INSTANCES, GRADIENT_INSTANCES = 100, 32, 20


def choose_random(pool: Pool, k: int, seed: int) -> list[int]:
    """Return k tasks at random."""
    return sorted(int(i) for i in numpy_generator(seed, "random tasks").permutation(len(pool.tasks))[:k])


def instance_votes(pool: Pool, target: Sequence[Pair], seed: int = 0) -> np.ndarray:
    """Return each task's votes by instance retrieval.

    Of every task up to 100 instances (input and output) are stored; each of up to 32 target instances votes for the
    task of its nearest stored one (TF-IDF over pieces of words, so that digits and names count). Ties in votes are
    broken by the mean score.

    Args:
        pool: tasks with examples; a task without one gets no vote.
        target: input and output of target instances.
        seed: of the sampling.

    Raises:
        UserError: no task has examples.

    Source: spec 2.7, retrieval of experts, with a lexical score in place of an encoder's.
    """
    stored: list[str] = []
    owners: list[int] = []
    for number, task in enumerate(pool.tasks):
        rng = python_random(seed, "stored", task.id)
        pairs = rng.sample(task.examples, min(STORED_INSTANCES, len(task.examples)))
        stored += [f"{given} {answer}" for given, answer in pairs]
        owners += [number] * len(pairs)
    if not stored:
        raise UserError("has no examples to retrieve.", where=pool.where, hint="Drop the arm `instances`.")
    index = build_index(stored, "char")
    votes = np.zeros(len(pool.tasks))
    place = np.array(owners)
    counts = np.maximum(1, np.bincount(place, minlength=len(votes)))
    for given, answer in list(target)[:QUERY_INSTANCES]:
        scores = index.score(f"{given} {answer}")
        votes[place[int(scores.argmax())]] += 1
        votes += 1e-3 * np.bincount(place, weights=scores, minlength=len(votes)) / counts
    return votes


def gradient_similarity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pool: Pool,
    target: Sequence[Pair],
    instructions: Sequence[str],
    prompt: Prompt,
    max_tokens: int = 512,
) -> np.ndarray:
    """Return the cosine of every task's loss gradient with the target's, at a model that has been warmed up.

    Args:
        model: a small model; its whole gradient is kept, so no projection is needed.
        tokenizer: of it.
        pool: tasks with examples; one without gets -1.
        target: few target instances, whose answers are used.
        instructions: of the target.
        prompt: layout.
        max_tokens: longer rows are cut.

    Source: spec 7 (LESS), plain gradients in place of Adam's directions and of projections.
    """
    aim = PoolTask("target", tuple(instructions), examples=tuple(target[:GRADIENT_INSTANCES]))
    reference = _gradient(model, tokenizer, aim, prompt, max_tokens)
    scores = np.full(len(pool.tasks), -1.0)
    for number, task in enumerate(pool.tasks):
        if task.examples:
            gradient = _gradient(model, tokenizer, task, prompt, max_tokens)
            scores[number] = float(torch.nn.functional.cosine_similarity(gradient, reference, dim=0))
    return scores


def _gradient(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: PoolTask, prompt: Prompt, max_tokens: int
) -> Tensor:
    pairs = task.examples[:GRADIENT_INSTANCES]
    rows = [(task.instructions[i % len(task.instructions)], *pair) for i, pair in enumerate(pairs)]
    answers = bool(model.config.is_encoder_decoder)
    batch = batches(lambda step, size: rows, tokenizer, prompt, len(rows), max_tokens, answers)(0)
    parameters = [one for one in model.parameters() if one.requires_grad]
    loss, count = answer_loss(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
    gradients = torch.autograd.grad(loss / count, parameters)
    return torch.cat([one.flatten() for one in gradients])
