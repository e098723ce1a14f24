"""Logs in and out: GovSim's `log_env.json` and our events, both as one kind of run that metrics can be computed of."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex
import yaml

from polyloom.core.errors import UserError
from polyloom.core.files import read_text
from polyloom.methods.commons.engine import Resource, Sense, Trajectory
from polyloom.methods.commons.events import (
    Agreement,
    Call,
    End,
    Harvest,
    Month,
    MonthEnd,
    Start,
    Utter,
    read_events,
    split_runs,
)
from polyloom.methods.commons.metrics import Score, num_over, score
from polyloom.methods.commons.parsing import READABLE, quantity

LARGEST_DEFAULTED_SHARE = 0.1
COLUMNS = (
    "agent_id",
    "round",
    "action",
    "resource_in_pool_before_harvesting",
    "resource_in_pool_after_harvesting",
    "resource_collected",
    "wanted_resource",
)
_TAGS = regex.compile(r"<[^>]+>")
_ASSISTANT = "<strong>ASSISTANT</strong>:"


@dataclass(frozen=True)
class Turn:
    """What an agent said in a month (from 0)."""

    month: int
    agent: int
    text: str


@dataclass
class LoggedRun:
    """One run of a log.

    Attributes:
        name: where it comes from.
        trajectory: the stock and the amounts of whole months.
        agents: their names.
        turns: what agents said.
        limits: the limit agreed in each month; empty where nobody talked.
        complete: whether it ended by collapse or at the horizon.
        decisions: harvest decisions whose replies are known.
        defaulted: those of them whose reply held no usable number.
        examples: some of those replies.
        facts: arm, language, model and the like.
        notes: what a reader should know.
    """

    name: str
    trajectory: Trajectory
    agents: list[str]
    turns: list[Turn] = field(default_factory=list)
    limits: list[int | None] = field(default_factory=list)
    complete: bool = True
    decisions: int = 0
    defaulted: int = 0
    examples: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def invalid(self) -> bool:
        """Whether more than a tenth of the decisions held no usable number."""
        return self.decisions > 0 and self.defaulted / self.decisions > LARGEST_DEFAULTED_SHARE

    @property
    def status(self) -> str:
        """One word for the run: INVALID and INCOMPLETE runs do not count as survived or collapsed."""
        if self.invalid:
            return "INVALID"
        if not self.complete:
            return "INCOMPLETE"
        survived = self.trajectory.num_months >= self.trajectory.resource.num_months
        return "survived" if survived else "collapsed"

    @property
    def counts(self) -> bool:
        """Whether statistics of groups include it."""
        return self.complete and not self.invalid

    def score(self) -> Score:
        """Return its metrics."""
        return score(self.trajectory, num_utterances=len(self.turns), limits=self.limits)

    def over_usage_as_taking(self) -> float | None:
        """Return over-usage as the paper writes it, r > f_a with f_a = floor(floor(h/2)/N), whatever the sense."""
        plain = Resource()
        pairs = sum(len(month) for month in self.trajectory.obtained)
        shares = [
            plain.thresholds[min(stock, plain.capacity)] // len(month)
            for stock, month in zip(self.trajectory.stocks, self.trajectory.obtained, strict=True)
        ]
        return 100.0 * num_over(self.trajectory.obtained, shares, plain) / pairs if pairs else None


def read_logs(paths: Sequence[str], sense: Sense | None = None) -> list[LoggedRun]:
    """Read runs from files and folders.

    Args:
        paths: `log_env.json`, our `.jsonl`, folders that hold them (searched through), or a run folder.
        sense: what the numbers of a `log_env.json` mean; by default its config.yaml says.

    Raises:
        UserError: nothing there, or a log of another schema.
    """
    runs: list[LoggedRun] = []
    for text in paths:
        path = Path(text)
        if not path.exists():
            raise UserError("does not exist.", where=text, hint="Give log_env.json, events.jsonl or a folder of them.")
        files = sorted([*path.rglob("log_env.json"), *path.rglob("events.jsonl")]) if path.is_dir() else [path]
        for file in files:
            runs += event_runs(file) if file.suffix == ".jsonl" else [read_govsim(file, sense)]
    if not runs:
        raise UserError("holds no log.", where=", ".join(paths), hint="Look for log_env.json or events.jsonl.")
    return runs


def event_runs(path: Path) -> list[LoggedRun]:
    """Read all runs of one of our logs."""
    runs = [from_events(events, f"{path}#{events[0].run}") for events in split_runs(read_events(path))]
    if not runs:
        raise UserError("holds no events.", where=str(path))
    return runs


def from_events(events: Sequence[Any], name: str) -> LoggedRun:
    """Make a run of its events; months that were cut are left out.

    Raises:
        UserError: it does not begin with its `start`.
    """
    start = events[0]
    if not isinstance(start, Start):
        raise UserError("does not begin with a start event.", where=name, hint="The log was cut at its beginning.")
    record = Trajectory(Resource(**start.resource))
    run = LoggedRun(name, record, start.agents, complete=False)
    run.facts = {
        "arm": start.arm,
        "language": start.language,
        "scenario": start.scenario,
        "minds": ", ".join(sorted(set(start.minds))),
    }
    month: Month | None = None
    harvests: list[Harvest] = []
    replies: dict[int, str] = {}
    for event in events[1:]:
        if isinstance(event, Month):
            month, harvests = event, []
        elif isinstance(event, Call) and event.purpose == "act" and event.agent is not None:
            replies[event.agent] = event.reply
        elif isinstance(event, Harvest):
            harvests.append(event)
            run.decisions += 1
            run.defaulted += event.defaulted
            if event.defaulted and len(run.examples) < 3:
                run.examples.append(replies.get(event.agent, ""))
        elif isinstance(event, Utter):
            run.turns.append(Turn(event.month, event.agent, event.text))
        elif isinstance(event, Agreement):
            run.limits.append(event.limit)
        elif isinstance(event, MonthEnd) and month is not None:
            record.stocks.append(month.stock)
            record.thresholds.append(month.threshold)
            record.asks.append([one.ask for one in harvests])
            record.obtained.append([one.obtained for one in harvests])
            record.rests.append(event.rest)
            record.collapsed = event.collapsed
        elif isinstance(event, End):
            run.complete = True
    return run


def read_govsim(path: Path, sense: Sense | None = None) -> LoggedRun:
    """Read a `log_env.json`, with the `config.yaml` beside it where there is one.

    A file that was cut in the middle gives its whole months, and a run that neither collapsed nor reached its horizon
    is INCOMPLETE.

    Raises:
        UserError: no JSON array of records, missing columns (listed), no harvest, or rounds that do not fit together.
    """
    records, notes = _records(path)
    config = _config(path.parent / "config.yaml")
    experiment = config.get("experiment") or {}
    env = experiment.get("env") or {}
    scenario = str(experiment.get("scenario", ""))
    resource = _resource(env, sense or ("remove" if "trash" in scenario else "take"))
    rounds = _rounds(records, path, cut=bool(notes))
    record = Trajectory(resource)
    agents = sorted({row["agent_id"] for rows in rounds for row in rows}, key=_agent_key)
    run = LoggedRun(str(path), record, [_name(records, agent, experiment) for agent in agents], notes=notes)
    for rows in rounds:
        rows = sorted(rows, key=lambda row: _agent_key(row["agent_id"]))
        stock = _whole(rows[0], "resource_in_pool_before_harvesting", path)
        rest = _whole(rows[0], "resource_in_pool_after_harvesting", path)
        record.stocks.append(stock)
        record.rests.append(rest)
        record.thresholds.append(resource.per_agent(stock, len(rows)))
        record.asks.append([_whole(row, "wanted_resource", path) for row in rows])
        record.obtained.append([_whole(row, "resource_collected", path) for row in rows])
        _judge_replies(run, rows, stock)
    record.collapsed = resource.is_collapsed(record.rests[-1])
    run.complete = record.collapsed or record.num_months >= resource.num_months
    whole = range(record.num_months)
    run.turns = [
        Turn(row["round"], agents.index(row["agent_id"]), str(row.get("utterance") or ""))
        for row in records
        if row["action"] == "utterance" and row["agent_id"] in agents and row["round"] in whole
    ]
    limits = {
        row["round"]: row.get("resource_limit") for row in records if row["action"] == "conversation_resource_limit"
    }
    run.limits = [None if limits.get(month) is None else int(limits[month] or 0) for month in whole] if limits else []
    inject = "universalization" if env.get("inject_universalization") else "baseline"
    run.facts = {"arm": inject, "scenario": scenario, "minds": str((config.get("llm") or {}).get("path", ""))}
    return run


def _records(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    text = read_text(path)
    notes = []
    try:
        value = json.loads(text)
    except ValueError:
        value = _whole_records(text)
        notes = [f"{path} is cut in the middle: {len(value)} whole records were read, the last month left out."]
    if not isinstance(value, list) or not value or not all(isinstance(row, dict) for row in value):
        raise UserError("holds no JSON array of records.", where=str(path), hint="Is it GovSim's log_env.json?")
    present = set().union(*value)
    missing = [column for column in COLUMNS if column not in present]
    if missing:
        raise UserError(
            f"lacks the columns {', '.join(missing)}.", where=str(path), hint="Is it GovSim's log_env.json?"
        )
    return value, notes


def _whole_records(text: str) -> list[dict[str, Any]]:
    """Return the records before the place where a JSON array was cut."""
    decoder, rows = json.JSONDecoder(), []
    at = text.find("[") + 1
    while 0 < at < len(text):
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        try:
            row, at = decoder.raw_decode(text, at)
        except ValueError:
            break
        rows.append(row)
    return rows


def _rounds(records: Sequence[Mapping[str, Any]], path: Path, *, cut: bool) -> list[list[Mapping[str, Any]]]:
    """Return the harvest rows of every month, checked: contiguous rounds, each agent once, nobody lost."""
    by_round: dict[int, list[tuple[int, Mapping[str, Any]]]] = {}
    for number, row in enumerate(records):
        if row.get("action") == "harvesting":
            by_round.setdefault(row["round"], []).append((number, row))
    if not by_round:
        raise UserError("holds no harvest.", where=str(path))
    order = sorted(by_round)
    for place, month in enumerate(order):
        if month != place:
            first = by_round[month][0][0]
            raise UserError(
                f"round {place} is missing before row {first}.", where=str(path), hint="Rounds count from 0."
            )
    rounds = [[row for _, row in by_round[month]] for month in order]
    for month, rows in enumerate(rounds):
        agents = {row["agent_id"] for row in rows}
        before = {row["agent_id"] for row in rounds[month - 1]} if month else set()
        if len(agents) != len(rows) or before - agents:
            if cut and month == len(rounds) - 1 and month > 0:
                return rounds[:-1]
            first = by_round[month][0][0]
            what = (
                f"round {month} (row {first} on): {len(rows)} harvests of {len(agents)} agents, {len(before)} before."
            )
            raise UserError(what, where=str(path), hint="Every agent harvests once a round.")
    return rounds


def _judge_replies(run: LoggedRun, rows: Sequence[Mapping[str, Any]], stock: int) -> None:
    """Read the replies again that a log kept: a failed one was stored as 0."""
    for row in rows:
        kept = row.get("html_interactions")
        texts = kept if isinstance(kept, list) else [kept] if kept else []
        if not texts or _ASSISTANT not in str(texts[-1]):
            continue
        reply = html.unescape(_TAGS.sub("", str(texts[-1]).rpartition(_ASSISTANT)[2])).strip()
        run.decisions += 1
        found = quantity(reply, 0, max(stock, run.trajectory.resource.capacity))
        if found.status not in READABLE:
            run.defaulted += 1
            if len(run.examples) < 3:
                run.examples.append(reply[-200:])


def _whole(row: Mapping[str, Any], column: str, path: Path) -> int:
    value = row[column]
    if not isinstance(value, int | float) or value != int(value):
        raise UserError(
            f"{column} of {row['agent_id']} in round {row['round']} is {value!r}.",
            where=str(path),
            hint="Amounts are whole numbers.",
        )
    return int(value)


def _agent_key(agent: str) -> tuple[int, str]:
    digits = regex.search(r"\d+$", agent)
    return (int(digits.group()) if digits else 0, agent)


def _name(records: Sequence[Mapping[str, Any]], agent: str, experiment: Mapping[str, Any]) -> str:
    """Return an agent's name, from what it said or from the configuration's personas."""
    said = next((str(r["agent_name"]) for r in records if r["agent_id"] == agent and r.get("agent_name")), None)
    persona = (experiment.get("personas") or {}).get(agent) or {}
    return said or str(persona.get("name") or agent)


def _config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError("is not YAML.", where=str(path)) from error
    return value if isinstance(value, dict) else {}


def _resource(env: Mapping[str, Any], sense: Sense) -> Resource:
    initial, months = int(env.get("initial_resource_in_pool", 100)), int(env.get("max_num_rounds", 12))
    if sense == "remove":
        return Resource(100, initial, 50, None, "add", 95, "remove", num_months=months)
    return Resource(capacity=initial, initial=initial, num_months=months)


def write_govsim(events: Sequence[Any], path: Path) -> None:
    """Write one of our runs as a `log_env.json` that GovSim's own analysis reads."""
    start: Start = events[0]
    empty: dict[str, Any] = dict.fromkeys(
        (*COLUMNS, "agent_name", "concurrent_harvesting", "html_interactions", "resource_limit", "utterance")
    )
    stock = {event.month: event.stock for event in events if isinstance(event, Month)}
    rest = {event.month: event.rest for event in events if isinstance(event, MonthEnd)}
    rows = []
    for event in events:
        who = {"agent_id": "framework", "agent_name": "framework"}
        if isinstance(event, Harvest | Utter):
            who = {"agent_id": f"persona_{event.agent}", "agent_name": start.agents[event.agent]}
        if isinstance(event, Harvest):
            rows.append(
                {
                    **empty,
                    **who,
                    "round": event.month,
                    "action": "harvesting",
                    "resource_in_pool_before_harvesting": stock[event.month],
                    "resource_in_pool_after_harvesting": rest.get(event.month),
                    "concurrent_harvesting": True,
                    "resource_collected": event.obtained,
                    "wanted_resource": event.ask,
                    "html_interactions": [],
                }
            )
        elif isinstance(event, Utter):
            rows.append({**empty, **who, "round": event.month, "action": "utterance", "utterance": event.text})
        elif isinstance(event, Agreement):
            rows.append(
                {**empty, **who, "round": event.month, "action": "conversation_summary", "utterance": event.summary}
            )
            rows.append(
                {
                    **empty,
                    **who,
                    "round": event.month,
                    "action": "conversation_resource_limit",
                    "resource_limit": event.limit,
                }
            )
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
