"""What `vla_rl.record` refuses before it plays an episode."""

from pathlib import Path

import pytest

from vla_rl.config.schema import RecordConfig
from vla_rl.errors import UserError
from vla_rl.evaluation.experts import episodes
from vla_rl.record import check_options


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"workers": 0}, "workers must be an integer >= 1, got 0 (workers=2)"),
        ({"camera_px": 0}, "camera_px must be an integer >= 1, got 0 (camera_px=128)"),
        ({"linger_steps": -3}, "linger_steps must be an integer >= 0, got -3 (linger_steps=6)"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1 (seed=1)"),
        ({"noise": -1.0}, "noise must be a number >= 0, got -1.0 (noise=0.1)"),
        ({"hesitation": 2.0}, "hesitation must be a number >= 0 and <= 1, got 2.0 (hesitation=0.1)"),
        ({"out": "demos.h5"}, "out must name an .npz file or a new folder, got demos.h5 (out=demos.npz, out=demos)"),
        ({"out": "tests"}, "out=tests exists; give a new folder: out=tests-2"),
        ({"successes_only": 1}, "successes_only must be true or false, got 1 (successes_only=true)"),
        ({"out": "demos.npz", "successes_only": False}, "an .npz file holds successes alone: successes_only=true, or"),
        ({"out": "/dev/null/x/demos.npz"}, "cannot write out=/dev/null/x: Not a directory; name another folder"),
        ({"out": "/proc/demos.npz"}, "cannot write out=/proc: No such file or directory; name another folder"),
    ],
)
def test_one_line_names_the_fix(options, line):
    with pytest.raises(UserError) as refused:
        check_options(RecordConfig(**options))
    assert str(refused.value).startswith(line)


def test_the_folder_is_made_before_the_first_episode(tmp_path):
    check_options(RecordConfig(out=str(tmp_path / "new" / "demos.npz")))
    assert Path(tmp_path / "new").is_dir()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"suite": "mt10", "assets": "hub"}, "assets is of LIBERO, not of Meta-World: assets=standin"),
        ({"suite": "mt10", "placement_noise_m": 0.1}, "placement_noise_m is of LIBERO, not of Meta-World"),
        ({"horizon": 0}, "horizon must be an integer >= 1, got 0 (horizon=100)"),
        ({"suite": "tabletop"}, "ManiSkill has no scripted demonstrator here (its own need mplib"),
    ],
)
def test_options_of_the_other_world_are_refused(options, line, monkeypatch):
    monkeypatch.setattr("vla_rl.sim.metaworld.tasks.check_installed", lambda: None)
    with pytest.raises(UserError) as refused:
        check_options(RecordConfig(**options))
    assert str(refused.value).startswith(line)


def test_tasks_are_counted_or_in_meta_world_named():
    options = {"out": "demos.npz", "init_states": (3, 5)}
    assert episodes(RecordConfig(suite="mt50", tasks=["reach", 6], **options)) == [(43, 3), (43, 4), (6, 3), (6, 4)]
    with pytest.raises(UserError, match="task button-press is not one of suite 'mt10'"):
        episodes(RecordConfig(suite="mt10", tasks=["button-press"], **options))
    with pytest.raises(UserError, match="suite 'object' has no task 'reach'"):
        episodes(RecordConfig(tasks=["reach"], **options))


def test_decoding_is_of_a_policy():
    with pytest.raises(UserError, match="decoding is of a policy, .* plays: checkpoint=FOLDER"):
        episodes(RecordConfig(out="demos", decoding="greedy"))
