"""Flow models with the weights of the golden sets, which are made from the names of the tensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_rl.policy.flow.config import parse_config
from vla_rl.policy.flow.model import FlowModel
from vla_rl.policy.flow.pi import Pi
from vla_rl.policy.flow.smolvla import SmolVLA

GOLDEN = Path(__file__).parents[1] / "golden"
SETS = ("pi0_tiny", "pi05_tiny", "smolvla_tiny")


def golden_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`, and the sizes that the real classes have in their source."""
    sizes = json.loads((folder / "sizes.json").read_text())["sizes"]
    return json.loads((folder / "config.json").read_text()) | {"sizes": sizes}


def golden_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the published file, by its name there."""
    stored = json.loads((folder / "state_dict_shapes.json").read_text())
    return {name: _weight(name, shape, stored["seed"]) for name, shape in stored["shapes"].items()}


def _weight(name: str, shape: list[int], seed: int) -> Tensor:
    number = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    z = np.random.RandomState((number + seed) % 2**32).standard_normal(shape).astype("float32")
    if len(shape) > 1:
        z *= np.float32(np.prod(shape[1:]) ** -0.5)
    elif not name.endswith(".dense.bias"):
        z *= np.float32(0.3)
        gemma = "language_model." in name or "gemma_expert." in name  # whose norms multiply by 1 + weight
        if not name.endswith("bias") and not gemma:
            z += 1
    return torch.from_numpy(z)


def golden_model(folder: Path) -> FlowModel:
    """The model of a golden set. Every tensor is accounted for."""
    config = parse_config(golden_config(folder))
    model = (SmolVLA if config.type == "smolvla" else Pi)(config)
    weights = {name.removeprefix("model."): value for name, value in golden_weights(folder).items()}
    for name, shape in model.unused_shapes().items():
        assert weights.pop(name).shape == shape
    model.load_state_dict(weights)
    return model


def golden_arrays(folder: Path) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in np.load(folder / "expected.npz").items()}
