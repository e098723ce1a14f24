"""A person of the community: a mind with a name, a role and memories. Its prompts are written here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import regex

from polyloom.core.errors import PolyloomError
from polyloom.methods.commons.arms import Rules
from polyloom.methods.commons.engine import View
from polyloom.methods.commons.memory import (
    ACT_K,
    LAST_UTTERANCES,
    REFLECT_K,
    TALK_K,
    Memory,
    Node,
    month_start,
    reflection_day,
    talk_day,
)
from polyloom.methods.commons.minds import FRAMEWORK, Answer, Mind, Situation
from polyloom.methods.commons.parsing import READABLE, Quantity, Utterance, quantity, utterance
from polyloom.methods.commons.scenario import Scenario

Phase = Literal["strategy", "harvest", "discussion", "reflection"]
MAX_ASKED_AGAIN = 2
DEFAULT_IMPORTANCE = 5
Spend = Callable[[int, str, Answer], None]
_RATED_LINE = regex.compile(r"^[^\n(（:：]{0,20}[(（]\s*(\d+)\s*[)）]\s*[:：]\s*(.+)$", regex.M)


@dataclass
class Person:
    """One agent of one run. `log` gathers its calls in their order until the simulation takes them."""

    run: int
    agent: int
    name: str
    mind: Mind
    scenario: Scenario
    role: str
    memory: Memory
    rules: Rules
    spend: Spend
    months_late: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)

    def clock(self, month: int) -> int:
        """Return the month by this person's own calendar."""
        return month - self.months_late

    async def call(
        self,
        phase: Phase,
        situation: Situation,
        task: str,
        memories: Sequence[Node] = (),
        *,
        place: int,
        when: datetime,
    ) -> Answer:
        """Ask this person's mind, with its role, place, date and memories before the task.

        A prompt that is too long for the model loses its oldest memories, half of them at a time.
        """
        kept = list(memories)
        while True:
            prompt = self._prompt(task, kept, place, when) if self.mind.reads_prompts else ""
            answer = await self.mind.answer(prompt, situation)
            if answer.outcome != "rejected":
                break
            if not kept:
                raise PolyloomError("the prompt does not fit the model.", where=self.mind.spec)
            kept = kept[len(kept) // 2 + 1 :]
        agent = None if self.agent == FRAMEWORK else self.agent
        shortened = len(memories) - len(kept)
        self.log.append(call_event(self.run, phase, agent, situation, prompt, answer, shortened))
        self.spend(self.agent, phase, answer)
        return answer

    def _prompt(self, task: str, memories: Sequence[Node], place: int, when: datetime) -> str:
        words = self.scenario.words
        if self.agent == FRAMEWORK:
            return task
        lines = [f"- {node.created:%Y-%m-%d}: {node.text}" for node in memories] or [words.say("nothing")]
        head = [self.role, words.say("place", place=words.place(place)), words.say("date", date=f"{when:%Y-%m-%d}")]
        return "\n".join([*head, words.say("memories", name=self.name), *lines, "", task])

    async def act(self, view: View, names: Sequence[str]) -> Quantity:
        """Decide on an ask; asked again at most twice where no number can be read."""
        words, month = self.scenario.words, view.month
        when = month_start(self.clock(month))
        question = words.say("question", stock=view.stock, name=self.name)
        k = 14 if self.scenario.name == "pollution" else ACT_K
        memories = self.memory.retrieve([question], k, when) if self.mind.reads_prompts else []
        task = words.say("act", question=question, high=view.stock)
        situation = Situation("act", month, self.agent, view, names)
        for _ in range(1 + MAX_ASKED_AGAIN):
            answer = await self.call("harvest", situation, task, memories, place=0, when=when)
            found = quantity(answer.text, 0, view.stock)
            if found.status in READABLE:
                return found
            task = f"{task}\n{words.say('remind', high=view.stock)}"
        return found

    async def speak(
        self, situation: Situation, turns: str, others: Sequence[str], last: Sequence[str], context: str
    ) -> Utterance:
        """Say the next turn of a conversation."""
        words, month = self.scenario.words, situation.month
        when = talk_day(self.clock(month))
        focal_points = [context, *last[-LAST_UTTERANCES:]]
        memories = self.memory.retrieve(focal_points, TALK_K, when) if self.mind.reads_prompts else []
        task = words.say("talk", name=self.name, others=words.join(list(others)), conversation=turns)
        answer = await self.call("discussion", situation, task, memories, place=1, when=when)
        return utterance(answer.text, situation.names)

    async def vote(self, situation: Situation, candidates: Sequence[str]) -> int | None:
        """Vote for a leader; None where no candidate is named."""
        words = self.scenario.words
        task = words.say("vote", name=self.name, others=words.join(list(candidates)))
        when = talk_day(self.clock(situation.month))
        answer = await self.call("discussion", situation, task, place=1, when=when)
        chosen = utterance(answer.text, situation.names).next
        return list(situation.names).index(chosen) if chosen is not None else None

    async def rate(self, situation: Situation, phase: Phase, text: str, when: datetime) -> tuple[int, bool]:
        """Rate a text's importance; 5 where no number can be read, which is marked."""
        words = self.scenario.words
        task = words.say("importance", name=self.name, text=text)
        answer = await self.call(phase, _for(situation, "importance"), task, place=1, when=when)
        found = quantity(answer.text, 1, 10)
        return (found.value, True) if found.value is not None else (DEFAULT_IMPORTANCE, False)

    async def after_talk(self, situation: Situation, turns: str, summary: str, *, lean: bool) -> list[dict[str, Any]]:
        """Store the talk's summary, a thought for planning and an interesting fact, each rated."""
        words, month = self.scenario.words, situation.month
        when = talk_day(self.clock(month))
        if lean:
            task = words.say("notes", name=self.name, conversation=turns)
            answer = await self.call("discussion", _for(situation, "notes"), task, place=1, when=when)
            rated = rated_lines(answer.text, 2)
            self.memory.add_chat(summary, DEFAULT_IMPORTANCE, when)
        else:
            importance, _ = await self.rate(situation, "discussion", summary, when)
            self.memory.add_chat(summary, importance, when)
            rated = []
            for purpose in ("plan", "fact"):
                task = words.say(purpose, name=self.name, conversation=turns)
                answer = await self.call("discussion", _for(situation, purpose), task, place=1, when=when)
                text = answer.text.strip()
                rated.append((text, *await self.rate(situation, "discussion", text, when)))
        return [
            self._think(kind, month, text, value, known, when)
            for kind, (text, value, known) in zip(("plan", "fact"), rated, strict=False)
        ]

    async def reflect(self, situation: Situation, *, lean: bool, count: int) -> list[dict[str, Any]]:
        """Draw insights from what comes to mind at home; without memories there is nothing to ask."""
        words, month = self.scenario.words, situation.month
        when = reflection_day(self.clock(month))
        memories = self.memory.retrieve([words.say("question", stock="", name=self.name)], REFLECT_K, when)
        if not memories:
            return []
        notes = "\n".join(f"[{place}] {node.text}" for place, node in enumerate(memories, start=1))
        purpose = "reflect_rated" if lean else "reflect"
        task = words.say(purpose, name=self.name, notes=notes, count=count)
        answer = await self.call("reflection", _for(situation, purpose), task, place=2, when=when)
        if lean:
            rated = rated_lines(answer.text, count)
        else:
            lines = [line.strip() for line in answer.text.splitlines() if line.strip()][:count]
            rated = [(line, *await self.rate(situation, "reflection", line, when)) for line in lines]
        return [self._think("insight", month, text, value, known, when) for text, value, known in rated]

    def _think(self, kind: str, month: int, text: str, importance: int, rated: bool, when: datetime) -> dict[str, Any]:
        self.memory.add_thought(text, importance, when)
        thought = {"month": month, "agent": self.agent, "kind": kind, "text": text}
        return {"run": self.run, "type": "thought", **thought, "importance": importance, "rated": rated}


def _for(situation: Situation, purpose: str) -> Situation:
    return Situation(
        purpose,
        situation.month,
        situation.agent,
        situation.view,
        situation.names,
        situation.conversation,
        situation.limit,
    )


def rated_lines(text: str, count: int) -> list[tuple[str, int, bool]]:
    """Read lines of the form "Label (N): sentence"; a line without its number counts 5 and is marked."""
    found = [(said.strip(), min(10, max(1, int(number))), True) for number, said in _RATED_LINE.findall(text)]
    if not found:
        plain = [line.strip() for line in text.splitlines() if line.strip()]
        found = [(line, DEFAULT_IMPORTANCE, False) for line in plain]
    return found[:count]


def call_event(
    run: int, phase: Phase, agent: int | None, situation: Situation, prompt: str, answer: Answer, shortened: int
) -> dict[str, Any]:
    """Return the event of a call."""
    return {
        "run": run,
        "type": "call",
        "month": situation.month,
        "phase": phase,
        "agent": agent,
        "purpose": situation.purpose,
        "prompt": prompt,
        "reply": answer.text,
        "outcome": answer.outcome,
        "shortened": shortened,
    }
