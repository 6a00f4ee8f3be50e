"""Adapters merged into a checkpoint, file by file, so that a 7B model is never in memory as a whole.

What no adapter touches keeps its bytes: other tensors, the split into files, config, statistics, tokenizer.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vla_rl.policy.openvla_oft.l1_policy import SCALE_FILE
from vla_rl.policy.weights import open_shard, read_json, shard_files

PREFIX = "base_model.model."  # of every name in PEFT's files
FACTORS = (".lora_A.weight", ".lora_B.weight")
# What changes the formula W + alpha / r B A, and the value that does not.
PLAIN = {"use_dora": False, "use_rslora": False, "bias": "none", "rank_pattern": {}, "alpha_pattern": {},
         "fan_in_fan_out": False}  # fmt: skip


def merge_adapter(checkpoint: Path, adapter: Path, out: Path) -> list[str]:
    """Write `checkpoint` with W + alpha / r B A in place of each adapted weight W (LoRA, arXiv 2106.09685, Eq 3).

    The sum is taken in float32 and rounded once, to the dtype the checkpoint stores.

    Args:
        checkpoint: folder in the published layout; only read.
        adapter: folder in PEFT's format.
        out: the folder to write; it must not exist.

    Returns:
        Names of the tensors that changed.

    Raises:
        ValueError: `out` exists, the adapter is not plain LoRA, or it does not fit the checkpoint.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; name a new folder (--out {out}-2)")
    scale, factors = _read_adapter(adapter)
    shards = shard_files(checkpoint)
    holders = {name: shard for shard in shards for name in _names(shard)}
    for name in factors:
        if name not in holders:
            raise ValueError(f"adapter {adapter} changes {name!r}, which checkpoint {checkpoint} does not have")
    part = out.with_name(out.name + ".part")  # killed half-way, nothing that looks whole is left
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in sorted(checkpoint.iterdir()):
        if file in shards:
            _merge_shard(file, part / file.name, factors, scale)
        elif file.is_file():
            shutil.copyfile(file, part / file.name)
    if (adapter / SCALE_FILE).exists():
        shutil.copyfile(adapter / SCALE_FILE, part / SCALE_FILE)
    part.rename(out)
    return sorted(factors)


def _merge_shard(source: Path, target: Path, factors: dict[str, tuple[Tensor, Tensor]], scale: float) -> None:
    touched = [name for name in _names(source) if name in factors]
    if not touched:
        shutil.copyfile(source, target)
        return
    with open_shard(source) as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, not a dict
        metadata = stored.metadata()
    for name in touched:
        weight, (down, up) = tensors[name], factors[name]
        if weight.shape != (up.shape[0], down.shape[1]):
            raise ValueError(
                f"the adapter of {name!r} is for a weight of shape [{up.shape[0]}, {down.shape[1]}], "
                f"the checkpoint's is {list(weight.shape)}"
            )
        tensors[name] = (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)
    save_file(tensors, target, metadata=metadata)


def _read_adapter(folder: Path) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    """alpha / r, and both factors (A [r, in], B [out, r]) by the name of the weight they adapt."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).exists():
            raise ValueError(f"no adapter in {folder}: it has no {name}")
    config: dict[str, Any] = read_json(folder / "adapter_config.json")
    for name, plain in PLAIN.items():
        if config.get(name, plain) not in (plain, None):
            raise ValueError(f"adapter {folder} is not plain LoRA ({name} is {config[name]!r}, expected {plain!r})")
    with open_shard(folder / "adapter_model.safetensors") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, not a dict
    factors = {}
    for name in tensors:
        layer = name.removeprefix(PREFIX).removesuffix(FACTORS[0]).removesuffix(FACTORS[1])
        pair = [tensors.get(PREFIX + layer + factor) for factor in FACTORS]
        if pair[0] is None or pair[1] is None:
            raise ValueError(f"adapter {folder}: tensor {name!r} is not one of a pair lora_A, lora_B")
        factors[f"{layer}.weight"] = tuple(pair)
    return config["lora_alpha"] / config["r"], factors


def _names(shard: Path) -> list[str]:
    with open_shard(shard) as stored:
        return list(stored.keys())
