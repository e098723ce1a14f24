from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from polyloom.core.errors import MissingExtra, PolyloomError, UserError
from polyloom.generation import FakeServer, ServerChat, ask, complete_all
from polyloom.generation.chat import ChatRequest, Message
from polyloom.generation.server import read_completion, retry_after_seconds

KINDS = ("429", "500", "cut", "empty_body", "empty_text", "null_text", "garbage")
FAULTY = dict.fromkeys(KINDS, 0.3 / len(KINDS))


def echo(body):
    return f"you said {body['messages'][-1]['content']}"


def chat(server, **options):
    options = {"backoff_seconds": 0.001, "max_wait_seconds": 0.05} | options
    return ServerChat(server.base_url, "fake", **options)


def questions(count):
    return [ask(f"question {i}") for i in range(count)]


def answers(count):
    return [f"you said question {i}" for i in range(count)]


def test_64_requests_with_30_percent_faults_are_all_answered_and_none_is_paid_twice(tmp_path):
    assert sum(FAULTY.values()) == pytest.approx(0.3)
    with FakeServer(echo, rates=FAULTY, seed=3) as server:
        options = {"cache": tmp_path / "replies.sqlite", "max_retries": 8}
        advanced = []
        replies = complete_all(chat(server, **options), questions(64), progress=advanced.append)
        assert [reply.text for reply in replies] == answers(64)
        assert all(reply.outcome == "complete" and not reply.cached for reply in replies)
        assert advanced == [1] * 64
        assert len(server.faults) == len(FAULTY), "every kind of fault must have happened"
        assert server.num_requests == sum(reply.num_attempts for reply in replies) > 80
        assert sorted(server.answered.values()) == [1] * 64
        num_before = server.num_requests
        again = chat(server, **options)
        replies = complete_all(again, questions(64))
        assert [reply.text for reply in replies] == answers(64)
        assert all(reply.cached and reply.num_attempts == 0 for reply in replies)
        assert server.num_requests == num_before
        assert (again.account.num_cached, again.account.num_sent, again.account.prompt_tokens) == (64, 0, 0)


CHILD = """
import sys
from pathlib import Path
from polyloom.generation import ServerChat, ask, complete_all
model = ServerChat(sys.argv[1], "fake", cache=Path(sys.argv[2]), max_in_flight=2)
complete_all(model, [ask(f"question {i}") for i in range(40)])
"""


def test_a_killed_process_has_kept_its_replies(tmp_path):
    path = tmp_path / "replies.sqlite"
    with FakeServer(echo, latency_seconds=0.05) as server:
        child = subprocess.Popen([sys.executable, "-c", CHILD, server.base_url, str(path)])
        deadline = time.monotonic() + 60
        while sum(server.answered.values()) < 10 and time.monotonic() < deadline:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        num_answered = sum(server.answered.values())
        assert 10 <= num_answered < 40
        model = chat(server, cache=path)
        replies = complete_all(model, questions(40))
        assert [reply.text for reply in replies] == answers(40)
        # What was in flight at the kill (2 at most) is lost, nothing else.
        assert model.account.num_cached >= num_answered - 2
        assert server.num_requests <= 40 + 2


def test_two_processes_may_share_the_cache(tmp_path):
    path = tmp_path / "replies.sqlite"
    with FakeServer(echo, latency_seconds=0.01) as server:
        children = [subprocess.Popen([sys.executable, "-c", CHILD, server.base_url, str(path)]) for _ in range(2)]
        assert [child.wait(timeout=120) for child in children] == [0, 0]
        replies = complete_all(chat(server, cache=path), questions(40))
    assert all(reply.cached for reply in replies)


@pytest.mark.parametrize("limit", [1, 3])
def test_the_limit_of_requests_in_flight_is_kept_and_used(limit):
    with FakeServer(echo, latency_seconds=0.02) as server:
        complete_all(chat(server, max_in_flight=limit), questions(12))
        assert server.max_in_flight == limit


def test_the_same_question_of_several_tasks_is_asked_once():
    with FakeServer(echo, latency_seconds=0.02) as server:
        model = chat(server)
        replies = complete_all(model, [ask("one")] * 5 + [ask("two")])
        assert server.num_requests == 2
        assert [reply.cached for reply in replies].count(False) == 2
        assert model.account.num_sent == 2
        complete_all(chat(server), [ask("one", temperature=1.0)] * 3)
        assert server.num_requests == 5, "draws without a seed are all fresh"
        complete_all(chat(server), [ask("one", temperature=1.0, seed=s) for s in (1, 1, 2)])
        assert server.num_requests == 7


def test_cancelling_is_clean_and_what_was_answered_stays(tmp_path):
    async def work(server):
        async with chat(server, cache=tmp_path / "c.sqlite", max_in_flight=2) as model:
            task = asyncio.create_task(model.complete_many(questions(20)))
            while sum(server.answered.values()) < 4:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            others = [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]
            assert not [one for one in others if "fetch" in repr(one) or "complete" in repr(one)]
            num_sent = server.num_requests
            await asyncio.sleep(0.05)
            assert server.num_requests == num_sent
            reply = await model.complete(ask("question 0"))
            assert reply.cached

    async def main():
        async with FakeServer(echo, latency_seconds=0.02) as server:
            await work(server)

    asyncio.run(main())


def test_one_of_two_who_wait_may_give_up():
    async def main():
        async with FakeServer(echo, latency_seconds=0.05) as server, chat(server) as model:
            first = asyncio.create_task(model.complete(ask("x")))
            second = asyncio.create_task(model.complete(ask("x")))
            await asyncio.sleep(0.01)
            first.cancel()
            third = asyncio.create_task(model.complete(ask("x")))
            assert (await second).text == (await third).text == "you said x"
            assert first.cancelled() or (await asyncio.gather(first, return_exceptions=True))
            assert server.num_requests == 1
            alone = asyncio.create_task(model.complete(ask("y")))
            await asyncio.sleep(0.01)
            alone.cancel()
            await asyncio.sleep(0)
            assert (await model.complete(ask("y"))).text == "you said y"

    asyncio.run(main())


def test_an_exception_of_progress_ends_the_others():
    def stop(step):
        raise KeyError("stop")

    with FakeServer(echo, latency_seconds=0.02) as server:
        with pytest.raises(KeyError):
            complete_all(chat(server, max_in_flight=1), questions(30), progress=stop)
        assert server.num_requests < 5


@pytest.mark.parametrize(
    ("fault", "outcome", "says"),
    [
        ("429", "unavailable", "status 429"),
        ("500", "unavailable", "status 500"),
        ("cut", "cut", ""),
        ("empty_body", "garbage", "(nothing)"),
        ("garbage", "garbage", "no chat completion"),
        ("empty_text", "empty", "no text"),
        ("null_text", "empty", "no text"),
    ],
)
def test_a_lasting_fault_comes_back_as_its_outcome_and_is_not_stored(tmp_path, fault, outcome, says):
    with FakeServer(echo, rates={fault: 1.0}) as server:
        model = chat(server, cache=tmp_path / "c.sqlite", max_retries=2)
        [reply] = complete_all(model, [ask("hello")])
        assert reply.outcome == outcome
        assert says in reply.error
        assert not reply.ok
        assert reply.text == ""
        assert (reply.num_attempts, server.num_requests) == (3, 3)
        with pytest.raises(PolyloomError, match=outcome):
            reply.require()
        server.rates = {}
        [reply] = complete_all(model, [ask("hello")])
        assert reply.require().text == "you said hello"
        assert model.account.outcomes == {outcome: 1, "complete": 1}


def test_an_answer_cut_by_its_budget_is_an_answer_with_its_own_outcome():
    with FakeServer("one two three four", schedule=["length", "no_usage"]) as server:
        model = chat(server)
        cut, unmetered = complete_all(model, [ask("a"), ask("b")])[:2]
        cut, unmetered = sorted((cut, unmetered), key=lambda reply: reply.outcome == "complete")
        assert (cut.outcome, cut.ok, cut.text) == ("length", True, "one two t")
        assert (unmetered.usage, unmetered.ok) == (None, True)
        assert model.account.num_without_usage == 1


def test_a_slow_server_is_given_up_after_the_timeout():
    with FakeServer(echo, schedule=["slow"], slow_seconds=5) as server:
        [reply] = complete_all(chat(server, timeout_seconds=0.2, max_retries=1), [ask("hello")])
        assert (reply.text, reply.num_attempts) == ("you said hello", 2)
        server.schedule = ("slow",) * 9
        [reply] = complete_all(chat(server, timeout_seconds=0.1, max_retries=0), [ask("hello")])
        assert reply.outcome == "unavailable"
        assert "0.1 seconds" in reply.error


def test_retry_after_holds_back_everybody():
    with FakeServer(echo, schedule=["429"], retry_after_seconds=0.3) as server:
        start = time.monotonic()
        complete_all(chat(server, max_in_flight=1, max_wait_seconds=5), questions(3))
        assert time.monotonic() - start >= 0.3
        assert server.num_requests == 4


def test_nobody_listening_is_unavailable():
    with FakeServer() as server:
        gone = chat(server, max_retries=1)
    [reply] = complete_all(gone, [ask("hello")])
    assert (reply.outcome, reply.num_attempts) == ("unavailable", 2)
    assert gone.base_url in reply.error


def test_an_unknown_model_is_refused_at_once():
    with FakeServer(models=["other"]) as server:
        with pytest.raises(UserError, match="404") as caught:
            complete_all(chat(server), questions(5))
        assert "\n" not in str(caught.value)


def test_the_key_is_sent_and_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sesame-4711")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-4711")
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-4711")
    with FakeServer(echo) as server:
        model = chat(server, cache=tmp_path / "c.sqlite", api_key_variable="SOME_KEY")
        complete_all(model, [ask("hello")])
        assert server.headers["Authorization"] == "Bearer sesame-4711"
        assert "org-4711" not in repr(server.headers)
        complete_all(chat(server), [ask("hello")])
        assert "4711" not in repr(server.headers)
    assert b"4711" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert "4711" not in repr(vars(model))


def test_what_is_sent():
    request = ChatRequest(
        (Message("system", "s"), Message("user", "u"), Message("assistant", "It")),
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        seed=11,
        stop=("\n",),
    )
    with FakeServer("is") as server:
        with pytest.raises(UserError, match="prefilled"):
            complete_all(chat(server), [request])
        complete_all(chat(server, prefill="last_turn"), [request])
        complete_all(chat(server, prefill="continue_final_message"), [request])
        plain, continued = server.bodies
    turns = [{"role": role, "content": text} for role, text in (("system", "s"), ("user", "u"), ("assistant", "It"))]
    sampling = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 11, "stop": ["\n"]}
    assert plain == {"model": "fake", "messages": turns} | sampling
    assert continued == plain | {"continue_final_message": True, "add_generation_prompt": False}


def test_the_cache_tells_models_servers_and_settings_apart(tmp_path):
    path = tmp_path / "c.sqlite"
    with FakeServer(echo) as server, FakeServer("other") as other:
        requests = [ask("q"), ask("q", max_tokens=9), ask("q", system="s"), ask("q", stop=("x",))]
        complete_all(chat(server, cache=path), requests)
        assert server.num_requests == 4
        assert complete_all(chat(other, cache=path), [ask("q")])[0].text == "other"
        complete_all(ServerChat(server.base_url, "fake 2", cache=path), [ask("q")])
        assert server.num_requests == 5
        complete_all(chat(server, cache=path, identity="mine"), [ask("q")])
        assert complete_all(chat(other, cache=path, identity="mine"), [ask("q")])[0].text == "you said q"


def test_a_file_that_is_no_cache_is_refused_and_kept(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes, not a database\n" * 50)
    with FakeServer() as server, pytest.raises(UserError, match=r"notes\.txt"):
        complete_all(chat(server, cache=path), [ask("q")])
    assert path.read_text().startswith("my notes")


def test_lone_surrogates_and_every_script_survive(tmp_path):
    text = "šč 日本語 العربية 🙂 \n\t\"'"
    with FakeServer(text) as server:
        for _ in range(2):
            [reply] = complete_all(chat(server, cache=tmp_path / "c.sqlite"), [ask(text)])
            assert reply.text == text
    assert ask("\ud800").key("x") != ask("\ud801").key("x")


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("", "garbage"),
        ("[]", "garbage"),
        ("null", "garbage"),
        ('{"error": {"message": "no"}}', "garbage"),
        ('{"choices": []}', "garbage"),
        ('{"choices": [null]}', "garbage"),
        ('{"choices": [{"message": null}]}', "garbage"),
        ('{"choices": [{"message": {"content": 3}}]}', "garbage"),
        ("[" * 100_000, "garbage"),
        ('{"choices": [{"message": {}}]}', "empty"),
        ('{"choices": [{"message": {"content": " \\n"}}]}', "empty"),
        ('{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}', "empty"),
        ('{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}', "filtered"),
        ('{"choices": [{"message": {"content": "a"}, "finish_reason": "length"}]}', "length"),
        ('{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": "x"}}', "complete"),
    ],
)
def test_bodies_are_read_without_a_crash(body, outcome):
    reply = read_completion(body, "m")
    assert reply.outcome == outcome
    assert reply.usage is None
    assert "\n" not in reply.error


def test_retry_after_is_read_as_seconds_or_date():
    assert retry_after_seconds("1.5") == 1.5
    assert [retry_after_seconds(text) for text in (None, "", "soon", "-3", "nan", "inf")] == [0.0] * 6
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after_seconds("Wed, 21 Oct 2099 07:28:00 GMT") > 1e6


@pytest.mark.parametrize(
    ("url", "model", "says"),
    [
        ("ftp://host/v1", "m", "http address"),
        ("host:80", "m", "http address"),
        ("http://user:secret@host/v1", "m", "must not hold a key"),
        ("http://host/v1", "", "names no model"),
    ],
)
def test_bad_addresses_are_refused(url, model, says):
    with pytest.raises(UserError, match=says) as caught:
        ServerChat(url, model)
    assert "secret" not in str(caught.value)


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtra, match=r"polyloom\[api\]"):
        complete_all(ServerChat("http://127.0.0.1:9/v1", "m"), [ask("q")])


def test_used_unopened_it_says_so():
    with pytest.raises(PolyloomError, match="not open"):
        asyncio.run(ServerChat("http://127.0.0.1:9/v1", "m").complete(ask("q")))


def test_importing_the_package_imports_no_torch_and_no_client():
    code = (
        "import sys, polyloom.generation as g; g.ChatRequest, g.ServerChat, g.connect\n"
        "print([n for n in ('torch', 'transformers', 'openai', 'aiohttp') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"


def test_the_cache_file_holds_only_replies(tmp_path):
    path = tmp_path / "c.sqlite"
    with FakeServer("fine") as server:
        complete_all(chat(server, cache=path), [ask("a secret question")])
    connection = sqlite3.connect(path)
    [(key, reply)] = connection.execute("SELECT * FROM replies").fetchall()
    connection.close()
    assert len(key) == 64
    assert json.loads(reply)["text"] == "fine"
    assert b"secret" not in path.read_bytes()
