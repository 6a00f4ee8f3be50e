"""Public names of a package that are imported when they are first used: importing the package costs milliseconds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A module's `__getattr__` and `__dir__` (PEP 562).

    Args:
        package: `__name__` of the module that has the names.
        modules: where each public name is defined: name -> module.

    Example:
        >>> get, names = lazy_names("json", {"Fraction": "fractions"})
        >>> get("Fraction")(1, 2)
        Fraction(1, 2)
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(importlib.import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)  # found at once the next time
        return value

    def names() -> list[str]:
        return sorted(set(vars(sys.modules[package])) | set(modules))

    return get, names
