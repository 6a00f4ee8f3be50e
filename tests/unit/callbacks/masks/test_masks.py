"""The masks, under a real Lightning Trainer; trajectories are written down, so no simulator runs."""

import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.masks.advantage_mask import AdvantageMask, GlobalAdvantage
from callbacks.masks.base import ChunkMask, labeller_of
from callbacks.masks.critic_choice import CriticChoice
from callbacks.masks.global_mask import GlobalPCM, ScoreNorm
from callbacks.masks.padded import FullPadded
from callbacks.masks.pcm import PCM
from callbacks.masks.random_mask import RandomMask
from callbacks.masks.single_phase import SinglePhase
from tests.helpers.make import MadeData, MadeModule, made_trainer, make_trajectory, random_groups, train
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.errors import UserError
from vla_rl.functional.divergence import mean_divergence
from vla_rl.functional.phases import PHASES, time_quantile, trajectory_phases
from vla_rl.functional.sampling import ESTIMATORS
from vla_rl.types import RolloutGroup

NAN = math.nan


class First(ChunkMask):
    """Keeps the first `budget` chunks."""

    def choose(self, trajectory, generator):
        return torch.arange(self.budget.of(len(trajectory)))


class Late(ChunkMask):
    """Leaves out the first `budget` chunks, of a trajectory that has more."""

    def choose(self, trajectory, generator):
        return torch.arange(self.budget.of(len(trajectory)), len(trajectory))


class Weighs(First):
    """Chunk k counts k + 1 times, and 2 k + 1 times in the divisor."""

    def update(self, groups, reduce):
        self.groups = len(groups)

    def loss_weights(self, trajectory, kept_K):
        return kept_K + 1, 2 * kept_K + 1


class Nothing(ChunkMask):
    def choose(self, trajectory, generator):
        return torch.tensor([], dtype=torch.int64)


def kept_of(module):
    """uid -> chunks kept of it; the same in every pass, or this fails."""
    kept = {}
    for rows in module.rows_seen():
        of_batch = {}
        for row in rows:
            of_batch.setdefault(row // 1000, []).append(row % 1000)
        for uid, chunks in of_batch.items():
            assert kept.setdefault(uid, chunks) == chunks
    return kept


def lengths(iteration=0):
    return {t.episode.uid: len(t) for group in random_groups(iteration) for t in group.trajectories}


class TestBase:
    def test_order_of_hooks(self, tmp_path):
        """The mask acts after the transfer hooks and before the module's own hook and the step."""
        order = []

        class Data(MadeData):
            def transfer_batch_to_device(self, batch, device, dataloader_idx):
                order.append(("transfer_batch_to_device", len(batch)))
                return batch

            def on_after_batch_transfer(self, batch, dataloader_idx):
                order.append(("on_after_batch_transfer", len(batch)))
                return batch

        class Module(MadeModule):
            def on_train_batch_start(self, batch, batch_idx):
                order.append(("module.on_train_batch_start", len(batch)))

            def training_step(self, batch, batch_idx):
                order.append(("training_step", len(batch)))
                return super().training_step(batch, batch_idx)

        class Mask(First):
            def update(self, groups, reduce):
                order.append(("update", sum(len(t) for group in groups for t in group.trajectories)))

            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                order.append(("callback.on_train_batch_start", len(batch)))
                super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

        def one_group(iteration):
            return [RolloutGroup([make_trajectory([0] * 5, uid=0), make_trajectory([0] * 7, uid=1, success=False)])]

        made_trainer(tmp_path, [Mask(budget=2)]).fit(Module(), datamodule=Data(one_group))
        assert order == [
            ("update", 12),
            ("transfer_batch_to_device", 5),
            ("on_after_batch_transfer", 5),
            ("callback.on_train_batch_start", 5),
            ("module.on_train_batch_start", 2),
            ("training_step", 2),
            ("transfer_batch_to_device", 7),
            ("on_after_batch_transfer", 7),
            ("callback.on_train_batch_start", 7),
            ("module.on_train_batch_start", 2),
            ("training_step", 2),
        ]

    def test_at_most_the_budget_is_kept_of_each_trajectory(self, tmp_path):
        kept = kept_of(train(tmp_path, RandomMask(budget=4)))
        assert {uid: len(chunks) for uid, chunks in kept.items()} == {uid: min(4, n) for uid, n in lengths().items()}
        assert all(chunks == sorted(set(chunks)) for chunks in kept.values())

    def test_every_pass_keeps_the_same(self, tmp_path):
        module = train(tmp_path, RandomMask(budget=4), data=MadeData(passes=3))
        rows = module.rows_seen()
        assert len(rows) == 6
        assert rows[:2] == rows[2:4] == rows[4:]

    def test_the_draw_depends_on_episode_iteration_and_seed_alone(self, tmp_path):
        def regrouped(iteration):  # other batches, as another rank or number of minibatches would have
            return [RolloutGroup([t]) for group in reversed(random_groups(0)) for t in group.trajectories]

        here = kept_of(train(tmp_path, RandomMask(budget=4)))
        assert kept_of(train(tmp_path, RandomMask(budget=4), data=MadeData(regrouped))) == here
        assert kept_of(train(tmp_path, RandomMask(budget=4), data=MadeData(seed=1))) != here
        module = train(tmp_path, RandomMask(budget=4), data=MadeData(lambda _: random_groups(0)), iterations=2)
        assert module.rows_seen()[2:] != module.rows_seen()[:2]

    def test_rows_already_gone_stay_gone(self, tmp_path):
        kept = kept_of(train(tmp_path, First(2), OtherFirst(3)))
        assert all(chunks == [0, 1] for chunks in kept.values())  # the second mask would have kept chunk 2

    def test_a_second_mask_counts_by_the_chunks_own_numbers(self, tmp_path):
        kept = kept_of(train(tmp_path, Late(3), OtherFirst(4)))
        assert kept and all(chunks == [3] for chunks in kept.values())  # 3 and on, and 0 to 3

    def test_it_says_how_much_each_kept_chunk_counts_and_learns_from_all_groups(self, tmp_path):
        mask = Weighs(3)
        for batch in train(tmp_path, mask).seen:
            assert torch.equal(batch.weight_N, batch.chunk_N + 1.0) and len(batch) > 9
            assert torch.equal(batch.share_N, 2.0 * batch.chunk_N + 1)
        assert mask.groups == 2

    def test_the_runs_labeller_is_that_of_its_first_mask(self):
        assert labeller_of([]) is trajectory_phases
        assert labeller_of([L.Callback(), PCM(labeller="time_quantile"), RandomMask()]) is time_quantile

    def test_a_batch_left_empty_keeps_one_row_without_weight(self, tmp_path):
        module = train(tmp_path, Nothing(budget=1))
        assert [len(rows) for rows in module.rows_seen()] == [1, 1]
        assert not any(batch.token_mask_NLA.any() for batch in module.seen)

    @pytest.mark.parametrize("mask", [PCM, RandomMask, SinglePhase])
    def test_budget_is_checked_when_built(self, mask):
        with pytest.raises(ValueError, match=r"^mask.budget must be an integer >= 1, got 0 \(mask.budget=12\)$"):
            mask(budget=0)
        with pytest.raises(ValueError, match=r"^mask.budget must be an integer >= 1, got 1.5 \(mask.budget=12\)$"):
            mask(budget=1.5)

    def test_budget_above_the_longest_episode_is_refused_before_a_rollout(self, tmp_path):
        def no_rollout(iteration):
            raise AssertionError("too late")

        with pytest.raises(UserError, match=r"above the 64 chunks .* mask.budget=64 is the most"):
            train(tmp_path, RandomMask(budget=65), data=MadeData(no_rollout, max_chunks=64))
        for mask in (PCM, SinglePhase, GlobalPCM, ScoreNorm, AdvantageMask, GlobalAdvantage):
            with pytest.raises(UserError, match="mask.budget=64 is the most"):
                mask(budget=65).check_run(MadeData(max_chunks=64), [])
        train(tmp_path, RandomMask(budget=15), data=MadeData(max_chunks=15))


@pytest.mark.parametrize("mask", [PCM, SinglePhase, GlobalPCM, CriticChoice])
def test_groups_of_one_episode_are_refused_by_masks_that_compare(mask):
    data = MadeData()
    data.rollout.group_size = 1
    line = r"compares the episodes of a group, and rollout.group_size=1 leaves nothing to compare: rollout.group_size=8"
    with pytest.raises(UserError, match=line):
        mask().check_run(data, [])
    PCM(score="credit").check_run(data, [])


class OtherFirst(First):
    """Lightning refuses two callbacks of one class that both keep a state."""


def phase_group(**gaps):
    """A mixed group: success and failure differ by `gap` in each of 6 action dimensions, in the phases named."""
    closing = {"approach": [0], "active_grip": [5]}  # 5 of 8 steps: gripping, but no sustained grip around it
    success, failure = [], []
    for phase in gaps:
        success += closing[phase]
        failure += closing[phase]
    return RolloutGroup([
        make_trajectory(success, uid=0, action=list(gaps.values())),
        make_trajectory(failure, uid=1, action=0.0, success=False),
    ])  # fmt: skip


def alone(tensor):
    """The sum over one rank."""
    return tensor


class TestDivergence:
    def test_average_over_groups_that_have_both_outcomes(self):
        groups = [
            phase_group(approach=1.0, active_grip=2.0),
            phase_group(approach=3.0),
            RolloutGroup([make_trajectory([0], action=9.0), make_trajectory([0])]),  # nobody fails
        ]
        full_F, no_gripper_F = mean_divergence(groups, alone)
        # 6 dimensions differ by the gap: sqrt(6) * gap; approach averages 1 and 3
        expected = torch.tensor([2 * 6**0.5, NAN, 2 * 6**0.5, NAN, NAN], dtype=torch.float64)
        torch.testing.assert_close(full_F, expected, rtol=1e-6, atol=0, equal_nan=True)  # means are float32
        torch.testing.assert_close(no_gripper_F, full_F, equal_nan=True)

    def test_the_gripper_counts_and_can_be_left_out(self):
        group = RolloutGroup([make_trajectory([4], uid=0), make_trajectory([8], uid=1, success=False)])
        full_F, no_gripper_F = mean_divergence([group], alone)
        assert full_F[2] == 0.5
        assert no_gripper_F[2] == 0.0

    def test_sums_are_reduced_not_means(self):
        """Two ranks, one with a group, one with three: each group counts the same."""
        ranks = [[phase_group(approach=4.0)], [phase_group(approach=gap) for gap in (1.0, 2.0, 1.0)]]
        parts = []
        for groups in ranks:
            mean_divergence(groups, lambda tensor: parts.append(tensor) or tensor)
        full_F, _ = mean_divergence([], lambda tensor: parts[0] + parts[1])
        assert float(full_F[0]) == pytest.approx(2 * 6**0.5, rel=1e-6)  # (4 + 1 + 2 + 1) / 4 = 2


class TestPCM:
    def test_refreshes_at_the_first_score_and_then_every_so_many_iterations(self):
        """Divergences in units of sqrt(6), approach and grip; weights are relative to the highest mean."""
        pcm = PCM(budget=1, floor=0.1, refresh_every=2)
        timeline = [
            ([], [1, 1, 1, 1, 1]),  # no mixed group yet: uniform
            ([phase_group(approach=1.0, active_grip=4.0)], [0.25, 0.1, 1, 0.1, 0.1]),  # the first score
            ([phase_group(approach=2.0, active_grip=2.0)], [0.25, 0.1, 1, 0.1, 0.1]),
            ([phase_group(approach=4.0, active_grip=4.0)], [1, 0.1, 1, 0.1, 0.1]),  # 2 later: means 3 and 3
            ([phase_group(approach=1.5)], [1, 0.1, 1, 0.1, 0.1]),
            ([], [0.5, 0.1, 1, 0.1, 0.1]),  # 1.5 against 3, carried on
            ([], [0.5, 0.1, 1, 0.1, 0.1]),
            ([], [0.5, 0.1, 1, 0.1, 0.1]),  # an empty window changes nothing
            ([phase_group(approach=3.0)], [0.5, 0.1, 1, 0.1, 0.1]),
            ([phase_group(approach=3.0)], [1, 0.1, 1, 0.1, 0.1]),  # the counter ran on: 3 against 3
        ]
        for groups, expected in timeline:
            pcm.update(groups, alone)
            assert pcm.keep_prob == pytest.approx(expected, rel=1e-6)  # means are float32
        assert next(row["keep_prob"] for row in pcm.history) == [1.0] * 5
        assert len(pcm.history) == 10

    def test_zero_divergence_is_no_score(self):
        pcm = PCM(budget=1, refresh_every=1)
        pcm.update([phase_group(approach=0.0)], alone)
        assert pcm.keep_prob == [1.0] * 5

    def test_what_is_not_known_is_not_logged(self):
        pcm = PCM(budget=1)
        pcm.update([], alone)
        assert pcm.metrics() == {f"pcm/keep_prob/{phase}": 1.0 for phase in PHASES}

    def test_draws_and_counts_as_its_estimator_says(self):
        assert PCM().estimator is ESTIMATORS["paper"]
        assert PCM(estimator="hajek").estimator is ESTIMATORS["hajek"]

    def test_keeps_by_the_weight_of_the_phase(self):
        pcm = PCM(budget=1)
        pcm.keep_prob = [0.1, 0.1, 1.0, 0.1, 0.1]
        trajectory = make_trajectory([0, 5])  # one approach, one grip: kept in the proportion 1 : 10
        chosen = torch.cat([pcm.choose(trajectory, seeded_generator(i)) for i in range(2000)])
        # 4 standard errors: 4 * sqrt(10 / 121 / 2000) = .026
        assert chosen.float().mean().item() == pytest.approx(10 / 11, abs=0.026)

    def test_logs_its_statistics(self, tmp_path):
        class Logged(L.Callback):
            def on_train_epoch_end(self, trainer, pl_module):
                self.metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}

        pcm, logged = PCM(budget=4), Logged()
        train(tmp_path, pcm, logged)
        assert len([name for name in logged.metrics if name.startswith("pcm/keep_prob/")]) == 5
        assert logged.metrics["pcm/keep_prob/active_grip"] == pytest.approx(pcm.keep_prob[2])
        assert logged.metrics["pcm/divergence/active_grip"] == pytest.approx(pcm.history[0]["divergence"][2])
        assert "pcm/divergence_no_gripper/active_grip" in logged.metrics

    def test_resume_equals_uninterrupted(self, tmp_path):
        def run(folder, iterations, checkpoint=None):
            pcm, module = PCM(budget=3, refresh_every=2), MadeModule()
            saver = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True)
            trainer = made_trainer(folder, [pcm, saver], iterations=iterations, enable_checkpointing=True)
            trainer.fit(module, datamodule=MadeData(), ckpt_path=checkpoint, weights_only=True)
            return pcm, module, saver.best_model_path

        whole_pcm, whole, _ = run(tmp_path / "whole", iterations=6)
        _, _, checkpoint = run(tmp_path / "parts", iterations=2)  # between the refreshes of iterations 0 and 2
        pcm, rest, _ = run(tmp_path / "rest", iterations=6, checkpoint=checkpoint)
        assert rest.rows_seen() == whole.rows_seen()[4:]
        assert torch.equal(rest.scale, whole.scale)
        assert str(pcm.state_dict()) == str(whole_pcm.state_dict())  # as text: NaN equals NaN
        assert len(set(map(str, whole_pcm.history))) == 6

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"floor": 0.0}, r"mask.floor must be a number > 0 and <= 1, got 0.0 \(mask.floor=0.1\)"),
            ({"floor": 1.5}, r"mask.floor must be a number > 0 and <= 1, got 1.5 \(mask.floor=0.1\)"),
            ({"floor": "low"}, r"mask.floor must be a number > 0 and <= 1, got 'low' \(mask.floor=0.1\)"),
            ({"refresh_every": 0}, r"mask.refresh_every must be an integer >= 1, got 0 \(mask.refresh_every=5\)"),
        ],
    )
    def test_wrong_options(self, options, message):
        with pytest.raises(ValueError, match=f"^{message}$"):
            PCM(**options)


class TestSinglePhase:
    trajectory = make_trajectory([0, 5, 0, 5, 0, 5])

    def chosen(self, mask):
        return {tuple(mask.choose(self.trajectory, seeded_generator(i)).tolist()) for i in range(200)}

    def test_keeps_the_most_divergent_phase_alone(self):
        mask = SinglePhase(budget=2)
        mask.update([phase_group(approach=1.0, active_grip=1.1)], alone)
        assert self.chosen(mask) == {(1, 3), (1, 5), (3, 5)}
        mask = SinglePhase(budget=12)
        mask.update([phase_group(approach=1.0, active_grip=0.9)], alone)
        assert self.chosen(mask) == {(0, 2, 4)}

    def test_keeps_any_phase_before_the_first_score(self):
        assert len(self.chosen(SinglePhase(budget=2))) == 15  # all pairs of 6

    def test_a_trajectory_without_the_phase_keeps_nothing(self):
        mask = SinglePhase(budget=2)
        mask.update([phase_group(active_grip=1.0)], alone)
        assert mask.choose(make_trajectory([0, 0]), seeded_generator(0)).tolist() == []


class TestRandomMask:
    def test_is_uniform(self):
        trajectory, draws = make_trajectory([0, 0, 8, 8, 0]), 2000
        mask = RandomMask(budget=2)
        counts = torch.cat([mask.choose(trajectory, seeded_generator(i)) for i in range(draws)]).bincount(minlength=5)
        # each chunk is among the 2 of 5 with probability .4; 4 standard errors: 4 * sqrt(.24 / 2000) = .044
        assert (counts / draws - 0.4).abs().max() < 0.044
        assert mask.inclusion(trajectory).tolist() == [0.4] * 5


class TestFullPadded:
    def test_every_trajectory_costs_the_longest_episode(self, tmp_path):
        module = train(tmp_path, FullPadded(), data=MadeData(max_chunks=20))
        for batch in module.seen:
            assert len(batch) == 20 * len(batch.trajectories)
            for index, trajectory in enumerate(batch.trajectories):
                own = batch.trajectory_N == index
                assert batch.chunk_N[own].tolist() == list(range(20))
                assert batch.token_mask_NLA[own].any((1, 2)).tolist() == [n < len(trajectory) for n in range(20)]

    def test_the_gradient_is_that_of_no_mask(self, tmp_path):
        padded, plain = train(tmp_path, FullPadded()), train(tmp_path)
        assert len(padded.seen[0]) > len(plain.seen[0])
        assert plain.gradients[0].norm() > 1
        for ours, theirs in zip(padded.gradients, plain.gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)  # float32 sums of values up to 1e4

    def test_a_batch_with_nothing_to_learn_is_left_alone(self, tmp_path):
        class Blank(L.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                batch.select_(torch.tensor([0]))
                batch.token_mask_NLA.zero_()

        assert [len(batch) for batch in train(tmp_path, Blank(), FullPadded()).seen] == [1, 1]
