"""What can be said of a `_target_` without importing it, which takes seconds: is it there, which options it takes."""

from __future__ import annotations

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

OURS = ("callbacks", "vla_rl")


def is_missing(path: str) -> bool:
    """Whether there is no such package, or no such public name of this project."""
    module, _, name = path.rpartition(".")
    if module in OURS:
        return name not in dir(importlib.import_module(module))
    return find_spec(path.partition(".")[0] or path) is None


def option_names(path: str) -> list[str] | None:
    """Names of the parameters; None where the source alone cannot tell: other people's code, and inherited ones.

    Args:
        path: public name (`callbacks.PCM`) or path (`callbacks.masks.pcm.PCM`).

    Example:
        >>> option_names("callbacks.Checkpoint")
        ['every_iterations', 'keep']
    """
    module, _, name = path.rpartition(".")
    top = module.partition(".")[0]
    if top not in OURS:
        return None
    package = importlib.import_module(top)  # milliseconds: its names are lazy
    if module == top:
        module = package.MODULES.get(name, "")
    source = Path(str(package.__file__)).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    if not source.is_file():
        return None
    defined = {getattr(node, "name", None): node for node in ast.parse(source.read_text(encoding="utf-8")).body}
    return _parameters(defined.get(name))


def _parameters(node: ast.stmt | None) -> list[str] | None:
    if isinstance(node, ast.ClassDef):
        made = [line for line in node.body if isinstance(line, ast.FunctionDef) and line.name == "__init__"]
        names = _parameters(made[0]) if made else None
        return None if names is None else names[1:]  # without self
    if not isinstance(node, ast.FunctionDef) or node.args.kwarg:
        return None
    return [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
