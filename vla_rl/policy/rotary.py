"""Rotary position embeddings, as all language models here use them."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_tables(position_BS: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles position * theta^(-2i/head_dim), float32 [B, 1, S, head_dim]."""
    frequency = theta ** -(torch.arange(0, head_dim, 2, device=position_BS.device, dtype=torch.float32) / head_dim)
    angle = (position_BS[:, None, :, None].float() * frequency).repeat(1, 1, 1, 2)
    return angle.cos(), angle.sin()


def rotate(x_BHSE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout: pairs are (i, i + head_dim / 2)."""
    first, second = x_BHSE.chunk(2, dim=-1)
    return (x_BHSE * cos + torch.cat([-second, first], dim=-1) * sin).to(x_BHSE.dtype)
