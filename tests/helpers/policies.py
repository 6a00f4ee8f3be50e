"""Small policies of the OpenVLA-OFT classes, the golden sets' weights, and what policies are asked."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from vla_rl.policy.openvla_oft.tiny import random_policy
from vla_rl.types import ChunkBatch, Observation, Trajectory

GOLDEN_SETS = sorted((Path(__file__).parents[1] / "golden").glob("openvla_oft_*"))
GOLDEN = GOLDEN_SETS[0].with_name("openvla_oft_tiny")
INSTRUCTIONS = (
    "pick up the alphabet soup and place it in the basket",
    "turn on the stove and put the moka pot on it",
    "put the bowl on the plate",
)


def golden_weight(key, shape, seed):
    """The formula of the golden outputs' README."""
    rng = np.random.RandomState((int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) + seed) % 2**32)
    weight = rng.standard_normal(shape).astype("float32")
    scales = ("norm.weight", "layernorm.weight", "scale_factor")
    is_scale = key.endswith(scales) or "norm1.weight" in key or "norm2.weight" in key
    return torch.from_numpy((1 + 0.1 * weight if is_scale else 0.08 * weight).astype("float32"))


def make_tiny_policy():
    """A small policy with statistics, and weights large enough that its answers depend on everything it reads."""
    policy = random_policy(seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in policy.parameters():
        if parameter.dim() > 1:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    command_TA = torch.rand(200, 7, generator=generator) * 2 - 1
    policy.fit_normalisation("libero_test", command_TA, torch.randn(200, 8, generator=generator))
    return policy


def make_observation(rows):
    generator = torch.Generator().manual_seed(rows)
    return Observation(
        frame_NHWC=torch.randint(0, 256, (rows, 128, 128, 3), dtype=torch.uint8, generator=generator),
        proprio_NP=torch.randn(rows, 8, generator=generator),
        instruction_N=[INSTRUCTIONS[n % len(INSTRUCTIONS)] for n in range(rows)],
    )


def row(observation, n):
    return Observation(
        observation.frame_NHWC[n : n + 1], observation.proprio_NP[n : n + 1], observation.instruction_N[n : n + 1]
    )


def batch_of(observation, chunk):
    """The rows that were acted on, as training sees them: one trajectory per row."""
    trajectories = [
        Trajectory(
            episode=None,
            instruction=observation.instruction_N[n],
            frame_NHWC=observation.frame_NHWC[n : n + 1],
            proprio_NP=observation.proprio_NP[n : n + 1],
            actions=chunk.rows(slice(n, n + 1)),
            gripper_closed_NL=chunk.command_NLA[n : n + 1, :, -1] > 0,
            executed_N=torch.tensor([8]),
            success=True,
            reward=1.0,
        )
        for n in range(len(chunk))
    ]
    return ChunkBatch.from_trajectories(trajectories)
