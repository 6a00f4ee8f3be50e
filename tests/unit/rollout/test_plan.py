"""Which episodes are run, worked out by hand."""

from vla_rl.config.schema import RolloutConfig
from vla_rl.distributed.seeding import stable_seed
from vla_rl.rollout.plan import RESAMPLED, heldout_episodes, plan_iteration

ROLLOUT = RolloutConfig(groups=3, group_size=2, train_init_states=(5, 7))


def states(iteration, attempt=0):
    return [e.init_state for e in plan_iteration(ROLLOUT, [4, 8], 0, iteration, attempt)][::2]


def test_an_iteration():
    plan = plan_iteration(ROLLOUT, [4, 8, 6, 2], 0, iteration=1)
    assert [e.uid for e in plan] == [6, 7, 8, 9, 10, 11]
    assert [e.group for e in plan] == [0, 0, 1, 1, 2, 2]
    assert [e.task for e in plan] == [2, 2, 4, 4, 8, 8]  # the first iteration ended with task 6
    assert [e.seed for e in plan] == [stable_seed(0, "actions", uid) for uid in range(6, 12)]
    assert {state for iteration in range(10) for state in states(iteration)} == {5, 6}


def test_replacements_have_other_states_and_uids_in_each_round():
    drawn = [[states(iteration, attempt) for iteration in range(10)] for attempt in (0, 1, 2)]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    plan = plan_iteration(ROLLOUT, [4, 8], 0, iteration=1, attempt=2)
    assert [e.uid for e in plan] == [2 * RESAMPLED + uid for uid in range(6, 12)]


def test_heldout_episodes_take_turns():
    episodes = heldout_episodes([4, 8], (5, 7), 6, seed=0)
    assert [e.uid for e in episodes] == [0, 1, 2, 3, 4, 5]
    assert [e.task for e in episodes] == [4, 8, 4, 8, 4, 8]
    assert [e.init_state for e in episodes] == [5, 5, 6, 6, 5, 5]  # and begin again with other seeds
    assert [e.seed for e in episodes] == [stable_seed(0, "evaluation", i) for i in range(6)]
