"""The errors a user meets: one line each that says what, where and what to do next, with an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PolyloomError(Exception):
    """Work that could not be done; the process exits with `exit_code` and prints the message alone."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        """Join the parts into one line.

        Args:
            what: what is wrong.
            where: file, key or place that it is wrong in.
            hint: what to do next.
        """
        parts = [f"{where}: {what}" if where else what, hint]
        super().__init__(" ".join(part for part in parts if part))


class UserError(PolyloomError):
    """Input that is refused: nothing was written, or a resumable run was kept."""

    exit_code = 2


class MissingExtra(UserError):
    """A library of an optional extra is absent."""

    def __init__(self, library: str, *, extra: str) -> None:
        """Name the library and the command that installs it."""
        super().__init__(f"{library} is not installed.", hint=f'Install it with: pip install "polyloom[{extra}]"')


class Stopped(PolyloomError):
    """A run that was asked to stop, saved what it had and can be resumed."""

    exit_code = 75


def closest(word: str, options: Iterable[str]) -> str:
    """Suggest the nearest valid word, or list all of them when none is near.

    Args:
        word: what the user wrote.
        options: the valid words.

    Returns:
        A sentence to put behind an error message.
    """
    names = sorted(options)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Choose one of: {', '.join(names)}." if names else ""
