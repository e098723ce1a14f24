from __future__ import annotations

import math

import pytest
import torch

from polyloom.core.errors import UserError
from polyloom.generation.decode import Decoding, decode
from polyloom.generation.scoring import score_continuations

from .conftest import CAUSAL


@pytest.mark.parametrize("name", CAUSAL)
def test_scores_equal_those_of_decoding_whatever_the_batch(family, name):
    model = family(name)
    prompts = [[1, 2, 3], list(range(40)), [9], [7, 7]]
    drawn = decode(model, prompts, [Decoding(3 + i, temperature=1.0, seed=i, logprobs=True) for i in range(4)])
    continuations = [list(one.tokens) for one in drawn]
    for batch_size in (1, 3, 32):
        scores = score_continuations(model, prompts, continuations, batch_size=batch_size)
        for ours, one in zip(scores, drawn, strict=True):
            assert ours == pytest.approx(one.logprobs, abs=2e-4)


def test_one_token_continuations_sum_to_one(family):
    scores = score_continuations(family("llama"), [[5, 6]] * 260, [[token] for token in range(260)])
    assert math.fsum(math.exp(score) for [score] in scores) == pytest.approx(1, abs=1e-5)


def test_training_mode_comes_back_and_no_gradient_is_kept(family):
    model = family("gpt2")
    quiet = score_continuations(model, [[1, 2]], [[3, 4]])
    model.train()
    try:
        assert score_continuations(model, [[1, 2]], [[3, 4]]) == quiet
        assert model.training
        assert torch.is_grad_enabled()
    finally:
        model.train(False)


@pytest.mark.parametrize(("prompt", "continuation"), [([], [1]), ([1], []), ([1] * 100, [1] * 29)])
def test_bad_pairs_are_refused(family, prompt, continuation):
    with pytest.raises(UserError, match="pair 1"):
        score_continuations(family("llama"), [[1], prompt], [[1], continuation])


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoder_models_score_answers_as_they_decode_them(family, name):
    model = family(name)
    prompts = [[1, 2, 3], list(range(3, 40)), [9]]
    drawn = decode(model, prompts, [Decoding(3 + i, temperature=1.0, seed=i, logprobs=True) for i in range(3)])
    scores = score_continuations(model, prompts, [list(one.tokens) for one in drawn])
    for ours, one in zip(scores, drawn, strict=True):
        assert ours == pytest.approx(one.logprobs, abs=2e-4)
