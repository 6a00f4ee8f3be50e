"""Success elsewhere: measured in the other simulators, before and after training; once, also where the run goes on."""

from __future__ import annotations

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import toy_fit
from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.rollout.collect import collect
from vla_rl.rollout.plan import heldout_episodes

# task 1 alone, in which training never is
ELSEWHERE = [
    *("callbacks.elsewhere._target_=callbacks.SuccessElsewhere", "callbacks.elsewhere.sim.tasks=[1]"),
    *("callbacks.elsewhere.init_states=[40,50]", "sim.tasks=[0]", "seed=3"),
]


def successes(decoding: str) -> int:
    """Of the untrained policy there."""
    episodes = heldout_episodes([1], (40, 50), 10, seed=3)
    temperature = 0.0 if decoding == "greedy" else 1.6
    trajectories, _ = collect(ToyPool(tasks=(1,)), ToyPolicy(), episodes, temperature=temperature)
    assert {t.episode.task for t in trajectories} == {1}
    return sum(t.success for t in trajectories)


def test_before_and_after_and_kept_by_a_run_that_goes_on(tmp_path):
    folder = tmp_path / "run"
    sampled = [*ELSEWHERE, "callbacks.elsewhere.decoding=sampled", "rollout.temperature=1.6", "optim.lr=0.1"]
    first = toy_fit.run(folder, *sampled, "iterations=1")
    found = json.loads((folder / "elsewhere.json").read_text())
    assert {key: found[key] for key in ("sim", "init_states", "decoding")} == {
        "sim": {"tasks": [1]},
        "init_states": [40, 50],
        "decoding": "sampled",
    }
    before = found["before"]
    assert (before["successes"], before["episodes"]) == (successes("sampled"), 10)
    assert 0 < before["successes"] < 10
    line = f"before training: success elsewhere (tasks=[1]), sampled: {before['rate']:.3f} ["
    assert line in first.printed
    assert f"({before['successes']}/10)" in first.printed
    assert f"  elsewhere sampled {before['rate']:.2f} [" in first.printed  # the report at the end
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("elsewhere/sampled_success")]
    assert logged == [(0, pytest.approx(before["rate"])), (1, pytest.approx(found["after"]["rate"]))]  # batches

    second = toy_fit.run(folder, f"resume={folder}", *sampled, "iterations=3")
    assert "before training: success elsewhere" not in second.printed
    assert "after training: success elsewhere" in second.printed
    assert json.loads((folder / "elsewhere.json").read_text())["before"] == before
    assert json.loads((folder / "elsewhere.json").read_text())["after"] != before  # of the policy that has learnt


def test_it_changes_nothing(tmp_path):
    toy_fit.run(tmp_path / "with", *ELSEWHERE, "iterations=2")
    toy_fit.run(tmp_path / "without", *ELSEWHERE, "callbacks.elsewhere=null", "iterations=2")
    found = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("with", "without")]
    assert found[0]["success_after"] == found[1]["success_after"]
    assert json.loads((tmp_path / "with" / "elsewhere.json").read_text())["before"]["successes"] == successes("greedy")


def test_without_iterations_there_is_nothing_to_compare(tmp_path):
    program = toy_fit.run(tmp_path / "run", *ELSEWHERE, "iterations=0")
    assert "elsewhere" not in program.printed
    assert not (tmp_path / "run" / "elsewhere.json").exists()
