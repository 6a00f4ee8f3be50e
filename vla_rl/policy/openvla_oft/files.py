"""The files of a checkpoint in the published layout, and how they are written (`checkpoint` reads them)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
from torch import Tensor

from vla_rl.policy.openvla_oft.actions import STATISTICS, Statistics
from vla_rl.policy.weights import ANY_WEIGHTS, share

PREPROCESSOR, TOKENIZER = "preprocessor_config.json", "tokenizer.json"


@dataclass(slots=True)
class CheckpointFiles:
    """What a checkpoint holds beside the weights that are run, to be written back by `save_checkpoint`."""

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    tokenizer: str
    unused: dict[str, Tensor]  # tensors that are never run
    others: dict[str, bytes] = field(default_factory=dict)  # files that are never read, by name
    heads: dict[str, str] = field(default_factory=dict)  # an L1 checkpoint's .pt files, by what they hold


def save_checkpoint(
    folder: Path, model_state: Mapping[str, Tensor], files: CheckpointFiles, statistics: Statistics | None
) -> None:
    """Write a checkpoint folder, unused tensors included.

    Args:
        model_state: the tensors of a model without adapters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(model_state) | files.unused
    huggingface_hub.save_torch_state_dict({name: value.contiguous() for name, value in tensors.items()}, folder)
    for file in folder.glob(ANY_WEIGHTS):
        share(file)
    for name, content in (
        ("config.json", files.config),
        (PREPROCESSOR, files.preprocessor),
        (STATISTICS, statistics.content if statistics else {}),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / TOKENIZER).write_text(files.tokenizer, encoding="utf-8")
    for name, data in files.others.items():
        (folder / name).write_bytes(data)
