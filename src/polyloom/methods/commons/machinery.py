"""Parts of the study that try the machinery: a server that answers late and badly, a local model, the calls counted."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from polyloom.core.result import Scalar, Series, Table
from polyloom.methods.commons.arms import ARMS
from polyloom.methods.commons.config import CommonsStudyConfig, MindsConfig
from polyloom.methods.commons.mock import MockServer, RuleMind, mock_server
from polyloom.methods.commons.runner import Cast, Job, Ledger, play_jobs
from polyloom.methods.commons.scenario import load_scenario
from polyloom.methods.commons.simulation import Calls, Setting, Simulation
from polyloom.methods.commons.tiny import batching, train_tiny
from polyloom.runs.folder import Run

LATENCY_SECONDS = 0.02
FAULT_RATES = {"429": 0.05, "500": 0.05, "cut": 0.04, "empty_body": 0.02, "empty_text": 0.02, "garbage": 0.02}
IN_FLIGHT = 128


class Part(BaseModel):
    """What a part of the study found."""

    scalars: dict[str, Scalar] = {}
    tables: dict[str, Table] = {}
    series: dict[str, Series] = {}
    verdicts: list[str] = []
    limitations: list[str] = []


def calls_per_month(calls: Calls) -> int:
    """Count the requests of one month of five agents who talk to the end, by asking them all."""
    mind = RuleMind()
    scenario = load_scenario("fishery", num_months=1)
    setting = Setting(scenario, ARMS["baseline"], calls=calls)
    asyncio.run(Simulation(setting, [mind] * 5, mind, 0).play())
    return mind.num_asked


def _jobs(setting: Setting, spec: str, num_runs: int) -> list[Job]:
    return [Job(f"run-{i:04d}", setting, [spec], i, i) for i in range(num_runs)]


def _pass(run: Run, label: str, cache: Path, jobs: Sequence[Job], in_flight: int) -> list[str]:
    """Play jobs with a cache file and a fresh log folder."""
    config = MindsConfig(cache=str(cache), max_in_flight=in_flight, max_tokens=64)
    folder = run.path / "steps" / label

    async def work() -> list[str]:
        with run.progress(label, len(jobs)) as advance:
            async with Cast(config, run.path / "artifacts") as cast:
                return await play_jobs(jobs, cast, folder, ledger=Ledger(), check_stop=run.check_stop, progress=advance)

    return asyncio.run(work())


def server_part(config: CommonsStudyConfig, run: Run) -> Part:
    """Play against a mock server: many runs at once, again from the cache, with faults, and one at a time."""
    num_runs = 200 if config.profile == "full" else 12
    found: dict[str, Scalar] = {
        "faithful_requests_per_month": Scalar(value=calls_per_month("faithful")),
        "lean_requests_per_month": Scalar(value=calls_per_month("lean")),
    }
    # No talk under reference rules: nothing is remembered, so each month is five asks and nothing else.
    silent = Setting(load_scenario("fishery"), ARMS["no-talk"], rules="reference")
    work = run.path / "checkpoints"
    work.mkdir(exist_ok=True)
    for old in work.glob("*.sqlite*"):
        old.unlink()
    with mock_server(latency_seconds=LATENCY_SECONDS) as server:
        jobs = _jobs(silent, f"{server.base_url}#mock", num_runs)
        began, cpu_began = time.monotonic(), time.process_time()
        first = _pass(run, f"first pass {time.time_ns()}", work / "first.sqlite", jobs, IN_FLIGHT)
        elapsed, cpu = time.monotonic() - began, time.process_time() - cpu_began
        counts = server.counts()
        second = _pass(run, f"second pass {time.time_ns()}", work / "first.sqlite", jobs, IN_FLIGHT)
        again = server.counts()["num_requests"] - counts["num_requests"]
        found |= {
            "server_runs": Scalar(value=num_runs),
            "server_requests": Scalar(value=counts["num_requests"]),
            "server_seconds": Scalar(value=elapsed, unit="s"),
            "server_client_cpu_seconds": Scalar(value=cpu, unit="s"),
            "server_peak_in_flight": Scalar(value=counts["max_in_flight"]),
            "second_pass_requests": Scalar(value=again),
            "second_pass_equal": Scalar(value=first == second),
        }
        found |= _sameness(run, server, work)
    said = (
        f"{num_runs} no-talk runs of 12 months: {counts['num_requests']} requests in {elapsed:.1f} s against a server "
        f"of {1000 * LATENCY_SECONDS:.0f} ms, {counts['max_in_flight']} in flight; the second pass asked {again}."
    )
    return Part(scalars=found, verdicts=[said])


def _sameness(run: Run, server: MockServer, work: Path) -> dict[str, Scalar]:
    """Play talking communities at concurrency 1 and 64, and with 20% faults: the logs must be equal."""
    talking = Setting(load_scenario("fishery", num_months=2), ARMS["baseline"], calls="lean")
    spec = f"{server.base_url}#mock"
    texts = {}
    for in_flight in (1, 64):
        jobs = _jobs(talking, spec, 4)
        texts[in_flight] = _pass(
            run, f"in flight {in_flight} {time.time_ns()}", work / f"{in_flight}.sqlite", jobs, in_flight
        )
    with mock_server(rates=FAULT_RATES) as faulty:
        jobs = _jobs(talking, f"{faulty.base_url}#mock", 4)
        broken = _pass(run, f"faults {time.time_ns()}", work / "faults.sqlite", jobs, 64)
        counts = faulty.counts()
    same = [text.replace(faulty.base_url, server.base_url) for text in broken]
    changed = sum(a != b for a, b in zip(same, texts[64], strict=True))
    return {
        "events_equal_at_1_and_64": Scalar(value=texts[1] == texts[64]),
        "fault_rate": Scalar(value=100 * counts["num_faults"] / counts["num_requests"], unit="%"),
        "num_faults": Scalar(value=counts["num_faults"]),
        "results_changed_by_faults": Scalar(value=changed),
    }


def plumbing_part(config: CommonsStudyConfig, run: Run) -> Part:
    """Train the tiny model, let it play, and compare batched decoding with one by one."""
    folder = run.path / "artifacts" / "tiny-model"
    full = config.profile == "full"
    loss = run.once(
        "tiny model",
        lambda: train_tiny(folder, steps=300 if full else 120, seed=config.seed, check_stop=run.check_stop),
    )
    ratio, identical, read = batching(folder, 64, 64, config.seed)
    scalars = {
        "tiny_loss": Scalar(value=loss, unit="nats"),
        "batched_speedup": Scalar(value=ratio, unit="x one by one"),
        "batched_tokens_identical": Scalar(value=identical),
        "tiny_replies_read": Scalar(value=read / 64 * 100, unit="%"),
    }
    return Part(
        scalars=scalars,
        verdicts=[
            f"A local model batched over runs takes {ratio:.1f} times less CPU than one by one; "
            f"the replies are {'identical' if identical else 'NOT identical'}."
        ],
        limitations=["The tiny model checks plumbing (template, batches, parser); its choices mean nothing."],
    )


def languages_part(config: CommonsStudyConfig, run: Run) -> Part:
    """Play the same seeds in every language, by script and by a mind that reads the prompts."""
    from polyloom.methods.commons.minds import ScriptedMind
    from polyloom.methods.commons.scenario import language_codes

    rows, trajectories, failures = [], set(), 0
    for code in language_codes():
        scenario = load_scenario("fishery", code)
        scripted = [
            ScriptedMind(spec, scenario.words)
            for spec in ("sustainable", "noisy:0.3:sustainable", "tit-for-tat", "proportional:0.12", "limit-follower")
        ]
        short = replace(scenario, resource=replace(scenario.resource, num_months=2))
        reader = RuleMind()
        counts: Counter[str] = Counter()
        numbers = []
        for setting, minds in (
            (Setting(scenario, ARMS["universalization"]), scripted),
            (Setting(short, ARMS["baseline"]), [reader] * 5),
            (Setting(short, ARMS["norms"], calls="lean"), [reader] * 5),
        ):
            for event in asyncio.run(Simulation(setting, minds, minds[0], config.seed).play()):
                if event["type"] == "harvest":
                    numbers.append((event["month"], event["agent"], event["ask"], event["obtained"]))
                    counts["harvest"] += event["status"] != "ok"
                elif event["type"] == "utterance":
                    counts["turn"] += event["ended"] is None or event["next"] is None
                elif event["type"] == "agreement":
                    counts["limit"] += event["limit"] is None
                elif event["type"] == "thought":
                    counts["rating"] += not event["rated"]
        trajectories.add(tuple(numbers))
        failures += sum(counts.values())
        rows.append(
            [
                code,
                len(numbers),
                sum(n[3] for n in numbers),
                *(counts[k] for k in ("harvest", "turn", "limit", "rating")),
            ]
        )
    columns = ["language", "harvests", "units", "asks unread", "turns unread", "limits unread", "ratings unread"]
    return Part(
        scalars={
            "num_languages": Scalar(value=len(rows)),
            "languages_identical": Scalar(value=len(trajectories) == 1),
            "language_parse_failures": Scalar(value=failures),
        },
        tables={"languages": Table(columns=columns, rows=rows, title="The same communities in six languages")},
        verdicts=[
            f"{len(rows)} languages: {'identical' if len(trajectories) == 1 else 'DIFFERENT'} numbers, "
            f"{failures} parse failures."
        ],
    )
