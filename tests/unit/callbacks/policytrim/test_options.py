"""What PolicyTrim may be given."""

import re

import pytest

from callbacks.policytrim.callback import PolicyTrim
from callbacks.policytrim.options import windows_of
from vla_rl.functional.rewards import Preset


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"ratios": [0.5, 1.5]}, "reward.ratios=[0.5,0.75,1]"),
        ({"ratios": [0, 1]}, "reward.ratios=[0.5,0.75,1]"),
        ({"ratios": []}, "reward.ratios=[0.5,0.75,1]"),
        ({"ratios": "all"}, "reward.ratios=[0.5,0.75,1]"),
        ({"ratios": [0.5, 1], "base_window": 4}, "reward.base_window=null"),
        ({"base_window": 0}, "reward.base_window=8"),
        ({"base_window": 4.0}, "reward.base_window=8"),
        ({"preset": "papr"}, "did you mean 'paper'? Choices: paper, paper_appendix, release_pi05, release_oft"),
        ({"sigma_floor": "gte"}, "reward.sigma_floor=gate"),
        ({"horizon_baseline": "x"}, "reward.horizon_baseline=group"),
        ({"assign": "x"}, "reward.assign=balanced"),
        ({"extend_iterations": -1}, "reward.extend_iterations=40"),
        ({"switch_iterations": 0}, "reward.switch_iterations=5"),
        ({"baseline_episodes": 0}, "reward.baseline_episodes=20"),
        ({"penalty": -0.1}, "reward.penalty=0.15"),
        ({"step_coef": "x"}, "reward.step_coef=1.0"),
        ({"beta": float("nan")}, "reward.beta=1.0"),
        ({"kl_coef": -1}, "reward.kl_coef=0.1"),
        ({"switch_margin": -0.01}, "reward.switch_margin=0.01"),
        ({"sigma_floor_steps": 0}, "reward.sigma_floor_steps=5.0"),
        ({"baseline_factor": 0}, "reward.baseline_factor=1.3"),
    ],
)
def test_options_that_cannot_be(options, fix):
    with pytest.raises(ValueError, match=re.escape(fix)):
        PolicyTrim(**options)


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ((16, None, 8, 0), "reward.base_window=8 is the most"),
        ((8, None, 8, 5), "reward.extend_iterations=0"),
        ((None, None, 8, 5), "reward.extend_iterations=0"),
        ((None, [1.0], 8, 5), "reward.extend_iterations=0"),
        ((None, [0.1, 1.0], 8, 5), "reward.ratios=[0.5,1]"),  # a window of no step
        ((None, [0.5, 0.55, 1.0], 8, 5), "reward.ratios=[0.5,1]"),  # twice 4 steps
        ((7, None, 8, 5), "reward.ratios=[0.5,1]"),  # 7, 7 and 8 steps
    ],
)
def test_windows_the_policy_does_not_have(given, fix):
    with pytest.raises(ValueError, match=re.escape(fix)):
        windows_of(*given)


def test_windows():
    assert windows_of(8, None, 16, 5) == {8: 0.5, 12: 0.75, 16: 1.0}
    assert windows_of(None, [1.0, 0.25], 16, 5) == {4: 0.25, 16: 1.0}
    assert windows_of(None, None, 8, 0) == windows_of(8, None, 8, 0) == {8: 1.0}


def test_published_values_are_a_presets_but_for_those_that_are_given():
    assert PolicyTrim().values == Preset(1.0, 0.15, "clamp")
    assert PolicyTrim(preset="release_oft").values == Preset(0.8, 0.2, "gate")
    zeros = PolicyTrim(preset="release_oft", step_coef=0.0, penalty=0.0, sigma_floor="clamp")
    assert zeros.values == Preset(0.0, 0.0, "clamp")
