"""Videos of a training run: which are written, what they say of the chunks, and that TensorBoard has them."""

import io

import av
import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.image import imread
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.masks.random_mask import RandomMask
from callbacks.monitors import videos
from callbacks.monitors.videos import Videos
from tests.helpers.make import MadeData, make_trajectory, random_groups, train
from vla_rl.config.compose import compose
from vla_rl.config.instantiate import build
from vla_rl.errors import UserError
from vla_rl.figures.video import annotate
from vla_rl.types import ChunkBatch, RolloutGroup


def written(folder) -> list[str]:
    return sorted(str(path.relative_to(folder / "videos")) for path in (folder / "videos").rglob("*") if path.is_file())


def test_every_few_iterations_from_the_first(tmp_path):
    train(tmp_path, Videos(every_iterations=2, first=1, failures=1), iterations=3)
    # of 8 episodes: 0 succeeds and is the first, 1 is the first failure; the third iteration counts from 16
    assert written(tmp_path) == [
        "iteration_0001/group.png",
        "iteration_0001/task0_state0_failure_1.mp4",
        "iteration_0001/task0_state0_success_0.mp4",
        "iteration_0003/group.png",
        "iteration_0003/task0_state0_failure_17.mp4",
        "iteration_0003/task0_state0_success_16.mp4",
    ]
    assert imread(tmp_path / "videos" / "iteration_0001" / "group.png").std() > 0.05


class Seen(L.Callback):
    """After the mask: the chunks of every episode that the step was given."""

    def __init__(self) -> None:
        self.kept: dict[int, list[int]] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        for row in range(len(batch)):
            uid = batch.trajectories[batch.trajectory_N[row]].episode.uid
            self.kept.setdefault(uid, []).append(int(batch.chunk_N[row]))


def test_a_video_shows_the_chunks_that_were_trained_on(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        videos, "annotate", lambda t, kept, label: shown.__setitem__(t.episode.uid, kept.tolist()) or annotate(t, kept)
    )
    seen = Seen()
    train(tmp_path, RandomMask(budget=2), seen, Videos(per_group=4))
    assert sorted(shown) == list(range(8))
    assert {uid: sorted(kept) for uid, kept in shown.items()} == {uid: sorted(seen.kept[uid]) for uid in range(8)}
    assert all(len(kept) == 2 for kept in shown.values())


def test_episodes_that_were_not_trained_on_have_no_kept_chunk(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(videos, "annotate", lambda t, kept, label: shown.append(kept.tolist()) or annotate(t, kept))

    class NobodyTrains(MadeData):
        def train_dataloader(self):
            epoch = super().train_dataloader()
            epoch.groups.append(RolloutGroup([make_trajectory([0, 8], uid=uid, success=False) for uid in (90, 91)]))
            return epoch

    class OnlyMixed(L.Callback):  # fills a batch as `RolloutEpoch` does: an episode of another one, without weight
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if any(t.episode.uid >= 90 for t in batch.trajectories):
                batch.token_mask_NLA[batch.trajectory_N == len(batch.trajectories) - 1] = False

    train(tmp_path, OnlyMixed(), Videos(first=99, failures=0), data=NobodyTrains())
    assert len(shown) == 10
    assert shown[-2:] == [[], []]
    assert all(shown[:-2])


def test_a_batch_filled_with_an_episode_of_another_takes_nothing_back():
    callback = Videos()
    for weight in (True, False):
        batch = ChunkBatch.from_trajectories([make_trajectory([0, 8])])
        batch.token_mask_NLA &= weight
        batch.stand_in = not weight
        callback.on_train_batch_end(None, None, None, batch, 0)
    assert callback._kept[0].tolist() == [0, 1]


def test_tensorboard_plays_them(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    train(tmp_path, Videos(first=1, failures=0), logger=logger, log_every_n_steps=1)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["images"]) == {"videos/episode_1", "videos/group"}
    (event,) = events.Images("videos/episode_1")
    image = Image.open(io.BytesIO(event.encoded_image_string))
    assert image.is_animated
    assert (event.width, event.height) == image.size


def test_without_a_mixed_group_there_is_no_grid(tmp_path):
    def failures(iteration):
        return [RolloutGroup([make_trajectory([0, 8], uid=uid, success=False) for uid in range(4)])]

    train(tmp_path, Videos(failures=1), data=MadeData(failures))
    assert written(tmp_path) == ["iteration_0001/task0_state0_failure_0.mp4"]
    with av.open(str(tmp_path / "videos" / written(tmp_path)[0])) as container:
        assert np.mean([frame.to_ndarray().mean() for frame in container.decode(video=0)]) > 10


def test_training_is_the_same_with_and_without(tmp_path):
    gradients = [
        train(tmp_path / name, *extra, data=MadeData(random_groups)).gradients
        for name, extra in (("with", [Videos(first=2)]), ("without", []))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert gradients[0]


@pytest.mark.parametrize(
    ("option", "fix"),
    [("every_iterations=0", "every_iterations=10"), ("first=-1", "first=2"), ("failures=x", "failures=2")],
)
def test_options_are_checked(option, fix):
    slot = "callbacks.videos."
    config = compose(["conf=pcm_object_tiny", f"{slot}_target_=callbacks.Videos", slot + option])
    with pytest.raises(UserError, match=slot + fix):
        build(config.callbacks["videos"], "callbacks.videos")
