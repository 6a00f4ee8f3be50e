"""The user's mistakes: one exception class, and the words for "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one line: what was given, what is allowed, and the
    override that fixes it. Entries print it without a traceback."""


def closest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most like `name`, or None where nothing is alike."""
    matches = difflib.get_close_matches(name, list(allowed), n=1)
    return matches[0] if matches else None


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'floor'?`, or a full stop where nothing is alike: to follow a message about an unknown name."""
    match = closest(name, allowed)
    return f"; did you mean '{match}'?" if match else "."
