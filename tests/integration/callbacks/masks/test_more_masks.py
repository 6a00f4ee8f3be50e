"""The masks beside PCM's default, under a real Lightning Trainer."""

import pytest
import torch

from callbacks.masks.entropy_mask import EntropyMask
from callbacks.masks.global_mask import GlobalPCM, ScoreNorm
from callbacks.masks.padded import FullPadded, RandomPadded
from callbacks.masks.pcm import PCM
from callbacks.masks.random_mask import RandomMask
from callbacks.masks.single_phase import SinglePhase
from tests.helpers.make import DIMS, STEPS, MadeData, make_trajectory, random_groups, train
from tests.helpers.toy_training import Recorder, Rewards
from tests.helpers.toy_training import fit as fit_toy
from tests.unit.callbacks.masks.test_masks import alone, kept_of, lengths, phase_group
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.errors import UserError
from vla_rl.functional.losses import token_weight
from vla_rl.functional.phases import labels
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

    def test_shorter_windows_have_more_slots(self):
        mask, trajectory = RandomPadded(budget=15), make_trajectory([0] * 15)
        mask.data = MadeData(max_chunks=15)
        assert mask.choose(trajectory, seeded_generator(0)).tolist() == list(range(15))
        trajectory.episode.window = 4  # of 8 steps: 30 slots
        assert mask.inclusion(trajectory).tolist() == [0.5] * 15
        assert len(mask.choose(trajectory, seeded_generator(0))) < 15


def test_full_padded_with_a_shorter_window(tmp_path):
    def shorter(iteration):
        groups = random_groups(iteration)
        groups[0].trajectories[0].episode.window = 4
        return groups

    module = train(tmp_path, FullPadded(), data=MadeData(shorter, max_chunks=20))
    assert sum(len(batch) for batch in module.seen) == 7 * 20 + 40


def test_entropy_keeps_the_least_sure():
    trajectory = make_trajectory([0] * 4, last_steps=2)
    trajectory.actions.entropy_NLA = torch.tensor([1.0, 3.0, 2.0, 2.5])[:, None, None].expand(-1, STEPS, DIMS)
    mask = EntropyMask(budget=2)
    assert mask.choose(trajectory, seeded_generator(0)).tolist() == [1, 3]
    assert EntropyMask(budget=9).choose(trajectory, seeded_generator(0)).tolist() == [0, 1, 2, 3]


def counted(module):
    """uid -> chunks kept of it, without the row of zero weight of a batch that would be empty."""
    module.seen = [batch for batch in module.seen if batch.token_mask_NLA.any()]
    return kept_of(module)


class TestGlobal:
    def scored(self, iteration):
        """Chunk norms 2 2 2 (advantage 2), 1 1 1 and 3 0 0 (advantage -1), nothing for advantage 0."""
        trajectories = [make_trajectory([0] * 3, uid=uid, success=uid == 0, advantage=a)
                        for uid, a in enumerate((2.0, -1.0, -1.0, 0.0))]  # fmt: skip
        for trajectory, values in zip(trajectories, ((1, 1, 1), (1, 1, 1), (9, 0, 0), (9, 9, 9)), strict=True):
            per_token = torch.tensor(values) / (STEPS * DIMS)
            trajectory.actions.extras["score_sq"] = per_token[:, None, None].expand(-1, STEPS, DIMS)
        return [RolloutGroup(trajectories)]

    def test_score_norm_keeps_the_largest_of_all(self, tmp_path):
        kept = counted(train(tmp_path, ScoreNorm(budget=1), data=MadeData(self.scored)))
        assert kept == {0: [0, 1, 2], 2: [0]}  # 4 of 12, the norms 3 and 2

    def test_without_advantage_nothing_is_kept(self, tmp_path):
        kept = counted(train(tmp_path, ScoreNorm(budget=3), data=MadeData(self.scored)))
        assert kept == {0: [0, 1, 2], 1: [0, 1, 2], 2: [0]}

    def test_pcm_spends_the_budget_where_advantage_and_phase_weigh_most(self, tmp_path):
        kept = {0: 0, 1: 0, 2: 0}
        for seed in range(40):
            of_seed = counted(train(tmp_path, GlobalPCM(budget=1), data=MadeData(self.scored, seed=seed)))
            assert sum(map(len, of_seed.values())) == 4
            assert 3 not in of_seed
            for uid, chunks in of_seed.items():
                kept[uid] += len(chunks)
        assert kept[0] > 1.25 * kept[1]
        assert kept[0] > 1.25 * kept[2]


class TestLabellers:
    def test_time_quantile(self):
        mask = PCM(labeller="time_quantile")
        assert mask.scores.phases == ("time_1", "time_2", "time_3", "time_4", "time_5")
        assert mask.scores.label(make_trajectory([0] * 10)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert mask.scores.label(make_trajectory([0] * 3)).tolist() == [0, 1, 3]

    def test_action_change(self):
        trajectory = make_trajectory([0] * 6, action=[0.0, 0.0, 1.0, 1.1, 1.6, 1.6])
        # changes 0 0 1 .1 .5 0, ranks 0 1 5 3 4 2
        assert PCM(labeller="action_change").scores.label(trajectory).tolist() == [0, 0, 2, 1, 2, 1]

    def test_the_distance_from_the_first_chunk_that_grips(self):
        """A few closing steps are no grip; a second grip changes nothing."""
        label = PCM(labeller="grasp_time").scores.label
        names = [label.phases[n] for n in label(make_trajectory([0, 0, 0, 0, 0, 3, 8, 8, 0, 0, 8, 0])).tolist()]
        assert names == [
            *["earlier"] * 3, "3_before", "2_before", "1_before", "closing", "1_after", "2_after", "3_after",
            *["later"] * 2,
        ]  # fmt: skip
        assert label(make_trajectory([0, 3, 0])).tolist() == [0, 0, 0]

    def test_of_the_users_own(self, tmp_path):
        mask = PCM(budget=2, labeller=f"{__name__}.halves")
        train(tmp_path, mask)
        assert mask.scores.phases == ("early", "late")
        assert len(mask.keep_prob) == 2
        assert {name.rpartition("/")[2] for name in mask.metrics() if name.startswith("pcm/keep")} == {"early", "late"}

    def test_one_that_names_no_phases(self):
        with pytest.raises(UserError, match=r"does not name its phases: mark it with @labels\('early', 'late'\)"):
            PCM(labeller=f"{__name__}.nameless")


@labels("early", "late")
def halves(trajectory):
    return torch.arange(len(trajectory)) * 2 // len(trajectory)


def nameless(trajectory):
    return torch.zeros(len(trajectory), dtype=torch.int64)


class TestOptions:
    def test_the_score_may_leave_the_gripper_out(self):
        groups = [RolloutGroup([make_trajectory([4], uid=0), make_trajectory([8], uid=1, success=False)])]
        with_gripper, without = PCM(refresh_every=1), PCM(refresh_every=1, gripper=False)
        with_gripper.update(groups, alone)
        without.update(groups, alone)
        assert with_gripper.scores.last_score[2] == 0.5
        assert without.keep_prob == [1.0] * 5  # no divergence at all: no score

    def test_a_phase_not_seen_since_is_carried_or_falls_to_the_floor(self):
        def after_two(missing):
            pcm = PCM(refresh_every=1, missing=missing)
            pcm.update([phase_group(approach=1.0, active_grip=2.0)], alone)
            pcm.update([phase_group(approach=4.0)], alone)
            return pcm.keep_prob

        assert after_two("carry") == pytest.approx([1, 0.1, 0.5, 0.1, 0.1])
        assert after_two("floor") == pytest.approx([1, 0.1, 0.1, 0.1, 0.1])

    def test_sums_favour_what_is_seen_often(self):
        def after_three(collapse):
            pcm = PCM(refresh_every=2, collapse=collapse)
            for gaps in ({"approach": 1.0}, {"approach": 2.0, "active_grip": 4.0}, {"approach": 2.0}):
                pcm.update([phase_group(**gaps)], alone)
            return pcm.keep_prob

        assert after_three("mean")[:3:2] == pytest.approx([0.5, 1.0])
        assert after_three("sum")[:3:2] == pytest.approx([1.0, 1.0])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"labeller": "griper"}, "no labeller named 'griper'; did you mean 'gripper'? Choices: gripper, "
             "gripper_strict, time_quantile, action_change, grasp_time, or my_pkg.my_function (mask.labeller=gripper)"),
            ({"labeller": "math.tau"}, "'math.tau' is neither a class nor a function (mask.labeller=math.tau)"),
            ({"vector": 3}, "no vector named '3'. Choices: mean, flat, or my_pkg.my_function (mask.vector=mean)"),
            ({"estimator": "hat"}, "no estimator named 'hat'; did you mean 'ht'? Choices: paper, ht, hajek, "
             "or my_pkg.my_function (mask.estimator=ht)"),
            ({"missing": "zero"}, "no missing named 'zero'. Choices: carry, floor (mask.missing=carry)"),
            ({"debias": 1}, "mask.debias must be true or false, got 1 (mask.debias=true)"),
        ],
    )  # fmt: skip
    def test_wrong_options(self, options, message):
        with pytest.raises(ValueError) as caught:
            PCM(**options)
        assert str(caught.value) == message


def test_an_iteration_with_nothing_to_teach_is_skipped_with_a_warning(tmp_path):
    recorder = Recorder()
    with pytest.warns(UserWarning, match=r"iteration 2 skipped: every group has equal rewards \(zero advantage\)"):
        _, _module, _, _ = fit_toy(tmp_path, callbacks=[PCM(budget=2), Rewards(1, 1, 1, 1), recorder])
    assert not recorder.gradients


class TestCreditScore:
    """PCM that scores its phases by a critic's credit."""

    def test_phases_with_more_credit_are_kept_more_often(self):
        """Credit .01 | .04 and .04: means .01 and .04, relative to the highest .25 and 1."""
        trajectory = make_trajectory([0, 0, 0], uid=0)
        trajectory.actions.extras["value"] = torch.tensor([0.5, 0.6, 0.8])
        pcm = PCM(budget=1, labeller=f"{__name__}.first_alone", score="credit")
        pcm.update([RolloutGroup([trajectory])], lambda tensor: tensor)
        assert pcm.keep_prob == pytest.approx([0.25, 1.0])
        logged = pcm.metrics()
        assert [logged[f"pcm/credit/{phase}"] for phase in ("first", "others")] == pytest.approx([0.01, 0.04])

    def test_it_needs_a_critic(self, tmp_path):
        data = MadeData()
        data.grpo.advantage = "grpo"
        with pytest.raises(UserError, match=r"mask.score=credit needs a critic.*grpo.advantage=grpo.*critic=separate"):
            train(tmp_path, PCM(budget=1, score="credit"), data=data)


@labels("first", "others")
def first_alone(trajectory):
    return (torch.arange(len(trajectory)) > 0).long()
