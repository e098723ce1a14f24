"""A small OpenAI-compatible server on this machine that misbehaves on purpose: for tests of what talks to one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, get_args

from polyloom.core.errors import MissingExtra, UserError, closest
from polyloom.core.seeding import python_random

try:
    from aiohttp import web
except ImportError as error:
    raise MissingExtra("aiohttp", extra="api") from error

Fault = Literal["429", "500", "cut", "empty_body", "empty_text", "null_text", "garbage", "slow", "length", "no_usage"]
"""What may go wrong: a status, a connection cut inside the body, a body of nothing or of no JSON, an answer without
text, a late answer, an answer cut by its budget (`length`), an answer without token counts. The last three are answers.
"""
FAULTS: tuple[Fault, ...] = get_args(Fault)
ANSWERS: tuple[Fault | None, ...] = (None, "slow", "length", "no_usage")
Reply = str | Sequence[str] | Callable[[dict[str, Any]], str]


class FakeServer:
    """Serves `POST /v1/chat/completions` (streaming too) and `GET /v1/models` on a free port of the loopback interface.

    Use it as `async with FakeServer(...) as server`, or from synchronous code as `with FakeServer(...) as server`,
    where it runs in a thread of its own; then `server.base_url` is its address. What happens to a request depends only
    on the seed, the request's body and how often this body came before, not on the order of arrival (a `schedule` and a
    list of replies go by arrival).

    Attributes:
        num_requests: chat requests that arrived.
        max_in_flight: most of them at the same time.
        bodies: their bodies, in order of arrival.
        faults: how often each fault was committed.
        answered: by body hash, how often a whole answer was sent: what a user would have paid for.
        headers: the headers of the last one.
    """

    def __init__(
        self,
        reply: Reply = "ok",
        *,
        rates: Mapping[Fault, float] | None = None,
        schedule: Sequence[Fault | None] = (),
        seed: int = 0,
        retry_after_seconds: float = 0.0,
        slow_seconds: float = 0.2,
        latency_seconds: float = 0.0,
        models: Sequence[str] = (),
    ) -> None:
        """Describe the server.

        Args:
            reply: the answer; or answers given in turn, from the start again; or a function of the request's body.
            rates: probability of each fault, at most 1 together.
            schedule: faults of the first requests in order of arrival (None: none); the rates hold afterwards.
            seed: of the faults.
            retry_after_seconds: what a 429 asks for.
            slow_seconds: how late a `slow` answer is.
            latency_seconds: how long every request takes.
            models: names that are served; any name if none are given, otherwise another one is answered with 404.
        """
        self.rates: dict[Fault, float] = dict(rates or {})
        for fault in [*self.rates, *(one for one in schedule if one is not None)]:
            if fault not in FAULTS:
                raise UserError(f"there is no fault {fault!r}.", hint=closest(fault, FAULTS))
        if sum(self.rates.values()) > 1 or any(rate < 0 for rate in self.rates.values()):
            raise UserError("the rates of faults must be 0 or more and at most 1 together.")
        self.reply, self.schedule, self.seed = reply, tuple(schedule), seed
        self.retry_after_seconds, self.slow_seconds = retry_after_seconds, slow_seconds
        self.latency_seconds, self.models = latency_seconds, tuple(models)
        self.base_url = ""
        self.num_requests = self.max_in_flight = self.num_in_flight = 0
        self.bodies: list[dict[str, Any]] = []
        self.faults: Counter[Fault] = Counter()
        self.answered: Counter[str] = Counter()
        self.headers: dict[str, str] = {}
        self._seen: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self._chat)
        application.router.add_get("/v1/models", self._list_models)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def __enter__(self) -> Self:
        ready = threading.Event()

        async def serve() -> None:
            async with self:
                loop, stopped = asyncio.get_running_loop(), asyncio.Event()

                def stop() -> None:
                    loop.call_soon_threadsafe(stopped.set)

                self._stop = stop
                ready.set()
                await stopped.wait()

        self._thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
        self._thread.start()
        if not ready.wait(timeout=30):
            raise UserError("the fake server did not start.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    async def _list_models(self, request: web.Request) -> web.Response:
        names = self.models or ("any",)
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = self.num_requests
        self.num_requests += 1
        self.bodies.append(body)
        self.headers = dict(request.headers)
        self.num_in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.num_in_flight)
        try:
            if self.models and body.get("model") not in self.models:
                return _error(404, f"no model {body.get('model')!r}")
            return await self._answer(request, body, number)
        finally:
            self.num_in_flight -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        key = body_hash(body)
        fault = self._fault(key, number)
        self._seen[key] += 1
        if fault is not None:
            self.faults[fault] += 1
        await asyncio.sleep(self.latency_seconds + (self.slow_seconds if fault == "slow" else 0))
        if fault == "429":
            return _error(429, "too many requests", {"Retry-After": f"{self.retry_after_seconds:g}"})
        if fault == "500":
            return _error(500, "out of order")
        if fault == "empty_body":
            return web.Response(body=b"", content_type="application/json")
        if fault == "garbage":
            return web.Response(body=b'{"choices": [{"mess', content_type="application/json")
        completion = self._completion(body, key, number, fault)
        if body.get("stream"):
            return await self._send_stream(request, completion, key, fault)
        data = json.dumps(completion).encode()
        if fault == "cut":
            return await _send_half(request, data)
        if fault in ANSWERS:
            self.answered[key] += 1
        return web.Response(body=data, content_type="application/json")

    def _fault(self, key: str, number: int) -> Fault | None:
        if number < len(self.schedule):
            return self.schedule[number]
        draw = python_random(self.seed, "fault", key, self._seen[key]).random()
        for fault, rate in self.rates.items():
            draw -= rate
            if draw < 0:
                return fault
        return None

    def _completion(self, body: dict[str, Any], key: str, number: int, fault: Fault | None) -> dict[str, Any]:
        if callable(self.reply):
            text: str | None = self.reply(body)
        else:
            text = self.reply if isinstance(self.reply, str) else self.reply[number % len(self.reply)]
        finish = "stop"
        if fault == "length" and text:
            text, finish = text[: (len(text) + 1) // 2], "length"
        if fault in ("empty_text", "null_text"):
            text = "" if fault == "empty_text" else None
        prompt_tokens = sum(len(str(turn.get("content", "")).split()) for turn in body.get("messages", ()))
        completion_tokens = len((text or "").split())
        completion = {
            "id": f"chatcmpl-{key[:12]}",
            "object": "chat.completion",
            "created": 0,
            "model": body.get("model", ""),
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }
        if fault == "no_usage":
            del completion["usage"]
        return completion

    async def _send_stream(
        self, request: web.Request, completion: dict[str, Any], key: str, fault: Fault | None
    ) -> web.StreamResponse:
        """Send the answer word by word as server-sent events."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        choice = completion["choices"][0]
        words = (choice["message"]["content"] or "").split(" ")
        pieces = [word if i == 0 else f" {word}" for i, word in enumerate(words)]
        head = {name: completion[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
        for i, piece in enumerate(pieces):
            if fault == "cut" and i == (len(pieces) + 1) // 2:
                return _cut(request, response)
            delta = [{"index": 0, "delta": {"role": "assistant", "content": piece}, "finish_reason": None}]
            await response.write(_event(head | {"choices": delta}))
        last = [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]
        await response.write(_event(head | {"choices": last, "usage": completion.get("usage")}) + b"data: [DONE]\n\n")
        await response.write_eof()
        if fault in ANSWERS:
            self.answered[key] += 1
        return response


def body_hash(body: Mapping[str, Any]) -> str:
    """Return the sha256 of a request's body, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status, headers=headers)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


async def _send_half(request: web.Request, data: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(data))})
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    return _cut(request, response)


def _cut(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.close()
    return response
