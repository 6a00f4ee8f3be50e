"""The two vision towers, plainly in torch with timm's parameter names.

Features are the output of the second-to-last block, without the final norm and without class and register tokens. The
last block, the final norm and the attention pool are in every checkpoint but never run, so they are not built:
`unused_shapes` names them for loading and export.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_rl.policy.linear import Linear, linear
from vla_rl.policy.openvla_oft.config import TowerConfig

NORM_EPS = 1e-6  # timm's ViT, not torch's default 1e-5


class PatchEmbed(nn.Module):
    """Non-overlapping patches to vectors, by a matrix product: faster than the convolution on a CPU."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.patch_px = config.patch_px
        self.proj = nn.Conv2d(3, config.embed_dim, config.patch_px, config.patch_px)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        b, c, h, w = pixels_BCHW.shape
        p = self.patch_px
        patches = pixels_BCHW.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(b, (h // p) * (w // p), c * p * p)
        return linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        b, s, d = x_BSD.shape
        qkv = self.qkv(x_BSD).view(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(mixed.transpose(1, 2).reshape(b, s, d))


class Mlp(nn.Module):
    def __init__(self, width: int, mlp_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, mlp_dim)
        self.fc2 = Linear(mlp_dim, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BSD)))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x_BSD: Tensor) -> Tensor:
        return x_BSD * self.scale_factor


class Block(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, config.heads)
        self.ls1 = LayerScale(width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, config.mlp_dim)
        self.ls2 = LayerScale(width) if config.layer_scale else nn.Identity()

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_BSD = x_BSD + self.ls1(self.attn(self.norm1(x_BSD)))
        return x_BSD + self.ls2(self.mlp(self.norm2(x_BSD)))


class Tower(nn.Module):
    """One ViT up to its second-to-last block: pixels [B, 3, H, W] -> features [B, patches, embed_dim]."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.prefix_tokens = 1 + config.registers if config.registers else 0
        if config.registers:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.reg_token = nn.Parameter(torch.zeros(1, config.registers, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches, width))  # for patches alone
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth - 1))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        x_BSD = self.patch_embed(pixels_BCHW) + self.pos_embed
        if self.prefix_tokens:
            prefix = torch.cat([self.cls_token, self.reg_token], dim=1).expand(len(x_BSD), -1, -1)
            x_BSD = torch.cat([prefix, x_BSD], dim=1)
        for block in self.blocks:
            x_BSD = block(x_BSD)
        return x_BSD[:, self.prefix_tokens :]


class VisionBackbone(nn.Module):
    """DINOv2 and SigLIP side by side: features concatenated on channels, several images one after the other."""

    def __init__(self, towers: tuple[TowerConfig, TowerConfig]) -> None:
        super().__init__()
        self.featurizer = Tower(towers[0])
        self.fused_featurizer = Tower(towers[1])

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels [B, 6 * images, H, W]: of each image three channels for DINOv2, then three for SigLIP."""
        b, c, h, w = pixels_BCHW.shape
        pixels = pixels_BCHW.reshape(b * c // 6, 6, h, w)
        features = torch.cat([self.featurizer(pixels[:, :3]), self.fused_featurizer(pixels[:, 3:])], dim=-1)
        return features.reshape(b, -1, features.shape[-1])


def unused_shapes(towers: tuple[TowerConfig, TowerConfig]) -> dict[str, torch.Size]:
    """Name and shape of the tensors a checkpoint holds but the model never runs."""
    shapes: dict[str, torch.Size] = {}
    for prefix, tower in zip(("vision_backbone.featurizer.", "vision_backbone.fused_featurizer."), towers, strict=True):
        width = tower.embed_dim
        with torch.device("meta"):
            parts = {f"blocks.{tower.depth - 1}.": Block(tower), "norm.": nn.LayerNorm(width)}
            if tower.attention_pool:
                parts["attn_pool.kv."] = Linear(width, 2 * width)
                parts["attn_pool.q."] = Linear(width, width)
                parts["attn_pool.proj."] = Linear(width, width)
                parts["attn_pool.norm."] = nn.LayerNorm(width)
                parts["attn_pool.mlp."] = Mlp(width, tower.mlp_dim)
                shapes[f"{prefix}attn_pool.latent"] = torch.Size([1, 1, width])
        for name, part in parts.items():
            shapes.update({prefix + name + key: value.shape for key, value in part.state_dict().items()})
    return shapes
