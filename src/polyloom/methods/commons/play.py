"""The verbs `run`, `compare`, `replay` and `branch`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError, closest
from polyloom.core.files import read_text, write_text
from polyloom.core.result import Artifact, Result, Scalar, Series, Table
from polyloom.methods.commons.arms import read_arm
from polyloom.methods.commons.config import (
    BranchConfig,
    GameConfig,
    MindsConfig,
    ReplayConfig,
    RunConfig,
)
from polyloom.methods.commons.engine import Resource
from polyloom.methods.commons.events import (
    Agreement,
    Harvest,
    Report,
    Start,
    Utter,
    encode_events,
    read_events,
    split_runs,
)
from polyloom.methods.commons.logs import LoggedRun, event_runs, from_events, read_govsim, write_govsim
from polyloom.methods.commons.minds import FRAMEWORK, LogMind, Mind, ScriptedMind, logged_replies, spread
from polyloom.methods.commons.policies import is_policy
from polyloom.methods.commons.runner import (
    Cast,
    Job,
    Ledger,
    check_specs,
    estimate,
    play_jobs,
    play_sweep,
    refuse_models_in_sweep,
)
from polyloom.methods.commons.scenario import Scenario, load_scenario
from polyloom.methods.commons.scoring import (
    ETHICS,
    group_scalars,
    limitations,
    runs_table,
    stock_series,
    survival_series,
    why,
)
from polyloom.methods.commons.simulation import Setting, Simulation, start_event, with_arm_horizon
from polyloom.runs.folder import Run

EVENTS = Artifact(
    path="artifacts/events.jsonl", media_type="application/x-ndjson", description="All events of all runs"
)


def setting_of(config: GameConfig, arm_name: str, **more: Any) -> Setting:
    """Return what a configuration plays in an arm.

    Raises:
        UserError: unknown arm, scenario or language, or impossible numbers.
    """
    arm = read_arm(arm_name)
    scenario = load_scenario(config.scenario, config.language, num_agents=config.num_agents)
    if arm.newcomer and config.num_agents < 2:
        raise UserError("a newcomer needs somebody to come to.", where="--num-agents", hint="Use at least 2.")
    return Setting(
        with_arm_horizon(scenario, arm, config.num_months),
        arm,
        rules=config.rules,
        calls=config.calls,
        num_agents=config.num_agents,
        on_unparsed=config.on_unparsed,
        **more,
    )


def run_run(config: RunConfig, run: Run) -> Result:
    """Play one arm with its seeds.

    Raises:
        UserError: unfit minds, arm, scenario or numbers.
        PolyloomError: a server that stays away, or a spent budget; the run can be resumed.
    """
    more = {"report_by": config.report_by, "order": config.order, "max_turns": config.max_turns}
    setting = setting_of(config, config.arm, **more, num_insights=config.num_insights)
    check_specs(config, config.minds, config.num_agents)
    if config.dry_run:
        return _dry_run(config, setting, run)
    ledger = Ledger(config.price_in, config.price_out, config.budget)
    seeds = [config.seed + i for i in range(config.num_seeds)]
    specs = spread(config.minds, config.num_agents)
    costs: dict[str, Scalar] = {}
    if config.detail == "numbers":
        refuse_models_in_sweep(specs)

        text = play_sweep(setting, specs, seeds, workers=config.workers, cluster=config.cluster, once=run.once)

    else:
        jobs = [Job(f"run-{i:05d}", setting, specs, seed, i) for i, seed in enumerate(seeds)]
        texts, costs = play_all(config, jobs, ledger, run)
        text = "".join(texts)
    events_path = run.artifact("events.jsonl")
    write_text(events_path, text)
    logged = event_runs(events_path)
    for number, one in enumerate(logged):
        one.name = f"seed {seeds[number]}"
    first = split_runs(read_events(events_path))[0]
    write_text(run.artifact("transcript.md"), transcript(first))
    write_govsim(first, run.artifact("log_env.json"))
    transcript_file = Artifact(path="artifacts/transcript.md", media_type="text/markdown", description="The first run")
    govsim_file = Artifact(
        path="artifacts/log_env.json", media_type="application/json", description="The first run, as GovSim"
    )
    tables = {"runs": runs_table(logged), **({"requests": phase_table(ledger)} if costs else {})}
    if any(isinstance(event, Utter) for event in first):
        tables["conversation"] = conversation_table(first)
    return run.result(
        scalars={
            **group_scalars(logged),
            **costs,
            "num_months_played": Scalar(value=sum(r.trajectory.num_months for r in logged)),
        },
        tables=tables,
        series=group_series({config.arm: logged}),
        artifacts={"events": EVENTS, "transcript": transcript_file, "log_env": govsim_file},
        verdicts=[f"{one.name}: {why(one)}" for one in logged[:10]],
        limitations=[*limitations(logged), ETHICS, *scripted_limitation(specs)],
    )


def scripted_limitation(specs: Sequence[str]) -> list[str]:
    """Say so where all agents are scripts."""
    if all(is_policy(spec) for spec in specs):
        return ["The agents are scripts: this shows the game and the machinery, not the behaviour of language models."]
    return []


def _dry_run(config: RunConfig, setting: Setting, run: Run) -> Result:
    numbers = estimate(setting, config.num_seeds)
    cost = (numbers["prompt_tokens"] * config.price_in + numbers["reply_tokens"] * config.price_out) / 1e6
    scalars = {f"estimated_{name}": Scalar(value=value) for name, value in numbers.items()}
    return run.result(
        scalars={**scalars, "estimated_cost": Scalar(value=cost)},
        verdicts=[f"At most {numbers['requests']} requests if every run lasts {setting.resource.num_months} months."],
        limitations=["Tokens are the paper's average per request; a community that collapses early asks less."],
    )


def play_all(config: MindsConfig, jobs: Sequence[Job], ledger: Ledger, run: Run) -> tuple[list[str], dict[str, Scalar]]:
    """Play jobs in this run's folder and return their logs and what they cost."""
    folder = run.path / "steps"

    async def work() -> tuple[list[str], dict[str, Scalar]]:
        with run.progress("communities", len(jobs)) as advance:
            async with Cast(config, run.path / "artifacts") as cast:
                texts = await play_jobs(jobs, cast, folder, ledger=ledger, check_stop=run.check_stop, progress=advance)
                account = cast.account
        calls = sum(row[0] for row in ledger.calls.values())
        cached = sum(row[1] for row in ledger.calls.values())
        counts = {
            "num_calls": calls,
            "num_calls_cached": cached,
            "num_requests_sent": account.num_sent,
            "prompt_tokens": account.prompt_tokens,
            "reply_tokens": account.completion_tokens,
        }
        return texts, {
            **{name: Scalar(value=value) for name, value in counts.items()},
            "cost": Scalar(value=ledger.cost),
        }

    return asyncio.run(work())


def phase_table(ledger: Ledger) -> Table:
    """Return what each phase asked and cost."""
    rows = [[phase, *row] for phase, row in sorted(ledger.by_phase().items())]
    columns = ["phase", "calls", "cached", "prompt tokens", "reply tokens"]
    return Table(columns=columns, rows=rows, title="Calls by phase")


def group_series(groups: dict[str, list[LoggedRun]]) -> dict[str, Series]:
    """Return survival and stock curves of groups of runs."""
    series = {}
    for name, runs in groups.items():
        for kind, made in (("survival", survival_series(runs)), ("stock", stock_series(runs))):
            if made is not None:
                series[f"{kind} {name}"] = made
    return series


def conversation_table(events: Sequence[Any], month: int | None = None) -> Table:
    """Return who said what, one row a turn, of one month (from 0) or of the first in which anybody spoke."""
    start: Start = events[0]
    if month is None:
        month = next((event.month for event in events if isinstance(event, Utter)), 0)
    rows: list[list[str | int | None]] = []
    for event in events:
        if getattr(event, "month", None) != month:
            continue
        if isinstance(event, Harvest):
            rows.append(
                [start.agents[event.agent], "harvest", f"asked {event.ask}, obtained {event.obtained} ({event.status})"]
            )
        elif isinstance(event, Report):
            rows.append(["moderator" if event.agent is None else start.agents[event.agent], "report", event.text])
        elif isinstance(event, Utter):
            rows.append([start.agents[event.agent], "says", event.text])
        elif isinstance(event, Agreement):
            limit = "no limit" if event.limit is None else f"limit {event.limit}"
            rows.append(["moderator", "agreement", f"{event.summary} [{limit}]"])
    return Table(columns=["who", "what", "text"], rows=rows, title=f"Month {month + 1}")


def transcript(events: Sequence[Any]) -> str:
    """Return a run as Markdown: month by month what was there, taken and said."""
    start: Start = events[0]
    months = sorted({event.month for event in events if isinstance(event, Harvest)})
    lines = [f"# {start.scenario}, {start.language}, {start.arm}, seed {start.seed}", "", ETHICS, ""]
    for month in months:
        stock = next(event.stock for event in events if event.type == "month" and event.month == month)
        lines += [f"## Month {month + 1}: {stock} units", ""]
        lines += [
            f"- **{who}** ({what}): {' '.join(str(text).split())}"
            for who, what, text in conversation_table(events, month).rows
        ]
        lines.append("")
    return "\n".join(lines)


def _load(log: str, number: int) -> tuple[list[Any], Path]:
    """Return the events of one run of a log; a `log_env.json` is made into events without calls."""
    path = Path(log)
    if path.is_dir():
        found = [*path.rglob("events.jsonl"), *path.rglob("log_env.json")]
        if not found:
            raise UserError("holds no events.jsonl.", where=log)
        path = found[0]
    if not path.exists():
        raise UserError("does not exist.", where=log, hint="Give an events.jsonl.")
    runs = split_runs(read_events(path)) if path.suffix == ".jsonl" else [_govsim_events(path)]
    if number >= len(runs):
        raise UserError(f"holds {len(runs)} runs.", where=str(path), hint="Choose --run-number from 0.")
    return runs[number], path


def _govsim_events(path: Path) -> list[Any]:
    """Return the asks and turns of a `log_env.json` as events, to branch from."""
    logged = read_govsim(path)
    record = logged.trajectory
    scenario = "trash" if record.resource.sense == "remove" else "fishery"
    words = load_scenario(scenario)
    setting = Setting(
        Scenario(words.name, words.title, record.resource, words.words),
        read_arm("baseline"),
        num_agents=len(logged.agents),
    )
    start = start_event(0, 0, setting, ["log"] * len(logged.agents))
    events: list[Any] = [Start(**{**start, "agents": logged.agents})]
    for month, asks in enumerate(record.asks):
        for agent, ask in enumerate(asks):
            amount = record.obtained[month][agent]
            events.append(
                Harvest(type="harvest", run=0, month=month, agent=agent, ask=ask, obtained=amount, status="ok")
            )
        events += [
            Utter(type="utterance", run=0, month=month, agent=turn.agent, text=turn.text, ended=None, next=None)
            for turn in logged.turns
            if turn.month == month
        ]
    return events


def _setting_of_log(start: Start) -> Setting:
    arm = read_arm(start.arm)
    base = load_scenario(start.scenario, start.language, num_agents=len(start.agents))
    scenario = Scenario(base.name, base.title, Resource(**start.resource), base.words)
    common: dict[str, Any] = {"rules": start.rules, "calls": start.calls, "report_by": start.report}
    return Setting(scenario, arm, num_agents=len(start.agents), **common, **start.settings)


def run_replay(config: ReplayConfig, run: Run) -> Result:
    """Play a log again from its replies, check that the same events come out, and show the run."""
    events, path = _load(config.log, config.run_number)
    start: Start = events[0]
    if path.suffix != ".jsonl":
        raise UserError(
            "cannot be played again exactly: it holds no replies.", where=str(path), hint="Use branch or score."
        )
    number = start.run
    kept = [line for line in read_text(path).splitlines(keepends=True) if f'"run":{number},' in line[:24]]
    setting = _setting_of_log(start)
    logged = from_events(events, str(path))
    full = any(event.type == "call" for event in events)
    same: bool | None = None
    if full and logged.complete:
        mind = LogMind(str(path), logged_replies(events, setting.scenario.words))
        same = encode_events(_again(setting, start, mind)) == _without_prompts("".join(kept))
    month = None if config.month is None else config.month - 1
    table = conversation_table(events, month)
    if not table.rows:
        raise UserError(f"the log has no month {config.month}.", where=config.log)
    write_text(run.artifact("transcript.md"), transcript(events))
    taken = {
        name: Series(
            x=list(range(1, logged.trajectory.num_months + 1)),
            y=[float(m[i]) if i < len(m) else None for m in logged.trajectory.obtained],
            x_label="month",
            y_label="obtained",
            group="What each obtained",
        )
        for i, name in enumerate(start.agents)
    }
    return run.result(
        scalars={
            **group_scalars([logged]),
            "events_identical": Scalar(value=same),
            "num_events": Scalar(value=len(events)),
        },
        tables={"conversation": table, "runs": runs_table([logged])},
        series={**group_series({start.arm: [logged]}), **taken},
        artifacts={
            "transcript": Artifact(path="artifacts/transcript.md", media_type="text/markdown", description="The run")
        },
        verdicts=[why(logged)],
        limitations=[*limitations([logged]), ETHICS]
        + ([] if full else ["The log holds numbers alone: there are no replies to play again."]),
    )


def _again(setting: Setting, start: Start, mind: LogMind) -> list[dict[str, Any]]:
    mind.reads_prompts = False
    simulation = Simulation(setting, [mind] * len(start.agents), mind, start.seed, start.run)
    simulation.events[0]["minds"] = start.minds
    events = asyncio.run(simulation.play())
    return events


def _without_prompts(text: str) -> str:
    """Drop the prompts of call events: a replay from replies does not write them again."""
    import json

    rows = [json.loads(line) for line in text.splitlines()]
    for row in rows:
        if row["type"] == "call":
            row["prompt"], row["shortened"] = "", 0
    return encode_events(rows)


def run_branch(config: BranchConfig, run: Run) -> Result:
    """Play a log again up to a month, change a reply or the minds there, and go on.

    Raises:
        UserError: no such month, name or mind.
    """
    events, path = _load(config.log, config.run_number)
    start: Start = events[0]
    setting = _setting_of_log(start)
    first = config.month - 1
    last = max((event.month for event in events if isinstance(event, Harvest)), default=-1)
    if first > last:
        raise UserError(f"the log ends in month {last + 1}.", where="--month")
    changed = _changed_asks(config.ask, start, setting, first)
    specs = spread(config.minds or start.minds, len(start.agents))
    if "log" in specs:
        raise UserError(
            "the log does not say who played.", where="--minds", hint="Name who goes on, such as sustainable."
        )
    check = GameConfig(seed=config.seed)
    check_specs(check, specs, len(start.agents))
    job = Job("branch", setting, specs, start.seed, 0)
    replies = logged_replies(events, setting.scenario.words)

    async def work() -> str:
        async with Cast(config, run.path / "artifacts") as cast:
            await cast.open([*specs, *([config.framework] if config.framework else [])])
            minds, framework = cast.minds(job)
            known = any(key[1] == FRAMEWORK for key in replies)
            script = ScriptedMind("sustainable", setting.scenario.words)
            wrapped: list[Mind] = [
                LogMind(str(path), replies, _unlogged(mind, script, known), first, changed) for mind in minds
            ]
            sums = LogMind(str(path), replies, framework, first)
            return encode_events(await Simulation(setting, wrapped, sums, start.seed).play(run.check_stop))

    text = asyncio.run(work())
    out = run.artifact("events.jsonl")
    write_text(out, text)
    branch, original = (
        event_runs(out)[0],
        from_events(events, "the log") if path.suffix == ".jsonl" else read_govsim(path),
    )
    branch.name, original.name = "branch", "log"
    ours, theirs = branch.score(), original.score()
    differences = {
        f"{name}_difference": Scalar(value=getattr(ours, name) - getattr(theirs, name))
        for name in ("months", "gain", "efficiency")
    }
    return run.result(
        scalars={**group_scalars([branch], "branch."), **group_scalars([original], "log."), **differences},
        tables={"runs": runs_table([original, branch])},
        series={"log": _stock(original), "branch": _stock(branch)},
        artifacts={"events": EVENTS},
        verdicts=[f"log: {why(original)}", f"branch: {why(branch)}"],
        limitations=[
            *limitations([original, branch]),
            "One branch is one story, not an effect: compare arms for that.",
        ],
    )


def _unlogged(mind: Mind, script: Mind, known: bool) -> Mind:
    """Return who answers what a log without calls does not hold: thoughts are scripted, not asked of a model."""
    return mind if known or isinstance(mind, ScriptedMind) else mind if known else script


def _stock(logged: LoggedRun) -> Series:
    record = logged.trajectory
    return Series(
        x=list(range(1, record.num_months + 1)),
        y=[float(h) for h in record.stocks],
        x_label="month",
        y_label="stock at the start of the month",
        group="Stock",
    )


def _changed_asks(asks: Sequence[str], start: Start, setting: Setting, month: int) -> dict[tuple[int, int], str]:
    changed = {}
    for one in asks:
        name, _, amount = one.partition("=")
        if name not in start.agents:
            raise UserError(f"there is no {name!r}.", where="--ask", hint=closest(name, start.agents))
        if not amount.isdecimal():
            raise UserError(f"{one!r} is no changed ask.", where="--ask", hint="Write NAME=AMOUNT, such as Emma=30.")
        changed[month, start.agents.index(name)] = setting.scenario.words.say("answer", amount=int(amount))
    return changed
