"""Masked language modelling: what is hidden, and that an encoder learns to fill it."""

from __future__ import annotations

import torch

from polyloom.training.masked import IGNORED, mask_tokens


def test_masks_hide_a_share_of_the_free_tokens_alone() -> None:
    ids = torch.randint(10, 50, (20, 40), generator=torch.Generator().manual_seed(0))
    free = torch.ones_like(ids, dtype=torch.bool)
    free[:, [0, -2, -1]] = False
    read, masked = mask_tokens(ids, free, 9, 50, seed=0, step=0)
    hidden = masked != IGNORED
    assert not hidden[:, [0, -2, -1]].any()
    assert 0.1 < hidden.float().mean() < 0.2
    assert torch.equal(masked[hidden], ids[hidden])
    assert torch.equal(read[~hidden], ids[~hidden])
    assert 0.7 < (read[hidden] == 9).float().mean() < 0.9
    assert torch.equal(mask_tokens(ids, free, 9, 50, seed=0, step=0)[0], read)
    assert not torch.equal(mask_tokens(ids, free, 9, 50, seed=0, step=1)[0], read)


def test_a_short_row_has_a_token_hidden() -> None:
    _, masked = mask_tokens(torch.tensor([[1, 7, 2]]), torch.tensor([[False, True, False]]), 9, 50, seed=0, step=0)
    assert masked.tolist() == [[IGNORED, 7, IGNORED]]
