"""All that a run leaves behind but its times, in a form that compares bitwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

MEASURED = ("time/", "split/", "memory/")  # metrics that differ from run to run


def result(folder: Path) -> dict[str, Any]:
    """Weights, optimizer, random generators, state of the callbacks, metrics, success, and which files there are."""
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    del last["loops"]["validate_loop"]  # Lightning counts the evaluations of this process; nothing reads it
    metrics = rows(folder)
    summary = json.loads((folder / "summary.json").read_text())
    left = {path.name for path in folder.rglob("*") if path.suffix in (".part", ".new", ".old")}
    return timeless(
        {
            "checkpoint": last,
            "rows": metrics,
            "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
            "links": {path.name: path.readlink().name for path in folder.glob("checkpoints/*") if path.is_symlink()},
            "policy": (folder / "policy" / "model.safetensors").read_bytes(),
            "success": [summary["success_before"], summary["success_after"]],
            "leftovers": left,
        }
    )


def rows(folder: Path) -> list[dict[str, float]]:
    """What each iteration logged."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(value: Any) -> Any:
    """Without seconds and memory; tensors as bytes; NaN as text, so that it equals itself."""
    if isinstance(value, dict):
        return {str(k): timeless(v) for k, v in value.items() if not str(k).startswith(MEASURED)}
    if isinstance(value, list | tuple):
        return [timeless(v) for v in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    return str(value) if isinstance(value, float) else value
