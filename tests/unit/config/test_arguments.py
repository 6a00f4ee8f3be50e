"""What verbs that only run a policy take of a conf's keys: a value that they would not look at is refused."""

from __future__ import annotations

import pytest

from vla_rl.config.arguments import evaluate_arguments, record_arguments, serve_arguments
from vla_rl.errors import UserError

TINY = "conf=pcm_object_tiny"
POLICY = [TINY, "seed=3", "policy.dtype=bfloat16", "trainer.devices=1", "rollout.temperature=0.5"]


@pytest.mark.parametrize(
    ("read", "who", "argument", "key"),
    [
        (evaluate_arguments, "an evaluation", "optim.lr=1", "optim.lr"),
        (evaluate_arguments, "an evaluation", "mask=random", "mask"),
        (evaluate_arguments, "an evaluation", "iterations=3", "iterations"),
        (evaluate_arguments, "an evaluation", "rollout={groups: 2, temperature: 1.0}", "rollout.groups"),
        (evaluate_arguments, "an evaluation", "evaluation.every_iterations=2", "evaluation.every_iterations"),
        (evaluate_arguments, "an evaluation", "callbacks.progress=null", "callbacks.progress"),
        (serve_arguments, "a served policy", "sim.camera_px=64", "sim.camera_px"),
        (serve_arguments, "a served policy", "run_dir=mine", "run_dir"),
        (record_arguments, "a recording", "evaluation.sampled_episodes=3", "evaluation.sampled_episodes"),
        (record_arguments, "a recording", "grpo.clip_low=0.1", "grpo.clip_low"),
    ],
)
def test_what_a_verb_does_not_use_is_refused(read, who, argument, key):
    with pytest.raises(
        UserError, match=f"^{who} does not use {key}: leave it out. Of a conf it uses conf, seed, policy"
    ):
        read([TINY, argument])


def test_all_of_them_are_named_at_once():
    with pytest.raises(UserError, match="^an evaluation does not use mask.budget, optim.lr: leave it out"):
        evaluate_arguments([TINY, "mask.budget=3", "seed=2", "optim.lr=1"])


def test_what_they_use_is_taken():
    _, config, given = evaluate_arguments(
        [*POLICY, "sim.horizon=90", "rollout.heldout_init_states=[20000,20009]", "evaluation={sampled_episodes: 3}"]
    )
    assert (config.seed, config.rollout.temperature, config.evaluation.sampled_episodes) == (3, 0.5, 3)
    assert given[-3:] == ["sim.horizon", "rollout.heldout_init_states", "evaluation.sampled_episodes"]
    _, config = serve_arguments([*POLICY, "decoding=sampled"])
    assert (config.policy["dtype"], config.rollout.temperature) == ("bfloat16", 0.5)
    _, config = record_arguments([*POLICY[:1], *POLICY[2:], "sim=libero_goal"])
    assert (config.sim["suite"], config.trainer["devices"]) == ("goal", 1)


def test_a_misspelt_key_is_still_told_the_right_one():
    with pytest.raises(UserError, match="did you mean 'rollout.temperature'"):
        evaluate_arguments([TINY, "rollout.temprature=1"])


@pytest.mark.parametrize("read", [serve_arguments, record_arguments])
def test_a_temperature_of_greedy_decoding_is_refused(read):
    with pytest.raises(UserError, match="^rollout.temperature is of sampling, and decoding=greedy: decoding=sampled"):
        read([TINY, "rollout.temperature=1", "decoding=greedy"])
