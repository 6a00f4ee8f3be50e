"""Nodes to objects: import `_target_`, check the options' names against its signature, call it.

A node inside a node (a strategy inside the trainer) is built first. `resolve` does the same for an option that names a
function (`mask.labeller`).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vla_rl.config.schema import GROUPS, Config, Node
from vla_rl.config.signatures import is_missing, option_names
from vla_rl.errors import UserError, closest, did_you_mean, no_such_choice


def build(node: Node | None, key: str, **extra: Any) -> Any:
    """Call the node's target.

    Args:
        node: `_target_` and the target's options.
        key: where the node stands in the config ("mask", "callbacks.progress"), for messages.
        extra: arguments the program supplies; the node must not have them.

    Raises:
        UserError: no such target or option, an option missing, or one of the target's own. Its other exceptions keep
            their traceback, with a note that names the node.

    Example:
        >>> build({"_target_": "datetime.timedelta", "hours": 12}, "timeout")
        datetime.timedelta(seconds=43200)
    """
    if node is None:
        raise UserError(f"this command needs a {key}, got null; choose one by name ({key}=...)")
    target = _target(node, key)
    taken = sorted(set(extra) & set(node))
    if taken:
        raise UserError(f"{key}.{taken[0]} is set by the program and cannot be changed: remove {key}.{taken[0]}")
    _check_names(target, node, key, supplied=extra)
    options = {name: build(value, f"{key}.{name}") if _is_node(value) else value for name, value in _options(node)}
    _check_complete(target, options | extra, key)
    try:
        return target(**options, **extra)
    except UserError:
        raise
    except Exception as e:
        e.add_note(f"while {key} was built from {node['_target_']}")
        raise


def build_callbacks(config: Config) -> list[Any]:
    """Critic, mask, reward, then the slots of `callbacks`, null ones left out.

    Raises:
        UserError: a target that is no callback, or a reward that scores nothing.
    """
    from lightning.pytorch import Callback  # here: it takes seconds to import

    named = {key: node for key, node in nodes(config) if key not in ("policy", "sim", "trainer", "logger")}
    built = {key: build(node, key) for key, node in named.items()}
    for key, callback in built.items():
        if not isinstance(callback, Callback):
            raise UserError(
                f"{named[key]['_target_']} is no callback of Lightning: {key}=null, or another {key}._target_"
            )
    if "reward" in built and not getattr(built["reward"], "shapes_rewards", True):
        raise UserError(
            f"{named['reward']['_target_']} has no score, so it is no reward: reward=none, or another reward._target_"
        )
    return list(built.values())


def check(config: Config) -> None:
    """Import every node's target and check its options' names; nothing is built.

    Raises:
        UserError: no such target or option.
    """
    for key, node in nodes(config):
        _check_node(node, key)


def check_early(config: Config) -> None:
    """The part of `check` that needs no imports of seconds: packages and public names that are not there, and option
    names of the targets whose source can be read.

    Raises:
        UserError: no such target or option.
    """
    for key, node in nodes(config):
        path = node["_target_"]
        if is_missing(path):
            _target(node, key)  # says so
        if (allowed := option_names(path)) is not None:
            _refuse_unknown(path.rpartition(".")[2], allowed, node, key)


def import_path(path: str, given: str) -> Callable[..., Any]:
    """The class or function at a dotted path.

    Args:
        given: the option as it was given, for messages: "(mask._target_=my_pkg.MyMask)".

    Raises:
        UserError: no such module or name, or nothing that can be called.
    """
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if not f"{module_name}.".startswith(f"{e.name}."):
            raise  # the module exists, but something it imports does not
        raise UserError(f"no module named '{e.name}' {given}") from e
    if not hasattr(module, name):
        public = [n for n in dir(module) if not n.startswith("_")]
        raise UserError(f"module '{module_name}' has no '{name}'{did_you_mean(name, public)} {given}")
    target = getattr(module, name)
    if not callable(target):
        raise UserError(f"'{path}' is neither a class nor a function {given}")
    return target


def resolve(value: Any, choices: Mapping[str, Any], option: str) -> Any:
    """What `value` stands for.

    Args:
        value: a name in `choices`, the path of a function (`my_pkg.my_function`), or the function itself.
        option: where it stands in the config (`mask.labeller`), for messages.

    Raises:
        UserError: no such name, module or function.

    Example:
        >>> resolve("largest", {"largest": max}, "mask.collapse")([1, 2])
        2
    """
    if isinstance(value, str) and value in choices:
        return choices[value]
    if callable(value):
        return value
    if isinstance(value, str) and "." in value:
        return import_path(value, f"({option}={value})")
    raise UserError(no_such_choice(value, choices, option, also=", or my_pkg.my_function"))


def option_defaults(path: str) -> dict[str, Any]:
    """Defaults of a target's options; none where Python cannot tell."""
    parameters = _parameters(import_path(path, f"(_target_={path})")) or {}
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def _check_node(node: Node, key: str) -> None:
    _check_names(_target(node, key), node, key, supplied={})
    for name, value in _options(node):
        if _is_node(value):
            _check_node(value, f"{key}.{name}")


def nodes(config: Config) -> Iterator[tuple[str, Node]]:
    """Those that are not null, by where they stand in the config."""
    for group in GROUPS:
        if (node := getattr(config, group)) is not None:
            yield group, node
    for slot, node in config.callbacks.items():
        if node is not None:
            yield f"callbacks.{slot}", node


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _options(node: Node) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in node.items() if name != "_target_"]


def _target(node: Node, key: str) -> Callable[..., Any]:
    path = node["_target_"]
    if "." not in path.strip("."):
        raise UserError(f"a target is a module and a name, got '{path}' ({key}._target_=my_pkg.MyClass)")
    return import_path(path, f"({key}._target_={path})")


def _parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """Parameters by name, or None where any name is accepted or Python cannot tell (classes written in C)."""
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _check_names(target: Callable[..., Any], node: Node, key: str, supplied: dict[str, Any]) -> None:
    parameters = _parameters(target)
    if parameters is None:
        return
    allowed = [name for name in parameters if name not in supplied]
    _refuse_unknown(target.__name__, allowed, node, key)


def _refuse_unknown(target: str, allowed: list[str], node: Node, key: str) -> None:
    for name, _ in _options(node):
        if name not in allowed:
            match = closest(name, allowed)
            fix = f"{key}.{match}=..." if match else f"remove {key}.{name}"
            raise UserError(
                f"{target} has no option '{name}'{did_you_mean(name, allowed)} "
                f"Options: {', '.join(allowed) or 'none'} ({fix})"
            )


def _check_complete(target: Callable[..., Any], given: dict[str, Any], key: str) -> None:
    for name, parameter in (_parameters(target) or {}).items():
        if parameter.default is parameter.empty and name not in given:
            raise UserError(f"{target.__name__} needs the option '{name}' ({key}.{name}=...)")
