"""Strategies by name; what they do is in integration/test_ranks.py."""

from datetime import timedelta

import lightning as L
import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.helpers.toy_fit import Fork, start_ranks
from vla_rl.distributed.parameters import full_state
from vla_rl.distributed.strategies import DDP, FSDP2, pick_strategy, shard
from vla_rl.errors import UserError


def test_several_processes_are_ddp_unless_something_else_is_said():
    assert pick_strategy("auto", 1, 1) == "auto"
    for name, devices, nodes in (("auto", 2, 1), ("auto", 1, 2), ("ddp", 1, 1)):
        assert isinstance(pick_strategy(name, devices, nodes), DDP)
    assert isinstance(pick_strategy("fsdp2", 2, 1), FSDP2)


def test_fsdp2_loads_no_checkpoint_that_lacks_a_trained_tensor(tmp_path):
    strategy, module = FSDP2(), L.LightningModule()
    module.policy = nn.Linear(2, 2)
    strategy._lightning_module = module
    torch.save({"state_dict": {"policy.bias": torch.zeros(2)}, "optimizer_states": []}, tmp_path / "one.ckpt")
    with pytest.raises(UserError, match=r"lacks 1 of 2 trained tensors \(policy.weight\): resume from another"):
        strategy.load_checkpoint(tmp_path / "one.ckpt")
    module.policy.weight.requires_grad = False  # frozen ones are not in checkpoints
    with pytest.raises(ValueError, match="distributed model"):  # of Lightning, which nobody has set up here
        strategy.load_checkpoint(tmp_path / "one.ckpt")


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_processes_have_minutes_to_come_and_hours_for_a_collective(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")

    def alone() -> None:
        strategy = pick_strategy(name, 1, 1)
        assert strategy._timeout == timedelta(minutes=10)
        trainer = L.Trainer(
            strategy=strategy, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        strategy.connect(L.LightningModule())
        trainer.strategy.setup_environment()
        groups = list(dist.distributed_c10d._world.pg_map)
        assert groups
        for group in groups:
            assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(hours=12)
        assert dist.distributed_c10d._get_default_store().timeout == timedelta(hours=12)

    program = Fork(alone, tmp_path)
    assert program.wait() == 0, program.errors


def test_a_process_that_nobody_starts_is_waited_for_in_vain(tmp_path, monkeypatch):
    monkeypatch.setattr("vla_rl.distributed.strategies.START_TIMEOUT", timedelta(seconds=1.2))
    programs = start_ranks(tmp_path / "run", 2, start=1)
    assert programs[0].wait(60) == 1
    (line,) = [line for line in programs[0].errors.splitlines() if line.startswith("error: ")]
    assert "the 2 processes of this run have not found each other within 0.02 minutes (" in line
    assert line.endswith("or fewer: trainer.devices=1 trainer.num_nodes=1")


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
