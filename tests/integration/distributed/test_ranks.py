"""Two processes on the CPU do what one would: gradients, weights, statistics; and what they leave goes on bitwise."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import toy_fit
from tests.helpers.results import result, rows

STRATEGIES = ["ddp", "fsdp2"]
# five groups for two ranks, and so many minibatches that a rank has more rows in one, fewer in another, and often none
UNEQUAL = [
    *("rollout.groups=5", "grpo.group_filter=keep", "grpo.minibatches=8", "iterations=2", "grpo.micro_rows=2"),
    *("mask.refresh_every=1", "evaluation.sampled_episodes=1", "evaluation.greedy_episodes=0"),
]
RECORD = ["callbacks.record._target_=tests.helpers.toy_fit.RecordGradients"]
# the tiny policy of the same architecture: layers in blocks, frozen weights in bfloat16, adapters in float32
ADAPTED = [
    *("sim._target_=tests.helpers.toy.ChunkPool", "policy._target_=vla_rl.load_policy"),
    *("policy.checkpoint=shipped:object_tiny", "policy.lora={r: 2, alpha: 2}", "policy.dtype=bfloat16"),
    *("grpo.micro_rows=2", "mask.budget=2", "rollout.groups=3", "rollout.group_size=3"),
    *("reward._target_=tests.helpers.tiny_fit.EverySecond", "iterations=1", "evaluation.sampled_episodes=1"),
    *("evaluation.greedy_episodes=1", "optim.lr=0.001"),
]


def run_ranks(folder: Path, *overrides: str, **options: Any) -> None:
    programs = toy_fit.start_ranks(folder, 2, *overrides, **options)
    # all of them before any is blamed: the first to be looked at may only tell that another has gone
    codes = [program.wait() for program in programs]
    assert codes == [0, 0], "\n".join(program.errors for program in programs)


def kill_ranks(folder: Path, moment: str, *overrides: str) -> None:
    """Started as in `run_ranks`; killed when the first rank has printed `moment`."""
    programs = toy_fit.start_ranks(folder, 2, *overrides)
    programs[0].wait_until_printed(moment)
    for program in programs:
        program.kill()
    assert [program.wait() for program in programs] == [-signal.SIGKILL] * 2


def recorded(folder: Path, rank: int = 0) -> dict[str, list]:
    return torch.load(folder / f"rank{rank}.pt")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    toy_fit.run(folder, *UNEQUAL, *RECORD)
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_are_one(alone, tmp_path, strategy):
    folder = tmp_path / "run"
    run_ranks(folder, *UNEQUAL, *RECORD, f"trainer.strategy={strategy}")

    first, second = (recorded(folder, rank)["rows"] for rank in (0, 1))
    assert [a + b for a, b in zip(first, second, strict=True)] == recorded(alone)["rows"]
    shares = {"equal" if a == b else "unequal" if a and b else "empty" for a, b in zip(first, second, strict=True)}
    assert shares == {"equal", "unequal", "empty"}

    expected = recorded(alone)["gradients"]
    assert len(expected) > 10
    for there, here in zip(expected, recorded(folder)["gradients"], strict=True):
        # a float32 sum in another order, at weights that differ as those below
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-6)
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(folder)[name], value, rtol=0, atol=1e-5)  # 16 steps of 0.01

    statistics = [tag for tag in rows(alone)[-1] if tag.startswith(("pcm/", "chunks/", "rollout/"))]
    assert "pcm/keep_prob/approach" in statistics
    for there, here in zip(rows(alone), rows(folder), strict=True):
        assert {tag: here.get(tag) for tag in statistics} == {tag: there.get(tag) for tag in statistics}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_go_on_bitwise_after_a_kill(tmp_path, strategy):
    few = [f"trainer.strategy={strategy}", "iterations=3"]
    run_ranks(tmp_path / "whole", *few)
    kill_ranks(tmp_path / "run", "iteration 2/3", *few)
    run_ranks(tmp_path / "run", *few, "resume=auto")
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    assert len(result(tmp_path / "run")["checkpoint"]["callbacks"]["Checkpoint"]["random_states"]) == 2


def test_all_ranks_stop_where_one_is_told_to(tmp_path):
    programs = toy_fit.start_ranks(tmp_path / "run", 2, "iterations=1000")
    programs[0].wait_until_printed("iteration 1/1000")
    programs[1].kill(signal.SIGTERM)
    assert [program.wait() for program in programs] == [143, 143]
    assert "terminated; saved after iteration" in programs[0].errors


def test_shards_of_blocks_with_adapters_in_bfloat16(tmp_path):
    toy_fit.run(tmp_path / "alone", *ADAPTED, *RECORD)
    run_ranks(tmp_path / "run", *ADAPTED, *RECORD, "trainer.strategy=fsdp2")
    for there, here in zip(
        recorded(tmp_path / "alone")["gradients"], recorded(tmp_path / "run")["gradients"], strict=True
    ):
        assert there.norm() > 1e-4
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-5)  # micro-batches of other rows, in bfloat16
    there, here = weights(tmp_path / "alone"), weights(tmp_path / "run")
    assert there.keys() == here.keys()
    assert all("lora" in name for name in here)
    assert {path.name for path in (tmp_path / "run" / "policy").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
