"""How the Trainer writes and reads checkpoint files: atomically, and only tensors and plain Python types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from vla_rl.distributed.parameters import trainable_parameters
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


def keep_trained(checkpoint: dict[str, Any], module: L.LightningModule) -> None:
    """Leave the tensors that are trained: the others are where the policy came from. Loading them is not strict then
    (`strict_loading`)."""
    kept = trainable_parameters(module)
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}
