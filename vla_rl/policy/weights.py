"""Tensors and JSON of a checkpoint folder, read strictly: whatever does not fit is an error that names it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_tensors(folder: Path, expected: Mapping[str, torch.Size], dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of a checkpoint, single or sharded, as `dtype`.

    Args:
        expected: name and shape of every tensor the checkpoint has to hold.

    Raises:
        ValueError: a tensor that is missing, not expected, of another shape, or not of floating point.
    """
    check_tensors(folder, expected)
    tensors: dict[str, Tensor] = {}
    for shard in shard_files(folder):
        with open_shard(shard) as stored:
            tensors |= {name: stored.get_tensor(name).to(dtype) for name in stored.keys()}  # noqa: SIM118, not a dict
    return tensors


def check_tensors(folder: Path, expected: Mapping[str, torch.Size]) -> None:
    """The checks of `read_tensors`, from the files' headers alone.

    Raises:
        ValueError: see `read_tensors`.
    """
    found: set[str] = set()
    for shard in shard_files(folder):
        with open_shard(shard) as stored:
            for name in stored.keys():  # noqa: SIM118, not a dict
                if name not in expected:
                    raise ValueError(
                        f"checkpoint {folder}: tensor {name!r} in {shard.name} is not part of an OpenVLA-OFT"
                    )
                header = stored.get_slice(name)
                shape = torch.Size(header.get_shape())
                if shape != expected[name]:
                    raise ValueError(
                        f"checkpoint {folder}: tensor {name!r} has shape {list(shape)}, "
                        f"config.json asks for {list(expected[name])}"
                    )
                if not header.get_dtype().startswith(("F", "BF")):
                    raise ValueError(
                        f"checkpoint {folder}: tensor {name!r} is {header.get_dtype()}, not floating point"
                    )
                found.add(name)
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(f"checkpoint {folder}: tensor {missing[0]!r} is missing ({len(missing)} in all)")


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """A safetensors file, opened.

    Raises:
        ValueError: the file is damaged or cut short.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            yield stored
    except SafetensorError as e:
        raise ValueError(
            f"{path} is damaged or cut short ({e}): download or copy it again, then policy.checkpoint={path.parent}"
        ) from e


def shard_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights: those of its index, or the single one."""
    index = folder / INDEX
    names = [SINGLE]
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index} has no weight_map: it has to name each tensor's file")
        names = sorted(set(weight_map.values()))
    for name in names:
        if not (folder / name).exists():
            raise ValueError(f"checkpoint {folder} has no {name}; a checkpoint's weights are safetensors files")
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a .json file.

    Raises:
        ValueError: the file does not hold one.
    """
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not valid JSON ({e})") from e
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object, got {type(content).__name__}")
    return content
