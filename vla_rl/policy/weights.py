"""Tensors of a checkpoint folder, read strictly: whatever does not fit is an error that names it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_rl.errors import UserError
from vla_rl.files import read_json
from vla_rl.policy.entries import shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ANY_WEIGHTS = "model*.safetensors"  # single or a shard
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DTYPES = ("F64", "F32", "F16", "BF16")  # as safetensors names them
# Part of a tensor's name -> how it came there.
WRAPPERS = {
    "module.": "the model was saved from a DistributedDataParallel: save its `module`",
    "_orig_mod.": "the model was saved from a torch.compile: save its `_orig_mod`",
    "base_layer.": "the model was saved with adapters in place: save it after `merge_and_unload()`",
}


def read_tensors(
    folder: Path, expected: Mapping[str, torch.Size], dtype: torch.dtype | Callable[[str], torch.dtype]
) -> dict[str, Tensor]:
    """All tensors of a checkpoint, single or sharded.

    Args:
        expected: name and shape of every tensor the checkpoint has to hold.
        dtype: of the tensors, or of the tensor of a name.

    Raises:
        UserError: a tensor that is missing, not expected, of another shape, not of floating point, or not finite.
    """
    check_headers(folder, expected)
    tensors: dict[str, Tensor] = {}
    for shard in shard_files(folder):
        with open_shard(shard) as stored:
            for name in stored.keys():  # noqa: SIM118, not a dict
                tensors[name] = stored.get_tensor(name).to(dtype if isinstance(dtype, torch.dtype) else dtype(name))
                check_finite(name, tensors[name], shard)
    return tensors


def check_tensors(folder: Path, expected: Mapping[str, torch.Size]) -> None:
    """The checks of `read_tensors`, with one tensor in memory at a time.

    Raises:
        UserError: see `read_tensors`.
    """
    check_headers(folder, expected)
    for shard in shard_files(folder):
        with open_shard(shard) as stored:
            for name in stored.keys():  # noqa: SIM118, not a dict
                check_finite(name, stored.get_tensor(name), shard)


def check_headers(folder: Path, expected: Mapping[str, torch.Size]) -> None:
    """Names, shapes and dtypes of `read_tensors`, from the files' headers alone.

    Raises:
        UserError: see `read_tensors`.
    """
    found: set[str] = set()
    for shard in shard_files(folder):
        with open_shard(shard) as stored:
            for name in stored.keys():  # noqa: SIM118, not a dict
                if name not in expected:
                    raise UserError(
                        f"checkpoint {folder}: tensor {name!r} in {shard.name} is not part of the model"
                        + _wrapper(name, expected)
                    )
                if name in found:
                    raise UserError(f"checkpoint {folder}: tensor {name!r} is in two files, one of them {shard.name}")
                header = stored.get_slice(name)
                shape = torch.Size(header.get_shape())
                if shape != expected[name]:
                    raise UserError(
                        f"checkpoint {folder}: tensor {name!r} has shape {list(shape)}, "
                        f"config.json asks for {list(expected[name])}"
                    )
                if header.get_dtype() not in DTYPES:
                    raise UserError(
                        f"checkpoint {folder}: tensor {name!r} is {header.get_dtype()}, not floating point of 16 bits "
                        "or more: save the weights in bfloat16 or float32"
                    )
                found.add(name)
    missing = [name for name in expected if name not in found]
    if missing:
        raise UserError(f"checkpoint {folder}: tensor {missing[0]!r} is missing ({len(missing)} in all)")


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """A safetensors file, opened.

    Raises:
        UserError: the file is damaged or cut short, or cannot be opened.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            yield stored
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path} is damaged or cut short ({e}): download or copy it again") from e


def shard_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights: those of its index, or the single one.

    Raises:
        UserError: a file is missing, or lacks a tensor that the index says it holds, or the folder holds two sets of
            weights.
    """
    index = folder / INDEX
    names, file_of = [SINGLE], {}
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        file_of = weight_map if isinstance(weight_map, dict) else {}
        if not file_of or not all(isinstance(name, str) for name in file_of.values()):
            raise UserError(f"{index} has no weight_map: it has to name each tensor's file")
        names = sorted(set(file_of.values()))
    present = {file.name for file in folder.iterdir()}  # a path out of the folder is none of them
    for name in names:
        if name not in present:
            if index.exists():
                raise UserError(
                    f"{index} names {shown(name)}, and its folder has no such file: download or copy it again"
                )
            raise UserError(f"checkpoint {folder} has no {name}; a checkpoint's weights are safetensors files")
    more = sorted(file.name for file in folder.glob(ANY_WEIGHTS) if file.name not in names)
    if more:
        said = f"those that {INDEX} names ({names[0]}, ...)" if index.exists() else names[0]
        raise UserError(
            f"checkpoint {folder} holds two sets of weights, {said} and {more[0]}: "
            f"move one of them away{f', {INDEX} with its files' if index.exists() else ''}"
        )
    _check_listed(file_of, index)
    return [folder / name for name in names]


def _check_listed(file_of: Mapping[str, str], index: Path) -> None:
    """Raise UserError where a file lacks a tensor that the index says it holds."""
    for file in sorted(set(file_of.values())):
        with open_shard(index.with_name(file)) as stored:
            held = set(stored.keys())
        for name in sorted(file_of):
            if file_of[name] == file and name not in held:
                raise UserError(f"{index} says that {file} holds the tensor {name!r}, which it does not: download or "
                                "copy both again")  # fmt: skip


def fill(module: nn.Module, stored: Any, path: Path) -> None:
    """Put the tensors that `path` held into `module`, strictly, in the module's dtypes.

    Raises:
        UserError: they are not exactly the module's tensors, or not finite.
    """
    wanted = module.state_dict()
    check_fit(stored, wanted, path, needed=wanted)
    module.load_state_dict({name: stored[name].to(value.dtype) for name, value in wanted.items()}, assign=True)


def fill_trained(module: nn.Module, stored: Any, path: Path) -> None:
    """As `fill`, where `path` may lack the tensors of `module` that are not trained; they stay as they are."""
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    check_fit(stored, module.state_dict(), path, needed=trained)
    module.load_state_dict(stored, strict=False)


def check_fit(stored: Any, known: Mapping[str, Tensor], path: Path, needed: Iterable[str]) -> None:
    """Raise UserError where the tensors that `path` held are not finite ones of the names and shapes in `known`, or one
    of the names in `needed` is missing."""
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise UserError(f"{path} must hold tensors by name and nothing else: download or copy it again")
    for name in sorted(set(needed) - stored.keys()):
        raise UserError(f"{path}: tensor {name!r} is missing")
    for name, value in stored.items():
        if name not in known:
            raise UserError(f"{path}: tensor {name!r} is not expected")
        check_finite(name, value, path)
        if value.shape != known[name].shape:
            raise UserError(
                f"{path}: tensor {name!r} has shape {list(value.shape)}, expected {list(known[name].shape)}"
            )


def check_finite(name: str, tensor: Tensor, path: Path) -> None:
    """Raise UserError where a tensor of `path` is no plain tensor of floating point, or holds NaN or infinity: every
    action would be the same nonsense."""
    if tensor.dtype not in FLOATS or tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        layout = "nested" if tensor.is_nested else tensor.layout
        kind = f"{tensor.dtype} ({layout}, {tensor.device})".replace("torch.", "")
        raise UserError(f"{path}: tensor {name!r} is {kind}: save the weights in bfloat16 or float32")
    lowest_and_highest = torch.stack(tensor.aminmax()) if tensor.numel() else tensor  # NaN if any value is
    if not lowest_and_highest.isfinite().all():
        raise UserError(f"{path}: tensor {name!r} holds NaN or infinite values; take weights from before they appeared")


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the permissions of any other new file; safetensors gives them to the owner."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=metadata)
    share(path)


def share(path: Path) -> None:
    """Give `path` the permissions that the process's umask gives a new file."""
    probe = path.with_name(f".{path.name}.mode")
    probe.touch()
    try:
        if probe.stat().st_mode != path.stat().st_mode:  # some file systems have no permissions to change
            shutil.copymode(probe, path)
    finally:
        probe.unlink()


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a state dict whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _wrapper(name: str, expected: Mapping[str, torch.Size]) -> str:
    """The remedy where something around the model has renamed its tensors; otherwise nothing."""
    return next((f"; {remedy}" for part, remedy in WRAPPERS.items() if name.replace(part, "") in expected), "")
