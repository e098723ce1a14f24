from __future__ import annotations

import gzip
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from polyloom.metrics.language_model import (
    DocumentScore,
    _windows,
    bits_per_byte,
    byte_frequency_scores,
    gzip_scores,
    score_documents,
    token_nats,
)
from polyloom.models.tiny import build_tiny
from polyloom.models.tokenizers import encode, train_tokenizer

BYTES = train_tokenizer(["x"], 259)


class Uniform(nn.Module):
    """Gives every token of its vocabulary the same probability."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self.vocab_size, dtype=torch.float64))


class Bigram(nn.Module):
    """A model given by a table of probabilities of the next token, by the token before it."""

    def __init__(self, table: dict[int, dict[int, float]], vocab_size: int) -> None:
        super().__init__()
        self.logits = torch.full((vocab_size, vocab_size), -1e9, dtype=torch.float64)
        for before, row in table.items():
            for token, probability in row.items():
                self.logits[before, token] = math.log(probability)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[input_ids])


@pytest.mark.parametrize("window", [2, 5, 64])
def test_uniform_over_bytes_is_eight_bits(window: int) -> None:
    sequences = [list(text.encode()) for text in ("hello", "naïve 猫", "x", "")]
    nats = token_nats(Uniform(256), sequences, 0, window_tokens=window, batch_size=2)
    scores = [DocumentScore(n, len(s), len(s)) for n, s in zip(nats, sequences, strict=True)]
    assert bits_per_byte(scores) == pytest.approx(8.0, abs=1e-12)


def test_uniform_over_65536_tokens_of_four_bytes_is_four_bits() -> None:
    nats = token_nats(Uniform(65536), [[7, 8, 9]], 0, window_tokens=8, batch_size=1)
    assert bits_per_byte([DocumentScore(nats[0], 12, 3)]) == pytest.approx(4.0, abs=1e-12)


def test_two_characters_by_hand() -> None:
    a, b = encode(BYTES, "ab")
    start = BYTES.bos_token_id
    model = Bigram({start: {a: 0.5, b: 0.5}, a: {b: 0.25, a: 0.75}, b: {a: 1.0}}, 259)
    scores = score_documents(model, BYTES, ["ab"])
    assert (scores[0].num_bytes, scores[0].num_tokens) == (2, 2)
    assert bits_per_byte(scores) == pytest.approx(1.5, abs=1e-12)


def test_bytes_are_those_of_the_text_and_documents_add_up() -> None:
    texts = ["ß", "猫", "a</s>", ""]
    scores = score_documents(build_tiny("llama-2x64", 259), BYTES, texts)
    assert [score.num_bytes for score in scores] == [2, 3, 5, 0]
    assert [score.num_tokens for score in scores] == [2, 3, 5, 0]
    assert scores[3].nats == 0.0
    apart = [score_documents(build_tiny("llama-2x64", 259), BYTES, [text])[0] for text in texts]
    assert bits_per_byte(scores) == pytest.approx(bits_per_byte(apart), rel=1e-6)


@given(st.integers(0, 300), st.integers(1, 40))
def test_windows_score_every_target_once_with_enough_context(num_targets: int, window: int) -> None:
    windows = _windows(num_targets, window)
    assert [t for _, end, scored in windows for t in range(scored, end)] == list(range(num_targets))
    for begin, end, scored in windows:
        assert end - begin <= window
        assert begin == 0 or scored - begin >= window // 2


def reference_nats(model: nn.Module, ids: list[int], start: int, window: int) -> float:
    """Score target by target, each with the context that its window gives it."""
    full = [start, *ids]
    total = 0.0
    for target in range(len(ids)):
        stride = window // 2
        end = window if target < window else window + -(-(target + 1 - window) // stride) * stride
        begin = max(0, min(end, len(ids)) - window)
        logits = model(input_ids=torch.tensor([full[begin : target + 1]])).logits[0, -1]
        total -= float(logits.double().log_softmax(-1)[full[target + 1]])
    return total


@pytest.mark.parametrize("window", [4, 8, 64])
def test_against_scoring_token_by_token(window: int) -> None:
    model = build_tiny("llama-2x64", 259, seed=1)
    for parameter in model.parameters():
        parameter.data.mul_(5)
    ids = [encode(BYTES, text) for text in ("the quick brown fox", "jumps", "over the lazy dog 猫")]
    nats = token_nats(model, ids, 1, window_tokens=window, batch_size=3)
    with torch.no_grad():
        assert nats == pytest.approx([reference_nats(model, i, 1, window) for i in ids], rel=1e-5)
    assert nats == pytest.approx(token_nats(model, ids, 1, window_tokens=window, batch_size=1), rel=1e-6)


def test_a_window_as_long_as_the_text_is_full_scoring() -> None:
    model = build_tiny("llama-2x64", 259, seed=1)
    texts = ["a text of some length, that is not long"]
    exact = score_documents(model, BYTES, texts, window_tokens=len(texts[0]))
    assert exact == score_documents(model, BYTES, texts, window_tokens=1000)
    assert exact[0].nats != score_documents(model, BYTES, texts, window_tokens=8)[0].nats


def test_byte_frequencies_by_hand() -> None:
    scores = byte_frequency_scores(["aa", "b"], ["a", "bz", ""])
    assert [s.nats for s in scores] == pytest.approx([math.log(259 / 3), math.log(259 / 2) + math.log(259), 0.0])
    assert [s.num_bytes for s in scores] == [1, 2, 0]
    assert bits_per_byte(byte_frequency_scores([], ["any text"])) == pytest.approx(8.0)


@given(st.binary(min_size=1).map(lambda data: data.decode("latin-1")))
def test_gzip_without_training_text_is_gzip_less_its_header(text: str) -> None:
    score = gzip_scores([], [text])[0]
    assert score.nats / math.log(2) / 8 == pytest.approx(len(gzip.compress(text.encode(), 9)) - 18)


def test_gzip_uses_the_training_text() -> None:
    text = "All human beings are born free and equal in dignity and rights."
    assert bits_per_byte(gzip_scores(["x" * 40000 + text], [text])) < 0.2 * bits_per_byte(gzip_scores([], [text]))
