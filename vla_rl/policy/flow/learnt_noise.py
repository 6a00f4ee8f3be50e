"""`LearntNoisePolicy`: the standard deviation of noisy steps is learnt (Flow-Noise; ReinFlow, arXiv 2505.22094).

A noisy step's mean is Euler's. Its deviation is read from the expert's hidden states by one linear layer, for each
number (`vla_rl.functional.flow.learnt_std`), and multiplied by the temperature. It begins as the geometric mean of its
bounds.

    noise_std.safetensors   the layer, beside the weights of a checkpoint or an adapter
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from vla_rl.errors import UserError
from vla_rl.functional.flow import learnt_std
from vla_rl.policy.flow.model import Inputs, Prefix
from vla_rl.policy.flow.policy import FlowPolicy
from vla_rl.policy.weights import fill, open_shard, save_tensors
from vla_rl.types import Observation

FILE, PREFIX = "noise_std.safetensors", "noise_std."


class LearntNoisePolicy(FlowPolicy):
    """A flow policy whose `noise.level` is 1: the level is learnt."""

    OFFERS = frozenset({"hidden", "state"})
    learns_entropy = True

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.noise_std = skip_init(nn.Linear, self.model.config.expert.width, self.model.config.action_width)
        nn.init.zeros_(self.noise_std.weight)
        nn.init.zeros_(self.noise_std.bias)

    def _velocity(self, prefix: Prefix, x_NHW: Tensor, step_N: Tensor, inputs: Inputs) -> Tensor:
        """And behind it, in W more columns, what the deviation is made of."""
        velocity_NHW, hidden_NHD = self.model.velocity(prefix, x_NHW, self._times(step_N)[0], inputs.state_ND)
        return torch.cat([velocity_NHW, self.noise_std(hidden_NHD.float())], dim=-1)

    def _transition(
        self, x_NHW: Tensor, velocity_NHW: Tensor, step_N: Tensor, level_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        velocity_NHW, raw_NHW = velocity_NHW.chunk(2, dim=-1)
        mean_NHW, _ = super()._transition(x_NHW, velocity_NHW, step_N, torch.zeros_like(level_N))
        return mean_NHW, learnt_std(raw_NHW) * level_N[:, None, None]

    def imitation_loss(self, observation: Observation, command_NLA: Tensor, generator: torch.Generator) -> Tensor:
        raise UserError("demonstrations do not say how much noise to make: policy.noise=sde")

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        super().save(folder, {name: value for name, value in state.items() if not name.startswith(PREFIX)})
        of_noise = {name.removeprefix(PREFIX): value.cpu() for name, value in state.items() if name.startswith(PREFIX)}
        save_tensors(of_noise, folder / FILE)

    def load_noise(self, folder: Path) -> None:
        """What `save` wrote into a folder, if it did."""
        if (folder / FILE).exists():
            with open_shard(folder / FILE) as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, not a dict
            fill(self.noise_std, tensors, folder / FILE)
