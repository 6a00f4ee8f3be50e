"""RLDS data sets (TFRecord shards written by tensorflow_datasets), such as modified_libero_rlds: an episode per record.

Needs no tensorflow. Pictures stay in the shards: only where each of them lies is remembered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vla_rl.demos.demo import Camera, Demo, StoredFrames
from vla_rl.demos.formats.layout import Layout, check_keys, decode_picture, refuse
from vla_rl.demos.formats.tfrecord import Feature, Place, read_records

INFO = "dataset_info.json"
SHARD = re.compile(r"(?P<name>.+)-(?P<split>\w+)\.tfrecord-(?P<number>\d{5})-of-(?P<count>\d{5})$")
STEPS, OBSERVATION = "steps/", "observation/"
CAMERAS, STATE, ACTION = ("image", "wrist_image"), ("state",), "action"
SPLIT = "train"


def read_rlds(folder: Path, layout: Layout) -> list[Demo]:
    """All episodes of the folder's training shards, in the order of the records.

    Raises:
        UserError: a shard is missing or damaged, or has other keys than asked for.
    """
    shards = sorted(path for path in folder.iterdir() if (found := SHARD.match(path.name)) and found["split"] == SPLIT)
    if not shards:
        refuse(folder, f"it has no shard NAME-{SPLIT}.tfrecord-00000-of-00001")
    last = SHARD.match(shards[0].name)
    assert last is not None
    for number in range(int(last["count"])):
        shard = folder / f"{last['name']}-{SPLIT}.tfrecord-{number:05}-of-{last['count']}"
        if shard not in shards:
            refuse(shard, "no such file")
    counts = _counts(folder, len(shards))
    demos = []
    for shard, count in zip(tqdm(shards, unit="file", leave=False, disable=None), counts, strict=True):
        demos += read_shard(shard, layout, last["name"], count)
    return demos


def read_shard(shard: Path, layout: Layout, dataset: str, count: int | None = None) -> list[Demo]:
    """The episodes of one file.

    Args:
        count: how many there should be; None where that is not known.
    """
    demos = []
    try:
        for number, features in enumerate(read_records(shard)):
            demos.append(_demo(shard, f"{shard}: record {number}", features, layout, dataset))
    except (OSError, UnicodeDecodeError) as e:
        refuse(shard, e)
    except ValueError as e:
        if type(e) is not ValueError:  # a `UserError` says it already
            raise
        refuse(shard, e)
    if count not in (None, len(demos)):
        refuse(shard, f"{len(demos)} records of the {count} that {INFO} counts")
    return demos


def _demo(shard: Path, origin: str, features: dict[str, Feature], layout: Layout, dataset: str) -> Demo:
    of_step = {name.removeprefix(STEPS): value for name, value in features.items() if name.startswith(STEPS)}
    observed = {n.removeprefix(OBSERVATION): v for n, v in of_step.items() if n.startswith(OBSERVATION)}
    pictures = [name for name, value in observed.items() if isinstance(value, list)]
    cameras = layout.camera_keys([name for name in CAMERAS if name in pictures], pictures, origin)
    state = list(layout.state or STATE)
    check_keys(state, [name for name in observed if name not in pictures], origin, "sft.state")
    action = layout.action or ACTION
    check_keys([action], [name for name in of_step if "/" not in name], origin, "sft.action")
    instructions = of_step.get("language_instruction")
    if not isinstance(instructions, list) or not instructions:
        refuse(origin, "it has no steps/language_instruction")
    rows = len(instructions)
    for name in cameras:
        if len(observed[name]) != rows:
            refuse(origin, f"it has {rows} steps and {len(observed[name])} pictures {name}")
    stored: list[Camera] = [ShardCamera(shard, places(observed[name])) for name in cameras]
    return Demo(
        frame_THWC=StoredFrames(stored, np.arange(rows), layout.turned is not False, origin),
        proprio_TP=torch.from_numpy(np.concatenate([_matrix(observed[n], rows, origin, n) for n in state], axis=1)),
        action_TA=torch.from_numpy(_matrix(of_step[action], rows, origin, action)),
        instruction=_read(shard, instructions[0]).decode().strip(),
        dataset=dataset,
        origin=origin,
    )


def places(value: Feature) -> np.ndarray:
    """int64 [n, 2]: offset and length of each byte string."""
    assert isinstance(value, list)
    return np.array([(place.offset, place.length) for place in value], np.int64).reshape(-1, 2)


def _matrix(value: Feature, rows: int, origin: str, name: str) -> np.ndarray:
    if isinstance(value, list) or not len(value) or len(value) % rows:
        refuse(origin, f"{name} does not hold the same count of numbers for each of the {rows} steps")
    return np.asarray(value, np.float32).reshape(rows, -1)


def _counts(folder: Path, shards: int) -> Sequence[int | None]:
    """How many records each shard should have, as `dataset_info.json` says; None where there is none."""
    path = folder / INFO
    if not path.is_file():
        return [None] * shards
    try:
        info: Any = json.loads(path.read_text(encoding="utf-8"))
        (split,) = (entry for entry in info["splits"] if entry["name"] == SPLIT)
        counts = [int(count) for count in split["shardLengths"]]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
        refuse(path, e)
    if len(counts) != shards:
        refuse(path, f"it counts {len(counts)} shards, and there are {shards}")
    return counts


@dataclass(slots=True)
class ShardCamera:
    """One episode's JPEG or PNG pictures in a shard.

    Args:
        place_T2: offset and length of each.
    """

    shard: Path
    place_T2: np.ndarray

    def read(self, steps: Sequence[int]) -> list[np.ndarray]:
        found = []
        for step in steps:
            offset, length = self.place_T2[step].tolist()
            found.append(decode_picture(_read(self.shard, Place(offset, length)), f"{self.shard}: picture {step}"))
        return found


def _read(shard: Path, place: Place) -> bytes:
    try:
        with shard.open("rb") as file:
            file.seek(place.offset)
            return file.read(place.length)
    except OSError as e:
        refuse(shard, e)
