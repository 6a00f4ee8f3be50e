"""A checkpoint is a folder in the published layout; this reads and writes it.

    config.json  preprocessor_config.json  dataset_statistics.json  tokenizer.json
    model.safetensors, or model-0000i-of-0000n.safetensors with model.safetensors.index.json

Other .json files and tokenizer.model are kept for export.

Every tensor is accounted for: one that is missing, not expected, or of another shape is an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_rl.checkpoints.shipped import shipped_folder
from vla_rl.policy.openvla_oft.action_head import HEAD_FILE, PROPRIO_FILE, WRAPPED, L1Head, read_head
from vla_rl.policy.openvla_oft.actions import Statistics
from vla_rl.policy.openvla_oft.config import OpenVLAConfig, parse_config
from vla_rl.policy.openvla_oft.l1_policy import SCALE_FILE, L1Policy, save_scale
from vla_rl.policy.openvla_oft.llama import check_bidirectional
from vla_rl.policy.openvla_oft.model import OpenVLAOFT
from vla_rl.policy.openvla_oft.policy import CheckpointFiles, OpenVLAOFTPolicy
from vla_rl.policy.openvla_oft.vision import unused_shapes
from vla_rl.policy.weights import INDEX, SINGLE, check_tensors, read_json, read_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ACTION_HEADS = ("tokens", "l1")
PREPROCESSOR, STATISTICS, TOKENIZER = "preprocessor_config.json", "dataset_statistics.json", "tokenizer.json"
PROPRIO = "proprio_projector"
PATTERNS = ["*.safetensors", "*.json", "tokenizer.model", HEAD_FILE, PROPRIO_FILE]  # downloaded of a repository


def load_pretrained(
    checkpoint: str | Path, *, dtype: str = "float32", unnorm_key: str | None = None, action_head: str = "tokens"
) -> OpenVLAOFTPolicy:
    """The policy of a published or saved checkpoint, on the CPU, all weights trainable. Remote code is never executed.

    Tensors the model never runs (last vision blocks, final norms, attention pool) are checked too and kept for export.

    Args:
        checkpoint: a folder, `shipped:NAME`, or the name of a repository on the Hugging Face hub.
        dtype: "float32" or "bfloat16".
        unnorm_key: dataset whose statistics normalise actions, itself or with `_no_noops`; None takes the only one.
        action_head: "tokens", or "l1" for a checkpoint with an L1 head (`L1Policy`).

    Raises:
        ValueError: no such checkpoint, or one that does not fit; what is wrong and how to fix it.
        RuntimeError: attention does not look ahead on this machine.

    Example:
        >>> policy = load_pretrained("Haozhan72/Openvla-oft-SFT-libero-object-traj1", dtype="bfloat16")
    """
    check_choice("dtype", dtype, DTYPES)
    check_choice("action_head", action_head, ACTION_HEADS)
    folder, l1 = resolve_checkpoint(str(checkpoint)), action_head == "l1"
    config, files = _read_files(folder, l1)
    model, head = _without_weights(config, DTYPES[dtype])
    tensors = read_tensors(folder, _expected_shapes(model, l1), DTYPES[dtype])
    files.unused = {name: tensors.pop(name) for name in unused_shapes(config.towers)}
    model.load_state_dict(tensors, assign=True, strict=not l1)  # every name has been checked
    if l1:
        files.heads = {"head": read_head(folder, HEAD_FILE, head)}
        files.heads[PROPRIO] = read_head(folder, PROPRIO_FILE, model.proprio_projector)
    check_bidirectional(model.language_model.model)
    statistics = _statistics(folder, files, unnorm_key, with_proprio=bool(config.proprio_dims))
    model.requires_grad_(True)
    if not l1:
        return OpenVLAOFTPolicy(model, files, statistics)
    policy = L1Policy(model, files, statistics, head)
    if (folder / SCALE_FILE).exists():  # of a checkpoint this project has trained
        policy.load_scale(folder)
    return policy


def inspect_checkpoint(checkpoint: str, *, unnorm_key: str | None = None, action_head: str = "tokens") -> int:
    """What `load_pretrained` would refuse, found without reading any weights but an L1 head's: seconds at any size.

    Returns:
        How many tensors the weight files hold.

    Raises:
        ValueError: see `load_pretrained`.
    """
    check_choice("action_head", action_head, ACTION_HEADS)
    folder, l1 = resolve_checkpoint(checkpoint), action_head == "l1"
    config, files = _read_files(folder, l1)
    model, head = _without_weights(config, torch.float32)
    expected = _expected_shapes(model, l1)
    check_tensors(folder, expected)
    statistics = _statistics(folder, files, unnorm_key, with_proprio=bool(config.proprio_dims))
    OpenVLAOFTPolicy(model, files, statistics)  # reads the tokenizer and the constants of normalisation
    if l1:
        read_head(folder, HEAD_FILE, head)
        read_head(folder, PROPRIO_FILE, model.proprio_projector)
    return len(expected)


def check_choice(option: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise ValueError, with an override that works, unless `value` is one of `allowed`."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{option} {value!r} is not one of {', '.join(allowed)}: policy.{option}={allowed[0]}")


def save_trained(policy: nn.Module, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write what training changed: the adapters where there are any (`policy.adapter=`), else the whole checkpoint; of
    a policy of one's own, its tensors.

    Args:
        state: the policy's state dict, where its own tensors are shards.
    """
    state = policy.state_dict() if state is None else state
    if not isinstance(policy, OpenVLAOFTPolicy):
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in state.items()}, Path(folder) / SINGLE)
    elif hasattr(policy.model, "peft_config"):
        from vla_rl.policy.lora import save_adapter

        save_adapter(policy.model, Path(folder), _part(state, "model."))
        if isinstance(policy, L1Policy):
            save_scale(_part(state, "scale."), Path(folder))
    else:
        save_policy(policy, folder, state)


def save_policy(policy: OpenVLAOFTPolicy, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a checkpoint folder, unused tensors included, of a policy without LoRA. `state`: see `save_trained`."""
    state = policy.state_dict() if state is None else state
    assert not hasattr(policy.model, "peft_config"), "a policy with LoRA is not a checkpoint: save_trained"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = policy.files
    tensors = _part(state, "model.") | files.unused
    if isinstance(policy, L1Policy):
        save_scale(_part(state, "scale."), folder)
        for part, name in files.heads.items():
            head = _part(state, "head." if part == "head" else f"model.{PROPRIO}.")
            torch.save({WRAPPED + key: value for key, value in head.items()}, folder / name)
        tensors = {name: value for name, value in tensors.items() if not name.startswith(f"{PROPRIO}.")}
    huggingface_hub.save_torch_state_dict({k: v.contiguous() for k, v in tensors.items()}, folder)
    statistics = policy.statistics.content if policy.statistics else {}
    for name, content in (
        ("config.json", files.config),
        (PREPROCESSOR, files.preprocessor),
        (STATISTICS, statistics),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / TOKENIZER).write_text(files.tokenizer)
    for name, content in files.others.items():
        (folder / name).write_bytes(content)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def resolve_checkpoint(checkpoint: str) -> Path:
    """The folder a checkpoint's name stands for, downloaded from the hub if need be.

    Raises:
        ValueError: nothing of that name.
    """
    shipped = shipped_folder(checkpoint)
    if shipped:
        return shipped
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    try:
        return Path(huggingface_hub.snapshot_download(checkpoint, allow_patterns=PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        raise ValueError(
            f"missing checkpoint {checkpoint!r}: no such folder, and not to be had from the Hugging Face hub "
            f"({type(e).__name__}); give a folder or a hub name (policy.checkpoint=...); "
            "to try without one: conf=pcm_object_tiny"
        ) from e


def _without_weights(config: OpenVLAConfig, dtype: torch.dtype) -> tuple[OpenVLAOFT, L1Head]:
    with torch.device("meta"):
        return OpenVLAOFT(config).to(dtype), L1Head(config.llama.width).to(dtype)


def _expected_shapes(model: OpenVLAOFT, l1: bool) -> dict[str, torch.Size]:
    """Of every tensor in the weight files, those the model never runs included."""
    apart = {f"{PROPRIO}.{name}" for name in model.proprio_projector.state_dict()} if l1 else set()
    run = {name: value.shape for name, value in model.state_dict().items() if name not in apart}
    return run | unused_shapes(model.config.towers)


def _statistics(folder: Path, files: CheckpointFiles, unnorm_key: str | None, *, with_proprio: bool) -> Statistics:
    path = folder / STATISTICS
    content = read_json(path) if path.exists() else files.config.get("norm_stats", {})
    return Statistics.select(content, unnorm_key, with_proprio=with_proprio)


def _read_files(folder: Path, l1: bool) -> tuple[OpenVLAConfig, CheckpointFiles]:
    """The sizes, and everything in a checkpoint but its tensors."""
    for name in ("config.json", PREPROCESSOR, TOKENIZER):
        if not (folder / name).exists():
            raise ValueError(f"checkpoint {folder} has no {name}")
    raw = read_json(folder / "config.json")
    config = parse_config(raw, l1_head=l1)
    heads = sorted(folder.glob(HEAD_FILE))
    if heads and not l1:
        raise ValueError(
            f"checkpoint {folder} predicts actions with an L1 head ({heads[0].name}), not with action tokens: "
            "policy.action_head=l1 sim.wrist_camera=true"
        )
    written = ("config.json", PREPROCESSOR, STATISTICS, TOKENIZER, INDEX)
    files = CheckpointFiles(
        config=raw,
        preprocessor=read_json(folder / PREPROCESSOR),
        tokenizer=(folder / TOKENIZER).read_text(),
        unused={},
        others={f.name: f.read_bytes() for f in _small_files(folder) if f.name not in written},
    )
    return config, files


def _small_files(folder: Path) -> list[Path]:
    """Tokenizer and generation settings of other programs: never read here, but part of a published checkpoint."""
    return sorted(file for pattern in ("*.json", "tokenizer.model") for file in folder.glob(pattern))
