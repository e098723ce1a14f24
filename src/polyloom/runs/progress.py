"""Progress of long work on standard error: bars on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_INTERVAL_SECONDS = float(os.environ.get("POLYLOOM_PROGRESS_SECONDS", "15"))

console = Console(stderr=True)
_bars: Progress | None = None
_open_bars = 0
_lock = threading.Lock()


def _new_bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show `label` with a bar up to `total`; the yielded function advances it.

    Nested and parallel bars share one display.
    """
    if not console.is_terminal:
        yield _line_printer(label, total)
        return
    bars = _join_display()
    task = bars.add_task(label, total=total)

    def advance(steps: int = 1) -> None:
        bars.advance(task, steps)

    try:
        yield advance
    finally:
        bars.remove_task(task)
        _leave_display()


def _join_display() -> Progress:
    global _bars, _open_bars
    with _lock:
        if _bars is None:
            _bars = _new_bars()
            _bars.start()
        _open_bars += 1
        return _bars


def _leave_display() -> None:
    global _bars, _open_bars
    with _lock:
        _open_bars -= 1
        if _open_bars == 0 and _bars is not None:
            _bars.stop()
            _bars = None


def _line_printer(label: str, total: int) -> Callable[[int], None]:
    done = 0
    last = time.monotonic()

    def advance(steps: int = 1) -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if done >= total or now - last >= LINE_INTERVAL_SECONDS:
            last = now
            console.print(f"{label}: {done}/{total}", highlight=False)

    return advance
