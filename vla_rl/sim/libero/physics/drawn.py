"""Initial states drawn as LIBERO draws them: every object, fixture and drawer in the region that the task's file names.

LIBERO draws while it compiles the model anew (`env.seed(i); env.reset()`, about a second). The same draws from the same
seed are made here in the model that there is, and give the same state, bit for bit.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from vla_rl.errors import UserError

ATTEMPTS = 20  # of drawing one state; each tries 5,000 places for every object


class RegionSampler:
    """Draws initial states of one task.

    Args:
        robosuite_env: freshly reset.
    """

    def __init__(self, robosuite_env: Any) -> None:
        self._env = robosuite_env
        self._reset_state = robosuite_env.sim.get_state().flatten()
        bodies = {body.get("name"): body for body in robosuite_env.model.worldbody.iter("body")}
        self._compiled = {  # where fixtures stand before they are placed: LIBERO reads their regions there
            robosuite_env.sim.model.body_name2id(fixture.root_body): tuple(
                np.array(bodies[fixture.root_body].get(name, default).split(), float)
                for name, default in (("pos", "0 0 0"), ("quat", "1 0 0 0"))
            )
            for fixture in robosuite_env.fixtures_dict.values()
        }

    def draw(self, seed: int) -> np.ndarray:
        """float64 [1 + nq + nv], a function of the task's file and the seed alone. Fixtures are moved in the model.

        Raises:
            UserError: the seed is negative, or the objects do not fit into their regions.
        """
        from robosuite.utils.errors import RandomizationError

        if seed < 0:
            raise UserError(f"a placement's seed must not be negative, not {seed}; e.g. init_state=0")
        generator = np.random.get_state()  # LIBERO draws from numpy's global one
        np.random.seed(seed)
        np.random.randn(len(self._env.robots[0].init_qpos))  # a reset draws them first: noise of the arm, times 0
        try:
            for _ in range(ATTEMPTS):
                try:
                    return self._draw()
                except RandomizationError:
                    pass
        finally:
            np.random.set_state(generator)
        raise UserError(
            f"the objects of {self._env.bddl_file_name} do not fit into their regions without overlap, in {ATTEMPTS} "
            "attempts: make the regions larger, or put a file of initial states beside it"
        )

    def _draw(self) -> np.ndarray:
        env = self._env
        model, data = env.sim.model, env.sim.data
        mujoco.mj_resetData(model._model, data._data)
        for body, (position_3, quaternion_4) in self._compiled.items():
            model.body_pos[body], model.body_quat[body] = position_3, quaternion_4
        openings = [
            (env.object_states_dict[sampler.name], sampler.sample()) for sampler in env.object_property_initializers
        ]
        _set(openings)
        mujoco.mj_kinematics(model._model, data._data)
        placements = env.placement_initializer.sample()
        placements = env.conditional_placement_initializer.sample(env.sim, placements)
        placements = env.conditional_placement_on_objects_initializer.sample(placements)
        env.sim.set_state_from_flattened(self._reset_state)
        _set(openings)
        for position_3, quaternion_4, thing in placements.values():
            if thing.name in env.fixtures_dict:
                body = model.body_name2id(thing.root_body)
                model.body_pos[body], model.body_quat[body] = position_3, quaternion_4
            else:
                data.set_joint_qpos(thing.joints[-1], np.concatenate([position_3, quaternion_4]))
        return env.sim.get_state().flatten()


def _set(openings: list[tuple[Any, float]]) -> None:
    for thing, position in openings:
        thing.set_joint(position)
