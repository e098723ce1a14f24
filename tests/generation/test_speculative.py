"""Self-speculation against the library's greedy text; the cache; the sampling rule; batches; refusals."""

from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

from polyloom.core.errors import UserError
from polyloom.generation.fused_range import FusedRange
from polyloom.generation.judge import Judge
from polyloom.generation.layer_range import ModelRange, open_range
from polyloom.generation.ragged import generate_batch
from polyloom.generation.sampling import Decoding
from polyloom.generation.speculative import (
    PLAIN,
    Counts,
    Fixed,
    Lookup,
    Plan,
    check_request,
    generate,
    plain_tokens,
    speculate,
)
from polyloom.models.exits import check_exit, exit_parts

VOCABULARY = 61
LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**LLAMA, "num_key_value_heads": 2, "attention_bias": True}),
    "granite": ("Granite", {**LLAMA, "logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}),
    "gpt2": ("GPT2", {**GPT2, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1}),
    "neox": ("GPTNeoX", {**LLAMA, "max_position_embeddings": 64}),
    "qwen3": ("Qwen3", {**LLAMA, "num_key_value_heads": 2, "head_dim": 8}),
    "gemma2": ("Gemma2", {**LLAMA, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 64}),
    "phi": ("Phi", LLAMA),
    "mistral": ("Mistral", {**LLAMA, "num_key_value_heads": 2, "sliding_window": 64}),
}
CLASSES = {"GPT2": "GPT2LMHeadModel"}


def build(kind: str, **changes: Any) -> PreTrainedModel:
    name, shape = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**shape, **changes})
    model: PreTrainedModel = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config).eval()
    return model


def library_text(model: PreTrainedModel, prompt: list[int], budget: int, ends: list[int] | None = None) -> list[int]:
    tokens = torch.tensor([prompt])
    output = model.generate(  # type: ignore[operator]
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=budget,
        pad_token_id=0,
        eos_token_id=ends,
        bos_token_id=0,
    )
    text: list[int] = output[0, len(prompt) :].tolist()
    return text


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("kind", KINDS)
def test_every_exit_and_draft_length_gives_the_librarys_greedy_text(kind: str) -> None:
    model = build(kind)
    runner = open_range(model, 48)
    assert isinstance(runner, FusedRange if kind in ("llama", "granite") else ModelRange)
    for prompt in prompts(1, 5):
        for budget in (1, 2, 12):
            expected = library_text(model, prompt, budget)
            assert list(plain_tokens(runner, prompt, budget)) == expected
            for plan in [
                PLAIN,
                *(Plan(e, g) for e in (1, 2) for g in (1, 3, 8)),
                Plan(1, 2, 0.3),
                Plan(1, 2, lookup=1),
            ]:
                counts = Counts()
                rounds = list(speculate(runner, prompt, Decoding(budget), Fixed(plan), counts=counts))
                assert [token for tokens in rounds for token in tokens] == expected
                assert counts.emitted == len(expected) - 1
                assert counts.accepted <= counts.drafted


def test_text_ends_at_the_earliest_of_several_end_tokens() -> None:
    model = build("llama")
    runner = open_range(model, 48)
    (prompt,) = prompts(4)
    text = library_text(model, prompt, 20)
    ends = frozenset({text[6], text[9]})
    expected = text[: min(text.index(end) for end in ends) + 1]
    for plan in (PLAIN, Plan(1, 1), Plan(2, 5), Plan(2, 17)):
        result = generate(runner, prompt, Decoding(20), Fixed(plan), ends=ends)
        assert (result.tokens, result.finish_reason) == (expected, "eos")


def test_cache_equals_a_fresh_prefill_after_rejected_drafts() -> None:
    runner = open_range(build("llama"), 48)
    assert isinstance(runner, FusedRange)
    (prompt,) = prompts(5)
    text = [*prompt]
    for tokens in speculate(runner, prompt, Decoding(20), Fixed(Plan(1, 4))):
        text += tokens
    kept = runner.cache[:, :, : len(text) - 1].clone()
    place = runner.place(torch.tensor([text[:-1]]), 0)
    with torch.inference_mode():
        runner.run(runner.embed(place), place, 0, runner.num_layers)
    assert torch.allclose(kept, runner.cache[:, :, : len(text) - 1], atol=1e-5)


def test_late_layers_that_add_nothing_are_always_agreed_with() -> None:
    model: Any = build("llama")
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.self_attn.o_proj.bias.zero_()
            layer.mlp.down_proj.weight.zero_()
    runner = open_range(model, 48)
    result = generate(runner, prompts(4)[0], Decoding(17), Fixed(Plan(1, 3)))
    assert result.counts.acceptance == 1.0
    assert result.counts.tokens_per_round == 4.0


@pytest.mark.parametrize("kind", ["llama", "granite", "gpt2"])
@pytest.mark.parametrize("plan", [PLAIN, Plan(1, 3), Plan(2, 8)])
def test_a_batch_of_four_equals_four_batches_of_one(kind: str, plan: Plan) -> None:
    model = build(kind)
    runner = open_range(model, 48)
    texts = prompts(2, 9, 5, 12)
    alone = [library_text(model, prompt, 16) for prompt in texts]
    ends = frozenset({alone[1][5]})
    expected = [text[: text.index(min(ends)) + 1] if min(ends) in text else text for text in alone]
    results = generate_batch(runner, texts, Decoding(16), plan, ends=ends)
    assert [result.tokens for result in results] == expected
    assert results[1].finish_reason == "eos"


def test_processors_see_the_whole_text_before_each_position() -> None:
    model = build("llama")
    runner = open_range(model, 64)
    (prompt,) = prompts(3)
    tokens = torch.tensor([prompt])
    expected = model.generate(  # type: ignore[operator]
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=30,
        pad_token_id=0,
        eos_token_id=None,
        no_repeat_ngram_size=1,
    )[0, 3:].tolist()
    processors = [NoRepeatNGramLogitsProcessor(1)]
    for plan in (PLAIN, Plan(1, 3), Plan(2, 6)):
        result = generate(runner, prompt, Decoding(30), Fixed(plan), processors=processors)
        assert result.tokens == expected


def test_the_rule_accepts_and_corrects_by_hand_values() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
    judge = Judge(Decoding(1, 1.0))
    counts, accepted = Counter[int](), Counter[int]()
    drawn = Counter[int]()
    logits = torch.stack([p.log(), p.log()])
    for _ in range(6000):
        token = judge.draw(q.double())
        emitted, num_accepted = judge.verify(logits, [token], [q.double()], [0])
        drawn[token] += 1
        accepted[token] += num_accepted
        counts[emitted[0]] += 1
        assert num_accepted or emitted == [0]
    for token, share in enumerate((1.0, 0.6, 2 / 3)):
        assert accepted[token] / drawn[token] == pytest.approx(share, abs=0.04)
    for token, share in enumerate(p.tolist()):
        assert counts[token] / 6000 == pytest.approx(share, abs=0.025)


def test_sampling_repeats_with_its_seed() -> None:
    runner = open_range(build("llama"), 48)
    (prompt,) = prompts(4)

    def text(seed: int) -> list[int]:
        return generate(runner, prompt, Decoding(20, 1.0, seed=seed), Fixed(Plan(1, 3))).tokens

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_lookup_finds_the_latest_earlier_place() -> None:
    text = [1, 2, 3, 1, 2, 4, 1, 2]
    lookup = Lookup(text)
    assert lookup.find(2, 3) == [4, 1, 2]
    text += [9]
    assert lookup.find(2, 3) == []


def test_requests_that_cannot_be_decoded_are_refused_with_numbers() -> None:
    with pytest.raises(UserError, match="empty"):
        check_request([], Decoding(5), 10, 10)
    with pytest.raises(UserError, match=r"outside 0\.\.9"):
        check_request([10], Decoding(5), 10, 10)
    with pytest.raises(UserError, match="7 tokens and 5 new ones exceed the 10 positions"):
        check_request([1] * 7, Decoding(5), 10, 10)
    with pytest.raises(UserError, match="3 layers, exits are 1 to 2"):
        check_exit(3, 3)
    with pytest.raises(UserError, match="needs an exit"):
        Plan(0, 3)
    with pytest.raises(UserError, match="decoded greedily"):
        generate_batch(open_range(build("llama"), 48), [[1]], Decoding(4, 1.0), PLAIN)


def test_windows_recurrence_and_missing_norms_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"window \(8\)"):
        open_range(build("mistral", sliding_window=8), 48)
    mamba = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(UserError, match="rolled back"):
        open_range(transformers.MambaForCausalLM(mamba), 48)
    bare: Any = build("llama")
    norm = bare.model.norm
    del bare.model.norm
    bare.model.other = norm
    with pytest.raises(UserError, match="no final norm"):
        exit_parts(bare)


def test_parts_that_do_not_give_the_models_logits_are_refused() -> None:
    model: Any = build("phi")
    model.lm_head.register_forward_hook(lambda module, inputs, output: output)
    forward = model.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = changed
    with pytest.raises(UserError, match="largest difference"):
        exit_parts(model)
