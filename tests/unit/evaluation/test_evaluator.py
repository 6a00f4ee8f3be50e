"""An evaluation runs every episode once and finds the same, however it is divided."""

import json

import lightning as L
import pytest
import torch

from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.config.schema import VideoConfig
from vla_rl.evaluation import evaluator
from vla_rl.evaluation.evaluator import Evaluated, Evaluator
from vla_rl.rollout.plan import heldout_episodes

EPISODES = heldout_episodes([0, 1], (0, 15), 30, seed=1)


def trainer(folder, **options) -> L.Trainer:
    silent = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(default_root_dir=folder, accelerator="cpu", use_distributed_sampler=False, **silent, **options)


def evaluate(folder, pool: ToyPool, decoding="sampled", rules=VideoConfig(1, 1, 0), **options) -> Evaluated:  # noqa: B008
    torch.manual_seed(0)
    return Evaluator(ToyPolicy(), pool, decoding, 1.0, rules).evaluate(trainer(folder, devices=1, **options), EPISODES)


def test_every_episode_is_run_once_whatever_the_slots(tmp_path):
    pools = [ToyPool(slots=1), ToyPool(slots=4)]
    one, four = (evaluate(tmp_path, pool) for pool in pools)
    for pool in pools:
        assert sorted((e.task, e.init_state) for e in pool.started) == sorted((e.task, e.init_state) for e in EPISODES)
    assert (one.success_E, one.steps_E) == (four.success_E, four.steps_E)
    assert 0 < sum(one.success_E) < 30  # else the comparison would say little
    assert all(steps == 12 for steps, success in zip(one.steps_E, one.success_E, strict=True) if not success)


def test_decoding_is_what_was_asked_for(tmp_path):
    sampled, greedy = (evaluate(tmp_path, ToyPool(), decoding) for decoding in ("sampled", "greedy"))
    assert greedy.success_E != sampled.success_E


def test_frames_are_kept_of_what_is_shown_alone(tmp_path, monkeypatch):
    lengths = []
    monkeypatch.setattr(evaluator, "PICTURED", 2)
    real = evaluator.collect

    def collect(*arguments, **options):
        trajectories, time = real(*arguments, **options)
        lengths.extend(len(t.frame_NHWC) for t in trajectories)
        return trajectories, time

    monkeypatch.setattr(evaluator, "collect", collect)
    found = evaluate(tmp_path, ToyPool(slots=3), rules=VideoConfig(first=3, failures=1, per_group=2))
    assert [t.episode.uid for t in found.filmed] == expected_filmed(found.success_E)
    successes = [i for i, success in enumerate(found.success_E) if success][:2]
    failures = [i for i, success in enumerate(found.success_E) if not success][:2]
    assert [t.episode.uid for t in found.pictured] == successes + failures
    shown = {t.episode.uid for t in found.filmed + found.pictured}
    assert [i for i, length in enumerate(lengths) if length] == sorted(shown)
    assert all(len(t.frame_NHWC) == len(t) for t in found.filmed + found.pictured)


def expected_filmed(success_E: list[bool]) -> list[int]:
    """The first three; the first failure; the first two of each task, which take turns: 0 to 3."""
    return sorted({0, 1, 2, 3, success_E.index(False)})


class SaveResult(L.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_test_end(self, trainer, pl_module):
        found = {"success": pl_module.result.success_E, "steps": pl_module.result.steps_E,
                 "started": [e.uid for e in pl_module.pool.started]}  # fmt: skip
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(found))


def test_two_ranks_find_what_one_does(tmp_path):
    alone = evaluate(tmp_path, ToyPool())
    model = Evaluator(ToyPolicy(), ToyPool(), "sampled", 1.0, VideoConfig())
    pair = trainer(tmp_path, devices=2, strategy="ddp_fork", callbacks=[SaveResult(tmp_path)])
    odd = EPISODES[:29]  # unequal shares
    with pytest.raises(AttributeError):  # the processes that know the result have ended
        model.evaluate(pair, odd)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert sorted(uid for rank in ranks for uid in rank["started"]) == list(range(29))
    assert {len(rank["started"]) for rank in ranks} == {14, 15}
    for rank in ranks:
        assert (rank["success"], rank["steps"]) == (alone.success_E[:29], alone.steps_E[:29])
