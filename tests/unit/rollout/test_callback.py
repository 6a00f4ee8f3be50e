"""The hooks of `RolloutCallback`: a mistake in their names is noticed."""

import lightning as L
import pytest

from vla_rl.errors import UserError
from vla_rl.rollout.callback import RolloutCallback, check_hooks, may_change_windows


def test_a_misspelt_hook_is_an_error():
    with pytest.raises(TypeError, match=r"Wrong.plan_rollout would never be called: .* hook 'plan_rollouts'"):

        class Wrong(RolloutCallback):
            def plan_rollout(self, episodes):
                pass


def test_other_methods_are_free():
    class Fine(RolloutCallback):
        def weights(self):
            pass

    class Finer(Fine):
        def score(self, groups):
            pass

    assert not may_change_windows(Finer())


def test_a_plain_callback_with_a_hook_is_refused():
    class Shapes(L.Callback):
        def score(self, groups):
            pass

    with pytest.raises(UserError, match=r"Shapes has score, .* derive Shapes from vla_rl.RolloutCallback"):
        check_hooks([L.Callback(), RolloutCallback(), Shapes()])


def test_windows_may_change_where_rollouts_are_planned():
    class Plans(RolloutCallback):
        def plan_rollouts(self, episodes):
            pass

    assert may_change_windows(Plans())
    assert not may_change_windows(RolloutCallback())
    assert not may_change_windows(L.Callback())


def test_a_reward_scores():
    class Reward(RolloutCallback):
        def score(self, groups):
            pass

        def _scores(self):  # private: nobody means a hook by it
            pass

    assert Reward().shapes_rewards
    assert not RolloutCallback().shapes_rewards
