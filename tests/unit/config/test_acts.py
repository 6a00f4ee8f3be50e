"""Options that another value leaves without effect: refused on the command line, idle in a conf."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from vla_rl.config.compose import compose
from vla_rl.errors import UserError

TINY, FLOW, PPO = "conf=pcm_object_tiny", "conf=pcm_object_flow_tiny", "conf=ppo_object_tiny"
TRIM, TRIM_BOTH = "conf=policytrim_object_tiny", "conf=policytrim_object_tiny_h16"
ONE_STAGE = "conf=policytrim_object_flow_tiny"  # 15 iterations, all of them of stage 1
CRITIC = ["critic=separate", "grpo.advantage=gae", "grpo.group_filter=keep", "grpo.minibatches=2"]
LORA = "policy.lora={r: 4, alpha: 4}"
TRACE, BEFORE_AFTER = "callbacks.t._target_=callbacks.Trace", "callbacks.b._target_=callbacks.BeforeAfter"
UNMEASURED = ["evaluation.sampled_episodes=0", "evaluation.greedy_episodes=0"]


@pytest.mark.parametrize(
    ("argv", "value", "needed"),
    [
        ([TINY, *UNMEASURED], "evaluation.every_iterations=2", "evaluation.sampled_episodes=50"),
        ([TINY, "policy.checkpoint=random:7b"], "policy.unnorm_key=libero_object", "policy.checkpoint=FOLDER"),
        ([TINY, "policy.checkpoint=null"], "policy.unnorm_key=libero_object", "policy.checkpoint=FOLDER"),
        ([TINY, "grpo.advantage=raft"], "grpo.clip_low=0.1", "grpo.advantage=grpo"),
        ([TINY, "grpo.advantage=raft"], "grpo.dual_clip=3.0", "grpo.advantage=grpo"),
        ([FLOW, LORA], "policy.train=all", "policy.lora=null"),
        ([FLOW, LORA], "policy.train=expert", "policy.lora=null"),
        ([FLOW, "policy.checkpoint=null"], "policy.cameras=[image]", "policy.checkpoint=FOLDER"),
        ([FLOW, "policy.checkpoint=null"], "policy.state_numbers=8", "policy.checkpoint=FOLDER"),
        ([PPO, "mask=pcm_credit"], "mask.gripper=false", "mask.score=divergence"),
        ([TRIM], "reward.beta=2.0", "reward.extend_iterations=40"),
        ([TRIM], "reward.assign=uniform", "reward.extend_iterations=40"),
        ([TRIM_BOTH, "reward.extend_iterations=0"], "reward.horizon_baseline=group", "reward.extend_iterations=40"),
        ([TRIM_BOTH], "reward.switch_iterations=9", "reward.switch_margin=0.01"),
        ([TRIM_BOTH, "reward.extend_iterations=5"], "reward.switch_margin=0.05", "reward.extend_iterations=6"),
        ([TRIM, "reward.penalty=0"], "reward.sigma_floor=gate", "reward.penalty=0.15"),
        ([TRIM, "reward.penalty=0"], "reward.sigma_floor_steps=3", "reward.penalty=0.15"),
        ([TRIM, "reward.penalty=0.1", "reward.sigma_floor=gate"], "reward.preset=paper", "reward.step_coef=null"),
        ([TRIM, *CRITIC, "rollout.group_size=1"], "reward.penalty=0.1", "rollout.group_size=8"),
        ([TRIM, *CRITIC, "rollout.group_size=1"], "reward.sigma_floor=gate", "rollout.group_size=8"),
        ([TINY, TRACE, "iterations=3"], "callbacks.t.iteration=4", "iterations=4"),
    ],
)
def test_an_option_without_effect_is_refused_where_it_is_given_and_may_lie_idle_in_a_conf(
    argv: list[str], value: str, needed: str, tmp_path: Path
) -> None:
    key, _, text = value.partition("=")
    with pytest.raises(UserError) as refused:
        compose([*argv, value])
    assert str(refused.value) == f"{key} does nothing without {needed}: give both, or leave {key} out"
    mine = tmp_path / "mine.yaml"
    tree = asdict(compose(argv))
    section = functools.reduce(dict.__getitem__, key.split(".")[:-1], tree)
    section[key.rpartition(".")[2]] = yaml.safe_load(text)
    mine.write_text(yaml.safe_dump(tree))
    compose([f"conf={mine}"])


@pytest.mark.parametrize(
    "argv",
    [
        [FLOW, "policy.train=all"],
        [FLOW, LORA, "policy.train=null"],
        [TINY, "policy.unnorm_key=libero_object"],
        [PPO, "mask=pcm", "mask.gripper=false"],
        [TRIM_BOTH, "reward.switch_margin=0.05", "reward.switch_iterations=9", "reward.beta=2.0"],
        [TRIM_BOTH, "reward.kl_coef=0.1", "reward.penalty=0.1", "reward.step_coef=null", "reward.preset=paper"],
        [TRIM_BOTH, "grpo.advantage=raft", "reward.kl_coef=0.1", "grpo.clip_low=0.1", "grpo.dual_clip=3.0"],
        [ONE_STAGE, "reward.step_coef=2.0"],  # of its second stage, which a resumed run may reach
        [TRIM, *CRITIC, "rollout.group_size=1", "reward.penalty=0"],
        [TINY, TRACE, "iterations=4", "callbacks.t.iteration=4"],
        [TINY, TRACE, "iterations=0"],  # which only measures
        [TINY, *UNMEASURED, "evaluation.every_iterations=0"],
    ],
)
def test_what_acts_is_taken(argv: list[str]) -> None:
    compose(argv)


@pytest.mark.parametrize(
    ("argv", "key", "needed"),
    [
        ([TINY, TRACE, "iterations=1"], "callbacks.t._target_", "iterations=2"),
        ([TINY, BEFORE_AFTER, *UNMEASURED], "callbacks.b._target_", "evaluation.greedy_episodes=50"),
    ],
)
def test_a_callback_that_would_do_nothing_is_refused(argv: list[str], key: str, needed: str) -> None:
    with pytest.raises(UserError, match=f"^{key} does nothing without {needed}: give both, or leave {key} out"):
        compose(argv)


def test_a_value_that_is_no_number_is_left_to_its_class() -> None:
    given = ["reward.extend_iterations=many", "reward.switch_iterations=[5]", "reward.beta=2.0"]
    assert compose([TRIM_BOTH, *given]).reward["extend_iterations"] == "many"
    compose([TINY, TRACE, "callbacks.t.iteration=last"])


def test_the_option_of_another_class_is_its_own() -> None:
    compose([TINY, "reward._target_=my_pkg.Reward", "reward.beta=2.0"])
