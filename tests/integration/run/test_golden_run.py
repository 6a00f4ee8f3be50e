"""A short run of the toy world gives the numbers that version 0.1 gave, bit for bit: metrics, weights, success. So does
the run that version 0.1 began and that goes on from its checkpoint.

`golden/run_of_version_0.1` is what version 0.1 left of this run after one iteration; its config names the toy world's
classes where they are now, as a user whose own classes had moved would edit it.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from vla_rl.config import aliases
from vla_rl.fit import main

FOLDER = Path(__file__).parents[2] / "golden"
GOLDEN = json.loads((FOLDER / "toy_run" / "expected.json").read_text())
RUN = (
    *("conf=pcm_object_tiny", "iterations=3", "rollout.groups=4", "rollout.group_size=4", "grpo.minibatches=2"),
    *("rollout.train_init_states=[0,20]", "optim.lr=0.01", "mask.budget=3"),
    *("evaluation.sampled_episodes=4", "evaluation.greedy_episodes=4"),
    *("policy._target_=tests.helpers.toy.ToyPolicy", "sim._target_=tests.helpers.toy.ToyPool"),
)
MEASURED = ("time/", "split/", "memory/")  # seconds and bytes differ from run to run


def check_numbers(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{tag: value for tag, value in row.items() if not tag.startswith(MEASURED)} for row in rows]
    assert [{tag: row[tag] for tag in golden} for row, golden in zip(rows, GOLDEN["metrics"], strict=True)] == GOLDEN[
        "metrics"
    ]
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {name: weight.flatten().tolist() for name, weight in checkpoint.items()} == GOLDEN["weights"]
    summary = json.loads((folder / "summary.json").read_text())
    for when in ("success_before", "success_after"):
        for decoding, rate in GOLDEN[when].items():
            assert {key: summary[when][decoding][key] for key in ("successes", "episodes")} == {
                key: rate[key] for key in ("successes", "episodes")
            }


def test_the_numbers_of_a_run_stay_the_same(tmp_path):
    main([*RUN, f"run_dir={tmp_path}"])
    check_numbers(tmp_path)


def test_a_run_of_version_0_1_goes_on(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(FOLDER / "run_of_version_0.1", folder)
    monkeypatch.setattr(aliases, "_warned", False)
    with (
        pytest.warns(FutureWarning, match="the config has paths of version 0.1"),
        pytest.warns(UserWarning, match="was begun by a version without .*critic=None; it goes on with these defaults"),
        pytest.warns(UserWarning, match="iteration-1.ckpt has no state of RunClock, which begin"),
    ):
        main([f"conf={folder}/config.yaml", f"resume={folder}", f"run_dir={folder}", "iterations=3"])
    check_numbers(folder)
