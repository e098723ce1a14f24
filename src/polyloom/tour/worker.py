"""A process that works on steps one after the other, each in a fork of its own that has the heavy imports behind it.

Importing torch and transformers takes five CPU seconds or more, which every step would pay. The tour starts one worker
a core, writes a JSON list of words (those behind `polyloom`) a line to its standard input, and reads its standard
error: what the steps write there, and one line `step ended: CODE` behind each.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys

PRELOAD = (
    "polyloom.models.tiny",
    "polyloom.models.load",
    "polyloom.data.world",
    "polyloom.reports.drawing",
    "polyloom.reports.html",
    "cyclopts",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
)
ENDED = "step ended:"
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Ask for a SIGTERM when the parent dies, so that no step outlives a killed tour."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def serve(module: str) -> None:
    """Work on the steps that standard input names until it ends or SIGTERM comes, which goes on to the step at work.

    Args:
        module: run as `python -m module WORDS`, for each step.
    """
    children: list[int] = []

    def end(number: int, frame: object) -> None:
        if not children:
            sys.exit(0)
        os.kill(children[-1], signal.SIGTERM)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    # Only Linux forks a process that has loaded torch without harm.
    forks = sys.platform == "linux"
    if forks:
        _die_with_parent()
        _preload()
    for line in sys.stdin:
        words = json.loads(line)
        if forks:
            children.append(os.fork())
            if children[-1] == 0:
                return _step(module, words)
            code = os.waitstatus_to_exitcode(os.waitpid(children[-1], 0)[1])
            children.clear()
        else:
            code = subprocess.run([sys.executable, "-m", module, *words]).returncode
        print(f"\n{ENDED} {code}", file=sys.stderr, flush=True)
    return None


def _preload() -> None:
    # torch asks the driver for GPUs in a way that a fork survives.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    for name in PRELOAD:
        # A step that needs what is absent says so itself.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # The collector would touch, and so copy, what parent and child share.
    gc.freeze()


def _step(module: str, words: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_parent()
    sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(sys.argv[1])
