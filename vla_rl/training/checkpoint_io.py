"""How the Trainer writes and reads checkpoint files: atomically, and only tensors and plain Python types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from vla_rl.distributed.parameters import check_trained, trainable_parameters
from vla_rl.rollout.trainer_state import callbacks_of
from vla_rl.run.folder import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint: Lightning's own goes through the system's temporary folder, where a killed process
    leaves its file behind."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(Path(path), lambda part: _save(checkpoint, part))


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as e:  # of a full disk torch says only that its archive is not complete
            raise e.__context__ if isinstance(e.__context__, OSError) else e from None


def complete_checkpoint(checkpoint: dict[str, Any], module: L.LightningModule) -> None:
    """Fill in what a checkpoint lacks of the callbacks' states, as in a new run, with a line: a version with fewer keys
    may have written it, or a callback is new to the run. Call it before anything is restored from the checkpoint.

    Raises:
        UserError: a trained tensor is missing, or has another shape.
    """
    if "state_dict" in checkpoint:  # else it is sharded, and was checked and loaded by `FSDP2`
        check_trained(checkpoint["state_dict"], module, module.trainer.ckpt_path)
    states: dict[str, Any] = checkpoint.get("callbacks", {})
    added: list[str] = []
    without: list[str] = []
    for callback in callbacks_of(module.trainer):
        key, new = callback.state_key, callback.state_dict()
        if key in states:
            states[key] = _completed(states[key], new, key, added)
        elif new:
            without.append(key)
    if added:
        rank_zero_warn(f"the checkpoint is of a version without {', '.join(added)}; they begin as in a new run")
    if without:
        rank_zero_warn(
            f"{module.trainer.ckpt_path} has no state of {', '.join(without)}, which begin as in a new run: if this "
            "run had them before, resume from another checkpoint"
        )


def _completed(stored: dict[str, Any], new: dict[str, Any], key: str, added: list[str]) -> dict[str, Any]:
    full = dict(stored)
    for name, value in new.items():
        if name not in stored:
            full[name] = value
            added.append(f"{key}.{name}")
        elif isinstance(value, dict) and isinstance(stored[name], dict):
            full[name] = _completed(stored[name], value, f"{key}.{name}", added)
    return full


def keep_trained(checkpoint: dict[str, Any], module: L.LightningModule) -> None:
    """Leave the tensors that are trained: the others are where the policy came from. Loading them is not strict then
    (`strict_loading`)."""
    kept = trainable_parameters(module)
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}
