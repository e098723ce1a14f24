from __future__ import annotations

import asyncio
import copy
import time

import pytest
import torch

from polyloom.core.errors import PolyloomError, UserError
from polyloom.generation import LocalChat, ServerChat, ask, complete_all, connect
from polyloom.generation.chat import ChatRequest, Message
from polyloom.generation.decode import Decoding, decode
from polyloom.generation.local import plain_text

from .conftest import BOS, EOS

TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture
def tokenizer(byte_tokenizer):
    return copy.deepcopy(byte_tokenizer)


@pytest.fixture
def templated(tokenizer):
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def questions(count, **settings):
    return [ask("why " * (1 + i % 5) + str(i), max_tokens=5 + i, **settings) for i in range(count)]


def test_together_equals_one_by_one(family, templated):
    for settings in ({}, {"temperature": 1.0, "top_p": 0.9, "seed": 5}):
        together = complete_all(LocalChat(family("llama"), templated, batch_size=4), questions(10, **settings))
        alone = [complete_all(LocalChat(family("llama"), templated), [one])[0] for one in questions(10, **settings)]
        assert together == alone
        assert len({reply.text for reply in together}) > 3


def test_requests_of_separate_tasks_are_decoded_together(family, templated, monkeypatch):
    sizes = []

    def counted(model, prompts, *args, **kwargs):
        sizes.append(len(prompts))
        return decode(model, prompts, *args, **kwargs)

    monkeypatch.setattr("polyloom.generation.local.decode", counted)

    async def agent(model, name):
        texts = []
        for month in range(3):
            texts.append((await model.complete(ask(f"{name} {month}", max_tokens=4))).text)
        return texts

    async def main():
        async with LocalChat(family("llama"), templated, batch_size=8) as model:
            return await asyncio.gather(*(agent(model, name) for name in "abcdefgh"))

    assert len(asyncio.run(main())) == 8
    assert sum(sizes) == 24
    assert max(sizes) == 8
    assert len(sizes) <= 8


def test_the_reply_is_the_models_own_continuation_of_the_template(family, templated):
    request = ask("hi", system=" be brief ", max_tokens=12)
    [reply] = complete_all(LocalChat(family("llama"), templated, name="m"), [request])
    text = "[system] be brief\n[user] hi\n[assistant] "
    prompt = [BOS, *templated.encode(text, add_special_tokens=False)]
    [expected] = decode(family("llama"), [prompt], Decoding(12), tokenizer=templated)
    assert reply.text == expected.text
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(prompt), len(expected.tokens))
    assert reply.model == "m"


def test_a_prefilled_turn_is_kept_to_the_letter(family, templated):
    model = LocalChat(family("llama"), templated)
    open_tokens, _ = model.prompt_tokens(ask("hi"))
    tokens, prefix = model.prompt_tokens(ask("hi", prefill="  Sure, <eos> "))
    assert prefix == []
    assert tokens[: len(open_tokens)] == open_tokens
    assert EOS not in tokens, "text that looks like a special token stays text"
    assert templated.decode(tokens[len(open_tokens) :]) == "  Sure, <eos> "


def test_prefill_continues_a_greedy_reply(family, templated):
    """Handing the model the beginning of its own reply must give the rest of that reply."""
    model = copy.deepcopy(family("llama"))
    letters = {token for text, token in templated.get_vocab().items() if len(text) == 1 and text.isascii()}
    with torch.no_grad():
        model.lm_head.weight[[token for token in range(260) if token not in letters]] = 0
    chat = LocalChat(model, templated)
    for i in range(8):
        [full] = complete_all(chat, [ask(f"q{i}", max_tokens=20)])
        assert len(full.text) == 20
        [rest] = complete_all(chat, [ask(f"q{i}", prefill=full.text[:8], max_tokens=12)])
        assert full.text[:8] + rest.text == full.text


def test_without_a_template_the_plain_form_is_used(family, tokenizer):
    model = LocalChat(family("gpt2"), tokenizer)
    request = ChatRequest(
        (Message("system", "S"), Message("user", "U"), Message("assistant", "A"), Message("user", "V"))
    )
    tokens, _ = model.prompt_tokens(request)
    assert tokenizer.decode(tokens) == "System: S\nUser: U\nAssistant: A\nUser: V\nAssistant:"
    assert plain_text((Message("user", "U"), Message("assistant", "It is"))) == "User: U\nAssistant: It is"


def test_the_plain_form_ends_where_the_model_speaks_for_the_user(family, tokenizer, monkeypatch):
    from polyloom.generation import local

    seen = []

    def fake(model, prompts, settings, **options):
        seen.extend(settings)
        return decode(model, prompts, settings, **options)

    monkeypatch.setattr(local, "decode", fake)
    complete_all(LocalChat(family("gpt2"), tokenizer), [ask("hi", stop=("X",), max_tokens=2)])
    assert seen[0].stop == ("X", "\nUser:", "\nSystem:", "\nAssistant:")


def test_an_encoder_decoder_model_gets_the_prefill_in_its_decoder(family, tokenizer):
    chat = LocalChat(family("t5"), tokenizer)
    prompt, prefix = chat.prompt_tokens(ask("u", system="s", prefill="ab"))
    assert tokenizer.decode(prompt) == "s\nu"
    assert tokenizer.decode(prefix) == "ab"
    [reply] = complete_all(chat, [ask("u", system="s", prefill="ab", max_tokens=6)])
    [expected] = decode(family("t5"), [prompt], Decoding(6), tokenizer=tokenizer, decoder_prefixes=[prefix])
    assert reply.text == expected.text


def test_draws_without_a_seed_differ_and_repeat_with_the_program(family, templated):
    request = ask("hi", temperature=1.0, max_tokens=12)
    first = [reply.text for reply in complete_all(LocalChat(family("llama"), templated), [request] * 4)]
    again = [reply.text for reply in complete_all(LocalChat(family("llama"), templated), [request] * 4)]
    other = [reply.text for reply in complete_all(LocalChat(family("llama"), templated, seed=1), [request] * 4)]
    assert len(set(first)) == 4
    assert first == again != other


def test_the_budget_shrinks_to_the_models_positions_and_too_long_a_prompt_is_rejected(family, templated):
    chat = LocalChat(family("gpt2"), templated)
    short, long = complete_all(chat, [ask("x" * 60, max_tokens=500), ask("x" * 200)])
    assert short.ok
    assert short.usage.prompt_tokens + short.usage.completion_tokens <= 129
    assert long.outcome == "rejected"
    assert "128 positions" in long.error
    with pytest.raises(PolyloomError, match="rejected"):
        long.require()


def test_an_end_at_once_is_an_empty_reply(family, templated):
    model = copy.deepcopy(family("llama"))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.generation_config.eos_token_id = 0
    [reply] = complete_all(LocalChat(model, templated), [ask("hi")])
    assert (reply.outcome, reply.text, reply.usage.completion_tokens) == ("empty", "", 1)


def test_faults_of_the_model_reach_every_caller(family, templated):
    model = copy.deepcopy(family("llama"))
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(PolyloomError, match="not finite"):
        complete_all(LocalChat(model, templated), questions(3))


def test_a_template_that_refuses_is_a_user_error(family, tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system turn here') }}"
    with pytest.raises(UserError, match="no system turn here"):
        complete_all(LocalChat(family("llama"), tokenizer), [ask("hi")])


def test_cancelling_ends_the_decoding(family, templated):
    async def main():
        async with LocalChat(family("bloom"), templated) as model:
            task = asyncio.create_task(model.complete(ask("hi", max_tokens=100_000)))
            await asyncio.sleep(0.1)
            assert not task.done()
            task.cancel()
            start = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await task
            await model.__aexit__(None, None, None)
            assert time.monotonic() - start < 5
            assert (await model.complete(ask("hi", max_tokens=2))).usage.completion_tokens <= 2

    templated.eos_token_id = None
    model = family("bloom")
    before, model.generation_config.eos_token_id = model.generation_config.eos_token_id, []
    try:
        asyncio.run(main())
    finally:
        model.generation_config.eos_token_id = before


def test_from_inside_a_running_loop(family, templated):
    async def cell():
        return complete_all(LocalChat(family("llama"), templated), [ask("hi", max_tokens=3)])

    assert len(asyncio.run(cell())) == 1


def test_connect(family, templated, tmp_path):
    server = connect("http://127.0.0.1:8000/v1#qwen/q3", cache=tmp_path / "c.sqlite")
    assert isinstance(server, ServerChat)
    assert (server.base_url, server.name) == ("http://127.0.0.1:8000/v1", "qwen/q3")
    family("llama").save_pretrained(tmp_path / "m")
    templated.save_pretrained(tmp_path / "m")
    local = connect(str(tmp_path / "m"))
    assert isinstance(local, LocalChat)
    request = ask("hi", max_tokens=9)
    assert (
        complete_all(local, [request])[0].text == complete_all(LocalChat(family("llama"), templated), [request])[0].text
    )
    for bad in ("", "ftp://x", "http://host/v1", str(tmp_path / "nothing")):
        with pytest.raises(UserError):
            connect(bad)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": ()},
        {"messages": (Message("user", ""),)},
        {"max_tokens": 0},
        {"temperature": -1},
        {"top_p": 0},
        {"top_k": -1},
        {"stop": ("",)},
    ],
)
def test_bad_requests_are_refused(fields):
    with pytest.raises(UserError):
        ChatRequest(**({"messages": (Message("user", "x"),)} | fields))
    with pytest.raises(UserError, match="assistant"):
        Message("asistant", "x")
