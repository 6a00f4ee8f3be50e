"""`L1Policy`: the L1 variant of OpenVLA-OFT behind the same `Policy` protocol, stochastic through a Laplace scale.

Greedy is the released policy: the head's action, no noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.policy.openvla_oft.action_head import (
    PROPRIO,
    WRAPPED,
    L1Head,
    LaplaceScale,
    laplace_entropy,
    laplace_log_prob,
    laplace_quantile,
)
from vla_rl.policy.openvla_oft.actions import Statistics
from vla_rl.policy.openvla_oft.files import CheckpointFiles
from vla_rl.policy.openvla_oft.model import OpenVLAOFT
from vla_rl.policy.openvla_oft.policy import OpenVLAOFTPolicy, state_of, summary
from vla_rl.policy.rows import row_by_row, single_threaded
from vla_rl.policy.weights import fill, open_shard, part, save_tensors
from vla_rl.types import ActionChunk, ChunkBatch, Observation

SCALE_FILE = "laplace_scale.safetensors"


class L1Policy(OpenVLAOFTPolicy):
    """OpenVLA-OFT with an L1 head."""

    def __init__(self, model: OpenVLAOFT, files: CheckpointFiles, statistics: Statistics | None, head: L1Head) -> None:
        super().__init__(model, files, statistics)
        model.language_model.lm_head.requires_grad_(False)  # never read
        self.head = head
        self.scale = LaplaceScale(model.config.llama.width, model.config.action_dims)

    def logits(self, observation: Observation) -> Tensor:
        raise UserError("an L1 head has no action tokens")

    def imitation_loss(self, observation: Observation, command_NLA: Tensor, generator: torch.Generator) -> Tensor:
        """Mean over rows, steps and dimensions of |mean - demonstrated action|, the loss that the head is published
        with. The scale is for reinforcement learning to learn."""
        mean_NLA = self.distribution(observation)[..., 0]
        return (mean_NLA - self.normalised(command_NLA).to(mean_NLA)).abs().mean()

    def distribution(self, observation: Observation) -> Tensor:
        """Mean and scale of each number, float32 [N, L, A, 2]."""
        return self._distribution_and_hidden(observation)[0]

    def _distribution_and_hidden(self, observation: Observation) -> tuple[Tensor, Tensor]:
        hidden, computing = self.hidden(observation)
        with computing:
            mean = self.head(hidden)
        return torch.stack([mean.float(), self.scale(hidden)], dim=-1), hidden

    @torch.no_grad()
    def act(self, observation: Observation, seed_N: Sequence[int], temperature: float) -> ActionChunk:
        """As the discrete policy's; the temperature multiplies the scale."""
        with single_threaded(self.device):
            distribution, hidden = row_by_row(self._distribution_and_hidden, observation, self.device)
            mean, scale = distribution.cpu().unbind(-1)
            value = mean
            if temperature:
                scale = scale * temperature
                draws = [np.random.default_rng(seed).random(mean.shape[1:]) for seed in seed_N]
                uniform = torch.from_numpy(np.stack(draws)).clamp(1e-12, 1 - 1e-12)  # neither end has a quantile
                value = laplace_quantile(uniform, mean.double(), scale.double()).float()
            return ActionChunk(
                drawn={"value": value},
                logprob_NLA=laplace_log_prob(value, mean, scale),
                action_NLA=value.clip(-1, 1),
                command_NLA=self.command(value.double()),
                entropy_NLA=laplace_entropy(scale),
                # score_sq: of the derivative by the mean
                extras=self._fill_extras(
                    score_sq=lambda: scale**-2, hidden=lambda: summary(hidden), state=lambda: state_of(hidden).cpu()
                ),
            )

    def _score(self, batch: ChunkBatch, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        observation = Observation(batch.frame_NHWC, batch.proprio_NP, batch.instruction_N)
        distribution, hidden = self._distribution_and_hidden(observation)
        mean, scale = distribution.unbind(-1)
        scale = scale * temperature
        value = batch.actions.drawn["value"].to(mean.device)
        return laplace_log_prob(value, mean, scale), laplace_entropy(scale), hidden

    def freeze_head(self) -> None:
        """With adapters, the released head stays; only the scale learns beside them."""
        self.head.requires_grad_(False)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Beside what every OpenVLA-OFT policy writes, the scale; a whole checkpoint has its heads in .pt files."""
        if hasattr(self.model, "peft_config"):
            super().save(folder, state)
        else:
            super().save(folder, {name: value for name, value in state.items() if f"model.{PROPRIO}." not in name})
            for head, name in self.files.heads.items():
                tensors = part(state, "head." if head == "head" else f"model.{PROPRIO}.")
                torch.save({WRAPPED + key: value for key, value in tensors.items()}, folder / name)
        save_tensors(part(state, "scale."), folder / SCALE_FILE)

    def load_scale(self, folder: Path) -> None:
        """Go on from a trained scale.

        Raises:
            UserError: the folder has none, or one that does not fit.
        """
        path = folder / SCALE_FILE
        if not path.exists():
            raise UserError(f"adapter {folder} has no {SCALE_FILE}: it was not trained on an L1 checkpoint")
        with open_shard(path) as stored:
            fill(self.scale, {name: stored.get_tensor(name) for name in stored.keys()}, path)  # noqa: SIM118
