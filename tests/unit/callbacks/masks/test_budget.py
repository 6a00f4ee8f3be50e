"""The budget of a mask: a number, a fraction, or the knee."""

import pytest

from callbacks.masks.budget import Budget
from callbacks.masks.pcm import PCM
from callbacks.masks.random_mask import RandomMask
from tests.helpers.make import MadeData, train
from tests.unit.callbacks.masks.test_masks import alone, kept_of, lengths, phase_group
from vla_rl.errors import UserError
from vla_rl.rollout.callback import RolloutCallback


def test_of_a_trajectory():
    assert [Budget(12).of(n) for n in (3, 12, 64)] == [12, 12, 12]
    assert Budget({"chunks": 5}).of(64) == 5
    # .19 * 64 = 12.16, .19 * 17 = 3.23, .19 * 2 = .38: at least one
    assert [Budget({"fraction": 0.19}).of(n) for n in (64, 17, 2)] == [12, 3, 1]


def test_a_fraction_under_training(tmp_path):
    kept = kept_of(train(tmp_path, RandomMask(budget={"fraction": 0.5})))
    assert {uid: len(chunks) for uid, chunks in kept.items()} == {u: max(1, round(n / 2)) for u, n in lengths().items()}


def test_the_knee_is_taken_at_each_refresh(tmp_path):
    pcm = PCM(budget={"knee": True}, refresh_every=2)
    assert pcm.budget.of(10) == 10  # nothing is known yet
    # a group has two chunks of approach, and two of the grip, one each for success and failure
    pcm.update([phase_group(approach=1.0, active_grip=4.0)], alone)
    # half of the chunks have 4/5 of the score: .3 above the diagonal
    assert pcm.budget.fraction == 0.5
    assert pcm.metrics()["pcm/knee_fraction"] == 0.5
    assert pcm.metrics()["pcm/knee_chunks"] == 1.0  # of the two of a trajectory
    pcm.update([phase_group(approach=1.0)], alone)
    assert pcm.budget.fraction == 0.5
    other = PCM(budget={"knee": True})
    other.load_state_dict(pcm.state_dict())
    assert other.budget.of(10) == 5
    share = PCM(budget={"fraction": 0.2})
    share.update([phase_group(approach=1.0, active_grip=4.0)], alone)
    assert share.budget.of(10) == 2  # nobody asked for the knee


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (0, "mask.budget must be an integer >= 1, got 0 (mask.budget=12)"),
        ("x", "mask.budget must be an integer >= 1, got 'x' (mask.budget=12)"),
        (True, "mask.budget must be an integer >= 1, got True (mask.budget=12)"),
        ({"chunks": 0.5}, "mask.budget must be an integer >= 1, got 0.5 (mask.budget=12)"),
        ({"fraction": 1.5}, "mask.budget.fraction must be a number > 0 and <= 1, got 1.5 (mask.budget.fraction=0.19)"),
        ({"fraction": 0}, "mask.budget.fraction must be a number > 0 and <= 1, got 0 (mask.budget.fraction=0.19)"),
        ({"knee": False}, "mask.budget.knee can only be true, got False (mask.budget.knee=true, or mask.budget=12)"),
        (
            {"fraction": 0.5, "chunks": 3},
            "mask.budget takes one of chunks, fraction and knee, got fraction, chunks "
            "(mask.budget=12, or mask=pcm mask.budget.fraction=0.19)",
        ),
        (
            {},
            "mask.budget takes one of chunks, fraction and knee, got none "
            "(mask.budget=12, or mask=pcm mask.budget.fraction=0.19)",
        ),
        (
            {"share": 0.5},
            "mask.budget takes one of chunks, fraction and knee, got share "
            "(mask.budget=12, or mask=pcm mask.budget.fraction=0.19)",
        ),
    ],
)
def test_wrong_budgets(option, message):
    with pytest.raises(ValueError) as caught:
        PCM(budget=option)
    assert str(caught.value) == message


def test_only_masks_with_scores_have_a_knee():
    with pytest.raises(ValueError, match=r"^only a mask that scores phases .* \(mask=pcm\)$"):
        RandomMask(budget={"knee": True})


class Windows(RolloutCallback):
    """What a callback that shortens the execution windows looks like to the others."""

    def plan_rollouts(self, episodes):
        pass


def test_windows_make_more_chunks_possible(tmp_path):
    mask, data = RandomMask(budget=21), MadeData(max_chunks=20)
    with pytest.raises(UserError, match="above the 20 chunks"):
        mask.check_run(data, [mask])
    mask.check_run(data, [mask, Windows()])  # 160 control steps, one at a time
    with pytest.raises(UserError, match="above the 160 chunks"):
        RandomMask(budget=161).check_run(data, [Windows()])
