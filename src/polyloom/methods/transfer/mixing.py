"""Words whose vectors are mixed with those of their translations, in place of being replaced; no pieces change.

Source: soft code-switching as in SCOPA (Lee, Wang, Gu and Huang, 2021): convex mixtures of word vectors.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from polyloom.methods.transfer.sequences import ABSENT


def mix_vectors(own: Tensor, translations: Tensor, table: Tensor, share: float) -> Tensor:
    """Return (1 - share) e(w) + share e(t) where a word has a translation, and e(w) elsewhere.

    Args:
        own: e(w), vectors of pieces [batch, n, d].
        translations: pieces of each position's translation, [batch, n, k], -1 for none.
        table: vectors of all pieces; e(t) is the mean of the translation's.
        share: 0 to 1.
    """
    real = (translations != ABSENT).to(own.dtype)[..., None]
    sums = (table[translations.clamp_min(0)] * real).sum(2)
    counts = real.sum(2)
    return own + share * (sums / counts.clamp_min(1) - own) * (counts > 0)


class Mixer:
    """A hook on an encoder's word embeddings; without translations they stay as they are, bit for bit."""

    def __init__(self, embeddings: nn.Embedding, share: float) -> None:
        """Hook in.

        Args:
            embeddings: of the encoder.
            share: of the translation, 0 to 1.
        """
        self.translations: Tensor | None = None
        self._share = share
        embeddings.register_forward_hook(self._mix)

    def _mix(self, module: Any, given: Any, own: Tensor) -> Tensor:
        if self.translations is None:
            return own
        return mix_vectors(own, self.translations, module.weight, self._share)
