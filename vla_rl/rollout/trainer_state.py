"""What of a run hangs on Lightning's trainer, with its types: Lightning sets these attributes only while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import lightning as L

if TYPE_CHECKING:
    from vla_rl.rollout.datamodule import RolloutDataModule
    from vla_rl.rollout.epoch import RolloutEpoch


def data_of(trainer: L.Trainer) -> RolloutDataModule:
    """The data module of the run."""
    return cast("RolloutDataModule", cast(Any, trainer).datamodule)


def epoch_of(trainer: L.Trainer) -> RolloutEpoch:
    """The data of the iteration under way; accessing its groups collects them if that has not happened."""
    return cast("RolloutEpoch", trainer.train_dataloader)


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """All callbacks of the trainer, in the order they are called."""
    return cast(Any, trainer).callbacks
