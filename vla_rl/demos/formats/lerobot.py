"""LeRobotDataset v3.0, v2.1 and v2.0: parquet files of numbers, and cameras as video or as pictures inside the parquet.

meta/info.json                features, patterns of the paths, frames per second
v3:  meta/tasks.parquet       meta/episodes/**.parquet  data/**.parquet (many episodes in a file)  videos/**.mp4
v2:  meta/tasks.jsonl         meta/episodes.jsonl       a parquet file and videos for each episode
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vla_rl.demos.demo import Camera, Demo, StoredFrames
from vla_rl.demos.formats.layout import Layout, check_keys, decode_picture, refuse, require
from vla_rl.demos.formats.lerobot_writer import ABOUT, PER_EPISODE
from vla_rl.demos.formats.video import VideoCamera, seconds
from vla_rl.errors import UserError

INFO = "meta/info.json"
STATES = ("observation.state", "state")  # usual names, the first that the set has
ACTIONS = ("action", "actions")
OPEN_GROUPS = 8  # row groups of pictures that are kept: an episode's, a few MB


@dataclass(slots=True)
class _Episode:
    """Where an episode lies."""

    index: int
    length: int
    data: Path
    videos: dict[str, tuple[Path, float]]  # by camera: the file, and the time there of the episode's first frame


def read_lerobot(root: Path, layout: Layout) -> list[Demo]:
    """All episodes of a data set in order. Pictures stay in their files.

    Raises:
        UserError: a file is damaged or missing, or the set has other keys than asked for.
    """
    require("pyarrow")
    info = _checked(root / INFO, lambda path: json.loads(path.read_text(encoding="utf-8")))
    version = str(info.get("codebase_version")) if isinstance(info, dict) else ""
    if not version.startswith(("v2.", "v3.")):
        refuse(root / INFO, f"codebase_version {version!r} is none of v2.0, v2.1, v3.0")
    try:
        features = info["features"]
        pictures = [key for key, feature in features.items() if feature["dtype"] in ("video", "image")]
        numbers = [key for key in features if key not in pictures]
        cameras = layout.camera_keys(pictures, pictures, root)
        state = list(layout.state or _usual(STATES, numbers, root, "sft.state"))
        action = layout.action or _usual(ACTIONS, numbers, root, "sft.action")[0]
        check_keys([*state, action], numbers, root, "sft.state, sft.action")
        filmed = [key for key in cameras if features[key]["dtype"] == "video"]
        task_of = _tasks_v3(root) if version.startswith("v3.") else _tasks_v2(root)
        episodes = list((_episodes_v3 if version.startswith("v3.") else _episodes_v2)(root, info, filmed))
        if len(episodes) != info["total_episodes"]:
            refuse(root / INFO, f"it counts {info['total_episodes']} episodes, the other files {len(episodes)}")
        fps = float(info["fps"])
        if not 0 < fps < math.inf:
            refuse(root / INFO, f"fps is {fps}")
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as e:
        refuse(root / INFO, f"{type(e).__name__}: {e}")
    if len({episode.index for episode in episodes}) < len(episodes):
        refuse(root / INFO, "the other files list an episode twice")
    _check_videos(episodes, fps)
    recorded = _recorded(root, len(episodes))
    chosen = _DataSet(root, cameras, state, action, fps, task_of, layout.turned is not False, recorded)
    demos: list[Demo] = []
    files: dict[Path, list[_Episode]] = {}
    for episode in episodes:
        files.setdefault(episode.data, []).append(episode)
    bar = tqdm(files.items(), unit="file", desc=f"demonstrations {root.name}", leave=False, disable=None)
    for file, inside in bar:
        demos += _read_file(chosen, file, inside)
    return demos


@dataclass(slots=True)
class _DataSet:
    """What the whole set has in common, and which of its keys are read."""

    root: Path
    cameras: list[str]
    state: list[str]
    action: str
    fps: float
    task_of: dict[int, str]  # instructions
    turned: bool
    recorded: dict[int, dict[str, Any]]  # by episode: what only `vla_rl.record` writes of it


def _read_file(chosen: _DataSet, file: Path, episodes: list[_Episode]) -> Iterator[Demo]:
    """The demonstrations of one parquet file."""
    names = list(dict.fromkeys(["episode_index", "task_index", "timestamp", chosen.action, *chosen.state]))
    table = _checked(file, lambda path: require("pyarrow.parquet").read_table(path, columns=names))
    missing = [name for name in names if name not in table.column_names]
    if missing:
        refuse(file, f"it has no column {missing[0]!r}")
    episode_of, task_of_row = (_column(file, table, name, "integers") for name in names[:2])
    second_of = _column(file, table, "timestamp", "numbers")
    values = {name: _matrix(file, table, name) for name in [chosen.action, *chosen.state]}
    for episode in episodes:
        origin = f"{file}: episode {episode.index}"
        rows = np.flatnonzero(episode_of == episode.index)
        if not len(rows) or len(rows) != episode.length:
            refuse(origin, f"{len(rows)} rows of the {episode.length} that the meta files count")
        if (np.diff(rows) != 1).any():
            refuse(origin, "its rows do not follow one another")
        task = int(task_of_row[rows[0]])
        if task not in chosen.task_of:
            refuse(origin, f"no task {task} in the meta files")
        time_T = second_of[rows].astype(np.float64)
        if (np.abs(np.diff(time_T) * chosen.fps - 1) > 0.5).any():
            refuse(origin, f"its timestamps do not rise by 1/{chosen.fps:g} s")
        stored: list[Camera] = []
        for key in chosen.cameras:
            if key in episode.videos:
                path, start = episode.videos[key]
                stored.append(VideoCamera(path, start + time_T, chosen.fps))
            else:
                stored.append(ParquetCamera(file, key, int(rows[0]), chosen.root))
        yield Demo(
            frame_THWC=StoredFrames(stored, np.arange(len(rows)), chosen.turned, origin),
            proprio_TP=torch.from_numpy(np.concatenate([values[key][rows] for key in chosen.state], axis=1)),
            action_TA=torch.from_numpy(values[chosen.action][rows]),
            instruction=chosen.task_of[task],
            dataset=chosen.root.resolve().name,
            origin=origin,
            **chosen.recorded.get(episode.index, {}),
        )


def _column(file: Path, table: Any, name: str, what: str) -> np.ndarray:
    """A column of `integers` or `numbers`, all of them finite."""
    values = table[name].to_numpy()  # with an empty cell, of another type or NaN
    kinds = {"integers": "iu", "numbers": "iuf"}[what]
    if values.dtype.kind not in kinds or not np.isfinite(values).all():
        refuse(f"{file}: {name}", f"{what} are missing")
    return values


def _matrix(file: Path, table: Any, name: str) -> np.ndarray:
    """A column of lists of one length, float32 [rows, dimensions]."""
    try:
        lists = table[name].combine_chunks()
        lengths = require("pyarrow.compute").list_value_length(lists).unique().to_pylist()
        if None in lengths or len(lengths) > 1:
            refuse(f"{file}: {name}", f"its rows hold {', '.join(map(str, sorted(lengths, key=str)))} numbers")
        flat = lists.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(lists), -1).astype(np.float32)
    except UserError:
        raise
    except (AttributeError, TypeError, ValueError, NotImplementedError) as e:
        refuse(f"{file}: {name}", e)


def _usual(names: Sequence[str], have: Sequence[str], where: Path, option: str) -> list[str]:
    """The first of the usual names that the set has."""
    found = [name for name in names if name in have]
    if not found:
        raise UserError(f"{where} has none of {', '.join(names)}; it has: {', '.join(have)} ({option})")
    return found[:1]


def _episodes_v3(root: Path, info: dict[str, Any], filmed: list[str]) -> Iterator[_Episode]:
    files = sorted((root / "meta" / "episodes").rglob("*.parquet"))
    if not files:
        refuse(root / "meta" / "episodes", "it holds no parquet file")
    names = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    names += [f"videos/{key}/{part}" for key in filmed for part in ("chunk_index", "file_index", "from_timestamp")]
    for file in files:
        for row in _rows(file, names):
            chunk, number = row["data/chunk_index"], row["data/file_index"]
            videos = {}
            for key in filmed:
                place = {part: row[f"videos/{key}/{part}"] for part in ("chunk_index", "file_index")}
                path = root / info["video_path"].format(video_key=key, **place)
                start = float(row[f"videos/{key}/from_timestamp"])
                if not math.isfinite(start):
                    refuse(file, f"videos/{key}/from_timestamp is {start}")
                videos[key] = (path, start)
            data = root / info["data_path"].format(chunk_index=chunk, file_index=number)
            yield _Episode(*_numbers(file, row), data, videos)


def _recorded(root: Path, episodes: int) -> dict[int, dict[str, Any]]:
    """By episode: seed, success and origin, of a data set that this project recorded."""
    file = root / ABOUT
    if not file.exists():
        return {}
    described = _checked(file, lambda path: json.loads(path.read_text(encoding="utf-8")))
    try:
        found = {index: {name: one[name] for name in PER_EPISODE} for index, one in enumerate(described["episodes"])}
    except (KeyError, TypeError) as e:
        refuse(file, f"{type(e).__name__}: {e}")
    if len(found) != episodes:
        refuse(file, f"it tells of {len(found)} episodes, and there are {episodes}")
    return found


def _episodes_v2(root: Path, info: dict[str, Any], filmed: list[str]) -> Iterator[_Episode]:
    file = root / "meta" / "episodes.jsonl"
    for row in _json_lines(file):
        index, length = _numbers(file, row)
        place = {"episode_index": index, "episode_chunk": index // info["chunks_size"]}
        videos = {key: (root / info["video_path"].format(video_key=key, **place), 0.0) for key in filmed}
        data = root / info["data_path"].format(**place)
        yield _Episode(index, length, data, videos)


def _numbers(file: Path, row: dict[str, Any]) -> tuple[int, int]:
    """Index and length of an episode."""
    index, length = row["episode_index"], row["length"]
    if type(index) is not int or type(length) is not int:
        refuse(file, f"episode_index {index!r} and length {length!r} must be integers")
    return index, length


def _tasks_v3(root: Path) -> dict[int, str]:
    file = root / "meta" / "tasks.parquet"
    table = _checked(file, lambda path: require("pyarrow.parquet").read_table(path))
    # the sentence is a column, or the index of a pandas table: whichever column is not the number
    texts = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or not texts:
        refuse(file, f"its columns are {', '.join(table.column_names)}")
    text = "task" if "task" in texts else texts[0]
    return _texts(file, zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))


def _tasks_v2(root: Path) -> dict[int, str]:
    file = root / "meta" / "tasks.jsonl"
    return _texts(file, ((row["task_index"], row["task"]) for row in _json_lines(file)))


def _texts(file: Path, tasks: Iterable[tuple[int, str]]) -> dict[int, str]:
    """Instructions by task."""
    found = dict(tasks)
    for task, text in found.items():
        if not isinstance(text, str):
            refuse(file, f"task {task} must be text, got {text!r}")
    return found


def _json_lines(file: Path) -> list[dict[str, Any]]:
    return _checked(file, lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])


def _rows(file: Path, names: list[str]) -> list[dict[str, Any]]:
    table = _checked(file, lambda path: require("pyarrow.parquet").read_table(path))
    missing = [name for name in names if name not in table.column_names]
    if missing:
        refuse(file, f"it has no column {missing[0]!r}")
    return table.select(names).to_pylist()


def _checked(file: Path, read: Callable[[Path], Any]) -> Any:
    """`read(file)`; a file that is missing or damaged is one line."""
    try:
        return read(file)
    except FileNotFoundError:
        refuse(file, "no such file")
    except (OSError, ValueError, KeyError, RecursionError) as e:  # the first three: also those of pyarrow
        refuse(file, e)


def _check_videos(episodes: Sequence[_Episode], fps: float) -> None:
    """Raise UserError unless every video opens and is as long as its episodes."""
    needed: dict[Path, float] = {}
    for episode in episodes:
        for path, start in episode.videos.values():
            needed[path] = max(needed.get(path, 0.0), start + episode.length / fps)
    for path, end in tqdm(needed.items(), unit="video", desc="videos", leave=False, disable=None):
        found = seconds(path)
        if found < end - 1 / fps:
            refuse(path, f"it is {found:.2f} s long, its episodes end at {end:.2f} s")


@dataclass(slots=True)
class ParquetCamera:
    """One episode's PNG or JPEG pictures in a parquet file, from row `first` on."""

    file: Path
    column: str
    first: int
    root: Path  # of the data set: a picture may lie in a file of its own

    def read(self, steps: Sequence[int]) -> list[np.ndarray]:
        return [self._picture(self.first + step) for step in steps]

    def _picture(self, row: int) -> np.ndarray:
        where = f"{self.file}: {self.column} of row {row}"
        try:
            stored = _cell(self.file, self.column, row)
            data = stored["bytes"] or (self.root / stored["path"]).read_bytes()
        except (OSError, ValueError, KeyError, TypeError) as e:
            refuse(where, e)
        return decode_picture(data, where)


def _cell(file: Path, column: str, row: int) -> dict[str, Any]:
    group = 0
    rows = _group_rows(file)
    while row >= rows[group]:
        row -= rows[group]
        group += 1
    return _group(file, column, group)[row].as_py()


@functools.lru_cache(maxsize=1024)
def _group_rows(file: Path) -> list[int]:
    metadata = require("pyarrow.parquet").read_metadata(file)
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


@functools.lru_cache(maxsize=OPEN_GROUPS)
def _group(file: Path, column: str, group: int) -> Any:
    with require("pyarrow.parquet").ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=[column])[column]
