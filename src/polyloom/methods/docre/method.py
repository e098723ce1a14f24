"""The mathematics of ATLOP and DREEAM: pooling, group bilinear scores, adaptive thresholds, evidence guidance.

Shapes of one document: L tokens, d hidden, H heads, E entities, P ordered pairs, R classes with the threshold as 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

EvidenceMean = Literal["reference", "annotated"]
FLOOR = 1e-30
# Pairs whose outer products are held at once: 8 MB a group of 64 in single precision.
BLOCK_PAIRS = 512


def adaptive_threshold_loss(
    logits: Float[Tensor, "pairs classes"], labels: Float[Tensor, "pairs classes"]
) -> Float[Tensor, ""]:
    """Return the adaptive-threshold loss: positives above the threshold class, which is above all negatives.

    Args:
        logits: [P, R]; class 0 is the threshold.
        labels: [P, R] 0 or 1; column 0 is not read.

    Returns:
        The mean over all pairs; a pair without a positive has the second term alone.

    Source: Zhou et al. (2021), ATLOP, equations 10 and 11.
    """
    positive = labels.bool().clone()
    positive[:, 0] = False
    with_threshold = positive.clone()
    with_threshold[:, 0] = True
    above = logits.masked_fill(~with_threshold, -torch.inf).logsumexp(1)
    first = torch.where(positive, above[:, None] - logits, 0.0).sum(1)
    second = logits.masked_fill(positive, -torch.inf).logsumexp(1) - logits[:, 0]
    return (first + second).mean()


def adaptive_focal_loss(
    logits: Float[Tensor, "pairs classes"], labels: Float[Tensor, "pairs classes"], gamma: float = 1.0
) -> Float[Tensor, ""]:
    """Return the adaptive focal loss: each positive against the threshold alone, hard ones weighing more.

    Source: Tan et al. (2022), KD-DocRE, equation 7.
    """
    positive = labels.bool().clone()
    positive[:, 0] = False
    log_p = -F.softplus(logits[:, :1] - logits)
    weight = 1 + (1 - log_p.exp()) ** gamma
    first = torch.where(positive, -log_p * weight, 0.0).sum(1)
    second = logits.masked_fill(positive, -torch.inf).logsumexp(1) - logits[:, 0]
    return (first + second).mean()


def balanced_softmax_loss(
    logits: Float[Tensor, "pairs classes"], labels: Float[Tensor, "pairs classes"]
) -> Float[Tensor, ""]:
    """Return DocuNet's balanced softmax: positives above 0, all others below.

    Source: Zhang et al. (2021), DocuNet, equation 10.
    """
    positive = labels.bool()
    zero = logits.new_zeros(len(logits), 1)
    below = torch.cat([zero, logits.masked_fill(positive, -torch.inf)], 1).logsumexp(1)
    above = torch.cat([zero, (-logits).masked_fill(~positive, -torch.inf)], 1).logsumexp(1)
    return (below + above).mean()


def evidence_loss(
    sentence_attention: Float[Tensor, "pairs sentences"],
    evidence: Float[Tensor, "pairs sentences"],
    mean: EvidenceMean = "annotated",
) -> Float[Tensor, ""]:
    """Return KL(v / sum v || s) of the evidence v and the sentence attention s.

    Args:
        sentence_attention: s of the positive pairs; it may sum to less than 1.
        evidence: v, how many of the pair's triples name the sentence.
        mean: `reference` divides by all positive pairs, `annotated` by those that have evidence.

    Returns:
        0 without a pair that has evidence.

    Source: Ma et al. (2023), DREEAM, equation 5.
    """
    total = evidence.sum(1, keepdim=True)
    p = evidence / total.clamp_min(1)
    terms = torch.where(p > 0, p * (p.clamp_min(FLOOR).log() - sentence_attention.clamp_min(FLOOR).log()), 0.0)
    count = len(evidence) if mean == "reference" else int((total > 0).sum())
    return terms.sum() / max(1, count)


def attention_distillation(
    teacher: Float[Tensor, "pairs tokens"], student: Float[Tensor, "pairs tokens"]
) -> Float[Tensor, ""]:
    """Return KL(q^T || q) over tokens, the mean over all pairs (DREEAM's self-training, equation 7)."""
    terms = teacher * (teacher.clamp_min(FLOOR).log() - student.clamp_min(FLOOR).log())
    return terms.sum(1).mean()


def predict_classes(logits: Float[Tensor, "pairs classes"], num_labels: int = 4) -> Bool[Tensor, "pairs classes"]:
    """Return which relations are predicted: above the threshold, and not below the `num_labels`-th largest logit.

    Args:
        logits: [P, R].
        num_labels: the threshold may take one of the places, and ties may exceed them; 0 sets no limit.
    """
    chosen = logits > logits[:, :1]
    if num_labels > 0:
        least = logits.topk(min(num_labels, logits.shape[1]), dim=1).values[:, -1:]
        chosen &= logits >= least
    chosen[:, 0] = False
    return chosen


def pool_mentions(
    hidden: Float[Tensor, "tokens dim"],
    starts: Int[Tensor, "mentions"],
    owners: Int[Tensor, "mentions"],
    num_entities: int,
) -> Float[Tensor, "entities dim"]:
    """Return e_i = log sum over the entity's mentions of exp(hidden at its start marker).

    Args:
        hidden: of one document.
        starts: position of each mention's start marker.
        owners: entity of each mention.
        num_entities: rows of the result; an entity without a mention gets zeros.

    Source: ATLOP, equation 2.
    """
    rows = hidden[starts]
    index = owners[:, None].expand_as(rows)
    peak = hidden.new_full((num_entities, hidden.shape[1]), -torch.inf)
    peak = peak.scatter_reduce(0, index, rows.detach(), "amax").nan_to_num(neginf=0.0)
    total = hidden.new_zeros(num_entities, hidden.shape[1]).index_add(0, owners, (rows - peak[owners]).exp())
    return torch.where(total > 0, total.clamp_min(FLOOR).log() + peak, 0.0)


def pool_attention(
    attention: Float[Tensor, "heads queries tokens"],
    starts: Int[Tensor, "mentions"],
    owners: Int[Tensor, "mentions"],
    num_entities: int,
) -> Float[Tensor, "heads entities tokens"]:
    """Return A_i, the mean attention of the entity's start markers; zeros for an entity without a mention."""
    count = torch.bincount(owners, minlength=num_entities).clamp_min(1).to(attention.dtype)
    mean = attention.new_zeros(num_entities, len(starts))
    mean[owners, torch.arange(len(starts), device=starts.device)] = 1 / count[owners]
    return torch.matmul(mean, attention[:, starts])


def pair_attention(
    attention: Float[Tensor, "heads entities tokens"],
    first: Int[Tensor, "unordered"],
    second: Int[Tensor, "unordered"],
    epsilon: float = FLOOR,
) -> Float[Tensor, "unordered tokens"]:
    """Return q_st = (1/H) sum_h A_s A_t, divided by its sum + epsilon. It is the same for (s, t) and (t, s).

    Args:
        attention: of `pool_attention`.
        first: one entity of each unordered pair.
        second: the other.
        epsilon: 1e-5 in ATLOP, 1e-30 in DREEAM.

    Source: ATLOP, equation 7.
    """
    heads = attention.shape[0]
    per_token = torch.bmm(attention.permute(2, 1, 0), attention.permute(2, 0, 1)) / heads
    q = per_token[:, first, second].T
    return q / (q.sum(1, keepdim=True) + epsilon)


def sentence_attention(
    attention: Float[Tensor, "pairs tokens"], sentence_of: Int[Tensor, "tokens"], num_sentences: int
) -> Float[Tensor, "pairs sentences"]:
    """Return s_st, the pair's attention summed over each sentence's tokens (DREEAM, equation 4).

    Args:
        attention: q.
        sentence_of: sentence of each token, -1 outside of all ([CLS], [SEP]).
        num_sentences: columns of the result.
    """
    inside = sentence_of >= 0
    result = attention.new_zeros(len(attention), num_sentences)
    return result.index_add(1, sentence_of[inside], attention[:, inside])


class _GroupBilinear(torch.autograd.Function):
    """Sum over groups of z_s' W_r z_t, a block of pairs and a group at a time; backward forms the products again."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, weight: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(left, right, weight)
        ctx.groups = groups
        total = left.new_zeros(len(left), weight.shape[0])
        for rows, columns, products in _blocks(left, weight, groups):
            total[rows].addmm_(_outer(left[rows, columns], right[rows, columns]), weight[:, products].T)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        left, right, weight = ctx.saved_tensors
        gradient = gradients[0]
        d_left, d_right, d_weight = torch.empty_like(left), torch.empty_like(right), torch.zeros_like(weight)
        for rows, columns, products in _blocks(left, weight, ctx.groups):
            a, b = left[rows, columns], right[rows, columns]
            d_weight[:, products].addmm_(gradient[rows].T, _outer(a, b))
            d_outer = (gradient[rows] @ weight[:, products]).view(len(a), a.shape[1], b.shape[1])
            d_left[rows, columns] = torch.bmm(d_outer, b[:, :, None]).squeeze(2)
            d_right[rows, columns] = torch.bmm(a[:, None, :], d_outer).squeeze(1)
        return d_left, d_right, d_weight, None


def _blocks(left: Tensor, weight: Tensor, groups: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield rows of pairs, columns of a group, and columns of its products."""
    size, products = left.shape[1] // groups, weight.shape[1] // groups
    for group in range(groups):
        columns = slice(group * size, (group + 1) * size)
        for low in range(0, len(left), BLOCK_PAIRS):
            yield slice(low, low + BLOCK_PAIRS), columns, slice(group * products, (group + 1) * products)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, :, None] * b[:, None, :]).flatten(1)


def group_bilinear(
    left: Float[Tensor, "pairs dim"],
    right: Float[Tensor, "pairs dim"],
    weight: Float[Tensor, "classes products"],
    block: int = 64,
) -> Float[Tensor, "pairs classes"]:
    """Return logit_r = sum over groups g of z_s^g' W_r^g z_t^g, without its bias.

    Args:
        left: z_s.
        right: z_t.
        weight: [R, D * k], as a linear layer on the concatenated outer products has it.
        block: k, the size of a group.

    Returns:
        [P, R]; the peak of memory is D / k times below that of all outer products together, in backward too.

    Source: ATLOP, equation 5.
    """
    result: Tensor = _GroupBilinear.apply(left, right, weight, left.shape[1] // block)  # type: ignore[no-untyped-call]
    return result


class PairHead(nn.Module):
    """ATLOP's classifier of pairs; the context's share is computed once for both directions of a pair."""

    def __init__(self, hidden_size: int, num_classes: int, *, width: int = 768, block: int = 64) -> None:
        """Make the layers.

        Args:
            hidden_size: d of the encoder.
            num_classes: R, the threshold class included.
            width: D of z_s and z_t.
            block: k of the bilinear groups; it divides `width`.
        """
        super().__init__()
        self.block = block
        self.head = nn.Linear(2 * hidden_size, width)
        self.tail = nn.Linear(2 * hidden_size, width)
        self.bilinear = nn.Linear(width * block, num_classes)

    def forward(
        self,
        entities: Float[Tensor, "entities hidden"],
        context: Float[Tensor, "unordered hidden"],
        pairs: Int[Tensor, "pairs 2"],
        shared: Int[Tensor, "pairs"],
    ) -> Float[Tensor, "pairs classes"]:
        """Return the logits of ordered pairs.

        Args:
            entities: e_i.
            context: c of unordered pairs.
            pairs: head and tail of each ordered pair.
            shared: row of `context` of each ordered pair.
        """
        hidden = entities.shape[1]
        sides = []
        for side, layer in enumerate((self.head, self.tail)):
            own = F.linear(entities, layer.weight[:, :hidden], layer.bias)
            around = F.linear(context, layer.weight[:, hidden:])
            sides.append((own[pairs[:, side]] + around[shared]).tanh())
        return group_bilinear(sides[0], sides[1], self.bilinear.weight, self.block) + self.bilinear.bias


def fuse(
    original: dict[tuple[int, str, int], float],
    pseudo: dict[tuple[int, str, int], float],
    threshold: float,
) -> set[tuple[int, str, int]]:
    """Return the facts that inference-stage fusion accepts.

    Args:
        original: fact to score (logit minus threshold) from the whole document.
        pseudo: fact to its best score from the pseudo-documents.
        threshold: tau; a fact of only one side loses 10, a fact of both has the sum.

    Source: Xie et al. (2022), EIDER; DREEAM, section 3.4.
    """
    accepted, scores = undecided(original, pseudo)
    return accepted | {fact for fact, score in scores.items() if score >= threshold}


def undecided(
    original: dict[tuple[int, str, int], float], pseudo: dict[tuple[int, str, int], float]
) -> tuple[set[tuple[int, str, int]], dict[tuple[int, str, int], float]]:
    """Return the facts that fusion accepts at any threshold, and the fused score of every other one.

    Args:
        original: as in `fuse`.
        pseudo: as in `fuse`.
    """
    accepted, scores = set(), {}
    for fact in original.keys() | pseudo.keys():
        a, b = original.get(fact), pseudo.get(fact)
        if a is not None and b is not None and a > 0 and b > 0:
            accepted.add(fact)
        elif a is not None and b is not None:
            scores[fact] = a + b
        else:
            scores[fact] = (a if a is not None else b or 0.0) - 10
    return accepted, scores


def fusion_threshold(rows: Sequence[tuple[float, bool]], num_accepted: int, num_correct: int, num_gold: int) -> float:
    """Return tau of highest micro F1 over the accepted facts and the undecided ones at or above it.

    Args:
        rows: score of each undecided fact of the development documents, and whether it is gold.
        num_accepted: facts that are accepted at any tau.
        num_correct: of these, gold ones.
        num_gold: gold facts.

    Returns:
        tau halfway to the next score, equal scores staying together; infinity where accepting none is best.
    """
    ranked = sorted(rows, key=lambda row: -row[0])
    best, tau = 2 * num_correct / max(1, num_accepted + num_gold), float("inf")
    correct = num_correct
    for count, (score, hit) in enumerate(ranked, 1):
        correct += hit
        following = ranked[count][0] if count < len(ranked) else score - 1
        f1 = 2 * correct / max(1, num_accepted + count + num_gold)
        if following != score and f1 > best:
            best, tau = f1, (score + following) / 2
    return tau
