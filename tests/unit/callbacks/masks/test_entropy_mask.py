"""Masks by the policy's own uncertainty."""

import pytest
import torch

from callbacks.masks.entropy_mask import EntropyMask
from tests.helpers.make import DIMS, STEPS, MadeData, make_trajectory
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.errors import UserError


def test_entropy_keeps_the_least_sure():
    trajectory = make_trajectory([0] * 4, last_steps=2)
    trajectory.actions.entropy_NLA = torch.tensor([1.0, 2.5, 2.0, 3.0])[:, None, None].expand(-1, STEPS, DIMS)
    mask = EntropyMask(budget=2)
    mask.data = MadeData()
    assert mask.choose(trajectory, seeded_generator(0)).tolist() == [1, 3]
    assert mask.inclusion(trajectory).tolist() == [0, 1, 0, 1]
    assert EntropyMask(budget=9).choose(trajectory, seeded_generator(0)).tolist() == [0, 1, 2, 3]


def test_a_policy_whose_entropy_is_a_constant_is_refused():
    data = MadeData()
    EntropyMask(budget=2).check_run(data, [])
    data.policy.learns_entropy = False
    with pytest.raises(UserError, match="^the entropy of this policy is set by its noise, .*: mask=random, or"):
        EntropyMask(budget=2).check_run(data, [])
