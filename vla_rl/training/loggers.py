"""Where a run's scalars go: TensorBoard always, and what `logger=` adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

from vla_rl.config.compose import recorded, to_yaml
from vla_rl.config.instantiate import build
from vla_rl.config.schema import Config
from vla_rl.errors import UserError
from vla_rl.run.extras import extra


class OneFileTensorBoard(TensorBoardLogger):
    """One event file per run, which begins with the run's configuration as text.

    Lightning closes its file after every stage and opens another for the next one; a run has three, since its policy
    is measured before and after training.

    Args:
        steps: optimizer steps that a resumed run had done; what it logged later, before it was killed, is hidden.
    """

    def __init__(self, folder: Path, config: Config, steps: int = 0) -> None:
        super().__init__(folder, name="", version="tensorboard", purge_step=steps + 1 if steps else None)
        self._config, self._steps = config, steps

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        is_new = self._experiment is None
        writer = super().experiment
        if is_new:
            writer.add_text("config", f"```yaml\n{to_yaml(self._config)}```", self._steps)
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with extra("writing TensorBoard's file"):
            super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        with extra("writing TensorBoard's file"):
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._experiment is not None:
            with extra("writing TensorBoard's file"):
                self.experiment.flush()


def wandb_logger(
    save_dir: Path, project: str = "vla_rl", name: str | None = None, offline: bool = False
) -> WandbLogger:
    """Weights & Biases (`logger=wandb`).

    Args:
        name: of the run; None = its folder's.
        offline: keep everything in the run folder, to be uploaded later by `wandb sync`.

    Raises:
        UserError: the package is not installed.
    """
    if find_spec("wandb") is None:
        raise UserError("logger=wandb needs a package that is not installed: pip install wandb (or logger=csv)")
    return WandbLogger(name=name or Path(save_dir).name, save_dir=save_dir, project=project, offline=offline)


def run_loggers(config: Config, folder: Path, steps: int = 0) -> list[Logger]:
    """TensorBoard's, and `config.logger` if there is one, which gets the configuration too.

    Args:
        steps: optimizer steps done by the run that goes on.
    """
    loggers: list[Logger] = [OneFileTensorBoard(folder, config, steps)]
    if config.logger is not None:
        loggers.append(build(config.logger, "logger", save_dir=folder))
        loggers[-1].log_hyperparams(recorded(config))
    return loggers
