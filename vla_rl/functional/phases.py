"""The phases of an episode as pure functions, from what was executed alone, never from the outcome.

PCM, "Learn Where Outcomes Diverge", arXiv 2605.16154. Shapes: see `vla_rl.types`, and
    F  phases, in the order of `PHASES`

A labeller maps a trajectory to the phase of each of its chunks. `LABELLERS` has those that ship; one of your own is a
function marked with `labels(...)`.

Where the default leaves the paper's letter, and why: `pre_grasp` is positional (`pre_lo` = 0). With a binary gripper
and 8-step chunks the paper's 0.1 (`gripper_strict`) leaves at most one such chunk per closure, while its own Fig 6
shows 3 to 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor

from vla_rl.types import Trajectory, executed_mask

PHASES = ("approach", "pre_grasp", "active_grip", "release_ramp", "tail")
APPROACH, PRE_GRASP, ACTIVE_GRIP, RELEASE_RAMP, TAIL = range(len(PHASES))

SUSTAINED = 0.75  # close fraction of a chunk inside a sustained grip
CLOSED = 0.5  # close fraction from which a chunk counts as gripping
REACH = 3  # chunks before and after a sustained grip that belong to it


def gripper_fraction(gripper_closed_NL: Tensor, executed_N: Tensor) -> Tensor:
    """The share of each chunk's executed steps that command the gripper to close.

    Args:
        gripper_closed_NL: bool, the command closes; steps that were not executed are ignored.
        executed_N: executed steps, at least 1.

    Returns:
        float32 [N] in [0, 1].
    """
    return (gripper_closed_NL & executed_mask(executed_N, gripper_closed_NL.shape[1])).sum(1) / executed_N


def label_phases(fraction_N: Tensor, pre_lo: float = 0.0) -> Tensor:
    """The phase of each chunk, from the executed gripper commands alone, never from the outcome (PCM section 4.1).

    Sustained grips are maximal runs of fraction >= 0.75. In order of priority:
        active_grip   fraction >= 0.5
        pre_grasp     within 3 chunks before a sustained grip, pre_lo <= fraction < 0.5
        release_ramp  within 3 chunks after one
        approach      a sustained grip comes later, or there is none at all
        tail          the rest

    Args:
        fraction_N: from `gripper_fraction`, one trajectory in order.
        pre_lo: 0 labels `pre_grasp` by position alone; the paper's text has 0.1.

    Returns:
        int64 [N], indices into `PHASES`.

    Example:
        >>> label_phases(torch.tensor([0.0, 0, 0, 0, 1, 1, 0])).tolist()
        [0, 1, 1, 1, 2, 2, 3]
    """
    chunks = len(fraction_N)
    sustained = [f >= SUSTAINED for f in fraction_N.tolist()]
    starts = [n for n in range(chunks) if sustained[n] and (n == 0 or not sustained[n - 1])]
    ends = [n for n in range(chunks) if sustained[n] and (n + 1 == chunks or not sustained[n + 1])]

    def label(n: int, fraction: float) -> int:
        if fraction >= CLOSED:
            return ACTIVE_GRIP
        if fraction >= pre_lo and any(0 < start - n <= REACH for start in starts):
            return PRE_GRASP
        if any(0 < n - end <= REACH for end in ends):
            return RELEASE_RAMP
        if not starts or n < starts[-1]:
            return APPROACH
        return TAIL

    return torch.tensor([label(n, f) for n, f in enumerate(fraction_N.tolist())], dtype=torch.int64)


def chunk_action(action_NLA: Tensor, executed_N: Tensor) -> Tensor:
    """The mean normalised action over each chunk's executed steps, float [N, A]."""
    executed_NL = executed_mask(executed_N, action_NLA.shape[1])
    return (action_NLA * executed_NL[..., None]).sum(1) / executed_N[:, None]


class Labeller(Protocol):
    """What splits trajectories into phases."""

    phases: tuple[str, ...]  # names, in the order of the labels

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """The phase of each chunk, int64 [N] in [0, F)."""
        ...


def labels(*phases: str) -> Callable[[Callable[[Trajectory], Tensor]], Labeller]:
    """Marks a function as a labeller by naming its phases.

    Example:
        >>> @labels("early", "late")
        ... def halves(trajectory):
        ...     return torch.arange(len(trajectory)) * 2 // len(trajectory)
    """

    def mark(function: Callable[[Trajectory], Tensor]) -> Labeller:
        labeller = cast(Labeller, function)
        labeller.phases = phases
        return labeller

    return mark


@labels(*PHASES)
def trajectory_phases(trajectory: Trajectory) -> Tensor:
    """The default: phases of the grip."""
    return label_phases(gripper_fraction(trajectory.gripper_closed_NL, trajectory.executed_N))


@labels(*PHASES)
def gripper_strict(trajectory: Trajectory) -> Tensor:
    """Phases of the grip by the paper's letter: `pre_grasp` only where the gripper has begun to close."""
    return label_phases(gripper_fraction(trajectory.gripper_closed_NL, trajectory.executed_N), pre_lo=0.1)


@labels("time_1", "time_2", "time_3", "time_4", "time_5")
def time_quantile(trajectory: Trajectory) -> Tensor:
    """Fifths of the trajectory's chunks in time, whatever happens in them."""
    return torch.arange(len(trajectory)) * 5 // len(trajectory)


@labels("steady", "changing", "turning")
def action_change(trajectory: Trajectory) -> Tensor:
    """Thirds of the trajectory's chunks by how far their mean action is from that of the chunk before, least first."""
    action_NA = chunk_action(trajectory.actions.action_NLA, trajectory.executed_N)
    change_N = (action_NA - torch.cat([action_NA[:1], action_NA[:-1]])).norm(dim=1)
    rank_N = change_N.argsort(stable=True).argsort(stable=True)
    return rank_N * 3 // len(trajectory)


@labels("earlier", "3_before", "2_before", "1_before", "closing", "1_after", "2_after", "3_after", "later")
def grasp_time(trajectory: Trajectory) -> Tensor:
    """The chunk's distance from the first one that grips; a trajectory that never grips is `earlier` throughout."""
    gripping_N = gripper_fraction(trajectory.gripper_closed_NL, trajectory.executed_N) >= CLOSED
    if not gripping_N.any():
        return torch.zeros(len(trajectory), dtype=torch.int64)
    first = int(gripping_N.int().argmax())
    return (torch.arange(len(trajectory)) - first).clamp(-4, 4) + 4


LABELLERS: dict[str, Labeller] = {
    "gripper": trajectory_phases,
    "gripper_strict": gripper_strict,
    "time_quantile": time_quantile,
    "action_change": action_change,
    "grasp_time": grasp_time,
}
