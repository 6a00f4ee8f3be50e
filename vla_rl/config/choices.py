"""Options that name one of a few ready-made functions, or one of the user's own by its dotted path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_rl.config.instantiate import import_path
from vla_rl.errors import UserError, no_such_choice


def pick(value: Any, choices: Mapping[str, Any], option: str) -> Any:
    """What `value` stands for.

    Args:
        value: a name in `choices`, the path of a function (`my_pkg.my_function`), or the function itself.
        option: where it stands in the config (`mask.labeller`), for messages.

    Raises:
        UserError: no such name, module or function.

    Example:
        >>> pick("largest", {"largest": max}, "mask.collapse")([1, 2])
        2
    """
    if isinstance(value, str) and value in choices:
        return choices[value]
    if callable(value):
        return value
    if isinstance(value, str) and "." in value:
        return import_path(value, f"({option}={value})")
    raise UserError(no_such_choice(value, choices, option, also=", or my_pkg.my_function"))
