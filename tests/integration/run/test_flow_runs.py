"""Runs with a flow policy on the toy world: what runs with tokens runs with a flow."""

from __future__ import annotations

import json
import signal

import pytest
import torch

from tests.helpers import toy_fit
from tests.helpers.results import result, rows
from tests.integration.distributed.test_ranks import RECORD, kill_ranks, recorded, run_ranks

FLOW = [
    *("policy._target_=tests.helpers.flow.toy_flow_policy", "sim._target_=tests.helpers.toy.ChunkPool"),
    *("grpo.entropy_coef=0", "grpo.ratio=chunk", "reward._target_=tests.helpers.tiny_fit.EverySecond"),
    *("rollout.groups=3", "rollout.group_size=2", "mask.budget=1", "iterations=2", "optim.lr=0.001"),
    *("evaluation.sampled_episodes=1", "evaluation.greedy_episodes=1", "evaluation.every_iterations=0"),
]
NFT = ["grpo.loss=nft", "grpo.ratio=token"]
LEARNT = ["policy.noise=learnt", "grpo.entropy_coef=0.01"]
BESIDE = {
    "nft": [*NFT, "grpo.normalise_by=planned"],
    "the expert alone": ["policy.train=expert", "policy.dtype=bfloat16"],
    "asynchronous": ["rollout.asynchronous=true"],
    "windows": ["reward=policytrim", "reward.ratios=[0.5,1.0]", "reward.extend_iterations=2"],
    "a critic": ["grpo.advantage=gae", "grpo.group_filter=keep", "critic=head"],
    "another critic": ["grpo.advantage=gae", "grpo.group_filter=keep", "critic=separate", "critic.steps=5"],
    "score norm": ["callbacks.score._target_=callbacks.ScoreNorm", "callbacks.score.budget=1"],
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_it_runs_beside(tmp_path, name):
    beside = BESIDE[name]
    base = [a for a in FLOW if not (a.startswith("reward.") and any(b.startswith("reward=") for b in beside))]
    toy_fit.run(tmp_path / "run", *base, *beside)
    logged = rows(tmp_path / "run")
    assert len(logged) == 2
    assert all(row["chunks/kept"] > 0 for row in logged if row["train/optimizer_steps"])
    assert all(value == value for row in logged for value in row.values())
    # the rollouts' batches had other rows, in float32; what the small bfloat16 prefix rounds is seen by both
    first = "train/first_velocity_change_abs" if NFT[0] in beside else "train/first_log_ratio_abs"
    assert logged[0][first] < 1e-3
    assert json.loads((tmp_path / "run" / "policy" / "config.json").read_text())["type"] == "pi05"


@pytest.mark.parametrize("options", [[], NFT, LEARNT], ids=["clipped", "nft", "learnt noise"])
def test_killed_and_resumed_is_uninterrupted(tmp_path, options):
    few = [*FLOW, *options]
    toy_fit.run(tmp_path / "whole", *few)
    program = toy_fit.start(tmp_path / "killed", *few)
    program.wait_until_printed("iteration 1/2")
    program.kill()
    assert program.wait() == -signal.SIGKILL
    toy_fit.run(tmp_path / "killed", *few, "resume=auto")
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


@pytest.mark.parametrize(("strategy", "options"), [("ddp", []), ("fsdp2", []), ("fsdp2", NFT)])
def test_two_ranks_are_one(tmp_path, strategy, options):
    few = [*FLOW, *options, *RECORD, "iterations=1"]
    toy_fit.run(tmp_path / "one", *few)
    run_ranks(tmp_path / "two", *few, f"trainer.strategy={strategy}")
    pairs = list(zip(recorded(tmp_path / "one")["gradients"], recorded(tmp_path / "two")["gradients"], strict=True))
    assert pairs
    for one, two in pairs:
        assert one.norm() > 1e-4
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)


def test_sharded_ranks_go_on_bitwise_after_a_kill(tmp_path):
    few = [*FLOW, "trainer.strategy=fsdp2"]
    run_ranks(tmp_path / "whole", *few)
    kill_ranks(tmp_path / "run", "iteration 1/2", *few)
    run_ranks(tmp_path / "run", *few, "resume=auto")
    assert result(tmp_path / "run") == result(tmp_path / "whole")
