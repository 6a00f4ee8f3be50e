"""What verbs that only run a policy take of a conf's keys: a value that they would not look at is refused."""

from __future__ import annotations

import pytest

from vla_rl.config.arguments import evaluate_arguments, record_arguments, serve_arguments
from vla_rl.config.supervised import compose_reinforcement, compose_supervised
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
    _, config = record_arguments([*POLICY[:1], *POLICY[2:], "sim=libero_goal", "out=demos"])
    assert (config.sim["suite"], config.trainer["devices"]) == ("goal", 1)


def test_a_misspelt_key_is_still_told_the_right_one():
    with pytest.raises(UserError, match="did you mean 'rollout.temperature'"):
        evaluate_arguments([TINY, "rollout.temprature=1"])


READERS = {"an evaluation": evaluate_arguments, "a served policy": serve_arguments, "a recording": record_arguments}


@pytest.mark.parametrize(("who", "read"), READERS.items())
@pytest.mark.parametrize(
    "argument", ["policy.gradient_checkpointing=true", "policy.vision_cache_rows=8", "trainer.max_epochs=3"]
)
def test_what_acts_in_training_alone_is_refused(who, read, argument):
    key = argument.partition("=")[0]
    with pytest.raises(UserError, match=f"^{who} does not use {key}: leave it out$"):
        read([TINY, argument])


@pytest.mark.parametrize("read", [serve_arguments, record_arguments])
@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("trainer.strategy=fsdp2", "does not use trainer.strategy: leave it out$"),
        ("trainer.num_nodes=2", "does not use trainer.num_nodes: leave it out$"),
        ("trainer.devices=2", "has one device, and trainer.devices=2 is given: trainer.devices=1$"),
        ("trainer.devices=[0,1]", r"has one device, and trainer.devices=\[0, 1\] is given: trainer.devices=1$"),
    ],
)
def test_a_policy_that_acts_alone_is_one_process(read, argument, line):
    with pytest.raises(UserError, match=line):
        read([TINY, argument, "out=demos"][: 3 if read is record_arguments else 2])
    assert (
        read(["conf=pcm_object_pi05", "out=demos"][: 2 if read is record_arguments else 1])[1].trainer["devices"] == 2
    )


@pytest.mark.parametrize("read", [serve_arguments, record_arguments])
@pytest.mark.parametrize("argument", ["rollout.temperature=1", "policy.noise_level=0.3", "policy.noisy_steps=all"])
def test_an_option_of_sampling_is_refused_in_greedy_decoding(read, argument):
    key = argument.partition("=")[0]
    with pytest.raises(UserError, match=f"^{key} is of sampling, and decoding=greedy: decoding=sampled, or leave it"):
        read(["conf=pcm_object_flow_tiny", argument, "decoding=greedy"])


@pytest.mark.parametrize("read", READERS.values())
def test_a_checkpoint_is_given_once(read, tmp_path):
    (tmp_path / "adapter_config.json").touch()
    out = ["out=demos"] if read is record_arguments else []
    with pytest.raises(
        UserError, match="^checkpoint=a takes the place of policy.checkpoint, which is given as well: leave"
    ):
        read([TINY, "checkpoint=a", "policy.checkpoint=b", *out])
    with pytest.raises(UserError, match="takes the place of policy.adapter, which is given as well"):
        read([TINY, f"checkpoint={tmp_path}", "policy.adapter=b", *out])
    read([TINY, f"checkpoint={tmp_path}", "policy.checkpoint=b", *out])  # the adapter goes on top of it


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([TINY, "tasks=[0]"], "tasks is of the scripted demonstrator, and a policy plays: leave it out"),
        (["checkpoint=a", "check=true"], "check is of the scripted demonstrator, and a policy plays"),
        ([TINY, "camera_px=128"], "camera_px is of the scripted demonstrator, and a policy plays"),  # the default
        ([TINY], "missing out=: out=demos"),
        (["check=true", "camera_px=256"], "check=true only measures success, so that camera_px would do nothing"),
        (["check=true", "linger_steps=9"], "check=true only measures success, so that linger_steps would do nothing"),
        (["check=true", "successes_only=false"], "check=true only measures success, so that successes_only would do"),
    ],
)
def test_a_recording_refuses_what_it_would_not_look_at(argv, line):
    with pytest.raises(UserError) as refused:
        record_arguments(argv)
    assert str(refused.value).startswith(line)


def test_a_recording_takes_what_it_uses():
    assert record_arguments(["out=demos", "seed=3", "hesitation=0.1", "camera_px=64"])[0].seed == 3
    assert record_arguments(["check=true", "tasks=[0]", "horizon=90"])[1] is None
    assert record_arguments([TINY, "out=demos", "seed=3", "init_states=[0,5]"])[0].init_states == (0, 5)


@pytest.mark.parametrize("argument", ["policy.noise_level=0.3", "policy.noisy_steps=all", "policy.denoising_steps=8"])
def test_supervised_training_refuses_how_a_flow_policy_acts(argument):
    key = argument.partition("=")[0]
    with pytest.raises(UserError, match=f"^supervised training does not use {key}, which no checkpoint keeps: leave"):
        compose_supervised(["conf=sft_object_flow_tiny", argument])
    compose_supervised(["conf=sft_object_flow_tiny"])  # whose conf has them for where it acts


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("iterations=200", "iterations"),  # as it is in the schema
        ("grpo={epochs: 1}", "grpo.epochs"),
        ("optim.max_skipped_steps=3", "optim.max_skipped_steps"),
        ("mask=random", "mask"),
    ],
)
def test_supervised_training_refuses_what_it_would_not_look_at(argument, key):
    with pytest.raises(UserError, match=f"^supervised training does not use {key}; leave it out$"):
        compose_supervised(["conf=sft_object_tiny", argument])


def test_reinforcement_learning_refuses_what_it_would_not_look_at():
    with pytest.raises(UserError, match="^sft.steps is for python -m vla_rl.sft, not for vla_rl.fit; leave it out$"):
        compose_reinforcement([TINY, "sft.steps=800"])


def test_what_a_conf_sets_is_reset_by_what_the_line_says(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: sft_object_tiny\niterations: 9\nmask: pcm\ngrpo: {epochs: 3}\n")
    with pytest.raises(UserError, match="iterations, grpo.epochs, mask; leave it out: iterations=200 grpo.epochs=1 m"):
        compose_supervised([f"conf={mine}"])
    compose_supervised([f"conf={mine}", "iterations=200", "grpo.epochs=1", "mask=null"])
