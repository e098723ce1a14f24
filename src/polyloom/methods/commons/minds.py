"""Minds: what answers a prompt. Scripted policies, chat models (local or behind a server), and a log played again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from polyloom.core.errors import PolyloomError, UserError
from polyloom.generation.chat import Account, ChatModel, ChatReply, ChatRequest, Progress, ask, gather_replies
from polyloom.generation.responses import ResponseCache
from polyloom.methods.commons.arms import Arm
from polyloom.methods.commons.engine import Policy, View
from polyloom.methods.commons.events import Call, Harvest, Start, Utter
from polyloom.methods.commons.policies import greedy, read_policy
from polyloom.methods.commons.scenario import Words

FRAMEWORK = -1


@dataclass
class Situation:
    """What a scripted mind decides by; a model gets the prompt alone.

    `conversation` holds (agent, text) turns, `participants` the agents in it, `limit` is what it would propose.
    """

    purpose: str
    month: int
    agent: int
    view: View
    names: Sequence[str]
    conversation: Sequence[tuple[int, str]] = ()
    limit: int = 0


@dataclass(frozen=True)
class Answer:
    """A mind's reply and what became of the request."""

    text: str
    outcome: str = "complete"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False


@runtime_checkable
class Mind(Protocol):
    """Something that answers; `reads_prompts` says whether the prompt has to be written for it."""

    spec: str
    reads_prompts: bool

    async def answer(self, prompt: str, situation: Situation) -> Answer:
        """Answer a prompt in a situation."""


class ScriptedMind:
    """A policy that acts, and says what it does in the scenario's language; its replies go through the same parser."""

    reads_prompts = False

    def __init__(self, spec: str, words: Words, policy: Policy | None = None) -> None:
        self.spec, self.words = spec, words
        self.policy = policy or read_policy(spec)
        self._fixed = {
            "importance": words.say("answer_number", amount=5),
            "fact": words.say("said_fact"),
            "reflect": words.say("said_insight"),
            "reflect_rated": words.say("said_label_insight", text=words.say("said_insight")),
        }

    async def answer(self, prompt: str, situation: Situation) -> Answer:
        """Answer by rule."""
        return Answer(self._text(situation))

    def _text(self, situation: Situation) -> str:
        words, purpose, limit = self.words, situation.purpose, situation.limit
        if purpose in self._fixed:
            return self._fixed[purpose]
        if purpose == "act":
            amount = self.policy(situation.view, situation.agent)
            return f"{words.say('thinking')}\n{words.say('answer', amount=amount)}"
        if purpose == "talk":
            return self._turn(situation)
        if purpose == "limit":
            return words.say("answer_number", amount=limit)
        if purpose == "vote":
            return words.say("turn", text="", finished=words.say("yes"), next=_modest(situation))
        sentence = {"summary": "said_summary", "agreement": "said_summary", "plan": "said_plan", "notes": "said_plan"}
        said = words.say(sentence[purpose], limit=limit)
        if purpose == "agreement":
            labelled = words.say("said_label_summary", text=said)
            return f"{labelled}\n{words.say('answer_number', amount=limit)}"
        if purpose == "notes":
            fact = words.say("said_label_fact", text=words.say("said_fact"))
            return f"{words.say('said_label_plan', text=said)}\n{fact}"
        return said

    def _turn(self, situation: Situation) -> str:
        """Propose first, name whoever took too much, else agree; the last to speak ends the talk."""
        words, view, me = self.words, situation.view, situation.agent
        limit, spoken = situation.limit, [agent for agent, _ in situation.conversation]
        others = [i for i in range(len(view.last_obtained)) if i != me]
        worst = max(others, key=lambda i: view.last_obtained[i], default=me)
        if not spoken:
            text = words.say("propose", limit=limit)
        elif len(spoken) == 1 and worst != me and view.last_obtained[worst] > view.last_threshold:
            text = words.say("complain", name=situation.names[worst], limit=view.last_threshold)
        else:
            text = words.say("accept", limit=limit)
        silent = [i for i in range(len(situation.names)) if i not in spoken and i != me]
        following = silent[0] if silent else (me + 1) % len(situation.names)
        finished = words.say("no" if silent else "yes")
        return words.say("turn", text=text, finished=finished, next=situation.names[following])


def _modest(situation: Situation) -> str:
    """Return the name of whoever took least, the first on ties."""
    taken = situation.view.last_obtained or [0] * len(situation.names)
    return situation.names[min(range(len(taken)), key=lambda i: (taken[i], i))]


class ChatMind:
    """A chat model. Every agent that it speaks for shares it; its requests of all runs are decoded together."""

    reads_prompts = True

    def __init__(self, spec: str, model: ChatModel, *, max_tokens: int, temperature: float, seed: int) -> None:
        self.spec, self.model = spec, model
        self.max_tokens, self.temperature, self.seed = max_tokens, temperature, seed

    async def answer(self, prompt: str, situation: Situation) -> Answer:
        """Ask the model.

        Raises:
            PolyloomError: no answer after all retries; what was answered before is kept.
        """
        request = ask(prompt, max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed)
        reply = await self.model.complete(request)
        if reply.outcome in ("unavailable", "cut", "garbage"):
            what = f"no answer in month {situation.month + 1} ({reply.outcome} after {reply.num_attempts} attempts"
            hint = "Replies so far are kept: resume the run when the model is there again."
            raise PolyloomError(f"{what}): {reply.error}", where=self.spec, hint=hint)
        usage = reply.usage
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Answer(reply.text, reply.outcome, *counts, cached=reply.cached)


@dataclass
class LogMind:
    """Answers out of a log, in the log's order; what the log does not hold goes to `otherwise`.

    `until` is the first month that is not answered from the log; `changed` replaces replies of (month, agent) asks.
    """

    spec: str
    replies: Mapping[tuple[int, int, str], list[tuple[str, str]]]
    otherwise: Mind | None = None
    until: int | None = None
    changed: Mapping[tuple[int, int], str] = field(default_factory=dict)
    reads_prompts: bool = True
    _used: dict[tuple[int, int, str], int] = field(default_factory=lambda: defaultdict(int))

    async def answer(self, prompt: str, situation: Situation) -> Answer:
        """Answer from the log, or by the mind behind it.

        Raises:
            UserError: the log holds no such reply and no mind is behind it.
        """
        key = (situation.month, situation.agent, situation.purpose)
        if situation.purpose == "act" and (situation.month, situation.agent) in self.changed:
            return Answer(self.changed[situation.month, situation.agent], "changed")
        if self.until is None or situation.month < self.until:
            at = self._used[key]
            self._used[key] += 1
            kept = self.replies.get(key, [])
            if at < len(kept):
                return Answer(*kept[at])
        if self.otherwise is None:
            what = f"the log holds no {situation.purpose!r} of month {situation.month + 1}."
            raise UserError(what, where=self.spec, hint="Branch from this month with --minds.")
        return await self.otherwise.answer(prompt, situation)


def logged_replies(events: Sequence[object], words: Words) -> dict[tuple[int, int, str], list[tuple[str, str]]]:
    """Return the replies of a run's log by (month, agent, purpose); a log without calls is made into replies.

    Args:
        events: of one run.
        words: how asks and turns are written where only they were logged.
    """
    replies: dict[tuple[int, int, str], list[tuple[str, str]]] = defaultdict(list)
    calls = [event for event in events if isinstance(event, Call)]
    for call in calls:
        agent = FRAMEWORK if call.agent is None else call.agent
        replies[call.month, agent, call.purpose].append((call.reply, call.outcome))
    if calls:
        return replies
    start = next((event for event in events if isinstance(event, Start)), None)
    for event in events:
        if isinstance(event, Harvest):
            text = words.say("answer", amount=event.ask)
            replies[event.month, event.agent, "act"].append((text, "complete"))
        elif isinstance(event, Utter) and start is not None:
            following = start.agents[event.next] if event.next is not None else ""
            turn = words.say(
                "turn", text=event.text, finished=words.say("yes" if event.ended else "no"), next=following
            )
            replies[event.month, event.agent, "talk"].append((turn, "complete"))
    return replies


class KeepingChat:
    """A chat model whose repeatable replies are kept on disk: what a killed run has asked, it does not ask again."""

    def __init__(self, model: ChatModel, path: Callable[[], ResponseCache]) -> None:
        self.model, self.name = model, model.name
        self.account: Account = model.account
        self._open = path
        self._cache: ResponseCache | None = None

    async def __aenter__(self) -> Self:
        self._cache = self._open()
        await self.model.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.model.__aexit__(kind, error, trace)
        if self._cache is not None:
            self._cache.close()

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Answer from disk, or by the model."""
        assert self._cache is not None
        key = request.key(self.name)
        stored = self._cache.get(key) if request.repeatable else None
        if stored is not None:
            self.account.add(stored)
            return stored
        reply = await self.model.complete(request)
        if request.repeatable and reply.ok:
            self._cache.put(key, reply)
        return reply

    async def complete_many(
        self, requests: Sequence[ChatRequest], *, progress: Progress | None = None
    ) -> list[ChatReply]:
        """Answer requests together."""
        return await gather_replies(self.complete, requests, progress)


def scripted_minds(specs: Sequence[str], arm: Arm, num_agents: int, words: Words) -> list[Mind]:
    """Make one scripted mind per agent; the last one of the arms `newcomer` and `adversary` takes all it can."""
    minds: list[Mind] = [ScriptedMind(spec, words) for spec in spread(specs, num_agents)]
    if arm.trait is not None:
        minds[-1] = ScriptedMind("greedy", words, greedy)
    return minds


def spread(specs: Sequence[str], num_agents: int) -> list[str]:
    """Return one specification per agent: one for all, or as many as there are agents.

    Raises:
        UserError: another number.
    """
    if len(specs) == 1:
        return list(specs) * num_agents
    if len(specs) != num_agents:
        what = f"{len(specs)} minds for {num_agents} agents."
        raise UserError(what, where="--minds", hint="Give one for all, or one for each.")
    return list(specs)
