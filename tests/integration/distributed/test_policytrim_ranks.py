"""PolicyTrim on two processes on the CPU is PolicyTrim on one, in both stages; and what they leave goes on bitwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from callbacks.policytrim.report import TrimReport
from tests.helpers import toy_fit
from tests.helpers.results import result, rows
from tests.integration.distributed.test_ranks import STRATEGIES, kill_ranks, run_ranks, weights

# an iteration of stage 1, then three of stage 2; windows of 1 and 2 of the toy's 2 steps; rank 0 has three of the five
# groups, and in one iteration collects another: ranks differ in groups, in episodes of every measurement, in rounds of
# rollouts and in forwards of the divergence
BOTH_STAGES = [
    *("reward=policytrim", "reward.ratios=[0.5,1.0]", "reward.extend_iterations=1", "reward.kl_coef=20"),
    *("reward.baseline_episodes=3", "iterations=4", "rollout.groups=5", "grpo.minibatches=4", "grpo.micro_rows=2"),
    "grpo.group_filter=resample",
    *("evaluation.sampled_episodes=1", "evaluation.greedy_episodes=0", "evaluation.every_iterations=0"),
]
REPORT = [
    *("callbacks.trim_report._target_=callbacks.TrimReport", "callbacks.trim_report.episodes=5"),
    "callbacks.scores._target_=tests.integration.distributed.test_policytrim_ranks.SaveScores",
]
SAID = ("task", "stage 2", "before training", "after training")  # S_base; the switch; success, overall and by window


class SaveScores(L.Callback):
    """`scores<rank>.json`: the successes that the report draws."""

    def on_train_end(self, trainer, pl_module) -> None:
        report = next(callback for callback in trainer.callbacks if isinstance(callback, TrimReport))
        path = Path(trainer.default_root_dir) / f"scores{trainer.global_rank}.json"
        path.write_text(json.dumps(sorted(report._scores)))


def state(folder: Path, callback: str = "PolicyTrim") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"][callback]


def said(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith(SAID)]


@pytest.fixture(scope="module")
def alone(no_pixels, tmp_path_factory) -> tuple[Path, str]:
    """A run folder, and what the run printed."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return folder, toy_fit.run(folder, *BOTH_STAGES, *REPORT).printed


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_are_one(alone, tmp_path, strategy):
    one, two = alone[0], tmp_path / "run"
    run_ranks(two, *BOTH_STAGES, *REPORT, f"trainer.strategy={strategy}")

    assert [row["policytrim/stage"] for row in rows(one)] == [1, 2, 2, 2]
    assert rows(one)[-1]["policytrim/kl"] > 1e-3
    assert [row["rollout/groups"] for row in rows(one)] == [5, 5, 6, 5]
    for there, here in zip(rows(one), rows(two), strict=True):
        compared = [tag for tag in there if tag.startswith(("policytrim/", "rollout/", "pcm/", "chunks/"))]
        # the same episodes; advantages, and with them drift and KL, see weights that differ as below
        there, here = ({tag: row.get(tag) for tag in compared} for row in (there, here))
        assert here == pytest.approx(there, rel=1e-4, abs=1e-6)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=0, atol=1e-5)  # 16 steps of 0.01

    there, here = state(one), state(two)
    assert here["counts"] == there["counts"]
    assert there["counts"][0][1] == [10, 10]
    assert here["baseline"] == there["baseline"]
    assert here["extended"] == there["extended"] == 1
    assert here["reference"].keys() == there["reference"].keys() != set()
    for name, value in there["reference"].items():  # of four steps: whole, as if there were one rank
        torch.testing.assert_close(here["reference"][name], value, rtol=0, atol=1e-5)

    ranks = [(tmp_path / "run.log" / f"rank{rank}.out").read_text() for rank in (0, 1)]
    assert said(ranks[0]) == said(alone[1])
    assert len(said(ranks[0])) == 2 + 1 + 3 + 3
    assert ranks[1] == ""
    assert json.loads((two / "windows.json").read_text()) == json.loads((one / "windows.json").read_text())
    there, here = (json.loads((folder / "scores0.json").read_text()) for folder in (one, two))
    assert len(there) > 10
    assert here == there


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_go_on_bitwise_after_a_kill_in_stage_2(tmp_path, strategy):
    arguments = [*BOTH_STAGES, f"trainer.strategy={strategy}"]
    run_ranks(tmp_path / "whole", *arguments)
    kill_ranks(tmp_path / "run", "iteration 3/4", *arguments)
    left = state(tmp_path / "run")
    assert left["trimming"]
    assert not torch.equal(left["reference"]["head.bias"], weights(tmp_path / "run")["policy.head.bias"])
    run_ranks(tmp_path / "run", *arguments, "resume=auto")
    assert result(tmp_path / "run") == result(tmp_path / "whole")
