"""`shipped:NAME` in a config: a folder in the package with a trained policy, and `object_tiny`'s demonstrations."""

from __future__ import annotations

from pathlib import Path

from vla_rl.errors import UserError

PREFIX = "shipped:"
FOLDER = Path(__file__).parent


def shipped_folder(name: str) -> Path | None:
    """The folder that `shipped:NAME` stands for, or None for any other string.

    Raises:
        UserError: the package has no folder of that name.
    """
    if not name.startswith(PREFIX):
        return None
    folder = FOLDER / name.removeprefix(PREFIX)
    if not folder.is_dir():
        have = ", ".join(sorted(PREFIX + f.name for f in FOLDER.glob("*") if (f / "config.json").exists()))
        raise UserError(f"nothing named {name!r} is shipped; there is: {have or 'nothing'}")
    return folder
