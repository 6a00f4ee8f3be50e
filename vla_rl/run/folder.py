"""The run folder: where it is, what it holds, and the summary at its end."""

from __future__ import annotations

import ctypes
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

from vla_rl.config.compose import save_resolved
from vla_rl.config.schema import Config
from vla_rl.errors import UserError
from vla_rl.files import read_json, read_json_lines
from vla_rl.functional.statistics import SuccessRate
from vla_rl.run.launch import started_processes
from vla_rl.run.provenance import source_state, versions

BEFORE = "success_before.json"
FOLDER_OF_RANK_ZERO = "VLA_RL_RUN_FOLDER"  # environment variable


def _rank() -> int:
    """This process's rank, as Lightning found it."""
    return cast(Any, rank_zero_only).rank


def run_folder(run_dir: str | None, conf: str, resumed: Path | None = None) -> Path:
    """The run folder, the same one on all ranks: `run_dir`, or `runs/<conf>/<time>/`; not made yet.

    Args:
        resumed: the folder of the run that goes on instead.

    Raises:
        UserError: the folder has a run in it already; or no `run_dir` for processes that were not started by the
            first of them: each would name a folder of its own.
    """
    given = resumed or run_dir
    if given is None and _rank() and FOLDER_OF_RANK_ZERO in os.environ:
        return Path(os.environ[FOLDER_OF_RANK_ZERO])
    if given is None and (started_processes() or 1) > 1:
        raise UserError("processes started by torchrun or srun have to share a run folder: run_dir=runs/mine")
    folder = Path(given or Path("runs") / conf / _now())
    if _rank() == 0:
        if not resumed:
            _check_unused(folder)
        os.environ[FOLDER_OF_RANK_ZERO] = str(folder)  # Lightning starts the other ranks with this environment
    return folder


def _now() -> str:
    """To the microsecond: runs that a script starts together have folders of their own."""
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")


@contextmanager
def open_run_folder(folder: Path, config: Config, *, resumed: bool = False) -> Iterator[None]:
    """Make the folder with what the run is, `config.yaml` and `versions.json`, and keep others out of it meanwhile.

    Args:
        resumed: the run in the folder goes on.

    Raises:
        UserError: it cannot be written, another program runs in it, or a run has ended in it.
    """
    if _rank():
        yield
        return
    lock = _begin(folder, config, resumed)
    try:
        print(f"run folder {folder}", flush=True)
        yield
    finally:
        lock.release()


def _begin(folder: Path, config: Config, resumed: bool) -> FileLock:
    lock = FileLock(folder / ".lock", timeout=0)  # the kernel's: it ends with the process, however that ends
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        if not resumed:
            _check_unused(folder)
        atomic_write(folder / "config.yaml", lambda part: save_resolved(replace(config, resume=None), part))
        write_json(folder / "versions.json", versions() | source_state())
    except Timeout as e:
        raise UserError(f"another program runs in the run folder {folder}; name another: run_dir={folder}-2") from e
    except OSError as e:
        raise UserError(f"cannot write the run folder {folder}: {e.strerror}; name another: run_dir=runs/mine") from e
    return lock


def _check_unused(folder: Path) -> None:
    if os.path.exists(folder / "config.yaml"):  # False for a path that is too long, which is said when it is made
        raise UserError(
            f"run folder {folder} holds a run already; go on with it: resume={folder}, or name another: "
            f"run_dir={folder}-2"
        )


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a file beside `path`, then move it there: readers and crashes see the old file or the complete
    new one."""
    part = path.with_name(f"{path.name}.part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())  # a machine that loses its power must not have renamed an empty file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # where it failed


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a folder beside `folder`, then swap the two: readers see the old folder or the complete new one.

    Where the file system cannot swap, a process killed between two renames leaves `.new` and `.old` beside it.
    """
    new, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    write(new)
    if not folder.exists():
        new.rename(folder)
    elif not exchange(new, folder):
        folder.rename(old)
        new.rename(folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Swap what is at two paths in a single step (Linux's renameat2); False where that is not possible."""
    current_folder, flag_exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = (current_folder, os.fsencode(one), current_folder, os.fsencode(other))
    return call is not None and call(*paths, flag_exchange) == 0


def write_json(path: Path, value: Any) -> None:
    """Atomic (`atomic_write`)."""
    atomic_write(path, lambda part: part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def success_before(folder: Path) -> dict[str, SuccessRate] | None:
    """Held-out success that a resumed run measured before it began; None if it stopped before that."""
    path = folder / BEFORE
    return read_rates(read_json(path), str(path)) if path.exists() else None


def read_rates(stored: Any, entry: str) -> dict[str, SuccessRate]:
    """Success by decoding, as a run's files have it; what was not measured is left out.

    Args:
        entry: the file and the entry.

    Raises:
        UserError: numbers are missing, or none.
    """
    try:
        rates = {mode: SuccessRate(**rate) for mode, rate in stored.items() if rate is not None}
    except (AttributeError, TypeError) as e:
        raise UserError(f"{entry} holds no success rates ({e}): copy it again") from e
    for mode, rate in rates.items():
        for name, value in asdict(rate).items():
            most = math.inf if name in ("successes", "episodes") else 1
            if type(value) not in (int, float) or not 0 <= value <= most:  # also of NaN
                raise UserError(f"{entry} holds no success rates ({mode}: {name} is {value!r}): copy it again")
    return rates


@rank_zero_only
def write_success_before(folder: Path, before: dict[str, SuccessRate]) -> None:
    write_json(folder / BEFORE, {mode: asdict(rate) for mode, rate in before.items()})


@rank_zero_only
def write_summary(
    folder: Path,
    *,
    conf: str,
    seed: int,
    before: dict[str, SuccessRate],
    after: dict[str, SuccessRate],
    seconds: float,
) -> Path:
    """`summary.json`: success before and after, and what each iteration cost.

    Args:
        before, after: `{"sampled": ..., "greedy": ...}` on initial states never trained on.
        seconds: of the whole run, evaluations and the processes before a resume included.
    """
    rows = folder / "metrics.jsonl"  # one row of logged tags per iteration, written by the `metrics_file` callback
    metrics = read_json_lines(rows) if rows.exists() else []
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
