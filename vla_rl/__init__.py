"""Reinforcement-learning post-training of vision-language-action policies in simulation, on Lightning.

The names below are the public ones: they keep their place when modules move, and `_target_` in a config uses them.
Each is imported when it is first used.
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import TYPE_CHECKING

from vla_rl.lazy import lazy_names

if TYPE_CHECKING:
    from vla_rl.config.compose import compose as compose
    from vla_rl.config.schema import Config as Config
    from vla_rl.distributed.strategies import FSDP2 as FSDP2
    from vla_rl.errors import RunError as RunError
    from vla_rl.errors import UserError as UserError
    from vla_rl.policy.flow.load import load_flow_policy as load_flow_policy
    from vla_rl.policy.flow.policy import FlowPolicy as FlowPolicy
    from vla_rl.policy.openvla_oft.load import load_policy as load_policy
    from vla_rl.policy.openvla_oft.policy import OpenVLAOFTPolicy as OpenVLAOFTPolicy
    from vla_rl.rollout.callback import RolloutCallback as RolloutCallback
    from vla_rl.rollout.datamodule import RolloutDataModule as RolloutDataModule
    from vla_rl.sim.libero.pool import LiberoPool as LiberoPool
    from vla_rl.sim.maniskill.pool import ManiSkillPool as ManiSkillPool
    from vla_rl.sim.metaworld.pool import MetaWorldPool as MetaWorldPool
    from vla_rl.training.grpo_module import GRPOModule as GRPOModule
    from vla_rl.training.loggers import wandb_logger as wandb_logger
    from vla_rl.training.sft_module import SFTModule as SFTModule
    from vla_rl.types.nouns import ActionChunk as ActionChunk
    from vla_rl.types.nouns import ChunkBatch as ChunkBatch
    from vla_rl.types.nouns import Episode as Episode
    from vla_rl.types.nouns import Observation as Observation
    from vla_rl.types.nouns import RolloutGroup as RolloutGroup
    from vla_rl.types.nouns import Trajectory as Trajectory
    from vla_rl.types.protocols import Actor as Actor
    from vla_rl.types.protocols import Policy as Policy
    from vla_rl.types.protocols import SimulatorPool as SimulatorPool
    from vla_rl.types.protocols import SupervisedPolicy as SupervisedPolicy

MODULES = {  # public name -> where it is defined
    "compose": "vla_rl.config.compose",
    "Config": "vla_rl.config.schema",
    "FSDP2": "vla_rl.distributed.strategies",
    "RunError": "vla_rl.errors",
    "UserError": "vla_rl.errors",
    "FlowPolicy": "vla_rl.policy.flow.policy",
    "load_flow_policy": "vla_rl.policy.flow.load",
    "load_policy": "vla_rl.policy.openvla_oft.load",
    "OpenVLAOFTPolicy": "vla_rl.policy.openvla_oft.policy",
    "RolloutCallback": "vla_rl.rollout.callback",
    "RolloutDataModule": "vla_rl.rollout.datamodule",
    "LiberoPool": "vla_rl.sim.libero.pool",
    "ManiSkillPool": "vla_rl.sim.maniskill.pool",
    "MetaWorldPool": "vla_rl.sim.metaworld.pool",
    "GRPOModule": "vla_rl.training.grpo_module",
    "wandb_logger": "vla_rl.training.loggers",
    "SFTModule": "vla_rl.training.sft_module",
    "ActionChunk": "vla_rl.types.nouns",
    "Actor": "vla_rl.types.protocols",
    "ChunkBatch": "vla_rl.types.nouns",
    "Episode": "vla_rl.types.nouns",
    "Observation": "vla_rl.types.nouns",
    "Policy": "vla_rl.types.protocols",
    "RolloutGroup": "vla_rl.types.nouns",
    "SimulatorPool": "vla_rl.types.protocols",
    "SupervisedPolicy": "vla_rl.types.protocols",
    "Trajectory": "vla_rl.types.nouns",
}

__all__ = [*MODULES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = metadata.version("vla-rl")
__getattr__, __dir__ = lazy_names(__name__, MODULES)

# OpenMP threads wait for each other in a busy loop of seconds by default. On a machine with other work to do, two
# threads then take their cores from each other: forward and backward of the small policy took 0.20 s on quiet cores
# and 1.48 s beside three busy processes; with this value 0.20 s and 0.67 s. libgomp reads it when torch is imported.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
    os.environ["GOMP_SPINCOUNT"] = "1000"
