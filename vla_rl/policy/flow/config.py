"""Sizes of pi0, pi0.5 and SmolVLA, from a checkpoint's `config.json` and from what lerobot fixes by names.

`config.json` names variants ("gemma_2b"); the numbers behind the names are here. A small model of this project writes
its own sizes into the entry `sizes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vla_rl.errors import UserError
from vla_rl.policy.entries import LARGEST_SIZE, MOST_LAYERS, check_count, check_multiple, check_object, check_positive

PI_VISION = {"width": 1152, "mlp": 4304, "layers": 27, "heads": 16, "patch_px": 14, "image_px": 224}
PI_VOCABULARY = 257152
GEMMA = {  # PaliGemma's language model, and the action expert
    "gemma_2b": {"width": 2048, "layers": 18, "mlp": 16384, "heads": 8, "kv_heads": 1, "head_dim": 256},
    "gemma_300m": {"width": 1024, "layers": 18, "mlp": 4096, "heads": 8, "kv_heads": 1, "head_dim": 256},
}
SMOLVLM = {
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": {
        "text": {"width": 960, "mlp": 2560, "layers": 32, "heads": 15, "kv_heads": 5, "head_dim": 64, "vocab": 49280},
        "vision": {
            **{"width": 768, "mlp": 3072, "layers": 12, "heads": 12, "patch_px": 16, "image_px": 512},
            "scale_factor": 4,
        },
    }
}
GEMMA_EPS, LLAMA_EPS, VISION_EPS = 1e-6, 1e-5, 1e-6  # of the norms
ROPE_THETA = 10_000.0  # whatever the language model's own config says
TYPES = ("pi0", "pi05", "smolvla")


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """SigLIP."""

    width: int
    mlp: int
    layers: int
    heads: int
    patch_px: int
    image_px: int
    scale_factor: int = 1  # SmolVLA: so many patches by so many become one token

    @property
    def tokens(self) -> int:
        """Of one picture."""
        return (self.image_px // self.patch_px // self.scale_factor) ** 2


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A language model, or the action expert beside it."""

    width: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float


@dataclass(frozen=True, slots=True)
class FlowConfig:
    """What the networks need to know."""

    type: str  # one of TYPES
    vocabulary: int
    vision: VisionConfig
    text: DecoderConfig
    expert: DecoderConfig
    chunk_steps: int  # H
    action_width: int  # W
    state_width: int
    periods: tuple[float, float]  # shortest and longest of the time embedding
    self_attention_every: int = 1  # SmolVLA: the layers between read the prefix alone

    @property
    def prefix_width(self) -> int:
        return self.text.width


def parse_config(raw: dict[str, Any]) -> FlowConfig:
    """The sizes of a `config.json`.

    Raises:
        UserError: another type of policy, a name that stands for no known sizes, an option that is not built, or an
            entry that is missing or no size.
    """
    kind = raw.get("type")
    if kind not in TYPES:
        raise UserError(f"config.json: type={kind!r} is no flow policy known here; known: {', '.join(TYPES)}")
    sizes = check_object(raw.get("sizes", {}), "config.json: sizes")
    common = {
        "type": kind,
        "chunk_steps": _count(raw, "chunk_size"),
        "action_width": _count(raw, "max_action_dim"),
        "state_width": _count(raw, "max_state_dim"),
        "periods": (_positive(raw, "min_period", 0.004), _positive(raw, "max_period", 4.0)),
    }
    _refuse(raw, "use_relative_actions", "relative actions are")
    if kind == "smolvla":
        return _smolvla(raw, sizes, common)
    vision = _vision(sizes.get("vision", PI_VISION), VISION_SIZES)
    text, expert = (
        _decoder(sizes.get(variant) or _named(variant, GEMMA, name), variant, DECODER_SIZES)
        for name, default in (("paligemma_variant", "gemma_2b"), ("action_expert_variant", "gemma_300m"))
        for variant in [_text(raw, name, default)]
    )
    for name in ("layers", "kv_heads", "head_dim"):
        if expert[name] != text[name]:
            raise UserError(
                f"config.json: sizes: the action expert reads the language model's keys and values, so both must have "
                f"the same {name}, got {expert[name]} and {text[name]}"
            )
    _check_even(expert["width"], "config.json: sizes: the action expert's width")
    return FlowConfig(
        vocabulary=check_count(sizes.get("vocab", PI_VOCABULARY), "config.json: sizes.vocab"),
        vision=VisionConfig(**vision),
        text=DecoderConfig(**text, eps=GEMMA_EPS),
        expert=DecoderConfig(**expert, eps=GEMMA_EPS),
        **common,
    )


VISION_SIZES = ("width", "mlp", "layers", "heads", "patch_px", "image_px")
DECODER_SIZES = ("width", "mlp", "layers", "heads", "kv_heads", "head_dim")
EXPERT_WIDTH = "config.json: the expert's width, sizes.text.width times expert_width_multiplier,"


def _smolvla(raw: dict[str, Any], sizes: dict[str, Any], common: dict[str, Any]) -> FlowConfig:
    for name, what in (
        ("add_image_special_tokens", "tokens around pictures are"),
        ("adapt_to_pi_aloha", "the conversion for Aloha is"),
    ):
        _refuse(raw, name, what)
    if integer(raw, "prefix_length", -1) > 0:  # lerobot writes -1 or 0 where there is none
        _refuse(raw, "prefix_length", "a prefix of fixed length is")
    if raw.get("attention_mode", "cross_attn") != "cross_attn":
        raise UserError(f"config.json: attention_mode={raw['attention_mode']!r} is not supported, only cross_attn")
    known = sizes or _named(_text(raw, "vlm_model_name", ""), SMOLVLM, "vlm_model_name")
    text = _decoder(known.get("text"), "text", (*DECODER_SIZES, "vocab"))
    vision = _vision(known.get("vision"), (*VISION_SIZES, "scale_factor"))
    vocabulary, kept = text.pop("vocab"), integer(raw, "num_vlm_layers", 16)
    if kept > 0:
        text["layers"] = min(text["layers"], kept)
    if (layers := integer(raw, "num_expert_layers", 0)) not in (-1, 0, text["layers"]):
        raise UserError(f"config.json: num_expert_layers={layers} is not supported, only as many as "
                        f"the language model's {text['layers']}")  # fmt: skip
    width = check_count(int(text["width"] * _positive(raw, "expert_width_multiplier", 0.75)), EXPERT_WIDTH)
    _check_even(width, EXPERT_WIDTH)
    expert = text | {"width": width, "mlp": 256 * math.ceil(int(4 * int(2 * width / 3)) / 256)}
    return FlowConfig(
        vocabulary=vocabulary,
        vision=VisionConfig(**vision),
        text=DecoderConfig(**text, eps=LLAMA_EPS),
        expert=DecoderConfig(**expert, eps=LLAMA_EPS),
        self_attention_every=_count(raw, "self_attn_every_n_layers", 2),
        **common,
    )


def _text(raw: dict[str, Any], name: str, default: str) -> str:
    value = raw.get(name, default)
    if not isinstance(value, str):
        raise UserError(f"config.json: {name} must be text, got {value!r}")
    return value


def integer(raw: dict[str, Any], name: str, default: int) -> int:
    value = raw.get(name, default)
    if type(value) is not int:
        raise UserError(f"config.json: {name} must be an integer, got {value!r}")
    return value


def _named(name: str, known: dict[str, Any], entry: str) -> Any:
    if name not in known:
        raise UserError(f"config.json: {entry}={name!r} stands for no sizes known here; known: {', '.join(known)}")
    return known[name]


def _vision(value: Any, names: tuple[str, ...]) -> dict[str, int]:
    sizes = _sizes(value, "vision", names)
    check_multiple(sizes["width"], sizes["heads"], "config.json: sizes.vision.width", "heads")
    check_multiple(sizes["image_px"], sizes["patch_px"], "config.json: sizes.vision.image_px", "patch_px")
    side, joined = sizes["image_px"] // sizes["patch_px"], sizes.get("scale_factor", 1)
    check_multiple(side, joined, "config.json: sizes.vision: patches on a side", "scale_factor")
    return sizes


def _decoder(value: Any, what: str, names: tuple[str, ...]) -> dict[str, int]:
    sizes = _sizes(value, what, names)
    check_multiple(sizes["heads"], sizes["kv_heads"], f"config.json: sizes.{what}.heads", "kv_heads")
    _check_even(sizes["head_dim"], f"config.json: sizes.{what}.head_dim")
    return sizes


def _check_even(size: int, entry: str) -> None:
    """Raise UserError unless a sine and a cosine share `size`."""
    if size % 2:
        raise UserError(f"{entry} must be even, got {size}")


def _sizes(value: Any, what: str, names: tuple[str, ...]) -> dict[str, int]:
    value = check_object(value, f"config.json: sizes.{what}")
    most = {"layers": MOST_LAYERS}
    return {
        name: check_count(value.get(name), f"config.json: sizes.{what}.{name}", most=most.get(name, LARGEST_SIZE))
        for name in names
    }


def _count(raw: dict[str, Any], name: str, default: int | None = None) -> int:
    return check_count(raw.get(name, default), f"config.json: {name}")


def _positive(raw: dict[str, Any], name: str, default: float) -> float:
    return check_positive(raw.get(name, default), f"config.json: {name}")


def _refuse(raw: dict[str, Any], name: str, what: str) -> None:
    if raw.get(name):
        raise UserError(f"config.json: {name}={raw[name]!r}: {what} not supported")
