"""`LiberoPool`: real simulators give the same trajectories whatever happens to them, and wrong options are refused."""

from __future__ import annotations

import shutil
import signal

import pytest
import torch

from tests.integration.sim.test_pool import assert_same, episode, play, signaller
from vla_rl.errors import UserError
from vla_rl.sim.libero.pool import LiberoPool
from vla_rl.sim.libero.standin.write import write_assets


def libero_pool(workers: int) -> LiberoPool:
    return LiberoPool(tasks=[0, 5], horizon=24, camera_px=64, workers=workers)


def test_libero_trajectories_do_not_depend_on_workers_order_or_faults():
    episodes = [episode(uid, task, uid // 2) for uid, task in enumerate([0, 5, 0, 5])]
    with libero_pool(1) as pool:
        expected = play(pool, episodes)
    with libero_pool(2) as pool:
        found = play(pool, episodes[::-1], signaller(pool, signal.SIGKILL, 2))[::-1]
        assert pool.restarts == 1
    assert [len(steps) for steps in expected] == [4] * 4  # the start, and 24 steps in chunks of 8
    assert all(steps[3][1][:3].sub(steps[0][1][:3]).norm() > 0.01 for steps in expected)  # the hand has moved (m)
    assert not torch.equal(expected[0][0][1], expected[2][0][1])  # another initial state
    assert_same(found, expected)


def test_libero_pool_knows_its_suite():
    with LiberoPool(chunk_steps=10) as pool:
        assert pool.pids == []
        assert (pool.suite, pool.tasks, pool.horizon, pool.chunk_steps) == ("object", list(range(10)), 280, 10)
        assert pool.max_chunks == 28
        assert pool.slots >= 1
        assert pool.task_languages[9] == "pick up the orange juice and place it in the basket"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite": "objct"}, "no LIBERO suite 'objct'; did you mean 'object'.*sim.suite=object"),
        ({"tasks": [0, 10]}, r"no task 10; allowed: 0..9; e.g. sim.tasks=\[0,5\]"),
        ({"tasks": []}, r"at least one task and none twice, got \[\]: sim.tasks=\[0,5\]"),
        ({"tasks": [3, 3]}, r"none twice, got \[3, 3\]"),
        ({"assets": "/nowhere"}, "'/nowhere' does not exist.*sim.assets=standin"),
        ({"workers": -1}, r">= 0, got -1 \(sim.workers=2\)"),
        ({"workers": 1.5}, r">= 0, got 1.5 \(sim.workers=2\)"),
        ({"horizon": 7}, r"sim.horizon must be an integer >= 8, got 7 \(sim.horizon=280\)"),
        ({"chunk_steps": 0}, r">= 1, got 0 \(sim.chunk_steps=8\)"),
        ({"settle_steps": -1}, r">= 0, got -1 \(sim.settle_steps=10\)"),
        ({"camera_px": True}, r">= 16, got True \(sim.camera_px=128\)"),
        ({"placement_noise_m": -0.01}, "sim.placement_noise_m must be a number >= 0 and < 0.2, got -0.01"),
        ({"placement_noise_m": float("nan")}, r"got nan \(sim.placement_noise_m=0.03\)"),
        ({"timeout_s": 0}, r">= 0.1, got 0 \(sim.timeout_s=120\)"),
        (
            {"robot_geoms": "mesh"},
            r"no robot_geoms named 'mesh'. Choices: collision, visual",
        ),
        ({"stepping": "fast"}, "no stepping named 'fast'. Choices: lean, stock"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        LiberoPool(**options)


@pytest.mark.parametrize("file", ["stable_hope_objects/milk/milk.xml", "textures/light-gray-floor-tile.png"])
def test_a_file_missing_in_the_assets_is_named(file, tmp_path):
    assets = shutil.copytree(write_assets(), tmp_path / "assets")
    (assets / file).unlink()
    with LiberoPool(tasks=[0], assets=str(assets), workers=1) as pool:
        pool.start(0, episode(0, 0, 0))
        with pytest.raises(UserError, match=f"{tmp_path}/assets' has no {file}, which task 0 of suite 'object' needs"):
            pool.wait()


def test_default_workers_are_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr("vla_rl.sim.pool.cores", lambda: 3)
    with LiberoPool() as pool:
        assert pool.slots == 3
