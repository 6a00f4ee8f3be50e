"""The readers of other people's formats, on samples that the formats' own libraries wrote.

Each sample has two episodes of five steps. Its pictures follow a formula (`stored_pictures`); expected numbers were
noted when the samples were written.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vla_rl.demos.demo import Demo, StoredFrames, check_demo, moving_steps
from vla_rl.demos.formats import tfrecord
from vla_rl.demos.formats.layout import Layout, decode_picture
from vla_rl.demos.formats.video import VideoCamera
from vla_rl.demos.load import first_of_each_task, load_demos
from vla_rl.errors import UserError

h5py = pytest.importorskip("h5py", reason="optional: pip install 'vla-rl[data]'")
pq = pytest.importorskip("pyarrow.parquet", reason="optional: pip install 'vla-rl[data]'")
pa = pytest.importorskip("pyarrow")
pytest.importorskip("google_crc32c", reason="optional: pip install 'vla-rl[data]'")

SAMPLES = Path(__file__).parents[2] / "samples"
HDF5, VIDEO, PICTURES, RLDS = (SAMPLES / n for n in ("libero_hdf5", "lerobot_v3", "lerobot_v3_images", "rlds"))
SOUP, DRAWER = "pick up the alphabet soup and place it in the basket", "open the drawer"
HDF5_FILE = f"{SOUP.replace(' ', '_')}_demo.hdf5"
SHARD = Path("libero_object_no_noops/1.0.0/libero_object_no_noops-train.tfrecord-00000-of-00001")
BOTH = Layout(images=2)


def stored_pictures(episode, camera, step, px=64):
    """uint8 [px, px, 3]: the formula of the 64 px samples, row 0 first as stored."""
    y, x = np.mgrid[:px, :px]
    red, green = (2 * x + 8 * step + 40 * camera + 60 * episode) % 256, (2 * y + 4 * step) % 256
    return np.stack([red, green, np.full_like(red, 60 + 20 * step)], axis=-1).astype(np.uint8)


def rendered(episode, step):
    """Both cameras as the simulator would have rendered them: the sets' pictures are turned by 180 degrees."""
    cameras = [stored_pictures(episode, camera, step)[::-1, ::-1] for camera in (0, 1)]
    return torch.from_numpy(np.concatenate(cameras, axis=-1))


def test_libero_hdf5_pairs_an_observation_with_the_next_action():
    demos = load_demos(HDF5, BOTH)
    assert [(len(demo), demo.instruction, demo.dataset) for demo in demos] == [(4, SOUP, "libero_hdf5")] * 2
    with h5py.File(HDF5 / HDF5_FILE) as file:
        for number, demo in enumerate(demos):
            stored = file[f"data/demo_{number}"]
            assert np.allclose(demo.action_TA, stored["actions"][1:])
            assert np.allclose(demo.proprio_TP[:, :6], stored["obs/ee_states"][:-1])
            assert np.array_equal(demo.frame_THWC[[2]][0, ..., :3], stored["obs/agentview_rgb"][2])
    assert demos[0].action_TA[3].tolist() == pytest.approx(
        [0.727280, 0.962390, 0.914420, -0.702472, 0.945258, 0.779871, 1], abs=1e-5
    )
    assert demos[1].proprio_TP[0, :3].tolist() == pytest.approx([0.163052, 0.130068, -0.034692], abs=1e-5)
    assert demos[1].proprio_TP[0, 6:].tolist() == pytest.approx([0.04, -0.04])
    assert demos[1].frame_THWC[[2]][0, 20, 33].tolist() == [48, 24, 100, 88, 24, 100]
    assert load_demos(HDF5 / HDF5_FILE)[0].frame_THWC[[2]].shape == (1, 128, 128, 3)


def test_hdf5_demonstrations_are_in_the_order_of_their_numbers(tmp_path):
    with h5py.File(HDF5 / HDF5_FILE) as source, h5py.File(tmp_path / "task.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = source["data"].attrs["problem_info"]
        for name in ("demo_10", "demo_2"):
            source.copy("data/demo_0", data, name)
    assert [demo.origin.rpartition(" ")[2] for demo in load_demos(tmp_path)] == ["demo_2", "demo_10"]


LEROBOT_ACTIONS = [
    [0.087250, 0.870145, 0.631707, -0.994523, 0.714809, -0.932829, 0.459311],
    [0.571571, -0.170688, 0.468967, 0.422286, 0.864119, -0.770135, 0.458030],
]
LEROBOT_STATES = [
    [0.125730, -0.132105, 0.640423, 0.104900, -0.535669, 0.361595, 1.304000, 0.947081],
    [0.573743, 1.822011, -1.320431, -0.661528, 0.935050, 0.049055, 2.002393, 0.188519],
]


def write_v2(folder, source):
    """The data set `source` of version 3.0 in the layout of version 2.1: a file for each episode."""
    import av

    info = json.loads((source / "meta" / "info.json").read_text())
    filmed = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    info |= {
        "codebase_version": "v2.1",
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    for part in ("meta", "data/chunk-000", *(f"videos/chunk-000/{key}" for key in filmed)):
        (folder / part).mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    lines = {"tasks": [], "episodes": []}
    table = pq.read_table(source / "data" / "chunk-000" / "file-000.parquet")
    for episode, text in enumerate((SOUP, DRAWER)):
        lines["tasks"].append({"task_index": episode, "task": text})
        lines["episodes"].append({"episode_index": episode, "tasks": [text], "length": 5})
        pq.write_table(table.slice(5 * episode, 5), folder / "data" / "chunk-000" / f"episode_{episode:06}.parquet")
        for camera, key in enumerate(filmed):
            path = folder / "videos" / "chunk-000" / key / f"episode_{episode:06}.mp4"
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=20, options={"crf": "0", "g": "2"})
                stream.width = stream.height = 64
                stream.pix_fmt = "yuv444p"
                for step in range(5):
                    frame = av.VideoFrame.from_ndarray(stored_pictures(episode, camera, step), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
    for name, rows in lines.items():
        (folder / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
@pytest.mark.parametrize(("source", "mean_difference"), [(PICTURES, 0.0), (VIDEO, 1.6)])
def test_lerobot(source, mean_difference, version, tmp_path):
    folder = source if version == "v3.0" else write_v2(tmp_path / source.name, source)
    demos = load_demos(folder, BOTH)
    assert [(len(demo), demo.instruction, demo.dataset) for demo in demos] == [
        (5, text, source.name) for text in (SOUP, DRAWER)
    ]
    for episode, demo in enumerate(demos):
        assert demo.action_TA[0].tolist() == pytest.approx(LEROBOT_ACTIONS[episode], abs=1e-5)
        assert demo.proprio_TP[0].tolist() == pytest.approx(LEROBOT_STATES[episode], abs=1e-5)
        for step in range(5):  # each alone: no state of a decoder may matter
            difference = (demo.frame_THWC[[step]][0].int() - rendered(episode, step).int()).abs().float().mean()
            assert difference <= mean_difference
    assert demos[1].action_TA.mean() == pytest.approx(0.075017, abs=1e-5)
    assert demos[0].proprio_TP.mean() == pytest.approx(0.254414, abs=1e-5)


def test_a_task_can_be_the_index_of_a_pandas_table(tmp_path):
    shutil.copytree(PICTURES, tmp_path / "set")
    file = tmp_path / "set" / "meta" / "tasks.parquet"
    table = pq.read_table(file)
    pq.write_table(table.rename_columns({"task": "__index_level_0__"}), file)
    assert [demo.instruction for demo in load_demos(tmp_path / "set")] == [SOUP, DRAWER]


def test_rlds():
    demos = load_demos(RLDS / "libero_object_no_noops", BOTH)
    assert [(len(d), d.instruction, d.dataset) for d in demos] == [
        (5, text, "libero_object_no_noops") for text in (DRAWER, SOUP)
    ]
    first = [-0.548261, -0.750891, -0.423338, 0.172246, 0.108181, 0.619422, 0.120952]
    assert demos[0].action_TA[0].tolist() == pytest.approx(first, abs=1e-5)
    assert demos[1].proprio_TP[0].tolist() == pytest.approx(LEROBOT_STATES[0], abs=1e-5)
    for episode, demo in ((1, demos[0]), (0, demos[1])):
        expected = torch.stack([rendered(episode, step) for step in (4, 0, 1, 3, 2)])
        difference = (demo.frame_THWC[[4, 0, 1, 3, 2]].int() - expected.int()).abs().float()
        assert difference.mean() < 0.7  # JPEG
    assert load_demos(RLDS / SHARD, BOTH)[1].instruction == SOUP


def test_a_checksum_known_from_the_standard():
    """RFC 3720, B.4: the CRC-32C of 32 zero bytes is 0x8a9136aa."""
    masked = ((0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert tfrecord.masked_crc32c(bytes(32)) == masked


def test_frames_are_read_in_any_order_with_repeats():
    for folder in (HDF5, VIDEO, PICTURES, RLDS / "libero_object_no_noops"):
        frames = load_demos(folder, BOTH)[0].frame_THWC
        assert isinstance(frames, StoredFrames)
        one_by_one = torch.cat([frames[[row]] for row in range(len(frames))])
        rows = [3, 0, 0, 2, 1, 3]
        assert torch.equal(frames[rows], one_by_one[rows])


def test_a_video_is_decoded_from_where_it_is_needed(tmp_path, monkeypatch):
    """Ten seconds at 20 frames per second, a keyframe every 10: two frames far apart take two short ranges."""
    import av

    with av.open(str(tmp_path / "long.mp4"), "w") as container:
        stream = container.add_stream(
            "libx264", rate=20, options={"crf": "0", "g": "10", "bf": "0", "sc_threshold": "0"}
        )
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv444p"
        for step in range(200):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), step, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    camera = VideoCamera(tmp_path / "long.mp4", np.arange(200) / 20, 20.0)
    decoded = []
    original = av.VideoFrame.time.__get__

    class Counted:
        """A stream of frames that counts what is decoded."""

        def __init__(self, container):
            self.container, self.streams = container, container.streams

        def seek(self, *arguments, **named):
            self.container.seek(*arguments, **named)

        def decode(self, stream):
            for frame in self.container.decode(stream):
                decoded.append(round(original(frame) * 20))
                yield frame

    monkeypatch.setattr("vla_rl.demos.formats.video._open", lambda path, process: Counted(av.open(str(path))))
    found = np.stack(camera.read([153, 12, 155]))
    assert np.abs(found[:, 16, 16, 0].astype(int) - [153, 12, 155]).max() <= 2
    assert decoded == [10, 11, 12, 150, 151, 152, 153, 154, 155]


def test_cameras_state_and_orientation_are_chosen_by_name():
    (wrist, _) = load_demos(PICTURES, Layout(cameras=["observation.images.wrist_image"], turned=False))
    assert np.array_equal(wrist.frame_THWC[[2]][0], stored_pictures(0, 1, 2))
    (joints, _) = load_demos(HDF5, Layout(state=["joint_states", "gripper_states"], turned=True))
    assert joints.proprio_TP.shape == (4, 9)
    assert joints.proprio_TP[0, :3].tolist() == pytest.approx([-1.009618, -0.209176, -0.159225], abs=1e-5)
    straight = load_demos(HDF5)[0].frame_THWC[[0]]
    assert torch.equal(joints.frame_THWC[[0]], straight.flip(1, 2))
    (states, _) = load_demos(RLDS / SHARD, Layout(state=["joint_state"]))
    assert states.proprio_TP.shape == (5, 7)


@pytest.mark.parametrize(
    ("folder", "layout", "message"),
    [
        (
            HDF5,
            Layout(images=3),
            r"reads 3 images per decision, and 2 cameras are named; the set has agentview_rgb, eye_",
        ),
        (PICTURES, Layout(cameras=["wrist"]), r"no 'wrist'.*It has: observation.images.image.*\(sft.cameras\)"),
        (PICTURES, Layout(cameras=["observation.images.image"] * 2), "reads 1 images per decision, and 2 cameras"),
        (HDF5, Layout(state=["ee_state"]), "no 'ee_state'; did you mean 'ee_states'.*sft.state"),
        (RLDS / SHARD, Layout(action="actions"), "no 'actions'; did you mean 'action'"),
        (HDF5, Layout(action="robot_states"), r"demo_0: actions must lie in \[-1, 1\], .* sft.action"),
    ],
)
def test_keys_that_a_set_has_not(folder, layout, message):
    with pytest.raises(UserError, match=message):
        load_demos(folder, layout)


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 255
    path.write_bytes(content)


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rename_column(path, old, new):
    pq.write_table(pq.read_table(path).rename_columns({old: new}), path)


def drop_rows(path):
    pq.write_table(pq.read_table(path).slice(0, 8), path)


def mix_rows(path):
    pq.write_table(pq.read_table(path).take([0, 5, 1, 2, 3, 4, 6, 7, 8, 9]), path)


def set_column(name, change, kind=None):
    """All cells of a column, as a list, changed."""

    def changed(path):
        table = pq.read_table(path)
        at, cells = table.column_names.index(name), pa.array(change(table[name].to_pylist()), kind)
        pq.write_table(table.set_column(at, name, cells), path)

    return changed


def promise(length):
    """The first record says that it has so many bytes, and its header is undamaged."""

    def changed(path):
        header = struct.pack("<Q", length)
        checksum = struct.pack("<I", tfrecord.masked_crc32c(header))
        path.write_bytes(header + checksum + path.read_bytes()[12:])

    return changed


def write_record(path, payload):
    """One record alone, whose checksums are right."""
    length, stored = struct.pack("<Q", len(payload)), lambda data: struct.pack("<I", tfrecord.masked_crc32c(data))
    path.write_bytes(length + stored(length) + payload + stored(payload))


def flip_bit_of_picture(path):
    """The lowest bit of a byte in the middle of the last picture of the last record."""
    _, features = tfrecord.read_records(path)
    picture = features["steps/observation/wrist_image"][-1]
    content = bytearray(path.read_bytes())
    content[picture.offset + picture.length // 2] ^= 1
    path.write_bytes(content)


def declare(name, shape, dtype="f8"):
    """A data set that says it has this shape, and holds nothing."""

    def declared(file):
        del file[name]
        file.create_dataset(name, shape, dtype, chunks=True)

    return change_hdf5(declared)


def damage_pictures(path):
    """The PNG of the first row is cut to 20 bytes."""
    table = pq.read_table(path)
    rows = table["observation.images.image"].to_pylist()
    rows[0]["bytes"] = rows[0]["bytes"][:20]
    kind = table.schema.field("observation.images.image").type
    at = table.column_names.index("observation.images.image")
    pq.write_table(table.set_column(at, "observation.images.image", pa.array(rows, kind)), path)


def change_hdf5(change):
    def changed(path):
        with h5py.File(path, "r+") as file:
            change(file)

    return changed


def replace_data(name, make):
    def replaced(file):
        value = make(file[name][:])
        del file[name]
        file[name] = value

    return change_hdf5(replaced)


DATA, INFO, ABOUT = "data/chunk-000/file-000.parquet", "meta/info.json", "meta/vla_rl.json"
EPISODES, MP4 = "meta/episodes/chunk-000/file-000.parquet", "videos/observation.images.image/chunk-000/file-000.mp4"
LISTS = pa.list_(pa.float32())
RECORDED = {"suite": "object", "task": 0, "init_state": 0, "seed": 1, "success": True}
DAMAGE = {
    "a truncated HDF5": (HDF5, HDF5_FILE, cut, "truncated"),
    "a text": (HDF5, HDF5_FILE, lambda path: path.write_text("no HDF5"), "cannot be read"),
    "no demonstrations inside": (HDF5, HDF5_FILE, change_hdf5(lambda f: f.pop("data")), "cannot be read"),
    "no instruction": (HDF5, HDF5_FILE, change_hdf5(lambda f: f["data"].attrs.pop("problem_info")), "problem_info"),
    "rows that differ": (HDF5, HDF5_FILE, replace_data("data/demo_1/actions", lambda a: a[:3]), "demo_1.* 3 and 5 row"),
    "an action that is no number": (
        HDF5, HDF5_FILE, replace_data("data/demo_1/actions", lambda a: a * np.nan), "demo_1: action holds NaN",
    ),
    "other dimensions": (
        HDF5, HDF5_FILE, replace_data("data/demo_1/obs/ee_states", lambda a: a[:, :3]), "demo_1: states have 5 dim.* 8",
    ),
    "one step alone": (HDF5, HDF5_FILE, change_hdf5(
        lambda f: [f["data/demo_0"].pop("actions"), f["data/demo_0"].create_dataset("actions", data=np.zeros((5, 0)))]
    ), "action must hold numbers for each row"),
    "complex actions": (HDF5, HDF5_FILE, replace_data("data/demo_1/actions", lambda a: a + 1j), "/data/demo_1/actions"
                        r" cannot be read \(it must hold numbers \[rows, up to 1000\], got complex128 \[5, 7\]"),
    "actions of text": (HDF5, HDF5_FILE, replace_data("data/demo_1/actions", lambda a: a.astype("S3")), "got .*S3"),
    "a promise of many rows": (HDF5, HDF5_FILE, declare("data/demo_1/actions", (10**10, 7)), "5 and 10000000000 rows"),
    "a promise of many columns": (
        HDF5, HDF5_FILE, declare("data/demo_1/obs/ee_states", (5, 10**9)), r"ee_states .*float64 \[5, 1000000000\]",
    ),
    "a promise of large pictures": (HDF5, HDF5_FILE, declare("data/demo_1/obs/agentview_rgb", (5, 9**6, 9**6, 4), "u1"),
                                    r"demo_1: pictures must be square .*uint8 \[531441, 531441, 4\]"),
    "pictures of floats": (HDF5, HDF5_FILE, replace_data("data/demo_1/obs/agentview_rgb", lambda a: a / 255.0),
                           r"demo_1: pictures must be .* uint8 \[px, px, 3\], got float64 \[128, 128, 3\], uint8"),
    "a group in place of pictures": (HDF5, HDF5_FILE, change_hdf5(
        lambda f: [f["data/demo_1/obs"].pop("agentview_rgb"), f["data/demo_1/obs"].create_group("agentview_rgb")]
    ), "demo_1: the policy reads 2 images per decision, and 1 cameras are named"),
    "an instruction of nothing": (
        HDF5, HDF5_FILE, change_hdf5(lambda f: f["data"].attrs.modify("problem_info", '{"language_instruction": ""}')),
        "demo_0: the instruction is empty",
    ),
    "a truncated parquet": (VIDEO, DATA, cut, "cannot be read"),
    "actions of several lengths": (  # 6 and 8 numbers are 7 on average
        VIDEO, DATA, set_column("action", lambda v: [v[0][:6], [*v[1], 0.0], *v[2:]], LISTS), "action .*hold 6, 7, 8 n",
    ),
    "a row without an action": (
        VIDEO, DATA, set_column("action", lambda v: [None, v[1] + v[1], *v[2:]], LISTS), "action .*14, 7, None n",
    ),
    "a task of text": (VIDEO, DATA, set_column("task_index", lambda v: ["a"] * len(v)), "task_index .*integers"),
    "a task that is missing": (
        VIDEO, DATA, set_column("task_index", lambda v: [None, *v[1:]], pa.int64()), "task_index .*integers are miss",
    ),
    "a task between two": (VIDEO, DATA, set_column("task_index", lambda v: [0.5] * len(v)), "task_index .*integers"),
    "a time of text": (VIDEO, DATA, set_column("timestamp", lambda v: ["a"] * len(v)), "timestamp .*numbers"),
    "a time that is no number": (
        VIDEO, DATA, set_column("timestamp", lambda v: [float("nan"), *v[1:]]), "timestamp .*numbers are missing",
    ),
    "times that fall": (VIDEO, DATA, set_column("timestamp", lambda v: v[::-1]), "episode 0 .*do not rise by 1/20 s"),
    "a video that begins nowhere": (
        VIDEO, EPISODES, set_column("videos/observation.images.image/from_timestamp", lambda v: [float("nan")] * 2),
        "from_timestamp is nan",
    ),
    "a path that is too long": (VIDEO, INFO, lambda path: change_json(path, data_path="a" * 5000), "name too long"),
    "a number of many digits": (VIDEO, INFO, lambda path: path.write_text("9" * 5000), "Exceeds the limit"),
    "no record of the episodes": (VIDEO, ABOUT, lambda path: path.write_text("[]"), "TypeError: list indices"),
    "a record of one episode": (VIDEO, ABOUT, lambda path: path.write_text(json.dumps({"episodes": [RECORDED]})),
                                "it tells of 1 episodes, and there are 2"),
    "a missing parquet": (VIDEO, DATA, Path.unlink, "no such file"),
    "a parquet with fewer rows": (VIDEO, DATA, drop_rows, "episode 1 .*3 rows of the 5"),
    "a parquet whose episodes are mixed": (VIDEO, DATA, mix_rows, "episode 0 .*its rows do not follow one another"),
    "no action column": (VIDEO, DATA, lambda path: rename_column(path, "action", "act"), "action"),
    "another count of episodes": (VIDEO, INFO, lambda path: change_json(path, total_episodes=3), "3 episodes"),
    "a version of the future": (VIDEO, INFO, lambda path: change_json(path, codebase_version="v4.0"), "'v4.0' is none"),
    "no JSON": (VIDEO, INFO, cut, "cannot be read"),
    "no frames per second": (VIDEO, INFO, lambda path: change_json(path, fps="fast"), "could not convert string"),
    "frames in no time": (VIDEO, INFO, lambda path: change_json(path, fps=0), "fps is 0.0"),
    "a pattern that is none": (VIDEO, INFO, lambda path: change_json(path, data_path="{"), "info.json.* Single"),
    "a truncated table of episodes": (VIDEO, EPISODES, cut, "cannot be read"),
    "a truncated video": (VIDEO, MP4, cut, "cannot be read"),
    "a missing video": (VIDEO, MP4, Path.unlink, "No such file"),
    "another camera's video": (
        VIDEO, MP4, lambda path: shutil.copy(path.parents[5] / "short.mp4", path), "its episodes end at 0.50 s",
    ),
    "a shard cut off": (RLDS, SHARD, lambda path: cut(path, 0.8), r"record 1, at byte \d{5}, is cut off"),
    "a shard cut off in a header": (RLDS, SHARD, lambda path: keep_record(path, 1, 11), r"record 1, .*, is cut off"),
    "a shard without its last byte": (RLDS, SHARD, lambda path: keep_record(path, 2, -1), r"record 1, .*, is cut off"),
    "a shard cut at a record": (RLDS, SHARD, lambda path: keep_record(path, 1), "1 records of the 2 that dataset_info"),
    "a wrong length": (RLDS, SHARD, lambda path: flip(path, 0), "record 0, at byte 0, is damaged: its length"),
    "another bit of a picture": (RLDS, SHARD, flip_bit_of_picture, r"record 1, at byte \d{5}, is damaged: its content"),
    "a damaged checksum": (RLDS, SHARD, lambda path: flip(path, -1), r"record 1, .*, is damaged: its content"),
    "a payload that is no message": (RLDS, SHARD, lambda path: write_record(path, b"\x0a\x7f"), "beyond its message"),
    "a record of 2^63 bytes": (RLDS, SHARD, promise(2**63), "record 0, at byte 0, is cut off"),
    "a record of 10^12 bytes": (RLDS, SHARD, promise(10**12), "record 0, at byte 0, is cut off"),
    "a missing shard": (
        RLDS, SHARD, lambda path: path.rename(path.with_name(path.name.replace("00001", "00002"))), "no such file",
    ),
}  # fmt: skip


def keep_record(path, count, more=0):
    """The first records, and as many bytes more of the next one."""
    content, end = path.read_bytes(), 0
    for _ in range(count):
        end += 16 + int.from_bytes(content[end : end + 8], "little")
    path.write_bytes(content[: end + more])


@pytest.fixture(scope="module")
def short_video(tmp_path_factory):
    import av

    path = tmp_path_factory.mktemp("video") / "short.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width = stream.height = 64
        for step in range(4):
            frame = av.VideoFrame.from_ndarray(stored_pictures(0, 0, step), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line_with_the_files_name(name, tmp_path, short_video):
    source, file, change, message = DAMAGE[name]
    folder = tmp_path / "a" / source.name
    shutil.copytree(source, folder)
    shutil.copy(short_video, tmp_path / "short.mp4")
    change(folder / file)
    at = folder / "libero_object_no_noops" if source == RLDS else folder
    with pytest.raises(UserError, match=message) as raised:
        load_demos(at, BOTH)
    text = str(raised.value)
    assert str(folder / file).partition("-00000-of")[0].removesuffix("meta/info.json") in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("episodes.jsonl", {"length": "long"}, "episode_index 0 and length 'long' must be integers"),
        ("episodes.jsonl", {"episode_index": 1.5}, "episode_index 1.5 and length 5 must be integers"),
        ("tasks.jsonl", {"task": None}, "task 0 must be text, got None"),
        ("info.json", {"chunks_size": 0}, "ZeroDivisionError"),
    ],
)
def test_wrong_values_in_the_meta_files_of_version_2(file, values, message, tmp_path):
    write_v2(tmp_path / "set", PICTURES)
    path = tmp_path / "set" / "meta" / file
    first, *others = path.read_text().splitlines() if file.endswith("l") else [path.read_text()]
    path.write_text("\n".join([json.dumps(json.loads(first) | values), *others]))
    with pytest.raises(UserError, match=rf"{file} cannot be read \(.*{message}"):
        load_demos(tmp_path / "set", BOTH)


def test_an_episode_that_is_listed_twice(tmp_path):
    shutil.copytree(VIDEO, tmp_path / "set")
    set_column("episode_index", lambda v: [0, 0])(tmp_path / "set" / EPISODES)
    with pytest.raises(UserError, match=r"meta/info.json cannot be read \(the other files list an episode twice\)"):
        load_demos(tmp_path / "set", BOTH)


def test_a_file_without_demonstrations(tmp_path):
    shutil.copy(HDF5 / HDF5_FILE, tmp_path / "a.hdf5")
    change_hdf5(lambda f: [f["data"].pop(name) for name in list(f["data"])])(tmp_path / "a.hdf5")
    with pytest.raises(UserError, match="^there is no demonstration in .*a.hdf5: record others"):
        load_demos(tmp_path / "a.hdf5")


def test_a_task_that_the_meta_files_lack(tmp_path):
    path = write_v2(tmp_path / "set", PICTURES) / "meta" / "tasks.jsonl"
    path.write_text(json.dumps({"task_index": 1, "task": DRAWER}) + "\n")
    with pytest.raises(UserError, match=r"episode 0 cannot be read \(no task 0 in the meta files\)"):
        load_demos(tmp_path / "set", BOTH)


def test_a_damaged_picture_is_found_when_it_is_read(tmp_path):
    shutil.copytree(PICTURES, tmp_path / "set")
    damage_pictures(tmp_path / "set" / DATA)
    frames = load_demos(tmp_path / "set")[0].frame_THWC
    assert frames[[1]].shape == (1, 64, 64, 3)
    with pytest.raises(UserError, match=f"{DATA}: observation.images.image of row 0 cannot be read"):
        frames[[0]]


def png(width, height):
    """A PNG whose header says this size, with a few pixels."""
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(bytes(99)),
        b"IEND": b"",
    }
    chunks = (struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v)) for k, v in parts.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def encoded(kind):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "neither PNG nor JPEG"),
        (encoded("PNG")[:40], "neither PNG nor JPEG"),
        (encoded("GIF"), "neither PNG nor JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "neither PNG nor JPEG"),
        (png(2049, 4), r"2049 x 4 pixels, and at most 2048 are read"),
        (png(10**5, 10**5), "10000000000 pixels"),
    ],
    ids=["empty", "cut", "GIF", "a program", "wide", "a bomb"],
)
def test_pictures_that_are_not_read(data, message):
    with pytest.raises(UserError, match=rf"^a.parquet: row 3 cannot be read \(.*{message}") as raised:
        decode_picture(data, "a.parquet: row 3")
    assert "\n" not in str(raised.value)
    assert decode_picture(encoded("JPEG"), "").shape == decode_picture(encoded("PNG"), "").shape == (4, 4, 3)


def test_a_number_of_more_than_64_bits(tmp_path):
    inside = b"\xff" * 9 + b"\x7f"  # ten groups of seven bits
    for field in (1, 3, 2, 1, 1):  # packed, an Int64List, of the feature, of the map's entry, of the features
        inside = bytes([field << 3 | 2, len(inside)]) + inside
    write_record(tmp_path / "a.tfrecord", inside)
    with pytest.raises(UserError, match=r"a.tfrecord cannot be read \(a number has more than 64 bits\)"):
        load_demos(tmp_path / "a.tfrecord")


class Pictures:
    """A camera with these pictures."""

    def __init__(self, *pictures):
        self.pictures = pictures

    def read(self, steps):
        return [self.pictures[step] for step in steps]


SQUARE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("cameras", "got"),
    [
        ([Pictures(SQUARE, SQUARE[:2, :2])], r"uint8 \[2, 2, 3\], uint8 \[4, 4, 3\]"),
        ([Pictures(SQUARE, SQUARE), Pictures(SQUARE, SQUARE[:2, :2])], r"uint8 \[2, 2, 3\], uint8 \[4, 4, 3\]"),
        ([Pictures(SQUARE[:2], SQUARE[:2])], r"uint8 \[2, 4, 3\]"),
        ([Pictures(SQUARE[:0, :0], SQUARE[:0, :0])], r"uint8 \[0, 0, 3\]"),
        ([Pictures(SQUARE[..., :1], SQUARE[..., :1])], r"uint8 \[4, 4, 1\]"),
        ([Pictures(SQUARE[..., 0], SQUARE[..., 0])], r"uint8 \[4, 4\]"),
        ([Pictures(SQUARE / 255.0, SQUARE / 255.0)], r"float64 \[4, 4, 3\]"),
    ],
)
def test_pictures_are_square_and_of_one_size(cameras, got):
    with pytest.raises(UserError, match=rf"^made up: pictures must be square .*, got {got} \(sft.cameras"):
        StoredFrames(cameras, np.arange(2), False, "made up")[[0, 1]]
    assert StoredFrames([Pictures(SQUARE)] * 2, np.arange(1), False, "")[[0, 0]].shape == (2, 4, 4, 6)


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"instruction": 5}, "instruction must be text, got 5"),
        ({"instruction": None}, "instruction must be text, got None"),
        ({"instruction": " "}, "the instruction is empty"),
        ({"suite": ["object"]}, "suite must be text or null"),
        ({"task": "0"}, "task must be an integer or null, got '0'"),
        ({"task": True}, "task must be an integer or null, got True"),
        ({"init_state": 1.5}, "init_state must be an integer or null, got 1.5"),
        ({"seed": "1"}, "seed must be an integer or null"),
        ({"success": "no"}, "success must be true or false, got 'no'"),
        ({"success": None}, "success must be true or false, got None"),
    ],
)
def test_what_is_said_of_an_episode(fact, message):
    demo = made([[0.5] * 7])
    check_demo(demo)
    with pytest.raises(UserError, match=f"^made up: {message}.*: drop that episode$"):
        check_demo(replace(demo, **fact))


def test_files_of_two_formats_in_a_folder(tmp_path):
    shutil.copy(HDF5 / HDF5_FILE, tmp_path / "a.hdf5")
    shutil.copy(RLDS / SHARD, tmp_path / SHARD.name)
    with pytest.raises(UserError, match=r"2 formats in one folder, .*a.hdf5 and .*00000-of-00001: sft.demos=one"):
        load_demos(tmp_path)


def test_an_empty_folder_and_a_name_that_is_nowhere(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no demonstrations at .*: expected an .npz or .hdf5"):
        load_demos(tmp_path)
    asked = []

    def download(name, repo_type):
        asked.append((name, repo_type))
        if name == "lerobot/none":
            raise OSError
        return str(PICTURES)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert len(load_demos("lerobot/some")) == 2
    with pytest.raises(UserError, match=r"lerobot/none: no such file or folder, and no data set of that name"):
        load_demos("lerobot/none")
    assert asked == [("lerobot/some", "dataset"), ("lerobot/none", "dataset")]


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UserError, match=r"read with h5py, which is not installed: pip install 'vla-rl\[data\]'"):
        load_demos(HDF5)
    monkeypatch.setitem(__import__("sys").modules, "google_crc32c", None)
    with pytest.raises(UserError, match=r"read with google_crc32c, which is not installed: pip install 'vla-rl\[data"):
        load_demos(RLDS / SHARD)


def made(actions, instruction="do it"):
    action = torch.tensor(actions)
    frames = torch.arange(len(action), dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3)
    return Demo(frames, torch.arange(len(action))[:, None].float(), action, instruction, origin="made up")


def test_steps_that_do_nothing_are_left_out():
    rest, move, close = [0.0, 0.0, -1.0], [0.5, 0.0, -1.0], [0.0, 0.0, 1.0]
    demo = made([rest, rest, move, rest, close, close, [0.00005, 0.0, 1.0]])
    assert moving_steps(demo.action_TA) == [2, 4]
    kept = demo.rows([2, 4])
    assert kept.proprio_TP[:, 0].tolist() == kept.frame_THWC[:, 0, 0, 0].tolist() == [2, 4]
    assert torch.equal(kept.action_TA, torch.tensor([move, close]))
    (stored, _) = load_demos(PICTURES)
    assert torch.equal(stored.rows([4, 1]).frame_THWC[[0, 1]], stored.frame_THWC[[4, 1]])


def test_no_ops_are_dropped_on_request(tmp_path):
    shutil.copy(HDF5 / HDF5_FILE, tmp_path / HDF5_FILE)

    def rest(actions):
        actions[3, :6] = 0.0
        actions[3, 6] = actions[2, 6]
        return actions

    replace_data("data/demo_0/actions", rest)(tmp_path / HDF5_FILE)
    assert [len(d) for d in load_demos(tmp_path)] == [4, 4]
    one, other = load_demos(tmp_path, drop_noops=True)
    assert (len(one), len(other)) == (3, 4)
    assert one.frame_THWC.steps.tolist() == [0, 1, 3]
    still = tmp_path / "still.hdf5"
    shutil.copy(HDF5 / HDF5_FILE, still)
    replace_data("data/demo_0/actions", lambda actions: actions * 0)(still)
    with pytest.raises(UserError, match="demo_0: no control step does anything"):
        load_demos(still, drop_noops=True)


def test_the_first_of_each_task_and_one_to_hold_out():
    a1, a2, b1, a3, b2 = (made([[float(n)]], text) for n, text in enumerate("aabab"))
    assert first_of_each_task([a1, a2, b1, a3, b2], 1) == [a1, b1, a2]
    assert first_of_each_task([a1, a2, b1, a3, b2], 2) == [a1, a2, b1, b2, a3]
    assert first_of_each_task([a1, b1], 1) == [a1, b1]
    assert len(load_demos(HDF5, per_task=1)) == 2  # the second is held out
    assert len(load_demos(HDF5, per_task=1)[0]) == 4


def test_rows_that_are_missing():
    demo = made([[0.5, 0.5]] * 3)
    check_demo(demo)
    demo.proprio_TP = demo.proprio_TP[:2]
    with pytest.raises(UserError, match="made up: 2 rows of state for 3 pictures"):
        check_demo(demo)
