"""What a run was made with: versions of the packages that decide a result, and the commit of the checkout."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]  # of the checkout; where the package is installed, the folder of installed packages
# what decides a result: MuJoCo's version alone moves success rates by tens of points
VERSIONED = (
    *("torch", "lightning", "transformers", "peft", "mujoco", "robosuite", "hf-libero", "metaworld", "numpy"),
    *("mani-skill", "sapien", "vla-rl"),
)
LARGEST_DIFF = 100_000  # bytes; a larger one is left out


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result, with Python and the platform."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {"torch": torch.__version__}


def source_state(root: Path = ROOT) -> dict[str, Any]:
    """`{"git": {"commit": ..., "dirty": ..., "diff": ...}}` of the checkout at `root`; empty where it is not one.

    `dirty`: files differ from the commit, or are unknown to it. `diff`: what differs, unless it is large.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top.strip()).resolve() != root.resolve():
        return {}  # an installed package may lie inside the checkout of another project
    state: dict[str, Any] = {"commit": commit.strip(), "dirty": bool(_git(root, "status", "--porcelain"))}
    diff = _git(root, "diff", "HEAD")
    if diff and len(diff.encode()) <= LARGEST_DIFF:
        state["diff"] = diff
    return {"git": state}


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command; None where it fails or there is no git."""
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
