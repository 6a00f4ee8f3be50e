"""Adapters merged into a checkpoint, file by file, so that a 7B model is never in memory as a whole.

What no adapter touches keeps its bytes: other tensors, the split into files, config, statistics, tokenizer.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from vla_rl.checks import check_new_folder
from vla_rl.errors import UserError
from vla_rl.policy.adapter import Adapter, read_adapter
from vla_rl.policy.openvla_oft.l1_policy import SCALE_FILE
from vla_rl.policy.weights import check_finite, open_shard, save_tensors, shard_files


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
        UserError: `out` exists or cannot be written, the adapter is not plain LoRA, or it does not fit the checkpoint.
    """
    check_new_folder("out", out, "merged")
    read = read_adapter(adapter)
    changed = {f"{layer}.weight": layer for layer in read.factors}
    shards = shard_files(checkpoint)
    held = {name for shard in shards for name in _names(shard)}
    for name in changed:
        if name not in held:
            raise UserError(f"adapter {adapter} changes {name!r}, which checkpoint {checkpoint} does not have")
    part = out.with_name(out.name + ".part")  # killed half-way, nothing that looks whole is left
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in sorted(checkpoint.iterdir()):
        if file in shards:
            _merge_shard(file, part / file.name, changed, read)
        elif file.is_file():
            shutil.copyfile(file, part / file.name)
    if (adapter / SCALE_FILE).exists():
        shutil.copyfile(adapter / SCALE_FILE, part / SCALE_FILE)
    part.rename(out)
    return sorted(changed)


def _merge_shard(source: Path, target: Path, changed: dict[str, str], adapter: Adapter) -> None:
    """`changed`: the adapted layer by the name of its weight."""
    touched = [name for name in _names(source) if name in changed]
    if not touched:
        shutil.copyfile(source, target)
        return
    with open_shard(source) as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, not a dict
        metadata = stored.metadata()
    for name in touched:
        weight, (down, up) = tensors[name], adapter.factors[changed[name]]
        if weight.shape != (up.shape[0], down.shape[1]):
            raise UserError(
                f"the adapter of {name!r} is for a weight of shape [{up.shape[0]}, {down.shape[1]}], "
                f"the checkpoint's is {list(weight.shape)}"
            )
        tensors[name] = (weight.float() + adapter.scale * (up.float() @ down.float())).to(weight.dtype)
        check_finite(name, tensors[name], source)
    save_tensors(tensors, target, metadata=metadata)


def _names(shard: Path) -> list[str]:
    with open_shard(shard) as stored:
        return list(stored.keys())
