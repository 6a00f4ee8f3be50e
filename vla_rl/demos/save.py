"""`open_writer`: demonstrations into the file or folder that `out` names."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from vla_rl.checks import check_new_folder, check_writable_folder
from vla_rl.demos.demo import Demo
from vla_rl.demos.formats.lerobot_writer import LeRobotWriter
from vla_rl.demos.formats.npz import save_demos
from vla_rl.errors import UserError


class DemoWriter(Protocol):
    """Takes demonstrations one after the other."""

    def add(self, demo: Demo) -> None: ...


class NpzWriter:
    """One file, written when all are known."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._demos: list[Demo] = []

    def __enter__(self) -> NpzWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            save_demos(self._out, self._demos)

    def add(self, demo: Demo) -> None:
        self._demos.append(demo)


def is_npz(out: Path) -> bool:
    """A name with a suffix is a file (`.npz`), one without is a folder (LeRobotDataset)."""
    return out.suffix == ".npz"


def check_out(out: Path) -> None:
    """Raise UserError unless demonstrations can be written to `out`; makes the folder around it."""
    if out.suffix not in ("", ".npz") or (is_npz(out) and out.is_dir()):
        raise UserError(f"out must name an .npz file or a new folder, got {out} (out=demos.npz, out=demos)")
    if is_npz(out):
        check_writable_folder("out", out.parent, "demos.npz")
    else:
        check_new_folder("out", out, "demos")


def open_writer(out: Path, *, fps: int, robot: str, about: dict[str, Any]) -> AbstractContextManager[DemoWriter]:
    """A writer of this project's own file (`out=demos.npz`), or of a LeRobotDataset v3 (`out=FOLDER`).

    Args:
        fps, robot, about: of the LeRobotDataset, see `LeRobotWriter`; an .npz file has no place for them.
    """
    return NpzWriter(out) if is_npz(out) else LeRobotWriter(out, fps, robot, about)
