"""The mathematics of the search: losses of GCG and DSN, their exact token gradient, candidates, and probe filtering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Decay = Literal["none", "code", "paper"]
Reduction = Literal["mean", "sum"]
PROBABILITY_CAP = 0.99
TERM_CAP = 10.0


@dataclass(frozen=True)
class Objective:
    """What a search minimises.

    Attributes:
        name: how tables call it.
        decay: weights of the target tokens.
        alpha: weight of the refusal loss where candidates are chosen.
        gradient_alpha: the same where the gradient is taken; 0 leaves the refusal loss to the choice alone.
        keywords: token ids of the refusal keywords.
        reduction: of the refusal loss over (keyword, window) pairs.
        straight_through: let gradients pass the cap of the probabilities.
        mellowmax: sharpness of a soft maximum over the target tokens in place of their mean; 0 takes the mean.
        mellowmax_on: `logits` takes minus the raw logits of the targets, as nanogcg does, in place of their losses.
        uniform: candidates come from all allowed tokens, without a gradient.
        ranked: candidates are chosen by their loss; without, the first one is taken: the null control.
    """

    name: str
    decay: Decay = "none"
    alpha: float = 0.0
    gradient_alpha: float = 0.0
    keywords: tuple[tuple[int, ...], ...] = ()
    reduction: Reduction = "mean"
    straight_through: bool = False
    mellowmax: float = 0.0
    mellowmax_on: Literal["losses", "logits"] = "losses"
    uniform: bool = False
    ranked: bool = True


@dataclass(frozen=True)
class Parts:
    """The loss of each candidate and what it is made of, [candidates] each."""

    loss: Tensor
    target: Tensor
    refusal: Tensor


def decay_weights(num_tokens: int, form: Decay = "code") -> Float[Tensor, "tokens"]:
    """Return the cosine weights of the target tokens.

    Args:
        num_tokens: H.
        form: `code` w_i = 0.5 + 0.5 cos(linspace(0, pi/2, H))_i, from 1 to 0.5; `paper` 0.5 + 0.5 cos(i/H pi/2), i
            = 1..H; `none` ones.

    Source: DSN (2404.16369), the released code's form and the poster's.
    """
    if form == "none":
        return torch.ones(num_tokens, dtype=torch.float64)
    if form == "paper":
        angles = torch.arange(1, num_tokens + 1, dtype=torch.float64) / num_tokens * (math.pi / 2)
    else:
        angles = torch.linspace(0, math.pi / 2, num_tokens, dtype=torch.float64)
    return 0.5 + 0.5 * angles.cos()


def target_losses(
    logits: Float[Tensor, "batch tokens vocabulary"], target: Int[Tensor, "tokens"]
) -> Float[Tensor, "batch tokens"]:
    """Return -log p of each target token; `logits` are the rows that predict them."""
    chosen = logits.gather(-1, target.expand(logits.shape[0], -1)[..., None]).squeeze(-1)
    return logits.logsumexp(dim=-1) - chosen


def mellowmax(values: Float[Tensor, "*batch tokens"], omega: float) -> Float[Tensor, "*batch"]:
    """Return (logsumexp(omega t) - log n) / omega over the last dimension: the mean for small omega, the maximum
    for large."""
    return (torch.logsumexp(omega * values, dim=-1) - math.log(values.shape[-1])) / omega


def unlikelihood(probability: Float[Tensor, "*batch"], straight_through: bool = False) -> Float[Tensor, "*batch"]:
    """Return min(10, -log(1 - min(p, 0.99))): what an undesired token costs.

    Args:
        probability: of the token.
        straight_through: the cap bounds the value and leaves the gradient, which it otherwise sets to 0 from 0.99 on.
    """
    capped = probability.clamp(0.0, PROBABILITY_CAP)
    if straight_through:
        capped = probability + (capped - probability).detach()
    return (-torch.log1p(-capped)).clamp(max=TERM_CAP)


def num_windows(num_rows: int, keywords: Sequence[Sequence[int]]) -> int:
    """Count the (keyword, window) pairs that fit into `num_rows` rows."""
    return sum(max(0, num_rows - len(keyword) + 1) for keyword in keywords)


def refusal_loss(
    logits: Float[Tensor, "batch rows vocabulary"],
    keywords: Sequence[Sequence[int]],
    reduction: Reduction = "mean",
    straight_through: bool = False,
) -> Float[Tensor, "batch"]:
    """Return the unlikelihood of every refusal keyword at every window.

    Args:
        logits: the rows from the one that predicts the first target token to the last one.
        keywords: token ids; one that is longer than the rows contributes nothing.
        reduction: `mean` over all (keyword, window) pairs together, or their `sum`.
        straight_through: see `unlikelihood`.

    Source: DSN (2404.16369), the refusal term; no decay weights in it.
    """
    num_rows = logits.shape[1]
    fitting = [keyword for keyword in keywords if len(keyword) <= num_rows]
    union = sorted({token for keyword in fitting for token in keyword})
    where = {token: column for column, token in enumerate(union)}
    columns = torch.tensor(union, dtype=torch.int64, device=logits.device)
    log_p = logits.index_select(-1, columns) - logits.logsumexp(dim=-1, keepdim=True)
    costs = unlikelihood(log_p.exp(), straight_through)
    total = logits.new_zeros(logits.shape[0])
    for keyword in fitting:
        windows = num_rows - len(keyword) + 1
        at = [costs[:, k : k + windows, where[token]] for k, token in enumerate(keyword)]
        total = total + torch.stack(at).mean(dim=0).sum(dim=-1)
    return total / max(1, num_windows(num_rows, fitting)) if reduction == "mean" else total


def objective_loss(
    logits: Float[Tensor, "batch rows vocabulary"],
    target: Int[Tensor, "tokens"],
    objective: Objective,
    alpha: float,
) -> Parts:
    """Return L = (1/H) sum_i w_i CE_i + alpha L_ref of each candidate.

    Args:
        logits: H + 1 rows: those that predict the target, and the one after its last token.
        target: H token ids.
        objective: weights, keywords and form.
        alpha: weight of the refusal loss; 0 does not compute it.

    Source: GCG (2307.15043) for alpha = 0 without decay; DSN (2404.16369). The weight multiplies the
        log-probability: inside the product it
    would change no gradient.
    """
    rows = logits[:, :-1]
    losses = target_losses(rows, target)
    weights = decay_weights(len(target), objective.decay).to(losses)
    if objective.mellowmax:
        raw = -rows.gather(-1, target.expand(rows.shape[0], -1)[..., None]).squeeze(-1)
        aimed = mellowmax(raw if objective.mellowmax_on == "logits" else losses * weights, objective.mellowmax)
    else:
        aimed = (losses * weights).mean(dim=-1)
    if alpha == 0.0:
        return Parts(aimed, aimed, torch.zeros_like(aimed))
    refused = refusal_loss(logits, objective.keywords, objective.reduction, objective.straight_through)
    return Parts(aimed + alpha * refused, aimed, refused)


def one_hot_gradient(
    embedding_gradient: Float[Tensor, "positions dim"], embeddings: Float[Tensor, "vocabulary dim"]
) -> Float[Tensor, "positions vocabulary"]:
    """Return dL/d onehot[i, v] = E_v . dL/de_i, exactly, without forming a one-hot matrix."""
    return embedding_gradient @ embeddings.T


def normalise_rows(gradient: Float[Tensor, "positions vocabulary"]) -> Float[Tensor, "positions vocabulary"]:
    """Divide each row by its length, so that gradients of several models can be added."""
    length: Tensor = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    return gradient / length.clamp(min=torch.finfo(gradient.dtype).tiny)


def even_positions(num_candidates: int, num_positions: int) -> Int[Tensor, "candidates"]:
    """Return floor(j S / B), j = 0..B-1: every position equally often, give or take one."""
    return torch.arange(num_candidates) * num_positions // num_candidates


def sample_candidates(
    suffix: Int[Tensor, "positions"],
    choices: Int[Tensor, "positions choices"],
    num_candidates: int,
    generator: torch.Generator,
    rule: Literal["even", "random"] = "even",
    num_replaced: int = 1,
) -> Int[Tensor, "candidates positions"]:
    """Draw candidates that differ from the suffix at one position (or `num_replaced`).

    Args:
        suffix: the current token ids.
        choices: the tokens that may stand at each position.
        num_candidates: B.
        generator: of the draws, on the CPU.
        rule: `even` as GCG's release, `random` as nanogcg, with its order of draws.
        num_replaced: positions changed in each candidate.
    """
    num_positions, num_choices = choices.shape
    if rule == "even" and num_replaced == 1:
        positions = even_positions(num_candidates, num_positions)[:, None]
    else:
        positions = torch.argsort(torch.rand((num_candidates, num_positions), generator=generator))[:, :num_replaced]
    drawn = torch.randint(0, num_choices, (num_candidates, positions.shape[1], 1), generator=generator)
    positions, drawn = positions.to(suffix.device), drawn.to(suffix.device)
    values = choices[positions].gather(2, drawn).squeeze(2)
    return suffix.repeat(num_candidates, 1).scatter_(1, positions, values)


def best_choices(
    gradient: Float[Tensor, "positions vocabulary"], banned: Bool[Tensor, "vocabulary"], topk: int
) -> Int[Tensor, "positions topk"]:
    """Return the allowed tokens with the most negative gradient at each position; the gradient is not written to."""
    return (-gradient.masked_fill(banned, float("inf"))).topk(topk, dim=-1).indices


def probe_size(
    draft_losses: Float[Tensor, "probe"], probe_losses: Float[Tensor, "probe"], width: int, reduction: int = 8
) -> int:
    """Return how many of the draft's best candidates the victim still has to score: max(1, min(B, (1 - a) B / R)),
    a = (1 + rho) / 2.

    Args:
        draft_losses: of the probe set under the draft model.
        probe_losses: of the same candidates under the victim.
        width: B.
        reduction: R.

    Constant losses have no rank correlation; rho counts as 0 there.

    Source: probe sampling (2403.01251).
    """
    from polyloom.metrics.statistics import spearman

    rho = spearman(draft_losses.tolist(), probe_losses.tolist())[0] if len(draft_losses) > 2 else 0.0
    agreement = (1 + (0.0 if math.isnan(rho) else rho)) / 2
    return max(1, min(width, int((1 - agreement) * width / reduction)))
