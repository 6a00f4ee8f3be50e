"""A small pi0.5 with random weights: the published classes and layout, at sizes that train on two CPU cores.

128 px pictures in 64 patches, LIBERO's words, chunks of 16 control steps. The prompt has no state: a small policy that
sees its fingers copies them and never lets go (as the small OpenVLA-OFT).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

from vla_rl.policy.flow.checkpoint import FlowFiles, build_model
from vla_rl.policy.flow.config import parse_config
from vla_rl.policy.flow.described import make_processors
from vla_rl.policy.flow.model import FlowModel
from vla_rl.policy.flow.pipelines import ACTION, PICTURE, make_pipelines
from vla_rl.policy.flow.policy import FlowPolicy, Noise
from vla_rl.policy.openvla_oft.tiny import WORDS

PAD = "<pad>"
PROMPT_SLOTS = 24
CHUNK_STEPS = 16
HEADS = {"layers": 4, "heads": 4, "kv_heads": 1, "head_dim": 32}
SIZES = {
    "vision": {"width": 96, "layers": 3, "heads": 3, "mlp": 384, "patch_px": 16, "image_px": 128},
    "gemma_2b": {"width": 128, "mlp": 352, **HEADS},
    "gemma_300m": {"width": 128, "mlp": 352, **HEADS},
}
RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight")
EMBEDDING_STD = 0.02


def random_policy(
    noise: Noise,
    seed: int = 0,
    sizes: dict[str, dict[str, int]] = SIZES,
    chunk_steps: int = CHUNK_STEPS,
    kind: type[FlowPolicy] = FlowPolicy,
) -> FlowPolicy:
    """A small policy with random weights and no statistics."""
    tokenizer = word_tokenizer()
    raw = tiny_config(sizes, tokenizer.get_vocab_size(), chunk_steps)
    config = parse_config(raw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config)
        initialise(model)
    pipelines = make_pipelines(raw, state_in_prompt=True, tokenizer={})
    files = FlowFiles(raw, *pipelines, statistics={}, tokenizer=tokenizer.to_str())
    return kind(model, make_processors(config, files), files, noise)


def tiny_config(sizes: dict[str, dict[str, int]], vocabulary: int, chunk_steps: int) -> dict[str, Any]:
    """The content of a small model's `config.json`."""
    image_px = sizes["vision"]["image_px"]
    return {
        "type": "pi05",
        "input_features": {f"{PICTURE}image": {"type": "VISUAL", "shape": [3, image_px, image_px]}},
        "output_features": {ACTION: {"type": "ACTION", "shape": [7]}},
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"},
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "chunk_size": chunk_steps,
        "n_action_steps": chunk_steps,
        "max_state_dim": 8,
        "max_action_dim": 8,
        "num_inference_steps": 4,
        "image_resolution": [image_px, image_px],
        "tokenizer_max_length": PROMPT_SLOTS,
        "sizes": sizes | {"vocab": vocabulary},
    }


def initialise(model: FlowModel) -> None:
    """Weights N(0, 1 / inputs), less by 1 / sqrt(2 layers) where a layer writes to the residual stream. Norms that
    depend on the time begin with gates of 0, as published."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or name.endswith(".dense.weight"):
            continue
        std = parameter[0].numel() ** -0.5
        if ("embedding" in name and "patch" not in name) or name.endswith("embed_tokens.weight"):
            std = EMBEDDING_STD
        elif name.endswith(RESIDUAL_OUTPUTS):
            std /= math.sqrt(2 * model.config.text.layers)
        nn.init.normal_(parameter, std=std)


def word_tokenizer() -> Tokenizer:
    """One token per word and per punctuation mark."""
    names = [PAD, "<unk>", "Task", "State", "Action", ":", ",", ";", *WORDS]
    tokenizer = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer
