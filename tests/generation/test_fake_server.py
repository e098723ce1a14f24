from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request

import openai
import pytest

from polyloom.core.errors import UserError
from polyloom.generation import FakeServer, ServerChat, ask, complete_all
from polyloom.generation.fake_server import FAULTS, body_hash


def post(server, text, **fields):
    body = {"model": "m", "messages": [{"role": "user", "content": text}]} | fields
    request = urllib.request.Request(
        f"{server.base_url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.loads(response.read())


def test_replies_may_be_a_text_a_list_or_a_function():
    def content(server, text="x"):
        return post(server, text)["choices"][0]["message"]["content"]

    with FakeServer("fixed") as server:
        assert content(server) == "fixed"
    with FakeServer(["a", "b"]) as server:
        assert [content(server) for _ in range(3)] == ["a", "b", "a"]
    with FakeServer(lambda body: body["messages"][0]["content"].upper()) as server:
        assert content(server, "abc") == "ABC"


def test_it_counts():
    with FakeServer("one two") as server:
        body = post(server, "a b c")
        assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        post(server, "a b c")
        assert (server.num_requests, server.max_in_flight) == (2, 1)
        assert server.answered == {body_hash(server.bodies[0]): 2}
        with urllib.request.urlopen(f"{server.base_url}/models", timeout=10) as response:
            assert json.loads(response.read())["data"][0]["id"] == "any"


def test_faults_follow_the_request_and_not_the_order_of_arrival():
    def faults(order):
        with FakeServer(rates={"429": 0.3, "500": 0.3}, seed=4) as server:
            seen = {}
            for i in order:
                try:
                    post(server, f"q{i}")
                    seen.setdefault(i, []).append(200)
                except urllib.error.HTTPError as error:
                    error.close()
                    seen.setdefault(i, []).append(error.code)
            return seen

    forward = faults([*range(12), *range(12)])
    assert forward == faults([*reversed(range(12)), *reversed(range(12))])
    codes = [code for both in forward.values() for code in both]
    assert {200, 429, 500} == set(codes)
    assert any(first != second for first, second in forward.values()), "a retry has its own luck"


def test_a_schedule_goes_by_arrival():
    with FakeServer(schedule=[None, "429", "500"], retry_after_seconds=2.5) as server:
        post(server, "x")
        with pytest.raises(urllib.error.HTTPError) as busy:
            post(server, "x")
        assert (busy.value.code, busy.value.headers["Retry-After"]) == (429, "2.5")
        with pytest.raises(urllib.error.HTTPError) as broken:
            post(server, "x")
        assert broken.value.code == 500
        busy.value.close()
        broken.value.close()
        post(server, "x")
        assert server.faults == {"429": 1, "500": 1}


def test_streams_hold_the_same_words_and_may_be_cut():
    async def main():
        async with (
            FakeServer("one two  three", schedule=[None, "cut"]) as server,
            openai.AsyncOpenAI(
                base_url=server.base_url, api_key="none", max_retries=0, http_client=openai.DefaultAioHttpClient()
            ) as client,
        ):
            texts = []
            for _ in range(2):
                pieces = []
                texts.append(pieces)
                try:
                    stream = await client.chat.completions.create(
                        model="m", messages=[{"role": "user", "content": "x"}], stream=True
                    )
                    async with stream:
                        async for chunk in stream:
                            pieces.append(chunk.choices[0].delta.content or "")
                except Exception as error:
                    texts.append(type(error).__name__)
            assert "".join(texts[0]) == "one two  three"
            assert "".join(texts[1]) == "one two"
            assert len(texts) == 3, "the cut must be noticed"
            assert sum(server.answered.values()) == 1

    asyncio.run(main())


def test_several_servers_at_once():
    with FakeServer("a") as one, FakeServer("b") as two:
        assert one.base_url != two.base_url
        replies = [complete_all(ServerChat(server.base_url, "m"), [ask("x")])[0].text for server in (one, two)]
    assert replies == ["a", "b"]


def test_it_listens_on_the_loopback_interface_alone():
    with FakeServer() as server:
        assert server.base_url.startswith("http://127.0.0.1:")


def test_every_fault_can_be_asked_for_and_no_other():
    for fault in FAULTS:
        FakeServer(rates={fault: 1.0})
    with pytest.raises(UserError, match="garbage"):
        FakeServer(rates={"garbge": 0.1})
    with pytest.raises(UserError, match="fault"):
        FakeServer(schedule=["fire"])
    with pytest.raises(UserError, match="rates"):
        FakeServer(rates={"429": 0.7, "500": 0.7})
