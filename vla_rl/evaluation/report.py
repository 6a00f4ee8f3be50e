"""An evaluation's report: `report.json`, the same as Markdown, and as one HTML page that needs nothing beside it.

Nothing in it depends on when, where or how fast it was run: the same evaluation writes the same bytes again.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from vla_rl.functional.statistics import PairedTest, SuccessRate, clusters_of
from vla_rl.run.extras import extra
from vla_rl.run.folder import write_json
from vla_rl.types import Episode


@dataclass(frozen=True, slots=True)
class Arm:
    """One checkpoint's outcomes, episode by episode."""

    label: str  # A, B, ...: short enough for figures
    checkpoint: str
    window: int  # control steps executed of each chunk
    success_E: list[bool]
    steps_E: list[int]

    @property
    def steps_of_successes(self) -> float | None:
        """Mean control steps of the successes."""
        return self._mean_of_successes([float(steps) for steps in self.steps_E])

    @property
    def calls_of_successes(self) -> float | None:
        """Mean decisions of the successes."""
        return self._mean_of_successes([math.ceil(steps / self.window) for steps in self.steps_E])

    def _mean_of_successes(self, number_E: Sequence[float]) -> float | None:
        numbers = [n for n, success in zip(number_E, self.success_E, strict=True) if success]
        return sum(numbers) / len(numbers) if numbers else None


@dataclass(frozen=True, slots=True)
class Report:
    """What was run, and what came of it. Several samples of one initial state are one cluster of its intervals.

    Args:
        rules: what fixes the episodes (protocol, horizon, decoding, ...), by name.
        simulator: the config's `sim` node as it was run.
        remarks: what a reader must know before comparing with other numbers.
        instructions: by task.
        arms: the first is what the others are compared with.
    """

    rules: dict[str, Any]
    simulator: dict[str, Any]
    remarks: list[str]
    instructions: dict[int, str]
    episodes: list[Episode]
    arms: list[Arm]
    versions: dict[str, str]

    @property
    def tasks(self) -> list[int]:
        return sorted({episode.task for episode in self.episodes})

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Task and initial state of each episode."""
        return [(episode.task, episode.init_state) for episode in self.episodes]

    @property
    def clustered(self) -> bool:
        """Whether initial states were sampled several times."""
        return len(set(self.pairs)) < len(self.pairs)

    @property
    def interval_name(self) -> str:
        return "Wilson intervals" + (", the samples of an initial state taken as one cluster" if self.clustered else "")

    @property
    def test_name(self) -> str:
        return "test that flips initial states as a whole" if self.clustered else "McNemar test"

    def overall(self, arm: Arm) -> SuccessRate:
        return SuccessRate.of_clusters(clusters_of(self.pairs, arm.success_E))

    def of_task(self, arm: Arm, task: int) -> SuccessRate:
        own = [(pair, won) for pair, won in zip(self.pairs, arm.success_E, strict=True) if pair[0] == task]
        return SuccessRate.of_clusters(clusters_of(*zip(*own, strict=True)))

    def paired(self) -> list[tuple[Arm, PairedTest]]:
        """Every other checkpoint against the first."""
        first, *others = self.arms
        return [(arm, PairedTest.of_clusters(self.pairs, first.success_E, arm.success_E)) for arm in others]

    def to_json(self) -> dict[str, Any]:
        return {
            "rules": self.rules,
            "simulator": self.simulator,
            "remarks": self.remarks,
            "checkpoints": [
                {
                    "label": arm.label,
                    "checkpoint": arm.checkpoint,
                    "overall": asdict(self.overall(arm)),
                    "window": arm.window,
                    "steps_of_successes": arm.steps_of_successes,
                    "calls_of_successes": arm.calls_of_successes,
                    "tasks": [
                        {"task": task, "instruction": self.instructions.get(task), **asdict(self.of_task(arm, task))}
                        for task in self.tasks
                    ],
                }
                for arm in self.arms
            ],
            f"against_{self.arms[0].label}": [{"label": arm.label, **asdict(test)} for arm, test in self.paired()],
            "episodes": [
                {
                    "task": episode.task,
                    "init_state": episode.init_state,
                    "seed": episode.seed,
                    "success": {arm.label: arm.success_E[i] for arm in self.arms},
                    "steps": {arm.label: arm.steps_E[i] for arm in self.arms},
                }
                for i, episode in enumerate(self.episodes)
            ],
            "versions": self.versions,
        }

    def rows(self) -> list[tuple[str, list[str]]]:
        """The table of success: a row per task, then overall; a cell per checkpoint."""
        per_task = [
            (f"{task} {self.instructions.get(task, '')}".strip(), [_cell(self.of_task(arm, task)) for arm in self.arms])
            for task in self.tasks
        ]
        return [*per_task, ("overall", [_cell(self.overall(arm)) for arm in self.arms])]

    def comparison(self) -> list[tuple[str, list[str]]]:
        """The table of differences to the first checkpoint, a row for each other one."""
        return [(arm.label, [_cell(self.overall(arm)), *_cells(test)]) for arm, test in self.paired()]

    def to_markdown(self) -> str:
        lines = ["# Evaluation", ""]
        lines += [f"- {name}: {value}" for name, value in self.rules.items()]
        lines += [f"- remark: {remark}" for remark in self.remarks]
        lines += [f"- {arm.label}: `{arm.checkpoint}`" for arm in self.arms]
        lines += ["", f"Success with 95% {self.interval_name}.", ""]
        lines += ["| task | " + " | ".join(arm.label for arm in self.arms) + " |", "|---" * (1 + len(self.arms)) + "|"]
        lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in self.rows()]
        if len(self.arms) > 1:
            against = f"Against {self.arms[0].label} on the same episodes"
            lines += ["", f"{against} (exact {self.test_name}; 95% intervals).", ""]
            lines += ["| | success | difference | gained | lost | p |", "|---|---|---|---|---|---|"]
            lines += [f"| {label} | {' | '.join(cells)} |" for label, cells in self.comparison()]
        return "\n".join(lines) + "\n"


def write_report(
    report: Report, folder: Path, figures: Sequence[tuple[str, str, Figure]], videos: Sequence[str]
) -> Path:
    """`report.json`, `report.md`, `report.html`, and the page's pictures in `figures/`.

    Args:
        figures: file name, caption and figure of each picture, in the page's order.
        videos: paths of videos, relative to the folder; the page links to them.

    Returns:
        The page.
    """
    write_json(folder / "report.json", report.to_json())
    (folder / "report.md").write_text(report.to_markdown(), encoding="utf-8")
    (folder / "figures").mkdir(exist_ok=True)
    images = []
    for name, caption, figure in figures:
        with extra(f"drawing the figure {name}"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=150)
            (folder / "figures" / f"{name}.png").write_bytes(buffer.getvalue())
            images.append((caption, base64.b64encode(buffer.getvalue()).decode()))
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = folder / "report.html"
    page.write_text(
        templates.get_template("report.html.j2").render(report=report, images=images, videos=videos),
        encoding="utf-8",
    )
    return page


def _cell(rate: SuccessRate) -> str:
    return f"{rate.rate:.3f} [{rate.wilson_low:.3f}, {rate.wilson_high:.3f}] {rate.successes}/{rate.episodes}"


def _cells(test: PairedTest) -> list[str]:
    difference = f"{test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]"
    return [difference, str(test.gained), str(test.lost), f"{test.p_value:.3g}"]
