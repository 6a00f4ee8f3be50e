"""`python -m vla_rl.sft` from the formats that people have to a policy, and from damaged files to one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.demos.test_formats import DATA, HDF5, PICTURES, VIDEO, damage_pictures
from vla_rl import sft
from vla_rl.demos.formats.layout import Layout
from vla_rl.demos.load import load_demos
from vla_rl.errors import UserError
from vla_rl.policy import load_policy
from vla_rl.training.demonstrations import check_dims

SHORT = ["conf=sft_object_tiny", "sft.steps=2", "sft.batch_rows=2"]


@pytest.mark.parametrize(
    ("source", "options", "largest"),
    [
        # of the column's rows 1 to 4 of both demonstrations, by h5py: q99 of a few numbers lies just below the largest
        (HDF5, ["sft.per_task=1"], 0.727280),
        (VIDEO, ["sft.workers=1", "sft.drop_noops=true"], 0.868),
    ],
)
def test_training_on_a_sample(source, options, largest, tmp_path, capsys):
    run = tmp_path / "run"
    sft.main([*SHORT, f"sft.demos={source}", *options, f"run_dir={run}"])
    instructions = 1 if source == HDF5 else 2
    assert f"2 demonstrations of {instructions} instructions" in capsys.readouterr().out
    statistics = load_policy(str(run / "policy")).statistics
    assert statistics.key == source.name
    assert statistics.action.q99[0] <= largest
    assert json.loads((run / "summary.json").read_text())["sft/heldout_loss"] > 0
    assert (run / "demonstrations.png").stat().st_size > 5000


def test_published_statistics_are_taken(tmp_path):
    published = {"bounds": {"q01": [-0.5] * 7, "q99": [0.5] * 7, "mask": [True] * 6 + [False]}}
    state = {"q01": [-2.0] * 8, "q99": [2.0] * 8, "mask": [True] * 8}
    file = tmp_path / "dataset_statistics.json"
    file.write_text(json.dumps({"libero_object_no_noops": {"action": published["bounds"], "proprio": state}}))
    run = tmp_path / "run"
    arguments = [*SHORT, f"sft.demos={PICTURES}", f"sft.statistics={file}"]
    sft.main([*arguments, f"run_dir={run}"])
    statistics = load_policy(str(run / "policy")).statistics
    assert statistics.key == "libero_object_no_noops"
    assert statistics.action.q99.tolist() == [0.5] * 7
    assert statistics.action.mask.tolist() == [True] * 6 + [False]
    for change, message in (
        (f"policy.checkpoint={run / 'policy'}", "statistics of its own .*sft.statistics=null"),
        ("sft.statistics=nowhere.json", "no file nowhere.json"),
    ):
        with pytest.raises(UserError, match=message):
            sft.main([*arguments, change, f"run_dir={tmp_path / 'other'}"])
    file.write_text(json.dumps({name: {"action": published["bounds"], "proprio": state} for name in "ab"}))
    with pytest.raises(UserError, match=r"2 data sets \(a, b\), none of 'lerobot_v3_images'"):
        sft.main([*arguments, f"run_dir={tmp_path / 'other'}"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_ends_the_run_with_one_line(workers, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(PICTURES, folder)
    damage_pictures(folder / DATA)
    with pytest.raises(UserError) as raised:
        sft.main([*SHORT, f"sft.demos={folder}", f"sft.workers={workers}", f"run_dir={tmp_path / 'run'}"])
    assert str(raised.value).startswith(f"{folder / DATA}: observation.images.image of row 0 cannot be read")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("sft.cameras=[wrist]", "no 'wrist'.*sft.cameras"),
        ("sft.per_task=0", "sft.per_task must be an integer >= 1"),
        ("sft.workers=-1", "sft.workers must be an integer >= 0"),
        ("sft.drop_noops=maybe", "sft.drop_noops must be true or false"),
        ("sft.turned=1", "sft.turned must be true or false"),
    ],
)
def test_wrong_options_are_refused(option, message, tmp_path):
    with pytest.raises(UserError, match=message):
        sft.main([*SHORT, f"sft.demos={PICTURES}", option, f"run_dir={tmp_path / 'run'}"])
    assert not Path(tmp_path / "run" / "policy").exists()


def test_a_state_that_the_policy_does_not_read():
    (demo, _) = load_demos(PICTURES, Layout(state=["observation.state", "action"]))
    check_dims(SimpleNamespace(proprio_dims=15), demo)
    check_dims(SimpleNamespace(proprio_dims=0), demo)  # it reads none
    with pytest.raises(UserError, match=r"episode 0: the state has 15 numbers, the policy reads 8: sft.state=\[KEY\]"):
        check_dims(SimpleNamespace(proprio_dims=8), demo)


def test_options_that_an_npz_file_does_not_have(tmp_path):
    with pytest.raises(UserError, match=r"demos.npz is an .npz file, whose keys are fixed: sft.cameras=null"):
        sft.main([*SHORT, "sft.cameras=[image]", f"run_dir={tmp_path / 'run'}"])
