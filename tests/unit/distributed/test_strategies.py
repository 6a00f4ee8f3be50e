"""Strategies by name; what they do is in integration/test_ranks.py."""

from datetime import timedelta

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from vla_rl.distributed.parameters import full_state
from vla_rl.distributed.strategies import FSDP2, pick_strategy, shard
from vla_rl.errors import UserError


def test_several_processes_are_ddp_unless_something_else_is_said():
    assert pick_strategy("auto", 1, 1) == "auto"
    for name, devices, nodes in (("auto", 2, 1), ("auto", 1, 2), ("ddp", 1, 1)):
        assert isinstance(pick_strategy(name, devices, nodes), DDPStrategy)
    assert isinstance(pick_strategy("fsdp2", 2, 1), FSDP2)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_ranks_wait_for_hours(name):
    assert pick_strategy(name, 2, 1)._timeout == timedelta(hours=12)


def test_an_unknown_strategy_is_named_with_what_there_is():
    with pytest.raises(UserError, match=r"no strategy named 'dpp'; did you mean 'ddp'\?.*\(trainer.strategy=ddp\)"):
        pick_strategy("dpp", 2, 1)


def test_quantised_weights_are_refused():
    policy = nn.Linear(2, 2)
    policy.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UserError, match="trainer.strategy=ddp, or policy.quantization=null"):
        shard(policy, mesh=None)


def test_a_policy_that_is_not_sharded_has_its_own_state():
    policy = nn.Linear(2, 2)
    assert full_state(policy)["weight"].data_ptr() == policy.weight.data_ptr()
