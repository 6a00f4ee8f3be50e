"""A sweep: the runs of `python -m vla_rl.fit` in every combination of several values, one after the other."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla_rl.config.schema import GROUPS, Config
from vla_rl.config.supervised import compose_reinforcement
from vla_rl.errors import RunError, UserError
from vla_rl.files import read_json, read_yaml
from vla_rl.run.folder import BEFORE
from vla_rl.run.resume import differing_from
from vla_rl.run.tables import Table

AFTER_THE_START = ("conf", "run_dir", "iterations", "mask", "reward", "grpo", "optim")  # act in training alone


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One combination of the values."""

    folder: Path
    arguments: tuple[str, ...]  # of vla_rl.fit, but run_dir
    config: Config

    @property
    def command(self) -> str:
        return " ".join(["python -m vla_rl.fit", *self.arguments, f"run_dir={self.folder}"])

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").exists()


def planned_runs(argv: Sequence[str], out: Path) -> list[PlannedRun]:
    """Every combination, seeds outermost: all arms have the first seeds when the time is up.

    A run's folder is `out/<its values>/seed<n>`, of the values that vary.

    Args:
        argv: `key=value` each; commas in a value separate alternatives.

    Raises:
        UserError: an argument that vla_rl.fit would refuse, folders that collide, or a folder that holds a run with
            other values; nothing has been run yet.
    """
    for argument in argv:
        if argument.startswith("run_dir="):
            raise UserError(f"a sweep names the folders of its runs, so run_dir= cannot be given: out={out}")
        if argument.startswith("resume="):
            raise UserError("a sweep goes on with its own runs, so resume= cannot be given: the same command again")
    axes = [alternatives(argument) for argument in argv]
    axes.sort(key=lambda axis: not axis[0][0].startswith("seed="))
    runs: dict[Path, PlannedRun] = {}
    for choice in itertools.product(*axes):
        arguments = tuple(part for parts in choice for part in parts)
        varying = [parts for parts, axis in zip(choice, axes, strict=True) if len(axis) > 1]
        arm = [_name(part) for parts in varying for part in parts if not part.startswith("seed=")]
        config = compose_reinforcement([*arguments])
        folder = out / ("_".join(arm) or config.conf) / f"seed{config.seed}"
        if folder in runs:
            raise UserError(f"two runs of the sweep would share the folder {folder}: give each value once")
        runs[folder] = PlannedRun(folder, arguments, config)
        _check_same(runs[folder])
    return list(runs.values())


def alternatives(argument: str) -> list[list[str]]:
    """The values of one argument, each as the arguments that it stands for.

    Example:
        >>> alternatives("mask=none,pcm+mask.budget=8")
        [['mask=none'], ['mask=pcm', 'mask.budget=8']]
        >>> alternatives("optim.betas=[0.9,0.95]")
        [['optim.betas=[0.9,0.95]']]
    """
    key, equals, text = argument.partition("=")
    if not equals:
        raise UserError(f"expected key=value, got '{argument}' (for example seed=1,2,3)")
    found = []
    for value in _split(text):
        first, *others = re.split(r"\+(?=[\w.]+=)", value)
        found.append([f"{key}={first}", *others])
    return found


def _split(text: str) -> Iterator[str]:
    """At the commas outside all brackets."""
    depth, start = 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def run_all(runs: Sequence[PlannedRun]) -> Iterator[tuple[PlannedRun, bool]]:
    """Train what is not finished; yields each run when it is, and whether it was trained now.

    Raises:
        RunError: a run failed; what it printed stands above.
    """
    for run in runs:
        if run.finished:
            print(f"{run.folder} is finished", flush=True)
            yield run, False
            continue
        _share_start(run, runs)
        print(run.command, flush=True)
        program = [sys.executable, "-m", "vla_rl.fit", *run.arguments, f"run_dir={run.folder}", "resume=auto"]
        status = subprocess.run(program, check=False).returncode
        if status:
            raise RunError(f"the run in {run.folder} ended with status {status}, see above; the same command goes on")
        yield run, True


def sweep_readme(done: Sequence[PlannedRun], planned: int, tables: Sequence[Table]) -> str:
    """Markdown: the tables, the figures beside it, the versions, and the command of every run."""
    versions = read_json(done[0].folder / "versions.json")
    lines = [
        "# Runs compared",
        "",
        f"{len(done)} of {planned} runs are finished.",
        "",
        *(table.to_markdown() for table in tables),
        *(f"![{name}]({name}.png)\n" for name in ("success", "cost", "arms")),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items() if isinstance(version, str)),
        "",
        "```",
        *(run.command for run in done),
        "```",
        "",
    ]
    return "\n".join(lines)


def _name(argument: str) -> str:
    """For a folder: `mask=pcm` -> pcm, `optim.lr=1e-5` -> lr1e-5."""
    key, _, value = argument.partition("=")
    return re.sub(r"[^\w.-]+", "-", value if key in GROUPS else f"{key.rpartition('.')[2]}{value}")


def _check_same(run: PlannedRun) -> None:
    path = run.folder / "config.yaml"
    if not path.exists():
        return
    differing = differing_from(run.folder, run.config)
    if read_yaml(path).get("iterations") != run.config.iterations:
        differing.append("iterations")
    if differing:
        raise UserError(
            f"{run.folder} holds a run with another value of {', '.join(differing)}: out={run.folder.parents[1]}-2"
        )


def _share_start(run: PlannedRun, runs: Sequence[PlannedRun]) -> None:
    """Runs that begin with the same policy on the same held-out episodes measure its success once."""
    if run.folder.exists():
        return
    for other in runs:
        if (other.folder / BEFORE).exists() and other.finished and _start(other.config) == _start(run.config):
            run.folder.mkdir(parents=True)
            shutil.copy(other.folder / BEFORE, run.folder)
            return


def _start(config: Config) -> dict[str, Any]:
    """What success before training depends on, and more."""
    return {key: value for key, value in asdict(config).items() if key not in AFTER_THE_START}
