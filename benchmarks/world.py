"""Measure the embedded world: records and sentences per CPU second, one process, one thread; prints a table."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
import time
from typing import Any

from polyloom.data.world import LANGUAGES, NOTICE, TASKS, Task, World

_IMPORT = "import time; t = time.process_time(); import polyloom.data.world; print(time.process_time() - t)"


def import_seconds(repeats: int = 5) -> float:
    """Return the least CPU seconds of importing the world in a fresh process."""
    runs = [
        subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True)
        for _ in range(repeats)
    ]
    return min(float(run.stdout) for run in runs)


def rate(make: Any, seconds: float = 1.0) -> float:
    """Return calls per CPU second; a second round is measured, the first fills the caches."""
    for i in range(50):
        make(i)
    start = time.process_time()
    for done in itertools.count(1):
        make(49 + done)
        if done % 20 == 0 and time.process_time() - start > seconds:
            return done / (time.process_time() - start)
    raise AssertionError


def _make(task: Task, world: World, languages: tuple[str, ...], options: dict[str, Any], index: int) -> Any:
    return task.make(world, languages, index, "train", **options)


def main() -> None:
    """Print the table."""
    start = time.process_time()
    world = World(list(LANGUAGES))
    build_seconds = time.process_time() - start
    print(f"# {NOTICE}")
    print(f"import {import_seconds():.3f} CPU-s; World of {len(LANGUAGES)} languages {build_seconds:.2f} CPU-s")
    pair = World(["en", "ja"])
    print(f"{'what':<28}{'en':>12}{'ja':>12}   per CPU second")

    def sentence(language: str) -> Any:
        return lambda i: pair.text(pair.draw("bench", i).diary(), language)

    print(f"{'diary sentences':<28}{rate(sentence('en')):>12,.0f}{rate(sentence('ja')):>12,.0f}")
    for name, task in TASKS.items():
        options = {"num_instances": 1} if name == "instructions" else {}
        cells = []
        for code in ("en", "ja"):
            chosen = ("en", "ja") if task.num_languages[0] == 2 else (code,)
            make = functools.partial(_make, task, pair, chosen, options)
            cells.append(rate(make, 0.5))
        print(f"{name + ' records':<28}{cells[0]:>12,.0f}{cells[1]:>12,.0f}")
    assert world.languages


if __name__ == "__main__":
    main()
