"""Masks over padded trajectories."""

from callbacks.masks.padded import FullPadded, RandomPadded
from tests.helpers.make import MadeData, make_trajectory, random_groups, train
from vla_rl.distributed.seeding import seeded_generator


def padded_to(slots, budget):
    mask = RandomPadded(budget=budget)
    mask.data = MadeData(max_chunks=slots)
    return mask


def test_shorter_windows_have_more_slots():
    mask, trajectory = padded_to(15, 15), make_trajectory([0] * 15)
    assert mask.choose(trajectory, seeded_generator(0)).tolist() == list(range(15))
    trajectory.episode.window = 4  # of 8 steps: 30 slots
    assert mask.inclusion(trajectory).tolist() == [0.5] * 15
    assert len(mask.choose(trajectory, seeded_generator(0))) < 15


def test_a_fraction_is_one_of_the_slots():
    trajectory = make_trajectory([0] * 4)
    assert padded_to(20, {"fraction": 1.0}).choose(trajectory, seeded_generator(0)).tolist() == [0, 1, 2, 3]
    assert padded_to(20, {"fraction": 0.5}).inclusion(trajectory).tolist() == [0.5] * 4
    assert padded_to(12, 15).inclusion(trajectory).tolist() == [1.0] * 4  # more than there are


def test_full_padded_with_a_shorter_window(tmp_path):
    def shorter(iteration):
        groups = random_groups(iteration)
        groups[0].trajectories[0].episode.window = 4
        return groups

    module = train(tmp_path, FullPadded(), data=MadeData(shorter, max_chunks=20))
    assert sum(len(batch) for batch in module.seen) == 7 * 20 + 40
