"""Checks of an option's value: one wording for each kind. Each raises a `UserError` of one line that says what is
allowed, what was given, and an override that works.

`key` is always where the option stands in the config (`mask.floor`); `example` is a value that is allowed there.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from vla_rl.errors import UserError, no_such_choice


def check_count(key: str, value: Any, example: int, *, least: int = 1, most: int | None = None) -> None:
    """Raise unless `value` is an integer of at least `least` and at most `most`.

    Example:
        >>> check_count("mask.budget", 0, 12)
        Traceback (most recent call last):
        vla_rl.errors.UserError: mask.budget must be an integer >= 1, got 0 (mask.budget=12)
    """
    # `isinstance` would take True for 1
    if type(value) is not int or value < least or (most is not None and value > most):
        bounds = f">= {least}" if most is None else f">= {least} and <= {most}"
        raise _wrong(key, f"an integer {bounds}", value, example)


def is_finite(value: Any) -> bool:
    """Whether `value` is a number that a float can hold."""
    # `isinstance` would take True for 1, and `math.isfinite` raises for an integer beyond the largest float
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def check_number(
    key: str,
    value: Any,
    example: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Raise unless `value` is a finite number within the bounds; `least` and `most` belong to them.

    Example:
        >>> check_number("mask.floor", 1.5, 0.1, above=0, most=1)
        Traceback (most recent call last):
        vla_rl.errors.UserError: mask.floor must be a number > 0 and <= 1, got 1.5 (mask.floor=0.1)
    """
    bounds = (
        (">=", least, operator.ge),
        (">", above, operator.gt),
        ("<=", most, operator.le),
        ("<", below, operator.lt),
    )
    given = [(sign, bound, holds) for sign, bound, holds in bounds if bound is not None]
    if not is_finite(value) or not all(holds(value, bound) for _, bound, holds in given):
        words = " and ".join(f"{sign} {bound}" for sign, bound, _ in given)
        raise _wrong(key, f"a number {words}".strip(), value, example)


def check_fraction(key: str, value: Any, example: float) -> None:
    """Raise unless `value` is a share of something: above 0 and at most 1."""
    check_number(key, value, example, above=0, most=1)


def check_flag(key: str, value: Any, *, example: bool = True) -> None:
    """Raise unless `value` is true or false."""
    if not isinstance(value, bool):
        raise _wrong(key, "true or false", value, str(example).lower())


def check_range(key: str, value: Any, example: str) -> None:
    """Raise unless `value` is a half-open range of two integers: its first, and one past its last."""
    given = list(value) if isinstance(value, tuple | list) else value
    if type(given) is not list or [type(end) for end in given] != [int, int] or not 0 <= given[0] < given[1]:
        raise UserError(f"{key} must be a range with 0 <= first < end, got {given!r}: {key}={example}")


def check_choice(key: str, value: Any, choices: Iterable[str]) -> None:
    """Raise unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        raise UserError(no_such_choice(value, choices, key))


def check_new_folder(key: str, folder: Path, example: str) -> None:
    """Raise unless `folder` does not exist yet and can be made; makes the folders around it."""
    try:
        folder.mkdir(parents=True)
        folder.rmdir()
    except FileExistsError as e:
        raise UserError(f"{key}={folder} exists; give a new folder: {key}={folder}-2") from e
    except OSError as e:
        raise _unwritable(key, folder, e, example) from e


def check_writable_folder(key: str, folder: Path, example: str) -> None:
    """Raise unless files can be written into `folder`; makes it where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise _unwritable(key, folder, e, example) from e


def _unwritable(key: str, folder: Path, error: OSError, example: str) -> UserError:
    return UserError(f"cannot write {key}={folder}: {error.strerror}; name another folder: {key}={example}")


def _wrong(key: str, allowed: str, value: Any, example: Any) -> UserError:
    return UserError(f"{key} must be {allowed}, got {value!r} ({key}={example})")
