"""Drawn placements: where they say, collision-free, at rest, and a function of (suite, task, seed) alone."""

from __future__ import annotations

import numpy as np
import pytest

from vla_rl.errors import UserError
from vla_rl.sim.libero.env import LiberoEnv

RADIUS_M = 0.05


@pytest.fixture(scope="module")
def env():
    env = LiberoEnv("object", 5, placement_noise_m=RADIUS_M)
    yield env
    env.close()


def positions(env: LiberoEnv, state: np.ndarray) -> dict[str, np.ndarray]:
    """name -> xyz read from a state vector."""
    joint = {name: env._model.body_jntadr[env._env.obj_body_id[name]] for name in env.objects}
    return {name: state[1 + env._model.jnt_qposadr[j] :][:3] for name, j in joint.items()}


def test_draws_depend_on_the_seed_and_not_on_history(env):
    draw = env._placements.draw
    first = draw("object", 5, 3)
    draw("object", 5, 4)
    env.reset(options={"init_state": 8})
    env.step(np.ones((8, 7)))
    np.testing.assert_array_equal(draw("object", 5, 3), first)
    assert np.abs(draw("object", 5, 4) - first).max() > 0.001
    assert np.abs(draw("object", 6, 3) - first).max() > 0.001


def test_objects_are_displaced_within_the_disc_and_the_rest_stays(env):
    official = env._states
    robot = slice(1, 1 + 9)  # qpos: 7 arm joints, 2 fingers
    distances_m = []
    for seed in range(20):
        drawn = env._placements.draw("object", 5, seed)
        base = official[np.abs(official[:, robot] - drawn[robot]).max(1).argmin()]
        np.testing.assert_array_equal(drawn[robot], base[robot])
        before, after = positions(env, base), positions(env, drawn)
        np.testing.assert_array_equal(after["basket_1"], before["basket_1"])
        moved_m = [np.linalg.norm(after[n][:2] - before[n][:2]) for n in env.objects if n != "basket_1"]
        assert max(moved_m) < RADIUS_M + 0.01  # settling may slide an object by 1 cm at most
        distances_m += moved_m
    # Uniform in a disc: the mean distance from the centre is 2/3 R = 3.3 cm; 120 samples of deviation 1.2 cm: +-0.1 cm.
    assert np.mean(distances_m) == pytest.approx(2 / 3 * RADIUS_M, abs=0.004)


def test_scene_is_at_rest_and_nothing_touches(env):
    for seed in range(5):
        env.reset(options={"init_state": seed})
        before = env.object_poses()
        env.step(np.zeros((8, 7)))
        after = env.object_poses()
        assert max(np.abs(after[n][0] - before[n][0]).max() for n in env.objects) < 0.002
        roots = env._model.body_rootid[env._model.geom_bodyid[env._data.contact.geom]]
        objects = {env._env.obj_body_id[n] for n in env.objects}
        assert not any(a != b and a in objects and b in objects for a, b in roots.tolist())


def test_crowded_placements_are_settled_and_apart():
    """With discs that overlap, most scatterings collide; what is drawn does not."""
    env = LiberoEnv("object", 5, placement_noise_m=0.19)
    for seed in range(5):
        env._placements.draw("object", 5, seed)
        assert not env._placements._touching()
        assert np.abs(env._placements._data.qvel[9:]).max() < 0.5  # rad/s and m/s, of objects alone
    env.close()


def test_an_impossible_placement_says_so(env, monkeypatch):
    monkeypatch.setattr(env._placements, "_touching", lambda: True)
    with pytest.raises(UserError, match=r"no collision-free placement.*sim\.placement_noise_m=0\.025"):
        env.reset(options={"init_state": 0})


def test_negative_seed_is_refused(env):
    with pytest.raises(UserError, match="must not be negative, not -1"):
        env.reset(options={"init_state": -1})
