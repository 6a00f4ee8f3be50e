"""Where a callback's figures go: the run folder and the loggers. A figure that fails does not end the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure

from vla_rl.run.extras import extra


def save_figures(draw: Callable[[], Mapping[str, Figure]], trainer: L.Trainer) -> None:
    """To `figures/<name>.png` in the run folder, to TensorBoard and Weights & Biases.

    In TensorBoard at the step of the iteration's scalars: batches so far, whether an optimizer step was taken or not.

    Args:
        draw: returns the figures by name.
    """
    step = max(0, trainer.fit_loop.total_batch_idx)
    with extra("drawing figures"):
        folder = Path(trainer.default_root_dir) / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in draw().items():
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=150)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure(f"figures/{name}", figure, global_step=step)
                elif isinstance(logger, WandbLogger):
                    logger.log_image(f"figures/{name}", [str(path)])
