"""Runs with a critic: killed and resumed is uninterrupted, and two ranks learn what one does. On the toy world."""

import signal

import torch

from tests.helpers import toy_fit
from tests.helpers.results import result, rows

CRITIC = [
    *("critic=separate", "critic.steps=20", "critic.iterations=2", "grpo.advantage=gae", "grpo.group_filter=keep"),
    *("iterations=3", "grpo.entropy_coef=0.01"),
    *("evaluation.sampled_episodes=1", "evaluation.greedy_episodes=0", "evaluation.every_iterations=0"),
]


def test_killed_and_resumed_is_uninterrupted(tmp_path):
    toy_fit.run(tmp_path / "whole", *CRITIC)
    logged = rows(tmp_path / "whole")
    assert len(logged) == 3 and all("critic/advantage_std" in row for row in logged)
    program = toy_fit.start(tmp_path / "killed", *CRITIC)
    program.wait_until_printed("iteration 2/3")
    program.kill()
    assert program.wait() == -signal.SIGKILL
    toy_fit.run(tmp_path / "killed", *CRITIC, "resume=auto")
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


def test_two_ranks_learn_what_one_does(tmp_path):
    toy_fit.run(tmp_path / "one", *CRITIC, "rollout.groups=5")
    programs = toy_fit.start_ranks(tmp_path / "two", 2, *CRITIC, "rollout.groups=5")
    codes = [program.wait() for program in programs]
    assert codes == [0, 0], "\n".join(program.errors for program in programs)
    of = [
        [{k: v for k, v in row.items() if k.startswith("critic/")} for row in rows(tmp_path / n)]
        for n in ("one", "two")
    ]
    assert of[0][0] == of[1][0]  # bit for bit, before weights are rounded differently
    one, two = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("one", "two"))
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-4, atol=1e-5)


def test_groups_of_one_episode(tmp_path):
    toy_fit.run(tmp_path / "run", *CRITIC, "rollout.groups=16", "rollout.group_size=1")
    assert all(row["chunks/kept"] > 0 for row in rows(tmp_path / "run"))
