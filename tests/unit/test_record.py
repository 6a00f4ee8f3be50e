"""What `vla_rl.record` refuses before it plays an episode."""

from pathlib import Path

import pytest

from vla_rl.config.schema import RecordConfig
from vla_rl.errors import UserError
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
        ({"out": "demos.h5"}, "out must name an .npz file, got demos.h5 (out=demos.npz)"),
        ({"out": "/dev/null/x/demos.npz"}, "the folder of /dev/null/x/demos.npz cannot be made: Not a directory"),
    ],
)
def test_one_line_names_the_fix(options, line):
    with pytest.raises(UserError) as refused:
        check_options(RecordConfig(**options))
    assert str(refused.value).startswith(line)


def test_the_folder_is_made_before_the_first_episode(tmp_path):
    check_options(RecordConfig(out=str(tmp_path / "new" / "demos.npz")))
    assert Path(tmp_path / "new").is_dir()
