"""`conf=published` of `python -m vla_rl.evaluate`: what was reported of policies beside what is measured here.

Each row of conf/evaluation/published.yaml is an evaluation of its own. One that cannot run here, because its checkpoint
or the simulator's meshes are out of reach or the memory is too small, gets a row that says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from vla_rl.checks import check_writable_folder
from vla_rl.config.compose import CONF_DIR
from vla_rl.errors import UserError, did_you_mean
from vla_rl.functional.statistics import SuccessRate
from vla_rl.run.folder import atomic_write, run_folder, write_json

CONF = "conf=published"
HEAD = ("name", "family", "suite", "protocol", "reported", "measured", "MuJoCo", "episodes/s", "source of the report")


@dataclass(frozen=True, slots=True)
class Published:
    """A policy of the list."""

    name: str
    family: str
    suite: str
    reported: float | None  # percent
    source: str | None
    run: list[str]  # arguments of `vla_rl.evaluate`


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of its evaluation."""

    success: SuccessRate | None = None
    protocol: str = ""
    mujoco: str = ""
    episodes_per_s: float | None = None
    missing: str = ""  # why there is no success


def published(names: Sequence[str] | None) -> list[Published]:
    """The rows of the list; `names` chooses some of them.

    Raises:
        UserError: a name that the list does not have.
    """
    listed = yaml.safe_load((CONF_DIR / "evaluation" / "published.yaml").read_text(encoding="utf-8"))
    rows = [Published(**row) for row in listed]
    have = [row.name for row in rows]
    for name in names or []:
        if name not in have:
            raise UserError(f"{CONF} has no row {name!r}{did_you_mean(name, have)} Rows: {', '.join(have)} (names)")
    return [row for row in rows if names is None or row.name in names]


def evaluate_published(names: Sequence[str] | None, argv: Sequence[str], evaluate: Callable[[list[str]], None]) -> Path:
    """Evaluate every row, each in a folder of its own, and write the table after each of them.

    Args:
        names: rows that are run; None = all.
        argv: `run_dir` is the folder of the table, and what else is given goes to every row and wins over its own.
        evaluate: `vla_rl.evaluate` on a row's arguments.

    Returns:
        The table, in Markdown; `published.json` beside it has the same.
    """
    rows = published(names)
    given = [argument.removeprefix("run_dir=") for argument in argv if argument.startswith("run_dir=")]
    others = [argument for argument in argv if not argument.startswith(("run_dir=", "conf=", "names="))]
    folder = run_folder(given[-1] if given else None, "evaluation/published")
    check_writable_folder("run_dir", folder, "runs/published")
    found: list[tuple[Published, Measured]] = []
    for row in rows:
        print(f"{row.name}: {' '.join(row.run)}", flush=True)
        try:
            evaluate([*row.run, *others, f"run_dir={folder / row.name}"])
            measured = read_measured(folder / row.name)
        except UserError as error:
            measured = Measured(missing=f"not run: {error}")
            print(measured.missing, flush=True)
        found.append((row, measured))
        _write(folder, found)
    print(table(found), end="")
    return folder / "published.md"


def _write(folder: Path, found: list[tuple[Published, Measured]]) -> None:
    page = table(found)
    atomic_write(folder / "published.md", lambda part: part.write_text(page, encoding="utf-8"))
    write_json(folder / "published.json", [asdict(row) | asdict(measured) for row, measured in found])


def read_measured(folder: Path) -> Measured:
    """What the report of an evaluation says of its first checkpoint."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    first = report["checkpoints"][0]
    time = json.loads((folder / "timing.json").read_text(encoding="utf-8"))[first["label"]]
    return Measured(
        success=SuccessRate(**first["overall"]),
        protocol=f"{report['rules']['protocol']}, {report['rules']['decoding']}",
        mujoco=report["versions"]["mujoco"],
        episodes_per_s=len(report["episodes"]) / time["total_s"],
    )


def table(found: Sequence[tuple[Published, Measured]]) -> str:
    """Markdown; rates in percent, with 95% Wilson intervals."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for row, measured in found:
        lines.append(
            (
                row.name,
                row.family,
                row.suite,
                measured.protocol,
                "" if row.reported is None else f"{row.reported:.1f}",
                measured.missing if measured.success is None else _percent(measured.success),
                measured.mujoco,
                "" if measured.episodes_per_s is None else f"{measured.episodes_per_s:.2f}",
                row.source or "",
            )
        )
    return "".join("| " + " | ".join(cells).replace("\n", " ") + " |\n" for cells in lines)


def _percent(rate: SuccessRate) -> str:
    return f"{100 * rate.rate:.1f} [{100 * rate.wilson_low:.1f}, {100 * rate.wilson_high:.1f}] of {rate.episodes}"
