"""A checkpoint is a folder in the published layout; this reads and writes it.

    config.json  preprocessor_config.json  dataset_statistics.json  tokenizer.json
    model.safetensors, or model-0000i-of-0000n.safetensors with model.safetensors.index.json

Every tensor is accounted for: one that is missing, not expected, or of another shape is an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor

from vla_rl.policy.actions import Statistics
from vla_rl.policy.config import read_config
from vla_rl.policy.model import OpenVLAOFT
from vla_rl.policy.policy import CheckpointFiles, OpenVLAOFTPolicy
from vla_rl.policy.tiny import random_policy
from vla_rl.policy.vision import unused_shapes
from vla_rl.shipped import shipped_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_policy(
    checkpoint: str | None,
    *,
    lora: dict[str, Any] | None = None,
    adapter: str | None = None,
    dtype: str = "float32",
    unnorm_key: str | None = None,
    gradient_checkpointing: bool = False,
) -> OpenVLAOFTPolicy:
    """A policy from a checkpoint, on the CPU.

    Args:
        checkpoint: a folder, `shipped:NAME`, the name of a repository on the Hugging Face hub, or None for a new small
            policy with random weights, which needs demonstrations before it can act.
        lora: None trains all weights; `{"r": 32, "alpha": 32}` freezes them and trains adapters (also: `targets`).
        adapter: folder of trained adapters in PEFT's format, to go on from; needs `lora`.
        dtype: "float32" or "bfloat16".
        unnorm_key: dataset whose statistics normalise actions, itself or with `_no_noops`; None takes the only one.
        gradient_checkpointing: recompute Llama's layers in the backward pass, to save memory.

    Raises:
        ValueError: no such checkpoint, or one that does not fit; what is wrong and how to fix it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}: policy.dtype=bfloat16")
    if adapter is not None and lora is None:
        raise ValueError("an adapter needs the LoRA settings it was made with: policy.lora={r: 32, alpha: 32}")
    if checkpoint is None:
        policy = random_policy().to(DTYPES[dtype])
    else:
        policy = _read_policy(resolve_checkpoint(checkpoint), DTYPES[dtype], unnorm_key)
    if lora is not None:
        from vla_rl.policy.lora import add_lora, load_adapter  # here: peft takes seconds to import

        add_lora(policy.model, **lora)
        if adapter is not None:
            load_adapter(policy.model, Path(adapter))
    policy.model.language_model.model.gradient_checkpointing = gradient_checkpointing
    return policy


def save_trained(policy: OpenVLAOFTPolicy, folder: str | Path) -> None:
    """Write what training changed: the adapters where there are any (`policy.adapter=`), else the whole checkpoint."""
    if hasattr(policy.model, "peft_config"):
        from vla_rl.policy.lora import save_adapter

        save_adapter(policy.model, Path(folder))
    else:
        save_policy(policy, folder)


def save_policy(policy: OpenVLAOFTPolicy, folder: str | Path) -> None:
    """Write a checkpoint folder, unused tensors included, of a policy without LoRA."""
    assert not hasattr(policy.model, "peft_config"), "a policy with LoRA is not a checkpoint: save_trained"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = policy.files
    tensors = policy.model.state_dict() | files.unused
    huggingface_hub.save_torch_state_dict({k: v.contiguous() for k, v in tensors.items()}, folder)
    statistics = policy.statistics.content if policy.statistics else {}
    for name, content in (
        ("config.json", files.config),
        ("preprocessor_config.json", files.preprocessor),
        ("dataset_statistics.json", statistics),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "tokenizer.json").write_text(files.tokenizer)


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
        return Path(huggingface_hub.snapshot_download(checkpoint, allow_patterns=["*.safetensors", "*.json"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        raise ValueError(
            f"missing checkpoint {checkpoint!r}: no such folder, and not to be had from the Hugging Face hub "
            f"({type(e).__name__}); give a folder or a hub name (policy.checkpoint=...); "
            "to try without one: conf=pcm_object_tiny"
        ) from e


def _read_policy(folder: Path, dtype: torch.dtype, unnorm_key: str | None) -> OpenVLAOFTPolicy:
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        if not (folder / name).exists():
            raise ValueError(f"checkpoint {folder} has no {name}")
    config, raw = read_config(folder)
    if config.images != 1:
        raise ValueError(f"checkpoint {folder} reads {config.images} images per observation; the simulator renders one")
    with torch.device("meta"):
        model = OpenVLAOFT(config)
    unused = unused_shapes(config.towers)
    expected = {name: value.shape for name, value in model.state_dict().items()} | unused
    tensors = read_tensors(folder, expected, dtype)
    files = CheckpointFiles(
        config=raw,
        preprocessor=json.loads((folder / "preprocessor_config.json").read_text()),
        tokenizer=(folder / "tokenizer.json").read_text(),
        unused={name: tensors.pop(name) for name in unused},
    )
    model.load_state_dict(tensors, assign=True)
    statistics_file = folder / "dataset_statistics.json"
    content = json.loads(statistics_file.read_text()) if statistics_file.exists() else raw.get("norm_stats", {})
    statistics = Statistics.select(content, unnorm_key, with_proprio=bool(config.proprio_dims))
    return OpenVLAOFTPolicy(model.requires_grad_(True), files, statistics)


def read_tensors(folder: Path, expected: Mapping[str, torch.Size], dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of a checkpoint, single or sharded, as `dtype`.

    Args:
        expected: name and shape of every tensor the checkpoint has to hold.

    Raises:
        ValueError: a tensor that is missing, not expected, of another shape, or not of floating point.
    """
    tensors: dict[str, Tensor] = {}
    for shard in _shards(folder):
        with safe_open(shard, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118, not a dict
                if name not in expected:
                    raise ValueError(
                        f"checkpoint {folder}: tensor {name!r} in {shard.name} is not part of an OpenVLA-OFT"
                    )
                shape = torch.Size(stored.get_slice(name).get_shape())
                if shape != expected[name]:
                    raise ValueError(
                        f"checkpoint {folder}: tensor {name!r} has shape {list(shape)}, "
                        f"config.json asks for {list(expected[name])}"
                    )
                tensors[name] = stored.get_tensor(name).to(dtype)
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise ValueError(f"checkpoint {folder}: tensor {missing[0]!r} is missing ({len(missing)} in all)")
    return tensors


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in names:
        if not (folder / name).exists():
            raise ValueError(f"checkpoint {folder} has no {name}; a checkpoint's weights are safetensors files")
    return [folder / name for name in names]
