"""One run of the community, month by month: strategy, harvest, discussion, reflection. Its events are the result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from polyloom.core.errors import PolyloomError
from polyloom.core.seeding import python_random
from polyloom.methods.commons.arms import NEWCOMER_MONTH, NEWCOMER_MONTHS, Arm, Rules, hint, note_text
from polyloom.methods.commons.engine import Commons, Resource, play
from polyloom.methods.commons.events import SCHEMA
from polyloom.methods.commons.memory import Memory, month_start, talk_day
from polyloom.methods.commons.minds import FRAMEWORK, Answer, Mind, Situation
from polyloom.methods.commons.parsing import Quantity, agreed_limit
from polyloom.methods.commons.people import Person, Spend
from polyloom.methods.commons.policies import greedy, read_policy
from polyloom.methods.commons.scenario import Scenario

Calls = Literal["faithful", "lean"]
OnUnparsed = Literal["abstain", "threshold", "error"]
ReportBy = Literal["moderator", "individual", "none"]
Order = Literal["fixed", "rotate", "random"]


@dataclass(frozen=True)
class Setting:
    """All that defines a run besides its seed and its minds."""

    scenario: Scenario
    arm: Arm
    rules: Rules = "paper"
    calls: Calls = "faithful"
    num_agents: int = 5
    on_unparsed: OnUnparsed = "abstain"
    report_by: ReportBy = "moderator"
    order: Order = "fixed"
    max_turns: int = 10
    num_insights: int = 1

    @property
    def resource(self) -> Resource:
        """The numbers of the game."""
        return self.scenario.resource

    @property
    def joins(self) -> dict[int, int]:
        """How many agents join at the start of a month (from 0)."""
        return {NEWCOMER_MONTH: 1} if self.arm.newcomer else {}

    @property
    def num_at_start(self) -> int:
        """Agents of the first month."""
        return self.num_agents - sum(self.joins.values())


def with_arm_horizon(scenario: Scenario, arm: Arm, num_months: int | None) -> Scenario:
    """Return the scenario with the horizon: the one given, else 15 with a newcomer, else its own."""
    if num_months is None and arm.newcomer:
        num_months = NEWCOMER_MONTHS
    if num_months is None:
        return scenario
    return replace(scenario, resource=replace(scenario.resource, num_months=num_months))


def start_event(run: int, seed: int, setting: Setting, minds: Sequence[str]) -> dict[str, Any]:
    """Return the first event of a run."""
    scenario = setting.scenario
    settings = ("on_unparsed", "order", "max_turns", "num_insights")
    return {
        "run": run,
        "type": "start",
        "schema_version": SCHEMA,
        "scenario": scenario.name,
        "language": scenario.words.language,
        "arm": setting.arm.name,
        "rules": setting.rules,
        "calls": setting.calls,
        "report": setting.report_by,
        "seed": seed,
        "agents": scenario.words.names(setting.num_agents),
        "minds": list(minds),
        "resource": asdict(setting.resource),
        "settings": {name: getattr(setting, name) for name in settings},
    }


class Simulation:
    """One run of talking agents."""

    def __init__(
        self,
        setting: Setting,
        minds: Sequence[Mind],
        framework: Mind,
        seed: int,
        run: int = 0,
        spend: Spend | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            setting: what is played.
            minds: one per agent; whoever joins later comes last.
            framework: sums up the talk.
            seed: of the run.
            run: its number in the log.
            spend: told of every call: agent, phase and answer.
        """
        self.setting, self.seed, self.run = setting, seed, run
        self.words = setting.scenario.words
        self.names = self.words.names(setting.num_agents)
        self.game = Commons(setting.resource, setting.num_at_start, seed, joins=setting.joins)
        self.events = [start_event(run, seed, setting, [mind.spec for mind in minds])]
        self.spend = spend or _ignore
        self.people = [self._person(agent, mind) for agent, mind in enumerate(minds)]
        self.framework = Person(run, FRAMEWORK, "", framework, setting.scenario, "", Memory(), "paper", self.spend)
        self.decisions = self.defaulted = 0
        self._limit: int | None = None

    def _person(self, agent: int, mind: Mind) -> Person:
        setting, names = self.setting, self.names
        late = setting.arm.newcomer and agent == setting.num_agents - 1
        # The reference tells four people of "four others"; corrected, a role names those who are there.
        here = names if late or setting.rules == "reference" else names[: setting.num_at_start]
        others = [name for name in here if name != names[agent]]
        role = setting.scenario.role(names[agent], others, talks=setting.arm.talk)
        trait = setting.arm.trait if agent == setting.num_agents - 1 else "caring" if setting.arm.newcomer else None
        if trait is not None:
            role = f"{role}\n{self.words.say(trait, name=names[agent])}"
        months_late = NEWCOMER_MONTH if late and setting.rules == "reference" else 0
        memory = Memory(setting.rules)
        return Person(
            self.run, agent, names[agent], mind, setting.scenario, role, memory, setting.rules, self.spend, months_late
        )

    def _log(self, kind: str, **values: object) -> None:
        self.events.append({"run": self.run, "type": kind, **values})

    def _collect(self, people: Sequence[Person]) -> None:
        """Take the calls of people who were asked at the same time, in the order of the agents."""
        for person in people:
            self.events.extend(person.log)
            person.log.clear()

    async def play(self, check_stop: Callable[[], None] | None = None) -> list[dict[str, Any]]:
        """Play the run to its end and return its events.

        Args:
            check_stop: called between months; may raise.
        """
        while not self.game.done:
            if check_stop is not None:
                check_stop()
            await self._month()
        record = self.game.trajectory
        ends = {"months": record.num_months, "collapsed": record.collapsed}
        self._log("end", **ends, decisions=self.decisions, defaulted=self.defaulted)
        return self.events

    async def _month(self) -> None:
        view = self.game.view
        month, present = view.month, self.people[: view.num_agents]
        self._strategy(present)
        asks = await self._harvest(present)
        obtained = self.game.harvest([value for value, _ in asks])
        record = self.game.trajectory
        for agent, ((ask, found), amount) in enumerate(zip(asks, obtained, strict=True)):
            state = {"status": found.status, "raw": found.raw, "defaulted": found.value is None}
            self._log("harvest", month=month, agent=agent, ask=ask, obtained=amount, **state)
        self._after_harvest(month, present, [ask for ask, _ in asks], obtained)
        names = self.names[: len(present)]
        limit = view.threshold if not self.game.done else record.thresholds[-1]
        situation = Situation("talk", month, 0, view, names, limit=limit)
        if self.setting.arm.talk:
            await self._talk(month, present, situation, obtained)
        await self._reflect(present, situation)
        rest, following = record.rests[-1], view.stock
        self._log("month_end", month=month, rest=rest, next_stock=following, collapsed=record.collapsed)

    def _strategy(self, present: Sequence[Person]) -> None:
        """Tell everyone the stock, who has come, and what the arm wants them to have in mind."""
        view, setting = self.game.view, self.setting
        number = hint(view, setting.rules, setting.arm.newcomer)
        shown = {"stock": view.stock, "threshold": view.threshold, "hint": number}
        self._log("month", month=view.month, **shown, agents=len(present))
        came = self.setting.joins.get(view.month, 0)
        for person in present:
            when = month_start(person.clock(view.month))
            clock = person.clock(view.month)
            person.memory.add_event(self.words.say("stock", stock=view.stock), clock, when)
            notes = [note_text(setting.arm, self.words, person.name, number)]
            notes += [self.words.say("joined", name=other.name) for other in present[len(present) - came :]]
            for text in notes:
                if text is not None:
                    person.memory.add_event(text, clock, when)
                    self._log("note", month=view.month, agent=person.agent, text=text)

    async def _harvest(self, present: Sequence[Person]) -> list[tuple[int, Quantity]]:
        """Ask everybody at the same time; what cannot be read is counted, never taken for a number."""
        view, names = self.game.view, self.names[: len(present)]
        view.limit = self._limit
        found = await asyncio.gather(*(person.act(view, names) for person in present))
        self._collect(present)
        self.decisions += len(found)
        asks = []
        for person, read in zip(present, found, strict=True):
            if read.value is None:
                self.defaulted += 1
                if self.setting.on_unparsed == "error":
                    what = f"{person.name}'s reply in month {view.month + 1} holds no usable number ({read.status})."
                    raise PolyloomError(what, where=person.mind.spec, hint="See the log, or use --on-unparsed abstain.")
            default = view.threshold if self.setting.on_unparsed == "threshold" else 0
            asks.append((default if read.value is None else read.value, read))
        return asks

    def _after_harvest(
        self, month: int, present: Sequence[Person], asks: Sequence[int], obtained: Sequence[int]
    ) -> None:
        """Tell everyone what they obtained, and fine whoever broke the norm."""
        words, arm = self.words, self.setting.arm
        all_reports = [words.say("report", name=self.names[i], amount=amount) for i, amount in enumerate(obtained)]
        for person, ask, amount in zip(present, asks, obtained, strict=True):
            when = talk_day(person.clock(month))
            own = words.say("caught", name=person.name, ask=ask, amount=amount)
            person.memory.add_event(own, person.clock(month), when)
            if arm.report and not arm.talk:
                person.memory.add_event(" ".join(all_reports), person.clock(month), when)
                self._log("report", month=month, agent=person.agent, text=" ".join(all_reports))
            excess = amount - self.game.trajectory.thresholds[-1]
            if arm.fined and excess > 0:
                self._log("fine", month=month, agent=person.agent, amount=2 * excess)

    async def _talk(self, month: int, present: Sequence[Person], about: Situation, obtained: Sequence[int]) -> None:
        words, names = self.words, about.names
        opening = self._opening(month, obtained)
        speaker = await self._opener(month, present, about)
        spoken: list[tuple[int, str]] = []
        opener = speaker
        while len(spoken) < self.setting.max_turns - 1:
            person = present[speaker]
            turns = "\n".join([*opening, *(f"- {names[agent]}: {text}" for agent, text in spoken)])
            situation = replace(about, agent=speaker, conversation=spoken, purpose="talk")
            others = [name for name in names if name != person.name]
            # The reference lets the opener's model speak for everybody.
            mind = person.mind
            if self.setting.rules == "reference":
                person.mind = present[opener].mind
            said = await person.speak(situation, turns, others, [text for _, text in spoken], " ".join(opening))
            person.mind = mind
            self._collect([person])
            spoken = [*spoken, (speaker, said.text)]
            following = list(names).index(said.next) if said.next is not None else None
            turn = {"agent": speaker, "text": said.text, "ended": said.ended, "next": following}
            self._log("utterance", month=month, **turn)
            if said.ended is not False:
                break
            speaker = least_spoken(spoken, len(present)) if following is None else following
        turns = "\n".join([*opening, *(f"- {names[agent]}: {text}" for agent, text in spoken)])
        summary, limit = await self._agree(month, replace(about, conversation=spoken), turns)
        self._limit = limit
        jobs = [
            person.after_talk(replace(about, agent=person.agent, conversation=spoken), turns, summary, lean=self._lean)
            for person in present
        ]
        await self._thoughts(present, jobs)
        if limit is not None:
            for person in present:
                agreed = words.say("agreed", limit=limit)
                person.memory.add_thought(agreed, 10, talk_day(person.clock(month)), always=True)

    @property
    def _lean(self) -> bool:
        return self.setting.calls == "lean"

    def _opening(self, month: int, obtained: Sequence[int]) -> list[str]:
        """Return the lines that the talk opens with: who took what, as it is reported."""
        words, by = self.words, self.setting.report_by
        if by == "none":
            return []
        reports = [words.say("report", name=self.names[i], amount=amount) for i, amount in enumerate(obtained)]
        if by == "individual":
            for agent, text in enumerate(reports):
                self._log("report", month=month, agent=agent, text=text)
            return [f"- {self.names[agent]}: {text}" for agent, text in enumerate(reports)]
        self._log("report", month=month, agent=None, text=" ".join(reports))
        return [f"- {words.moderator}: {' '.join(reports)}"]

    async def _opener(self, month: int, present: Sequence[Person], about: Situation) -> int:
        """Return who speaks first: the elected leader, or by the order that is set (agent 0 by default)."""
        if self.setting.arm.leader:
            votes = await asyncio.gather(
                *(person.vote(replace(about, purpose="vote", agent=person.agent), about.names) for person in present)
            )
            self._collect(present)
            leader = max(range(len(present)), key=lambda agent: (sum(vote == agent for vote in votes), -agent))
            self._log("election", month=month, votes=list(votes), leader=leader)
            return leader
        if self.setting.order == "rotate":
            return month % len(present)
        if self.setting.order == "random":
            return python_random(self.seed, "opener", month).randrange(len(present))
        return 0

    async def _agree(self, month: int, about: Situation, turns: str) -> tuple[str, int | None]:
        """Sum up the talk and read the limit per person that was agreed."""
        words, framework = self.words, self.framework
        about = replace(about, agent=FRAMEWORK)
        when = talk_day(month)
        if self._lean:
            task = words.say("agreement", conversation=turns)
            situation = replace(about, purpose="agreement")
            answer = await framework.call("discussion", situation, task, place=1, when=when)
            lines = [line for line in answer.text.strip().splitlines() if line.strip()]
            summary, last = (lines[0] if lines else ""), answer
        else:
            texts: list[Answer] = []
            for purpose in ("summary", "limit"):
                task = words.say(purpose, conversation=turns)
                situation = replace(about, purpose=purpose)
                texts.append(await framework.call("discussion", situation, task, place=1, when=when))
            summary, last = texts[0].text.strip(), texts[1]
        self._collect([framework])
        limit = agreed_limit(last.text)
        self._log("agreement", month=month, summary=summary, limit=limit)
        return summary, limit

    async def _reflect(self, present: Sequence[Person], about: Situation) -> None:
        jobs = [
            person.reflect(replace(about, agent=person.agent), lean=self._lean, count=self.setting.num_insights)
            for person in present
        ]
        await self._thoughts(present, jobs)

    async def _thoughts(self, present: Sequence[Person], jobs: Sequence[Any]) -> None:
        """Let everybody think at the same time, and log calls and thoughts agent by agent."""
        thoughts = await asyncio.gather(*jobs)
        for person, kept in zip(present, thoughts, strict=True):
            self._collect([person])
            self.events.extend(kept)


def least_spoken(spoken: Sequence[tuple[int, str]], num_agents: int) -> int:
    """Return who has spoken least, the first on ties."""
    counts = [sum(agent == other for other, _ in spoken) for agent in range(num_agents)]
    return counts.index(min(counts))


def _ignore(agent: int, phase: str, answer: Answer) -> None:
    """Account for nothing."""


def play_numbers(
    setting: Setting, specs: Sequence[str], seed: int, run: int = 0, *, log: bool = True
) -> list[dict[str, Any]]:
    """Play scripted policies without talk, notes and prompts: the same game, thousands of months a second.

    Args:
        setting: what is played.
        specs: one policy per agent.
        seed: of the run.
        run: its number in the log.
        log: return the events; without it nothing is kept.
    """
    policies = [read_policy(spec) for spec in specs]
    if setting.arm.trait is not None:
        policies[-1] = greedy
    record = play(setting.resource, policies, seed, num_at_start=setting.num_at_start, joins=setting.joins)
    if not log:
        return []
    events = [start_event(run, seed, setting, specs)]
    for month, (stock, share, asks, amounts, rest) in enumerate(
        zip(record.stocks, record.thresholds, record.asks, record.obtained, record.rests, strict=True)
    ):
        add = events.append
        add(
            {
                "run": run,
                "type": "month",
                "month": month,
                "stock": stock,
                "threshold": share,
                "hint": share,
                "agents": len(asks),
            }
        )
        for agent, (ask, amount) in enumerate(zip(asks, amounts, strict=True)):
            add(
                {
                    "run": run,
                    "type": "harvest",
                    "month": month,
                    "agent": agent,
                    "ask": ask,
                    "obtained": amount,
                    "status": "ok",
                }
            )
        last = month == record.num_months - 1
        following = (
            record.stocks[month + 1]
            if not last
            else setting.resource.grow(rest, setting.resource.month_growth(seed, month))
        )
        add(
            {
                "run": run,
                "type": "month_end",
                "month": month,
                "rest": rest,
                "next_stock": following,
                "collapsed": last and record.collapsed,
            }
        )
    ends = {"months": record.num_months, "collapsed": record.collapsed}
    decisions = sum(len(month) for month in record.asks)
    events.append({"run": run, "type": "end", **ends, "decisions": decisions, "defaulted": 0})
    return events
