"""Chat with an OpenAI-compatible server: retries, a limit of requests in flight, and a cache of replies on disk."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from polyloom.core.errors import MissingExtra, PolyloomError, UserError
from polyloom.core.seeding import python_random
from polyloom.generation.chat import Account, ChatReply, ChatRequest, Outcome, Progress, Usage, gather_replies
from polyloom.generation.responses import ResponseCache

API_KEY_VARIABLE = "POLYLOOM_API_KEY"
NO_KEY = "none"
RETRIED_STATUSES = frozenset({408, 409, 425, 429})
NOTHING_SUCCEEDS = {
    401: "the server refuses the key",
    403: "the server refuses access",
    404: "the server knows no such address or model",
    405: "the server knows no such address",
}
FAULTS: frozenset[Outcome] = frozenset({"empty", "garbage", "cut", "unavailable"})
ERROR_CHARACTERS = 200
Prefill = Literal["refused", "last_turn", "continue_final_message"]


@dataclass(frozen=True)
class _Attempt:
    """One try: what came of it, whether another may help, and how long the server asks to wait."""

    reply: ChatReply
    retry: bool
    wait_seconds: float = 0.0


class ServerChat:
    """A model behind an OpenAI-compatible `/chat/completions`, used inside `async with`.

    Greedy and seeded requests are answered from the cache where it holds the reply, and asked once however many tasks
    want them at the same time. Only answers are stored: a fault is asked again by the next run. The API key comes from
    an environment variable, and is neither written nor shown.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        cache: Path | None = None,
        identity: str = "",
        api_key_variable: str = API_KEY_VARIABLE,
        prefill: Prefill = "refused",
        max_in_flight: int = 8,
        timeout_seconds: float = 120.0,
        max_retries: int = 5,
        backoff_seconds: float = 0.5,
        max_wait_seconds: float = 60.0,
    ) -> None:
        """Describe the server; nothing is sent yet.

        Args:
            base_url: such as `http://127.0.0.1:8000/v1`.
            model: the model's name on the server.
            cache: SQLite file of replies; none if None.
            identity: what names the model in the cache; by default the address and the model's name. Give one to
                keep using the replies of a server that moved.
            api_key_variable: environment variable that holds the key; unset for servers that want none.
            prefill: how the server takes a last turn of the assistant: not at all, as it is (`last_turn`), or with the
                fields `continue_final_message` and `add_generation_prompt` (vLLM, SGLang).
            max_in_flight: requests sent at the same time at most.
            timeout_seconds: for one attempt, whole.
            max_retries: further attempts after a fault.
            backoff_seconds: wait before the first retry; doubled for each further one, times a random 0.5 to 1.
            max_wait_seconds: longest wait before a retry, the server's own Retry-After included.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("is no http address.", where=base_url, hint="Write it as http://host:port/v1.")
        if parts.username or parts.password:
            raise UserError(
                "the server's address must not hold a key.", where=parts.hostname, hint=f"Set {api_key_variable}."
            )
        if not model:
            raise UserError("names no model.", where=base_url, hint=f"Write it as {base_url}#MODEL.")
        if max_in_flight < 1 or max_retries < 0 or timeout_seconds <= 0:
            raise UserError("max_in_flight must be at least 1, max_retries at least 0, timeout_seconds above 0.")
        self.base_url, self.name, self.cache_path = base_url.rstrip("/"), model, cache
        self.identity = identity or f"{self.base_url}#{model}"
        self.api_key_variable, self.prefill = api_key_variable, prefill
        self.max_in_flight, self.timeout_seconds, self.max_retries = max_in_flight, timeout_seconds, max_retries
        self.backoff_seconds, self.max_wait_seconds = backoff_seconds, max_wait_seconds
        self.account = Account()
        self._client: Any = None
        self._cache: ResponseCache | None = None
        self._fetching: dict[str, _Shared] = {}
        self._closed_until = 0.0

    async def __aenter__(self) -> Self:
        if self._client is not None:
            raise PolyloomError("this chat model is open already.", where=self.base_url)
        self._slots = asyncio.Semaphore(self.max_in_flight)
        self._cache = ResponseCache(self.cache_path) if self.cache_path is not None else None
        try:
            self._client = _open_client(self.base_url, os.environ.get(self.api_key_variable), self.timeout_seconds)
        except BaseException:
            self._close_cache()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [shared.task for shared in self._fetching.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        client, self._client = self._client, None
        try:
            await client.close()
        finally:
            self._close_cache()

    def _close_cache(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Answer one request, from the cache if it holds the reply.

        Raises:
            UserError: nothing sent to this server can succeed, or it takes no prefilled turn.
        """
        if self._client is None:
            raise PolyloomError("this chat model is not open.", hint="Use it inside `async with`, or complete_all.")
        if request.prefill and self.prefill == "refused":
            raise UserError(
                "this server is not known to continue a prefilled turn.",
                where=self.base_url,
                hint='Set prefill="continue_final_message" (vLLM, SGLang) or "last_turn" if it does.',
            )
        reply = await self._complete(request)
        self.account.add(reply)
        return reply

    async def complete_many(
        self, requests: Sequence[ChatRequest], *, progress: Progress | None = None
    ) -> list[ChatReply]:
        """Answer requests together, `max_in_flight` at a time."""
        return await gather_replies(self.complete, requests, progress)

    async def _complete(self, request: ChatRequest) -> ChatReply:
        key = request.key(self.identity)
        if not request.repeatable:
            return await self._fetch(request, key)
        stored = self._cache.get(key) if self._cache is not None else None
        if stored is not None:
            return stored
        shared = self._fetching.get(key)
        joined = shared is not None and not shared.task.cancelling()
        if shared is None or not joined:
            shared = _Shared(asyncio.create_task(self._fetch_and_store(request, key)))
            self._fetching[key] = shared
        try:
            reply = await shared.wait()
        finally:
            if shared.num_waiting == 0 and self._fetching.get(key) is shared:
                del self._fetching[key]
        return replace(reply, cached=True, num_attempts=0) if joined else reply

    async def _fetch_and_store(self, request: ChatRequest, key: str) -> ChatReply:
        reply = await self._fetch(request, key)
        if reply.ok and self._cache is not None:
            self._cache.put(key, reply)
        return reply

    async def _fetch(self, request: ChatRequest, key: str) -> ChatReply:
        """Send a request until there is an answer or the retries are used up."""
        jitter = python_random(0, "jitter", key)
        for number in range(self.max_retries + 1):
            attempt = await self._try(request)
            if not attempt.retry or number == self.max_retries:
                break
            backoff = self.backoff_seconds * 2**number * jitter.uniform(0.5, 1)
            await asyncio.sleep(min(max(backoff, attempt.wait_seconds), self.max_wait_seconds))
        return replace(attempt.reply, num_attempts=number + 1)

    async def _try(self, request: ChatRequest) -> _Attempt:
        import openai

        async with self._slots:
            await self._until_open()
            try:
                async with asyncio.timeout(self.timeout_seconds):
                    # Not chat.completions.create: checking the body against its types costs more than the request.
                    body = self._body(request)
                    return self._judge(await self._client.post("/chat/completions", cast_to=str, body=body))
            except openai.APIStatusError as error:
                return self._refused(error.status_code, error.response.text, error.response.headers.get("retry-after"))
            except TimeoutError:
                return self._fault("unavailable", f"no answer within {self.timeout_seconds:g} seconds.")
            except openai.APIConnectionError as error:  # a dropped connection among them, whatever its class
                return self._lost(error)

    async def _until_open(self) -> None:
        """Wait while the server has asked everybody to."""
        while (seconds := self._closed_until - time.monotonic()) > 0:
            await asyncio.sleep(seconds)

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
        }
        if request.seed is not None:
            body["seed"] = request.seed
        if request.stop:
            body["stop"] = list(request.stop)
        if request.top_k:
            body["top_k"] = request.top_k
        if request.prefill and self.prefill == "continue_final_message":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    def _judge(self, text: str) -> _Attempt:
        reply = read_completion(text, self.name)
        # An empty answer whose budget or filter explains it would come out the same again.
        explained = reply.outcome == "empty" and reply.error.startswith("finish_reason")
        return _Attempt(reply, retry=reply.outcome in FAULTS and not explained)

    def _fault(self, outcome: Outcome, error: str, *, retry: bool = True, wait_seconds: float = 0.0) -> _Attempt:
        return _Attempt(ChatReply("", outcome, self.name, error=f"{self.base_url}: {error}"), retry, wait_seconds)

    def _refused(self, status: int, text: str, retry_after: str | None) -> _Attempt:
        said = " ".join(text.split())[:ERROR_CHARACTERS]
        if status in NOTHING_SUCCEEDS:
            raise UserError(
                f"{NOTHING_SUCCEEDS[status]} (status {status}: {said}).",
                where=f"{self.base_url}#{self.name}",
                hint=f"Check the address and the model's name; the key is read from {self.api_key_variable}.",
            )
        if status in RETRIED_STATUSES or status >= 500:
            wait_seconds = min(retry_after_seconds(retry_after), self.max_wait_seconds)
            if status == 429 and wait_seconds:
                self._closed_until = max(self._closed_until, time.monotonic() + wait_seconds)
            return self._fault("unavailable", f"status {status}: {said}", wait_seconds=wait_seconds)
        return self._fault("rejected", f"status {status}: {said}", retry=False)

    def _lost(self, error: Exception) -> _Attempt:
        """Tell a body that broke off from a server that is not there."""
        causes, cause = [], error.__cause__
        while cause is not None:
            causes.append(cause)
            cause = cause.__cause__
        said = str(causes[0] if causes else error) or type(error).__name__
        broke_off = any(
            type(one).__name__ in ("ReadError", "RemoteProtocolError", "ClientPayloadError") for one in causes
        )
        return self._fault("cut" if broke_off else "unavailable", said[:ERROR_CHARACTERS])


class _Shared:
    """A request in flight that several tasks may wait for; it is given up when the last of them is."""

    def __init__(self, task: asyncio.Task[ChatReply]) -> None:
        self.task = task
        self.num_waiting = 0

    async def wait(self) -> ChatReply:
        self.num_waiting += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self.num_waiting -= 1
            if self.num_waiting == 0 and not self.task.done():
                self.task.cancel()
                await asyncio.gather(self.task, return_exceptions=True)


def read_completion(text: str, model: str) -> ChatReply:
    """Read the body of a chat completion.

    Args:
        text: the body.
        model: the model's name, for the reply.

    Returns:
        A reply whose outcome is `complete`, `length`, `filtered`, `empty` or `garbage`.
    """
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        content = choice["message"].get("content")
        if not isinstance(content, str | None):
            raise TypeError("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        said = " ".join(text.split())[:ERROR_CHARACTERS]
        return ChatReply("", "garbage", model, error=f"the body is no chat completion: {said or '(nothing)'}")
    finish = choice.get("finish_reason")
    usage = _usage(body.get("usage"))
    if finish == "content_filter":
        return ChatReply(content or "", "filtered", model, usage, error="the server's filter withheld the answer.")
    if not content or not content.strip():
        why = f"finish_reason {finish}" if finish == "length" else "the answer holds no text"
        return ChatReply(content or "", "empty", model, usage, error=why)
    return ChatReply(content, "length" if finish == "length" else "complete", model, usage)


def _usage(value: Any) -> Usage | None:
    if not isinstance(value, dict):
        return None
    prompt, completion = value.get("prompt_tokens"), value.get("completion_tokens")
    if not (isinstance(prompt, int) and isinstance(completion, int) and min(prompt, completion) >= 0):
        return None
    return Usage(prompt, completion)


def retry_after_seconds(value: str | None) -> float:
    """Read a Retry-After header, in seconds or as a date; 0 where there is none that can be read."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0


def _open_client(base_url: str, api_key: str | None, timeout_seconds: float) -> Any:
    try:
        import aiohttp  # noqa: F401
        import openai
    except ImportError as error:
        raise MissingExtra("openai[aiohttp]", extra="api") from error
    return openai.AsyncOpenAI(
        base_url=base_url,
        api_key=api_key or NO_KEY,
        # Empty strings keep the library from sending the account names of another service's variables.
        organization="",
        project="",
        max_retries=0,
        timeout=timeout_seconds,
        http_client=openai.DefaultAioHttpClient(),
    )
