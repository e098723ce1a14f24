"""Tasks that are done once: a marker with a hash beside each output, and four ways to spread them.

A stage is a function of (plan, number of the task, empty folder) that writes its files into the folder and returns a
small summary. A task is done when its marker exists and holds the stage's identity, so a rerun does the missing ones.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyloom.core.cluster import join_ray
from polyloom.core.errors import PolyloomError, UserError
from polyloom.core.files import DISK_FULL, write_json
from polyloom.data.crawl import Part
from polyloom.methods.pretrain.data_config import CorpusConfig

ENGINE_VERSION = 1
Summary = dict[str, Any]
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Plan:
    """What every task knows: the settings, the parts of the input, the folder of the stages."""

    config: CorpusConfig
    parts: tuple[Part, ...]
    folder: str
    num_buckets: int

    def output(self, stage: str, task: int) -> Path:
        """Return the folder with the files of a task."""
        return Path(self.folder) / stage / f"{task:05d}"

    def marker(self, stage: str, task: int) -> Path:
        """Return the path of a task's marker."""
        return Path(self.folder) / stage / f"{task:05d}.json"

    def summary(self, stage: str, task: int) -> Summary:
        """Return what a finished task said of itself."""
        marker: Summary = json.loads(self.marker(stage, task).read_text(encoding="utf-8"))
        summary: Summary = marker["summary"]
        return summary


@dataclass(frozen=True)
class Stage:
    """A step over all tasks. `settings` names the fields of the configuration that change what it writes."""

    name: str
    run: Callable[[Plan, int, Path], Summary]
    settings: tuple[str, ...] = ()


def identity(stage: Stage, config: CorpusConfig, before: str) -> str:
    """Return the hash of all that a stage's files depend on.

    Args:
        stage: the stage.
        config: the configuration.
        before: the identity of the stage before, or of the input.
    """
    values = config.model_dump(mode="json", include=set(stage.settings))
    return hashlib.sha256(json.dumps([ENGINE_VERSION, stage.name, values, before]).encode()).hexdigest()[:16]


def input_identity(parts: Iterable[Part]) -> str:
    """Return a hash of the parts' names, sizes and times of change: a file that changed is read again."""
    found = []
    for part in parts:
        status = os.stat(part.path)
        found.append([part.name, part.domain, part.begin, part.end, status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def is_done(plan: Plan, stage: str, task: int, stage_identity: str) -> bool:
    """Whether a task's marker exists and its hash fits."""
    try:
        marker = json.loads(plan.marker(stage, task).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return bool(marker.get("identity") == stage_identity)


def do_task(plan: Plan, stage: Stage, task: int, stage_identity: str) -> None:
    """Do one task: into a temporary folder, then renamed, then marked.

    Raises:
        UserError: the disk is full.
    """
    final = plan.output(stage.name, task)
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        summary = stage.run(plan, task, temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        write_json(plan.marker(stage.name, task), {"identity": stage_identity, "summary": summary})
    except OSError as error:
        if error.errno in DISK_FULL:
            hint = "Free some space, then run the same command again: finished tasks are kept."
            raise UserError(f"the disk is full (stage {stage.name}).", where=plan.folder, hint=hint) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def run_stage(
    plan: Plan,
    stage: Stage,
    num_tasks: int,
    stage_identity: str,
    advance: Callable[[int], None],
    check: Callable[[], None],
    *,
    last: bool = False,
) -> list[Summary]:
    """Do the missing tasks of a stage and return the summaries of all.

    Args:
        plan: the plan.
        stage: the stage.
        num_tasks: how many tasks it has.
        stage_identity: what its markers have to hold.
        advance: told of each task that is done.
        check: called between tasks; raises to stop.
        last: no stage follows: ranks other than the first need not wait.

    Raises:
        PolyloomError: a worker died, or another rank did not finish its tasks in time.
    """
    missing = []
    for task in range(num_tasks):
        if is_done(plan, stage.name, task, stage_identity):
            advance(1)
        elif task % plan.config.num_ranks == plan.config.rank:
            missing.append(task)
    for _ in _spread(plan, stage, missing, stage_identity, check):
        advance(1)
    if last and plan.config.rank:
        # The first rank gathers what the last stage wrote.
        return []
    _wait_for_ranks(plan, stage, num_tasks, stage_identity, check)
    return [plan.summary(stage.name, task) for task in range(num_tasks)]


def _spread(
    plan: Plan, stage: Stage, tasks: list[int], stage_identity: str, check: Callable[[], None]
) -> Iterator[int]:
    if plan.config.executor == "ray":
        yield from _on_ray(plan, stage, tasks, stage_identity, check)
    elif plan.config.num_workers == 1 or len(tasks) < 2:
        for task in tasks:
            check()
            do_task(plan, stage, task, stage_identity)
            yield task
    else:
        yield from _in_processes(plan, stage, tasks, stage_identity, check)


def _in_processes(
    plan: Plan, stage: Stage, tasks: list[int], stage_identity: str, check: Callable[[], None]
) -> Iterator[int]:
    # Not forked: threads of libraries that are loaded already would not survive it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["polyloom.methods.pretrain.corpus.stages"])
    workers = min(plan.config.num_workers, len(tasks))
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        pending: dict[Future[None], int] = {pool.submit(do_task, plan, stage, t, stage_identity): t for t in tasks}
        try:
            while pending:
                done, _ = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    yield pending.pop(future)
                check()
        except BrokenProcessPool as error:
            raise PolyloomError(
                f"a worker died in stage {stage.name} (out of memory, or killed).",
                where=plan.folder,
                hint="Run the same command again with fewer --num-workers or a smaller --split-bytes; "
                "finished tasks are kept.",
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _on_ray(
    plan: Plan, stage: Stage, tasks: list[int], stage_identity: str, check: Callable[[], None]
) -> Iterator[int]:
    ray = join_ray()
    remote = ray.remote(max_retries=2)(do_task)
    pending = {remote.remote(plan, stage, task, stage_identity): task for task in tasks}
    while pending:
        done, _ = ray.wait(list(pending), timeout=1.0)
        for reference in done:
            try:
                ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, PolyloomError) else error from None
            yield pending.pop(reference)
        check()


def _wait_for_ranks(plan: Plan, stage: Stage, num_tasks: int, stage_identity: str, check: Callable[[], None]) -> None:
    limit = time.monotonic() + plan.config.rank_timeout_seconds
    missing = list(range(num_tasks))
    while missing := [task for task in missing if not is_done(plan, stage.name, task, stage_identity)]:
        check()
        if time.monotonic() > limit:
            ranks = sorted({task % plan.config.num_ranks for task in missing})
            raise PolyloomError(
                f"{len(missing)} tasks of stage {stage.name} are not done by rank {ranks[0]}"
                f"{' and others' if len(ranks) > 1 else ''}.",
                where=plan.folder,
                hint="Start that rank again: finished tasks are kept.",
            )
        time.sleep(_POLL_SECONDS)
