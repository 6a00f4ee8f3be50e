"""GRPO's formulas, with numbers worked out by hand."""

import math

import pytest
import torch

from vla_rl.functional.advantages import group_advantage
from vla_rl.functional.losses import clipped_loss, one_ratio_per_chunk, planned_counts, token_weight


def tokens(*values):
    """One token per chunk: [N] -> [N, 1, 1]."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def loss_of(ratios, advantages, weights=None, **options):
    """The loss at given probability ratios, one token per chunk, weight 1 each."""
    old = tokens(*[-1.0] * len(ratios))
    new = old + tokens(*ratios).log()
    weight = torch.ones_like(old) if weights is None else tokens(*weights)
    return clipped_loss(new, old, torch.tensor(advantages), weight, **{"clip_low": 0.2, "clip_high": 0.4} | options)


def gradient_at(log_ratio, advantage, **options):
    """The derivative of one token's loss by its log-probability."""
    new = tokens(log_ratio).requires_grad_()
    options = {"clip_low": 0.2, "clip_high": 0.4} | options
    clipped_loss(new, tokens(0.0), torch.tensor([advantage]), tokens(1.0), **options)[0].backward()
    return new.grad.item()


def test_one_ratio_per_chunk():
    # two chunks of two steps and one dimension; the last number of the second does not count
    new = torch.tensor([[[-1.0], [-2.0]], [[-3.0], [torch.inf]]])
    old = torch.tensor([[[-1.1], [-1.7]], [[-3.5], [-1.0]]])
    weight = torch.tensor([[[0.2], [0.2]], [[0.5], [0.0]]])
    new, old, weight = one_ratio_per_chunk(new, old, weight)
    torch.testing.assert_close(new - old, tokens(-0.2, 0.5))
    torch.testing.assert_close(weight, tokens(0.4, 0.5))


class TestGroupAdvantage:
    def test_one_success_of_four(self):
        # mean 1/4, population variance 3/16: (3/4) / (sqrt(3)/4) = sqrt(3), (-1/4) / (sqrt(3)/4) = -1/sqrt(3)
        advantage_G = group_advantage(torch.tensor([0.0, 1.0, 0.0, 0.0]), eps=0.0)
        expected = torch.tensor([-1 / math.sqrt(3), math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3)])
        torch.testing.assert_close(advantage_G, expected)

    def test_eps_is_added_to_the_standard_deviation(self):
        # rewards 0, 1: deviation 1/2, std 1/2: (1/2) / (1/2 + 1/2) = 1/2
        assert group_advantage(torch.tensor([0.0, 1.0]), eps=0.5).tolist() == [-0.5, 0.5]

    @pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1.3333])
    def test_equal_rewards_give_exactly_zero(self, reward):
        # the float32 mean of ten times 0.1 is not 0.1, and eps would magnify the difference
        assert group_advantage(torch.full((10,), reward), eps=1e-9).tolist() == [0.0] * 10


class TestTokenWeight:
    # two trajectories: two chunks with 3 and 1 counted tokens, one chunk with 2
    mask_NLA = torch.tensor([[[1, 1], [1, 0]], [[1, 0], [0, 0]], [[1, 1], [0, 0]]]).bool()
    trajectory_N = torch.tensor([0, 0, 1])

    def weigh(self, norm, trajectories=2, tokens=6):
        return token_weight(self.mask_NLA, self.trajectory_N, trajectories=trajectories, tokens=tokens, norm=norm)

    def test_traj_mean(self):
        # 1/4 per token in the first, 1/2 in the second, each trajectory counts 1/2
        expected = [[[1 / 8, 1 / 8], [1 / 8, 0]], [[1 / 8, 0], [0, 0]], [[1 / 4, 1 / 4], [0, 0]]]
        assert self.weigh("traj_mean").tolist() == expected

    def test_token_mean(self):
        torch.testing.assert_close(self.weigh("token_mean"), self.mask_NLA / 6)

    def test_divides_by_what_other_ranks_have_too(self):
        torch.testing.assert_close(self.weigh("traj_mean", trajectories=10), self.weigh("traj_mean") / 5)
        torch.testing.assert_close(self.weigh("token_mean", tokens=60), self.weigh("token_mean") / 10)

    def test_a_trajectory_without_counted_tokens_weighs_nothing(self):
        mask_NLA = self.mask_NLA.clone()
        mask_NLA[2] = False
        weight_NLA = token_weight(mask_NLA, self.trajectory_N, trajectories=1, tokens=4, norm="traj_mean")
        assert weight_NLA[2].eq(0).all()
        assert weight_NLA.sum() == 1

    def test_planned_counts(self):
        # 2 trajectories of 50 steps were planned; one of 40 is here, of which a mask kept half the tokens, 140
        counts = planned_counts(140, 40, planned_trajectories=2, steps_of_trajectory=50)
        assert counts == (2, 350)

    def test_const_is_the_same_for_every_token_however_many_there_are(self):
        # the longest episode has 10 tokens, 4 trajectories are planned: 1 / 40
        for rows in (3, 2, 1):
            weight_NLA = token_weight(
                self.mask_NLA[:rows], self.trajectory_N[:rows], trajectories=4, tokens=0, norm="const", longest=10
            )
            assert weight_NLA[self.mask_NLA[:rows]].tolist() == pytest.approx(
                [1 / 40] * int(self.mask_NLA[:rows].sum())
            )

    def test_unknown_norm(self):
        with pytest.raises(ValueError, match=r"'mean'; choose traj_mean, token_mean or const \(grpo.loss_norm="):
            self.weigh("mean")


class TestClippedLoss:
    @pytest.mark.parametrize(
        ("ratio", "advantage", "loss", "clipped"),
        [
            (1.0, 2.0, -2.0, 0),
            (1.3, 2.0, -2.6, 0),  # inside the upper side
            (1.5, 2.0, -2.8, 1),  # min(3.0, 1.4 * 2)
            (0.5, 2.0, -1.0, 0),  # a gain that has shrunk is not clipped
            (0.5, -2.0, 1.6, 1),  # min(-1.0, 0.8 * -2)
            (1.5, -2.0, 3.0, 0),  # a bad token made likelier keeps its gradient
        ],
    )
    def test_one_token(self, ratio, advantage, loss, clipped):
        value, stats = loss_of([ratio], [advantage])
        assert float(value) == pytest.approx(loss, rel=1e-6)  # exp(log(ratio)) in float32
        assert float(stats["clip_fraction"]) == clipped
        assert float(stats["log_ratio_abs"]) == pytest.approx(abs(math.log(ratio)), abs=1e-6)

    def test_the_gradient_stops_where_it_is_clipped(self):
        old = tokens(-1.0, -1.0)
        new = (old + tokens(1.5, 1.0).log()).requires_grad_()
        loss, _ = clipped_loss(new, old, torch.tensor([2.0, 2.0]), torch.ones_like(old), clip_low=0.2, clip_high=0.4)
        loss.backward()
        # at ratio 1, d(-A exp(x)) / dx = -A
        torch.testing.assert_close(new.grad.flatten(), torch.tensor([0.0, -2.0]))

    @pytest.mark.parametrize(
        ("log_ratio", "advantage", "gradient"),
        [
            (0.3, 2.0, -2.0 * math.exp(0.3)),  # d(-A exp(x)) / dx = -A exp(x)
            (90.0, 2.0, 0.0),  # the clip says 0; exp(90) is infinite in float32, and 0 times infinity is NaN
            (-200.0, -2.0, 0.0),
            (19.0, -2.0, 2.0 * math.exp(19.0)),
            (90.0, -2.0, 0.0),  # beyond the limit of 20
        ],
    )
    def test_the_gradient_is_a_number_at_any_ratio(self, log_ratio, advantage, gradient):
        assert gradient_at(log_ratio, advantage) == pytest.approx(gradient, rel=1e-6)

    @pytest.mark.parametrize(
        ("ratio", "advantage", "loss", "clipped"),
        [
            (2.9, -2.0, 5.8, 0),  # below 3: as without
            (4.0, -2.0, 6.0, 1),  # -max(min(-8, -2.8), 3 * -2)
            (0.5, -2.0, 1.6, 1),  # the lower clip acts as before
            (4.0, 2.0, -2.8, 1),  # a positive advantage has its own clip
        ],
    )
    def test_dual_clip(self, ratio, advantage, loss, clipped):
        value, stats = loss_of([ratio], [advantage], dual_clip=3.0)
        assert float(value) == pytest.approx(loss, rel=1e-6)
        assert float(stats["clip_fraction"]) == clipped
        assert (gradient_at(math.log(ratio), advantage, dual_clip=3.0) == 0) == clipped

    def test_is_a_weighted_sum(self):
        loss, stats = loss_of([1.0, 1.5], [1.0, 2.0], weights=[0.25, 0.5])
        assert float(loss) == pytest.approx(0.25 * -1.0 + 0.5 * -2.8, rel=1e-6)
        assert float(stats["clip_fraction"]) == 0.5

    def test_a_token_without_weight_has_no_influence(self):
        old = tokens(-1.0, -1e30)
        new = tokens(-1.0, 1e30).requires_grad_()  # its ratio would be infinite
        loss, stats = clipped_loss(new, old, torch.tensor([1.0, 1.0]), tokens(1, 0), clip_low=0.2, clip_high=0.4)
        loss.backward()
        assert loss.item() == -1.0
        assert new.grad.flatten().tolist() == [-1.0, 0.0]
        assert float(stats["log_ratio_abs"]) == 0.0

    def test_parts_add_up_to_the_whole(self):
        draw = torch.Generator().manual_seed(0)
        shape = (7, 2, 3)
        new, old = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(2))
        advantage_N = torch.randn(7, generator=draw, dtype=torch.float64)
        mask_NLA = torch.rand(shape, generator=draw) > 0.3
        trajectory_N = torch.tensor([0, 0, 0, 1, 1, 2, 2])
        weight_NLA = token_weight(mask_NLA, trajectory_N, trajectories=3, tokens=int(mask_NLA.sum()), norm="traj_mean")

        def loss(start, stop):
            part = slice(start, stop)
            return clipped_loss(new[part], old[part], advantage_N[part], weight_NLA[part], clip_low=0.2, clip_high=0.4)[
                0
            ]

        whole = torch.stack([
            -(torch.minimum(r * a, r.clamp(0.8, 1.4) * a)[m].mean())
            for i in range(3)
            for own in [trajectory_N == i]
            for r, a, m in [((new - old)[own].exp(), advantage_N[own][:, None, None], mask_NLA[own])]
        ]).mean()  # fmt: skip
        torch.testing.assert_close(loss(0, 7), whole, rtol=1e-6, atol=0)  # the weights are float32
        torch.testing.assert_close(loss(0, 2) + loss(2, 6) + loss(6, 7), loss(0, 7), rtol=1e-12, atol=0)
