"""The options of PCM's scores: each acts."""

import pytest
import torch

from callbacks.masks.pcm import PCM
from callbacks.masks.single_phase import SinglePhase
from tests.helpers.make import MadeData, make_trajectory, train
from tests.unit.callbacks.masks.test_masks import alone, phase_group
from vla_rl.errors import UserError
from vla_rl.functional.phases import labels
from vla_rl.types import RolloutGroup


class TestLabellers:
    def test_of_the_users_own(self, tmp_path):
        mask = PCM(budget=2, labeller=f"{__name__}.halves")
        train(tmp_path, mask)
        assert mask.scores.phases == ("early", "late")
        assert len(mask.keep_prob) == 2
        assert {name.rpartition("/")[2] for name in mask.metrics() if name.startswith("pcm/keep")} == {"early", "late"}

    def test_one_that_names_no_phases(self):
        with pytest.raises(UserError, match=r"does not name its phases: mark it with @labels\('early', 'late'\)"):
            PCM(labeller=f"{__name__}.nameless")

    def test_chunks_are_counted_over_ranks(self):
        groups = [RolloutGroup([make_trajectory([0] * n) for n in (2, 3)])]  # halves 1 1 and 2 1
        scores = PCM(labeller=f"{__name__}.halves").scores
        assert scores.count_chunks(groups, lambda count_F: count_F + torch.tensor([10, 20])).tolist() == [13, 22]
        assert scores.count_chunks([], alone).tolist() == [0, 0]


@labels("early", "late")
def halves(trajectory):
    return torch.arange(len(trajectory)) * 2 // len(trajectory)


def nameless(trajectory):
    return torch.zeros(len(trajectory), dtype=torch.int64)


def opposite_steps():
    """Success and failure differ in one dimension: by +1 in the first four steps of a chunk, by -1 in the others."""
    trajectories = [make_trajectory([0], uid=uid, success=uid == 0) for uid in (0, 1)]
    trajectories[0].actions.action_NLA[0, :, 0] = torch.tensor([1.0] * 4 + [-1.0] * 4)
    return RolloutGroup(trajectories)


def singles(success, *failures):
    """One success and some failures of one chunk each, all in the first phase, by the value of their actions."""
    actions = [success, *failures]
    return RolloutGroup([make_trajectory([0], uid=i, action=a, success=i == 0) for i, a in enumerate(actions)])


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
        ("options", "groups", "score"),
        [
            ({"vector": "mean"}, [opposite_steps()], 0.0),
            ({"vector": "flat"}, [opposite_steps()], 8**0.5),  # eight steps differ by 1
            # gaps 1 and 3 times sqrt(6); harmonic: one against one 1/2, one against two 2/3
            ({"group_weight": "equal"}, [singles(1.0, 0.0), singles(3.0, 0.0, 0.0)], 2 * 6**0.5),
            ({"group_weight": "harmonic"}, [singles(1.0, 0.0), singles(3.0, 0.0, 0.0)], 2.5 / (7 / 6) * 6**0.5),
            ({"debias": False}, [singles(1.0, 0.0)], 6**0.5),
            ({"debias": True}, [singles(1.0, 0.0)], float("nan")),  # one success has no spread
        ],
    )
    def test_what_is_measured(self, options, groups, score):
        pcm = PCM(refresh_every=1, **options)
        pcm.update(groups, alone)
        assert pcm.history[0]["divergence"][0] == pytest.approx(score, rel=1e-6, nan_ok=True)

    def test_the_floor_is_the_least_weight(self):
        pcm = PCM(floor=0.3)
        pcm.update([phase_group(approach=1.0, active_grip=4.0)], alone)
        assert pcm.keep_prob == pytest.approx([0.3, 0.3, 1, 0.3, 0.3])

    def test_a_single_phase_is_chosen_anew_as_often_as_asked_for_among_the_phases_asked_for(self):
        mask = SinglePhase(refresh_every=1, labeller="time_quantile")
        assert len(mask.keep_prob) == 5 and mask.scores.phases[0] == "time_1"
        mask = SinglePhase(refresh_every=1)
        for gaps, expected in (({"approach": 1.0}, [1, 0, 0, 0, 0]), ({"active_grip": 2.0}, [0, 0, 1, 0, 0])):
            mask.update([phase_group(**gaps)], alone)
            assert mask.keep_prob == expected

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
            ({"gripper": "no"}, "mask.gripper must be true or false, got 'no' (mask.gripper=true)"),
        ],
    )  # fmt: skip
    def test_wrong_options(self, options, message):
        with pytest.raises(ValueError) as caught:
            PCM(**options)
        assert str(caught.value) == message


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
