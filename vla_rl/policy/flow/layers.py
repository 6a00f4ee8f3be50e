"""What the networks of pi0, pi0.5 and SmolVLA are made of, with the parameter names of the published layout.

Shapes: see `vla_rl.policy.flow.policy`, and
    h, E  heads, and numbers of a head
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_rl.policy.flow.config import ROPE_THETA, VISION_EPS, DecoderConfig, VisionConfig
from vla_rl.policy.rotary import rope_tables, rotate

KeysValues = tuple[Tensor, Tensor]  # [N, kv heads, S, E] each; keys are rotated


def nest(**modules: nn.Module) -> Any:  # an nn.ModuleDict, which does not say what it holds
    """Modules under names, where the published layout has a level without a computation of its own."""
    return nn.ModuleDict(modules)


@dataclass(frozen=True, slots=True)
class Sight:
    """Where the tokens of one forward stand, and what they may see: the same for all layers.

    Args:
        rope: cosine and sine of their positions.
        bias_N1QS: 0 where a query may see a key, else the lowest number. A query that may see nothing gets the mean of
            all values, not NaN, which would spread: its row is padding that nobody reads.
    """

    rope: tuple[Tensor, Tensor]
    bias_N1QS: Tensor

    @classmethod
    def of(cls, position_NS: Tensor, mask_NQS: Tensor, config: DecoderConfig, dtype: torch.dtype) -> Sight:
        """`mask_NQS`: True where a query may see a key."""
        bias_NQS = torch.zeros(mask_NQS.shape, dtype=dtype, device=mask_NQS.device)
        bias_NQS.masked_fill_(~mask_NQS, torch.finfo(dtype).min)
        return cls(rope_tables(position_NS, config.head_dim, ROPE_THETA), bias_NQS[:, None])


def attend(q_NhQE: Tensor, k_NhSE: Tensor, v_NhSE: Tensor, bias_N1QS: Tensor | None) -> Tensor:
    """Attention of grouped query heads, [N, Q, heads x E]."""
    grouped = q_NhQE.shape[1] != k_NhSE.shape[1]
    mixed = F.scaled_dot_product_attention(q_NhQE, k_NhSE, v_NhSE, attn_mask=bias_N1QS, enable_gqa=grouped)
    return mixed.transpose(1, 2).flatten(2)


def time_embedding(t_N: Tensor, width: int, periods: tuple[float, float]) -> Tensor:
    """[sin, cos] of 2 pi t / period, periods in geometric progression, computed in float64: float32 [N, width]."""
    shortest, longest = periods
    share = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=t_N.device)
    angle = 2 * math.pi * t_N[:, None].double() / (shortest * (longest / shortest) ** share)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


class Norm(nn.Module):
    """RMS norm in float32, times `weight`, or in Gemma 1 + `weight`.

    Every norm answers with the normed input, and with the gate that the branch behind it is multiplied by.
    """

    def __init__(self, width: int, eps: float, *, offset: float) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.full((width,), 1 - offset))

    def forward(self, x_NSD: Tensor, condition_ND: Tensor | None) -> tuple[Tensor, Tensor | float]:
        normed = F.rms_norm(x_NSD.float(), self.weight.shape, eps=self.eps)
        return (normed * (self.offset + self.weight.float())).to(x_NSD.dtype), 1.0


class AdaptiveNorm(nn.Module):
    """RMS norm whose scale, shift and gate are a function of a condition (adaRMS of pi0.5)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.dense = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x_NSD: Tensor, condition_ND: Tensor | None) -> tuple[Tensor, Tensor | float]:
        scale, shift, gate = self.dense(condition_ND)[:, None].chunk(3, dim=-1)
        normed = F.rms_norm(x_NSD.float(), x_NSD.shape[-1:], eps=self.eps)
        return (normed * (1 + scale.float()) + shift.float()).to(x_NSD.dtype), gate.to(x_NSD.dtype)


class Attention(nn.Module):
    """`reads`: width of what keys and values are made of; None: of the queries' own tokens."""

    def __init__(self, config: DecoderConfig, reads: int | None = None) -> None:
        super().__init__()
        self.config, inner, kv = config, config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, inner, bias=False)
        self.k_proj = nn.Linear(reads or config.width, kv, bias=False)
        self.v_proj = nn.Linear(reads or config.width, kv, bias=False)
        self.o_proj = nn.Linear(inner, config.width, bias=False)

    def queries(self, x_NSD: Tensor) -> Tensor:
        return self._heads(self.q_proj(x_NSD))

    def keys_values(self, keys_NSD: Tensor, values_NSD: Tensor) -> KeysValues:
        return self._heads(self.k_proj(keys_NSD)), self._heads(self.v_proj(values_NSD))

    def _heads(self, x_NSD: Tensor) -> Tensor:
        return x_NSD.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)


class GatedMlp(nn.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, config.width, bias=False)

    def forward(self, x_NSD: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x_NSD)) * self.up_proj(x_NSD))


class Layer(nn.Module):
    """A decoder layer: attention, then the MLP.

    Args:
        norm: makes one of its two norms.
        cross: reads the cache alone, through projections of its own, in place of the cache and its own tokens.
    """

    def __init__(
        self,
        config: DecoderConfig,
        norm: Callable[[], nn.Module],
        activation: Callable[[Tensor], Tensor],
        *,
        cross: bool = False,
    ) -> None:
        super().__init__()
        self.cross = cross
        self.input_layernorm = norm()
        self.self_attn = Attention(config, reads=config.kv_heads * config.head_dim if cross else None)
        self.post_attention_layernorm = norm()
        self.mlp = GatedMlp(config, activation)

    def forward(
        self,
        x_NSD: Tensor,
        sight: Sight,
        cached: KeysValues | None = None,
        condition_ND: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """The tokens behind the layer, and their own rotated keys and values.

        Args:
            sight: of keys in the cache, then (unless `cross`) of the tokens' own.
            cached: keys and values of the tokens before these.
        """
        normed, gate = self.input_layernorm(x_NSD, condition_ND)
        attention = self.self_attn
        q = rotate(attention.queries(normed), *sight.rope)
        if self.cross:
            assert cached is not None, "a layer that reads the prefix alone needs one"
            keys, values = (part.transpose(1, 2).flatten(2).to(normed.dtype) for part in cached)
            own = every = attention.keys_values(keys, values)
        else:
            keys, values = attention.keys_values(normed, normed)
            own = every = (rotate(keys, *sight.rope), values)
            if cached is not None:
                before = [part.to(values.dtype) for part in cached]
                every = torch.cat([before[0], own[0]], dim=2), torch.cat([before[1], own[1]], dim=2)
        x_NSD = x_NSD + gate * attention.o_proj(attend(q, *every, sight.bias_N1QS))
        normed, gate = self.post_attention_layernorm(x_NSD, condition_ND)
        return x_NSD + gate * self.mlp(normed), own


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x_NSD: Tensor) -> Tensor:
        q, k, v = (
            project(x_NSD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attend(q, k, v, None))


class VisionMlp(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)

    def forward(self, x_NSD: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x_NSD)))


class VisionLayer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=VISION_EPS)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=VISION_EPS)
        self.mlp = VisionMlp(config)

    def forward(self, x_NSD: Tensor) -> Tensor:
        x_NSD = x_NSD + self.self_attn(self.layer_norm1(x_NSD))
        return x_NSD + self.mlp(self.layer_norm2(x_NSD))


class SigLIP(nn.Module):
    """The vision tower: one token per patch, row by row."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        side = config.image_px // config.patch_px
        self.embeddings = nest(
            patch_embedding=nn.Conv2d(3, config.width, config.patch_px, config.patch_px),
            position_embedding=nn.Embedding(side**2, config.width),
        )
        self.encoder = nest(layers=nn.ModuleList(VisionLayer(config) for _ in range(config.layers)))
        self.post_layernorm = nn.LayerNorm(config.width, eps=VISION_EPS)

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        x_NSD = self._patches(pixels_N3HW) + self.embeddings["position_embedding"].weight
        for layer in self.encoder["layers"]:
            x_NSD = layer(x_NSD)
        return self.post_layernorm(x_NSD)

    def _patches(self, pixels_N3HW: Tensor) -> Tensor:
        """By a matrix product: faster than the convolution on a CPU."""
        conv = self.embeddings["patch_embedding"]
        p = conv.kernel_size[0]
        patches = pixels_N3HW.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.flatten(3).flatten(1, 2), conv.weight.flatten(1), conv.bias)
