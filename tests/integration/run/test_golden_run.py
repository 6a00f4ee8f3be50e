"""A short run of the toy world gives the numbers that version 0.1 gave, bit for bit: metrics, weights, success."""

import json
from pathlib import Path

import torch

from vla_rl.fit import main

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "toy_run" / "expected.json").read_text())
RUN = (
    *("conf=pcm_object_tiny", "iterations=3", "rollout.groups=4", "rollout.group_size=4", "grpo.minibatches=2"),
    *("rollout.train_init_states=[0,20]", "optim.lr=0.01", "mask.budget=3"),
    *("evaluation.sampled_episodes=4", "evaluation.greedy_episodes=4"),
    *("policy._target_=tests.helpers.toy.ToyPolicy", "sim._target_=tests.helpers.toy.ToyPool"),
)
MEASURED = ("time/", "split/", "memory/")  # seconds and bytes differ from run to run


def test_the_numbers_of_a_run_stay_the_same(tmp_path):
    main([*RUN, f"run_dir={tmp_path}"])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [{tag: value for tag, value in row.items() if not tag.startswith(MEASURED)} for row in rows]
    assert [{tag: row[tag] for tag in golden} for row, golden in zip(rows, GOLDEN["metrics"], strict=True)] == GOLDEN[
        "metrics"
    ]
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {name: weight.flatten().tolist() for name, weight in checkpoint.items()} == GOLDEN["weights"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    for when in ("success_before", "success_after"):
        for decoding, rate in GOLDEN[when].items():
            assert {key: summary[when][decoding][key] for key in ("successes", "episodes")} == {
                key: rate[key] for key in ("successes", "episodes")
            }
