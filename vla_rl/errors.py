"""The user's mistakes and runs that cannot go on: an exception class each; and the words for "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one line: what was given, what is allowed, and the
    override that fixes it. Entries print it without a traceback."""


class RunError(RuntimeError):
    """A run cannot go on for a reason that lies outside the program: a full disk, a loss that is NaN. The message
    is one line, with how to go on. Entries print it without a traceback, exit code 1."""


class Preempted(Exception):
    """A run was told to stop (SIGTERM) and has saved; the message says how to go on."""


def first_line(error: Exception) -> str:
    """Of its message; the name of its class where that is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def closest(name: str, allowed: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The allowed name most like `name`, in upper or lower case; None where nothing is alike (`cutoff`: least ratio, of
    1)."""
    by_lower = {choice.lower(): choice for choice in allowed}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'floor'?`, or a full stop where nothing is alike: to follow a message about an unknown name."""
    match = closest(name, allowed)
    return f"; did you mean '{match}'?" if match else "."


def no_such_choice(value: Any, choices: Iterable[str], option: str, also: str = "") -> str:
    """The message about a value that is not among `choices`.

    Args:
        option: where it stands in the config (`mask.labeller`), for the override that fixes it.
        also: what else it could have been, after the choices.
    """
    names = list(choices)
    return (
        f"no {option.rpartition('.')[2]} named '{value}'{did_you_mean(str(value), names)} "
        f"Choices: {', '.join(names)}{also} ({option}={closest(str(value), names) or names[0]})"
    )
