"""The sizes of an OpenVLA-OFT, read from the `config.json` next to its weights.

A published `config.json` names its vision towers by their timm ids and gives the Llama sizes. Small models of the same
classes give the tower sizes in `tiny_overrides` (`dinov2`, `siglip`: embed_dim, depth, num_heads, patch_size).
`chunk_steps` is ours: published models have 8 and do not say so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

CHUNK_STEPS = 8  # L: control steps of a published chunk
ACTION_DIMS = 7  # A: xyz, axis-angle, gripper
STOP_ID = 2  # `</s>`, embedded after the action slots


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """One ViT. `depth` counts all blocks of the checkpoint; the last one is never run."""

    embed_dim: int
    depth: int
    heads: int
    mlp_dim: int
    patch_px: int
    image_px: int
    registers: int = 0  # with registers there is also a class token; both are dropped from the features
    layer_scale: bool = False
    attention_pool: bool = False  # in the checkpoint, never run

    @property
    def patches(self) -> int:
        return (self.image_px // self.patch_px) ** 2


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    vocab: int
    width: int
    mlp_dim: int
    layers: int
    heads: int
    rms_eps: float
    rope_theta: float


@dataclass(frozen=True, slots=True)
class OpenVLAConfig:
    """Everything that decides the shape of the model."""

    towers: tuple[TowerConfig, TowerConfig]  # DINOv2 and SigLIP, in this order
    llama: LlamaConfig
    pad_to_multiple_of: int  # rows of the vocabulary after the last text token
    action_bins: int
    images: int  # camera images per observation
    proprio_dims: int  # 0: no proprioception token
    prompt_tokens: int  # every prompt is padded to this length; 0: to the longest of the batch
    chunk_steps: int  # L: control steps of a chunk

    @property
    def slots(self) -> int:
        """Action tokens of a chunk."""
        return self.chunk_steps * ACTION_DIMS

    @property
    def text_vocab(self) -> int:
        """Tokens of the tokenizer, 32000 for Llama-2. Its last `action_bins` ids stand for actions."""
        return self.llama.vocab - self.pad_to_multiple_of

    @property
    def pad_id(self) -> int:
        return self.text_vocab

    @property
    def first_action_id(self) -> int:
        """The vocabulary id of bin index 0, 31744 for Llama-2."""
        return self.text_vocab - self.action_bins


# timm id -> sizes: block count, width, heads and MLP of the architectures that OpenVLA fuses.
TIMM_TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": TowerConfig(1024, 24, 16, 4096, 14, 224, registers=4, layer_scale=True),
    "vit_so400m_patch14_siglip_224": TowerConfig(1152, 27, 16, 4304, 14, 224, attention_pool=True),
}
SIGLIP_MLP_RATIO = 3.7362  # 4304 / 1152, rounded down


# What decides the sizes in a published `config.json`; its text_config leaves out what equals Llama-2 7B.
PUBLISHED_7B: dict[str, Any] = {
    "model_type": "openvla",
    "timm_model_ids": list(TIMM_TOWERS),
    "image_sizes": [224, 224],
    "n_action_bins": 256,
    "pad_token_id": 32000,
    "pad_to_multiple_of": 64,
    "text_config": {"model_type": "llama", "vocab_size": 32064},
}


def _tower(raw: dict[str, Any], index: int, override_name: str, mlp_ratio: float) -> TowerConfig:
    timm_id = raw["timm_model_ids"][index]
    if timm_id not in TIMM_TOWERS:
        raise ValueError(f"config.json: timm_model_ids[{index}] is {timm_id!r}; known are {', '.join(TIMM_TOWERS)}")
    tower = replace(TIMM_TOWERS[timm_id], image_px=raw["image_sizes"][index])
    sizes = raw.get("tiny_overrides", {}).get(override_name)
    if sizes is None:
        return tower
    return replace(
        tower,
        embed_dim=sizes["embed_dim"],
        depth=sizes["depth"],
        heads=sizes["num_heads"],
        mlp_dim=int(sizes["embed_dim"] * mlp_ratio),
        patch_px=sizes.get("patch_size", tower.patch_px),
    )


def parse_config(raw: dict[str, Any], *, l1_head: bool = False) -> OpenVLAConfig:
    """The sizes in a `config.json`'s content.

    Args:
        l1_head: of a checkpoint with an L1 head. Published ones read two images and proprioception and do not say so.

    Raises:
        ValueError: the file lacks a key, or names an architecture this project does not know.
    """
    try:
        text = raw["text_config"]
        return OpenVLAConfig(
            towers=(_tower(raw, 0, "dinov2", 4.0), _tower(raw, 1, "siglip", SIGLIP_MLP_RATIO)),
            llama=LlamaConfig(
                vocab=text["vocab_size"],
                # A published text_config may leave out what equals Llama-2 7B's values.
                width=text.get("hidden_size", 4096),
                mlp_dim=text.get("intermediate_size", 11008),
                layers=text.get("num_hidden_layers", 32),
                heads=text.get("num_attention_heads", 32),
                rms_eps=text.get("rms_norm_eps", 1e-6),
                rope_theta=text.get("rope_theta", 10000.0),
            ),
            pad_to_multiple_of=raw["pad_to_multiple_of"],
            action_bins=raw["n_action_bins"],
            images=raw.get("num_images_in_input", 2 if l1_head else 1),
            proprio_dims=raw.get("proprio_dim", 8) if l1_head or raw.get("use_proprio", False) else 0,
            prompt_tokens=raw.get("tiny_overrides", {}).get("prompt_tokens", 0),
            chunk_steps=raw.get("chunk_steps", CHUNK_STEPS),
        )
    except KeyError as missing:
        raise ValueError(f"config.json has no key {missing}: is it the config of an OpenVLA-OFT checkpoint?") from None
