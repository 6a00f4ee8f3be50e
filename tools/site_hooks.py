"""A mkdocs hook: `<!-- README: Evaluate -->` in a page becomes that section of the README: it is written once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(r"<!-- README: (.+?) -->", lambda match: section(match[1]), markdown)


def section(title: str) -> str:
    """The text under a heading of the README, with links that fit the pages in docs/.

    Raises:
        ValueError: there is no such heading.
    """
    text = README.read_text(encoding="utf-8")
    if f"\n## {title}\n" not in text:
        raise ValueError(f"README.md has no section '{title}'")
    body = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return body.replace("](docs/", "](")
