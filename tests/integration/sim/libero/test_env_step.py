"""The decision-level step: how many control steps run, when an episode ends; and lean stepping against stock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_rl.errors import UserError
from vla_rl.sim.libero.env import LiberoEnv

OFFICIAL_ASSETS = Path(__file__).parents[5] / "shared" / "libero_assets"
STILL = np.zeros((8, 7), dtype=np.float32)


@pytest.fixture(scope="module")
def env():
    env = LiberoEnv("object", 0, horizon=20)
    yield env
    env.close()


def drop_target_into_basket(env: LiberoEnv) -> None:
    """Put the target above the goal region; it is inside a few control steps later."""
    joint = env._model.body_jntadr[env._env.obj_body_id[env.target_object]]
    address = env._model.jnt_qposadr[joint]
    env._data.qpos[address : address + 3] = env.goal_position() + np.array([0.0, 0.0, 0.12])
    env._data.qvel[:] = 0.0


def test_reset_and_step_return_what_the_policy_needs(env):
    observation, info = env.reset(options={"init_state": 0})
    assert info == {
        "instruction": "pick up the alphabet soup and place it in the basket",
        "executed": 0,
        "success": False,
    }
    assert observation["frame"].shape == (128, 128, 3)
    assert observation["frame"].dtype == np.uint8
    assert observation["proprio"].shape == (8,)
    assert observation["proprio"].dtype == np.float32
    np.testing.assert_allclose(observation["proprio"][:3], env.eef_pose()[0], atol=1e-3)  # 1 mm: it stands still


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_only_the_rows_given_are_executed(env, rows):
    env.reset(options={"init_state": 0})
    before = env._data.time
    *_, info = env.step(STILL[:rows])
    assert info["executed"] == rows
    assert env._data.time - before == pytest.approx(0.05 * rows)  # a control step lasts 50 ms


def test_horizon_truncates_in_the_middle_of_a_command(env):
    env.reset(options={"init_state": 0})
    outcomes = [env.step(STILL) for _ in range(3)]
    assert [info["executed"] for *_, info in outcomes] == [8, 8, 4]  # horizon 20
    assert [(reward, terminated, truncated) for _, reward, terminated, truncated, _ in outcomes] == [
        (0.0, False, False),
        (0.0, False, False),
        (0.0, False, True),
    ]
    with pytest.raises(AssertionError, match="call reset"):
        env.step(STILL)


def test_success_stops_the_command_and_terminates(env):
    env.reset(options={"init_state": 0})
    drop_target_into_basket(env)
    _, reward, terminated, truncated, info = env.step(STILL)
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    assert 1 <= info["executed"] < 8
    env.reset(options={"init_state": 0})
    assert not env.step(STILL)[2]  # the next episode starts without it


@pytest.mark.parametrize("command", [np.full((1, 7), np.nan), np.zeros((9, 7)), np.zeros((0, 7))])
def test_malformed_commands_are_refused(env, command):
    env.reset(options={"init_state": 0})
    with pytest.raises(AssertionError):
        env.step(command)


def test_commands_of_a_policy_for_another_simulator_are_refused(env):
    env.reset(options={"init_state": 0})
    with pytest.raises(UserError, match="commands have 6 numbers, the simulator takes 7: policy.checkpoint="):
        env.step(np.zeros((8, 6)))


@pytest.mark.parametrize("assets", ["standin", OFFICIAL_ASSETS], ids=["standin", "official"])
def test_lean_stepping_agrees_with_stock_stepping(assets):
    """After 130 control steps of gentle motion. Rounding differs by ~1e-16 a step; 1e-12 leaves room for its growth."""
    if assets != "standin" and not assets.is_dir():
        pytest.skip(f"no official assets in {assets}")
    lean, stock = (
        LiberoEnv("object", 0, assets=assets, stepping=stepping, horizon=200) for stepping in ("lean", "stock")
    )
    rng = np.random.default_rng(0)
    for env in (lean, stock):
        env.reset(options={"init_state": 2})
    for _ in range(13):
        command_LA = rng.uniform(-0.3, 0.3, (8, 7))
        for env in (lean, stock):
            env.step(command_LA)
            env.step(STILL[:2])
    assert np.abs(stock._data.qvel).max() > 0.01  # something moves
    assert np.abs(lean._data.qpos - stock._data.qpos).max() < 1e-12
    assert np.abs(lean._data.qvel - stock._data.qvel).max() < 1e-11
    for env in (lean, stock):
        env.close()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("objct", 0), {}, r"no LIBERO suite 'objct'; did you mean 'object'\?.*sim\.suite=object"),
        (("object", 10), {}, r"suite 'object' has no task 10; allowed: 0\.\.9; e\.g\. sim\.tasks=\[0,5\]"),
        (("object", 0), {"stepping": "leen"}, r"no stepping named 'leen'; did you mean 'lean'\?.*sim\.stepping=lean"),
        (
            ("object", 0),
            {"robot_geoms": "x"},
            r"no robot_geoms named 'x'.*collision, visual.*sim\.robot_geoms=collision",
        ),
        (("object", 0), {"assets": "/no/such"}, r"assets folder '/no/such' does not exist.*sim\.assets=standin"),
        (
            ("object", 0),
            {"placement_noise_m": -0.1},
            r"placement_noise_m must be a number .*, got -0\.1 .sim\.placement_noise_m=0\.03",
        ),
        (("goal", 0), {"placement_noise_m": 0.03}, r"placements cannot be drawn for suite 'goal'.*=0$"),
    ],
)
def test_mistakes_are_refused_before_anything_is_built(arguments, options, message):
    with pytest.raises(UserError, match=message):
        LiberoEnv(*arguments, **options)
