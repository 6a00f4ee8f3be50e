"""What a run can go on from: the last checkpoints, the best one, and the policy itself in `policy/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from safetensors import SafetensorError
from torch import nn

from vla_rl.checks import check_count
from vla_rl.distributed.parameters import full_state
from vla_rl.distributed.random_state import random_states, set_random_state
from vla_rl.errors import Preempted, RunError
from vla_rl.policy import save_trained
from vla_rl.run.folder import replace_folder
from vla_rl.run.resume import checkpoints, link_checkpoint
from vla_rl.training.signals import StopRequest, end_at_sigterm

BEST = ("heldout/sampled_success", "heldout/greedy_success")  # the first that is measured during training


class Checkpoint(LightningCheckpoint):
    """Written every `every_iterations` iterations, before the first, after the last, and when the run is told to stop.

    `checkpoints/iteration-<done>.ckpt` holds trainable tensors, optimizer, random generators and callbacks; `last.ckpt`
    and, where held-out success is measured during training, `best.ckpt` are links to one of them (left out on a file
    system without links). `policy/` is what `policy.checkpoint=` or, for adapters, `policy.adapter=` reads. All are
    replaced whole.

    Args:
        keep: how many of the last checkpoints are kept, in addition to the best one.

    Raises:
        ValueError: unless both are integers >= 1.
    """

    def __init__(self, every_iterations: int = 1, keep: int = 2) -> None:
        check_count("callbacks.checkpoint.every_iterations", every_iterations, 1)
        check_count("callbacks.checkpoint.keep", keep, 2)
        self.every_iterations, self.keep = every_iterations, keep
        self._best: dict[str, Any] = {}  # name of the checkpoint, and its held-out success
        self._random_states: list[dict[str, Any]] = []  # of the run that goes on, by rank
        self._stop = StopRequest()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop.listen()
        if trainer.global_rank < len(self._random_states):
            set_random_state(self._random_states[trainer.global_rank])
        if trainer.ckpt_path is None:
            self._save(trainer, done=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done = trainer.current_epoch + 1
        stop, best = self._stop.on_any_rank(trainer), self._is_best(trainer, done)
        if stop or best or done % self.every_iterations == 0 or done == trainer.max_epochs:
            self._save(trainer, done)
        if stop:
            raise Preempted(f"saved after iteration {done}; go on with resume={trainer.default_root_dir}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        end_at_sigterm()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:  # once more: a run that was killed when all was saved has no other occasion
            self._tidy(Path(trainer.default_root_dir))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            end_at_sigterm()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "random_states": self._random_states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best, self._random_states = state_dict["best"], state_dict["random_states"]

    def _is_best(self, trainer: L.Trainer, done: int) -> bool:
        measured = [float(trainer.callback_metrics[tag]) for tag in BEST if tag in trainer.callback_metrics]
        if not measured or measured[0] <= self._best.get("success", -1.0):
            return False
        self._best = {"name": _name(done), "success": measured[0]}
        return True

    def _save(self, trainer: L.Trainer, done: int) -> None:
        """The policy first: a run killed before the checkpoint is there does the iteration again, to the same bits."""
        run = Path(trainer.default_root_dir)
        policy = cast(nn.Module, trainer.lightning_module.policy)
        adapted = hasattr(getattr(policy, "model", None), "peft_config")
        self._random_states, state = random_states(trainer), full_state(policy, trained_only=adapted)
        try:
            if trainer.is_global_zero:
                replace_folder(run / "policy", lambda folder: save_trained(policy, folder, state))
            trainer.save_checkpoint(run / "checkpoints" / _name(done), weights_only=False)
            if trainer.is_global_zero:
                self._tidy(run)
        except (OSError, SafetensorError) as e:
            raise RunError(
                f"cannot write the checkpoint after iteration {done} ({e}); the one before it is whole: "
                f"when there is room again, resume={run}"
            ) from e

    def _tidy(self, run: Path) -> None:
        """Links to the last and the best checkpoint, and no more than these and `keep` in all."""
        newest_first = checkpoints(run)
        if not newest_first:  # iterations=0
            return
        names = {"last.ckpt": newest_first[0].name}
        # the best one is gone where the run has gone on from before it
        if self._best and newest_first[0].with_name(self._best["name"]).exists():
            names["best.ckpt"] = self._best["name"]
        for link, name in names.items():
            link_checkpoint(newest_first[0].with_name(link), name)
        for path in newest_first[self.keep :]:
            if path.name not in names.values():
                path.unlink()


def _name(done: int) -> str:
    return f"iteration-{done}.ckpt"
