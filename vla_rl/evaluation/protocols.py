"""Evaluation protocols as data: what each published LIBERO evaluation fixes, and our own held-out one.

Success rates compare within one protocol alone: horizons, decoding and initial states move them by tens of points.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from vla_rl.errors import UserError, did_you_mean

OFFICIAL = (0, 50)  # half-open range of a task's official initial states, in the order of LIBERO's file
# how all published evaluations draw: LIBERO's own meshes, the robot in full
AS_PUBLISHED = {"camera_px": 256, "robot_geoms": "visual"}


@dataclass(frozen=True, slots=True)
class Protocol:
    """What an evaluation fixes; None leaves a value to the conf."""

    decoding: str  # greedy: the most probable action; sampled
    source: str  # where the rules were read
    horizon: Mapping[str, int] | None = None  # control steps after which an episode has failed, by suite
    settle_steps: int | None = None  # idle control steps before the first decision
    init_states: tuple[int, int] | None = None  # half-open range of every task's initial states
    temperature: float | None = None  # of sampling
    window: int | None = None  # control steps executed of each chunk; None = all
    as_published: Mapping[str, Any] = field(default_factory=lambda: AS_PUBLISHED)  # values of `sim` it was run with


def _steps(spatial: int, object: int, goal: int, ten: int, ninety: int) -> dict[str, int]:
    return {"spatial": spatial, "object": object, "goal": goal, "10": ten, "90": ninety}


PROTOCOLS = {
    "heldout": Protocol(
        decoding="sampled",
        source="vla_rl.fit: the states that training leaves out, as it measures them before and after",
        as_published={},
    ),
    "oft": Protocol(
        decoding="greedy",
        source="moojink/openvla-oft, experiments/robot/libero/run_libero_eval.py",
        horizon=_steps(220, 280, 300, 520, 400),
        settle_steps=10,
        init_states=OFFICIAL,
    ),
    "simplevla": Protocol(
        decoding="greedy",
        source="PRIME-RL/SimpleVLA-RL, verl/workers/rollout/rob_rollout.py",
        horizon=_steps(512, 512, 512, 512, 512),
        settle_steps=10,
        init_states=OFFICIAL,  # its batches leave 4 of the 500 out; all are run here
    ),
    "rlinf": Protocol(
        decoding="sampled",  # of models after reinforcement learning; those before it are decoded greedily
        source="RLinf/RLinf, rlinf/envs/libero/libero_env.py",
        horizon=_steps(512, 512, 512, 512, 512),
        settle_steps=15,
        init_states=OFFICIAL,
        temperature=1.6,
    ),
    "openpi": Protocol(
        decoding="greedy",
        source="Physical-Intelligence/openpi, examples/libero/main.py",
        horizon=_steps(220, 280, 300, 520, 400),
        settle_steps=10,
        init_states=OFFICIAL,
        window=5,
    ),
    "lerobot": Protocol(
        decoding="greedy",
        source="huggingface/lerobot, src/lerobot/envs/libero.py",
        horizon=_steps(280, 280, 300, 520, 400),
        settle_steps=10,
        init_states=(0, 10),
    ),
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name; raises UserError where there is none."""
    if name not in PROTOCOLS:
        hint = did_you_mean(name, PROTOCOLS)
        raise UserError(f"no protocol {name!r}{hint} Protocols: {', '.join(PROTOCOLS)} (protocol=heldout)")
    return PROTOCOLS[name]


def sim_values(name: str, suite: str, given: Collection[str]) -> dict[str, Any]:
    """The values of the `sim` node that the protocol fixes.

    Args:
        given: keys of the command line: those that the protocol fixes must not be among them.

    Raises:
        UserError: no such protocol, a suite it does not know, or a value given twice.
    """
    protocol = find_protocol(name)
    if protocol.horizon is None:
        return {}
    if suite not in protocol.horizon:
        raise UserError(
            f"protocol {name!r} has no horizon for suite {suite!r}; it knows {', '.join(protocol.horizon)}: "
            "protocol=heldout"
        )
    fixed = {"horizon": protocol.horizon[suite], "settle_steps": protocol.settle_steps, "placement_noise_m": 0.0}
    for key, value in fixed.items():
        if f"sim.{key}" in given:
            raise UserError(
                f"protocol={name} fixes sim.{key}={value}: leave sim.{key} out, or keep your own rules with "
                "protocol=heldout"
            )
    return fixed


def departures(name: str, sim: Mapping[str, Any]) -> list[str]:
    """Why a result is not comparable with published ones: what was drawn otherwise, as `sim.camera_px=128 (256)`."""
    published = find_protocol(name).as_published
    found = [f"sim.{key}={sim[key]} ({value})" for key, value in published.items() if sim.get(key, value) != value]
    if published and sim.get("assets") == "standin":
        found.append("sim.assets=standin (LIBERO's own)")
    if published and sim.get("perturb"):
        found.append(f"sim.perturb={sim['perturb']} (none)")
    return found
