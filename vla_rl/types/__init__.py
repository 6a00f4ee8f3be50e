"""The data nouns and the protocols every part of `vla_rl` speaks. Imports only torch and the standard library.

Shape legend, used as suffixes throughout the project:
    N  rows: the chunks (decisions) of one trajectory, or of one batch
    L  control steps in a chunk (8 for OpenVLA-OFT on LIBERO)
    A  action dimensions (7: xyz, axis-angle, gripper)
    P  proprioception (8: end-effector xyz, axis-angle, two gripper joints)
    H, W, C  image rows, columns, channels (uint8, as the simulator renders them)

What flows: `Episode` (planned) -> `Trajectory` (happened) -> `RolloutGroup` (unit of the advantage)
-> `ChunkBatch` (flat rows, one row = one action chunk; what one optimizer step on one rank trains on).
"""

from vla_rl.types.nouns import (
    ActionChunk,
    ChunkBatch,
    Decision,
    Episode,
    Observation,
    RolloutGroup,
    Trajectory,
    executed_mask,
)
from vla_rl.types.protocols import Actor, Policy, SimulatorPool, SlotEvent, SupervisedPolicy

__all__ = [
    "ActionChunk",
    "Actor",
    "ChunkBatch",
    "Decision",
    "Episode",
    "Observation",
    "Policy",
    "RolloutGroup",
    "SimulatorPool",
    "SlotEvent",
    "SupervisedPolicy",
    "Trajectory",
    "executed_mask",
]
