"""Two videos of one held-out episode: how it fails before training, and what the trained policy makes of its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from callbacks.masks.base import labeller_of
from vla_rl.figures.video import annotate, write_mp4
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.epoch import HeldoutBatch
from vla_rl.rollout.trainer_state import callbacks_of
from vla_rl.run.extras import extra
from vla_rl.types import Trajectory


class BeforeAfter(RolloutCallback):
    """Writes `videos/heldout/<decoding>_task<t>_state<s>_<uid>_before.mp4` and `..._after.mp4` in the run folder.

    For each decoding it takes the first episode that fails in the evaluation before training. Later evaluations, which
    run the same episodes, write the second video anew: the last one shows the trained policy. With several ranks, the
    episodes are those of the first one. A run that never fails has no such videos.
    """

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: HeldoutBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "videos" / "heldout"
        trajectories: list[Trajectory] = outputs["trajectories"]
        shown = [t for t in trajectories if _path(folder, batch, t, "before").exists()]
        if trainer.global_step == 0 and not shown:
            for trajectory in [t for t in trajectories if not t.success][:1]:
                self._write(_path(folder, batch, trajectory, "before"), trajectory, trainer)
        for trajectory in shown:
            self._write(_path(folder, batch, trajectory, "after"), trajectory, trainer)

    def _write(self, path: Path, trajectory: Trajectory, trainer: L.Trainer) -> None:
        with extra("writing videos"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mp4(path, annotate(trajectory, label=labeller_of(callbacks_of(trainer))))


def _path(folder: Path, batch: HeldoutBatch, trajectory: Trajectory, when: str) -> Path:
    episode = trajectory.episode
    return folder / f"{batch.decoding}_task{episode.task}_state{episode.init_state}_{episode.uid}_{when}.mp4"
