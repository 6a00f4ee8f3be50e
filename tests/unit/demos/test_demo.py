import io
import json
import struct
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vla_rl.checkpoints.shipped import shipped_folder
from vla_rl.demos.demo import Demo
from vla_rl.demos.formats.npz import save_demos
from vla_rl.demos.load import load_demos
from vla_rl.errors import UserError
from vla_rl.training.demo_datamodule import DemoDataModule, DemoRows


def make_demo(steps, init_state=0):
    generator = torch.Generator().manual_seed(steps)
    action = torch.rand(steps, 7, generator=generator)
    action[:, -1] = 1.0
    action[-1, -1] = -1.0  # the hand opens at the end
    return Demo(
        frame_THWC=torch.randint(0, 256, (steps, 4, 4, 3), dtype=torch.uint8, generator=generator),
        proprio_TP=torch.randn(steps, 8, generator=generator),
        action_TA=action,
        instruction=f"do it {steps} times",
        suite="object",
        task=5,
        init_state=init_state,
    )


def test_a_file_gives_back_what_was_saved(tmp_path):
    saved = [make_demo(3, init_state=7), make_demo(11)]
    save_demos(tmp_path / "demos.npz", saved)
    loaded = load_demos(tmp_path / "demos.npz")
    for one, other in zip(saved, loaded, strict=True):
        for name in ("frame_THWC", "proprio_TP", "action_TA"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert (one.instruction, one.suite, one.task) == (other.instruction, other.suite, other.task)
    assert [d.init_state for d in loaded] == [7, 0]


def test_a_still_camera_takes_little_space(tmp_path):
    demo = make_demo(100)
    demo.frame_THWC = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8).repeat(100, 1, 1, 1)
    save_demos(tmp_path / "demos.npz", [demo])
    # one noisy frame of 12 kB; the other 99 are differences of zero (1.2 MB raw)
    assert (tmp_path / "demos.npz").stat().st_size < 25_000


def test_a_folder_is_read_in_order_of_names(tmp_path):
    save_demos(tmp_path / "b.npz", [make_demo(2)])
    save_demos(tmp_path / "a.npz", [make_demo(3)])
    assert [len(d) for d in load_demos(tmp_path)] == [3, 2]


def test_what_is_no_demonstration(tmp_path):
    with pytest.raises(ValueError, match="no demonstrations at .*vla_rl.record.*sft.demos=FILE"):
        load_demos(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="no demonstrations at"):
        load_demos(tmp_path)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="is not a file of demonstrations"):
        load_demos(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="no demonstrations to save"):
        save_demos(tmp_path / "empty.npz", [])
    with pytest.raises(ValueError, match="nothing named 'shipped:nowhere' is shipped"):
        shipped_folder("shipped:nowhere")


def stored(path):
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("name", ["action", "proprio"])
def test_a_value_that_is_not_finite_is_refused_with_its_file(tmp_path, name):
    save_demos(tmp_path / "good.npz", [make_demo(2)])
    bad = make_demo(3)
    getattr(bad, {"action": "action_TA", "proprio": "proprio_TP"}[name])[1, 2] = float("nan")
    save_demos(tmp_path / "bad.npz", [make_demo(2), bad])
    message = f"bad.npz: '{name}' holds NaN or infinite values, first in row 3: drop that episode"
    with pytest.raises(UserError, match=message):
        load_demos(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.zeros((3, 7))}, "'action' must be float32 .* got float64"),
        (
            {"action": np.zeros((2, 7), np.float32)},
            r"2 axes and 3 rows, .* got float32 \[2, 7\]",
        ),
        ({"proprio": np.zeros(3, np.float32)}, "'proprio' must be float32 with 2 axes"),
        ({"frame_delta": np.zeros((3, 4, 4, 3), np.float32)}, "'frame_delta' must be uint8"),
        ({"about": np.array("[]")}, "'steps' of each demonstration"),
        ({"about": np.array('{"steps": 3}')}, "'about' must be a list of objects"),
        ({"about": np.array('[{"steps": 3}]')}, "'about' must be a list of objects with steps, instruction, suite"),
        ({"about": np.array("no json")}, "is not a file of demonstrations"),
        ({"about": np.array("[" * 100_000)}, "is not a file of demonstrations .*recursion"),
        ({"about": np.array([{"steps": 3}], dtype=object)}, "Object arrays cannot be loaded"),
        ({"frame_delta": np.zeros((3, 4, 5, 3), np.uint8)}, r"square RGB pictures, got \[3, 4, 5, 3\]"),
        ({"frame_delta": np.zeros((3, 4, 4, 4), np.uint8)}, r"square RGB pictures, got \[3, 4, 4, 4\]"),
        ({"frame_delta": np.zeros((3, 4, 4, 0), np.uint8)}, r"square RGB pictures, got \[3, 4, 4, 0\]"),
        ({"frame_delta": np.zeros((3, 0, 0, 3), np.uint8)}, r"square RGB pictures, got \[3, 0, 0, 3\]"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, change, message):
    path = tmp_path / "demos.npz"
    save_demos(path, [make_demo(3)])
    np.savez(path, **(stored(path) | change))
    with pytest.raises(UserError, match=message):
        load_demos(path)


@pytest.mark.parametrize("steps", [0, -3, 3.0, "3", None])
def test_the_steps_of_a_demonstration_are_counted(tmp_path, steps):
    path = tmp_path / "demos.npz"
    save_demos(path, [make_demo(3)])
    arrays = stored(path)
    (about,) = json.loads(arrays["about"].item())
    np.savez(path, **arrays | {"about": np.array(json.dumps([about | {"steps": steps}]))})
    with pytest.raises(UserError, match=r"demos.npz .* 'steps' of each demonstration must be an integer of at least 1"):
        load_demos(path)


def set_in_zip(bit_or_method, *, local, central):
    """The same number in every header of the archive."""

    def changed(data):
        for signature, place in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
            at = data.find(signature)
            while at >= 0:
                data[at + place] = bit_or_method
                at = data.find(signature, at + 1)

    return changed


def npy_header(text):
    """An archive whose array 'about' has this header."""

    def changed(data):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("about.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
        data[:] = file.getvalue()

    return changed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_in_zip(1, local=6, central=8), "encrypted"),
        (set_in_zip(97, local=8, central=10), "compression method is not supported"),
        (npy_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 7)}\n"), "Unable to allocate"),
        (npy_header(b"{'descr': '<f4', \n"), "EOF in multi-line statement"),
    ],
    ids=["encrypted", "another method", "a promise of 25 TiB", "half a header"],
)
def test_a_damaged_archive(tmp_path, damage, message):
    save_demos(tmp_path / "demos.npz", [make_demo(3)])
    data = bytearray((tmp_path / "demos.npz").read_bytes())
    damage(data)
    (tmp_path / "demos.npz").write_bytes(data)
    with pytest.raises(UserError, match=f"demos.npz is not a file of demonstrations .*{message}") as raised:
        load_demos(tmp_path / "demos.npz")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suite", [["object"], {}, 5])
def test_a_suite_that_is_no_name(tmp_path, suite):
    save_demos(tmp_path / "demos.npz", [replace(make_demo(3), suite=suite)])
    with pytest.raises(UserError, match=r"demos.npz: demonstration 0: suite must be text or null, got"):
        load_demos(tmp_path / "demos.npz")


def test_files_of_another_kind(tmp_path):
    (tmp_path / "empty.npz").touch()
    (tmp_path / "text.npz").write_text("steps: 3")
    np.save(tmp_path / "array.npy", np.zeros(3))
    save_demos(tmp_path / "cut.npz", [make_demo(30)])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:500])
    for name in ("empty.npz", "text.npz", "array.npy", "cut.npz"):
        with pytest.raises(UserError, match=f"{name} is not a file of demonstrations"):
            load_demos(tmp_path / name)


def test_rows_are_control_steps_and_the_commands_that_follow():
    one, other = make_demo(4), make_demo(2)
    rows = DemoRows([one, other], chunk_steps=3)
    assert len(rows) == 6
    batch = rows.__getitems__([1, 3, 4])
    assert torch.equal(batch.command_NLA[0], one.action_TA[1:4])
    # at the end of the first: its last command, then rest with the gripper as it was; nothing of the second
    rest = torch.tensor([0.0, 0, 0, 0, 0, 0, -1])
    assert torch.equal(batch.command_NLA[1], torch.stack([one.action_TA[3], rest, rest]))
    assert torch.equal(batch.command_NLA[2], torch.stack([other.action_TA[0], other.action_TA[1], rest]))
    assert torch.equal(
        batch.observation.frame_NHWC, torch.stack([one.frame_THWC[1], one.frame_THWC[3], other.frame_THWC[0]])
    )
    mixed = rows.__getitems__([4, 1, 4, 0]).observation.frame_NHWC
    first, second = other.frame_THWC[0], one.frame_THWC[1]
    assert torch.equal(mixed, torch.stack([first, second, first, one.frame_THWC[0]]))
    assert torch.equal(batch.observation.proprio_NP[1], one.proprio_TP[3])
    assert batch.observation.instruction_N == ["do it 4 times", "do it 4 times", "do it 2 times"]


def data_of(demos, batch_rows=4, steps=10, seed=1):
    return DemoDataModule(demos, chunk_steps=8, batch_rows=batch_rows, steps=steps, iteration_steps=6, seed=seed)


def read(data, iteration, rank=0, ranks=1):
    """The rows of each step of an iteration, told apart by their proprioception."""
    data.trainer = SimpleNamespace(current_epoch=iteration, global_rank=rank, world_size=ranks)
    return [batch.observation.proprio_NP[:, 0].tolist() for batch in data.train_dataloader()]


def test_the_last_demonstration_is_held_out_and_the_seed_decides_the_order():
    demos = [make_demo(8), make_demo(9), make_demo(5)]
    (heldout,) = [batch.observation.proprio_NP[:, 0] for batch in data_of(demos, batch_rows=5).val_dataloader()]
    assert torch.equal(heldout, demos[2].proprio_TP[:, 0])
    steps = read(data_of(demos), 0) + read(data_of(demos), 1)
    assert [len(rows) for rows in steps] == [4] * 10  # 6 steps and the 4 that are left
    passes = [sum(steps[:4], []), sum(steps[4:8], [])]  # 17 rows in batches of 4, the rest dropped
    assert all(len(set(rows)) == 16 and not set(rows) & set(heldout.tolist()) for rows in passes)
    assert passes[0] != passes[1]
    assert steps[6:] == read(data_of(demos), 1)  # whatever was read before
    assert steps[:6] != read(data_of(demos, seed=2), 0)


def test_processes_share_the_rows_of_a_step():
    demos = [make_demo(8), make_demo(8), make_demo(5)]
    one = read(data_of(demos), 1)
    first, second = (read(data_of(demos, batch_rows=2), 1, rank, ranks=2) for rank in (0, 1))
    assert one == [a + b for a, b in zip(first, second, strict=True)]


def test_too_few_demonstrations():
    with pytest.raises(ValueError, match="1 demonstrations, of which 1 are held out"):
        data_of([make_demo(3)], batch_rows=2)
    with pytest.raises(ValueError, match="sft.batch_rows=3"):
        data_of([make_demo(3), make_demo(4)])
