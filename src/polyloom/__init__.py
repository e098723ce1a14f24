"""Polyloom: a workbench for the whole life of a multilingual language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyloom.core.result import Result

__version__ = "0.1.0"
__all__ = ["__version__", "run"]


def run(verb: str, /, *, runs: str | Path | None = None, run_name: str | None = None, **config: Any) -> Result:
    """Run a verb of a room from Python: the same function, run folder and result as on the command line.

    Args:
        verb: room and verb, for example `"silu.facts"`, or `"tour.run"`; by position, since a configuration may have
            fields of any name.
        runs: the runs folder; by default `POLYLOOM_RUNS`, else `runs` in the working directory.
        run_name: the run's name; by default made of room, verb and time.
        config: the fields of the verb's configuration.

    Returns:
        The result: scalars, tables, series, verdicts, limitations and provenance.

    Raises:
        polyloom.core.errors.PolyloomError: refused input, failed or stopped work.
    """
    from polyloom.runs.execute import run_verb

    return run_verb(verb, config, runs=Path(runs) if runs else None, name=run_name)
