"""The project's cache folder: files that are made on first use and can always be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The project's private cache: `$XDG_CACHE_HOME/vla_rl`, else `~/.cache/vla_rl`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vla_rl"
