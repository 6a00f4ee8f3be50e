"""The Lightning Trainer of a run: what reinforcement learning needs fixed, and the callbacks the config names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vla_rl.build import build
from vla_rl.config import Config
from vla_rl.errors import UserError
from vla_rl.loggers import run_loggers


def build_trainer(config: Config, folder: Path, callbacks: list[L.Callback]) -> L.Trainer:
    """A Trainer whose epochs are iterations. `config.trainer` chooses devices, strategy and precision.

    Raises:
        UserError: the devices or the strategy asked for are not to be had on this machine.
    """
    every = config.evaluation.every_iterations
    options = dict(
        callbacks=callbacks,
        default_root_dir=folder,
        logger=run_loggers(config, folder),
        max_epochs=config.iterations,
        reload_dataloaders_every_n_epochs=1,  # fresh rollouts every iteration
        use_distributed_sampler=False,  # a rank trains on what it collected
        check_val_every_n_epoch=every or config.iterations + 1,
        num_sanity_val_steps=0,  # fit.py measures the start in full
        inference_mode=False,  # tensors made while evaluating may meet a backward later
        log_every_n_steps=1,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),  # no default one beside the slot's
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),  # nor a default one of these
        enable_model_summary=False,
    )
    return make_trainer(config, **options)


def make_trainer(config: Config, **options: Any) -> L.Trainer:
    """`config.trainer` with what the program supplies.

    Raises:
        UserError: the devices or the strategy asked for are not to be had on this machine.
    """
    try:
        return build(config.trainer, "trainer", **options)
    except (MisconfigurationException, TypeError) as e:
        raise UserError(f"{e} (trainer.devices=1, trainer=cpu; without a GPU: conf=pcm_object_tiny)") from e


@contextmanager
def interruptible(trainer: L.Trainer) -> Iterator[None]:
    """A Ctrl-C stays a KeyboardInterrupt that says what is left of the run; Lightning's own exit says nothing."""
    try:
        yield
    except SystemExit as e:
        if not trainer.interrupted:
            raise
        policy = Path(trainer.default_root_dir) / "policy"
        left = [f"the policy of the last finished iteration is in {policy}"] if policy.exists() else []
        raise KeyboardInterrupt(*left) from e
