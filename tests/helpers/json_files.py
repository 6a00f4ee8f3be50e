"""One entry of a .json file, changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DELETE = object()


def edit_json(path: Path, *keys: str | int, value: Any) -> None:
    """Set an entry, or take it out with `DELETE`. Keys lie one inside of the other."""
    content = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    if value is DELETE:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(content))
