"""Variables of launchers: which processes are ranks, what is left over, and how many were started."""

from __future__ import annotations

import os

import pytest

from vla_rl.errors import UserError
from vla_rl.run.launch import OTHERS, RANKS, check_rank_variables, check_world, launcher

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
SRUN = {"SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}
BY_HAND = {"MASTER_ADDR": "127.0.0.1", "NODE_RANK": "1", "WORLD_SIZE": "2"}


@pytest.fixture
def environment(monkeypatch):
    """Sets these of a launcher's variables and no others."""
    for name in (*RANKS, *OTHERS, "TORCHELASTIC_RUN_ID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    return lambda variables: [monkeypatch.setenv(*item) for item in variables.items()]


@pytest.mark.parametrize(
    ("variables", "fix"),
    [
        ({"RANK": "1"}, "RANK=1 in the environment .* unset RANK$"),
        ({"LOCAL_RANK": "0"}, "unset LOCAL_RANK$"),
        ({"NODE_RANK": "1"}, "unset NODE_RANK$"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "unset LOCAL_RANK WORLD_SIZE$"),
        ({"SLURM_JOB_NAME": "interactive", "SLURM_NTASKS": "4", "RANK": "1"}, "unset RANK$"),
    ],
)
def test_what_is_left_over_is_named(environment, variables, fix):
    environment(variables)
    with pytest.raises(UserError, match=fix):
        check_rank_variables(by_lightning=False)


@pytest.mark.parametrize(
    ("variables", "by"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"SLURM_JOB_NAME": "interactive", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        (TORCHRUN, "torchrun"),
        (SRUN | {"SLURM_NTASKS": "4"}, "srun"),
        (BY_HAND, "you"),
    ],
)
def test_ranks_and_single_processes_are_left_alone(environment, variables, by):
    environment(variables)
    check_rank_variables(by_lightning=False)
    assert launcher() == by


def test_a_rank_that_lightning_has_started(environment):
    environment({"LOCAL_RANK": "1", "WORLD_SIZE": "2"})
    check_rank_variables(by_lightning=True)


def test_empty_variables_are_as_none(environment):
    environment(dict.fromkeys((*RANKS, *OTHERS), ""))
    check_rank_variables(by_lightning=False)
    assert not {*RANKS, *OTHERS} & os.environ.keys()


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "message"),
    [
        (SRUN | {"SLURM_NTASKS": "1"}, 2, 1,
         r"^SLURM has 1 process \(SLURM_NTASKS\), but trainer.devices=2 on trainer.num_nodes=1 asks for 2: "
         r"srun --ntasks=2, or trainer.devices=1, or without srun: unset SLURM_NTASKS$"),
        (SRUN | {"SLURM_NTASKS": "16"}, 4, 2, "has 16 processes .* asks for 8: srun --ntasks=8, or trainer.devices=8"),
        (TORCHRUN, 2, 1, "torchrun has started 4 processes .* torchrun --nproc-per-node 2, or trainer.devices=4$"),
        (BY_HAND, 1, 1, r"the environment has 2 processes \(WORLD_SIZE\), .* unset WORLD_SIZE, or trainer.devices=2$"),
    ],
)  # fmt: skip
def test_another_number_of_processes_than_asked_for(environment, variables, devices, nodes, message):
    environment(variables)
    with pytest.raises(UserError, match=message):
        check_world(devices, nodes)


@pytest.mark.parametrize(
    ("variables", "devices", "nodes"),
    [({}, 2, 1), (TORCHRUN, 4, 1), (TORCHRUN, 2, 2), (SRUN | {"SLURM_NTASKS": "8"}, 4, 2), (BY_HAND, 1, 2)],
)
def test_the_number_that_was_asked_for(environment, variables, devices, nodes):
    environment(variables)
    check_world(devices, nodes)
