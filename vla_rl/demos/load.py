"""`load_demos`: demonstrations in whichever format they are, and which of them are trained on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from tqdm import tqdm

from vla_rl.checkpoints.shipped import shipped_folder
from vla_rl.demos.demo import Demo, check_demo, moving_steps
from vla_rl.demos.formats import hdf5, lerobot, npz, rlds
from vla_rl.demos.formats.layout import Layout
from vla_rl.errors import UserError

SHIPPED_NAME = "demos.npz"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
KINDS = "an .npz or .hdf5 file or a folder of them, a LeRobotDataset (meta/info.json), or a folder of .tfrecord shards"


def load_demos(
    path: str | Path, layout: Layout | None = None, *, per_task: int | None = None, drop_noops: bool = False
) -> list[Demo]:
    """Read demonstrations; those that are marked as failures are left out. Pictures of other formats than .npz stay in
    their files until they are asked for.

    Args:
        path: a file, a folder, `shipped:NAME`, or the name of a data set (LeRobotDataset) on the Hugging Face hub.
        layout: which keys are read; None takes those that the format's published sets have, and one camera.
        per_task: see `first_of_each_task`; None takes all.
        drop_noops: leave out control steps that do nothing (`moving_steps`).

    Raises:
        UserError: nothing there, files that are damaged or of several formats, or demonstrations that do not fit each
            other.
    """
    layout = layout or Layout()
    found = _read(_resolve(path), layout)
    for demo in found:
        check_demo(demo)
    demos = [demo for demo in found if demo.success]
    if not demos:
        what = "no demonstration in {} succeeds" if found else "there is no demonstration in {}"
        raise UserError(f"{what.format(path)}: record others with python -m vla_rl.record")
    for demo in demos:
        for name in ("action_TA", "proprio_TP"):
            width, first = getattr(demo, name).shape[1], getattr(demos[0], name).shape[1]
            if width != first:
                what = "actions" if name == "action_TA" else "states"
                raise UserError(
                    f"{demo.origin}: {what} have {width} dimensions, those of {demos[0].origin} {first}: leave one of "
                    "them out of sft.demos"
                )
    demos = demos if per_task is None else first_of_each_task(demos, per_task)
    return [_without_noops(demo) for demo in demos] if drop_noops else demos


def first_of_each_task(demos: Sequence[Demo], count: int) -> list[Demo]:
    """The first `count` demonstrations of each instruction, and behind them the first of the others, to be held out.

    Example: instructions a a b a and count 1 -> the first a, b, and the second a.
    """
    seen: Counter[str] = Counter()
    chosen: list[Demo] = []
    others: list[Demo] = []
    for demo in demos:
        seen[demo.instruction] += 1
        (chosen if seen[demo.instruction] <= count else others).append(demo)
    return chosen + others[:1]


def _without_noops(demo: Demo) -> Demo:
    kept = moving_steps(demo.action_TA)
    if not kept:
        raise UserError(f"{demo.origin}: no control step does anything: sft.drop_noops=false, or drop that episode")
    return demo.rows(kept)


def _resolve(path: str | Path) -> Path:
    """The file or folder that `path` stands for, downloaded from the hub if it is the name of a data set there."""
    shipped = shipped_folder(str(path))
    found = shipped / SHIPPED_NAME if shipped else Path(path).expanduser()
    if found.exists():
        return found
    if found.suffix or not HUB_NAME.fullmatch(str(path)):
        raise _nothing_at(path)
    try:
        return Path(huggingface_hub.snapshot_download(str(path), repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        raise UserError(
            f"no demonstrations at {path}: no such file or folder, and no data set of that name is available from the "
            f"Hugging Face hub ({type(e).__name__}): sft.demos=FOLDER"
        ) from e


def _nothing_at(path: str | Path) -> UserError:
    return UserError(
        f"no demonstrations at {path}: expected {KINDS}; record some with python -m vla_rl.record, then sft.demos=FILE"
    )


def _read(path: Path, layout: Layout) -> list[Demo]:
    if path.is_file():
        return _read_file(path, layout)
    if (path / lerobot.INFO).is_file():
        _refuse_mixed({"a LeRobotDataset": [path / lerobot.INFO]} | _files_by_kind(path))
        return lerobot.read_lerobot(path, layout)
    found = _files_by_kind(path)
    _refuse_mixed(found)
    if not found:
        versions = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and _files_by_kind(folder)]
        if len(versions) != 1:  # tensorflow_datasets keeps the shards in a folder named by the version
            raise _nothing_at(path)
        return _read(versions[0], layout)
    ((kind, files),) = found.items()
    if kind == "tfrecord":
        return rlds.read_rlds(path, layout)
    described = f"demonstrations {path.name}"
    return [d for file in tqdm(files, described, leave=False, disable=None) for d in _read_file(file, layout)]


def _files_by_kind(folder: Path) -> dict[str, list[Path]]:
    """Files of demonstrations right inside the folder."""
    kinds: dict[str, Callable[[Path], bool]] = {
        "npz": lambda file: file.suffix == ".npz",
        "hdf5": lambda file: file.suffix in hdf5.SUFFIXES,
        "tfrecord": lambda file: ".tfrecord" in file.name,
    }
    files = sorted(file for file in folder.iterdir() if file.is_file())
    found = {kind: [file for file in files if belongs(file)] for kind, belongs in kinds.items()}
    return {kind: members for kind, members in found.items() if members}


def _refuse_mixed(found: dict[str, list[Path]]) -> None:
    if len(found) > 1:
        names = " and ".join(str(files[0]) for files in found.values())
        raise UserError(f"demonstrations of {len(found)} formats in one folder, {names}: sft.demos=one of the files")


def _read_file(path: Path, layout: Layout) -> list[Demo]:
    if path.suffix in hdf5.SUFFIXES:
        return hdf5.read_hdf5(path, layout)
    if ".tfrecord" in path.name:
        return rlds.read_shard(path, layout, path.name.partition("-")[0])
    _refuse_keys(path, layout)
    return _with_images(npz.read_npz(path), layout.images)


def _refuse_keys(path: Path, layout: Layout) -> None:
    """An .npz file has one frame, one state and one action: none of the keys can be chosen."""
    for option, value in (
        ("cameras", layout.cameras),
        ("state", layout.state),
        ("action", layout.action),
        ("turned", layout.turned),
    ):
        if value is not None:
            raise UserError(f"{path} is an .npz file, whose keys are fixed: sft.{option}=null")


def _with_images(demos: list[Demo], images: int) -> list[Demo]:
    """The demonstrations, if their frames have as many images as the policy reads."""
    for demo in demos:
        assert isinstance(demo.frame_THWC, Tensor)
        have = demo.frame_THWC.shape[-1] // 3
        if have != images:
            raise UserError(f"{demo.origin}: frames hold {have} images, the policy reads {images}: sft.demos=FILE")
    return demos
