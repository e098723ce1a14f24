from __future__ import annotations

import numpy
import pytest
import torch
from scipy import stats
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from polyloom.core.errors import PolyloomError, UserError
from polyloom.generation.decode import Decoding, decode
from polyloom.generation.sampling import kept_distribution
from polyloom.generation.text import TextStream

from .conftest import BOS, CAUSAL, ENCODER_DECODER, EOS, PAD


def random_prompts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


def generate(model, prompt, num_tokens, **options):
    """The public library's own greedy decoding of one prompt, new tokens only."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=PAD,
        **options,
    )[0].tolist()
    return out[1:] if model.config.is_encoder_decoder else out[len(prompt) :]


@pytest.mark.parametrize("name", CAUSAL + ENCODER_DECODER)
def test_greedy_equals_generate_token_for_token(family, name):
    model = family(name)
    prompts = random_prompts([1, 2, 7, 19, 40])
    ours = decode(model, prompts, Decoding(max_new_tokens=24))
    theirs = [generate(model, prompt, 24) for prompt in prompts]
    assert [list(one.tokens) for one in ours] == theirs
    assert len({tuple(one) for one in theirs}) > 1, "the models must answer differently to different prompts"


@pytest.mark.parametrize("name", CAUSAL + ENCODER_DECODER)
def test_padded_batch_equals_single_rows(family, name):
    model = family(name)
    prompts = random_prompts([3, 31, 1, 12, 12, 5], seed=1)
    settings = [
        Decoding(
            max_new_tokens=5 + 4 * i, temperature=0.0 if i % 2 else 0.9, top_k=20, top_p=0.95, seed=i, logprobs=True
        )
        for i in range(6)
    ]
    together = decode(model, prompts, settings)
    alone = [decode(model, [prompt], one)[0] for prompt, one in zip(prompts, settings, strict=True)]
    in_threes = decode(model, prompts, settings, batch_size=3)
    for a, b, c in zip(together, alone, in_threes, strict=True):
        assert a.tokens == b.tokens == c.tokens
        assert a.finish_reason == b.finish_reason
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_logprobs_equal_a_fresh_forward_pass(family, name):
    model = family(name)
    prompt = random_prompts([9], seed=2)[0]
    [one] = decode(model, [prompt], Decoding(max_new_tokens=10, temperature=0.7, top_k=5, seed=3, logprobs=True))
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *one.tokens]])).logits[0].log_softmax(-1)
    expected = [logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(one.tokens)]
    assert one.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_several_end_tokens_each_end_a_row_and_are_its_last_token(family, name):
    model = family(name)
    prompts = random_prompts([4, 9, 2], seed=5)
    free = decode(model, prompts, Decoding(max_new_tokens=12), eos_tokens=())
    assert all(one.finish_reason == "length" and len(one.tokens) == 12 for one in free)
    ends = [free[0].tokens[3], free[1].tokens[6]]
    ours = decode(model, prompts, Decoding(max_new_tokens=12), eos_tokens=ends)
    theirs = [generate(model, prompt, 12, eos_token_id=ends) for prompt in prompts]
    assert [list(one.tokens) for one in ours] == theirs
    assert ours[0].finish_reason == "eos"
    assert ours[0].tokens[-1] in ends


@pytest.mark.parametrize("name", ENCODER_DECODER)
def test_decoder_prefix_equals_generate_with_the_same_decoder_input(family, name):
    model = family(name)
    prompts, prefixes = random_prompts([6, 11, 6], seed=6), [[], [5, 9], [7]]
    ours = decode(model, prompts, Decoding(max_new_tokens=9), decoder_prefixes=prefixes)
    for prompt, prefix, one in zip(prompts, prefixes, ours, strict=True):
        start = torch.tensor([[model.config.decoder_start_token_id, *prefix]])
        expected = generate(model, prompt, 9, decoder_input_ids=start)[len(prefix) :]
        assert list(one.tokens) == expected


def test_sampling_repeats_by_seed_and_does_not_depend_on_the_budget(family):
    model = family("llama")
    prompt = random_prompts([5])[0]
    draws = [decode(model, [prompt], Decoding(80, temperature=1.0, seed=s), eos_tokens=())[0].tokens for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    short = decode(model, [prompt], Decoding(7, temperature=1.0, seed=1), eos_tokens=())[0].tokens
    assert short == draws[0][:7]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.3, 12, 1.0), (1.0, 0, 0.7), (0.9, 30, 0.8)]
)
def test_sampled_tokens_follow_the_models_distribution(family, temperature, top_k, top_p):
    """The oracle is the public library's own chain of warpers; the counts are compared by a chi-square test."""
    model, num_draws = family("llama"), 4000
    prompt = random_prompts([6], seed=8)[0]
    settings = [Decoding(1, temperature, top_k, top_p, seed) for seed in range(num_draws)]
    drawn = decode(model, [prompt] * num_draws, settings, eos_tokens=(), batch_size=1000)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt])).logits[:, -1].float()
    chain = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        chain.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chain.append(TopPLogitsWarper(top_p))
    expected = chain(torch.tensor([prompt]), logits).softmax(-1)[0].double().numpy() * num_draws
    counts = numpy.bincount([one.tokens[0] for one in drawn], minlength=expected.size)
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    observed = [*counts[common], counts[~common].sum()]
    wanted = [*expected[common], expected[~common].sum()]
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    wanted = numpy.array(wanted) * sum(observed) / sum(wanted)
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


def test_kept_distribution_by_hand():
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.15, 0.25]]))

    def kept(temperature, top_k, top_p):
        arguments = torch.tensor([temperature]), torch.tensor([top_k]), torch.tensor([top_p])
        probabilities, tokens = kept_distribution(logits, *arguments)
        return {t: p for t, p in zip(tokens[0].tolist(), probabilities[0].tolist(), strict=True) if p > 0}

    assert kept(1.0, 0, 1.0) == pytest.approx({1: 0.5, 3: 0.25, 2: 0.15, 0: 0.1})
    assert kept(1.0, 2, 1.0) == pytest.approx({1: 2 / 3, 3: 1 / 3})
    assert kept(1.0, 0, 0.6) == pytest.approx({1: 0.5, 3: 0.25})
    assert kept(1.0, 0, 1e-9) == pytest.approx({1: 0.5})
    assert kept(0.5, 2, 1.0) == pytest.approx({1: 0.8, 3: 0.2})
    assert kept(1e-30, 0, 1.0) == pytest.approx({1: 1.0})


def test_stop_text_cuts_and_streaming_never_shows_a_part_of_it(family, byte_tokenizer):
    model = family("llama")
    prompts = random_prompts([3, 8], seed=9)
    free = decode(model, prompts, Decoding(max_new_tokens=40), tokenizer=byte_tokenizer, eos_tokens=())
    stop = free[0].text[10:13]
    pieces: dict[int, str] = {0: "", 1: ""}

    def take(row, piece):
        pieces[row] += piece

    ours = decode(
        model, prompts, Decoding(40, stop=(stop, "never there")), tokenizer=byte_tokenizer, eos_tokens=(), on_text=take
    )
    cut = free[0].text.find(stop)
    assert ours[0].text == free[0].text[:cut]
    assert ours[0].finish_reason == "stop"
    assert ours[0].tokens == free[0].tokens[: len(ours[0].tokens)]
    assert [pieces[0], pieces[1]] == [ours[0].text, ours[1].text]


def test_text_stream_gives_whole_characters_and_holds_back_possible_stops(byte_tokenizer):
    stream = TextStream(byte_tokenizer, stop=("END",))
    pieces = [stream.push(token) for token in byte_tokenizer.encode("é EN ENDx", add_special_tokens=False)]
    assert pieces[0] == ""
    assert pieces[1] == "é"
    assert "".join(pieces) == "é EN "
    assert stream.stopped
    assert stream.text == "é EN "
    cut_character = TextStream(byte_tokenizer)
    assert cut_character.push(byte_tokenizer.encode("é", add_special_tokens=False)[0]) == ""
    assert cut_character.finish() == "\ufffd"


def test_end_token_is_in_tokens_and_not_in_text(family, byte_tokenizer):
    model = family("llama")
    prompt = random_prompts([5], seed=3)[0]
    free = decode(model, [prompt], Decoding(8), tokenizer=byte_tokenizer, eos_tokens=())[0]
    [one] = decode(model, [prompt], Decoding(0), tokenizer=byte_tokenizer)
    assert (one.tokens, one.text, one.finish_reason) == ((), "", "length")
    assert len(free.text.encode("utf-8", "replace")) > 0
    assert byte_tokenizer.decode([BOS, EOS], skip_special_tokens=True) == ""


def test_a_model_in_training_mode_decodes_without_dropout_and_stays_in_training_mode(family):
    model = family("gpt2")
    prompt = random_prompts([5])
    quiet = decode(model, prompt, Decoding(10))
    model.train()
    try:
        assert decode(model, prompt, Decoding(10)) == quiet
        assert model.training
    finally:
        model.train(False)


def test_what_before_step_raises_ends_the_decoding(family):
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("stop")

    with pytest.raises(KeyError):
        decode(family("llama"), random_prompts([4]), Decoding(50), eos_tokens=(), before_step=check)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("prompts", "options", "says"),
    [
        ([[1], []], {}, "prompt 1: is empty"),
        ([[1, 260]], {}, "outside 0..259"),
        ([[-1]], {}, "outside"),
        ([[1] * 100], {"settings": Decoding(30)}, "100 tokens and 30 new ones exceed the model's 128 positions"),
        ([[1]], {"settings": Decoding(3, stop=("x",))}, "need a tokenizer"),
        ([[1]], {"settings": [Decoding()] * 2}, "do not match"),
        ([[1]], {"decoder_prefixes": [[3]]}, "encoder-decoder"),
        ([[1]], {"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_input_is_refused_in_one_line(family, prompts, options, says):
    with pytest.raises(UserError, match=says) as caught:
        decode(family("llama"), prompts, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_k": -1},
        {"max_new_tokens": -1},
        {"stop": ("",)},
    ],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(UserError):
        Decoding(**options)


def test_the_last_position_is_usable(family):
    [one] = decode(family("gpt2"), [[1] * 100], Decoding(29), eos_tokens=())
    assert len(one.tokens) == 29


def test_no_prompts_give_no_texts(family):
    assert decode(family("llama"), []) == []


def test_nan_weights_are_reported(family):
    import copy

    model = copy.deepcopy(family("llama"))
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(PolyloomError, match="not finite"):
        decode(model, [[1, 2]], Decoding(3))
