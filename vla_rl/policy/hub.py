"""Policies and the Hugging Face hub: the folder that a checkpoint's name stands for, and the upload of one."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from vla_rl.checkpoints.shipped import shipped_folder
from vla_rl.errors import UserError
from vla_rl.policy import adapter as adapter_files

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


def check_repository(name: str) -> None:
    """Raise UserError unless `name` can be a repository's."""
    try:
        huggingface_hub.utils.validate_repo_id(name)
        valid = name.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(f"push must name a repository on the Hugging Face hub, got {name!r}: push=OWNER/NAME")


def upload(folder: Path, name: str, *, private: bool) -> str:
    """Upload all files of `folder`, with the token of the environment (HF_TOKEN, or that of `hf auth login`).

    Args:
        name: of the repository, made if it does not exist.
        private: whether a new one can be seen by its owner alone; one that exists stays as it is.

    Returns:
        The repository's address.

    Raises:
        UserError: no token or no right to write there, or the hub cannot be reached.
    """
    hub = huggingface_hub.HfApi()
    try:
        address = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Policy exported by vla_rl")
    except (HfHubHTTPError, OSError) as e:
        raise UserError(
            f"{folder} could not be uploaded to {name} ({type(e).__name__}: {str(e).splitlines()[0][:120]}): set "
            "HF_TOKEN to a token that may write there, or dry_run=true"
        ) from e
    return str(address)


def what_it_is(folder: Path, layout: str) -> str:
    """The remedy where a folder is no checkpoint: it is a run's, or holds adapters.

    Args:
        layout: what a checkpoint is, where the folder is neither.
    """
    policy = folder / "policy"
    if (folder / adapter_files.CONFIG).exists():
        return f": it holds adapters; give the checkpoint they were trained on, and policy.adapter={folder}"
    if (policy / adapter_files.CONFIG).exists():
        return f": it is a run with adapters; give the checkpoint they were trained on, and policy.adapter={policy}"
    if (policy / "config.json").exists():
        return f": it is a run, and its policy is policy.checkpoint={policy}"
    return f": {layout}"
