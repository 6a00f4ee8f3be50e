"""Plain YAML values to the schema's dataclasses, with messages that name the key and the override that fixes it."""

from __future__ import annotations

import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar

from vla_rl.config import GROUPS
from vla_rl.errors import UserError, closest

T = TypeVar("T")

_WORDS = {int: "an integer", float: "a number", str: "text", dict: "a section of values"}


def typed(schema: type[T], tree: Any, key: str = "") -> T:
    """An instance of the dataclass `schema` from a dict, nested dataclasses included.

    Args:
        key: where in the config the dict stands, for messages; "" is the top.

    Raises:
        UserError: an unknown key or a value of the wrong type.
    """
    if not isinstance(tree, dict):
        raise UserError(f"{key} must be {_WORDS[dict]}, got {tree!r} (for example {key}.{fields(schema)[0].name}=...)")
    hints = typing.get_type_hints(schema)
    prefix = f"{key}." if key else ""
    for name in tree:
        if name not in hints:
            match = closest(str(name), hints)
            hint = f"; did you mean '{prefix}{match}'?" if match else f". Keys: {', '.join(prefix + h for h in hints)}"
            raise UserError(f"unknown key '{prefix}{name}'{hint}")
    default = schema()
    values = {}
    for name, value in tree.items():
        values[name] = _convert(hints[name], value, prefix + name, getattr(default, name))
    return schema(**values)


def _convert(hint: Any, value: Any, key: str, default: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return typed(hint, value, key)
    if origin is Literal:
        if value not in arguments:
            raise _wrong(key, f"one of {', '.join(arguments)}", value, default)
        return value
    if origin is tuple:
        return _pair(arguments[0], value, key, default)
    if origin is types.UnionType:  # `X | None`
        return None if value is None else _convert(arguments[0], value, key, default)
    if origin is dict:
        return _node(value, key) if key in GROUPS else _slots(value, key)
    return _scalar(hint, value, key, default)


def _scalar(kind: type, value: Any, key: str, default: Any) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # `isinstance` would take True for 1
        raise _wrong(key, _WORDS[kind], value, default)
    return value


def _pair(kind: type, value: Any, key: str, default: Any) -> tuple:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _wrong(key, f"two values, each {_WORDS[kind]}", value, default)
    return tuple(_scalar(kind, item, key, default) for item in value)


def _node(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("_target_"), str):
        fix = f"{key}=<name>" if key in GROUPS else f"{key}=null"
        raise UserError(f"{key} has no _target_, got {value!r} ({key}._target_=my_pkg.MyClass, or {fix})")
    return value


def _slots(value: Any, key: str) -> dict[str, dict[str, Any] | None]:
    if not isinstance(value, dict):
        raise _wrong(key, _WORDS[dict], value, None)
    return {name: None if node is None else _node(node, f"{key}.{name}") for name, node in value.items()}


def _wrong(key: str, wanted: str, value: Any, default: Any) -> UserError:
    given = f"'{value}'" if isinstance(value, str) else value
    example = f"[{default[0]},{default[1]}]" if isinstance(default, tuple) else default
    return UserError(f"{key} must be {wanted}, got {given}" + ("" if default is None else f" ({key}={example})"))
