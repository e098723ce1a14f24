"""The verb `align`: adapt an encoder to a meta-dataset's instructions, and keep it only if unseen categories allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.files import write_bytes
from polyloom.core.result import Artifact, Result, Scalar, Series, Table
from polyloom.methods.select.alignment import (
    Pairs,
    Split,
    build_pairs,
    cosine_loss,
    neighbour_precision,
    split_categories,
    train_head,
)
from polyloom.methods.select.config import AlignConfig
from polyloom.methods.select.data import Pool
from polyloom.methods.select.lexical import latent_project, latent_vectors
from polyloom.methods.select.scoring import LATENT, Scored, cache_folder, encode_texts, write_latent
from polyloom.methods.select.target import load_pool
from polyloom.models.device import pin_threads, torch_generator
from polyloom.models.load import save_model
from polyloom.runs.folder import Run

DEFAULTS = {"head": (3e-4, 5), "last-n": (2e-5, 2), "paper": (1e-6, 5)}
BATCH = 16
SMALLEST = 5
HEAD = Artifact(
    path="artifacts/head.safetensors",
    media_type="application/octet-stream",
    description="Aligned head; use it with `polyloom select rank --head`.",
)
ALIGNED_WORDINGS, ALIGNED_SHARE = 2, 0.1
PARTS = ("seen", "dev", "unseen")
Floats = NDArray[np.float32]


def align_latent(pool: Pool, path: Path, seed: int) -> None:
    """Align the latent encoder with the categories of a whole pool by the defaults of `head`, and write it.

    Args:
        pool: its tasks may not hold the target; a few evenly spaced wordings of each are paired.
        path: file to write.
        seed: of pairs and order.

    Source: spec 2.3: pairs of the training tasks' own instructions.
    """
    projection, idf, terms = latent_vectors(pool.texts)
    said = [(text, task.category) for task in pool.tasks for text in task.instructions[:: _stride(task.instructions)]]
    vectors = latent_project([text for text, _ in said], projection, idf, terms)
    pairs = build_pairs([category for _, category in said], vectors, seed, ALIGNED_SHARE)
    lr, num_epochs = DEFAULTS["head"]
    head = train_head(vectors, pairs.pairs, lr=lr, num_epochs=num_epochs, seed=seed)
    write_latent(path, projection @ head.weights[-1], idf, terms)


def _stride(said: Sequence[str]) -> int:
    return -(-len(said) // ALIGNED_WORDINGS)


@dataclass(frozen=True)
class Judge:
    """The texts of a pool with their categories, and the queries of every part of the split."""

    categories: tuple[str, ...]
    owners: tuple[int, ...]
    queries: dict[str, tuple[int, ...]]

    def __call__(self, vectors: Floats) -> dict[str, float]:
        """Return P@5 of every part."""
        return {part: neighbour_precision(vectors, self.categories, self.owners, self.queries[part]) for part in PARTS}


def run_align(config: AlignConfig, run: Run) -> Result:
    """Align an encoder on some categories and judge it on others.

    Args:
        config: pool with categories, encoder, recipe.
        run: the run to write the head or the encoder to.

    Returns:
        P@5 before and after on categories that were trained on, that chose the epoch, and that were neither.

    Raises:
        UserError: too few categories, or a recipe that the encoder cannot take.
    """
    pin_threads()
    pool = load_pool(config)
    split = split_categories([task.category for task in pool.tasks], config.seed, SMALLEST)
    if len(split.seen) < 2 or not split.dev or not split.unseen:
        raise UserError(
            f"has too few categories with {SMALLEST} tasks or more to hold some out.",
            where=pool.where,
            hint="Alignment needs 4 such categories.",
        )
    if config.encoder == LATENT and config.recipe != "head":
        raise UserError("the latent encoder has no layers.", where="--recipe", hint="Use --recipe head.")
    found = Scored([config.encoder], [], [], np.zeros(0))
    base = encode_pool(config, pool, found)
    judge = _judge(pool, split)
    pairs = _pairs(config, pool, split, base)
    lr, num_epochs = DEFAULTS[config.recipe]
    settings = (config.lr or lr, config.num_epochs or num_epochs)
    if config.recipe == "head":
        measures, losses, keep = _train_head(config, run, pool, base, pairs, judge, settings)
    else:
        measures, losses, keep = _train_encoder(config, run, pool, pairs, judge, settings)
    last = len(measures) - 1
    epoch = last_allowed(measures, config.max_unseen_drop) if config.stop_early else last
    before, after = measures[0], measures[epoch]
    fallen = before["unseen"] - after["unseen"] > config.max_unseen_drop
    kept = epoch > 0 and not fallen
    artifacts = keep(epoch) if kept else {}
    return run.result(
        scalars=_scalars(before, after, pairs, split, epoch, kept),
        tables={"parts": _part_table(before, after, split, judge)},
        series=_series(measures, losses),
        artifacts=artifacts,
        verdicts=_verdicts(before, after, measures[last], epoch, fallen, kept, config),
        limitations=[
            *pool.notes,
            *found.notes,
            "Categories seen in training are judged on the tasks that the pairs came from; only the unseen ones say "
            "what a new target may expect.",
            *(
                [f"{pairs.num_without_negative} texts got no negative: no text of another group was below 0.3."]
                if pairs.num_without_negative
                else []
            ),
        ],
    )


def last_allowed(measures: Sequence[dict[str, float]], max_drop: float) -> int:
    """Return the last epoch up to which P@5 on the development categories never fell by more than `max_drop`."""
    epoch = 0
    while epoch + 1 < len(measures) and measures[epoch + 1]["dev"] >= measures[0]["dev"] - max_drop:
        epoch += 1
    return epoch


def encode_pool(config: AlignConfig, pool: Pool, found: Scored) -> Floats:
    """Return the unaligned vectors of a pool's instructions."""
    if config.encoder == LATENT:
        projection, idf, chosen = latent_vectors(pool.texts)
        return latent_project(pool.texts, projection, idf, chosen)
    return encode_texts(config.encoder, list(pool.texts), found, cache_folder(config.cache))


def _judge(pool: Pool, split: Split) -> Judge:
    categories = tuple(pool.tasks[owner].category or f"task {owner}" for owner in pool.owners)
    first = {owner: number for number, owner in reversed(list(enumerate(pool.owners)))}
    names = {"seen": split.seen, "dev": split.dev, "unseen": split.unseen}
    # Wordings of one task are near-copies: one of each is asked, and its own task is no neighbour.
    queries = {
        part: tuple(first[i] for i, task in enumerate(pool.tasks) if task.category in members)
        for part, members in names.items()
    }
    return Judge(categories, pool.owners, queries)


def _pairs(config: AlignConfig, pool: Pool, split: Split, base: Floats) -> Pairs:
    numbers = [i for i, owner in enumerate(pool.owners) if pool.tasks[owner].category in split.seen]
    tasks = [pool.tasks[pool.owners[i]] for i in numbers]
    by_task = config.positives == "same_task"
    if by_task and len(numbers) == len({task.id for task in tasks}):
        hint = "Use --positives same_category."
        raise UserError("every task has one instruction: there are no positives.", where="--positives", hint=hint)
    groups = [task.id if by_task else task.category for task in tasks]
    found = build_pairs(groups, base[numbers], config.seed)
    # A large category would drown the others: positives are cut to twice the negatives.
    positives = [pair for pair in found.pairs if pair[2] == 1.0]
    order = np.random.default_rng(config.seed).permutation(len(positives))[: 2 * max(1, found.num_negative)]
    if not positives:
        hint = "Give more instructions a task, or use --positives same_category."
        raise UserError("has too few instructions in a group to make pairs.", where=pool.where, hint=hint)
    chosen = [positives[i] for i in sorted(order)] + [pair for pair in found.pairs if pair[2] == 0.0]
    mapped = tuple((numbers[a], numbers[b], label) for a, b, label in chosen)
    return Pairs(mapped, len(order), found.num_negative, found.num_without_negative)


Keep = Callable[[int], dict[str, Artifact]]
Trained = tuple[list[dict[str, float]], list[float], Keep]


def _train_head(
    config: AlignConfig, run: Run, pool: Pool, base: Floats, pairs: Pairs, judge: Judge, settings: tuple[float, int]
) -> Trained:
    lr, num_epochs = settings
    with run.progress("epochs", num_epochs) as advance:

        def after_epoch() -> None:
            advance(1)
            run.check_stop()

        head = train_head(base, pairs.pairs, lr=lr, num_epochs=num_epochs, seed=config.seed, after_epoch=after_epoch)
    measures = [judge(base @ weight) for weight in head.weights]

    def keep(epoch: int) -> dict[str, Artifact]:
        weight, path = np.ascontiguousarray(head.weights[epoch]), run.artifact("head.safetensors")
        if config.encoder == LATENT:
            projection, idf, terms = latent_vectors(pool.texts)
            write_latent(path, projection @ weight, idf, terms)
        else:
            write_bytes(path, save_tensors({"weight": weight}))
        return {"head": HEAD}

    return measures, list(head.losses), keep


def _train_encoder(
    config: AlignConfig, run: Run, pool: Pool, pairs: Pairs, judge: Judge, settings: tuple[float, int]
) -> Trained:
    """Train the encoder's last layers or all of it by the paper's recipe; the best epoch's weights are kept on disk."""
    from polyloom.methods.select.encoder import open_encoder

    lr, num_epochs = settings
    encoder = open_encoder(config.encoder)
    model, tokenizer = encoder.load()
    parameters = _trainable(model, config)
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    num_steps = -(-len(pairs.pairs) // BATCH)
    warmup = max(1, num_steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
    measures, losses = [judge(encoder.encode(pool.texts))], []
    with run.progress("steps", num_steps * num_epochs) as advance:
        for epoch in range(num_epochs):
            order = torch.randperm(len(pairs.pairs), generator=torch_generator(config.seed, "encoder", epoch))
            total = 0.0
            model.train()
            for chunk in order.split(BATCH):  # type: ignore[no-untyped-call]
                batch = [pairs.pairs[int(i)] for i in chunk]
                texts = [pool.texts[a] for a, _, _ in batch] + [pool.texts[b] for _, b, _ in batch]
                vectors = _embed(model, tokenizer, texts, encoder.max_tokens, encoder.pooling)
                labels = torch.tensor([label for _, _, label in batch], device=model.device)
                loss = cosine_loss(vectors[: len(batch)], vectors[len(batch) :], labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += loss.item() * len(batch)
                advance(1)
                run.check_stop()
            model.eval()  # type: ignore[no-untyped-call]
            losses.append(total / len(pairs.pairs))
            measures.append(judge(encoder.encode(pool.texts)))
            save_model(model, run.checkpoints / f"epoch-{epoch + 1}", tokenizer)

    def keep(epoch: int) -> dict[str, Artifact]:
        folder = run.artifact("encoder")
        (run.checkpoints / f"epoch-{epoch}").rename(folder)
        text = "Aligned encoder; use it with `polyloom select rank --scorers`."
        return {"encoder": Artifact(path="artifacts/encoder", media_type="inode/directory", description=text)}

    return measures, losses, keep


def _trainable(model: PreTrainedModel, config: AlignConfig) -> list[torch.nn.Parameter]:
    """Freeze what the recipe leaves alone and return what it trains.

    Raises:
        UserError: the encoder has no list of layers for `last-n`.
    """
    if config.recipe == "paper":
        return [parameter for name, parameter in model.named_parameters() if "pooler" not in name]
    layers: Any = next((m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 0), None)
    if layers is None:
        raise UserError("has no list of layers.", where=config.encoder, hint="Use --recipe head.")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    chosen = [parameter for layer in list(layers)[-config.num_layers :] for parameter in layer.parameters()]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def _embed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int, pooling: str
) -> torch.Tensor:
    from polyloom.methods.select.encoder import pool_states

    given: Any = tokenizer(
        list(texts), truncation=True, max_length=max_tokens, padding=True, return_tensors="pt", verbose=False
    ).to(model.device)
    hidden = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
    return pool_states(hidden, given["attention_mask"], pooling)


def _scalars(
    before: dict[str, float], after: dict[str, float], pairs: Pairs, split: Split, epoch: int, kept: bool
) -> dict[str, Scalar]:
    scalars = {
        "num_positive_pairs": Scalar(value=pairs.num_positive),
        "num_negative_pairs": Scalar(value=pairs.num_negative),
        "num_seen_categories": Scalar(value=len(split.seen)),
        "num_unseen_categories": Scalar(value=len(split.unseen)),
        "epoch": Scalar(value=epoch),
        "kept": Scalar(value=kept),
    }
    for part in PARTS:
        scalars[f"{part}_p_at_5_before"] = Scalar(value=before[part])
        scalars[f"{part}_p_at_5_after"] = Scalar(value=after[part])
        scalars[f"{part}_p_at_5_gain"] = Scalar(value=after[part] - before[part])
    return scalars


def _part_table(before: dict[str, float], after: dict[str, float], split: Split, judge: Judge) -> Table:
    members = {"seen": split.seen, "dev": split.dev, "unseen": split.unseen}
    rows: list[list[Any]] = [
        [part, len(judge.queries[part]), before[part], after[part], ", ".join(members[part])] for part in PARTS
    ]
    return Table(
        columns=["part", "tasks", "P@5 before", "P@5 after", "categories"], rows=rows, title="Before and after"
    )


def _series(measures: Sequence[dict[str, float]], losses: Sequence[float]) -> dict[str, Series]:
    epochs = [float(i) for i in range(len(measures))]
    series = {
        part: Series(x=epochs, y=[one[part] for one in measures], x_label="epoch", y_label="P@5", group="P@5 by epoch")
        for part in PARTS
    }
    series["loss"] = Series(
        x=epochs[1:], y=list(losses), x_label="epoch", y_label="training loss", group="training loss"
    )
    return series


def _verdicts(
    before: dict[str, float],
    after: dict[str, float],
    last: dict[str, float],
    epoch: int,
    fallen: bool,
    kept: bool,
    config: AlignConfig,
) -> list[str]:
    told = (
        f"P@5 goes from {before['seen']:.3f} to {after['seen']:.3f} on trained categories and from "
        f"{before['unseen']:.3f} to {after['unseen']:.3f} on unseen ones (epoch {epoch})."
    )
    if fallen:
        return [f"Over-fitted: {told} The unaligned encoder is kept.", f"The limit is {config.max_unseen_drop:.3f}."]
    if not kept:
        return [
            f"The first epoch already hurts the development categories; the unaligned encoder is kept. After the last, "
            f"seen P@5 is {last['seen']:.3f} ({before['seen']:.3f} before), unseen {last['unseen']:.3f} "
            f"({before['unseen']:.3f})."
        ]
    return [f"Aligned: {told}"]
