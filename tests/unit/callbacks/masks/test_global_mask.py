"""Masks whose budget is shared over the iteration."""

import math

import pytest
import torch

from callbacks.masks.advantage_mask import GlobalAdvantage
from callbacks.masks.global_mask import GlobalPCM, ScoreNorm
from tests.helpers.make import DIMS, STEPS, MadeData, make_trajectory, train
from tests.unit.callbacks.masks.test_masks import alone, kept_of, phase_group
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.types import RolloutGroup


def scored(iteration):
    """Chunk norms 2 2 2 (advantage 2), 1 1 1 and 3 0 0 (advantage -1), nothing for advantage 0."""
    trajectories = [make_trajectory([0] * 3, uid=uid, success=uid == 0, advantage=a)
                    for uid, a in enumerate((2.0, -1.0, -1.0, 0.0))]  # fmt: skip
    for trajectory, values in zip(trajectories, ((1, 1, 1), (1, 1, 1), (9, 0, 0), (9, 9, 9)), strict=True):
        per_token = torch.tensor(values) / (STEPS * DIMS)
        trajectory.actions.extras["score_sq"] = per_token[:, None, None].expand(-1, STEPS, DIMS)
    return [RolloutGroup(trajectories)]


def counted(module):
    """uid -> chunks kept of it, without the row of zero weight of a batch that would be empty."""
    module.seen = [batch for batch in module.seen if batch.token_mask_NLA.any()]
    return kept_of(module)


class TestScoreNorm:
    def test_keeps_the_largest_of_all(self, tmp_path):
        kept = counted(train(tmp_path, ScoreNorm(budget=1), data=MadeData(scored)))
        assert kept == {0: [0, 1, 2], 2: [0]}  # 4 of 12, the norms 3 and 2

    def test_without_advantage_nothing_is_kept(self, tmp_path):
        kept = counted(train(tmp_path, ScoreNorm(budget=3), data=MadeData(scored)))
        assert kept == {0: [0, 1, 2], 1: [0, 1, 2], 2: [0]}

    def test_the_policy_is_asked_for_the_scores(self):
        class Data(MadeData):
            def request_extra(self, name, who):
                self.asked = (name, who)

        data = Data()
        ScoreNorm().check_run(data, [])
        assert data.asked == ("score_sq", "mask=score_norm")


def kept_in_all(mask, trajectories, reduce=alone, groups=()):
    """Chunks kept of each trajectory, and how they are shared is this rank's alone."""
    mask.data, mask.training_trajectories = MadeData(), trajectories
    mask.update(groups, reduce)
    return [mask.choose(t, mask.generator(t)).tolist() for t in trajectories]


@pytest.mark.parametrize("mask", [ScoreNorm, GlobalAdvantage])
def test_of_chunks_that_weigh_the_same_as_many_are_kept_as_the_budget_says(mask):
    """Two trajectories of four equal chunks, one kept of each on average. What breaks ties is below a millionth."""
    trajectories = [make_trajectory([0] * 4, uid=uid, advantage=1.0) for uid in (0, 1)]
    assert sum(map(len, kept_in_all(mask(budget=1), trajectories))) == 2
    key_N = mask().key(trajectories[0], seeded_generator(0))
    exact = (STEPS * DIMS) ** 0.5 if mask is ScoreNorm else 1.0
    assert len(key_N.unique()) == 4 and ((key_N - exact).abs() < 1e-5).all()


def test_chunks_without_advantage_are_left_out_though_the_budget_has_room_for_them():
    trajectories = [make_trajectory([0] * 4, uid=uid, advantage=float(uid)) for uid in (0, 1)]
    assert kept_in_all(GlobalAdvantage(budget=4), trajectories) == [[], [0, 1, 2, 3]]


def test_budgets_and_keys_are_counted_over_ranks_and_over_what_is_trained_on():
    [group] = scored(0)
    trained, left_out = group.trajectories[:3], RolloutGroup(group.trajectories[3:])
    groups = [RolloutGroup(trained), left_out]  # 9 chunks are trained on, 3 of them kept: the norms 3 2 2
    assert sum(map(len, kept_in_all(ScoreNorm(budget=1), trained, groups=groups))) == 3
    # another rank with the same trajectories: twice as many are kept of twice as many
    assert sum(map(len, kept_in_all(ScoreNorm(budget={"chunks": 1}), trained, lambda count: 2 * count))) == 3


class TestGlobalPCM:
    def test_a_key_is_drawn_by_the_size_of_advantage_times_weight(self):
        """Of one generator the noise is the same: keys differ by the logarithms of what they are drawn by."""
        mask = GlobalPCM()
        mask.keep_prob = [0.5, 1.0, 1.0, 1.0, 1.0]
        approach, grip = make_trajectory([0, 0], advantage=-2.0), make_trajectory([5, 5], advantage=4.0)
        key_N, other_N = (mask.key(t, seeded_generator(0)) for t in (approach, grip))
        assert (other_N - key_N).tolist() == pytest.approx([math.log(4 / 1)] * 2)
        assert mask.key(make_trajectory([0], advantage=0.0), seeded_generator(0)).tolist() == [-math.inf]

    def test_its_options_are_those_of_pcm(self):
        mask = GlobalPCM(budget=1, floor=0.3, refresh_every=1)
        for gaps, weight in (({"approach": 1.0, "active_grip": 4.0}, 0.3), ({"approach": 4.0}, 1.0)):
            kept_in_all(mask, [], groups=[phase_group(**gaps)])
            assert mask.keep_prob == pytest.approx([weight, 0.3, 1, 0.3, 0.3], rel=1e-6)
        assert GlobalPCM(labeller="time_quantile").scores.phases[0] == "time_1"

    def test_how_probable_a_chunk_is_depends_on_all_trajectories(self):
        assert GlobalPCM().inclusion(make_trajectory([0, 0])) is None
