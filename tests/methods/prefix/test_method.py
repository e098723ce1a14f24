"""Oracles of the mathematics: hand values, identities of decoding, equality with transformers' own generate."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerFast

from polyloom.core.errors import UserError
from polyloom.generation.decode import Decoding, decode
from polyloom.methods.prefix.method import (
    AGREEMENT_KS,
    PriorProcessor,
    agreement,
    answer_logits,
    compare_decisions,
    decision_space,
    edit_distance,
    first_divergence,
    gated_choice,
    generate_with_priors,
    rank_of,
    relative_performance,
)
from polyloom.methods.prefix.positions import position_means

P, Q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
LOGITS = st.lists(st.floats(-30, 30), min_size=7, max_size=7)


def test_hand_values_of_the_divergences() -> None:
    found = compare_decisions(P, Q)
    assert found.kl.item() == pytest.approx(0.51083, abs=1e-5)
    assert found.kl_reverse.item() == pytest.approx(0.36806, abs=1e-5)
    assert found.js.item() == pytest.approx(0.10175, abs=1e-5)
    assert found.cross_entropy.item() == pytest.approx(1.20397, abs=1e-5)
    assert found.entropy.item() == pytest.approx(0.69315, abs=1e-5)


@given(LOGITS, LOGITS, st.floats(-50, 50))
def test_divergences_hold_their_bounds_and_ignore_a_constant(a: list[float], b: list[float], shift: float) -> None:
    s, q = torch.tensor([a]), torch.tensor([b])
    found, back = compare_decisions(s, q), compare_decisions(q, s)
    assert found.kl.item() >= 0
    assert -1e-12 <= found.js.item() <= math.log(2) + 1e-9
    assert found.js.item() == pytest.approx(back.js.item(), abs=1e-9)
    assert found.kl.item() == pytest.approx(back.kl_reverse.item(), abs=1e-9)
    assert found.cross_entropy.item() == pytest.approx(found.entropy.item() + found.kl.item(), abs=1e-6)
    moved = compare_decisions(s.double() + shift, q.double())
    assert moved.logit_distance.item() == pytest.approx(found.logit_distance.item(), abs=1e-4)
    assert moved.kl.item() == pytest.approx(found.kl.item(), abs=1e-4)


def test_half_precision_never_makes_a_divergence_negative() -> None:
    s = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)).half() * 8
    found = compare_decisions(s, (s.float() + 1e-3).half())
    assert found.kl.min().item() >= 0
    assert not found.kl.isnan().any()


def test_agreement_grows_with_k_to_one() -> None:
    generator = torch.Generator().manual_seed(1)
    s, b = (torch.randn(40, 30, generator=generator) for _ in range(2))
    ranks = rank_of(b, s.argmax(-1))
    values = [agreement(ranks, k) for k in range(1, 31)]
    assert values == sorted(values)
    assert values[-1] == 1
    order = b.argsort(dim=-1, descending=True)
    assert ranks.tolist() == [order[i].tolist().index(int(s[i].argmax())) for i in range(40)]


def test_rank_breaks_ties_by_id_so_that_argmax_is_rank_zero() -> None:
    logits = torch.zeros(1, 5)
    assert rank_of(logits, logits.argmax(-1)).item() == 0
    assert rank_of(logits, torch.tensor([3])).item() == 3


def test_relative_performance() -> None:
    assert relative_performance(30.0, 30.0) == 100
    assert relative_performance(30.0, 0.0) is None


def test_a_model_against_itself(base: PreTrainedModel) -> None:
    prompts = [[1, 5, 9], [1, 8, 30, 31, 32]]
    answers = [one.tokens for one in decode(base, prompts, Decoding(6))]
    rows = decision_space(base, base, prompts, answers, 6)
    assert [len(row) for row in rows] == [len(answer) for answer in answers]
    for one in (value for row in rows for value in row):
        assert one["rank"] == 0
        assert one["kl"] == one["js"] == one["logit_distance"] == 0
    means = position_means(rows, 6)
    assert all(one[f"agreement_at_{k}"] == 1 for one in means for k in AGREEMENT_KS)


def test_decisions_are_those_of_one_row_at_a_time(base: PreTrainedModel, tuned: PreTrainedModel) -> None:
    prompts = [[1, 5, 9], [1, 8, 30, 31, 32, 40], [1, 77]]
    answers = [[4, 6, 7, 2], [50], [9, 9]]
    rows = decision_space(base, tuned, prompts, answers, 3)
    assert [len(row) for row in rows] == [3, 1, 2]
    for prompt, answer, row in zip(prompts, answers, rows, strict=True):
        for t, one in enumerate(row):
            whole = torch.tensor([[*prompt, *answer[:t]]])
            with torch.inference_mode():
                s, b = (model(input_ids=whole).logits[:, -1] for model in (tuned, base))
            found = compare_decisions(s, b)
            assert one["kl"] == pytest.approx(found.kl.item(), abs=1e-5)
            assert one["rank"] == found.rank.item()


def test_decisions_of_an_encoder_decoder(t5: PreTrainedModel) -> None:
    logits = answer_logits(t5, [[5, 6, 2], [7, 2]], [[9, 8, 7], [3]])
    assert [one.shape[0] for one in logits] == [3, 1]
    with torch.inference_mode():
        whole = t5(input_ids=torch.tensor([[5, 6, 2]]), decoder_input_ids=torch.tensor([[0, 9, 8]])).logits[0]
    torch.testing.assert_close(logits[0], whole, atol=1e-4, rtol=1e-4)


def test_models_of_two_kinds_are_refused(base: PreTrainedModel, t5: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="another family"):
        decision_space(base, t5, [[1]], [[2]], 1)


@pytest.fixture(params=["base", "t5"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    found: PreTrainedModel = request.getfixturevalue(request.param)
    return found


PROMPTS = [[1, 20, 21], [1, 40, 41, 42, 43], [1, 60], [1, 33, 34, 35]]
PRIORS = [(7,), (8, 9, 10), (), (11, 12)]


def test_append_and_constraint_give_the_same_tokens(
    model: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    found = generate_with_priors(model, byte_tokenizer, PROMPTS, PRIORS, Decoding(8))
    for prompt, prior, one in zip(PROMPTS, PRIORS, found, strict=True):
        assert one.all_tokens[: len(prior)] == prior
        for use_cache in (True, False):
            start = 1 if model.config.is_encoder_decoder else len(prompt)
            processor = LogitsProcessorList([PriorProcessor([prior], start)])
            ids = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                logits_processor=processor,
                max_new_tokens=8 + len(prior),
                do_sample=False,
                use_cache=use_cache,
                pad_token_id=0,
            )
            assert tuple(ids[0, start:].tolist()) == one.all_tokens


def test_a_batch_of_unequal_rows_is_its_rows_in_any_order(
    model: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    together = generate_with_priors(model, byte_tokenizer, PROMPTS, PRIORS, Decoding(8))
    alone = [
        generate_with_priors(model, byte_tokenizer, [a], [b], Decoding(8))[0]
        for a, b in zip(PROMPTS, PRIORS, strict=True)
    ]
    turned = generate_with_priors(model, byte_tokenizer, PROMPTS[::-1], PRIORS[::-1], Decoding(8))[::-1]
    assert together == alone == turned


def test_no_prior_is_plain_generation_and_a_whole_one_the_whole_answer(
    base: PreTrainedModel, tuned: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = decode(base, PROMPTS, Decoding(8), tokenizer=byte_tokenizer)
    found = generate_with_priors(base, byte_tokenizer, PROMPTS, [()] * 4, Decoding(8))
    assert [one.tokens for one in found] == [one.tokens for one in plain]
    answers = [(*one.tokens[:5], 2) for one in decode(tuned, PROMPTS, Decoding(8))]
    whole = generate_with_priors(base, byte_tokenizer, PROMPTS, answers, Decoding(8))
    assert [one.all_tokens for one in whole] == answers
    assert [one.tokens for one in whole] == [()] * 4


def test_the_tuned_model_keeps_its_own_answer_behind_its_own_prior(
    tuned: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    answers = [one.tokens for one in decode(tuned, PROMPTS, Decoding(8))]
    for k in range(1, 6):
        found = generate_with_priors(tuned, byte_tokenizer, PROMPTS, [a[:k] for a in answers], Decoding(8 - k))
        assert [one.all_tokens for one in found] == answers


def test_a_gate_of_everything_changes_nothing_and_of_one_token_forces_it() -> None:
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(2))
    best = logits.argmax(-1).tolist()
    assert gated_choice(logits, [list(range(12))] * 3)[0] == best
    assert gated_choice(logits, [[]] * 3) == (best, [1.0] * 3)
    assert gated_choice(logits, [[4], [5], [6]])[0] == [4, 5, 6]


def test_sequences_are_compared() -> None:
    assert first_divergence([1, 2, 3], [1, 2, 4, 5]) == 2
    assert first_divergence([1, 2], [1, 2, 3]) == 2
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance([], [1, 2]) == 2
