"""Tasks compared by what they do to a model: the influence of their gradients (LESS), Fisher information (Task2Vec)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import PolyloomError
from polyloom.methods.select.data import Pair, Pool, PoolTask
from polyloom.methods.select.tuning import Prompt, answer_logits, answer_loss, batches
from polyloom.models.device import torch_generator
from polyloom.training.packing import Batch

INSTANCES = 20
MAX_TOKENS = 512
EPSILON = 1e-12
Row = tuple[str, str, str]


def task_rows(task: PoolTask) -> list[Row]:
    """Return up to 20 rows (instruction, input, output) of a task, its wordings in turn."""
    pairs = task.examples[:INSTANCES]
    return [(task.instructions[i % len(task.instructions)], *pair) for i, pair in enumerate(pairs)]


def gradient_similarity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pool: Pool,
    target: Sequence[Pair],
    instructions: Sequence[str],
    prompt: Prompt,
) -> NDArray[np.float64]:
    """Return the cosine of every task's loss gradient with the target's, at a model that has been warmed up.

    One gradient a task, so that a whole pool is affordable; `influences` looks closer at few tasks.

    Args:
        model: a small model; its whole gradient is kept, so no projection is needed.
        tokenizer: of it.
        pool: tasks with examples; one without gets -1.
        target: few target instances, whose answers are used.
        instructions: of the target.
        prompt: layout.

    Source: spec 7 (LESS), plain gradients in place of Adam's directions and of projections.
    """
    aim = PoolTask("target", tuple(instructions), examples=tuple(target))
    reference = mean_gradient(model, tokenizer, task_rows(aim), prompt)
    scores = np.full(len(pool.tasks), -1.0)
    for number, task in enumerate(pool.tasks):
        if task.examples:
            gradient = mean_gradient(model, tokenizer, task_rows(task), prompt)
            scores[number] = _cosine(gradient, reference)
    return scores


def influences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[PoolTask],
    target: PoolTask,
    prompt: Prompt,
    on_task: Callable[[int], Any] = lambda done: None,
) -> list[list[float]]:
    """Return the influence of every instance of some tasks on a target: cos(g_i / (sqrt(v) + mean sqrt(v)), g_target).

    g_i is the gradient of one instance, so that long answers, whose gradients are short, count as much as short ones;
    v is the second moment by which Adam scales a step, here the mean over the tasks of their squared gradients; its
    root is damped by its mean, or weights that one task alone moves (rows of rare tokens, which LESS's adapters do not
    train) decide by their number. g_target is the mean gradient of the target's instances. Gradients are compared as
    they are, one at a time, where LESS stores random projections of all to 8192 dimensions.

    Args:
        model: a model that knows the tasks a little; random weights have no directions worth comparing.
        tokenizer: of it.
        tasks: with examples, up to 20 of each are used.
        target: the target with its few examples.
        prompt: layout.
        on_task: called with 1 after each task: a progress bar.

    Returns:
        For each task the values of its instances, between -1 and 1.

    Raises:
        PolyloomError: a value is not finite; model and task are named.

    Source: Xia et al. (2024), LESS, eq. 3 to 5; without momentum, which is the same for every instance.
    """
    reference = mean_gradient(model, tokenizer, task_rows(target), prompt)
    moment = torch.zeros_like(reference)
    for task in tasks:
        moment += mean_gradient(model, tokenizer, task_rows(task), prompt) ** 2 / len(tasks)
    root = moment.sqrt()
    scale = 1 / (root + root.mean() + EPSILON)
    found = []
    for task in tasks:
        steps = (mean_gradient(model, tokenizer, [row], prompt) * scale for row in task_rows(task))
        found.append([_cosine(step, reference) for step in steps])
        if not np.isfinite(found[-1]).all():
            raise not_finite(model, task)
        on_task(1)
    return found


def not_finite(model: PreTrainedModel, task: PoolTask) -> PolyloomError:
    """Return the error of a model whose gradients cannot be compared."""
    hint = "Check the model's weights, or drop --rerank."
    return PolyloomError(
        f"gives no finite gradient for the task {task.id!r}.", where=str(model.name_or_path), hint=hint
    )


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a, b, dim=0))


def mean_gradient(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], prompt: Prompt
) -> Tensor:
    """Return the gradient [P] of the mean loss of the rows' answers."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    loss, count = answer_loss(model, row_batch(model, tokenizer, rows, prompt))
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss / count, parameters, materialize_grads=True)])


def row_batch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], prompt: Prompt) -> Batch:
    """Return rows as a batch on the model's device."""
    answers = bool(model.config.is_encoder_decoder)
    batch = batches(lambda step, size: list(rows), tokenizer, prompt, len(rows), MAX_TOKENS, answers)(0)
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def fisher_diagonal(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: PoolTask, prompt: Prompt, seed: int = 0
) -> NDArray[np.float64]:
    """Return a task's embedding: the diagonal of F = E_x E_{y ~ p(y | x)} (d log p(y | x) / d w)^2 by output unit.

    Answers are drawn from the model itself, token by token behind the given ones, so that F is the Fisher information
    and not the squared gradient of the loss. Of every matrix inside the layers the weights that lead to one unit are
    averaged; embeddings, which say what words a task uses, are left out.

    Args:
        model: the probe; the same for all tasks that are compared.
        tokenizer: of it.
        task: with examples, up to 20 are used.
        prompt: layout.
        seed: of the drawn answers.

    Returns:
        One value per output unit, none below zero.

    Raises:
        PolyloomError: the model gives no finite probabilities; model and task are named.

    Source: Achille et al. (2019), Task2Vec, section 3.
    """
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    outer = {id(one) for end in ends if end is not None for one in end.parameters()}
    matrices = [one for one in model.parameters() if one.dim() == 2 and one.requires_grad and id(one) not in outer]
    draws = torch_generator(seed, "fisher answers")
    rows = task_rows(task)
    total = [torch.zeros(len(one), device=one.device) for one in matrices]
    for row in rows:
        logits = answer_logits(model, row_batch(model, tokenizer, [row], prompt))[0].float()
        if not logits.isfinite().all():
            raise not_finite(model, task)
        drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=draws)[:, 0].to(logits.device)
        loss = nn.functional.cross_entropy(logits, drawn, reduction="sum")
        for sums, gradient in zip(total, torch.autograd.grad(loss, matrices, materialize_grads=True), strict=True):
            sums += gradient.float().square().mean(1) / len(rows)
    return torch.cat([one.cpu() for one in total]).double().numpy()
