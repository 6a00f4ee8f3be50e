"""Our environments keep gymnasium's contract, as its own checker sees it."""

from __future__ import annotations

import warnings

import pytest
from gymnasium.utils.env_checker import check_env

from vla_rl.sim.libero.env import LiberoEnv


@pytest.mark.parametrize("options", [{}, {"wrist_camera": True, "placement_noise_m": 0.02, "stepping": "stock"}])
def test_gymnasiums_checker_finds_nothing(options):
    env = LiberoEnv("object", 0, camera_px=32, chunk_steps=2, horizon=8, settle_steps=1, **options)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check_env(env, skip_render_check=True)
    # it wants bounds for what has none: a position is in metres from the robot, wherever that is
    said = [str(w.message) for w in found if "gymnasium" in w.filename or "WARN" in str(w.message)]
    assert [text for text in said if "infinity" not in text] == []
