"""What people read when a run ends: a few lines made from its `summary.json` and `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_rl.files import read_json, read_json_lines

ELSEWHERE = "elsewhere.json"  # of `callbacks.SuccessElsewhere`, where the run has it
SPLIT = "split/"  # tags of the parts of an iteration's seconds (`callbacks.timing`)


def run_report(folder: Path) -> str:
    """The run in `folder`; what was not measured is left out."""
    summary = read_json(folder / "summary.json")
    metrics = folder / "metrics.jsonl"
    rows = read_json_lines(metrics) if metrics.exists() else []
    lines = {
        "held out": _heldout(summary["success_before"], summary["success_after"]),
        "elsewhere": _elsewhere(folder / ELSEWHERE),
        "rollouts": _rollouts(rows),
        "chunks": _chunks(rows),
        "time": _time(rows, summary["seconds"]),
        "memory": _memory(rows),
        "look at": f"tensorboard --logdir {folder}",
    }
    title = f"run {summary['conf']}, seed {summary['seed']}"
    return "\n".join([title, *(f"  {name:<10}{text}" for name, text in lines.items() if text)])


def _heldout(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return ", ".join(f"{mode} {_rate(before[mode])} -> {_rate(after[mode])}" for mode in before if mode in after)


def _elsewhere(file: Path) -> str:
    if not file.exists():
        return ""
    found = read_json(file)
    return f"{found['decoding']} {_rate(found['before'])} -> {_rate(found['after'])}"


def _rate(rate: Mapping[str, float]) -> str:
    return f"{rate['rate']:.2f} [{rate['wilson_low']:.2f}, {rate['wilson_high']:.2f}]"


def _rollouts(rows: Sequence[Mapping[str, float]]) -> str:
    if not rows:
        return ""
    rates = [row["rollout/success"] for row in rows]
    return f"{len(rows)} iterations, success {rates[0]:.2f} in the first and {rates[-1]:.2f} in the last"


def _chunks(rows: Sequence[Mapping[str, float]]) -> str:
    kept, real = (sum(row[f"chunks/{which}"] for row in rows) for which in ("kept", "real"))
    return f"{kept:.0f} trained on, {real:.0f} executed ({100 * kept / real:.0f}%)" if real else ""


def _time(rows: Sequence[Mapping[str, float]], seconds: float) -> str:
    total = f"{seconds / 60:.1f} min in all"
    iterations = sum(row.get("time/iteration_s", 0.0) for row in rows)
    if not iterations:
        return total
    parts = [tag for tag in rows[0] if tag.startswith(SPLIT)]
    sums = {tag: sum(row[tag] for row in rows) for tag in parts}
    largest = sorted(parts, key=lambda tag: -sums[tag])
    shares = ", ".join(f"{_name(tag)} {100 * sums[tag] / iterations:.0f}%" for tag in largest)
    return f"{total}, {iterations / 60:.1f} min in iterations: {shares}"


def _memory(rows: Sequence[Mapping[str, float]]) -> str:
    peaks = {"host": "memory/host_mb", "GPU": "memory/gpu_peak_mb"}
    found = {name: max(row.get(tag, 0.0) for row in rows) for name, tag in peaks.items()} if rows else {}
    return ", ".join(f"{name} {peak / 1000:.1f} GB" for name, peak in found.items() if peak)


def _name(tag: str) -> str:
    return tag.removeprefix(SPLIT).removesuffix("_s")
