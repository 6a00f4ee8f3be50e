"""Finished runs, read back from their folders, and what comparing them needs: names, thresholds, pooled success."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from vla_rl.config.compose import CONF_DIR, group_names
from vla_rl.errors import UserError
from vla_rl.functional.statistics import SuccessRate

WINDOW = 3  # iterations of rollouts averaged where nothing was held out


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder."""

    arm: str  # its mask and budget: runs of one arm differ in nothing but the seed
    mask: str  # its name in conf/mask, or its class
    budget: int | None  # chunks of a trajectory; None where it is no number of chunks
    seed: int
    rows: list[dict[str, float]]  # of metrics.jsonl, one per iteration
    summary: dict[str, Any]  # summary.json

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Raises UserError where the folder holds no finished run."""
        for name in ("config.yaml", "metrics.jsonl", "summary.json"):
            if not (folder / name).is_file():
                raise UserError(
                    f"{folder} holds no finished run: it has no {name} (give the folders that fit.py names)"
                )
        config = yaml.safe_load((folder / "config.yaml").read_text())
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        mask, budget = mask_name(config["mask"]), (config["mask"] or {}).get("budget")
        return cls(
            arm=mask if budget is None else f"{mask} {_shown(budget)}",
            mask=mask,
            budget=budget if isinstance(budget, int) else None,
            seed=config["seed"],
            rows=rows,
            summary=json.loads((folder / "summary.json").read_text()),
        )

    @property
    def seconds(self) -> list[float]:
        """Of rollouts and updates, up to and including each iteration; evaluations are left out."""
        return list(accumulate(row["time/rollout_s"] + row["time/update_s"] for row in self.rows))

    @property
    def update_seconds(self) -> list[float]:
        return list(accumulate(row["time/update_s"] for row in self.rows))

    @property
    def success(self) -> list[tuple[int, float]]:
        """(iterations done, success): sampled on held-out states where that was measured during training, else that of
        the rollouts, a mean over up to `WINDOW` iterations."""
        heldout = [(i + 1, row["heldout/sampled_success"]) for i, row in enumerate(self.rows) if HELDOUT in row]
        if heldout:
            return heldout
        rates = [row["rollout/success"] for row in self.rows]
        return [(i + 1, _mean(rates[max(0, i + 1 - WINDOW) : i + 1])) for i in range(len(rates))]

    def seconds_to(self, threshold: float) -> float | None:
        """Seconds until success first reaches the threshold; None: never."""
        for iterations, rate in self.success:
            if rate >= threshold:
                return self.seconds[iterations - 1]
        return None


HELDOUT = "heldout/sampled_success"


def mask_name(node: dict[str, Any] | None) -> str:
    """The name in conf/mask of a mask with these options, whatever its budget; its class where no file has them."""
    if node is None:
        return "none"
    for name in group_names("mask"):
        tree = yaml.safe_load((CONF_DIR / "mask" / f"{name}.yaml").read_text()) or {}
        if base := tree.pop("extends", None):
            tree = yaml.safe_load((CONF_DIR / "mask" / f"{base}.yaml").read_text()) | tree
        if tree | {"budget": None} == node | {"budget": None}:
            return name
    return node["_target_"].rpartition(".")[2]


def arms(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by arm, in the order of their first one."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.arm, []).append(run)
    return grouped


def pooled(runs: Sequence[Run], when: str, decoding: str) -> SuccessRate | None:
    """Success of all runs together; None where it was not measured.

    Args:
        when: success_before or success_after.
        decoding: sampled or greedy.
    """
    rates = [run.summary[when].get(decoding) for run in runs]
    if not rates or None in rates:
        return None
    return SuccessRate.of(sum(rate["successes"] for rate in rates), sum(rate["episodes"] for rate in rates))


def table(runs: Sequence[Run]) -> str:
    """Markdown: one row per arm; sums over iterations are means over seeds."""
    head = (
        "arm", "seeds", "sampled before", "sampled after", "greedy after", "chunks paid", "of real chunks",
        "update s", "rollout s",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm, members in arms(runs).items():
        total = lambda tag: _mean([sum(row[tag] for row in run.rows) for run in members])  # noqa: E731, B023
        paid, real = total("chunks/kept"), total("chunks/real")
        cells = (
            arm,
            len(members),
            _rate(pooled(members, "success_before", "sampled")),
            _rate(pooled(members, "success_after", "sampled")),
            _rate(pooled(members, "success_after", "greedy")),
            f"{paid:.0f}",
            f"{100 * paid / max(real, 1):.0f}%",
            f"{total('time/update_s'):.1f}",
            f"{total('time/rollout_s'):.1f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _rate(rate: SuccessRate | None) -> str:
    if rate is None:
        return "-"
    return f"{rate.rate:.2f} [{rate.wilson_low:.2f}, {rate.wilson_high:.2f}]"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _shown(budget: Any) -> str:
    return f"B={budget}" if isinstance(budget, int) else " ".join(f"{k}={v}" for k, v in budget.items())
