"""`FlowPolicy`: a model that integrates a velocity from noise to a chunk, behind the `Policy` protocol.

Sampling makes denoising steps noisy (`vla_rl.functional.flow`): one of each decision, or all of them. The noisy ones
are scored, so that the update costs one prefix per row and one suffix forward per noisy step. Greedy, at temperature 0,
integrates the same first noise and adds none on the way. The two are different distributions.

Shapes: see `vla_rl.types`, and
    H  control steps that the model predicts, of which the first L are used
    W  columns of the model's actions, of which the first A are real
    K  denoising steps, of which S are noisy
    D  width of the prefix
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.functional.flow import (
    gaussian_entropy,
    gaussian_log_prob,
    matching_time,
    negative_aware_loss,
    score_sq,
    times,
    transition,
)
from vla_rl.policy.flow.checkpoint import FlowFiles, save_files
from vla_rl.policy.flow.model import FlowModel, Inputs, Prefix
from vla_rl.policy.flow.processors import Processors
from vla_rl.policy.rows import rows_of, single_threaded
from vla_rl.types import ActionChunk, ChunkBatch, Observation, SupervisedPolicy


@dataclass(frozen=True, slots=True)
class Noise:
    """How a decision is sampled.

    Args:
        level: of the noise at temperature 1; the temperature multiplies it.
        steps: K.
        joint: all steps are noisy; else one, drawn for each decision.
    """

    level: float = 0.5
    steps: int = 4
    joint: bool = False

    @property
    def scored(self) -> int:
        """S: noisy steps of a decision."""
        return self.steps if self.joint else 1


class FlowPolicy(SupervisedPolicy):
    """pi0, pi0.5 or SmolVLA.

    Args:
        files: what its checkpoint holds beside the weights.
        chunk_steps: L; None = H.
    """

    # squared derivative of each log-probability by the velocity [N, L, A]; mean and standard deviation of the prefix's
    # last hidden states [N, 2 D]; their mean [N, D]; for `matching_loss` the chunk noised again, and the velocity there
    # [N, 2, S, H, W]
    OFFERS = frozenset({"score_sq", "hidden", "state", "matching"})
    learns_entropy = False  # the noise is a schedule
    greedy_repeats = False  # the first noise is drawn

    def __init__(
        self,
        model: FlowModel,
        processors: Processors,
        files: FlowFiles,
        noise: Noise,
        chunk_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.processors, self.files, self.noise = model, processors, files, noise
        self._chunk_steps = model.config.chunk_steps if chunk_steps is None else chunk_steps

    @property
    def chunk_steps(self) -> int:
        return self._chunk_steps

    @property
    def images(self) -> int:
        return self.processors.images

    @property
    def proprio_dims(self) -> int:
        return self.processors.proprio_dims

    @property
    def state_dims(self) -> int:
        return self.model.config.prefix_width

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def act(self, observation: Observation, seed_N: Sequence[int], temperature: float) -> ActionChunk:
        """Integrate one chunk per row from its own noise; temperature 0 adds no noise on the way.

        On a CPU a row's answer is the same bits whatever other rows are asked for and however many threads there are.
        """
        if self.device.type != "cpu":
            return self._act(observation, seed_N, temperature)
        with single_threaded(self.device):
            rows = zip(rows_of(observation), seed_N, strict=True)
            return ActionChunk.cat([self._act(row, [seed], temperature) for row, seed in rows])

    def _act(self, observation: Observation, seed_N: Sequence[int], temperature: float) -> ActionChunk:
        inputs, (x_NHW, noise_NSHW, step_NS) = self._inputs(observation), self._draw(seed_N)
        prefix = self.model.prefix(inputs)
        points, velocities = [x_NHW], []
        for k in range(self.noise.steps):
            step_N = torch.full_like(step_NS[:, 0], k)
            velocity_NHW = self._velocity(prefix, x_NHW, step_N, inputs)
            level_N = self.noise.level * temperature * (step_NS == k).any(1)
            mean_NHW, std = self._transition(x_NHW, velocity_NHW, step_N, level_N)
            x_NHW = mean_NHW + std * noise_NSHW[:, k if self.noise.joint else 0]
            points.append(x_NHW)
            velocities.append(velocity_NHW)
        drawn = {"from": pick(points, step_NS), "to": pick(points, step_NS + 1), "step": step_NS}
        logprob_NLA, entropy_NLA, score_sq_NLA = self._score(drawn, pick(velocities, step_NS), temperature)
        action_NLA = self._used(x_NHW).cpu()
        return ActionChunk(
            drawn={name: value.cpu() for name, value in drawn.items()},
            logprob_NLA=logprob_NLA.cpu(),
            action_NLA=action_NLA,
            command_NLA=self.processors.commands(action_NLA),
            entropy_NLA=entropy_NLA.cpu(),
            extras={
                name: compute().cpu()
                for name, compute in {
                    "score_sq": lambda: score_sq_NLA,
                    "hidden": lambda: torch.cat(_moments(prefix), dim=-1),
                    "state": lambda: _moments(prefix)[0],
                    "matching": lambda: self._match(prefix, x_NHW, step_NS, seed_N, inputs),
                }.items()
                if name in self.extras
            },
        )

    def _draw(self, seed_N: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """First noise [N, H, W], noise of the noisy steps, which is 0 in padded columns [N, S, H, W], and these steps
        [N, S]."""
        config, dims = self.model.config, self.processors.action_dims
        shape = (config.chunk_steps, config.action_width)
        first, noise, step = [], [], []
        for seed in seed_N:
            generator = np.random.default_rng(seed)
            first.append(generator.standard_normal(shape))
            noisy = np.arange(self.noise.steps)
            if not self.noise.joint:
                noisy = generator.integers(self.noise.steps, size=1)
            noise.append(generator.standard_normal((len(noisy), *shape)) * (np.arange(config.action_width) < dims))
            step.append(noisy)
        first_NHW, noise_NSHW = (torch.from_numpy(np.stack(part)).float().to(self.device) for part in (first, noise))
        return first_NHW, noise_NSHW, torch.from_numpy(np.stack(step)).to(self.device)

    def _match(
        self, prefix: Prefix, data_NHW: Tensor, step_NS: Tensor, seed_N: Sequence[int], inputs: Inputs
    ) -> Tensor:
        """x_t = t e + (1 - t) x_0 of the chunk x_0 at the times of the noisy steps, with a noise e of its own for each,
        and the velocity there, [N, 2, S, H, W]."""
        shape = (step_NS.shape[1], *data_NHW.shape[1:])
        drawn = np.stack([np.random.default_rng((seed, 1)).standard_normal(shape) for seed in seed_N])
        t_NS11 = self._times(step_NS)[0][..., None, None]
        x_NSHW = t_NS11 * torch.from_numpy(drawn).float().to(self.device) + (1 - t_NS11) * data_NHW[:, None]
        velocities = [
            self._velocity(prefix, x_NSHW[:, s], step_N, inputs) for s, step_N in enumerate(step_NS.unbind(1))
        ]
        return torch.stack([x_NSHW, torch.stack(velocities, dim=1)], dim=1)

    def matching_loss(self, batch: ChunkBatch, advantage: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self._inputs(Observation(batch.frame_NHWC, batch.proprio_NP, batch.instruction_N))
        x_NSHW, old_NSHW = batch.actions.extras["matching"].to(self.device).unbind(1)
        data_NLA, prefix = batch.actions.action_NLA.to(self.device), self.model.prefix(inputs)
        losses, changes = [], []
        for s, step_N in enumerate(batch.actions.drawn["step"].to(self.device).unbind(1)):
            velocity_NLA = self._used(self._velocity(prefix, x_NSHW[:, s], step_N, inputs))
            old_NLA, x_NLA = self._used(old_NSHW[:, s]), self._used(x_NSHW[:, s])
            losses.append(
                negative_aware_loss(velocity_NLA, old_NLA, x_NLA, data_NLA, self._times(step_N)[0], advantage)
            )
            changes.append((velocity_NLA.detach() - old_NLA).abs())
        return torch.stack(losses).mean(0), torch.stack(changes).mean(0)

    def log_prob(self, batch: ChunkBatch, temperature: float) -> tuple[Tensor, Tensor]:
        logprob_NLA, entropy_NLA, _ = self._score_batch(batch, temperature)
        return logprob_NLA, entropy_NLA

    def log_prob_and_state(self, batch: ChunkBatch, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        logprob_NLA, entropy_NLA, prefix = self._score_batch(batch, temperature)
        return logprob_NLA, entropy_NLA, _moments(prefix)[0]

    def _score_batch(self, batch: ChunkBatch, temperature: float) -> tuple[Tensor, Tensor, Prefix]:
        inputs = self._inputs(Observation(batch.frame_NHWC, batch.proprio_NP, batch.instruction_N))
        drawn = {name: value.to(self.device) for name, value in batch.actions.drawn.items()}
        prefix = self.model.prefix(inputs)
        velocities = [
            self._velocity(prefix, x_NHW, step_N, inputs)
            for x_NHW, step_N in zip(drawn["from"].unbind(1), drawn["step"].unbind(1), strict=True)
        ]
        logprob_NLA, entropy_NLA, _ = self._score(drawn, torch.stack(velocities, dim=1), temperature)
        return logprob_NLA, entropy_NLA, prefix

    def _score(
        self, drawn: Mapping[str, Tensor], velocity_NSHW: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability, entropy and squared score of the noisy steps, [N, L, A] each, summed over the steps; zeros
        where the temperature is 0, which leaves nothing to chance."""
        zeros = torch.zeros_like(self._used(velocity_NSHW[:, 0]))
        if not temperature:
            return zeros, zeros, zeros
        logprob_NLA, entropy_NLA, score_sq_NLA = zeros, zeros, zeros
        for s, step_N in enumerate(drawn["step"].unbind(1)):
            level_N = torch.full(step_N.shape, self.noise.level * temperature, device=step_N.device)
            mean_NHW, std = self._transition(drawn["from"][:, s], velocity_NSHW[:, s], step_N, level_N)
            mean_NLA, to_NLA, std = self._used(mean_NHW), self._used(drawn["to"][:, s]), self._used(std)
            logprob_NLA = logprob_NLA + gaussian_log_prob(to_NLA, mean_NLA, std)
            entropy_NLA = entropy_NLA + gaussian_entropy(std)
            score_sq_NLA = score_sq_NLA + score_sq(to_NLA, mean_NLA, std, *self._times(step_N))
        return logprob_NLA, entropy_NLA, score_sq_NLA

    def imitation_loss(self, observation: Observation, command_NLA: Tensor, generator: torch.Generator) -> Tensor:
        """Flow matching: mean of (e - a - v(x_t, t))^2 over rows, steps and real columns, x_t = t e + (1 - t) a.

        Raises:
            UserError: only a part of the model's chunk is used, so that the rest would not be learnt.
        """
        if self.chunk_steps != self.model.config.chunk_steps:
            raise UserError(
                f"supervised training needs the model's whole chunk of {self.model.config.chunk_steps} steps, "
                f"policy.chunk_steps={self.chunk_steps}: policy.chunk_steps=null"
            )
        inputs = self._inputs(observation)
        data_NHW = self.processors.targets(command_NLA, self.model.config.action_width).to(self.device)
        noise_NHW = torch.randn(data_NHW.shape, generator=generator).to(self.device)
        t_N = matching_time(len(data_NHW), generator).to(self.device)
        t_N11 = t_N[:, None, None]
        x_NHW = t_N11 * noise_NHW + (1 - t_N11) * data_NHW
        velocity_NHW, _ = self.model.velocity(self.model.prefix(inputs), x_NHW, t_N, inputs.state_ND)
        return self._used(noise_NHW - data_NHW - velocity_NHW).square().mean()

    def _inputs(self, observation: Observation) -> Inputs:
        return self.processors.inputs(observation, self.device)

    def _velocity(self, prefix: Prefix, x_NHW: Tensor, step_N: Tensor, inputs: Inputs) -> Tensor:
        velocity_NHW, _ = self.model.velocity(prefix, x_NHW, self._times(step_N)[0], inputs.state_ND)
        return velocity_NHW

    def _times(self, step_N: Tensor) -> tuple[Tensor, Tensor]:
        """t of denoising steps and of the steps after them, [N] each."""
        all_K = times(self.noise.steps).to(step_N.device)
        return all_K[step_N], all_K[step_N + 1]

    def _transition(
        self, x_NHW: Tensor, velocity_NHW: Tensor, step_N: Tensor, level_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean [N, H, W] and standard deviation [N, 1, 1] or [N, H, W] of a denoising step."""
        t_N, next_N = self._times(step_N)
        return transition(x_NHW, velocity_NHW, t_N, next_N, level_N, first_step=1 / self.noise.steps)

    def _used(self, x_NHW: Tensor) -> Tensor:
        """[N, L, A]."""
        return x_NHW[:, : self.chunk_steps, : self.processors.action_dims]

    def check_can_act(self) -> None:
        self.processors.check_complete()

    def fit_normalisation(self, name: str, command_TA: Tensor, proprio_TP: Tensor) -> None:
        """Normalise by the statistics of demonstrations, unless the checkpoint brought its own.

        Raises:
            UserError: the demonstrations' actions have other dimensions than the policy's.
        """
        if command_TA.shape[1] != self.processors.action_dims:
            raise UserError(
                f"the demonstrations' actions have {command_TA.shape[1]} dimensions, the policy's "
                f"{self.processors.action_dims} (sft.demos=FILE)"
            )
        self.files.statistics |= self.processors.fit(command_TA, proprio_TP)

    def take_normalisation(self, name: str, file: str) -> None:
        raise UserError(
            f"a flow policy takes its statistics from its checkpoint or its demonstrations, not from {file}: "
            "sft.statistics=null"
        )

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write what training changed: the adapters where there are any, else the whole checkpoint.

        Args:
            state: the policy's state dict.
        """
        model_state = {name.removeprefix("model."): value for name, value in state.items()}
        if hasattr(self.model, "peft_config"):
            from vla_rl.policy.lora import save_adapter  # here: peft takes seconds to import

            save_adapter(self.model, folder, model_state)
        else:
            save_files(folder, model_state, self.files)


def pick(values: Sequence[Tensor], index_NS: Tensor) -> Tensor:
    """Row n of `values[index_NS[n, s]]`, for each n and s."""
    rows = torch.arange(len(index_NS), device=index_NS.device)
    return torch.stack(list(values), dim=1)[rows[:, None], index_NS]


def _moments(prefix: Prefix) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the real tokens of the prefix's last hidden states, float32 [N, D] each."""
    hidden_NSD, mask_NS1 = prefix.hidden_NSD.float(), prefix.mask_NS[..., None]
    count_N1 = mask_NS1.sum(1)
    mean_ND = (hidden_NSD * mask_NS1).sum(1) / count_N1
    centred_NSD = (hidden_NSD - mean_ND[:, None]) * mask_NS1
    return mean_ND, (centred_NSD.square().sum(1) / count_N1).sqrt()
