"""What holds of the blocks by construction, measured on the spot: sizes, selection, invariances, movement."""

from __future__ import annotations

from dataclasses import replace

import torch

from polyloom.core.result import Scalar
from polyloom.methods.match.data import world_pairs
from polyloom.methods.match.method import FeatureAttention, SelectiveFeatureAttention, selection_bounds
from polyloom.methods.match.models import Matcher, Shape, num_parameters
from polyloom.methods.match.training import Recipe, fit

NUM_STEPS = 20


def parameter_counts() -> dict[str, int]:
    """Return the sizes at the authors' settings: ESIM at h = 300 without embeddings, FA and SFA at D = 600."""
    with torch.device("meta"):
        esim = Matcher(Shape("esim", "none", 2, 300, 300, 3))
        blocks = {"fa": FeatureAttention(600, 60), "sfa": SelectiveFeatureAttention(600, 100, 60, 3)}
    return {"esim": num_parameters(esim), **{name: num_parameters(block) for name, block in blocks.items()}}


def _random_input(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(6, 10, 24, generator=generator)
    lengths = torch.tensor([10, 7, 4, 1, 9, 2])
    return X, torch.arange(10)[None] < lengths[:, None]


@torch.no_grad()
def invariances(seed: int = 0) -> dict[str, float]:
    """Return the largest change of a real position by padding and by the rest of the batch, over FA and SFA.

    Also the largest departure from 1 of SFA's weights summed over the branches, and their least and largest.
    """
    X, mask = _random_input(seed)
    X = X * mask[:, :, None]
    padded = torch.cat([X, torch.randn(6, 9, 24)], 1)
    longer = torch.cat([mask, torch.zeros(6, 9, dtype=torch.bool)], 1)
    pad = batch = pad_rows = 0.0
    torch.manual_seed(seed)
    sfa = SelectiveFeatureAttention(24, 24, 12)
    for block in (FeatureAttention(24, 12), sfa):
        block(X, mask)
        block.eval()
        U, V = block(X, mask), block(padded, longer)
        pad = max(pad, float((V[:, :10] - U).abs().max()))
        pad_rows = max(pad_rows, float(V[~longer].abs().max()))
        alone = torch.cat([block(X[i : i + 1], mask[i : i + 1]) for i in range(6)])
        batch = max(batch, float((alone - U).abs().max()))
    v = sfa.attend(X * 5, mask)[1]
    return {
        "pad_invariance_error": pad,
        "pad_rows_largest": pad_rows,
        "batch_invariance_error": batch,
        "branch_weight_sum_error": float((v.sum(1) - 1).abs().max()),
        "branch_weight_least": float(v.min()),
        "branch_weight_largest": float(v.max()),
    }


def moved_share(seed: int = 0) -> float:
    """Return the share of the blocks' parameter tensors that 20 training steps moved, over FA and SFA."""
    pairs = world_pairs(NUM_STEPS * 8, "train", seed=seed)
    moved = []
    for block in ("fa", "sfa"):
        recipe = Recipe(base="bag", block=block, width=16, hidden=8, epochs=1, batch_size=8, floor=8, max_length=8)
        before = fit(pairs, replace(pairs, items=pairs.items[:8]), replace(recipe, learning_rate=1e-12), seed)
        after = fit(pairs, replace(pairs, items=pairs.items[:8]), recipe, seed)
        assert before.model.block is not None
        assert after.model.block is not None
        old = dict(before.model.block.named_parameters())
        moved += [bool((value - old[name]).abs().max() > 1e-7) for name, value in after.model.block.named_parameters()]
    return sum(moved) / len(moved)


def proof_scalars(seed: int) -> dict[str, float]:
    """Return all of the above as plain numbers."""
    counts = {f"{name}_parameters": float(value) for name, value in parameter_counts().items()}
    return {**counts, **invariances(seed), "moved_share": moved_share(seed)}


def as_scalars(values: dict[str, float]) -> dict[str, Scalar]:
    """Return the measured proofs as scalars; sizes are whole numbers, and the selection's bounds stand beside."""
    low, high = selection_bounds(3)
    bounds = {"selection_bound_low": Scalar(value=low), "selection_bound_high": Scalar(value=high)}
    whole = {
        name: Scalar(value=int(value) if name.endswith("_parameters") else value) for name, value in values.items()
    }
    return whole | bounds
