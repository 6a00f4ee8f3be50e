"""PolicyTrim's formulas, with numbers worked out by hand."""

from __future__ import annotations

import math
import re

import pytest
import torch

from vla_rl.distributed.seeding import seeded_generator
from vla_rl.functional.advantages import group_advantage, group_advantage_unbiased
from vla_rl.functional.rewards import (
    ASSIGNMENTS,
    PRESETS,
    balanced,
    baseline_steps,
    caught_up,
    clamped,
    extension_reward,
    factorised_advantage,
    gated,
    reduction_reward,
    spaced_ratios,
    stability_penalty,
    step_drift,
    step_reward,
    uniform,
    window_of,
)

FAILED = None


def group(*steps: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """success_G and steps_G; a failure runs for 280 steps."""
    success = torch.tensor([float(s is not FAILED) for s in steps])
    return success, torch.tensor([280.0 if s is FAILED else float(s) for s in steps])


def reward(*steps: float | None, scale=clamped, base_steps=150.0, step_coef=1.0, penalty=0.15) -> torch.Tensor:
    success_G, steps_G = group(*steps)
    penalty_G = stability_penalty(steps_G, success_G, penalty, 5.0, scale)
    return reduction_reward(success_G, step_reward(steps_G, base_steps), penalty_G, step_coef)


def near(*values: float, abs: float = 5e-5):
    """As exact as the numbers are printed."""
    return pytest.approx(list(values), abs=abs)


SPREAD = (90, 100, 104, 110, 118, FAILED, 130, 150)  # mu 114.57, sigma 18.69
EVEN = (98, 99, 100, 100, 101, FAILED, 102, 100)  # mu 100, sigma 1.195: below the floor


def test_a_group_of_many_paces():
    values = reward(*SPREAD)
    # 90 steps: 1 + 60/150 - .15 tanh(24.571/18.69) = 1.4 - .1297
    assert values.tolist() == near(1.2703, 1.2356, 1.2300, 1.2308, 1.1862, 0, 1.0317, 0.8567)
    advantage = group_advantage_unbiased(values, eps=1e-6)
    assert advantage.tolist() == near(0.617, 0.537, 0.524, 0.525, 0.422, -2.341, 0.062, -0.346, abs=5e-4)
    assert reward(*SPREAD, scale=gated).tolist() == pytest.approx(values.tolist())  # sigma is above the floor


def test_a_group_of_one_pace_clamped():
    # 98 steps: 1 + 52/150 - .15 tanh(2/5)
    assert reward(*EVEN).tolist() == near(1.2897, 1.3104, 1.3333, 1.3333, 1.2971, 0, 1.2630, 1.3333)


def test_a_group_of_one_pace_gated():
    assert reward(*EVEN, scale=gated).tolist() == near(1.3467, 1.34, 1.3333, 1.3333, 1.3267, 0, 1.32, 1.3333)


def test_a_group_that_succeeds_throughout_still_has_a_spread():
    values = reward(100, 110, 120, 130)  # mu 115, sigma 11.18: tanh(15/11.18) = .8721, tanh(5/11.18) = .4195
    assert values.tolist() == near(1.2025, 1.2037, 1.1371, 1.0025)
    assert group_advantage(values, eps=1e-6).tolist()[3] < -1.5  # the slowest is pushed away from


def test_one_success_has_no_penalty():
    assert reward(FAILED, 100, FAILED).tolist() == near(0, 1 + 50 / 150, 0)
    assert reward(FAILED, 100, FAILED, scale=gated).tolist() == near(0, 1 + 50 / 150, 0)


def test_a_failure_has_neither_penalty_nor_reward_whatever_its_steps():
    success_G, steps_G = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([90.0, 20.0, 110.0])  # mu 100, sigma 10
    assert stability_penalty(steps_G, success_G, 0.2, 5.0).tolist() == near(0.2 * math.tanh(1), 0, 0.2 * math.tanh(1))
    # 1 + 2 * .5 - .1
    terms = torch.tensor([0.5, 0.25, 0.0]), torch.tensor([0.1, 0.2, 0.0])
    assert reduction_reward(success_G, *terms, 2.0).tolist() == near(1.9, 0, 1)


def test_a_group_that_fails_throughout_has_no_reward():
    for scale in (clamped, gated):
        assert reward(FAILED, FAILED, scale=scale).tolist() == [0.0, 0.0]


def test_slower_than_the_baseline_saves_nothing_and_loses_nothing():
    assert step_reward(torch.tensor([75.0, 150.0, 200.0]), 150.0).tolist() == [0.5, 0.0, 0.0]


def test_the_gate_opens_at_the_floor():
    success_G, steps_G = group(95, 105)  # sigma is 5 exactly
    assert stability_penalty(steps_G, success_G, 0.15, 5.0, gated).tolist() == near(*[0.15 * math.tanh(1)] * 2)
    assert stability_penalty(steps_G, success_G, 0.15, 5.1, gated).tolist() == [0.0, 0.0]


def test_extension_reward():
    ratio_G = torch.tensor([1 / 3, 2 / 3, 1, 1 / 3, 2 / 3, 1, 1 / 3, 2 / 3])
    success_G = torch.tensor([1.0, 0, 1, 1, 1, 0, 0, 1])
    assert extension_reward(success_G, ratio_G, beta=1.0).tolist() == near(
        1.3333, 0, 2, 1.3333, 1.6667, 0, 0, 1.6667
    )  # fmt: skip
    assert extension_reward(success_G, ratio_G, beta=0.0).tolist() == success_G.tolist()


def test_factorised_advantage():
    ratio_G = torch.tensor([0.5, 1.0, 0.5, 1.0])
    success_G = torch.tensor([1.0, 0.0, 1.0, 1.0])
    # the others of a success: 2 of 3 succeed; of the failure: all
    assert factorised_advantage(success_G, ratio_G, beta=1.0).tolist() == near(1.5 / 3, -2, 1.5 / 3, 2 / 3)


def test_the_factorised_advantage_is_zero_where_the_groups_is_noise():
    ratio_G = torch.tensor([1 / 3, 2 / 3, 1.0])
    for outcome in (1.0, 0.0):
        success_G = torch.full((3,), outcome)
        assert factorised_advantage(success_G, ratio_G, beta=1.0).tolist() == [0.0, 0.0, 0.0]
    all_succeed = group_advantage(extension_reward(torch.ones(3), ratio_G, beta=1.0), eps=0.0)
    assert all_succeed.tolist() == near(-1.2247, 0, 1.2247)  # windows by length alone


def test_the_factorised_advantage_is_unbiased():
    """E[A_i grad log p_i] = grad E[(1 + beta gamma_i) I_i], over all outcomes of three Bernoulli trajectories."""
    p, ratio_G = 0.3, torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    expected = torch.zeros(3, dtype=torch.float64)
    for bits in range(8):
        success_G = torch.tensor([float(bits >> i & 1) for i in range(3)], dtype=torch.float64)
        probability = torch.where(success_G > 0, p, 1 - p).prod()
        score_G = torch.where(success_G > 0, 1 / p, -1 / (1 - p))  # d log p(I_i) / dp
        expected += probability * score_G * factorised_advantage(success_G, ratio_G, beta=1.0)
    assert expected.tolist() == pytest.approx((1 + ratio_G).tolist())


def test_windows():
    assert [window_of(r, 8) for r in (0.125, 0.5, 0.99, 1.0)] == [1, 4, 7, 8]
    assert window_of(0.29, 100) == 29  # the float product is below 29
    assert spaced_ratios(4, 16) == [0.25, 0.625, 1.0]


@pytest.mark.parametrize("size", [3, 7, 8, 10])
def test_balanced_windows(size):
    counts = torch.stack([balanced(3, size, seeded_generator(0, i)).bincount(minlength=3) for i in range(300)])
    assert (counts.sum(1) == size).all()
    assert (counts.amax(1) - counts.amin(1) <= 1).all()
    mean = counts.double().mean(0)  # the extra one moves around: standard deviation of a mean below .5 / sqrt(300)
    assert (mean - size / 3).abs().max() < 0.1


def test_the_order_within_a_group_is_drawn():
    drawn = {tuple(balanced(3, 6, seeded_generator(0, i)).tolist()) for i in range(50)}
    assert len(drawn) > 20
    assert torch.equal(balanced(3, 6, seeded_generator(1)), balanced(3, 6, seeded_generator(1)))


def test_uniform_windows_may_be_missing():
    assert {"balanced": balanced, "uniform": uniform} == ASSIGNMENTS
    counts = torch.stack([uniform(3, 6, seeded_generator(0, i)).bincount(minlength=3) for i in range(200)])
    assert (counts == 0).any()
    assert ((counts.double().mean(0) - 2).abs() < 0.3).all()


def test_baseline_steps():
    steps, successes = torch.tensor([200.0, 0.0, 90.0]), torch.tensor([2.0, 0.0, 1.0])
    # 290 steps over 3 successes for the task without one
    assert baseline_steps(steps, successes, 1.3, 280.0).tolist() == near(130.0, 1.3 * 290 / 3, 117.0, abs=1e-4)
    nothing = torch.zeros(2)
    assert baseline_steps(nothing, nothing, 1.3, 280.0).tolist() == [280.0, 280.0]


def test_step_drift():
    success_G, steps_G = group(100, 110, 120, FAILED)
    # over the successes: deviations -10 0 10 of S, 1 0 -1 of A
    assert step_drift(torch.tensor([2.0, 1.0, 0.0, -3.0]), steps_G, success_G) == pytest.approx(-20 / 3)
    assert math.isnan(step_drift(torch.zeros(2), *reversed(group(100, FAILED))))


def test_clamping_turns_the_fastest_away_from_a_group_of_one_pace():
    success_G, steps_G = group(*[100] * 7, 94)  # sigma 1.98, and .15 tanh(5.25 / 5) costs more than 6 steps save
    advantage = {scale: group_advantage(reward(*[100] * 7, 94, scale=scale), eps=1e-6) for scale in (clamped, gated)}
    assert advantage[clamped][-1] < 0 < advantage[gated][-1]
    assert step_drift(advantage[clamped], steps_G, success_G) > 0 > step_drift(advantage[gated], steps_G, success_G)


def test_the_widest_window_has_caught_up():
    episodes = torch.tensor([100.0, 100.0, 100.0])
    assert caught_up(torch.tensor([80.0, 10.0, 79.0]), episodes, margin=0.01)
    assert not caught_up(torch.tensor([80.0, 80.0, 78.0]), episodes, margin=0.01)
    assert caught_up(torch.tensor([50.0, 0.0, 60.0]), episodes, margin=0.01)
    assert caught_up(torch.tensor([50.0, 90.0, 50.0]), episodes, margin=0.01)  # the base window is the measure
    for base in range(2, 101):  # at the margin itself, whatever floats make of it
        assert caught_up(torch.tensor([base, 0.0, base - 1.0]), episodes, margin=0.01)
    assert not caught_up(torch.zeros(3), episodes, margin=0.01)  # equal, and no reason to go on
    assert not caught_up(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]), margin=0.01)


def test_presets():
    published = {name: (p.step_coef, p.penalty, p.sigma_floor) for name, p in PRESETS.items()}
    assert published == {
        "paper": (1.0, 0.15, "clamp"),
        "paper_appendix": (0.8, 0.2, "clamp"),
        "release_pi05": (1.0, 0.15, "gate"),
        "release_oft": (0.8, 0.2, "gate"),
    }
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in published)
