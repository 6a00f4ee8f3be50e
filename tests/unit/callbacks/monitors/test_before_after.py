"""Videos of one held-out episode before and after training: which episode, which evaluations."""

from types import SimpleNamespace

import pytest

from callbacks.monitors.before_after import BeforeAfter
from tests.helpers.make import make_trajectory
from vla_rl.rollout.epoch import HeldoutBatch


def evaluate(tmp_path, successes: list[bool], *, step: int, decoding: str = "greedy", rank: int = 0) -> list[str]:
    """One evaluation after `step` optimizer steps; the videos in the run folder after it."""
    closing = [0, 8] + [8] * (step // 8)  # the longer the training, the longer the episodes
    trajectories = [make_trajectory(closing, uid=uid, success=success) for uid, success in enumerate(successes)]
    trainer = SimpleNamespace(is_global_zero=rank == 0, global_step=step, default_root_dir=str(tmp_path), callbacks=[])
    batch = HeldoutBatch(decoding, [t.episode for t in trajectories])
    BeforeAfter().on_validation_batch_end(trainer, None, {"trajectories": trajectories}, batch, 0)
    return sorted(path.name for path in (tmp_path / "videos" / "heldout").glob("*"))


def test_the_first_failure_before_training_is_shown_again_after_it(tmp_path):
    assert evaluate(tmp_path, [True, False, False], step=0) == ["greedy_task0_state0_1_before.mp4"]
    after = evaluate(tmp_path, [False, True, False], step=8)  # its own outcome does not matter
    assert after == ["greedy_task0_state0_1_after.mp4", "greedy_task0_state0_1_before.mp4"]
    first = (tmp_path / "videos" / "heldout" / after[0]).read_bytes()
    evaluate(tmp_path, [True, False, True], step=16)
    assert (tmp_path / "videos" / "heldout" / after[0]).read_bytes() != first, "the last evaluation is what counts"


def test_each_decoding_has_its_own_episode(tmp_path):
    evaluate(tmp_path, [False, True], step=0, decoding="sampled")
    assert evaluate(tmp_path, [True, False], step=0) == [
        "greedy_task0_state0_1_before.mp4",
        "sampled_task0_state0_0_before.mp4",
    ]


@pytest.mark.parametrize(("successes", "step", "rank"), [([True, True], 0, 0), ([False], 8, 0), ([False], 0, 1)])
def test_nothing_is_written_without_a_failure_before_training_on_the_first_rank(tmp_path, successes, step, rank):
    assert evaluate(tmp_path, successes, step=step, rank=rank) == []
