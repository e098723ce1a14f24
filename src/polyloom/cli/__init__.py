"""Layer 4: the command line. It answers `--help` without importing torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import CycloptsError

from polyloom.core.errors import PolyloomError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 refused input, 75 stopped and resumable.

    Args:
        arguments: the words after `polyloom`; by default those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        sys.exit(dispatch([word for word in words if word != "--debug"]))
    except (PolyloomError, CycloptsError, KeyboardInterrupt, BrokenPipeError, Exception) as error:
        if debug:
            raise
        sys.exit(report_error(error))


def dispatch(words: list[str]) -> int:
    """Run the command that `words` spell and return its exit code."""
    from polyloom.cli.app import build_app

    code = build_app(words)(words, exit_on_error=False, print_error=False, result_action="return_value")
    return code if isinstance(code, int) else 0


def report_error(error: BaseException) -> int:
    """Print an error as one line on standard error and return the exit code that it stands for."""
    if isinstance(error, KeyboardInterrupt):
        line, code = "interrupted.", 130
    elif isinstance(error, BrokenPipeError):
        return 0
    elif isinstance(error, CycloptsError):
        line, code = str(error), 2
    elif isinstance(error, PolyloomError):
        line, code = str(error), error.exit_code
    else:
        line, code = f"{type(error).__name__}: {error} (see the traceback with --debug)", 1
    print(f"polyloom: {' '.join(line.split())}", file=sys.stderr)
    return code
