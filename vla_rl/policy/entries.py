"""Entries of a checkpoint's JSON files, checked: what does not fit is one line that names the file and the entry.

An entry is named as in `config.json: text_config.hidden_size`.
"""

from __future__ import annotations

import json
from typing import Any

from vla_rl.checks import is_finite
from vla_rl.errors import UserError

LARGEST_SIZE = 1_000_000  # of a vocabulary, a width, an image's side
MOST_LAYERS = 1000  # building more takes minutes before anything can be compared with them


def check_object(value: Any, entry: str) -> dict[str, Any]:
    """`value`, a JSON object; UserError otherwise."""
    if not isinstance(value, dict):
        raise UserError(f"{entry} must be an object, got {shown(value)}")
    return value


def check_count(value: Any, entry: str, *, most: int = LARGEST_SIZE) -> int:
    """`value`, an integer of at least 1 and at most `most`; UserError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{entry} must be an integer of at least 1, got {shown(value)}")
    if value > most:
        raise UserError(f"{entry} must be at most {most}, got {value}")
    return value


def check_multiple(size: int, of: int, entry: str, of_name: str) -> None:
    """Raise UserError unless `size` is a multiple of `of`, which is named `of_name`."""
    if size % of:
        raise UserError(f"{entry} must be a multiple of {of_name}, {of}, got {size}")


def check_positive(value: Any, entry: str) -> float:
    """`value`, a finite number above 0; UserError otherwise."""
    if not is_finite(value) or value <= 0:
        raise UserError(f"{entry} must be a finite number above 0, got {shown(value)}")
    return float(value)


def check_flag(value: Any, entry: str) -> bool:
    """`value`, true or false; UserError otherwise."""
    if not isinstance(value, bool):
        raise UserError(f"{entry} must be true or false, got {shown(value)}")
    return value


def check_numbers(value: Any, entry: str, count: int | None) -> list[float]:
    """`value`, a list of finite numbers, `count` of them; UserError otherwise.

    Args:
        count: None for any number of them.
    """
    fits = isinstance(value, list) and (count is None or len(value) == count) and all(map(is_finite, value))
    if not fits:
        number = "a list of finite numbers" if count is None else f"a list of {count} finite numbers"
        raise UserError(f"{entry} must be {number}, got {shown(value)}")
    return list(map(float, value))


def shown(value: Any) -> str:
    """As in the file, cut where it is long."""
    text = json.dumps(value, default=str)
    many = f" ({len(value)} values)" if isinstance(value, list) else ""
    return (text if len(text) <= 60 else f"{text[:60]}...") + many
