"""Small text files that are read: one that does not hold what it should is one line that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from vla_rl.errors import UserError


def read_text(path: Path) -> str:
    """A text file's content; a byte order mark is skipped.

    Raises:
        UserError: it is no UTF-8, or cannot be opened.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not text in UTF-8 ({e}): download or copy it again") from e
    except OSError as e:
        raise UserError(f"{path} cannot be opened ({e.strerror}): download or copy it again") from e


def read_json(path: Path) -> dict[str, Any]:
    """The object in a .json file.

    Raises:
        UserError: the file does not hold one.
    """
    return _object(_parsed(path, read_text(path)), path)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a .jsonl file, one in each line.

    Raises:
        UserError: a line does not hold one.
    """
    return [_object(_parsed(path, line), path) for line in read_text(path).splitlines()]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a .yaml file.

    Raises:
        UserError: the file does not hold one.
    """
    text = read_text(path)
    try:
        content = yaml.safe_load(text)
    except Exception as e:  # what looks like a date or a number and is none raises whatever Python does
        raise UserError(f"{path} is not valid YAML ({' '.join(str(e).split())}): copy it again") from e
    return _object(content, path)


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:  # ValueError: also a number of thousands of digits
        raise UserError(f"{path} is not valid JSON ({e}): download or copy it again") from e


def _object(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold an object, got {type(content).__name__}")
    return content
