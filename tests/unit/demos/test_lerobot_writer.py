"""A LeRobotDataset that is written: what is read back, and what lerobot finds in it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.demos.test_formats import PICTURES
from vla_rl.demos.demo import Demo
from vla_rl.demos.formats import lerobot_writer
from vla_rl.demos.formats.layout import Layout
from vla_rl.demos.formats.lerobot_stats import number_statistics, picture_counts, picture_statistics
from vla_rl.demos.formats.lerobot_writer import LeRobotWriter
from vla_rl.demos.load import load_demos
from vla_rl.errors import UserError

pq = pytest.importorskip("pyarrow.parquet", reason="optional: pip install 'vla-rl[data]'")


def make_demo(number, *, steps=3, success=True):
    generator = torch.Generator().manual_seed(number)
    return Demo(
        frame_THWC=torch.randint(0, 256, (steps, 16, 16, 6), dtype=torch.uint8, generator=generator),
        proprio_TP=torch.randn(steps, 8, generator=generator),
        action_TA=torch.rand(steps, 7, generator=generator) * 2 - 1,
        instruction=("open the drawer", "close it")[number % 2],
        suite="object",
        task=number % 2,
        init_state=10 + number,
        success=success,
        seed=1000 + number,
    )


DEMOS = [make_demo(0), make_demo(1, steps=5), make_demo(2, steps=1), make_demo(3, success=False)]


def write(folder, demos=DEMOS):
    with LeRobotWriter(folder, fps=20, robot="panda", about={"versions": {"mujoco": "3"}}) as writer:
        for demo in demos:
            writer.add(demo)
    return folder


@pytest.mark.parametrize("file_mb", [100, 1e-6])  # all in one file, and a file for each episode
def test_it_is_read_back_bit_for_bit(file_mb, tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_writer, "FILE_MB", file_mb)
    folder = write(tmp_path / "set")
    assert len(list(folder.glob("data/*/*.parquet"))) == (1 if file_mb == 100 else len(DEMOS))
    demos = load_demos(folder, Layout(images=2))
    assert len(demos) == 3  # the failure is left out
    for demo, written in zip(demos, DEMOS, strict=False):
        assert torch.equal(demo.frame_THWC[range(len(demo))], written.frame_THWC)
        assert torch.equal(demo.proprio_TP, written.proprio_TP)
        assert torch.equal(demo.action_TA, written.action_TA)
        for name in ("instruction", "suite", "task", "init_state", "seed", "success"):
            assert getattr(demo, name) == getattr(written, name), name


def describe(folder):
    """Names and types of everything but the sizes of this set."""
    info = json.loads((folder / "meta" / "info.json").read_text())
    schemas = {}
    for file in sorted(folder.rglob("*.parquet")):
        schema = pq.read_schema(file)
        schemas[str(file.relative_to(folder))] = {field.name: field.type for field in schema}
    stats = json.loads((folder / "meta" / "stats.json").read_text())
    shapes = {key: {name: np.shape(value) for name, value in values.items()} for key, values in stats.items()}
    return info, schemas, shapes


def test_files_columns_and_types_are_those_of_a_set_that_lerobot_wrote(tmp_path):
    info, schemas, shapes = describe(write(tmp_path / "set"))
    their_info, their_schemas, their_shapes = describe(PICTURES)
    assert list(info) == list(their_info)
    assert {k: f["dtype"] for k, f in info["features"].items() if k != "next.success"} == {
        k: f["dtype"] for k, f in their_info["features"].items()
    }
    for name in ("codebase_version", "chunks_size", "data_path", "video_path", "robot_type"):
        assert info[name] == their_info[name], name
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (4, 12, 2)
    assert info["splits"] == {"train": "0:4"}
    assert schemas.keys() == their_schemas.keys()
    for file, columns in their_schemas.items():
        for column, kind in columns.items():
            # sentences may be strings of any size
            assert str(schemas[file][column]).removeprefix("large_") == str(kind).removeprefix("large_"), (file, column)
    assert {key: shapes[key] for key in their_shapes} == their_shapes
    pandas = json.loads(pq.read_schema(tmp_path / "set/meta/tasks.parquet").metadata[b"pandas"])
    assert pandas["index_columns"] == ["task"]


def test_rows_and_what_only_this_project_writes(tmp_path):
    folder = write(tmp_path / "set")
    data = pq.read_table(folder / "data/chunk-000/file-000.parquet").to_pydict()
    assert data["frame_index"] == [0, 1, 2, 0, 1, 2, 3, 4, 0, 0, 1, 2]
    assert data["episode_index"] == [0] * 3 + [1] * 5 + [2] + [3] * 3
    assert data["task_index"] == [0] * 3 + [1] * 5 + [0] + [1] * 3
    assert data["index"] == list(range(12))
    assert data["timestamp"][3:8] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert [row for row, success in enumerate(data["next.success"]) if success] == [2, 7, 8]
    episodes = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pydict()
    assert (episodes["dataset_from_index"], episodes["dataset_to_index"]) == ([0, 3, 8, 9], [3, 8, 9, 12])
    about = json.loads((folder / "meta/vla_rl.json").read_text())
    assert about["versions"] == {"mujoco": "3"}
    assert about["episodes"][3] == {"suite": "object", "task": 1, "init_state": 13, "seed": 1003, "success": False}


def test_statistics_worked_out_by_hand():
    numbers = number_statistics(np.array([[0.0], [1.0], [2.0], [3.0]], np.float32))
    assert {name: value.tolist() for name, value in numbers.items()} == {
        "min": [0.0], "max": [3.0], "mean": [1.5], "std": [pytest.approx(1.25**0.5)], "count": [4],
        "q01": [pytest.approx(0.03)], "q10": [pytest.approx(0.3)], "q50": [1.5], "q90": [pytest.approx(2.7)],
        "q99": [pytest.approx(2.97)],
    }  # fmt: skip
    red, green, blue = [0, 255, 255, 255], [51, 51, 51, 51], [0, 0, 0, 255]
    frame_THWC = np.array([red, green, blue], np.uint8).T.reshape(1, 2, 2, 3)
    pictures = picture_statistics(picture_counts(frame_THWC), frames=1)
    found = {name: value.ravel().tolist() for name, value in pictures.items()}
    assert pictures["mean"].shape == (3, 1, 1)
    assert found["mean"] == pytest.approx([0.75, 0.2, 0.25])
    assert found["std"] == pytest.approx([0.1875**0.5, 0, 0.1875**0.5], abs=1e-7)
    assert (found["min"], found["max"]) == (pytest.approx([0, 0.2, 0]), pytest.approx([1, 0.2, 1]))
    assert (found["q10"], found["q50"], found["q90"]) == (
        pytest.approx([0, 0.2, 0]), pytest.approx([1, 0.2, 0]), pytest.approx([1, 0.2, 1]),
    )  # fmt: skip
    assert found["count"] == [1]


def test_statistics_of_the_set_are_those_of_all_episodes(tmp_path):
    stats = json.loads((write(tmp_path / "set") / "meta/stats.json").read_text())
    actions = torch.cat([demo.action_TA for demo in DEMOS]).double()
    assert stats["action"]["mean"] == pytest.approx(actions.mean(0).tolist())
    assert stats["action"]["q99"] == pytest.approx(actions.quantile(0.99, dim=0).tolist())
    wrist = torch.cat([demo.frame_THWC[..., 3:] for demo in DEMOS]).double() / 255
    found = stats["observation.images.wrist_image"]
    assert np.ravel(found["mean"]) == pytest.approx(wrist.mean((0, 1, 2)).tolist())
    assert np.ravel(found["std"]) == pytest.approx(wrist.flatten(0, 2).std(0, correction=0).tolist())
    assert found["count"] == [12]


def test_what_does_not_end_leaves_nothing(tmp_path):
    (tmp_path / "set.part").mkdir()  # of a program that was killed
    (tmp_path / "set.part" / "old").touch()
    with pytest.raises(ZeroDivisionError), LeRobotWriter(tmp_path / "set", 20, "panda", {}) as writer:
        writer.add(DEMOS[0])
        assert {file.name for file in tmp_path.iterdir()} == {"set.part"}
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="no demonstrations to save in .*set"):
        write(tmp_path / "set", [])
    assert list(tmp_path.iterdir()) == []


def test_a_set_of_failures_teaches_nothing(tmp_path):
    folder = write(tmp_path / "set", [replace(DEMOS[0], success=False)])
    with pytest.raises(UserError, match="no demonstration in .*set succeeds"):
        load_demos(folder)
