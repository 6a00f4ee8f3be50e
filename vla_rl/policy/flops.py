"""Arithmetic of the model, counted on the meta device: no weights, no device, exact for any size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vla_rl.policy.openvla_oft.config import OpenVLAConfig
from vla_rl.policy.openvla_oft.model import OpenVLAOFT


def update_flops(config: OpenVLAConfig, prompt_tokens: int, lora: dict | None) -> tuple[int, int]:
    """Floating-point operations of one chunk: of its forward, and of forward and backward together.

    Multiplications and additions of matrix products and attention, as torch counts them. What gradient checkpointing
    computes a second time is not counted: that is the price of memory, not the model's work.

    Args:
        prompt_tokens: tokens of the prompt without BOS, padding included.
        lora: the adapters' settings, as in `load_policy`; frozen weights need no gradient of their own.
    """
    with torch.device("meta"):
        model = OpenVLAOFT(config)
        if lora is not None:
            from vla_rl.policy.lora import add_lora  # here: peft takes seconds to import

            add_lora(model, **lora)
        prompt = torch.zeros(1, prompt_tokens, dtype=torch.int64)
        pixels = torch.zeros(1, 6 * config.images, config.towers[0].image_px, config.towers[0].image_px)
        proprio = torch.zeros(1, config.proprio_dims) if config.proprio_dims else None
        return flops_of(lambda: model(prompt, torch.ones_like(prompt, dtype=torch.bool), pixels, proprio))


def flops_of(forward: Callable[[], Tensor]) -> tuple[int, int]:
    """Floating-point operations of `forward()`, and of it and its backward together."""
    with FlopCounterMode(display=False) as there:
        outputs = forward()
    with FlopCounterMode(display=False) as back:
        outputs.sum().backward()
    return there.get_total_flops(), there.get_total_flops() + back.get_total_flops()
