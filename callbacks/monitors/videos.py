"""Videos of training episodes, now and then: mp4 files with an overlay, and one group's outcomes beside each other.

Writes `videos/iteration_<n>/` in the run folder: an mp4 per chosen episode, and `group.png`, the first group with
successes and failures as film strips. The same go to TensorBoard (as GIFs, the one kind of video that it plays).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from callbacks.masks.base import labeller_of
from vla_rl.checks import check_count
from vla_rl.config.schema import VideoConfig
from vla_rl.figures.strips import draw_strips
from vla_rl.figures.video import annotate, choose, file_name, gif, write_mp4
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.trainer_state import callbacks_of, epoch_of
from vla_rl.run.extras import extra
from vla_rl.types import ChunkBatch, RolloutGroup, Trajectory


class Videos(RolloutCallback):
    """Watches and writes; changes nothing. With several ranks, the episodes are those of the first one.

    Args:
        every_iterations: iterations between two sets of videos, beginning with the first.
        first, failures, per_group: which episodes, see `vla_rl.config.schema.VideoConfig`.
    """

    def __init__(self, every_iterations: int = 10, first: int = 0, failures: int = 2, per_group: int = 0) -> None:
        check_count("callbacks.videos.every_iterations", every_iterations, 10)
        for name, value in (("first", first), ("failures", failures), ("per_group", per_group)):
            check_count(f"callbacks.videos.{name}", value, 2, least=0)
        self.every_iterations = every_iterations
        self.rules = VideoConfig(first, failures, per_group)
        self._kept: dict[int, Tensor] = {}  # this iteration: uid -> indices of the chunks that were trained on

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._kept = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: ChunkBatch, batch_idx: int
    ) -> None:
        if batch.stand_in:  # its episode may be in another batch
            return
        for index, trajectory in enumerate(batch.trajectories):
            self._kept[trajectory.episode.uid] = batch.chunks_of(index)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch % self.every_iterations or not trainer.is_global_zero:
            return
        with extra("writing videos"):
            self._write_all(trainer)

    def _write_all(self, trainer: L.Trainer) -> None:
        folder = Path(trainer.default_root_dir) / "videos" / f"iteration_{trainer.current_epoch + 1:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        groups = epoch_of(trainer).groups
        group_of = {t.episode.uid: g for g, group in enumerate(groups) for t in group.trajectories}
        trajectories = [t for group in groups for t in group.trajectories]
        chosen = choose(trajectories, self.rules, lambda t: group_of[t.episode.uid])
        for number, trajectory in enumerate(chosen, start=1):
            self._write(trajectory, folder, trainer, tag=f"videos/episode_{number}")
        if (group := first_mixed(groups)) is not None:
            figure = draw_strips(group.trajectories, self._kept, labeller_of(callbacks_of(trainer)))
            figure.savefig(folder / "group.png", dpi=150)
            for logger in _tensorboards(trainer):
                logger.experiment.add_figure("videos/group", figure, global_step=trainer.global_step)

    def _write(self, trajectory: Trajectory, folder: Path, trainer: L.Trainer, tag: str) -> None:
        kept_K = self._kept.get(trajectory.episode.uid, torch.tensor([], dtype=torch.int64))
        frame_THWC = annotate(trajectory, kept_K, labeller_of(callbacks_of(trainer)))
        write_mp4(folder / f"{file_name(trajectory)}.mp4", frame_THWC)
        for logger in _tensorboards(trainer):
            height, width = (side // 2 for side in frame_THWC.shape[1:3])
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif(frame_THWC))
            summary = Summary(value=[Summary.Value(tag=tag, image=image)])
            # `file_writer` is None where an evaluation has closed the log; this opens it again, as `add_scalar` does
            logger.experiment._get_file_writer().add_summary(summary, global_step=trainer.global_step)


def first_mixed(groups: Sequence[RolloutGroup]) -> RolloutGroup | None:
    """The first group with successes and failures, if there is one."""
    return next((group for group in groups if group.mixed), None)


def _tensorboards(trainer: L.Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
