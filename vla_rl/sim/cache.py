"""The project's cache folder: files that are made on first use and can always be made again."""

from __future__ import annotations

import os
from pathlib import Path

from vla_rl.errors import UserError


def cache_dir() -> Path:
    """The project's private cache: `$XDG_CACHE_HOME/vla_rl`, else `~/.cache/vla_rl`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vla_rl"


def make_folder(folder: Path) -> Path:
    """Make a folder of the cache, with its parents, and return it.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unwritable = None if os.access(folder, os.W_OK) else "Permission denied"
    except OSError as error:
        unwritable = error.strerror
    if unwritable:
        raise UserError(
            f"the cache cannot be written: {folder}: {unwritable}; needed: a folder of your own with room for some"
            " megabytes; fix: set XDG_CACHE_HOME to one, e.g. XDG_CACHE_HOME=$PWD/.cache"
        )
    return folder
