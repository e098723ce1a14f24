"""Choosing and verifying tokens: greedily, or by the rule under which drafts leave the whole model's law as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from polyloom.generation.sampling import Decoding, kept_distribution

Processor = Callable[[Tensor, Tensor], Tensor]
"""A logits processor of transformers: token ids so far [1, tokens] and scores [1, vocab] to scores."""


class Judge:
    """Drafts and verifies tokens, greedily or by the rule that keeps the whole model's law."""

    def __init__(self, settings: Decoding, processors: Sequence[Processor] = ()) -> None:
        """Take the settings and logits processors; each sees the whole text before the position it judges."""
        self.settings = settings
        self.processors = list(processors)
        self.greedy = settings.temperature == 0
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.simple = self.greedy and not self.processors

    def distribution(self, logits: Tensor, text: Sequence[int]) -> Tensor:
        """Return the probabilities [vocab] that a token behind `text` is drawn from; one-hot if greedy."""
        scores = logits[None].float()
        ids = torch.tensor([list(text)], device=logits.device)
        for processor in self.processors:
            scores = processor(ids, scores)
        if self.greedy:
            return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1])[0].double()
        one = self.settings
        device = logits.device
        probabilities, order = kept_distribution(
            scores,
            torch.tensor([one.temperature], device=device),
            torch.tensor([one.top_k], device=device),
            torch.tensor([one.top_p], dtype=torch.float64, device=device),
        )
        kept = probabilities[0] / probabilities[0].sum()
        return torch.zeros_like(kept).scatter_(0, order[0], kept)

    def draw(self, probabilities: Tensor) -> int:
        """Draw a token."""
        if self.greedy:
            return int(probabilities.argmax())
        cumulative = probabilities.cumsum(0)
        target = torch.rand((), generator=self.generator, dtype=torch.float64).to(cumulative) * cumulative[-1]
        last = int(probabilities.nonzero()[-1])
        return min(int(torch.searchsorted(cumulative, target, right=True)), last)

    def choose(self, logits: Tensor, text: Sequence[int]) -> tuple[int, Tensor | None]:
        """Choose a token behind `text`; return it and the distribution it was drawn from (None: certain)."""
        if self.simple:
            return int(logits.argmax()), None
        probabilities = self.distribution(logits, text)
        return self.draw(probabilities), probabilities

    def verify(
        self, logits: Tensor, drafts: Sequence[int], qs: Sequence[Tensor | None], text: Sequence[int]
    ) -> tuple[list[int], int]:
        """Accept drafts and add a token of the whole model.

        Args:
            logits: the whole model's [positions, vocab], one position per draft and, unless the draft ended the text,
                one more.
            drafts: drafted tokens.
            qs: what each was drawn from; None for a certain token.
            text: everything before the first draft.

        Returns:
            The tokens to emit, and how many of them are accepted drafts.
        """
        if self.simple:
            best = logits.argmax(-1).tolist()
            accepted = 0
            while accepted < len(drafts) and drafts[accepted] == best[accepted]:
                accepted += 1
            return best[: accepted + 1], accepted
        return self._verify_law(logits, drafts, qs, list(text))

    def _verify_law(
        self, logits: Tensor, drafts: Sequence[int], qs: Sequence[Tensor | None], text: list[int]
    ) -> tuple[list[int], int]:
        """Accept with probability min(1, p/q), else draw from max(p - q, 0) (Leviathan et al. 2023, algorithm 1)."""
        emitted: list[int] = []
        for row, (token, q) in enumerate(zip(drafts, qs, strict=True)):
            p = self.distribution(logits[row], text + emitted)
            taken = torch.zeros_like(p).index_fill_(0, torch.tensor([token], device=p.device), 1.0) if q is None else q
            uniform = float(torch.rand((), generator=self.generator, dtype=torch.float64))
            if uniform * float(taken[token]) >= float(p[token]):
                residual = (p - taken).clamp(min=0)
                emitted.append(self.draw(residual if float(residual.sum()) > 1e-12 else p))
                return emitted, row
            emitted.append(token)
        if len(logits) > len(drafts):
            emitted.append(self.choose(logits[len(drafts)], text + emitted)[0])
        return emitted, len(drafts)
