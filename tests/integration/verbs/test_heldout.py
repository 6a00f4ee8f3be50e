"""Held-out success where fewer pairs of task and initial state exist than episodes are asked for."""

from __future__ import annotations

import json

from tests.helpers import toy_fit
from vla_rl.functional.statistics import wilson_interval


def test_greedy_episodes_are_not_repeated_and_samples_of_a_state_are_its_cluster(tmp_path):
    program = toy_fit.run(
        tmp_path / "run",
        "iterations=1",
        "rollout.heldout_init_states=[10000,10002]",  # of two tasks
        "evaluation.greedy_episodes=9",
        "evaluation.sampled_episodes=20",
        "evaluation.every_iterations=0",
    )
    said = "evaluation.greedy_episodes=9: 4 are run, one for each held-out pair of task and initial state"
    assert program.printed.count(said) == 1
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["success_before"]
    assert found["greedy"]["episodes"] == 4
    sampled = found["sampled"]
    assert sampled["episodes"] == 20
    # all of them succeed, so that nothing says how alike samples of a state are: four states count as four episodes
    assert sampled["successes"] == 20
    assert (sampled["wilson_low"], sampled["wilson_high"]) == wilson_interval(4, 4)
