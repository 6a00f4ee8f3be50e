"""Runs with a critic on the toy world: killed and resumed is uninterrupted, two ranks learn what one does, and a critic
runs beside every other option that changes rollouts or rewards."""

import signal
from pathlib import Path

import pytest
import torch

from tests.helpers import toy_fit
from tests.helpers.results import result, rows
from tests.integration.distributed.test_ranks import kill_ranks, run_ranks, weights

RUN = [
    *("grpo.advantage=gae", "grpo.group_filter=keep", "iterations=3", "grpo.entropy_coef=0.01", "rollout.groups=5"),
    *("rollout.stop_below=0.7", "rollout.stop_after=2", "rollout.stop_run_on=0.3"),
    *("evaluation.sampled_episodes=1", "evaluation.greedy_episodes=0", "evaluation.every_iterations=0"),
]
CRITICS = {
    "separate": [*RUN, "critic=separate", "critic.steps=20", "critic.iterations=2"],
    # the first three of six steps train the head alone
    "head": [
        *RUN,
        "critic=head",
        "critic.bootstrap=truncated",
        "critic.warmup_steps=3",
        "critic.coef=0.5",
        "critic.per=step",
    ],
}


@pytest.fixture(autouse=True, scope="module")
def no_figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("callbacks.critic.base.save_figures", lambda *_: None)  # half of a run's time
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Path]:
    """An uninterrupted run of one process with each critic."""
    folders = {critic: tmp_path_factory.mktemp(critic) / "run" for critic in CRITICS}
    for critic, folder in folders.items():
        toy_fit.run(folder, *CRITICS[critic])
    return folders


@pytest.mark.parametrize(("critic", "moment"), [("separate", "iteration 2/3"), ("head", "iteration 1/3")])
def test_killed_and_resumed_is_uninterrupted(alone, tmp_path, critic, moment):
    logged = rows(alone[critic])
    assert len(logged) == 3 and all("critic/advantage_std" in row for row in logged)
    assert logged[0]["rollout/stopped"] == 0 < logged[2]["rollout/stopped"] < 1  # what decides it is resumed as well
    program = toy_fit.start(tmp_path / "run", *CRITICS[critic])
    program.wait_until_printed(moment)
    program.kill()
    assert program.wait() == -signal.SIGKILL
    toy_fit.run(tmp_path / "run", *CRITICS[critic], "resume=auto")
    assert result(tmp_path / "run") == result(alone[critic])


@pytest.mark.parametrize(("critic", "strategy"), [("separate", "ddp"), ("head", "ddp"), ("head", "fsdp2")])
def test_two_ranks_learn_what_one_does(alone, tmp_path, critic, strategy):
    options = [*CRITICS[critic], f"trainer.strategy={strategy}"]
    run_ranks(tmp_path / "two", *options)
    one, two = (
        [{tag: value for tag, value in row.items() if tag.startswith("critic/")} for row in rows(folder)]
        for folder in (alone[critic], tmp_path / "two")
    )
    assert one[0] == two[0]  # bit for bit, before weights are rounded differently
    one, two = weights(alone[critic]), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert ("value_head.last.weight" in one) == (critic == "head")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)

    if strategy == "fsdp2":  # the shards of the head and its optimizer too go on bitwise
        kill_ranks(tmp_path / "killed", "iteration 1/3", *options)
        run_ranks(tmp_path / "killed", *options, "resume=auto")
        assert result(tmp_path / "killed") == result(tmp_path / "two")


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize(
    "beside",
    [
        ["rollout.asynchronous=true"],
        ["reward=policytrim", "reward.kl_coef=20", "reward.baseline_episodes=2"],
        ["rollout.groups=16", "rollout.group_size=1", "mask.score=credit"],  # a divergence needs groups
    ],
    ids=["asynchronous", "policytrim", "groups of one"],
)
def test_what_a_critic_runs_beside(tmp_path, critic, beside):
    toy_fit.run(tmp_path / "run", *CRITICS[critic], *beside)
    logged = rows(tmp_path / "run")
    assert len(logged) == 3 and all(row["chunks/kept"] > 0 for row in logged)
    assert all(value == value for row in logged for value in row.values())


def test_what_policytrims_first_stage_earned_is_forgotten_in_the_second(tmp_path):
    stages = ["reward=policytrim", "reward.ratios=[0.5,1.0]", "reward.extend_iterations=2", "reward.switch_margin=null"]
    argv = [*CRITICS["separate"], *stages, "reward.baseline_episodes=2"]
    toy_fit.run(tmp_path / "whole", *argv)
    checkpoints = tmp_path / "whole" / "checkpoints"
    state = torch.load(checkpoints / "last.ckpt", weights_only=True)["callbacks"]
    (critic,) = (of for name, of in state.items() if name.startswith("SeparateCritic"))
    assert len(critic["earlier"]) == 1  # of the third iteration alone, though two are remembered
    program = toy_fit.start(tmp_path / "run", *argv)
    program.wait_until_printed("iteration 2/3")
    program.kill()
    program.wait()
    toy_fit.run(tmp_path / "run", *argv, "resume=auto")
    assert result(tmp_path / "run") == result(tmp_path / "whole")
