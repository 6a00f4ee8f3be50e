"""The sizes of an OpenVLA-OFT, read from the `config.json` next to its weights.

A published `config.json` names its vision towers by their timm ids and gives the Llama sizes. Small models of the same
classes give the tower sizes in `tiny_overrides` (`dinov2`, `siglip`: embed_dim, depth, num_heads, patch_size).
`chunk_steps` is ours: published models have 8 and do not say so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vla_rl.errors import UserError
from vla_rl.policy.entries import MOST_LAYERS, check_count, check_flag, check_multiple, check_object, check_positive
from vla_rl.policy.openvla_oft.actions import BINS

ACTION_DIMS = 7  # A of published models: xyz, axis-angle, gripper
CHUNK_STEPS = 8  # L: control steps of a published chunk
BOS_ID = 1  # `<s>`, embedded before the patches
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
    action_dims: int = ACTION_DIMS  # A: what the checkpoint's statistics, or the demonstrations, say

    @property
    def slots(self) -> int:
        """Action tokens of a chunk."""
        return self.chunk_steps * self.action_dims

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


# What a text_config may say beside its sizes, and the only value that `vla_rl.policy.openvla_oft.llama` computes.
LLAMA_ONLY = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
ROPE_THETA = 10000.0


def parse_config(raw: dict[str, Any], *, l1_head: bool = False) -> OpenVLAConfig:
    """The sizes in a `config.json`'s content.

    Args:
        l1_head: of a checkpoint with an L1 head. Published ones read two images and proprioception and do not say so.

    Raises:
        UserError: the file lacks an entry, has one of another type, or asks for what this project does not compute.
    """
    for name in ("text_config", "timm_model_ids", "image_sizes", "pad_to_multiple_of", "n_action_bins"):
        if name not in raw:
            raise UserError(f"config.json has no key {name!r}: is it the config of an OpenVLA-OFT checkpoint?")
    tiny = check_object(raw.get("tiny_overrides", {}), "config.json: tiny_overrides")
    proprio_dims = check_count(raw.get("proprio_dim", 8), "config.json: proprio_dim")
    with_proprio = check_flag(raw.get("use_proprio", False), "config.json: use_proprio")
    config = OpenVLAConfig(
        towers=(_tower(raw, tiny, 0, "dinov2", 4.0), _tower(raw, tiny, 1, "siglip", SIGLIP_MLP_RATIO)),
        llama=_llama(check_object(raw["text_config"], "config.json: text_config")),
        pad_to_multiple_of=check_count(raw["pad_to_multiple_of"], "config.json: pad_to_multiple_of"),
        action_bins=check_count(raw["n_action_bins"], "config.json: n_action_bins"),
        images=check_count(raw.get("num_images_in_input", 2 if l1_head else 1), "config.json: num_images_in_input"),
        proprio_dims=proprio_dims if l1_head or with_proprio else 0,
        prompt_tokens=check_count(tiny["prompt_tokens"], "config.json: tiny_overrides.prompt_tokens")
        if tiny.get("prompt_tokens", 0) != 0
        else 0,
        chunk_steps=check_count(raw.get("chunk_steps", CHUNK_STEPS), "config.json: chunk_steps"),
    )
    if config.action_bins != BINS:
        raise UserError(f"config.json: n_action_bins is {config.action_bins}; this project's tokenizer has {BINS} bins")
    if config.first_action_id <= STOP_ID:
        raise UserError(
            f"config.json: text_config.vocab_size {config.llama.vocab} has no room for {BINS} action tokens beside "
            f"pad_to_multiple_of {config.pad_to_multiple_of}"
        )
    if raw.get("pad_token_id", config.pad_id) != config.pad_id:  # the ids of the action tokens are counted from there
        raise UserError(
            f"config.json: pad_token_id is {raw['pad_token_id']!r}, expected text_config.vocab_size less "
            f"pad_to_multiple_of, {config.pad_id}"
        )
    return config


def _tower(raw: dict[str, Any], tiny: dict[str, Any], index: int, override_name: str, mlp_ratio: float) -> TowerConfig:
    ids = raw["timm_model_ids"]
    if not isinstance(ids, list) or len(ids) != 2:
        raise UserError(f"config.json: timm_model_ids must name two vision towers, got {ids!r}")
    if ids[index] not in list(TIMM_TOWERS):
        raise UserError(f"config.json: timm_model_ids[{index}] is {ids[index]!r}; known are {', '.join(TIMM_TOWERS)}")
    tower = replace(TIMM_TOWERS[ids[index]], image_px=_image_px(raw["image_sizes"], index))
    if override_name in tiny:
        entry = f"config.json: tiny_overrides.{override_name}"
        sizes = check_object(tiny[override_name], entry)
        embed_dim = check_count(sizes.get("embed_dim"), f"{entry}.embed_dim")
        tower = replace(
            tower,
            embed_dim=embed_dim,
            depth=check_count(sizes.get("depth"), f"{entry}.depth", most=MOST_LAYERS),
            heads=check_count(sizes.get("num_heads"), f"{entry}.num_heads"),
            mlp_dim=int(embed_dim * mlp_ratio),
            patch_px=check_count(sizes.get("patch_size", tower.patch_px), f"{entry}.patch_size"),
        )
        check_multiple(tower.embed_dim, tower.heads, f"{entry}.embed_dim", "num_heads")
    check_multiple(tower.image_px, tower.patch_px, f"config.json: image_sizes[{index}]", "the tower's patch size")
    return tower


def _image_px(sizes: Any, index: int) -> int:
    """The side of one tower's square image; timm also writes it as [height, width]."""
    entry = f"config.json: image_sizes[{index}]"
    if not isinstance(sizes, list) or len(sizes) != 2:
        raise UserError(f"config.json: image_sizes must hold a size for each of the two towers, got {sizes!r}")
    sides = sizes[index] if isinstance(sizes[index], list) else [sizes[index]]
    if not 1 <= len(sides) <= 2 or sides[0] != sides[-1]:
        raise UserError(f"{entry} must be the side of a square image, got {sizes[index]!r}")
    return check_count(sides[0], entry)


def _llama(text: dict[str, Any]) -> LlamaConfig:
    """A published text_config may leave out what equals Llama-2 7B's values."""

    def count(name: str, usual: int | None = None, **limit: int) -> int:
        return check_count(text.get(name, usual), f"config.json: text_config.{name}", **limit)

    for name, only in LLAMA_ONLY.items():
        if text.get(name, only) != only:
            raise UserError(f"config.json: text_config.{name} is {text[name]!r}; this project's Llama has {only!r}")
    llama = LlamaConfig(
        vocab=count("vocab_size"),
        width=count("hidden_size", 4096),
        mlp_dim=count("intermediate_size", 11008),
        layers=count("num_hidden_layers", 32, most=MOST_LAYERS),
        heads=count("num_attention_heads", 32),
        rms_eps=check_positive(text.get("rms_norm_eps", 1e-6), "config.json: text_config.rms_norm_eps"),
        rope_theta=_rope_theta(text),
    )
    check_multiple(llama.width, llama.heads, "config.json: text_config.hidden_size", "num_attention_heads")
    return llama


def _rope_theta(text: dict[str, Any]) -> float:
    """The base of the rotary angles: `rope_theta`, or of transformers 5 `rope_parameters.rope_theta`.

    Raises:
        UserError: they differ, or the angles are scaled, which is not computed here.
    """
    thetas = {}
    if "rope_theta" in text:
        thetas["rope_theta"] = text["rope_theta"]
    for name in ("rope_parameters", "rope_scaling"):  # the second is an older name
        if text.get(name) is None:
            continue
        rope = check_object(text[name], f"config.json: text_config.{name}")
        kind = rope.get("rope_type", rope.get("type", "default"))
        more = sorted(rope.keys() - {"rope_type", "type", "rope_theta"})
        if kind != "default" or more:
            raise UserError(
                f"config.json: text_config.{name} asks for scaled rotary angles ({', '.join([str(kind), *more])}); "
                "this project computes rope_type default alone"
            )
        if "rope_theta" in rope:
            thetas[f"{name}.rope_theta"] = rope["rope_theta"]
    thetas = {name: check_positive(theta, f"config.json: text_config.{name}") for name, theta in thetas.items()}
    if len(set(thetas.values())) > 1:
        said = ", ".join(f"{name} {theta}" for name, theta in thetas.items())
        raise UserError(f"config.json: text_config has different bases of the rotary angles: {said}")
    return next(iter(thetas.values()), ROPE_THETA)
