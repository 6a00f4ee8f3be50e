"""The folder that a checkpoint's name stands for: shipped, on this machine, or on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from vla_rl.checkpoints.shipped import shipped_folder
from vla_rl.errors import UserError

PATTERNS = ["*.safetensors", "*.json", "tokenizer.model", "*_checkpoint.pt"]  # downloaded of a repository


def resolve_checkpoint(checkpoint: str) -> Path:
    """The folder a checkpoint's name stands for, downloaded from the hub if need be.

    Raises:
        UserError: nothing of that name.
    """
    shipped = shipped_folder(checkpoint)
    if shipped:
        return shipped
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(huggingface_hub.snapshot_download(checkpoint, allow_patterns=PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        raise UserError(
            f"missing checkpoint {checkpoint!r}: no such folder, and not available from the Hugging Face hub "
            f"({type(e).__name__}); give a folder or a hub name (policy.checkpoint=...); "
            "to try without one: conf=pcm_object_tiny"
        ) from e
