"""Advantages, group filters and down-sampling, with numbers worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.toy import ToyPolicy, ToyPool
from tests.helpers.toy_training import Rewards
from vla_rl.config.schema import EvaluationConfig, GRPOConfig, RolloutConfig
from vla_rl.errors import UserError
from vla_rl.functional.advantages import ADVANTAGES
from vla_rl.functional.group_filters import best_and_worst
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.plan import RESAMPLED

ONE_OF_FOUR = torch.tensor([0.0, 1.0, 0.0, 0.0])


def advantage(name, reward_G, eps=0.0):
    return ADVANTAGES[name](torch.as_tensor(reward_G), eps).tolist()


class TestAdvantages:
    def test_grpo_unbiased(self):
        # mean 1/4, sample variance (9 + 1 + 1 + 1) / 16 / 3 = 1/4: (3/4) / (1/2) and (-1/4) / (1/2)
        assert advantage("grpo_unbiased", ONE_OF_FOUR) == pytest.approx([-0.5, 1.5, -0.5, -0.5])
        assert advantage("grpo_unbiased", ONE_OF_FOUR, eps=0.5) == pytest.approx([-0.25, 0.75, -0.25, -0.25])

    def test_rloo(self):
        # the success against the mean 0 of the others, a failure against their mean 1/3
        assert advantage("rloo", ONE_OF_FOUR) == pytest.approx([-1 / 3, 1, -1 / 3, -1 / 3])

    def test_dr_grpo(self):
        assert advantage("dr_grpo", ONE_OF_FOUR, eps=9.0) == [-0.25, 0.75, -0.25, -0.25]

    def test_ngrpo(self):
        # 8 rewards and an imagined 1: two 1 and seven 0, mean 2/9, sample variance (2 * 49 + 7 * 4) / 81 / 8 = 7/36
        values = advantage("ngrpo", [1.0] + [0.0] * 7)
        assert values[0] == pytest.approx(7 / 9 / math.sqrt(7 / 36)) == pytest.approx(1.76, abs=0.005)
        assert values[1:] == pytest.approx([-2 / 9 / math.sqrt(7 / 36)] * 7)
        assert values[1] == pytest.approx(-0.50, abs=0.005)
        assert advantage("ngrpo", [0.0] * 8) == pytest.approx([-1 / 3] * 8)
        assert advantage("ngrpo", [1.0] * 8) == [0.0] * 8

    def test_ngrpo_with_shaped_rewards_imagines_the_best(self):
        # mean of 2 0 2 = 4/3, sample variance (4/9 + 16/9 + 4/9) / 2 = 4/3
        assert advantage("ngrpo", [2.0, 0.0]) == pytest.approx([2 / 3 / math.sqrt(4 / 3), -4 / 3 / math.sqrt(4 / 3)])

    def test_raft(self):
        # mean 1/4, population standard deviation sqrt(3) / 4: the success (3/4) / (sqrt(3) / 4), failures nothing
        assert advantage("raft", ONE_OF_FOUR) == pytest.approx([0, math.sqrt(3), 0, 0])

    @pytest.mark.parametrize("name", ["grpo", "grpo_unbiased", "dr_grpo", "rloo", "raft"])
    def test_equal_rewards_teach_nothing(self, name):
        assert advantage(name, [1.0] * 8, eps=1e-6) == [0.0] * 8


class TestDownsampling:
    def test_half_best_half_worst(self):
        assert best_and_worst(torch.tensor([0.0, 1, 0, 1, 1, 0]), 4).tolist() == [0, 1, 2, 3]
        assert best_and_worst(torch.tensor([0.3, 0.9, 0.1, 0.5]), 2).tolist() == [1, 2]

    def test_one_success_is_kept(self):
        assert best_and_worst(torch.tensor([0.0, 0, 0, 1]), 2).tolist() == [0, 3]
        # the best half is the success and the first failure, the worst half the next two
        assert best_and_worst(torch.tensor([0.0, 0, 0, 0, 0, 1]), 4).tolist() == [0, 1, 2, 5]

    def test_all_of_the_group(self):
        assert best_and_worst(torch.tensor([1.0, 1, 0, 0]), 4).tolist() == [0, 1, 2, 3]

    def test_of_equal_rewards_the_first(self):
        assert best_and_worst(torch.zeros(40), 4).tolist() == [0, 1, 2, 3]


def data_module(*, rank=0, world=1, callbacks=(), groups=5, **grpo):
    data = RolloutDataModule(
        ToyPool(),
        ToyPolicy(),
        rollout=RolloutConfig(groups=groups, group_size=4, temperature=1.0, train_init_states=(0, 20)),
        grpo=GRPOConfig(minibatches=3, **grpo),
        evaluation=EvaluationConfig(),
        seed=1,
    )
    data.trainer = SimpleNamespace(current_epoch=0, global_rank=rank, world_size=world, callbacks=list(callbacks))
    return data


def trained_uids(epoch):
    return sorted(t.episode.uid for batch in epoch for t in batch.trajectories if batch.token_mask_NLA.any())


def only_the_first(group):
    """A filter of the user's own."""
    return group.trajectories[0].episode.group == 0


def plus_or_minus_one(reward_G, eps):
    """An advantage of the user's own."""
    return 2 * reward_G - 1


class TestInTheDataModule:
    def test_keep_trains_on_groups_without_spread(self):
        epoch = data_module(callbacks=[Rewards(0, 0, 0, 0)], group_filter="keep").train_dataloader()
        assert trained_uids(epoch) == list(range(20))

    def test_ngrpo_learns_from_failures_that_are_kept(self):
        data = data_module(callbacks=[Rewards(0, 0, 0, 0)], group_filter="keep", advantage="ngrpo", advantage_eps=1e-9)
        (advantage,) = {t.advantage for t in data.train_dataloader().training_trajectories}
        # 4 failures and an imagined success: mean 1/5, sample variance (4 * 1 + 16) / 25 / 4 = 1/5
        assert advantage == pytest.approx(-0.2 / math.sqrt(0.2), rel=1e-6)

    def test_downsampling_trains_on_some_with_the_advantages_of_all(self):
        data = data_module(callbacks=[Rewards(0, 1, 0, 0)], downsample=2, advantage="dr_grpo")
        epoch = data.train_dataloader()
        assert trained_uids(epoch) == [uid for g in range(5) for uid in (4 * g, 4 * g + 1)]
        assert [t.advantage for t in epoch.training_trajectories[:2]] == [-0.25, 0.75]
        assert sum(len(group.trajectories) for group in epoch.groups) == 20  # statistics still see all

    def test_raft_pays_for_successes_alone(self):
        epoch = data_module(callbacks=[Rewards(0, 1, 0, 1)], advantage="raft").train_dataloader()
        assert trained_uids(epoch) == [uid for g in range(5) for uid in (4 * g + 1, 4 * g + 3)]
        assert sum(len(group.trajectories) for group in epoch.groups) == 20  # statistics still see all

    def test_functions_of_the_users_own(self):
        here = __name__
        data = data_module(group_filter=f"{here}.only_the_first", advantage=f"{here}.plus_or_minus_one")
        epoch = data.train_dataloader()
        assert trained_uids(epoch) == [0, 1, 2, 3]
        assert all(t.advantage == (1 if t.success else -1) for t in epoch.training_trajectories)

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("advantage", "rlo", "no advantage named 'rlo'; did you mean 'rloo'? Choices: grpo, grpo_unbiased, rloo, "
             "dr_grpo, ngrpo, raft, gae, distill, or my_pkg.my_function (grpo.advantage=rloo)"),
            ("group_filter", "dropp", "no group_filter named 'dropp'; did you mean 'drop'? Choices: drop, keep, "
             "resample, or my_pkg.my_function (grpo.group_filter=drop)"),
            ("group_filter", "no_pkg.fn", "no module named 'no_pkg' (grpo.group_filter=no_pkg.fn)"),
        ],
    )  # fmt: skip
    def test_unknown_names(self, option, value, message):
        with pytest.raises(UserError) as caught:
            data_module(**{option: value})
        assert str(caught.value) == message


class TestResample:
    def test_groups_without_spread_are_collected_again_from_other_states(self):
        plain = data_module(groups=12).train_dataloader()
        poor = {g.trajectories[0].episode.group for g in plain.groups if not g.has_spread}
        assert poor  # the toy gives some
        epoch = data_module(groups=12, group_filter="resample", resample_rounds=1).train_dataloader()
        again = epoch.groups[12:]
        assert {g.trajectories[0].episode.group for g in again} == poor
        for group in again:
            first = group.trajectories[0].episode
            original = plain.groups[first.group].trajectories[0].episode
            assert first.task == original.task
            assert first.uid == original.uid + RESAMPLED
            assert first.seed != original.seed
        assert trained_uids(epoch) == sorted(
            t.episode.uid for g in epoch.groups if g.has_spread for t in g.trajectories
        )

    def test_it_ends(self):
        epoch = data_module(
            callbacks=[Rewards(1, 1, 1, 1)], group_filter="resample", resample_rounds=3
        ).train_dataloader()
        assert len(epoch.groups) == 5 * 4
        assert not epoch.training_trajectories
        uids = [t.episode.uid for group in epoch.groups for t in group.trajectories]
        assert len(set(uids)) == len(uids) == 80
        assert len({group.trajectories[0].episode.init_state for group in epoch.groups}) > 5
        assert len(list(epoch)) == 3  # batches without weight

    def test_advantages_are_set_once_for_all_rounds(self):
        """What sets them may ask the policy, and ranks have different numbers of rounds."""

        class Calls(RolloutCallback):
            groups: list[int] = []

            def set_advantages(self, groups):
                self.groups.append(len(groups))

        callbacks = [Rewards(1, 1, 1, 1), Calls()]
        epoch = data_module(callbacks=callbacks, group_filter="resample", resample_rounds=3).train_dataloader()
        assert len(epoch.groups) == 20
        assert Calls.groups == [20]

    def test_ranks_collect_what_one_would(self):
        key = lambda epoch: sorted(t.episode.uid for g in epoch.groups for t in g.trajectories)  # noqa: E731
        alone = key(data_module(groups=12, group_filter="resample").train_dataloader())
        shared = [data_module(groups=12, group_filter="resample", rank=r, world=2).train_dataloader() for r in (0, 1)]
        assert sorted(key(shared[0]) + key(shared[1])) == alone
