"""Tasks of a folder in the real simulator: drawn as LIBERO draws, the same in any process, and solved."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.integration.sim.test_pool import assert_same, episode, play, signaller
from vla_rl.errors import UserError
from vla_rl.sim.demonstration import demonstrate
from vla_rl.sim.libero import suites
from vla_rl.sim.libero.demonstrator import DemonstrationEnv
from vla_rl.sim.libero.env import LiberoEnv
from vla_rl.sim.libero.pool import LiberoPool

SUITE = Path(__file__).parents[3] / "data" / "suite"
SMALL = {"camera_px": 64, "settle_steps": 1}
DRAWER = suites.task_names("spatial").index(  # a bowl that lies on a region of a cabinet whose drawer is open
    "pick_up_the_black_bowl_in_the_top_drawer_of_the_wooden_cabinet_and_place_it_on_the_plate"
)


def test_placements_are_those_that_libero_draws(tmp_path):
    path = suites.bddl_file("spatial", DRAWER)
    shutil.copy(path, tmp_path)
    env = LiberoEnv(str(tmp_path), 0, **SMALL)
    for seed in (0, 3):  # of several, the last is compared: nothing is left of those before
        state = env._regions.draw(seed)
    suites.boot("standin")
    from libero.libero.envs.env_wrapper import ControlEnv

    stock = ControlEnv(bddl_file_name=str(path), use_camera_obs=False, has_offscreen_renderer=False, ignore_done=True)
    stock.seed(3)
    stock.reset()
    np.testing.assert_array_equal(state, stock.get_sim_state())
    np.testing.assert_array_equal(env._model.body_pos, stock.sim.model.body_pos)  # where the furniture stands
    np.testing.assert_array_equal(env._model.body_quat, stock.sim.model.body_quat)
    env.close()


def test_trajectories_do_not_depend_on_what_was_before_or_on_faults():
    episodes = [episode(uid, task=0, init_state=5 * uid) for uid in range(2)]

    def pool() -> LiberoPool:
        return LiberoPool(suite=str(SUITE), horizon=16, workers=1, **SMALL)

    with pool() as calm:
        expected = play(calm, episodes)
    with pool() as killed:
        found = play(killed, episodes[::-1], signaller(killed, signal.SIGKILL, 1))[::-1]
        assert killed.restarts == 1
    assert not torch.equal(expected[0][0][0], expected[1][0][0])  # another seed: another placement
    assert_same(found, expected)


def test_the_demonstrator_solves_a_task_of_a_folder():
    env = DemonstrationEnv(str(SUITE), 0, camera_px=16, render=False)
    demo = demonstrate(env, 4, noise=0.0, hesitation=0.0, linger_steps=0, seed=1)
    env.close()
    assert demo is not None and demo.instruction == "put the milk in the basket"
    assert 40 < len(demo) < 200


def test_the_demonstrator_refuses_other_tasks():
    with pytest.raises(UserError, match="puts one object in a basket.*task 0 of suite 'goal' is another"):
        DemonstrationEnv("goal", 0)


def test_initial_states_of_another_task_are_one_line(tmp_path):
    folder = shutil.copytree(SUITE, tmp_path / "suite")
    (folder / "soup_beside_milk.bddl").unlink()
    torch.save(suites.init_states("object", 0), folder / "milk_beside_soup.pruned_init")
    with LiberoPool(suite=str(folder), workers=1, **SMALL) as pool:
        pool.start(0, episode(0, task=0, init_state=0))
        with pytest.raises(UserError, match="have 110 numbers, its scene needs 58: they are another task's"):
            pool.wait()


def test_objects_that_do_not_fit_are_one_line(tmp_path):
    folder = shutil.copytree(SUITE, tmp_path / "suite")
    path = folder / "milk_beside_soup.bddl"
    path.write_text(path.read_text().replace("(On alphabet_soup_1 floor_right", "(On alphabet_soup_1 floor_basket"))
    with pytest.raises(UserError, match="milk_beside_soup.bddl do not fit into their regions"):
        LiberoEnv(str(folder), 0, **SMALL)


def test_liberos_parser_runs_no_code(tmp_path):
    suites.boot("standin")
    from libero.libero.envs import bddl_utils

    path = tmp_path / "task.bddl"
    text = (SUITE / "milk_beside_soup.bddl").read_text()
    path.write_text(text)
    yaw = bddl_utils.robosuite_parse_problem(str(path))["regions"]["floor_left_region"]["yaw_rotation"]
    assert yaw == [0.0, -np.pi / 2]
    path.write_text(text.replace("-np.pi/2", "vars"))
    with pytest.raises(ValueError, match="'vars' is no number"):
        bddl_utils.robosuite_parse_problem(str(path))
