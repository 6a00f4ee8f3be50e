"""S_base and calls of the initial policy, from episodes that are written down."""

from types import SimpleNamespace

import torch

from callbacks.policytrim import step_baseline
from callbacks.policytrim.step_baseline import StepBaseline
from tests.helpers.make import make_trajectory


class Data:
    """Tasks 3 and 5; what `run` was asked for, and what it answers: task, chunks and success of each episode."""

    pool, seed = SimpleNamespace(tasks=[3, 5]), 0
    rollout = SimpleNamespace(train_init_states=(2, 4), heldout_init_states=(0, 1))

    def __init__(self, *outcomes):
        self.outcomes = outcomes

    def max_chunks_of(self, window):
        return 30 // window

    def run(self, batch):
        self.batch = batch
        trajectories = []
        for task, chunks, success in self.outcomes:
            trajectories.append(make_trajectory([0] * chunks, success=success, last_steps=4))
            trajectories[-1].episode.task = task
        return trajectories, None


def measured(*outcomes, zero=False):
    data, baseline = Data(*outcomes), StepBaseline(episodes=3, factor=2.0)
    assert not baseline.known
    baseline.measure(data, 8, SimpleNamespace(world_size=1, is_global_zero=zero))
    assert baseline.known
    return data.batch, baseline


def test_means_of_successes_and_the_suites_for_a_task_without_any(capsys):
    batch, baseline = measured((3, 2, True), (3, 3, True), (3, 9, False), (5, 9, False), zero=True)  # 12 and 20 steps
    assert baseline.steps == {3: 32.0, 5: 32.0}  # twice the mean
    assert baseline.calls == {3: 2.5, 5: 2.5}
    assert capsys.readouterr().out.splitlines() == [
        "task 3: 2 of 3 succeed before training, S_base 32.0 steps",
        "task 5: 0 of 3 succeed before training, S_base 32.0 steps",
    ]
    assert batch.decoding == "sampled"
    episodes = [(e.task, e.init_state, e.window) for e in batch.episodes]
    assert episodes == [(3, 2, 8), (5, 2, 8), (3, 3, 8), (5, 3, 8), (3, 2, 8), (5, 2, 8)]  # states that are trained on


def test_without_a_success_the_longest_episode():
    _, baseline = measured((3, 4, False))
    assert (baseline.steps, baseline.calls) == ({3: 30.0, 5: 30.0}, {3: 4.0, 5: 4.0})  # 30 steps, 8 at a time


def test_ranks_add_up_their_counts_and_a_checkpoint_has_them(monkeypatch):
    other = torch.tensor([[0.0, 0, 0], [1, 40, 5]], dtype=torch.float64)
    monkeypatch.setattr(step_baseline, "all_reduce_sum", lambda count_K3, trainer: count_K3 + other)
    _, baseline = measured((3, 2, True))
    assert (baseline.steps, baseline.calls) == ({3: 24.0, 5: 80.0}, {3: 2.0, 5: 5.0})
    again = StepBaseline(3, 2.0)
    again.load_state_dict(baseline.state_dict())
    assert (again.steps, again.calls) == (baseline.steps, baseline.calls)
