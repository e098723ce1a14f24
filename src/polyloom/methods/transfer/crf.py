"""A linear-chain conditional random field over words' tags, the optional head of the released code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

INITIAL_RANGE = 0.1


class LinearChain(nn.Module):
    """Scores of tag sequences: s(y) = start[y_1] + sum_t e_t[y_t] + sum_t A[y_t-1, y_t] + end[y_n]."""

    def __init__(self, num_tags: int) -> None:
        """Draw the transitions from U(-0.1, 0.1).

        Args:
            num_tags: T.
        """
        super().__init__()
        self.start, self.end, self.transitions = (
            nn.Parameter(torch.empty(shape).uniform_(-INITIAL_RANGE, INITIAL_RANGE))
            for shape in ((num_tags,), (num_tags,), (num_tags, num_tags))
        )

    def log_likelihood(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """Return log p(tags | emissions) of each sequence, [batch].

        Args:
            emissions: e, [batch, n, T].
            tags: [batch, n]; what is masked is not read.
            mask: true at the words, which stand before the pads, [batch, n]; a row without words gives 0.
        """
        steps = mask.to(emissions.dtype)
        tags = tags.masked_fill(~mask, 0)
        chosen = emissions.gather(2, tags[:, :, None])[:, :, 0]
        last = (mask.sum(1) - 1).clamp_min(0)[:, None]
        score = (chosen * steps).sum(1) + (self.transitions[tags[:, :-1], tags[:, 1:]] * steps[:, 1:]).sum(1)
        ends = self.start[tags[:, 0]] + self.end[tags.gather(1, last)[:, 0]]
        forward = self.start + emissions[:, 0]
        for t in range(1, emissions.shape[1]):
            further = torch.logsumexp(forward[:, :, None] + self.transitions, 1) + emissions[:, t]
            forward = torch.where(mask[:, t, None], further, forward)
        return (score + ends - torch.logsumexp(forward + self.end, 1)) * mask.any(1)

    @torch.no_grad()
    def decode(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """Return the likeliest tags by Viterbi's algorithm, [batch, n]; 0 where masked.

        Args:
            emissions: e, [batch, n, T].
            mask: as in `log_likelihood`.
        """
        best = self.start + emissions[:, 0]
        stay = torch.arange(emissions.shape[2], device=emissions.device).expand_as(best)
        origins = []
        for t in range(1, emissions.shape[1]):
            values, origin = (best[:, :, None] + self.transitions).max(1)
            real = mask[:, t, None]
            best = torch.where(real, values + emissions[:, t], best)
            origins.append(torch.where(real, origin, stay))
        tag = (best + self.end).argmax(1, keepdim=True)
        path = [tag]
        for origin in reversed(origins):
            tag = origin.gather(1, tag)
            path.append(tag)
        return torch.cat(path[::-1], 1).masked_fill(~mask, 0)
