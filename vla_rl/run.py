"""The run folder: where it is, what it holds, and the summary at its end."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vla_rl.compose import save_resolved
from vla_rl.config import Config
from vla_rl.errors import UserError
from vla_rl.evaluation import SuccessRate

# what decides a result: MuJoCo's version alone moves success rates by tens of points
VERSIONED = ("torch", "lightning", "transformers", "peft", "mujoco", "robosuite", "hf-libero", "numpy", "vla-rl")


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result, with Python and the platform."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {"torch": torch.__version__}


def run_folder(run_dir: str | None, conf: str) -> Path:
    """The run folder, not made yet: `run_dir`, or `runs/<conf>/<time>/`.

    Raises:
        UserError: the folder has a run in it already.
    """
    folder = Path(run_dir) if run_dir else Path("runs") / conf / time.strftime("%Y-%m-%d_%H-%M-%S")
    if (folder / "config.yaml").exists():
        raise UserError(f"run folder {folder} holds a run already; name another: run_dir={folder}-2")
    return folder


def open_run_folder(folder: Path, config: Config) -> None:
    """Make the folder with what the run is: `config.yaml` and `versions.json`.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_resolved(config, folder / "config.yaml")
        write_json(folder / "versions.json", versions())
    except OSError as e:
        raise UserError(f"cannot write the run folder {folder}: {e.strerror}; name another: run_dir=runs/mine") from e
    print(f"run folder {folder}", flush=True)


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all: a reader never sees half a file."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    part.replace(path)


def write_summary(
    folder: Path,
    *,
    conf: str,
    seed: int,
    before: dict[str, SuccessRate],
    after: dict[str, SuccessRate],
    seconds: float,
) -> Path:
    """`summary.json`: success before and after, and per iteration what was paid.

    Args:
        before, after: `{"sampled": ..., "greedy": ...}` on initial states never trained on.
        seconds: of the whole program, evaluations included.
    """
    rows = folder / "metrics.jsonl"  # one row of logged tags per iteration, written by the `metrics_file` callback
    metrics = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    column = lambda tag: [row[tag] for row in metrics]  # noqa: E731
    path = folder / "summary.json"
    write_json(
        path,
        {
            "conf": conf,
            "seed": seed,
            "iterations": len(metrics),
            "success_before": {mode: asdict(rate) for mode, rate in before.items()},
            "success_after": {mode: asdict(rate) for mode, rate in after.items()},
            "rollout_s": column("time/rollout_s"),
            "update_s": column("time/update_s"),
            "chunks_real": column("chunks/real"),
            "chunks_kept": column("chunks/kept"),
            "seconds": seconds,
            "versions": versions(),
        },
    )
    return path
