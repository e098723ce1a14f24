"""Starting a layout's processes on this machine with torchrun, and ending in one line where one of them fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from polyloom.core.errors import PolyloomError
from polyloom.runs.folder import Run

_EXIT_CODE = re.compile(r"exitcode\s*: (-?\d+)")
_RANK = re.compile(r"rank\s*: (\d+)")
_STEP = re.compile(r'"step": (\d+)')
POLL_SECONDS = 0.5
TAIL_BYTES = 4096


def torchrun(num_processes: int, words: list[str]) -> list[str]:
    """Return the command that starts `num_processes` of a module on this machine."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"),
        *("-m", *words),
    ]


def launch(num_processes: int, num_steps: int, run: Run) -> None:
    """Train with as many processes as the layout has; their progress is shown as one.

    A process that fails ends the others: torchrun looks after them every tenth of a second, and they end at once.

    Raises:
        PolyloomError: a process failed; the first that did is named, with its reason.
        Stopped: the run was asked to stop.
    """
    for old in run.path.glob("artifacts/failed-*.txt"):
        old.unlink()
    command = torchrun(num_processes, ["polyloom.methods.pretrain.worker", str(run.path)])
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONWARNINGS": "ignore"}
    log = run.artifact("processes.log")
    with log.open("a", encoding="utf-8") as stream, run.progress("pretrain: train", num_steps) as advance:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
        try:
            code = _follow(process, run, advance)
        except BaseException:
            # torchrun ends its processes on SIGTERM; killed at once, it would leave them running.
            process.terminate()
            process.wait(timeout=60)
            raise
    run.check_stop()
    if code:
        raise failure(log, run)


def _follow(process: subprocess.Popen[bytes], run: Run, advance: Callable[[int], None]) -> int:
    """Show the first process's steps until all have ended; a request to stop is passed on once."""
    shown, asked = 0, False
    while True:
        try:
            return process.wait(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            step = last_logged_step(run.path)
            advance(step - shown)
            shown = step
            if run.stop_requested and not asked:
                process.send_signal(signal.SIGTERM)
                asked = True


def last_logged_step(folder: Path) -> int:
    """Return the step of the last whole line of a run's `metrics.jsonl`; 0 where there is none."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = stream.read().decode(errors="replace").split("\n")[:-1]
    steps = [match for line in reversed(lines) for match in _STEP.findall(line)[:1]]
    return int(steps[0]) if steps else 0


def failure(log: Path, run: Run) -> PolyloomError:
    """Return the error of the process that failed first."""
    text = log.read_text(encoding="utf-8", errors="replace")
    _, _, root = text.rpartition("Root Cause")
    rank, code = _RANK.search(root), _EXIT_CODE.search(root)
    who = f"process {rank[1]} " if rank else "a process "
    reason = run.path / "artifacts" / f"failed-{rank[1] if rank else 0}.txt"
    if reason.exists():
        what = f"{who}failed: {reason.read_text(encoding='utf-8').strip()}"
    elif code and int(code[1]) < 0:
        what = f"{who}was ended by {signal.Signals(-int(code[1])).name}; the others were stopped."
    else:
        what = f"{who}failed."
    hint = f"Resume with: polyloom runs resume {run.id} (the processes wrote to {log})."
    return PolyloomError(what, where=run.id, hint=hint)
