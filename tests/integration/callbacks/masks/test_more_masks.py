"""The masks beside PCM's default, under a real Lightning Trainer."""

import pytest
import torch

from callbacks.masks.entropy_mask import EntropyMask
from callbacks.masks.global_mask import GlobalPCM, ScoreNorm
from callbacks.masks.padded import FullPadded, RandomPadded
from callbacks.masks.pcm import PCM
from callbacks.masks.random_mask import RandomMask
from callbacks.masks.single_phase import SinglePhase
from tests.helpers.make import MadeData, make_trajectory, random_groups, train
from tests.helpers.toy_training import Recorder, Rewards
from tests.helpers.toy_training import fit as fit_toy
from tests.unit.callbacks.masks.test_global_mask import counted, scored
from tests.unit.callbacks.masks.test_masks import kept_of, lengths
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.functional.losses import token_weight
from vla_rl.types import ChunkBatch, RolloutGroup

pytestmark = pytest.mark.no_cover  # lines that tests/unit covers, hundreds of times

MASKS = {
    "pcm": lambda: PCM(budget=3),
    "ht": lambda: PCM(budget=3, estimator="ht"),
    "hajek": lambda: PCM(budget=3, estimator="hajek"),
    "literal": lambda: PCM(budget=3, labeller="gripper_strict", vector="flat", collapse="sum", missing="floor"),
    "debias": lambda: PCM(budget=3, debias=True, group_weight="harmonic", gripper=False),
    "time": lambda: PCM(budget=3, labeller="time_quantile"),
    "change": lambda: PCM(budget=3, labeller="action_change"),
    "knee": lambda: PCM(budget={"knee": True}),
    "random": lambda: RandomMask(budget=3),
    "random_padded": lambda: RandomPadded(budget=6),
    "single_phase": lambda: SinglePhase(budget=3),
    "entropy": lambda: EntropyMask(budget=3),
    "score_norm": lambda: ScoreNorm(budget=3),
    "global": lambda: GlobalPCM(budget=3),
}


class TestEveryMask:
    @pytest.mark.parametrize("name", MASKS)
    def test_the_draw_depends_on_seed_iteration_and_episode_alone(self, tmp_path, name):
        def regrouped(iteration):  # other batches, as another rank or number of minibatches would have
            groups = random_groups(iteration)
            return [RolloutGroup(g.trajectories[::-1]) for g in reversed(groups)]

        here = kept_of(train(tmp_path, MASKS[name](), iterations=2))
        assert len(here) > 4
        assert 0 < sum(map(len, here.values())) < sum(sum(lengths(i).values()) for i in (0, 1))
        assert kept_of(train(tmp_path, MASKS[name](), data=MadeData(regrouped), iterations=2)) == here

    @pytest.mark.parametrize("name", MASKS)
    def test_every_pass_keeps_the_same(self, tmp_path, name):
        rows = train(tmp_path, MASKS[name](), data=MadeData(passes=2)).rows_seen()
        assert rows[:2] == rows[2:]

    @pytest.mark.parametrize("name", MASKS)
    @pytest.mark.parametrize("rewards", [(1, 1, 1, 1), (0, 0, 0, 0), (0, 1, 0, 0)], ids=["all", "none", "one"])
    def test_degenerate_groups(self, tmp_path, name, rewards):
        """On the toy world nothing ever closes a gripper for long, and episodes are shorter than some budgets."""
        _, _module, _data, recorder = fit_toy(tmp_path, callbacks=[MASKS[name](), Rewards(*rewards)])
        mixed = 0 < sum(rewards) < 4
        assert bool(recorder.gradients) == mixed
        for metrics in recorder.metrics:
            assert all(value == value for value in metrics.values())  # no NaN
            assert metrics["chunks/kept"] <= max(metrics["chunks/real"], 2)

    @pytest.mark.parametrize("name", ["pcm", "ht", "random", "random_padded"])
    def test_inclusion_is_how_often_a_chunk_is_kept(self, name):
        mask, trajectory = MASKS[name](), make_trajectory([0, 0, 0, 0, 8, 8, 0, 0])
        mask.data = MadeData(max_chunks=12)
        if isinstance(mask, PCM):
            mask.keep_prob = [0.2, 0.5, 1.0, 0.4, 0.1]
        draws = [mask.choose(trajectory, seeded_generator(i)) for i in range(4000)]
        share_N = torch.cat(draws).bincount(minlength=8) / 4000
        # 4 standard errors of a share of 4000 draws are at most 4 * sqrt(.25 / 4000) = .032
        assert (share_N - mask.inclusion(trajectory)).abs().max() < 0.032


class TestSameAsNoMask:
    def test_a_budget_of_everything_is_no_mask_bit_for_bit(self, tmp_path):
        _, plain, _, none = fit_toy(tmp_path)
        _, masked, _, everything = fit_toy(tmp_path, callbacks=[RandomMask(budget=6)])  # of at most 6
        assert len(none.gradients) == len(everything.gradients) > 0
        assert all(torch.equal(a, b) for a, b in zip(none.gradients, everything.gradients, strict=True))
        assert torch.equal(plain.policy.head.weight, masked.policy.head.weight)

    def test_padding_changes_no_gradient(self, tmp_path):
        _, _, _, none = fit_toy(tmp_path, iterations=1)
        _, _, _, padded = fit_toy(tmp_path, iterations=1, callbacks=[FullPadded()])
        assert padded.metrics[0]["chunks/kept"] > none.metrics[0]["chunks/kept"]
        for a, b in zip(none.gradients, padded.gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("estimator", ["ht", "hajek"])
    def test_a_correction_of_a_draw_of_everything_is_none(self, tmp_path, estimator):
        _, _, _, none = fit_toy(tmp_path, iterations=1)
        _, _, _, masked = fit_toy(tmp_path, iterations=1, callbacks=[PCM(budget=6, estimator=estimator)])
        for a, b in zip(none.gradients, masked.gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)

    def test_horvitz_thompson_weighs_each_token_as_without_a_mask_on_average(self):
        mask = PCM(budget=3, estimator="ht")
        mask.keep_prob = [0.3, 1.0, 0.8, 0.4, 0.1]
        mask.data = MadeData()
        trajectories = [make_trajectory([0, 0, 0, 0, 8, 8, 0, 0], uid=0, last_steps=3), make_trajectory([0, 0], uid=1)]
        whole = ChunkBatch.from_trajectories(trajectories)
        full_NLA = token_weight(whole.token_mask_NLA, whole.trajectory_N, trajectories=2, tokens=0, norm="traj_mean")
        total_NLA, draws = torch.zeros_like(full_NLA), 1500
        for draw in range(draws):
            mask._iteration = draw
            batch = ChunkBatch.from_trajectories(trajectories)
            rows = torch.cat([mask._mask(batch, index) for index in range(2)])
            batch.select_(rows)
            total_NLA[rows] += token_weight(
                batch.token_mask_NLA, batch.trajectory_N, trajectories=2, tokens=0, norm="traj_mean",
                weight_N=batch.weight_N, share_N=batch.share_N,
            )  # fmt: skip
        # a chunk of probability pi counts 1 / pi; pi >= .3 * 3 / 5.7 = .16: 4 * sqrt((1 - pi) / pi / 1500) = .24
        torch.testing.assert_close(total_NLA / draws, full_NLA, rtol=0.24, atol=0)


class TestRandomPadded:
    def test_draws_from_the_padded_slots(self, tmp_path):
        kept = [
            len(chunks)
            for seed in range(30)
            for chunks in kept_of(
                train(tmp_path, RandomPadded(budget=12), data=MadeData(max_chunks=64, seed=seed))
            ).values()
        ]
        mean_length = sum(lengths().values()) / len(lengths())
        # hypergeometric: 12 / 64 of the real chunks; trajectories that keep none are not in `kept`
        total = sum(kept) / (30 * len(lengths()))
        assert total == pytest.approx(12 / 64 * mean_length, rel=0.12)
        assert len(kept) < 30 * len(lengths())


class TestGlobal:
    def test_pcm_spends_the_budget_where_advantage_and_phase_weigh_most(self, tmp_path):
        kept = {0: 0, 1: 0, 2: 0}
        for seed in range(40):
            of_seed = counted(train(tmp_path, GlobalPCM(budget=1), data=MadeData(scored, seed=seed)))
            assert sum(map(len, of_seed.values())) == 4
            assert 3 not in of_seed
            for uid, chunks in of_seed.items():
                kept[uid] += len(chunks)
        assert kept[0] > 1.25 * kept[1]
        assert kept[0] > 1.25 * kept[2]


def test_an_iteration_with_nothing_to_teach_is_skipped_with_a_warning(tmp_path):
    recorder = Recorder()
    with pytest.warns(UserWarning, match=r"iteration 2 skipped: every group has equal rewards \(zero advantage\)"):
        _, _module, _, _ = fit_toy(tmp_path, callbacks=[PCM(budget=2), Rewards(1, 1, 1, 1), recorder])
    assert not recorder.gradients
