"""Which of the user's own conf files sets a key that a message names: for the one line that answers a mistake.

The files are read again, once there is a message: composing a config does not get slower by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vla_rl.config.compose import is_inside
from vla_rl.errors import UserError
from vla_rl.files import read_yaml


def set_in(message: str, argv: Sequence[str]) -> str:
    """`; mask.floor is set in mine.yaml`, to follow a message that names `mask.floor`; empty where no file sets what it
    names.

    Args:
        argv: arguments of the command. What they set themselves, no file does.
    """
    set_above = [argument.partition("=")[0].removesuffix("._target_") for argument in argv]
    said = ""
    for path, tree in _own_files(argv):
        keys = list(dict.fromkeys(_keys(tree)))
        named = [k for k in keys if _names(message, k) and not any(is_inside(k, a) for a in set_above)]
        if named:
            said += f"; {', '.join(named)} {'is' if len(named) == 1 else 'are'} set in {path}"
        set_above += [key.removesuffix("._target_") for key in keys]
    return said


def _own_files(argv: Sequence[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file that `conf=` names and those that it extends, up to a packaged one or one that cannot be read."""
    above, name, seen = Path(), next((a.partition("=")[2] for a in argv if a.startswith("conf=")), ""), set()
    while name.endswith((".yaml", ".yml")):
        path = above / Path(name).expanduser()
        if path in seen:
            return
        try:
            tree = read_yaml(path)
        except UserError:
            return
        yield path, tree
        seen.add(path)
        above, name = path.parent, str(tree.get("extends"))


def _keys(tree: dict[str, Any], above: str = "") -> Iterator[str]:
    """`mask.floor` of {mask: {floor: .1}}; `mask` of {mask: pcm} and of {mask: {extends: pcm}}."""
    for name, value in tree.items():
        if name == "extends":
            yield from [above] if above else []
        elif isinstance(value, dict):
            yield from _keys(value, f"{above}.{name}" if above else str(name))
        else:
            yield f"{above}.{name}" if above else str(name)


def _names(message: str, key: str) -> bool:
    section, _, name = key.rpartition(".")
    if not section:  # may be a common word, too
        return bool(re.search(rf"(?<![\w./-]){re.escape(key)}=|'{re.escape(key)}'|^{re.escape(key)}[ :]", message))
    whole = re.search(rf"(?<![\w./-]){re.escape(key)}(?![\w-]|\.\w)", message)
    return bool(whole) or (f"'{name}'" in message and f"{section}." in message)  # "no option 'flor' (mask.floor=...)"
