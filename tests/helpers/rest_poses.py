"""Where LIBERO's objects come to rest, and what fulfils a task's goal: for stand-ins and for LIBERO's own assets alike.

`python -m tests.helpers.rest_poses FOLDER` measures all tasks of Spatial and Goal with LIBERO's own assets in FOLDER
and writes tests/golden/standin_rest.json, so that stand-ins can be compared where LIBERO's own are missing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from vla_rl.sim.libero.env import SETTLE_ACTION, LiberoEnv

GOLDEN = Path(__file__).parents[1] / "golden" / "standin_rest.json"
TASKS = [(suite, task) for suite in ("spatial", "goal") for task in range(10)]
STATES = (0, 40)  # in some others a bowl and the plate overlap, and are thrown apart differently each
REST_STEPS = 40  # control steps: 2 s

# The bottle on the rack, in the rack's frame: along the upper board's slope of 31.3 degrees, its bottom against
# the stopper, 4 cm beside the strut: its middle, 72 mm down the slope, 24.5 mm above it.
# Turned by -(90 - 31.3) degrees about x.
BOTTLE_ON_RACK_M = np.array([0.04, -0.0803, 0.2347])
BOTTLE_ON_RACK_WXYZ = np.array([0.8716, -0.4902, 0.0, 0.0])


def open_env(suite: str, task: int, assets: str | Path) -> LiberoEnv:
    return LiberoEnv(suite, task, assets=assets, camera_px=16, settle_steps=10)


def stand_still(env: LiberoEnv, steps: int = REST_STEPS) -> bool:
    """Let `steps` control steps pass, and return whether the goal was fulfilled at the end."""
    for _ in range(steps):
        env._stepper.step(SETTLE_ACTION)
    return bool(env._env._check_success())


def furniture(env: LiberoEnv) -> dict[str, list[float]]:
    """name -> position and wxyz of every fixture; joint name -> [value] of everything on it that moves."""
    model, data = env._model, env._data
    bodies = {name: model.body(env._env.obj_body_id[name]) for name in env._env.fixtures_dict}
    poses = {name: [*body.pos.tolist(), *body.quat.tolist()] for name, body in bodies.items()}
    joints = [joint for fixture in env._env.fixtures_dict.values() for joint in fixture.joints]
    return poses | {joint: data.joint(joint).qpos.tolist() for joint in joints}


def rest_poses(env: LiberoEnv, state: int) -> dict[str, list[float]]:
    """Everything that lies or stands about, 2 s after the official initial state: see `furniture`; objects alike."""
    env.reset(options={"init_state": state})
    assert not stand_still(env), "the goal is fulfilled from the start"
    poses = {name: [*position.tolist(), *wxyz.tolist()] for name, (position, wxyz) in env.object_poses().items()}
    return poses | furniture(env)


# --------------------------------------------------------------------------------------------------------------- goals


def fulfil_goal(env: LiberoEnv) -> None:
    """Put objects, drawers and the knob where the task wants them, a millimetre or so above where they will rest."""
    (goal,) = env._env.parsed_problem["goal_state"]
    predicate, subject, place = goal[0], goal[1], goal[-1]
    if predicate == "open":
        _set_joint(env, subject.replace("region", "level"), -0.15)
    elif predicate == "turnon":
        _set_joint(env, f"{subject}_button", 1.0)
    elif place.startswith("wine_rack"):
        _lay_bottle_on_rack(env, subject)
    else:
        _put(env, subject, _above(env, predicate, place))


def _above(env: LiberoEnv, predicate: str, place: str) -> np.ndarray:
    if place in env.objects:
        # In m above the plate's origin, and a thumb's width above the bowl's bottom, from where it falls.
        return env.object_poses()[place][0] + [0.0, 0.0, 0.005 if place == "plate_1" else 0.04]
    if predicate == "in":
        _set_joint(env, place.replace("region", "level"), -0.16)
    # Where a bowl's, plate's or bottle's origin is when it rests: a drawer's floor lies below its region's centre.
    height_m = {"top_region": -0.026, "cook_region": 0.026, "top_side": 0.002, "stove_front_region": -0.01}
    height = next(h for name, h in height_m.items() if place.endswith(name))
    return env._data.site(place).xpos + np.array([0, 0, height])


def _lay_bottle_on_rack(env: LiberoEnv, bottle: str) -> None:
    import mujoco

    rack = env._data.body(env._env.obj_body_id["wine_rack_1"])
    wxyz = np.zeros(4)
    mujoco.mju_mulQuat(wxyz, rack.xquat, BOTTLE_ON_RACK_WXYZ)
    _put(env, bottle, rack.xpos + rack.xmat.reshape(3, 3) @ BOTTLE_ON_RACK_M, wxyz)


def _put(env: LiberoEnv, name: str, position: np.ndarray, wxyz: np.ndarray | None = None) -> None:
    joint = env._data.joint(f"{name}_joint0")
    address = 1 + int(env._model.joint(joint.name).qposadr[0])  # the state begins with the time
    upright = env._states[0][address + 3 : address + 7]  # a bowl on the ramekin may lean by now
    joint.qpos[:] = [*position, *(upright if wxyz is None else wxyz)]
    joint.qvel[:] = 0.0
    env._env.sim.forward()


def _set_joint(env: LiberoEnv, name: str, value: float) -> None:
    env._data.joint(name).qpos[0] = value
    env._env.sim.forward()


def main(folder: str) -> None:
    poses: dict[str, dict[str, dict[str, list[float]]]] = {}
    for suite, task in TASKS:
        env = open_env(suite, task, folder)
        poses[f"{suite} {task}"] = {str(state): rest_poses(env, state) for state in STATES}
        fulfil_goal(env)
        print(suite, task, "goal", stand_still(env, 10), flush=True)
        env.close()
    rounded = json.loads(json.dumps(poses), parse_float=lambda text: round(float(text), 5))
    GOLDEN.write_text(json.dumps(rounded, indent=0, separators=(",", ":")))


if __name__ == "__main__":
    main(sys.argv[1])
