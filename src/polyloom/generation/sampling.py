"""Choosing a next token for each row of a batch: greedy, or sampled from the row's own random stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyloom.core.errors import PolyloomError, UserError

UNIFORMS_PER_DRAW = 64


@dataclass(frozen=True)
class Decoding:
    """How one text is continued.

    Attributes:
        max_new_tokens: budget, the ending token included.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens that holds this mass (after top_k).
        seed: of the row's own random stream.
        stop: texts that end the continuation; they and what follows are cut from the text.
        logprobs: also return the model's log-probability (temperature 1, nothing cut) of each token.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise UserError(f"max_new_tokens must be 0 or more, not {self.max_new_tokens}.")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be 0 or more, not {self.temperature}.")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (all tokens) or more, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if "" in self.stop:
            raise UserError("a stop text must not be empty.")


def kept_distribution(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits into what sampling draws from.

    Args:
        logits: [rows, vocabulary], float32.
        temperature: [rows], above 0.
        top_k: [rows], int64; 0 keeps all.
        top_p: [rows], in (0, 1]; the sums are done in its dtype.

    Returns:
        Probabilities [rows, vocabulary] in falling order, not renormalised and 0 where cut, and the token of each.
    """
    # Dividing the distance to the maximum keeps a tiny temperature from overflowing to inf - inf.
    shifted = logits - logits.max(dim=-1, keepdim=True).values
    scaled, tokens = (shifted / temperature[:, None]).sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(logits.shape[-1], device=logits.device)
    limit = torch.where(top_k > 0, top_k, logits.shape[-1])
    wide = top_p.dtype
    probabilities = scaled.masked_fill(ranks >= limit[:, None], float("-inf")).to(wide).softmax(dim=-1)
    mass_before = probabilities.cumsum(dim=-1) - probabilities
    kept = (mass_before < top_p[:, None]) | (ranks == 0)
    return probabilities * kept, tokens


class TokenChooser:
    """Chooses tokens for rows that each have their own settings and random stream.

    A row draws one uniform number per step from a generator of its own, so its text depends on its seed and logits
    and never on the other rows or on the budget.
    """

    def __init__(self, settings: Sequence[Decoding], device: torch.device) -> None:
        self.settings = list(settings)
        self.generators = [torch.Generator().manual_seed(one.seed) for one in settings]
        self.uniforms = torch.empty(len(self.settings), 0, dtype=torch.float64)
        self.step = 0
        self._arrange(device)

    def _arrange(self, device: torch.device) -> None:
        settings = self.settings
        self.all_greedy = all(one.temperature == 0 for one in settings)
        self.greedy = torch.tensor([one.temperature == 0 for one in settings], device=device)
        self.temperature = torch.tensor([one.temperature or 1.0 for one in settings], device=device)
        self.top_k = torch.tensor([one.top_k for one in settings], dtype=torch.int64, device=device)
        # Apple's GPUs have no 64-bit floats.
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.top_p = torch.tensor([one.top_p for one in settings], dtype=wide, device=device)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop every row that is not in `rows`."""
        self.settings = [self.settings[row] for row in rows]
        self.generators = [self.generators[row] for row in rows]
        self.uniforms = self.uniforms[list(rows)]
        self._arrange(self.greedy.device)

    def choose(self, logits: Tensor) -> Tensor:
        """Choose one token per row.

        Args:
            logits: [rows, vocabulary], float32.

        Returns:
            Tokens [rows], int64.

        Raises:
            PolyloomError: a row's logits hold NaN, or no finite value.
        """
        best, tokens = logits.max(dim=-1)
        # A maximum is NaN when any entry is, so that one number per row tells.
        if not bool(torch.isfinite(best).all()):
            raise PolyloomError("the model gave logits that are not finite.", hint="Check its weights and dtype.")
        if self.all_greedy:
            return tokens
        probabilities, order = kept_distribution(logits, self.temperature, self.top_k, self.top_p)
        cumulative = probabilities.cumsum(dim=-1)
        target = self._draw().to(cumulative.dtype).to(logits.device)[:, None] * cumulative[:, -1:]
        # The kept tokens come first, so a rounded-up target must not fall behind the last of them.
        last_kept = (probabilities > 0).sum(dim=-1, keepdim=True) - 1
        rank = torch.searchsorted(cumulative, target, right=True).minimum(last_kept)
        return torch.where(self.greedy, tokens, order.gather(-1, rank).squeeze(-1))

    def _draw(self) -> Tensor:
        column = self.step % UNIFORMS_PER_DRAW
        if column == 0:
            draws = [torch.rand(UNIFORMS_PER_DRAW, generator=one, dtype=torch.float64) for one in self.generators]
            self.uniforms = torch.stack(draws)
        self.step += 1
        return self.uniforms[:, column]
