"""Feature attention (FA) and selective feature attention (SFA): blocks that weigh features, not words.

Both take a sequence X [batch, tokens, dim] with its mask and give a sequence of the same shape, so that they fit behind
any encoder. Source: Zang and Liu, arXiv 2404.16776; the mask, the softmax over branches alone and sequences of any
length are ours, `normalise="reference"` and `stack="state"` are the arithmetic of the authors' code.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn import functional

from polyloom.core.errors import UserError

Norm = Literal["batch", "layer", "none"]
Cell = Literal["gru", "lstm", "conv"]
Stack = Literal["output", "state"]
Normalise = Literal["branches", "reference"]
NORM_EPSILON, NORM_MOMENTUM = 1e-6, 0.1


def bottleneck_width(max_length: int, floor: int = 60) -> int:
    """Return the width r of the squeezed text: max(floor, 2 floor(8.33 ln(L) / 2)).

    Args:
        max_length: the longest text in tokens that the block is made for; any other length works as well.
        floor: the least width.
    """
    return max(floor, 2 * math.floor(8.33 * math.log(max_length) / 2))


def masked_mean(X: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"]) -> Float[Tensor, "batch dim"]:
    """Return the mean over the real positions; 0 for a text without any."""
    weights = mask.to(X.dtype)
    count = weights.sum(1, keepdim=True).clamp(min=1)
    return torch.bmm((weights / count)[:, None], X)[:, 0]


def masked_max(X: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"]) -> Float[Tensor, "batch dim"]:
    """Return the maximum over the real positions; 0 for a text without any."""
    largest = X.masked_fill(~mask[:, :, None], -math.inf).amax(1)
    return torch.where(mask.any(1)[:, None], largest, torch.zeros_like(largest))


class _Pool(torch.autograd.Function):
    """Masked mean and maximum at once: one gradient tensor instead of four."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, mask: Tensor) -> Tensor:
        weights = mask.to(X.dtype)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        hidden = torch.zeros_like(weights).masked_fill_(~mask, -math.inf)
        largest, where = (X + hidden[:, :, None]).max(1)
        ctx.save_for_backward(weights, where)
        return torch.cat([torch.bmm(weights[:, None], X)[:, 0], largest], 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        weights, where = ctx.saved_tensors
        mean, largest = grads[0].chunk(2, 1)
        grad = weights[:, :, None] * mean[:, None]
        return grad.scatter_add_(1, where[:, None], largest[:, None]), None


def pool(X: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"]) -> Float[Tensor, "batch dim2"]:
    """Return [mean; maximum] over the real positions; every text needs one."""
    if torch.is_grad_enabled() and X.requires_grad:
        pooled: Tensor = _Pool.apply(X, mask)  # type: ignore[no-untyped-call]
        return pooled
    return torch.cat([masked_mean(X, mask), masked_max(X, mask)], 1)


def pool_rows(rows: Float[Tensor, "words dim"], ids: Integer[Tensor, "batch tokens"]) -> Float[Tensor, "batch 2 dim"]:
    """Return mean and maximum of the rows of each text's words (0 pads), position by position.

    Three matrices [batch, dim] stay in the cache; looking all rows up first would write [batch, tokens, dim] to memory.

    Args:
        rows: word vectors; nothing is differentiated.
        ids: numbered texts, each with a word in front.
    """
    real = ids != 0
    share = real.to(rows.dtype)
    share /= share.sum(1, keepdim=True)
    # A pad repeats the first word, which no maximum notices.
    columns = torch.where(real, ids, ids[:, :1]).T.contiguous()
    both = rows.new_empty(len(ids), 2, rows.shape[1])
    row = rows.index_select(0, columns[0])
    largest = row.clone()
    mean = row * share[:, :1]
    for position, column in enumerate(columns[1:], start=1):
        torch.index_select(rows, 0, column, out=row)
        mean.addcmul_(row, share[:, position : position + 1])
        torch.maximum(largest, row, out=largest)
    both[:, 0], both[:, 1] = mean, largest
    return both


def branch_weights(
    a: Float[Tensor, "batch branches dim"], temperature: float = 1.0, normalise: Normalise = "branches"
) -> Float[Tensor, "batch branches dim"]:
    """Return the select phase's weights v: for each feature a softmax over the branches.

    Args:
        a: excitation of each branch and feature.
        temperature: divides a.
        normalise: `branches` sums to 1 over the branches for each feature and text; `reference` divides by the sum
            over branches, texts and features, as the authors' code does (weights then depend on the rest of the batch).
    """
    if normalise == "reference":
        powers = (a / temperature).exp()
        return powers / powers.sum()
    return (a / temperature).softmax(1)


def selection_bounds(num_branches: int) -> tuple[float, float]:
    """Return the open interval that a branch's weight lies in, since a sigmoid in (0, 1) stands under the softmax."""
    low = 1 / (1 + (num_branches - 1) * math.e)
    return low, math.e / (math.e + num_branches - 1)


def fa_parameters(dim: int, bottleneck: int, norm: Norm = "batch") -> int:
    """Return FA's number of parameters: D r + r + r D + D, and 2 D of the normalisation."""
    return 2 * dim * bottleneck + bottleneck + dim + (0 if norm == "none" else 2 * dim)


def sfa_parameters(dim: int, d1: int = 100, d2: int = 60, num_branches: int = 3) -> int:
    """Return SFA's number of parameters with BiGRU branches and batch normalisation (d1 even)."""
    ends = dim * d1 + d1 + d1 * dim + dim
    hidden = d1 // 2
    heads = d1 * d2 + d2 + num_branches * (d2 * d1 + d1 + 2 * d1)
    return ends + heads + num_branches * 2 * 3 * hidden * (d1 + hidden + 2)


class Dropout(nn.Module):
    """Dropout whose mask is compared from random bytes: several times as fast as a Bernoulli draw for each number.

    The share is rounded to 1/256. `rng` is set anew by the trainer, so that a seed gives the same masks.
    """

    def __init__(self, p: float, *, whole_text: bool = False) -> None:
        """Drop a share p; `whole_text` draws one mask for all positions of a text (variational dropout)."""
        super().__init__()
        self.dropped = round(256 * p)
        self.whole_text = whole_text
        self.rng = np.random.default_rng(0)

    def forward(self, X: Tensor) -> Tensor:
        """Drop numbers of [batch, ..., dim] and scale up the others."""
        if not self.training or not self.dropped:
            return X
        size = (X.shape[0], 1, X.shape[2]) if self.whole_text else X.shape
        count = math.prod(size)
        drawn = self.rng.integers(0, 2**64, -(-count // 8), dtype=np.uint64).view(np.uint8)[:count]
        kept = np.multiply(drawn >= self.dropped, 256 / (256 - self.dropped), dtype=np.float32)
        return X * torch.from_numpy(kept).view(size).to(X.dtype)


class FeatureNorm(nn.BatchNorm1d):
    """Batch normalisation of [batch, dim]; a batch of one text is normalised by the running statistics instead."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each feature over the texts."""
        if input.shape[0] > 1:
            return super().forward(input)
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def make_norm(norm: Norm, dim: int) -> nn.Module:
    """Return the normalisation that stands before a sigmoid."""
    if norm == "batch":
        return FeatureNorm(dim)
    return nn.LayerNorm(dim, eps=NORM_EPSILON) if norm == "layer" else nn.Identity()


class FeatureAttention(nn.Module):
    """FA: squeeze s = mean_l X; excite e = sigmoid(norm(W2 delta(W1 s + b1) + b2)); rescale U = e X."""

    def __init__(
        self,
        dim: int,
        bottleneck: int = 60,
        activation: Literal["tanh", "relu", "linear"] = "tanh",
        norm: Norm = "batch",
        shuffled: bool = False,
    ) -> None:
        """Make the block.

        Args:
            dim: features D of the sequence.
            bottleneck: width r of the squeezed text; see `bottleneck_width`.
            activation: delta.
            norm: before the sigmoid; `none` is the paper's formula.
            shuffled: the control: e is permuted over the features, anew for each batch in training and by one fixed
                permutation afterwards, so that a gate never reaches the feature that it was learned for.

        Raises:
            UserError: a width below 1.
        """
        super().__init__()
        if bottleneck < 1:
            raise UserError(f"the bottleneck r is at least 1, not {bottleneck}.")
        self.squeeze = nn.Linear(dim, bottleneck)
        self.excite = nn.Linear(bottleneck, dim)
        self.norm = make_norm(norm, dim)
        self.activation = activation
        self.shuffled = shuffled
        self.register_buffer("permutation", torch.roll(torch.arange(dim), dim // 2), persistent=False)

    def gate(self, s: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Return e for squeezed texts s."""
        z: Tensor = self.squeeze(s)
        z = z.tanh_() if self.activation == "tanh" else z.relu_() if self.activation == "relu" else z
        e: Tensor = self.norm(self.excite(z)).sigmoid_()
        if not self.shuffled:
            return e
        kept: Tensor = self.permutation  # type: ignore[assignment]
        return e[:, torch.randperm(e.shape[1]) if self.training else kept]

    def forward(
        self, X: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return U = e X; padded rows are 0."""
        return X * self.gate(masked_mean(X, mask))[:, None] * mask[:, :, None]


class ResidualMLP(nn.Module):
    """The control with exactly FA's parameters and no attention: U = X + norm(W2 tanh(W1 X + b1) + b2) per position."""

    def __init__(self, dim: int, bottleneck: int = 60) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, bottleneck)
        self.outer = nn.Linear(bottleneck, dim)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPSILON)
        # It starts as no block at all: at the norm's usual start its output drowns the sequence and nothing is learned.
        nn.init.zeros_(self.norm.weight)

    def forward(
        self, X: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the sequence with the perceptron's output added; padded rows are 0."""
        added: Tensor = self.norm(self.outer(torch.tanh(self.inner(X))))
        return (X + added) * mask[:, :, None]


def reverse_by_length(
    X: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens dim"]:
    """Reverse the real positions of each text and leave the padding (on the right) where it is; its own inverse."""
    batch, tokens, dim = X.shape
    positions = torch.arange(tokens, device=X.device)[None]
    lengths = mask.sum(1, keepdim=True)
    source = torch.where(mask, lengths - 1 - positions, positions)
    # Whole rows are copied: several times as fast as gathering number by number.
    rows = source + tokens * torch.arange(batch, device=X.device)[:, None]
    return X.reshape(batch * tokens, dim).index_select(0, rows.flatten()).view(batch, tokens, dim)


class BiRecurrent(nn.Module):
    """A bidirectional GRU or LSTM whose backward half starts at each text's last word, so that padding is never seen.

    The halves are `torch.nn` modules: their weights are those of one bidirectional `nn.GRU`.
    """

    def __init__(self, dim: int, hidden: int, cell: Literal["gru", "lstm"] = "gru") -> None:
        super().__init__()
        module = nn.GRU if cell == "gru" else nn.LSTM
        self.ahead = module(dim, hidden, batch_first=True)
        self.back = module(dim, hidden, batch_first=True)

    def run(
        self,
        X: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "batch tokens"],
        state: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens hidden2"], tuple[Tensor, Tensor]]:
        """Return all outputs (0 at padding) and the last hidden state of each direction, each [batch, hidden].

        Args:
            X: inputs.
            mask: real positions.
            state: first hidden states of both directions; zeros by default.
        """
        first = [None, None] if state is None else [self._start(h) for h in state]
        ahead, _ = self.ahead(X, first[0])
        back, _ = self.back(reverse_by_length(X, mask), first[1])
        last = (mask.sum(1).clamp(min=1) - 1)[:, None, None].expand(-1, 1, ahead.shape[2])
        ends = ahead.gather(1, last)[:, 0], back.gather(1, last)[:, 0]
        outputs = torch.cat([ahead, reverse_by_length(back, mask)], 2) * mask[:, :, None].to(X.dtype)
        return outputs, ends

    def _start(self, hidden: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        start = hidden[None].contiguous()
        return (start, torch.zeros_like(start)) if isinstance(self.ahead, nn.LSTM) else start

    def forward(
        self, X: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens hidden2"]:
        """Return the outputs alone."""
        return self.run(X, mask)[0]


class MaskedConv(nn.Module):
    """A one-dimensional convolution of odd width that sees zeros at padding."""

    def __init__(self, dim: int, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, channels, width, padding=width // 2)

    def forward(
        self, X: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the convolved sequence; padded rows are 0."""
        keep = mask[:, :, None]
        output: Tensor = self.conv((X * keep).transpose(1, 2)).transpose(1, 2)
        return output * keep


class SelectiveFeatureAttention(nn.Module):
    """SFA: bottleneck in, N stacked branches, squeeze and excite, select over branches, bottleneck out."""

    def __init__(
        self,
        dim: int,
        d1: int = 100,
        d2: int = 60,
        num_branches: int = 3,
        *,
        cell: Cell = "gru",
        stack: Stack = "output",
        normalise: Normalise = "branches",
        norm: Norm = "batch",
        sigmoid: bool = True,
        temperature: float = 1.0,
        dropout: float = 0.2,
        residual: bool = False,
        fuse: Literal["stack", "sum"] = "stack",
        select: Literal["softmax", "equal"] = "softmax",
    ) -> None:
        """Make the block.

        Args:
            dim: features D of the sequence.
            d1: inner width; an odd one is rounded up.
            d2: width of the squeezed text.
            num_branches: N.
            cell: of the branches; `conv` has widths 3, 5, 7, ...
            stack: `output`: branch n reads branch n - 1 (the paper's words); `state`: all read the bottleneck, and
                branch n starts from the last state of n - 1 (the authors' code).
            normalise: see `branch_weights`.
            norm: of each head, before its sigmoid.
            sigmoid: False lifts the bounds of `selection_bounds`.
            temperature: of the selection.
            dropout: on each branch.
            residual: add X to the output.
            fuse: what is squeezed: `stack` takes mean and maximum over branches and positions; `sum` the mean of the
                branches' sum (the SKNet way).
            select: `equal` gives each branch 1 / N: the control without selection.

        Raises:
            UserError: a size below 1, or states to hand on from convolutions.
        """
        super().__init__()
        if min(d1, d2, num_branches) < 1:
            raise UserError(f"SFA needs d1, d2 and N of at least 1, not {d1}, {d2} and {num_branches}.")
        if cell == "conv" and stack == "state":
            raise UserError("convolutions have no state to hand on.", hint='Use stack="output".')
        d1 += d1 % 2
        self.d1, self.num_branches = d1, num_branches
        self.stack, self.normalise, self.fuse, self.select = stack, normalise, fuse, select
        self.temperature, self.sigmoid, self.residual = temperature, sigmoid, residual
        self.bottleneck_in = nn.Linear(dim, d1)
        self.bottleneck_out = nn.Linear(d1, dim)
        self.branches = nn.ModuleList(
            MaskedConv(d1, d1, 2 * n + 3) if cell == "conv" else BiRecurrent(d1, d1 // 2, cell)
            for n in range(num_branches)
        )
        self.squeeze = nn.Linear(d1, d2)
        self.heads = nn.ModuleList(nn.Linear(d2, d1) for _ in range(num_branches))
        self.norms = nn.ModuleList(make_norm(norm, d1) for _ in range(num_branches))
        self.dropout = Dropout(dropout)

    def split(
        self, X: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch branches tokens d1"]:
        """Return the outputs Y^n of all branches."""
        start = self.bottleneck_in(X) * mask[:, :, None].to(X.dtype)
        previous, state, outputs = start, None, []
        for branch in self.branches:
            if self.stack == "state" and isinstance(branch, BiRecurrent):
                output, state = branch.run(start, mask, state)
            else:
                output = branch(previous, mask)
            output = self.dropout(output)
            outputs.append(output)
            previous = output
        return torch.stack(outputs, 1)

    def weights(
        self, F: Float[Tensor, "batch branches tokens d1"], mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch branches d1"]:
        """Return the selection v of the fused branches F."""
        if self.select == "equal":
            return torch.full_like(F[:, :, 0], 1 / self.num_branches)
        batch, branches, tokens, width = F.shape
        if self.fuse == "sum":
            s = masked_mean(F.sum(1), mask)
        else:
            # Padded rows of F are 0, so that they add nothing to the sum.
            mean = F.sum((1, 2)) / (branches * mask.sum(1, keepdim=True).clamp(min=1))
            s = mean + masked_max(F.reshape(batch, branches * tokens, width), mask.repeat(1, branches))
        z = torch.tanh(self.squeeze(s))
        a = torch.stack([norm(head(z)) for head, norm in zip(self.heads, self.norms, strict=True)], 1)
        return branch_weights(torch.sigmoid(a) if self.sigmoid else a, self.temperature, self.normalise)

    def attend(
        self, X: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"]
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch branches d1"]]:
        """Return U and the branch weights v."""
        F = self.split(X, mask)
        v = self.weights(F, mask)
        V = (v[:, :, None] * F).sum(1)
        U = self.bottleneck_out(V) * mask[:, :, None].to(X.dtype)
        return (U + X * mask[:, :, None] if self.residual else U), v

    def forward(
        self, X: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return U alone."""
        return self.attend(X, mask)[0]


BLOCKS = ("none", "fa", "sfa", "mlp", "shuffled", "equal", "reference", "senet", "sknet")


def make_block(name: str, dim: int, max_length: int = 64, num_branches: int = 3, floor: int = 60) -> nn.Module | None:
    """Make a block by name.

    Args:
        name: `none`; `fa`; `sfa`; the controls `mlp` (FA's parameters, no attention), `shuffled` (FA with its gate
            permuted), `equal` (SFA without selection) and `reference` (the released arithmetic); the relatives from
            vision `senet` and `sknet`.
        dim: features of the sequence.
        max_length: longest text in tokens, which sets the least widths.
        num_branches: of SFA.
        floor: the least width of the squeezed text.

    Returns:
        The block; None for `none`.
    """
    r = bottleneck_width(max_length, floor)
    if name in ("fa", "shuffled"):
        return FeatureAttention(dim, r, shuffled=name == "shuffled")
    if name == "senet":
        return FeatureAttention(dim, max(1, dim // 16), activation="relu", norm="none")
    if name == "mlp":
        return ResidualMLP(dim, r)
    if name == "none":
        return None
    # A bottleneck has to be narrower than what it squeezes: the authors take 100 of 600 features.
    d1 = max(2, min(100, dim // 2))
    if name == "sknet":
        return SelectiveFeatureAttention(dim, d1, r, num_branches, cell="conv", norm="none", sigmoid=False, fuse="sum")
    if name == "reference":
        return SelectiveFeatureAttention(dim, d1, r, num_branches, stack="state", normalise="reference")
    return SelectiveFeatureAttention(dim, d1, r, num_branches, select="equal" if name == "equal" else "softmax")
