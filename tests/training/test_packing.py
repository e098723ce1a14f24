from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.models.tokenizers import encode, train_tokenizer
from polyloom.training.packing import pack, window_batches

TOKENIZER = train_tokenizer(["abc"], 259)


def test_documents_are_joined_by_specials() -> None:
    a, b = encode(TOKENIZER, "ab")
    assert pack(["ab", "", "b"], TOKENIZER).tolist() == [1, a, b, 2, 1, 2, 1, b, 2]
    assert pack(["</s>"], TOKENIZER).tolist().count(2) == 1


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 40), st.integers(0, 3))
def test_an_epoch_sees_every_window_once(window: int, batch: int, extra: int, seed: int) -> None:
    stream = torch.arange(window + 1 + extra)
    num_windows = (len(stream) - 1) // window
    batch_at = window_batches(stream, window_tokens=window, batch_size=batch, seed=seed)
    rows = torch.cat([batch_at(step)["tokens"] for step in range(2 * num_windows)])
    assert rows.shape == (2 * num_windows * batch, window + 1)
    assert torch.equal(rows, rows[:, :1] + torch.arange(window + 1))
    for epoch in range(2):
        starts = rows[epoch * num_windows : (epoch + 1) * num_windows, 0]
        assert sorted(starts.tolist()) == [i * window for i in range(num_windows)]


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    stream = torch.arange(1000)
    forward = window_batches(stream, window_tokens=7, batch_size=4, seed=1)
    other = window_batches(stream, window_tokens=7, batch_size=4, seed=2)
    batches = [forward(step)["tokens"] for step in range(100)]
    fresh = window_batches(stream, window_tokens=7, batch_size=4, seed=1)
    assert all(torch.equal(fresh(step)["tokens"], batches[step]) for step in reversed(range(100)))
    assert not torch.equal(other(0)["tokens"], batches[0])
    # Twice the rows at half the steps are the same stream of samples.
    wide = window_batches(stream, window_tokens=7, batch_size=8, seed=1)
    assert torch.equal(wide(3)["tokens"], torch.cat([batches[6], batches[7]]))


def test_epochs_differ() -> None:
    batch_at = window_batches(torch.arange(1001), window_tokens=10, batch_size=100)
    assert not torch.equal(batch_at(0)["tokens"], batch_at(1)["tokens"])


def test_too_little_text_names_both_numbers() -> None:
    with pytest.raises(UserError, match="the text has 8 tokens, one window needs 9"):
        window_batches(torch.arange(8), window_tokens=8, batch_size=1)
