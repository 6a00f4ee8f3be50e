"""Folders of openpi's torch port, as its converter writes them, told in lerobot's words.

    config.json  model.safetensors  assets/DATA SET/norm_stats.json

`config.json` has the sizes of the chunk alone. The rest is how openpi runs LIBERO: two cameras and a missing third one,
statistics by quantiles (pi0.5) or by mean and deviation (pi0), 1e-6 added to every range. It does not say whether the
prompt of pi0.5 has the state: openpi's `pi05_libero` has none. Nor does it say whether actions are relative to the
state, as those of `pi0_libero` are, which are not supported.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.files import read_json
from vla_rl.policy.entries import check_count, check_numbers, check_object
from vla_rl.policy.flow.pipelines import ACTION, PICTURE, STATE, make_pipelines

STATISTICS = "norm_stats.json"
TOKENIZER = "google/paligemma-3b-pt-224"
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "empty_camera_0")
ADAPTIVE = ".input_layernorm.dense."  # part of names in pi0.5 alone
RANGE_EPS = 1e-6
SLOTS = {"pi0": 48, "pi05": 200}  # of a prompt
MODE = {"pi0": "MEAN_STD", "pi05": "QUANTILES"}


def is_openpi(config: dict[str, Any]) -> bool:
    """`config` is the content of a `config.json` that openpi wrote."""
    return "type" not in config and "action_horizon" in config


def to_lerobot(
    folder: Path, config: dict[str, Any], names: Iterable[str], state_numbers: int | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """lerobot's `config.json`, both pipelines and the statistics.

    Args:
        config: content of the folder's `config.json`.
        names: of its tensors.
        state_numbers: numbers of the state in the prompt of pi0.5, 0 for none.

    Raises:
        UserError: there are no statistics or several, an entry is missing, or `state_numbers` is not said.
    """
    kind = "pi05" if any(ADAPTIVE in name for name in names) else "pi0"
    statistics = _statistics(folder, MODE[kind])
    dims = {feature: len(statistics[f"{feature}.mean"]) for feature in (STATE, ACTION)}
    if kind == "pi05" and state_numbers is None:
        raise UserError(
            f"checkpoint {folder} is openpi's and does not say how many numbers of the state its prompt has: "
            f"policy.state_numbers=0 (none, as its pi05_libero), or policy.state_numbers={dims[STATE]}"
        )
    width = check_count(config.get("action_dim"), "config.json: action_dim")
    chunk = check_count(config.get("action_horizon"), "config.json: action_horizon")
    sizes = check_object(config.get("sizes", {}), "config.json: sizes")
    picture_px = check_object(sizes.get("vision", {}), "config.json: sizes.vision").get("image_px", 224)
    picture = {"type": "VISUAL", "shape": [3, picture_px, picture_px]}
    told = {
        "type": kind,
        "input_features": {f"{PICTURE}{name}": picture for name in CAMERAS}
        | {STATE: {"type": "STATE", "shape": [dims[STATE]]}},
        "output_features": {ACTION: {"type": "ACTION", "shape": [dims[ACTION]]}},
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": MODE[kind], "ACTION": MODE[kind]},
        "empty_cameras": 1,
        "image_resolution": [picture_px, picture_px],
        "chunk_size": chunk,
        "n_action_steps": chunk,
        "max_state_dim": width,
        "max_action_dim": width,
        "num_inference_steps": 10,
        "tokenizer_max_length": SLOTS[kind],
    }
    told |= {name: config[name] for name in ("paligemma_variant", "action_expert_variant", "sizes") if name in config}
    pipelines = make_pipelines(
        told, state_in_prompt=kind == "pi05" and bool(state_numbers), tokenizer={"tokenizer_name": TOKENIZER}
    )
    return told, *pipelines, statistics


def _statistics(folder: Path, mode: str) -> dict[str, Tensor]:
    """By lerobot's names. openpi divides by std + 1e-6 and by q99 - q01 + 1e-6, and multiplies by them on the way back:
    the 1e-6 goes into std and q99."""
    files = sorted(folder.rglob(STATISTICS))
    if len(files) != 1:
        have = ", ".join(str(file.relative_to(folder)) for file in files) or "none"
        raise UserError(
            f"checkpoint {folder} must have one {STATISTICS}, as openpi keeps it in assets/, and has {have}: "
            "leave the one of the robot's data set there"
        )
    content = check_object(read_json(files[0]).get("norm_stats"), f"{files[0]}: norm_stats")
    statistics: dict[str, Tensor] = {}
    for theirs, feature in (("state", STATE), ("actions", ACTION)):
        entry = check_object(content.get(theirs), f"{files[0]}: norm_stats.{theirs}")
        numbers: dict[str, Tensor] = {}
        for name in ("mean", "std", "q01", "q99") if mode == "QUANTILES" else ("mean", "std"):
            columns = len(numbers["mean"]) if numbers else None
            listed = check_numbers(entry.get(name), f"{files[0]}: norm_stats.{theirs}.{name}", columns)
            numbers[name] = torch.tensor(listed, dtype=torch.float64)
            if name in ("std", "q99"):
                numbers[name] += RANGE_EPS
        dims = _real(numbers["mean"], numbers["std"])
        statistics |= {f"{feature}.{name}": value[:dims].float() for name, value in numbers.items()}
    return statistics


def _real(mean: Tensor, std: Tensor) -> int:
    """Columns before the padding, where openpi measured padded data: they are constantly 0."""
    last = len(mean)
    while last > 1 and mean[last - 1] == 0 and std[last - 1] <= RANGE_EPS:
        last -= 1
    return last
