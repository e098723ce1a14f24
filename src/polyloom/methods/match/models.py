"""The bases: light encoders and aligners that the blocks are put into, and the heads that judge a pair."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyloom.core.errors import UserError, closest
from polyloom.methods.match.method import (
    BLOCKS,
    BiRecurrent,
    Dropout,
    FeatureAttention,
    MaskedConv,
    make_block,
    masked_max,
    masked_mean,
    pool,
    pool_rows,
)
from polyloom.models.padding import pad_rows

SIAMESE = ("bag", "gru", "lstm", "cnn", "encoder")
# Spread of the first word vectors, chosen on validation pairs (benchmarks/match.md): at 0.3 ESIM's softmax starts even
# over all words; RE2's aligns projections of its own and learned nothing at unit spread.
SPREADS = {"esim": 1.0}
OTHER_SPREAD = 0.3
MANY_TEXTS = 64  # from so many on, a bag is quicker position by position
Pooling = Literal["both", "mean"]
ALIGNED = ("esim", "re2")
BASES = (*SIAMESE, *ALIGNED)


def word_spread(base: str) -> float:
    """Return the standard deviation that a base's first word vectors have."""
    return SPREADS.get(base, OTHER_SPREAD)


@dataclass(frozen=True)
class Shape:
    """What a matcher is made of.

    Attributes:
        base: one of `BASES`.
        block: one of `method.BLOCKS`.
        vocab_size: rows of the embedding.
        width: its columns.
        hidden: width of recurrent layers (per direction), convolutions and the head.
        num_outputs: classes; 1 for a score; 0 for the cosine of the two vectors.
        max_length: tokens of a text at most.
        dropout: of embeddings and heads.
        symmetric: the head sees |u - v| and u v alone, so that the order of the texts cannot matter.
        num_branches: of SFA.
        floor: least width of the squeezed text.
        encoder: folder of the frozen encoder of base `encoder`.
        pooling: of a siamese base's words: `both` mean and maximum, or the `mean` alone.
        overlap: aligned bases: a learned vector is added to words that stand in both texts.
    """

    base: str
    block: str
    vocab_size: int
    width: int
    hidden: int
    num_outputs: int
    max_length: int = 64
    dropout: float = 0.3
    symmetric: bool = False
    num_branches: int = 3
    floor: int = 60
    encoder: str = ""
    pooling: Pooling = "both"
    overlap: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


class FrozenEncoder(nn.Module):
    """A Hugging Face encoder whose last hidden states are computed once for each text and kept.

    It is held outside of the parameters: neither trained nor saved with the matcher.
    """

    def __init__(self, folder: str) -> None:
        from polyloom.models.load import load_model

        super().__init__()
        self.model = [load_model(folder, "encoder", device="auto")]
        self.width = int(self.model[0].config.hidden_size)
        self.kept: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        """Return the states [batch, tokens, width] of numbered texts (0 pads)."""
        keys = [tuple(i - 1 for i in row if i) for row in ids.tolist()]
        fresh = sorted({key for key in keys if key not in self.kept}, key=len)
        for start in range(0, len(fresh), 32):
            part = fresh[start : start + 32]
            rows, mask = pad_rows(part, self.model[0].device)
            states = self.model[0](input_ids=rows, attention_mask=mask).last_hidden_state.cpu()
            self.kept.update({key: state[: len(key)].clone() for key, state in zip(part, states, strict=True)})
        padded = ids.new_zeros((*ids.shape, self.width), dtype=torch.float32)
        for row, key in enumerate(keys):
            padded[row, : len(key)] = self.kept[key]
        return padded


class _Encoder(nn.Module):
    """Token vectors of width `size` from embedded words: nothing more, BiGRU, BiLSTM or convolutions."""

    def __init__(self, base: str, width: int, hidden: int) -> None:
        super().__init__()
        self.base = base
        self.layers = nn.ModuleList()
        self.size = width
        if base in ("gru", "lstm"):
            self.layers.append(BiRecurrent(width, hidden, "gru" if base == "gru" else "lstm"))
            self.size = 2 * hidden
        elif base == "cnn":
            self.layers.extend(MaskedConv(width, hidden, kernel) for kernel in (1, 3, 5))
            self.size = 3 * hidden

    def forward(self, X: Tensor, mask: Tensor) -> Tensor:
        """Return [batch, tokens, size]."""
        if not self.layers:
            return X
        outputs = torch.cat([layer(X, mask) for layer in self.layers], 2)
        return torch.relu(outputs) if self.base == "cnn" else outputs


def align(x: Tensor, y: Tensor, mask_y: Tensor) -> Tensor:
    """Return for each position of x the mean of y weighted by softmax(x y^T) over y's real positions."""
    scores = torch.bmm(x, y.transpose(1, 2)).masked_fill(~mask_y[:, None], -torch.inf)
    return torch.bmm(scores.softmax(2), y)


class _Aligner(nn.Module):
    """ESIM without its embeddings and head: encode, align, compare, compose, pool."""

    def __init__(self, width: int, hidden: int, block: nn.Module | None, dropout: float) -> None:
        super().__init__()
        self.encode = BiRecurrent(width, hidden, "lstm")
        self.block = block
        self.compare = nn.Linear(8 * hidden, hidden)
        self.dropout = Dropout(dropout, whole_text=True)
        self.compose = BiRecurrent(hidden, hidden, "lstm")
        self.size = 8 * hidden

    def forward(self, X: Tensor, mask: Tensor) -> Tensor:
        """Return [pairs, size] for the first texts stacked on the second ones."""
        x = self.encode(X, mask)
        other = align(x, _swap(x), _swap(mask))
        if self.block is not None:
            other = self.block(other, mask)
        c = torch.relu(self.compare(torch.cat([x, other, x - other, x * other], 2)))
        t = self.compose(self.dropout(c), mask)
        return torch.cat(pool(t, mask).chunk(2), 1)


class _ResidualAligner(nn.Module):
    """RE2-like: blocks of encoding, alignment and fusion over [embedding; sum of the last two outputs; encoding]."""

    def __init__(self, width: int, hidden: int, block: nn.Module | None, dropout: float, num_blocks: int = 2) -> None:
        super().__init__()
        self.block = block
        self.dropout = Dropout(dropout)
        self.encoders, self.projections, self.fusions, self.merges = (nn.ModuleList() for _ in range(4))
        for index in range(num_blocks):
            before = width + (hidden if index else 0)
            self.encoders.append(MaskedConv(before, hidden, 3))
            self.projections.append(nn.Linear(before + hidden, hidden))
            self.fusions.extend(nn.Linear(2 * (before + hidden), hidden) for _ in range(3))
            self.merges.append(nn.Linear(3 * hidden, hidden))
        self.size = hidden

    def forward(self, X: Tensor, mask: Tensor) -> Tensor:
        """Return [texts, hidden] for the first texts stacked on the second ones."""
        keep = mask[:, :, None]
        outputs: list[Tensor] = []
        for index, encoder in enumerate(self.encoders):
            residual = torch.cat([X, (outputs[-1] + (outputs[-2] if len(outputs) > 1 else 0))], 2) if outputs else X
            x = torch.cat([residual, functional.gelu(encoder(self.dropout(residual), mask))], 2)
            query = functional.gelu(self.projections[index](x)) * self.size**-0.25
            scores = torch.bmm(query, _swap(query).transpose(1, 2)).masked_fill(~_swap(mask)[:, None], -torch.inf)
            other = torch.bmm(scores.softmax(2), _swap(x))
            views = (torch.cat([x, other], 2), torch.cat([x, x - other], 2), torch.cat([x, x * other], 2))
            fused = [functional.gelu(self.fusions[3 * index + i](view)) for i, view in enumerate(views)]
            outputs.append(functional.gelu(self.merges[index](self.dropout(torch.cat(fused, 2)))) * keep)
        last = outputs[-1]
        if self.block is not None:
            last = self.block(last, mask)
        return masked_max(last, mask)


def in_both(ids: Tensor) -> Tensor:
    """Say of each word [2 pairs, tokens] whether its partner text holds it too; never of padding (0)."""
    return (ids[:, :, None] == _swap(ids)[:, None]).any(2) & (ids != 0)


def _swap(stacked: Tensor) -> Tensor:
    """Put the second half of the batch before the first: each text meets its partner."""
    first, second = stacked.chunk(2)
    return torch.cat([second, first])


class Matcher(nn.Module):
    """A base with a block and a head over pairs of numbered texts."""

    def __init__(self, shape: Shape) -> None:
        """Make it with fresh weights.

        Raises:
            UserError: no such base or block.
        """
        super().__init__()
        for name, known, what in ((shape.base, BASES, "base"), (shape.block, BLOCKS, "block")):
            if name not in known:
                raise UserError(f"there is no {what} {name!r}.", hint=closest(name, known))
        self.shape = shape
        width, hidden = shape.width, shape.hidden
        if shape.base == "encoder":
            self.embedding: nn.Module = FrozenEncoder(shape.encoder)
        else:
            self.embedding = nn.Embedding(shape.vocab_size, width, padding_idx=0)
        self.dropout = Dropout(shape.dropout, whole_text=shape.base in ALIGNED)
        sizes = {"bag": width, "encoder": width, "cnn": 3 * hidden, "re2": hidden}
        block = make_block(
            shape.block, sizes.get(shape.base, 2 * hidden), shape.max_length, shape.num_branches, shape.floor
        )
        if shape.base in SIAMESE:
            self.encoder: nn.Module = _Encoder(shape.base, width, hidden)
            self.block = block
            self.vector_size = sizes.get(shape.base, 2 * hidden) * (1 if shape.pooling == "mean" else 2)
            head_size = (2 if shape.symmetric else 4) * self.vector_size
        else:
            make = _Aligner if shape.base == "esim" else _ResidualAligner
            self.encoder = make(width, hidden, block, shape.dropout)
            self.block = None
            self.vector_size = 0
            if shape.overlap:
                self.overlap = nn.Embedding(2, width, padding_idx=0)
            head_size = 8 * hidden if shape.base == "esim" else 4 * hidden
        if shape.num_outputs:
            self.head = nn.Sequential(
                Dropout(shape.dropout),
                nn.Linear(head_size, hidden),
                nn.Tanh(),
                Dropout(shape.dropout),
                nn.Linear(hidden, shape.num_outputs),
            )
        self.apply(_initialise)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                module.weight.data *= word_spread(shape.base)

    @property
    def the_block(self) -> nn.Module | None:
        """The feature attention block, wherever it sits."""
        return self.block if self.shape.base in SIAMESE else self.encoder.block  # type: ignore[return-value]

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return encoded positions [batch, tokens, size] and their mask (siamese bases)."""
        mask = ids != 0
        return self.encoder(self.dropout(self.embedding(ids)), mask), mask

    def vectors(self, ids: Tensor) -> Tensor:
        """Return the vectors [batch, vector_size] of numbered texts: their pooled words after the block.

        Raises:
            UserError: the base judges pairs only.
        """
        if self.shape.base not in SIAMESE:
            what = f"the base {self.shape.base!r} reads both texts together and has no vector of one."
            raise UserError(what, hint=f"Train one of: {', '.join(SIAMESE)}.")
        gates = isinstance(self.block, FeatureAttention)
        num_parts = 1 if self.shape.pooling == "mean" else 2
        by_position = len(ids) >= MANY_TEXTS and torch.is_inference_mode_enabled()
        if by_position and self.shape.base == "bag" and (gates or self.block is None):
            rows: Tensor = self.embedding.weight  # type: ignore[assignment]
            pooled = pool_rows(rows, ids)[:, :num_parts]
        else:
            X, mask = self.states(ids)
            if self.block is not None and not gates:
                X = self.block(X, mask)
            flat = masked_mean(X, mask) if num_parts == 1 else pool(X, mask)
            pooled = flat.view(-1, num_parts, X.shape[2])
        if isinstance(self.block, FeatureAttention):
            # A positive factor per feature commutes with mean and maximum: the sequence itself need not be scaled.
            pooled = pooled * self.block.gate(pooled[:, 0])[:, None]
        return pooled.flatten(1)

    def forward(self, ids: Tensor) -> Tensor:
        """Judge pairs.

        Args:
            ids: [2 pairs, tokens]: the first texts stacked on the second ones, so that both share batch statistics.

        Returns:
            Logits [pairs, num_outputs], or the cosine [pairs].
        """
        if self.shape.base in SIAMESE:
            u, v = self.vectors(ids).chunk(2)
            if not self.shape.num_outputs:
                return functional.cosine_similarity(u, v)
            return self.head(self.compared(u, v))  # type: ignore[no-any-return]
        X = self.dropout(self.embedding(ids))
        if self.shape.overlap:
            X = X + self.overlap(in_both(ids).long())
        features = self.encoder(X, ids != 0)
        if self.shape.base == "re2":
            u, v = features.chunk(2)
            features = torch.cat([u, v, (u - v).abs(), u * v], 1)
        return self.head(features)  # type: ignore[no-any-return]

    def compared(self, u: Tensor, v: Tensor) -> Tensor:
        """Return what the head sees of two vectors."""
        both = [(u - v).abs(), u * v]
        return torch.cat(both if self.shape.symmetric else [u, v, *both], 1)


def _initialise(module: nn.Module) -> None:
    """Xavier weights, orthogonal recurrences, zero biases, and 1 for an LSTM's forget gate (on its recurrent side)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.GRU, nn.LSTM)):
        size = module.hidden_size
        for name, weight in module.named_parameters():
            if "bias" in name:
                nn.init.zeros_(weight)
                if "hh" in name and isinstance(module, nn.LSTM):
                    weight.data[size : 2 * size] = 1
            elif "weight_ih" in name:
                nn.init.xavier_uniform_(weight)
            else:
                for part in torch.split(weight.data, size):
                    nn.init.orthogonal_(part)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight)
        module.weight.data[0] = 0


def num_parameters(model: nn.Module, *, embeddings: bool = False) -> int:
    """Count the trainable parameters, by default without the embedding's rows."""
    return sum(p.numel() for name, p in model.named_parameters() if embeddings or not name.startswith("embedding."))
