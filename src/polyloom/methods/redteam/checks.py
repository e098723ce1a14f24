"""What a run proves about itself: suffixes that exist as text, gradients that are exact, intervals that cover."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.seeding import numpy_generator, python_random
from polyloom.methods.redteam.data import Behaviour
from polyloom.methods.redteam.method import Objective, objective_loss
from polyloom.methods.redteam.search import Scorer, Settings, Slot, embedding_table
from polyloom.methods.redteam.tokens import Prompt, content_of, decode_suffix, prompt_ids, render
from polyloom.metrics import agreement

DIFFERENCE_STEP = 1e-5
NUM_COORDINATES = 6
NUM_SIMULATIONS = 100


@dataclass(frozen=True)
class Survival:
    """Accepted suffixes: how many, how many came back to the same ids in every conversation, and banned ids in them."""

    num_suffixes: int
    num_reencoded: int
    num_banned: int

    @property
    def share(self) -> float:
        """The share that came back."""
        return self.num_reencoded / max(1, self.num_suffixes)


def survival(
    tokenizer: PreTrainedTokenizerBase,
    suffixes: Sequence[Sequence[int]],
    behaviours: Sequence[Behaviour],
    prompts: Sequence[Prompt],
    banned: Tensor,
    system: str = "",
) -> Survival:
    """Render every conversation anew with each accepted suffix as text, encode it, and compare the ids.

    Args:
        tokenizer: with a chat template.
        suffixes: token ids, a step after the other.
        behaviours: that were searched on.
        prompts: the ids around the suffix in each of their conversations.
        banned: bool [vocabulary], ids that no suffix may hold.
        system: text of the system turn.
    """
    unique = list(dict.fromkeys(tuple(one) for one in suffixes))
    bad = set()
    for ids in unique:
        text = decode_suffix(tokenizer, ids)
        for behaviour, prompt in zip(behaviours, prompts, strict=True):
            again = prompt_ids(tokenizer, render(tokenizer, content_of(behaviour, text), system))
            if again != [*prompt.before, *ids, *prompt.after]:
                bad.add(ids)
    num_banned = sum(int(banned[list(ids)].sum()) for ids in unique)
    return Survival(len(unique), len(unique) - len(bad), num_banned)


def gradient_error(model: PreTrainedModel, slot: Slot, suffix: Sequence[int], objective: Objective, seed: int) -> float:
    """Return the largest difference of the token-position gradient from central differences, in float64.

    Args:
        model: the victim; a copy of it is measured.
        slot: one conversation.
        suffix: token ids.
        objective: whose gradient is taken.
        seed: of the positions and tokens that are looked at.
    """
    precise = _in_float64(model)
    scorer = Scorer(precise, slot, Settings())
    ids = torch.tensor(list(suffix), device=model.device)
    gradient, _ = scorer.gradient(ids, objective)
    table = embedding_table(precise)

    @torch.no_grad()
    def loss_at(embeds: Tensor) -> float:
        rest = torch.tensor([*slot.after, *slot.target], device=model.device)
        before = torch.tensor(list(slot.before), device=model.device)
        whole = torch.cat([table[before], embeds, table[rest]])
        logits = precise(inputs_embeds=whole[None], use_cache=False).logits[:, -len(slot.target) - 1 :]
        return float(objective_loss(logits.double(), scorer.target, objective, objective.gradient_alpha).loss)

    rng = python_random(seed, "gradient check")
    errors = []
    for _ in range(NUM_COORDINATES):
        position, token = rng.randrange(len(ids)), rng.randrange(len(table))
        up, down = table[ids].clone(), table[ids].clone()
        up[position] += DIFFERENCE_STEP * table[token]
        down[position] -= DIFFERENCE_STEP * table[token]
        slope = (loss_at(up) - loss_at(down)) / (2 * DIFFERENCE_STEP)
        errors.append(abs(slope - float(gradient[position, token])))
    return max(errors)


def _in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy in float64, its RMS norms too, which transformers computes in float32 whatever the weights are."""
    precise: PreTrainedModel = copy.deepcopy(model).double()
    for parent in list(precise.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                weight: Tensor = child.weight  # type: ignore[assignment]
                norm = nn.RMSNorm(weight.shape[0], eps=float(child.variance_epsilon)).to(weight)  # type: ignore[arg-type]
                norm.weight.data.copy_(weight)
                setattr(parent, name, norm)
    return precise


def votes_out_of_order(judged: dict[str, list[bool | None]]) -> int:
    """Count items on which veto <= majority <= approval does not hold, undecided ones left out."""
    rows = zip(*(judged[f"ensemble:{rule}"] for rule in ("veto", "majority", "approval")), strict=True)
    decided = [[bool(v) for v in row] for row in rows if None not in row]
    return sum(not (veto <= majority <= approval) for veto, majority, approval in decided)


def coverage(
    labels: Sequence[bool], verdicts: Sequence[bool], num_items: int, seed: int, num_simulations: int = NUM_SIMULATIONS
) -> int | None:
    """Return in how many of 100 simulations the corrected rate's 95 % interval holds the true rate.

    Each simulation draws a true rate, labels and items, and a judge with the error rates that were seen.

    Args:
        labels: the truth on the labelled responses.
        verdicts: the judge's on the same.
        num_items: responses whose rate is corrected.
        seed: of the draws.
        num_simulations: how many.

    Returns:
        None where the judge is no better than chance, so that nothing can be corrected.
    """
    y, v = np.array(labels, bool), np.array(verdicts, bool)
    if y.all() or not y.any():
        return None
    tpr, fpr = float(v[y].mean()), float(v[~y].mean())
    if tpr <= fpr:
        return None
    covered = 0
    for number in range(num_simulations):
        rng = numpy_generator(seed, "coverage", number)
        truth = rng.uniform(0.1, 0.9)
        drawn, items = rng.random(max(20, len(y))) < 0.5, rng.random(num_items) < truth
        first, second = (rng.random(len(one)) < np.where(one, tpr, fpr) for one in (drawn, items))
        found = agreement.corrected_rate(second, drawn, first, seed=number)
        covered += found is not None and found.low <= truth <= found.high
    return covered
