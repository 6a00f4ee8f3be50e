"""Heads of the L1 variant of OpenVLA-OFT (arXiv 2502.19645): actions as numbers, and how far off they may be.

The published head regresses a chunk of normalised actions from the hidden states of its 56 slots and is deterministic.
Reinforcement learning needs a distribution: `LaplaceScale` adds a scale, so that the head's answer is the mean of a
Laplace distribution, whose maximum likelihood is the L1 loss the head was trained with (RIPT-VLA, arXiv 2505.17016).

Shape legend: see `vla_rl.types`; K slots (L x A), D Llama's width.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_rl.errors import UserError, first_line
from vla_rl.policy.linear import Linear
from vla_rl.policy.weights import fill

PROPRIO = "proprio_projector"  # of the model, which an L1 checkpoint keeps in a file of its own
HEAD_FILE, PROPRIO_FILE = "action_head--*_checkpoint.pt", f"{PROPRIO}--*_checkpoint.pt"
BLOCKS = 2
WRAPPED = "module."  # the published files were saved from a DistributedDataParallel
INITIAL_SCALE = 0.05  # of normalised actions in [-1, 1]
LOG_SCALE_RANGE = (-6.0, 0.0)


class ResidualBlock(nn.Module):
    """x + relu(W norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


class MLPResNet(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = Linear(inputs, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(BLOCKS))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class L1Head(nn.Module):
    """Normalised actions [N, L, A] from hidden states [N, K, D]: one MLP per control step, on its A slots together."""

    def __init__(self, width: int, action_dims: int) -> None:
        super().__init__()
        self.action_dims = action_dims
        self.model = MLPResNet(action_dims * width, width, action_dims)

    def forward(self, hidden_NKD: Tensor) -> Tensor:
        return self.model(per_step(hidden_NKD, self.action_dims))


class LaplaceScale(nn.Module):
    """The scale b of the Laplace distribution around the L1 head's action, [N, L, A]; at first `INITIAL_SCALE`."""

    def __init__(self, width: int, action_dims: int) -> None:
        super().__init__()
        self.action_dims = action_dims
        self.norm = nn.LayerNorm(action_dims * width)
        self.fc = nn.Linear(action_dims * width, action_dims)
        with torch.no_grad():
            self.fc.weight.zero_()
            self.fc.bias.fill_(math.log(INITIAL_SCALE))

    def forward(self, hidden_NKD: Tensor) -> Tensor:
        return self.fc(self.norm(per_step(hidden_NKD.float(), self.action_dims))).clamp(*LOG_SCALE_RANGE).exp()


def per_step(hidden_NKD: Tensor, action_dims: int) -> Tensor:
    """[N, L, A x D]."""
    return hidden_NKD.reshape(len(hidden_NKD), -1, action_dims * hidden_NKD.shape[-1])


def laplace_log_prob(value: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """log p(x) = -|x - mu| / b - log(2 b)."""
    return -(value - mean).abs() / scale - (2 * scale).log()


def laplace_entropy(scale: Tensor) -> Tensor:
    """1 + log(2 b), nats."""
    return 1 + (2 * scale).log()


def laplace_quantile(uniform: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """mu - b sign(u - 1/2) log(1 - 2 |u - 1/2|): a draw, for u uniform in (0, 1)."""
    centred = uniform - 0.5
    return mean - scale * centred.sign() * torch.log1p(-2 * centred.abs())


def read_head(folder: Path, pattern: str, module: nn.Module) -> str:
    """Fill `module` from the one file that matches `pattern`, strictly; its name.

    Raises:
        UserError: no such file or several, or one that does not hold exactly the module's tensors.
    """
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        found = ", ".join(f.name for f in files) or "none"
        raise UserError(f"checkpoint {folder} must have one {pattern} for its L1 head, found {found}")
    try:
        stored = torch.load(files[0], map_location="cpu", weights_only=True)
    except Exception as e:  # torch names a damaged archive by half a dozen types
        raise UserError(
            f"{files[0]} is damaged or is no file of weights ({first_line(e)}): download or copy it again"
        ) from e
    if isinstance(stored, dict):
        for name in [name for name in stored if f"{WRAPPED}{name}" in stored]:
            raise UserError(f"{files[0]} holds the tensor {name!r} twice, once behind {WRAPPED!r}: leave one of them")
        stored = {str(name).removeprefix(WRAPPED): value for name, value in stored.items()}
    fill(module, stored, files[0])
    return files[0].name
