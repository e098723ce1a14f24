"""A model that follows a rule: it finds in the prompt what is asked, in any of the languages. For tests and trials."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import regex

from polyloom.methods.commons.minds import Answer, Situation
from polyloom.methods.commons.scenario import language_codes, language_texts

PURPOSES = (
    "act",
    "talk",
    "summary",
    "limit",
    "agreement",
    "importance",
    "plan",
    "fact",
    "notes",
    "reflect",
    "reflect_rated",
    "vote",
)
Rule = Callable[[int], int]


def threshold_share(stock: int) -> int:
    """Return floor(floor(h/2)/5): what a sustainable one of five asks for."""
    return stock // 2 // 5


@cache
def _signatures() -> dict[str, tuple[str, str]]:
    """Return the longest constant piece of every task by its text: language and purpose."""
    found = {}
    for code in language_codes():
        texts = language_texts(code)
        for purpose in PURPOSES:
            pieces = regex.split(r"\{[a-z]+\}", texts[purpose])
            found[max(pieces, key=len)] = (code, purpose)
    return found


@cache
def _high(code: str) -> regex.Pattern[str]:
    before, after = regex.split(r"\{high\}", language_texts(code)["act"])
    return regex.compile(regex.escape(before.rpartition("}")[2][-6:]) + r"(\d+)" + regex.escape(after[:4]))


def read_task(prompt: str) -> tuple[str, str]:
    """Return the language and the purpose of a prompt."""
    hits = [(prompt.rfind(piece), known) for piece, known in _signatures().items()]
    at, known = max(hits, key=lambda hit: hit[0])
    if at < 0:
        raise ValueError("the prompt asks for nothing that is known")
    return known


def rule_reply(prompt: str, rule: Rule = threshold_share, *, talks_on: bool = True) -> str:
    """Answer a prompt of the commons.

    Args:
        prompt: as `people.Person` writes it.
        rule: from the stock to the ask.
        talks_on: nobody ends a conversation, so that it runs to its longest; else the first turn ends it.
    """
    code, purpose = read_task(prompt)
    texts: dict[str, Any] = language_texts(code)
    if purpose == "act":
        stock = int(_high(code).findall(prompt)[-1])
        return f"{texts['thinking']}\n{texts['answer'].format(amount=rule(stock), unit='')}".strip()
    if purpose in ("limit", "importance"):
        return str(texts["answer_number"].format(amount=10 if purpose == "limit" else 6))
    names = texts["names"]
    turn = {"next": names[zlib.crc32(prompt.encode()) % len(names)], "finished": texts["no" if talks_on else "yes"]}
    if purpose in ("talk", "vote"):
        return str(texts["turn"].format(text=texts["accept"].format(limit=10, unit=""), **turn))
    sentence = {
        key: texts[key].format(limit=10, unit="") for key in ("said_summary", "said_plan", "said_fact", "said_insight")
    }
    replies = {
        "summary": sentence["said_summary"],
        "agreement": "\n".join(
            (
                texts["said_label_summary"].format(text=sentence["said_summary"]),
                texts["answer_number"].format(amount=10),
            )
        ),
        "plan": sentence["said_plan"],
        "fact": sentence["said_fact"],
        "notes": f"{texts['said_label_plan'].format(text=sentence['said_plan'])}\n"
        f"{texts['said_label_fact'].format(text=sentence['said_fact'])}",
        "reflect": sentence["said_insight"],
        "reflect_rated": texts["said_label_insight"].format(text=sentence["said_insight"]),
    }
    return str(replies[purpose])


class RuleMind:
    """A mind that reads its prompts as a model would, and answers by rule."""

    reads_prompts = True

    def __init__(self, reply: Callable[[str], str] = rule_reply, spec: str = "rule") -> None:
        self.spec, self.reply = spec, reply
        self.num_asked = 0

    async def answer(self, prompt: str, situation: Situation) -> Answer:
        """Answer from the prompt alone."""
        self.num_asked += 1
        return Answer(self.reply(prompt))


def server_reply(body: dict[str, Any]) -> str:
    """Answer a request's body, for `FakeServer`."""
    return rule_reply(str(body["messages"][-1]["content"]))


def _serve(connection: Connection, latency_seconds: float, rates: Mapping[str, float], seed: int) -> None:
    from polyloom.generation.fake_server import FakeServer

    known: Any = dict(rates)
    with FakeServer(server_reply, latency_seconds=latency_seconds, rates=known, seed=seed) as server:
        connection.send(server.base_url)
        while connection.recv() == "count":
            connection.send(
                {
                    "num_requests": server.num_requests,
                    "max_in_flight": server.max_in_flight,
                    "num_faults": sum(server.faults.values()),
                }
            )


class MockServer:
    """A rule behind a server in a process of its own, so that it takes no time from the client's."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.base_url = str(connection.recv())

    def counts(self) -> dict[str, int]:
        """Return requests so far, most of them at the same time, and faults committed."""
        self.connection.send("count")
        found: dict[str, int] = self.connection.recv()
        return found


@contextmanager
def mock_server(*, latency_seconds: float = 0.0, rates: Mapping[str, float] | None = None, seed: int = 0) -> Any:
    """Run a `MockServer` while the context lasts.

    Args:
        latency_seconds: how long every answer takes.
        rates: probability of each fault, see `FakeServer`.
        seed: of the faults.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, latency_seconds, dict(rates or {}), seed), daemon=True)
    process.start()
    try:
        yield MockServer(ours)
    finally:
        ours.send("stop")
        process.join(10)
