"""pi0, pi0.5 and SmolVLA at the published sizes with random weights, to measure speed and memory with.

What their configs say of LIBERO: two cameras of 256 px, and a third that pi0 and pi0.5 are told is missing.
"""

from __future__ import annotations

from typing import Any

import torch

from vla_rl.policy.flow.checkpoint import FlowFiles, build_model
from vla_rl.policy.flow.config import SMOLVLM, FlowConfig, parse_config
from vla_rl.policy.flow.model import FlowModel
from vla_rl.policy.flow.pipelines import ACTION, PICTURE, STATE, make_pipelines
from vla_rl.policy.flow.tiny import initialise, word_tokenizer
from vla_rl.policy.random_weights import made_where_used

_CAMERA = {"type": "VISUAL", "shape": [3, 256, 256]}
_FEATURES = {f"{PICTURE}image": _CAMERA, f"{PICTURE}image2": _CAMERA, STATE: {"type": "STATE", "shape": [8]}}
_COMMON: dict[str, Any] = {
    "input_features": _FEATURES,
    "output_features": {ACTION: {"type": "ACTION", "shape": [7]}},
    "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
    "chunk_size": 50,
    "max_state_dim": 32,
    "max_action_dim": 32,
}
_PI: dict[str, Any] = {
    "input_features": _FEATURES | {f"{PICTURE}empty_camera_0": _CAMERA},
    "image_resolution": [224, 224],
    "num_inference_steps": 10,
}
CONFIGS: dict[str, dict[str, Any]] = {  # what a config.json says, by the name that policy.checkpoint gives
    "random:pi0": _COMMON | _PI | {"type": "pi0", "tokenizer_max_length": 48},
    "random:pi05": _COMMON
    | _PI
    | {
        "type": "pi05",
        "tokenizer_max_length": 200,
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"},
    },
    "random:smolvla": _COMMON
    | {
        "type": "smolvla",
        "tokenizer_max_length": 48,
        "resize_imgs_with_padding": [512, 512],
        "num_steps": 10,
        "vlm_model_name": next(iter(SMOLVLM)),
    },
}


def full_size_files(name: str) -> tuple[FlowConfig, FlowFiles]:
    """What `read_files` gives of a checkpoint, for one of `CONFIGS`: an instruction is one token per word, and there
    are no statistics."""
    raw = CONFIGS[name]
    pipelines = make_pipelines(raw, state_in_prompt=raw["type"] == "pi05", tokenizer={})
    return parse_config(raw), FlowFiles(raw, *pipelines, statistics={}, tokenizer=word_tokenizer().to_str())


def random_model(config: FlowConfig, dtype: torch.dtype) -> FlowModel:
    """Built on the GPU where there is one."""
    with made_where_used(dtype):
        model = build_model(config)
        initialise(model)
    return model
