"""A small OpenVLA-OFT with random weights: classes and file layout of the 7B, at sizes that train on two CPU cores.

128 px images in 64 patches of 16 px, prompts padded to a fixed length (so that a row's numbers do not depend on the
other rows of a batch), and a tokenizer of LIBERO's and Meta-World's words. No proprioception token, like the published
policies that reinforcement learning starts from: with one, a small policy copies the state of the fingers and never
lets go.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import nn

from vla_rl.policy.openvla_oft.config import PUBLISHED_7B, parse_config
from vla_rl.policy.openvla_oft.files import CheckpointFiles
from vla_rl.policy.openvla_oft.model import OpenVLAOFT
from vla_rl.policy.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policy.openvla_oft.processor import FINAL_TOKEN, PROMPT
from vla_rl.policy.openvla_oft.vision import unused_shapes
from vla_rl.policy.random_weights import made_where_used

TEXT_VOCAB = 128 + 256  # words, then action ids
PAD_MULTIPLE = 64
PROMPT_TOKENS_7B = 32  # Llama's tokenizer cuts LIBERO's prompts into about as many
EMBEDDING_STD = 0.02  # also of the output head: the first distribution is nearly uniform
EMBEDDINGS = ("cls_token", "reg_token", "pos_embed", "embed_tokens.weight", "lm_head.weight")
RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.fc2.weight")
# Every word of the 130 instructions of LIBERO's suites, then of the 50 of Meta-World (ids count from the first).
WORDS = """
alphabet and at back basket bbq between black book both bottle bottom bowl box butter cabinet caddy center cheese
chocolate close compartment cookie cream drawer dressing from front frying in inside it juice ketchup left microwave
middle milk moka mug next of off on open orange pan pick place plate pot pots pudding push put rack ramekin red right
salad sauce shelf soup stack stove table the them to tomato top tray turn under up white wine wooden yellow
ball behind bin block button coffee dial door down faucet goal hammer handle hole hoop lever lid lock machine nail other
out peg press puck pull reach ring side slide stick sweep take unlock wall window with
""".split()


def random_policy(seed: int = 0) -> OpenVLAOFTPolicy:
    """A small policy with random weights and no statistics."""
    return _random_policy(tiny_config(), seed)


def random_policy_7b(dtype: torch.dtype, seed: int = 0, sizes: dict[str, Any] = PUBLISHED_7B) -> OpenVLAOFTPolicy:
    """The published sizes with random weights, to measure speed and memory; built on the GPU where there is one."""
    raw = sizes | {"tiny_overrides": sizes.get("tiny_overrides", {}) | {"prompt_tokens": PROMPT_TOKENS_7B}}
    with made_where_used(dtype):
        return _random_policy(raw, seed)


def _random_policy(raw: dict[str, Any], seed: int) -> OpenVLAOFTPolicy:
    config = parse_config(raw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OpenVLAOFT(config)
        _initialise(model)
    unused = {name: torch.zeros(shape) for name, shape in unused_shapes(config.towers).items()}
    with torch.device("cpu"):
        files = CheckpointFiles(raw, _preprocessor(), _tokenizer().to_str(), unused)
        return OpenVLAOFTPolicy(model, files, statistics=None)


def tiny_config() -> dict[str, Any]:
    """The content of a small model's `config.json`."""
    tower = {"embed_dim": 96, "depth": 3, "num_heads": 3, "patch_size": 16}
    return {
        "model_type": "openvla",
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "image_sizes": [128, 128],
        "n_action_bins": 256,
        "pad_token_id": TEXT_VOCAB,
        "pad_to_multiple_of": PAD_MULTIPLE,
        "use_proprio": False,
        "text_config": {
            "model_type": "llama",
            "vocab_size": TEXT_VOCAB + PAD_MULTIPLE,
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
        },
        "tiny_overrides": {"dinov2": tower, "siglip": tower, "prompt_tokens": 24},
    }


def _initialise(model: OpenVLAOFT) -> None:
    """Weights N(0, 1 / inputs), less by 1 / sqrt(2 layers) where a layer writes to the residual stream.

    At these widths Llama's fixed 0.02 starts with features so small that learning takes several times as long.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        if name.endswith(EMBEDDINGS):
            std = EMBEDDING_STD
        else:
            std = parameter[0].numel() ** -0.5
            if name.endswith(RESIDUAL_OUTPUTS):
                std /= math.sqrt(2 * model.config.llama.layers)
        nn.init.normal_(parameter, std=std)


def _preprocessor() -> dict[str, Any]:
    """Frames are rendered at the model's size and not cropped; both towers see values in [-1, 1]."""
    half = [[0.5, 0.5, 0.5]] * 2
    return {"means": half, "stds": half, "center_crop_area": 1.0}


def _tokenizer() -> Tokenizer:
    """One token per word, and one each for the fixed text before and after the instruction."""
    before, after = PROMPT.split("{instruction}")
    names = ["<unk>", "<s>", "</s>", before, after, FINAL_TOKEN, *WORDS]
    tokenizer = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (before, after, FINAL_TOKEN)])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer
