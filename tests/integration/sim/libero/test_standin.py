"""The stand-in assets: what is written, and that official initial states come to rest as with LIBERO's own assets."""

from __future__ import annotations

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vla_rl.errors import UserError
from vla_rl.sim.libero.env import SETTLE_ACTION, LiberoEnv
from vla_rl.sim.libero.standin.objects import OBJECTS
from vla_rl.sim.libero.standin.write import write_assets

pytestmark = pytest.mark.no_cover  # the same lines for every task

OFFICIAL_ASSETS = Path(__file__).parents[5] / "shared" / "libero_assets"

# At rest with LIBERO's own assets: height of the body's origin above the floor, and the body's axis that points up.
REST_M = {
    "alphabet_soup": (0.0384, "y"),
    "tomato_sauce": (0.0384, "y"),
    "salad_dressing": (0.0727, "y"),
    "ketchup": (0.0724, "y"),
    "milk": (0.0697, "y"),
    "orange_juice": (0.0697, "y"),
    "bbq_sauce": (0.0546, "z"),
    "cream_cheese": (0.0089, "z"),
    "butter": (0.0087, "z"),
    "chocolate_pudding": (0.0131, "z"),
    "basket": (-0.0046, "z"),
}


def up_in_body(wxyz: np.ndarray) -> np.ndarray:
    """The world's z axis in the body's frame: the last row of the rotation matrix."""
    w, x, y, z = wxyz
    return np.array([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])


def tilt_deg(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(first @ second, -1, 1))))


def open_env(task: int, assets: str | Path = "standin") -> LiberoEnv:
    return LiberoEnv("object", task, assets=assets, camera_px=16, settle_steps=10)


def stand_still(env: LiberoEnv, steps: int) -> dict:
    for _ in range(steps // 8):
        info = env.step(np.tile(SETTLE_ACTION, (8, 1)))[-1]
    return info


@pytest.mark.parametrize("task", range(10))
def test_official_initial_states_come_to_rest_upright_where_they_were_put(task: int):
    env = open_env(task)
    try:
        for state in (0, 17, 49):
            start = env._states[state]
            env.reset(options={"init_state": state})
            rest = env.object_poses()
            for name, (position, wxyz) in rest.items():
                height, axis = REST_M[name.removesuffix("_1")]
                address = 1 + env._model.joint(f"{name}_joint0").qposadr[0]  # the state begins with the time
                # Resting heights are given to 0.1 mm; a fallen object would be off by a centimetre and 90 degrees.
                assert position[2] == pytest.approx(height, abs=2e-4), name
                assert tilt_deg(up_in_body(wxyz), np.eye(3)["xyz".index(axis)]) < 0.1, name
                # The states overlap the floor by up to 2 cm; being pushed out must not throw an object aside.
                np.testing.assert_allclose(position[:2], start[address : address + 2], atol=1e-3, err_msg=name)
            assert not stand_still(env, 40)["success"]
            for name, (position, _) in env.object_poses().items():
                np.testing.assert_allclose(position, rest[name][0], atol=1e-4, err_msg=name)  # creep
    finally:
        env.close()


@pytest.mark.skipif(not OFFICIAL_ASSETS.is_dir(), reason="LIBERO's own assets are not at ../shared/libero_assets")
@pytest.mark.parametrize("task", [0, 8])  # together they hold every object of the suite
def test_objects_rest_and_weigh_as_with_libero_s_own_assets(task: int):
    ours, theirs = open_env(task), open_env(task, OFFICIAL_ASSETS)
    try:
        models = [env._model for env in (ours, theirs)]
        assert [m.nq for m in models] == [58, 58]
        assert [m.nv for m in models] == [51, 51]
        joints, their_joints = ([m.joint(j).name for j in range(m.njnt)] for m in models)
        assert joints == their_joints
        for state in (0, 33):
            for env in (ours, theirs):
                env.reset(options={"init_state": state})
                stand_still(env, 40)
            poses = theirs.object_poses()
            for name, (position, wxyz) in ours.object_poses().items():
                # Measured over all states: 0.93 mm and 0.38 degrees at most, the soup, whose own hull stands askew.
                np.testing.assert_allclose(position, poses[name][0], atol=1.5e-3, err_msg=name)
                assert tilt_deg(up_in_body(wxyz), up_in_body(poses[name][1])) < 0.5, name
        for name in ours.objects:
            mass, their_mass = (float(m.body(f"{name}_main").mass[0]) for m in models)
            assert mass == pytest.approx(their_mass, rel=0.01), name
    finally:
        ours.close()
        theirs.close()


@pytest.mark.parametrize("task", [1, 7])  # a flat box and the tallest carton
def test_an_object_dropped_into_the_basket_stays_there_and_counts_as_success(task: int):
    env = open_env(task)
    try:
        env.reset(options={"init_state": 0})
        basket = env.object_poses()["basket_1"][0]
        joint = env._data.joint(f"{env.target_object}_joint0")
        joint.qpos[:3] = [*basket[:2], basket[2] + 0.25]  # 10 cm above the rim
        joint.qvel[:] = 0.0
        assert not env._env._check_success()
        for _ in range(40):
            env._stepper.step(SETTLE_ACTION)
        assert env._env._check_success()
        away = env.object_poses()[env.target_object][0] - env.object_poses()["basket_1"][0]
        # Inside: within the walls (6.2 cm from the centre), above the bottom (2 cm), below the rim (14.6 cm).
        assert abs(away[0]) < 0.062
        assert abs(away[1]) < 0.062
        assert 0.02 < away[2] < 0.146
        np.testing.assert_allclose(env.object_poses()["basket_1"][0], basket, atol=0.01)  # it was not knocked over
    finally:
        env.close()


def test_colours_are_told_apart_easily():
    colours = {row.name: np.array(row.colour) for row in OBJECTS} | {"floor": np.array([0.5, 0.5, 0.52])}
    assert len(colours) == 12
    for first, second in itertools.combinations(colours, 2):
        # 0.35 of the unit RGB cube is 90 grey levels: more than shading changes.
        assert np.linalg.norm(colours[first] - colours[second]) > 0.35, (first, second)


def test_writing_again_changes_nothing(tmp_path: Path):
    folder = write_assets(tmp_path / "assets")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_assets(folder) == folder == tmp_path / "assets"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    # 16 objects, 3 pieces of furniture, 2 scenes, 2 textures
    assert len([path for path in before if path.is_file()]) == 23


def test_the_default_folder_is_named_after_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = write_assets()
    assert folder.parent == tmp_path / "vla_rl"
    assert folder.name.startswith("standin-")
    assert len(folder.name) == len("standin-") + 12


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="delete it"):
        write_assets(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}-*"))


def test_processes_that_write_at_once_agree(tmp_path: Path):
    folder = tmp_path / "assets"
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(write_assets, [folder] * 16)) == [folder] * 16
    assert [path.name for path in tmp_path.iterdir()] == ["assets"]  # nothing half-written is left beside it
