"""One chat interface for every model that talks: requests, replies with typed outcomes, and the protocol."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol, Self, runtime_checkable

from polyloom.core.errors import PolyloomError, UserError, closest

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
Progress = Callable[[int], None]

Outcome = Literal["complete", "length", "filtered", "empty", "garbage", "cut", "unavailable", "rejected"]
"""What became of a request.

`complete`: the model ended its answer; `length`: the token budget ended it; `filtered`: the server withheld or cut it;
`empty`: an answer without text; `garbage`: a body that is no chat completion; `cut`: the connection broke inside the
body; `unavailable`: no answer (429, 5xx, timeout, no connection); `rejected`: the request cannot be answered as it is
(too long, say). The four faults (`empty`, `garbage`, `cut`, `unavailable`) are final only after all retries.
"""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError(f"there is no role {self.role!r}.", hint=closest(self.role, ROLES))


@dataclass(frozen=True)
class ChatRequest:
    """A question to a model.

    Attributes:
        messages: the conversation; if the last turn is the assistant's, the model continues it (a prefilled turn) and
            the reply holds the continuation alone.
        max_tokens: budget of the reply.
        temperature: 0 is greedy.
        top_p: nucleus, in (0, 1].
        top_k: keep the k most probable tokens; 0 keeps all. Not every server knows it.
        seed: of the sampling. With one, a sampled reply is repeatable and is cached; without, each is a fresh draw.
        stop: texts that end the reply.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not any(message.content for message in self.messages):
            raise UserError("a chat request needs a message with text.")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {self.max_tokens}.")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be 0 or more, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (all tokens) or more, not {self.top_k}.")
        if "" in self.stop:
            raise UserError("a stop text must not be empty.")

    @property
    def prefill(self) -> str:
        """The text that the assistant's turn is made to begin with; empty without one."""
        return self.messages[-1].content if self.messages[-1].role == "assistant" else ""

    @property
    def repeatable(self) -> bool:
        """Whether asking again should give the same reply (greedy, or sampled with a seed)."""
        return self.temperature == 0 or self.seed is not None

    def key(self, identity: str) -> str:
        """Return the sha256 of the canonical request to the model called `identity`."""
        canonical = json.dumps([1, identity, asdict(self)], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Usage:
    """Tokens that a reply cost."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class ChatReply:
    """What a model answered, or why it did not.

    Attributes:
        text: the reply; for outcomes other than `complete` and `length` whatever text came, mostly none.
        outcome: see `Outcome`.
        model: name of the model that answered.
        usage: tokens, or None where the server told none.
        error: one line about a fault; empty if `ok`.
        num_attempts: how often it was sent; 0 for a reply out of the cache.
        cached: whether it cost nothing, having been asked before.
    """

    text: str
    outcome: Outcome
    model: str
    usage: Usage | None = None
    error: str = ""
    num_attempts: int = 1
    cached: bool = False

    @property
    def ok(self) -> bool:
        """Whether there is an answer: complete, or cut by the budget alone."""
        return self.outcome in ("complete", "length")

    def require(self) -> Self:
        """Return the reply itself if it is an answer.

        Raises:
            PolyloomError: it is none; the message says why.
        """
        if not self.ok:
            raise PolyloomError(f"no answer ({self.outcome}): {self.error}", where=self.model)
        return self


@dataclass
class Account:
    """What a chat model has cost so far; cached replies cost nothing."""

    num_sent: int = 0
    num_replies: int = 0
    num_cached: int = 0
    num_without_usage: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=dict)

    def add(self, reply: ChatReply) -> None:
        """Enter one reply."""
        self.num_replies += 1
        self.outcomes[reply.outcome] = self.outcomes.get(reply.outcome, 0) + 1
        if reply.cached:
            self.num_cached += 1
            return
        self.num_sent += reply.num_attempts
        if reply.usage is None:
            self.num_without_usage += 1
        else:
            self.prompt_tokens += reply.usage.prompt_tokens
            self.completion_tokens += reply.usage.completion_tokens


@runtime_checkable
class ChatModel(Protocol):
    """A model that answers chat requests; entered with `async with`, which holds its connections."""

    name: str
    account: Account

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Answer one request; faults come back as the reply's outcome.

        Raises:
            UserError: nothing sent to this model can succeed (wrong key, unknown model).
        """

    async def complete_many(
        self, requests: Sequence[ChatRequest], *, progress: Progress | None = None
    ) -> list[ChatReply]:
        """Answer requests together, in their order; `progress(1)` is called as each is answered."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def ask(text: str, *, system: str = "", prefill: str = "", **settings: Any) -> ChatRequest:
    """Make a request of one user turn.

    Args:
        text: what the user says.
        system: the system turn before it, if any.
        prefill: what the assistant's turn is made to begin with, if anything.
        settings: further fields of `ChatRequest`.
    """
    turns: tuple[tuple[Role, str], ...] = (("system", system), ("user", text), ("assistant", prefill))
    return ChatRequest(tuple(Message(role, content) for role, content in turns if content), **settings)


async def gather_replies(
    complete: Callable[[ChatRequest], Coroutine[Any, Any, ChatReply]],
    requests: Sequence[ChatRequest],
    progress: Progress | None,
) -> list[ChatReply]:
    """Answer all requests at once; the first exception (of a request or of `progress`) cancels the others."""
    tasks = [asyncio.ensure_future(complete(request)) for request in requests]
    try:
        for done in asyncio.as_completed(tasks):
            await done
            if progress is not None:
                progress(1)
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def complete_all(
    model: ChatModel, requests: Sequence[ChatRequest], *, progress: Progress | None = None
) -> list[ChatReply]:
    """Answer requests from synchronous code: open the model, ask all of them together, close it.

    Args:
        model: any chat model, not entered.
        requests: what to ask.
        progress: called with 1 as each is answered (such as the `advance` of `run.progress`).

    Returns:
        One reply per request, in their order.
    """

    async def work() -> list[ChatReply]:
        async with model as opened:
            return await opened.complete_many(requests, progress=progress)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    # A notebook already runs a loop in this thread.
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result()
