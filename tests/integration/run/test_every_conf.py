"""Every shipped conf trains for an iteration, with a small policy and simulator in place of its own.

What else it says, the mask, reward, critic, loss and callbacks, is built and runs as it is; GPUs are taken away, and
numbers of episodes and chunks are cut down to what the small simulator has.
"""

import json

import pytest

from tests.helpers.toy_fit import Fork
from vla_rl import fit
from vla_rl.config.compose import compose, conf_names
from vla_rl.run.cli import run_entry

SMALL = [
    "policy._target_=tests.helpers.toy.ToyPolicy",
    "sim._target_=tests.helpers.toy.ToyPool",
    "trainer=cpu",
    "iterations=1",
    "rollout.groups=6",
    "rollout.train_init_states=[0,20]",
    "rollout.group_size=4",
    "grpo.minibatches=2",
    "grpo.micro_rows=12",
    "evaluation.sampled_episodes=4",
    "evaluation.greedy_episodes=2",
]
TRAINED = [name for name in conf_names() if name != "base" and not name.startswith("sft_")]


@pytest.mark.parametrize("conf", TRAINED)
def test_a_conf_trains(no_pixels, tmp_path, conf):
    folder = tmp_path / "run"
    small = [*SMALL, f"conf={conf}", f"run_dir={folder}"]
    most_chunks = 6  # of the small simulator's longest episode
    if compose(small).grpo.loss == "nft":
        small += ["policy._target_=tests.helpers.flow.toy_flow_policy", "sim._target_=tests.helpers.toy.ChunkPool"]
        most_chunks = 2
    if "budget" in (compose(small).mask or {}):
        small.append(f"mask.budget={most_chunks // 2}")
    reward = compose(small).reward or {}
    if reward.get("base_window") or reward.get("ratios"):  # the small simulator's chunks have two steps
        small += ["reward.base_window=null", "reward.ratios=[0.5,1]"]
    if compose(small).callbacks.get("elsewhere"):  # the small simulator has no options of the conf's
        small.append("callbacks.elsewhere=null")
    if "steps" in (compose(small).critic or {}):
        small.append("critic.steps=20")
    program = Fork(lambda: run_entry(fit.main, small), tmp_path)
    assert program.wait() == 0, program.errors
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 < row["chunks/kept"] <= row["chunks/real"]
    assert json.loads((folder / "summary.json").read_text())["conf"] == conf
