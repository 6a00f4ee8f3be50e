import numpy as np
import pytest
import torch

from vla_rl.demo_data import DemoDataModule, DemoRows
from vla_rl.demos import Demo, load_demos, save_demos
from vla_rl.shipped import shipped_folder


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
    with pytest.raises(ValueError, match="no demonstrations at .*collect_demos.py.*sft.demos=FILE"):
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
    assert torch.equal(batch.observation.frame_NHWC[2], other.frame_THWC[0])
    assert torch.equal(batch.observation.proprio_NP[1], one.proprio_TP[3])
    assert batch.observation.instruction_N == ["do it 4 times", "do it 4 times", "do it 2 times"]


def seen(loader):
    return torch.cat([batch.observation.proprio_NP[:, 0] for batch in loader])


def test_the_last_demonstration_is_held_out_and_the_seed_decides_the_order():
    demos = [make_demo(8), make_demo(9), make_demo(5)]
    data = DemoDataModule(demos, chunk_steps=8, batch_rows=4, seed=1)
    heldout = seen(data.val_dataloader())
    assert torch.equal(heldout, demos[2].proprio_TP[:, 0])
    first = seen(data.train_dataloader())
    assert len(first) == 16  # 17 rows in batches of 4, the rest dropped
    assert not set(first.tolist()) & set(heldout.tolist())
    assert torch.equal(first, seen(data.train_dataloader()))
    other = DemoDataModule(demos, chunk_steps=8, batch_rows=4, seed=2)
    assert not torch.equal(first, seen(other.train_dataloader()))


def test_too_few_demonstrations():
    with pytest.raises(ValueError, match="1 demonstrations, of which 1 are held out"):
        DemoDataModule([make_demo(3)], chunk_steps=8, batch_rows=2, seed=1)
    with pytest.raises(ValueError, match="sft.batch_rows=3"):
        DemoDataModule([make_demo(3), make_demo(4)], chunk_steps=8, batch_rows=4, seed=1)
