"""Flow models and checkpoints with the weights of the golden sets, which are made from the names of the tensors."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from vla_rl.policy.flow import tiny
from vla_rl.policy.flow.config import parse_config
from vla_rl.policy.flow.load import DTYPES, NOISE, trained_part
from vla_rl.policy.flow.model import FlowModel
from vla_rl.policy.flow.pi import Pi
from vla_rl.policy.flow.policy import FlowPolicy, Noise
from vla_rl.policy.flow.smolvla import SmolVLA
from vla_rl.types import Observation

GOLDEN = Path(__file__).parents[1] / "golden"
SETS = ("pi0_tiny", "pi05_tiny", "smolvla_tiny")


def golden_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`, and the sizes that the real classes have in their source."""
    sizes = json.loads((folder / "sizes.json").read_text())["sizes"]
    return json.loads((folder / "config.json").read_text()) | {"sizes": sizes}


def golden_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the published file, by its name there; the tensors are shared, and only read."""
    return dict(_drawn_weights(folder))


@cache
def _drawn_weights(folder: Path) -> dict[str, Tensor]:
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


def byte_tokenizer() -> str:
    """The content of a tokenizer.json with one token per byte."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return tokenizer.to_str()


def write_folder(folder: Path, name: str, weights: dict[str, Tensor] | None = None) -> Path:
    """A checkpoint as lerobot writes it, with the sizes and weights of a golden set."""
    raw = golden_config(GOLDEN / name)
    raw["input_features"] = {k: v for k, v in raw["input_features"].items() if "wrist" not in k}
    raw["input_features"]["observation.images.empty_camera_0"] = {"type": "VISUAL", "shape": [3, 56, 56]}
    raw["empty_cameras"] = 1
    features, norm_map = raw["input_features"] | raw["output_features"], raw["normalization_mapping"]
    statistics = {}
    for feature, dims in (("observation.state", 8), ("action", 7)):
        spread = torch.arange(1, dims + 1) / dims
        statistics |= {f"{feature}.mean": spread / 10, f"{feature}.std": spread.clone()}
        statistics |= {f"{feature}.q01": -spread, f"{feature}.q99": spread}
    before, after = "policy_preprocessor_step_0.safetensors", "policy_postprocessor_step_0.safetensors"
    normaliser = {"eps": 1e-8, "features": features, "norm_map": norm_map}
    tokens = {"max_length": raw["tokenizer_max_length"], "padding": "max_length", "tokenizer_name": "nobody/nothing"}
    pipelines = {
        "policy_preprocessor": [
            {"registry_name": "normalizer_processor", "config": normaliser, "state_file": before},
            {"registry_name": "tokenizer_processor", "config": tokens},
            {"registry_name": f"{'smolvla' if raw['type'] == 'smolvla' else 'pi0'}_new_line_processor", "config": {}},
        ],
        "policy_postprocessor": [
            {"registry_name": "unnormalizer_processor", "config": normaliser, "state_file": after}
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "tokenizer.json").write_text(byte_tokenizer())
    for pipeline, steps in pipelines.items():
        (folder / f"{pipeline}.json").write_text(json.dumps({"name": pipeline, "steps": steps}))
        save_file(statistics, folder / steps[0]["state_file"])
    save_file(golden_weights(GOLDEN / name) if weights is None else weights, folder / "model.safetensors")
    return folder


def toy_flow_policy(train: str = "all", dtype: str = "float32", noise: str = "sde") -> FlowPolicy:
    """A flow policy for `tests.helpers.toy.ChunkPool`: as small as can be, normalised, and quick to decide."""
    decoder = {"layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "width": 16, "mlp": 32}
    vision = {"width": 16, "layers": 1, "heads": 2, "mlp": 32, "patch_px": 16, "image_px": 32}
    sizes = {"vision": vision, "gemma_2b": decoder, "gemma_300m": decoder}
    level = 1.0 if noise == "learnt" else 0.5
    policy = tiny.random_policy(Noise(level, 3), sizes=sizes, chunk_steps=8, kind=NOISE[noise])
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if name.endswith(".dense.weight"):  # else no gradient reaches the layers at first
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    command = torch.rand(100, 7, generator=generator) * 2 - 1
    policy.fit_normalisation("toy", command, torch.rand(100, 8, generator=generator))
    return trained_part(policy, train, DTYPES[dtype])


def observe(rows: int = 2) -> Observation:
    """What so many robots see, one instruction each."""
    generator = torch.Generator().manual_seed(rows)
    frame = torch.randint(0, 256, (rows, 40, 40, 3), dtype=torch.uint8, generator=generator)
    return Observation(frame, torch.rand(rows, 8, generator=generator), ["open it", "close the drawer"][:rows])
