"""Text files are UTF-8 whatever the machine's locale: every call that reads or writes text names its encoding."""

from __future__ import annotations

import ast

from tests.helpers.tiny_fit import ROOT

FOLDERS = ("vla_rl", "callbacks", "tools")


def calls_without_encoding(source: str) -> list[int]:
    """Lines of `read_text`, `write_text` and of the built-in `open` in text mode."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or "encoding" in {keyword.arg for keyword in node.keywords}:
            continue
        if isinstance(node.func, ast.Attribute):
            missing = node.func.attr in ("read_text", "write_text")
        else:
            mode = ast.unparse(node.args[1]) if len(node.args) > 1 else ""
            missing = getattr(node.func, "id", "") == "open" and "b" not in mode
        if missing:
            lines.append(node.lineno)
    return lines


def test_what_counts_as_a_call_without_encoding():
    assert calls_without_encoding("path.read_text()\npath.write_text('a')\nopen('a')\nopen('a', 'w')") == [1, 2, 3, 4]
    assert calls_without_encoding("path.read_text(encoding='utf-8')\nopen('a', 'rb')\nos.open('a', 1)") == []


def test_every_call_names_its_encoding():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    found = {str(path): calls_without_encoding(path.read_text(encoding="utf-8")) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}
