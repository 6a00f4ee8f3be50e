"""The scripted demonstrator: its commands on scenes worked out by hand, and in the simulator with stand-in assets."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.helpers.toy_fit import Fork
from vla_rl import record
from vla_rl.errors import UserError
from vla_rl.run.cli import run_entry
from vla_rl.sim.demonstration import demonstrate
from vla_rl.sim.libero.demonstrator import (
    Body,
    DemonstrationEnv,
    Demonstrator,
    Phase,
    Scene,
    entry_point,
)

LINGER_STEPS = 6


def scene(grip: tuple, target: tuple = (0.3, 0.4, 0.05), half: tuple = (0.03, 0.03, 0.05)) -> Scene:
    """A target box on the floor (10 cm tall by default) and a basket 15 cm tall at y = -0.5."""
    target_3, half_3, basket_3 = np.array(target), np.array(half), np.array([0.0, -0.5, 0.07])
    basket = Body(basket_3, basket_3 - [0.08, 0.08, 0.07], basket_3 + np.array([0.08, 0.08, 0.08]))
    return Scene(np.array(grip), Body(target_3, target_3 - half_3, target_3 + half_3), basket)


def test_far_away_it_moves_straight_at_full_command_with_an_open_hand():
    start = scene((0.0, 0.0, 0.16))
    command = Demonstrator(start).action(start)
    # 0.5 m away along (0.6, 0.8): limited to length 1 together. Height wanted: top 0.10 + hover 0.06 - press 0.004,
    # 0.004 below the hand: 16 * -0.004 = -0.064. The nearest levels of 0, .1, .4, 1.
    np.testing.assert_allclose(command, [0.4, 1.0, -0.1, 0, 0, 0, -1], atol=1e-12)


def test_it_descends_to_a_grip_two_centimetres_below_the_top_and_closes_there():
    above = scene((0.3, 0.4, 0.1))
    demonstrator = Demonstrator(above)
    # grip height 0.10 - 0.02 = 0.08; 16 * (0.08 - 0.004 - 0.1) = -0.384
    np.testing.assert_allclose(demonstrator.action(above)[2], -0.4, atol=1e-12)
    at_grip = scene((0.3, 0.4, 0.0825))  # within LANDED_M = 3 mm of 0.08
    assert demonstrator.action(at_grip)[6] == 1.0
    assert demonstrator.phase is Phase.CLOSE


def test_a_flat_target_is_gripped_at_the_floor():
    flat = scene((0.3, 0.4, 0.016), target=(0.3, 0.4, 0.009), half=(0.04, 0.02, 0.009))
    demonstrator = Demonstrator(flat)
    # top 0.018 - 0.02 is under the floor: grip at 0.012, 16 * (0.012 - 0.004 - 0.016) = -0.128
    np.testing.assert_allclose(demonstrator.action(flat)[2], -0.1, atol=1e-12)
    assert demonstrator.phase is Phase.REACH


def test_beside_a_tall_neighbour_it_comes_down_clear_of_it_and_slides():
    # The neighbour, 6 x 6 cm, 13 cm tall, stands under the palm's end: 8 cm along y, 1.2 cm along x.
    neighbour_3 = np.array([0.312, 0.48, 0.065])
    neighbour = Body(neighbour_3, neighbour_3 - [0.03, 0.03, 0.065], neighbour_3 + np.array([0.03, 0.03, 0.065]))
    alone = scene((0.3, 0.4, 0.2))
    crowded = dataclasses.replace(alone, others=(neighbour,))
    np.testing.assert_allclose(entry_point(alone), [0.3, 0.4, 0.08], atol=1e-12)
    # Clear of x 0.282..0.342 with the palm's 0.02 to either side: below 0.262, so 0.26 on the grid of 5 mm.
    np.testing.assert_allclose(entry_point(crowded), [0.26, 0.4, 0.08], atol=1e-12)
    beside = dataclasses.replace(crowded, grip_3=np.array([0.26, 0.4, 0.09]))
    np.testing.assert_allclose(Demonstrator(beside).action(beside)[:2], [0.4, 0.0], atol=1e-12)  # 16 * 0.04 = .64


def test_a_target_that_slips_is_grasped_again():
    held = scene((0.3, 0.4, 0.08))
    demonstrator = Demonstrator(held)
    for _ in range(8):  # the step that decides to close counts as the first of CLOSE_STEPS = 7
        demonstrator.action(held)
    assert demonstrator.phase is Phase.CARRY
    lifted_alone = scene((0.3, 0.4, 0.14))  # the hand is 6 cm up, the target still on the floor
    assert demonstrator.action(lifted_alone)[6] == -1.0
    assert demonstrator.phase is Phase.REACH


def test_a_target_wider_than_the_hand_is_refused():
    with pytest.raises(UserError, match="0.080 m wide along y.*suite=object"):
        Demonstrator(scene((0.0, 0.0, 0.2), half=(0.02, 0.04, 0.05)))


def test_other_suites_are_refused_before_anything_is_built():
    with pytest.raises(UserError, match="suite=object"):
        DemonstrationEnv("goal", 0)


# The flat cream cheese among tall neighbours, and the tall salad dressing: the two ends of what must be grasped.
@pytest.fixture(scope="module", params=[1, 2])
def env(request):
    env = DemonstrationEnv("object", request.param, camera_px=32, placement_noise_m=0.03)
    yield env
    env.close()


@pytest.fixture(scope="module")
def demo(env):
    return demonstrate(env, 7, noise=0.25, hesitation=0.0, linger_steps=LINGER_STEPS, seed=0)


def test_it_succeeds_from_a_drawn_placement_with_noise(demo, env):
    assert demo is not None
    steps = len(demo.action_TA)
    assert 70 < steps < 200  # 80-95 without noise, plus the linger; a grasp or two more with it
    assert demo.frame_THWC.shape == (steps, 32, 32, 3)
    assert demo.proprio_TP.shape == (steps, 8)
    assert (demo.suite, demo.task, demo.init_state) == ("object", env.task, 7)
    assert demo.instruction == env.instruction


def test_recorded_actions_are_clean(demo):
    action_TA = demo.action_TA.numpy()
    assert (action_TA[:, 3:6] == 0).all()
    assert set(action_TA[:, 6]) == {-1.0, 1.0}
    # Noise of .25 would leave hardly any command at a level.
    assert set(np.abs(action_TA[:, :3]).ravel()) == set(np.float32([0.0, 0.1, 0.4, 1.0]))


def test_hesitation_is_recorded_and_slower(demo, env):
    hesitant = demonstrate(env, 7, noise=0.25, hesitation=1.0, linger_steps=LINGER_STEPS, seed=0)
    assert hesitant.action_TA[:, :3].abs().max() <= 0.4
    assert len(hesitant.action_TA) > len(demo.action_TA) + 20


def test_the_end_shows_the_open_hand_over_the_basket(demo):
    closed_T = demo.action_TA[:, 6].numpy() > 0
    assert not closed_T[0]
    assert not closed_T[-LINGER_STEPS:].any()
    fingers_T = np.abs(demo.proprio_TP[:, 6:].numpy()).sum(1)
    assert fingers_T[-1] > 0.07  # two joints of up to 0.04 m


def test_the_same_seed_gives_the_same_demonstration(demo, env):
    again = demonstrate(env, 7, noise=0.25, hesitation=0.0, linger_steps=LINGER_STEPS, seed=0)
    assert (again.action_TA == demo.action_TA).all()
    assert (again.frame_THWC == demo.frame_THWC).all()


def test_the_verb_checks_success_and_prints_json_last(tmp_path):
    argv = ["check=true", "tasks=[5]", "episodes_per_task=2", "workers=1"]
    program = Fork(lambda: run_entry(record.main, argv), tmp_path)
    assert program.wait() == 0, program.errors
    row = json.loads(program.printed.splitlines()[-1])["tasks"]["5"]
    assert (row["episodes"], row["successes"], row["failed_init_states"]) == (2, 2, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check=true", "out=x.npz"], "either out=demos.npz or check=true"),
        ([], "either out=demos.npz or check=true"),
        (["check=true", "init_states=0-40"], r"init_states must be two integers, got '0-40'"),
        (["check=true", "init_states=[0,5]", "episodes_per_task=9"], r"init_states=\[0,9\]"),
        (["check=true", "tasks=[10]"], "no task 10"),
        (["check=true", "taks=[1]"], "unknown key 'taks'; did you mean 'tasks'"),
        (["check=true", "workers=0"], "workers=2"),
    ],
)
def test_the_verb_says_what_to_fix(arguments, message):
    with pytest.raises(ValueError, match=message):
        record.main(arguments)
