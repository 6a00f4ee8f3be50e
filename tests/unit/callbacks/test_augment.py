"""Augmentation: the policy is trained on the pixels it acted on."""

import pytest
import torch

from callbacks.augment import Augment, Lamp
from tests.helpers.toy_training import fit
from vla_rl.types import Episode


def test_the_lamp_is_the_same_for_the_same_seed():
    frame = torch.full((2, 2, 3), 100, dtype=torch.uint8)
    lamp = Lamp(0.2, 0.1, seed=1)
    assert lamp(frame).dtype == torch.uint8
    assert torch.equal(lamp(frame), Lamp(0.2, 0.1, seed=1)(frame))
    assert not torch.equal(lamp(frame), Lamp(0.2, 0.1, seed=2)(frame))
    gains = torch.stack([Lamp(0.2, 0.1, seed)(frame)[0, 0] / 100 for seed in range(200)])
    assert gains.min() >= 0.8 * 0.9
    assert gains.max() <= 1.2 * 1.1
    assert gains.std(0).min() > 0.08


def test_brightness_alone_keeps_the_colour_and_white_does_not_overflow():
    frame = torch.tensor([[[200, 100, 50]]], dtype=torch.uint8)
    for seed in range(20):
        red, green, blue = Lamp(0.5, 0.0, seed)(frame)[0, 0].tolist()
        assert red == 255 or abs(red - 2 * green) <= 1
        assert abs(green - 2 * blue) <= 1
    assert torch.equal(Lamp(0.0, 0.0, 3)(frame), frame)


def test_values_are_rounded_not_cut():
    frame = torch.ones(1, 1, 3, dtype=torch.uint8)
    values = [int(Lamp(0.4, 0.0, seed)(frame)[0, 0, 0]) for seed in range(20)]  # gains from 0.6 to 1.4 round to 1
    assert values == [1] * 20


def test_rollout_and_update_see_the_same_pixels(tmp_path):
    class Seen(Augment):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            for row, frame in enumerate(batch.frame_NHWC):
                trajectory = batch.trajectories[batch.trajectory_N[row]]
                steps = int(trajectory.executed_N[: batch.chunk_N[row]].sum())  # the toy's frames are all of this grey
                grey = torch.full((2, 2, 3), steps, dtype=torch.uint8)
                assert torch.equal(frame, Lamp(0.9, 0.5, trajectory.episode.seed)(grey))
            self.rows = len(batch)

    seen = Seen(0.9, 0.5)
    _, _, data, recorder = fit(tmp_path, iterations=1, callbacks=[seen])
    assert seen.rows > 5
    assert recorder.metrics[0]["train/first_log_ratio_abs"] < 1e-6
    assert all(episode.augment is None for batch in data.val_dataloader() for episode in batch.episodes)


def test_every_episode_has_a_lamp_of_its_own():
    episodes = [Episode(uid=i, task=0, init_state=0, seed=i) for i in range(3)]
    Augment().plan_rollouts(episodes)
    assert len({episode.augment for episode in episodes}) == 3


@pytest.mark.parametrize("value", [-0.1, 1.0, "much", True])
def test_wrong_options(value):
    with pytest.raises(
        ValueError, match=r"^callbacks.augment.jitter must be a number >= 0 and < 1, got .* \(callbacks.augment.jitter="
    ):
        Augment(jitter=value)
