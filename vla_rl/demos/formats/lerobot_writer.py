"""Writes a LeRobotDataset v3.0, cameras as PNG inside the parquet files: what is read back is what was recorded.

Pictures are stored turned by 180 degrees, upright, as the published sets of LIBERO are. What the format has no place
for (seeds, versions, which episodes succeeded) is in `meta/vla_rl.json`.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla_rl.demos.demo import Demo
from vla_rl.demos.formats.layout import require
from vla_rl.demos.formats.lerobot_stats import Statistics, nested, number_statistics, picture_counts, picture_statistics
from vla_rl.errors import UserError

ABOUT = "meta/vla_rl.json"
PER_EPISODE = ("suite", "task", "init_state", "seed", "success")  # what that file says of each episode
CAMERAS = ("observation.images.image", "observation.images.wrist_image")
FILE_MB = 100  # of a data file: past this size the next episode begins another
CHUNK_FILES = 1000  # data files of a folder
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


@dataclass(slots=True)
class LeRobotWriter:
    """Writes demonstrations, one after the other, into a folder beside `out` that `close` moves there: a killed program
    leaves `out` alone. `with` closes it, or after an exception discards what it has.

    Args:
        out: folder of the data set; must not exist.
        fps: control steps per second.
        robot: `robot_type` of the data set.
        about: JSON values that `meta/vla_rl.json` has beside the episodes.
    """

    out: Path
    fps: int
    robot: str
    about: dict[str, Any]
    _episodes: list[dict[str, Any]] = field(default_factory=list)
    _demos: list[dict[str, Any]] = field(default_factory=list)  # PER_EPISODE of each
    _tasks: dict[str, int] = field(default_factory=dict)  # numbers of the instructions
    _numbers: dict[str, list[np.ndarray]] = field(default_factory=dict)  # all rows of every feature but pictures
    _pictures: dict[str, np.ndarray] = field(default_factory=dict)  # counts of every camera's values
    _shapes: dict[str, list[int]] = field(default_factory=dict)  # of cameras, state and action
    _files: int = 0  # data files begun
    _parquet: Any = None  # writer of the last one
    _frames: int = 0

    def __enter__(self) -> LeRobotWriter:
        require("pyarrow")
        shutil.rmtree(self._part, ignore_errors=True)  # of a program that was killed
        self._part.mkdir(parents=True)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            if self._parquet is not None:
                self._parquet.close()
            shutil.rmtree(self._part, ignore_errors=True)

    @property
    def _part(self) -> Path:
        return self.out.with_name(f"{self.out.name}.part")

    def add(self, demo: Demo) -> None:
        """Write one episode."""
        steps, index = len(demo), len(self._episodes)
        task = self._tasks.setdefault(demo.instruction, len(self._tasks))
        frame_THWC = demo.frame_THWC[range(steps)].numpy()[:, ::-1, ::-1]
        pictures = {
            key: np.ascontiguousarray(frame_THWC[..., 3 * i : 3 * i + 3])
            for i, key in enumerate(CAMERAS[: frame_THWC.shape[-1] // 3])
        }
        within = np.arange(steps)
        numbers = {
            "observation.state": demo.proprio_TP.numpy().astype(np.float32),
            "action": demo.action_TA.numpy().astype(np.float32),
            "next.success": demo.success & (within == steps - 1),
            "timestamp": (within / self.fps).astype(np.float32),
            "frame_index": within,
            "episode_index": np.full(steps, index),
            "index": self._frames + within,
            "task_index": np.full(steps, task),
        }
        self._shapes = {key: list(rows.shape[1:]) or [1] for key, rows in (pictures | numbers).items()}
        place = self._write_rows(pictures, numbers)
        counts = {key: picture_counts(frames) for key, frames in pictures.items()}
        statistics = {key: picture_statistics(count, frames=steps) for key, count in counts.items()}
        statistics |= {key: number_statistics(rows) for key, rows in numbers.items()}
        for key, rows in numbers.items():
            self._numbers.setdefault(key, []).append(rows)
        for key, count in counts.items():
            self._pictures[key] = self._pictures.get(key, 0) + count
        self._episodes.append(
            {
                "episode_index": index,
                "tasks": [demo.instruction],
                "length": steps,
                **{f"data/{name}": value for name, value in place.items()},
                "dataset_from_index": self._frames,
                "dataset_to_index": self._frames + steps,
                **{
                    f"stats/{key}/{name}": v for key, values in statistics.items() for name, v in nested(values).items()
                },
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )
        self._demos.append({name: getattr(demo, name) for name in PER_EPISODE})
        self._frames += steps

    def close(self) -> None:
        """Write what is known at the end, and move the whole to its place.

        Raises:
            UserError: no episode was added.
        """
        if not self._episodes:
            raise UserError(f"no demonstrations to save in {self.out}")
        self._parquet.close()
        self._parquet = None
        statistics: dict[str, Statistics] = {
            key: picture_statistics(count, frames=self._frames) for key, count in self._pictures.items()
        }
        statistics |= {key: number_statistics(np.concatenate(rows)) for key, rows in self._numbers.items()}
        self._write_json("meta/stats.json", {key: nested(values) for key, values in statistics.items()})
        self._write_json("meta/info.json", self._info())
        self._write_json(ABOUT, self.about | {"episodes": self._demos})
        arrow, parquet = require("pyarrow"), require("pyarrow.parquet")
        tasks = arrow.table({"task_index": list(self._tasks.values()), "task": list(self._tasks)})
        parquet.write_table(
            tasks.replace_schema_metadata({"pandas": json.dumps(_PANDAS)}), self._part / "meta/tasks.parquet"
        )
        episodes = self._part / "meta/episodes/chunk-000/file-000.parquet"
        episodes.parent.mkdir(parents=True)
        parquet.write_table(arrow.Table.from_pylist(self._episodes), episodes)
        self._part.rename(self.out)

    def _write_rows(self, pictures: dict[str, np.ndarray], numbers: dict[str, np.ndarray]) -> dict[str, int]:
        """Append an episode to the last data file, or to a new one; where it lies."""
        arrow, parquet = require("pyarrow"), require("pyarrow.parquet")
        if self._parquet is not None and self._data_file(self._files - 1).stat().st_size > FILE_MB * 1e6:
            self._parquet.close()
            self._parquet = None
        columns = {key: _picture_column(frames, arrow) for key, frames in pictures.items()}
        columns |= {key: _number_column(rows, arrow) for key, rows in numbers.items()}
        table = arrow.table(columns).replace_schema_metadata(
            {"huggingface": json.dumps(_features_of(numbers, pictures))}
        )
        if self._parquet is None:
            file = self._data_file(self._files)
            file.parent.mkdir(parents=True, exist_ok=True)
            self._parquet = parquet.ParquetWriter(file, table.schema)
            self._files += 1
        self._parquet.write_table(table)
        return self._place(self._files - 1)

    def _place(self, file: int) -> dict[str, int]:
        return {"chunk_index": file // CHUNK_FILES, "file_index": file % CHUNK_FILES}

    def _data_file(self, file: int) -> Path:
        return self._part / DATA_PATH.format(**self._place(file))

    def _info(self) -> dict[str, Any]:
        features = {}
        for key, shape in self._shapes.items():
            picture = key in self._pictures
            kind = "image" if picture else _kind(self._numbers[key][0])
            features[key] = {
                "dtype": kind,
                "shape": shape,
                "names": ["height", "width", "channels"] if picture else None,
            }
        return {
            "codebase_version": "v3.0",
            "fps": self.fps,
            "features": features,
            "total_episodes": len(self._episodes),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": FILE_MB,
            "video_files_size_in_mb": 200,
            "data_path": DATA_PATH,
            "video_path": None,
            "robot_type": self.robot,
            "splits": {"train": f"0:{len(self._episodes)}"},
        }

    def _write_json(self, name: str, value: object) -> None:
        file = self._part / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value, indent=4), encoding="utf-8")


def _kind(rows: np.ndarray) -> str:
    return str(rows.dtype)


def _png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=6)
    return stream.getvalue()


def _picture_column(frames: np.ndarray, arrow: Any) -> Any:
    rows = [{"bytes": _png(frame), "path": f"frame-{i:06}.png"} for i, frame in enumerate(frames)]
    return arrow.array(rows, arrow.struct({"bytes": arrow.binary(), "path": arrow.string()}))


def _number_column(rows: np.ndarray, arrow: Any) -> Any:
    if rows.ndim == 1:
        return arrow.array(rows)
    return arrow.FixedSizeListArray.from_arrays(arrow.array(rows.ravel()), rows.shape[1])


def _features_of(numbers: dict[str, np.ndarray], pictures: Iterable[str]) -> dict[str, Any]:
    """The columns as the package `datasets` describes them in a file."""
    features: dict[str, Any] = {key: {"_type": "Image"} for key in pictures}
    for key, rows in numbers.items():
        value = {"dtype": _kind(rows), "_type": "Value"}
        features[key] = value if rows.ndim == 1 else {"feature": value, "length": rows.shape[1], "_type": "List"}
    return {"info": {"features": features}}


# the sentences are the index of the table where pandas reads it, as lerobot expects
_PANDAS: dict[str, Any] = {
    "index_columns": ["task"],
    "column_indexes": [],
    "columns": [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_type, "metadata": None}
        for name, kind, numpy_type in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ],
}
