"""Which run is to go on, from which checkpoint, and whether it may: `resume=auto` or `resume=<run folder or .ckpt>`.

A checkpoint is written whole or not at all (`callbacks.checkpoint`), but disks lose bits: one that is damaged is passed
over with a warning, and the run goes on from the one before it. What a run had after the checkpoint that it goes on
from is moved aside, not deleted.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from vla_rl.config.aliases import translate, without_gone
from vla_rl.config.compose import recorded
from vla_rl.config.instantiate import option_defaults
from vla_rl.config.schema import Config
from vla_rl.errors import UserError, first_line
from vla_rl.files import read_yaml
from vla_rl.run.extras import extra

PATTERN = "iteration-*.ckpt"  # in a run's checkpoints/, by the number of iterations done
PARTS = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks")  # of each
SUPERSEDED = "superseded"  # folder of a run folder, for what the run had after the checkpoint that it went on from
# what a run may be given anew: how long it is and where it runs, nothing that its result depends on
MAY_DIFFER = (
    *("conf", "iterations", "run_dir", "resume", "grpo.micro_rows", "sim.workers", "sim.timeout_s"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes"),
)


def resume_folder(config: Config) -> Path | None:
    """The folder of the run that `config.resume` asks to go on with; None: it asks for a new run.

    Raises:
        UserError: no run there, a run of another config, or a damaged one.
    """
    if config.resume is None:
        return None
    folder = _auto_folder(config) if config.resume == "auto" else _named_folder(config)
    if folder is not None:
        _check_same(config, folder)
    return folder


def checkpoint_to_resume(config: Config, folder: Path) -> Path | None:
    """The checkpoint that the run in `folder` goes on from; None: it was stopped before it had written any.

    `last.ckpt` and `best.ckpt` are links: what they point at is returned.

    Raises:
        UserError: `resume` names a file that is damaged or no checkpoint of a run, or every checkpoint is damaged.
    """
    if config.resume is None:
        return None
    newest_first = checkpoints(folder)
    if config.resume != "auto" and Path(config.resume).suffix == ".ckpt":
        given = Path(str(config.resume))
        given = given.with_name(given.readlink().name) if given.is_symlink() else given
        if not given.match(PATTERN):
            raise UserError(f"{given.name} does not say its iteration, as checkpoints/{PATTERN} do: resume={folder}")
        if damage := find_damage(given):
            raise UserError(f"checkpoint {given} is damaged ({damage}); from the newest whole one: resume={folder}")
        return given
    for path in newest_first:
        if not (damage := find_damage(path)):
            return path
        rank_zero_warn(f"checkpoint {path} is damaged ({damage}); going on from the one before it")
    if newest_first:
        raise UserError(f"every checkpoint in {folder}/checkpoints is damaged; start again: run_dir={folder}-2")
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of the run in `folder`, newest first."""
    return sorted((folder / "checkpoints").glob(PATTERN), key=iterations_done, reverse=True)


def link_checkpoint(link: Path, name: str) -> None:
    """Let `link` point at the checkpoint `name` beside it, whatever it pointed at before; there is never none.

    On a file system without links there is a warning.
    """
    with extra(f"linking checkpoints/{link.name}"):
        part = link.with_name(f"{link.name}.part")
        part.unlink(missing_ok=True)
        part.symlink_to(name)
        part.replace(link)


@rank_zero_only
def set_aside_newer(folder: Path, checkpoint: Path | None) -> None:
    """Keep what the run in `folder` had after `checkpoint`, from which it goes on, in `superseded/<n>/`.

    That is a run folder, too: one can go on with it, or export the policy of its checkpoints. Call it when no other
    program can write into `folder`.
    """
    newer = [p for p in checkpoints(folder) if checkpoint and iterations_done(p) > iterations_done(checkpoint)]
    if checkpoint is None or not newer:
        return
    aside = folder / SUPERSEDED / str(1 + len(list(folder.glob(f"{SUPERSEDED}/*"))))
    (aside / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "versions.json", "success_before.json", "metrics.jsonl"):  # the run still needs these
        if (folder / name).exists():
            shutil.copy2(folder / name, aside / name)
    if (folder / "policy").exists():
        shutil.copytree(folder / "policy", aside / "policy")
    if (folder / "summary.json").exists():  # the run has not ended any more
        (folder / "summary.json").rename(aside / "summary.json")
    for path in newer:
        path.rename(aside / "checkpoints" / path.name)
    for link in (folder / "checkpoints").glob("*.ckpt"):
        if not link.exists():  # it points at one of these
            link.rename(aside / "checkpoints" / link.name)
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_symlink():
        link_checkpoint(last, checkpoint.name)
    print(
        f"going on from iteration {iterations_done(checkpoint)}; what the run had after it, up to iteration "
        f"{iterations_done(newer[0])}, is kept in {aside} (to go on with that: resume={aside})",
        flush=True,
    )


def iterations_done(checkpoint: Path) -> int:
    """By its name."""
    return int(checkpoint.stem.rpartition("-")[2])


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file; None: every byte is as it was written, and no part is missing."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch's own reader does not compare checksums
            if (member := archive.testzip()) is not None:
                return f"{member} fails its checksum"
        stored = torch.load(path, map_location="meta", weights_only=True)
    except Exception as e:  # torch names a damaged archive by half a dozen types
        return first_line(e)
    missing = [key for key in PARTS if not isinstance(stored, dict) or key not in stored]
    return f"it has no {missing[0]}" if missing else None


def differing_keys(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Dotted names of the values that differ between two configs, those in `MAY_DIFFER` left out."""
    return [key for key in _differing(one, other, "") if not any(f"{key}.".startswith(f"{m}.") for m in MAY_DIFFER)]


def _differing(one: Any, other: Any, key: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted(one.keys() | other.keys()):
            yield from _differing(one.get(name), other.get(name), f"{key}.{name}" if key else str(name))
    elif one != other:
        yield key


def _named_folder(config: Config) -> Path:
    given = Path(str(config.resume))
    folder = given.parent.parent if given.suffix == ".ckpt" else given
    if not given.exists():
        raise UserError(f"nothing to resume at {given}: give a run folder or one of its checkpoints, or resume=auto")
    in_a_run = given.suffix != ".ckpt" or given.parent.name == "checkpoints"
    if not in_a_run or not (folder / "config.yaml").is_file():
        raise UserError(f"{given} holds no run to resume: give a run folder, or one of its checkpoints/{PATTERN}")
    if config.run_dir is not None and Path(config.run_dir).resolve() != folder.resolve():
        raise UserError(f"resume={given} goes on in {folder}, but run_dir={config.run_dir}: give one of them only")
    return folder


def _auto_folder(config: Config) -> Path | None:
    """`run_dir` where it holds a run; without `run_dir` the newest run of this conf and seed that has not ended."""
    if config.run_dir is not None:
        return Path(config.run_dir) if (Path(config.run_dir) / "config.yaml").is_file() else None
    begun = sorted((path.parent for path in Path("runs", config.conf).glob("*/config.yaml")), reverse=True)
    unfinished = (folder for folder in begun if not (folder / "summary.json").exists())
    return next((folder for folder in unfinished if _stored(folder).get("seed") == config.seed), None)


def _with_defaults(stored: dict[str, Any], now: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config of a run that a version with fewer keys has begun: what it lacks has its default, with a line."""
    added: dict[str, Any] = {}
    full = _completed(stored, now, _plain(asdict(Config())), "", added)
    if added:
        values = ", ".join(f"{key}={value}" for key, value in added.items())
        rank_zero_warn(f"the run in {folder} was begun by a version without {values}; it goes on with these defaults")
    return full


def _completed(stored: Any, now: Any, default: Any, key: str, added: dict[str, Any]) -> Any:
    if not isinstance(stored, dict) or not isinstance(now, dict):
        return stored
    defaults = default if isinstance(default, dict) else {}
    if (target := now.get("_target_")) is not None and target == stored.get("_target_"):
        defaults = option_defaults(target)
    full = dict(stored)
    for name, value in now.items():
        path = f"{key}.{name}" if key else name
        if name in stored:
            full[name] = _completed(stored[name], value, defaults.get(name), path, added)
        elif name in defaults:
            full[name] = added[path] = defaults[name]
    return full


def differing_from(folder: Path, config: Config) -> list[str]:
    """As `differing_keys`, of the run in `folder` and a config; what the run's version did not know has its default."""
    now = _plain(recorded(config))
    return differing_keys(_with_defaults(without_gone(translate(_stored(folder))), now, folder), now)


def _check_same(config: Config, folder: Path) -> None:
    if keys := differing_from(folder, config):
        raise UserError(
            f"the run in {folder} was started with another config; these differ: {', '.join(keys)} "
            f"(its own: conf={folder}/config.yaml; a new run: resume=null run_dir={folder}-2)"
        )


def _stored(folder: Path) -> dict[str, Any]:
    """The config that the run in `folder` was started with."""
    return read_yaml(folder / "config.yaml")


def _plain(value: Any) -> Any:
    """As YAML reads it back: tuples are lists."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
