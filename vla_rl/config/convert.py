"""Plain YAML values to the schema's dataclasses, with messages that name the key and the override that fixes it."""

from __future__ import annotations

import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, cast

from vla_rl.checks import is_finite
from vla_rl.config.aliases import GONE
from vla_rl.config.schema import GROUPS
from vla_rl.errors import UserError, closest

T = TypeVar("T")

_WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
_SECTION = "a section of values"


def to_dataclass(schema: type[T], tree: Any, key: str = "") -> T:
    """An instance of the dataclass `schema` from a dict, nested dataclasses included.

    Args:
        key: where in the config the dict stands, for messages; "" is the top.

    Raises:
        UserError: an unknown key or a value of the wrong type.
    """
    default = schema()
    if not isinstance(tree, dict):
        first = fields(cast(Any, schema))[0].name
        raise _wrong(key, _SECTION, tree, f"{key}.{first}={getattr(default, first)}")
    hints = typing.get_type_hints(schema)
    prefix = f"{key}." if key else ""
    for name in tree:
        if f"{prefix}{name}" in GONE:
            raise UserError(f"{prefix}{name} is gone, supervised training takes its optimizer from optim: "
                            f"optim.{name}={tree[name]} optim.betas=[0.9,0.95] optim.grad_clip=1.0")  # fmt: skip
        if name not in hints:
            match = closest(str(name), hints)
            hint = f"; did you mean '{prefix}{match}'?" if match else f". Keys: {', '.join(prefix + h for h in hints)}"
            raise UserError(f"unknown key '{prefix}{name}'{hint}")
    values = {n: _convert(hints[n], value, prefix + n, getattr(default, n)) for n, value in tree.items()}
    return schema(**values)


def _convert(hint: Any, value: Any, key: str, default: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    example = None if default is None else f"{key}={default}"
    if is_dataclass(hint):
        return to_dataclass(cast(type, hint), value, key)
    if origin in (types.UnionType, typing.Union):  # `X | None`, `int | str`
        if value is None and types.NoneType in arguments:
            return None
        return _convert(next((kind for kind in arguments if type(value) is kind), arguments[0]), value, key, default)
    if origin is Literal:
        if value not in arguments:
            raise _wrong(key, f"one of {', '.join(arguments)}", value, example)
        return value
    if origin is tuple:
        low, high = default or (0, 50)
        return _pair(arguments[0], value, key, f"{key}=[{low},{high}]")
    if origin is list:  # one value may stand for a list of it
        items = value if isinstance(value, list) else [value]
        return [_convert(arguments[0], item, key, None) for item in items]
    if origin is dict:
        return _node(value, key) if key in GROUPS else _slots(value, key)
    if not _fits(hint, value):
        raise _wrong(key, _WORDS[hint], value, example)
    return hint(value)


def _fits(kind: type, value: Any) -> bool:
    # `isinstance` would take True for 1
    return type(value) is kind or (kind is float and type(value) is int and is_finite(value))


def _pair(kind: type, value: Any, key: str, example: str) -> tuple:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(_fits(kind, item) for item in value):
        raise _wrong(key, "two integers" if kind is int else "two numbers", value, example)
    return tuple(kind(item) for item in value)


def _node(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("_target_"), str):
        simplest = f"{key}=<name>" if key in GROUPS else f"{key}=null"
        raise UserError(f"{key} needs a _target_, got {_shown(value)} ({simplest}, or {key}._target_=my_pkg.MyClass)")
    return value


def _slots(value: Any, key: str) -> dict[str, dict[str, Any] | None]:
    if not isinstance(value, dict):
        raise _wrong(key, _SECTION, value, f"{key}.progress=null")
    return {name: None if node is None else _node(node, f"{key}.{name}") for name, node in value.items()}


def _wrong(key: str, wanted: str, value: Any, example: str | None) -> UserError:
    return UserError(f"{key} must be {wanted}, got {_shown(value)}" + (f" ({example})" if example else ""))


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)
