"""`OpenVLAOFTPolicy`: the model behind the `Policy` protocol. It acts, and it scores what was done.

`act` and `log_prob` share one forward (`logits`) and one log-softmax in float32: what the policy sampled is what it is
trained on. The model has no dropout and no batch statistics, so train and eval mode are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.files import read_json
from vla_rl.functional.token_scores import token_entropy, token_score_sq
from vla_rl.policy.cache import VisionCache
from vla_rl.policy.openvla_oft.actions import (
    Statistics,
    detokenize,
    gripper_to_env,
    gripper_to_model,
    measure_statistics,
    tokenize,
)
from vla_rl.policy.openvla_oft.files import CheckpointFiles, save_checkpoint
from vla_rl.policy.openvla_oft.model import OpenVLAOFT
from vla_rl.policy.openvla_oft.processor import Pixels, Prompts
from vla_rl.policy.rows import row_by_row, single_threaded
from vla_rl.policy.weights import part
from vla_rl.types import ActionChunk, ChunkBatch, Observation, SupervisedPolicy


class OpenVLAOFTPolicy(SupervisedPolicy):
    """OpenVLA-OFT with discrete action tokens.

    Args:
        statistics: what normalises actions and proprioception; None for random weights, until demonstrations give them.
    """

    # squared norm of each token's score by the outputs of the head [N, L, A]; mean and standard deviation of the last
    # hidden states over the slots [N, 2 D]; the one that the first action token is read from [N, D]
    OFFERS = frozenset({"score_sq", "hidden", "state"})

    @property
    def state_dims(self) -> int:
        return self.model.config.llama.width

    @property
    def chunk_steps(self) -> int:
        """L, control steps of a chunk."""
        return self.model.config.chunk_steps

    def set_chunk_size(self, chunk_steps: int) -> None:
        """Predict chunks of another length from now on. Any length runs, because slots have no parameters; accuracy
        needs fine-tuning (`python -m vla_rl.sft`)."""
        self.model.config = replace(self.model.config, chunk_steps=chunk_steps)
        self.files.config = self.files.config | {"chunk_steps": chunk_steps}

    @property
    def images(self) -> int:
        """Camera images per observation, stacked on the frame's channels: from outside, from the wrist."""
        return self.model.config.images

    @property
    def action_code(self) -> object:
        """The head that draws, and the quantiles that turn what it draws into commands."""
        bounds = self._statistics.action
        return type(self), self.chunk_steps, *(x.tolist() for x in (bounds.q01, bounds.q99, bounds.mask))

    @property
    def proprio_dims(self) -> int:
        """P, numbers of proprioception that it reads; 0 = none."""
        return self.model.config.proprio_dims

    def __init__(self, model: OpenVLAOFT, files: CheckpointFiles, statistics: Statistics | None) -> None:
        super().__init__()
        self.model = model
        self.files = files
        self.statistics: Statistics | None = None
        if statistics is not None:
            self._normalise_by(statistics)
        self.prompts = Prompts(files.tokenizer, model.config)
        self.pixels = Pixels(files.preprocessor, model.config.towers[0].image_px)
        self.vision_cache: VisionCache | None = None  # only for towers that are not trained

    @property
    def device(self) -> torch.device:
        return self.model.projector.fc1.bias.device

    def logits(self, observation: Observation) -> Tensor:
        """Logits of the action bins, float32 [N, L, A, bins], differentiable."""
        return self._logits_and_hidden(observation)[0]

    def _logits_and_hidden(self, observation: Observation) -> tuple[Tensor, Tensor]:
        hidden, computing = self.hidden(observation)
        with computing:
            logits = self.model.language_model.lm_head(hidden)
        return logits.float().unflatten(1, (self.chunk_steps, self.model.config.action_dims)), hidden

    def hidden(self, observation: Observation) -> tuple[Tensor, AbstractContextManager]:
        """Hidden states of the slots, [N, L x A, D], and the precision a head on them is to compute in."""
        weight = self.model.projector.fc1.bias
        ids, mask = (x.to(weight.device) for x in self.prompts(observation.instruction_N))
        proprio = None
        if self.model.config.proprio_dims:
            bounds = self._statistics.proprio
            assert bounds is not None, "a policy with proprioception has its statistics"
            proprio = bounds.normalize(observation.proprio_NP.cpu()).to(weight)
        with _computing_in(weight):
            hidden = self.model.hidden(ids, mask, self._features(observation.frame_NHWC, weight), proprio)
        return hidden, _computing_in(weight)

    def _features(self, frame_NHWC: Tensor, weight: Tensor) -> Tensor:
        """Vision features of frames, [N, patches, width]; `weight` says where and in which dtype."""

        def compute(frame: Tensor) -> Tensor:
            return self.model.vision_backbone(self.pixels(frame.to(weight.device), weight.dtype))

        if self.vision_cache is None:
            return compute(frame_NHWC)
        return self.vision_cache.features(frame_NHWC, compute, weight.device)

    @torch.no_grad()
    def act(self, observation: Observation, seed_N: Sequence[int], temperature: float) -> ActionChunk:
        """Sample one chunk per row with its own seed; temperature 0 decodes greedily.

        On a CPU a row's answer is the same bits whatever other rows are asked for and however many threads there are.
        """
        with single_threaded(self.device):
            logits, hidden = row_by_row(self._logits_and_hidden, observation, self.device)
            logprob = (logits / temperature if temperature else logits).log_softmax(-1).cpu()
            token = sample(logprob, seed_N) if temperature else logprob.argmax(-1)
            action = detokenize(token)
            return ActionChunk(
                drawn={"token": token},
                logprob_NLA=logprob.gather(-1, token[..., None])[..., 0],
                action_NLA=action.float(),
                command_NLA=self.command(action),
                entropy_NLA=token_entropy(logprob),
                extras=self._fill_extras(
                    score_sq=lambda: token_score_sq(logprob, token),
                    hidden=lambda: summary(hidden),
                    state=lambda: state_of(hidden).cpu(),
                ),
            )

    def _fill_extras(self, **offers: Callable[[], Tensor]) -> dict[str, Tensor]:
        """Those of the offers that somebody asked for."""
        return {name: compute() for name, compute in offers.items() if name in self.extras}

    def imitation_loss(self, observation: Observation, command_NLA: Tensor, generator: torch.Generator) -> Tensor:
        """Mean over rows, steps and dimensions of -log pi(token of the demonstrated command | observation)."""
        logits_NLAB = self.logits(observation)
        token_NLA = self.tokenize(command_NLA).to(logits_NLAB.device)
        return F.cross_entropy(logits_NLAB.flatten(0, 2), token_NLA.flatten())

    def log_prob(self, batch: ChunkBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability of every token of `batch` and entropy of its distribution, both float32 [N, L, A]."""
        logprob_NLA, entropy_NLA, _ = self._score(batch, temperature)
        return logprob_NLA, entropy_NLA

    def log_prob_and_state(self, batch: ChunkBatch, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        logprob_NLA, entropy_NLA, hidden = self._score(batch, temperature)
        return logprob_NLA, entropy_NLA, state_of(hidden)

    def _score(self, batch: ChunkBatch, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, entropies, and the hidden states of the slots."""
        observation = Observation(batch.frame_NHWC, batch.proprio_NP, batch.instruction_N)
        logits, hidden = self._logits_and_hidden(observation)
        logprob = (logits / temperature).log_softmax(-1)
        token = batch.actions.drawn["token"].to(logprob.device)
        entropy = -(logprob.exp() * logprob).sum(-1)
        return logprob.gather(-1, token[..., None])[..., 0], entropy, hidden

    def command(self, action: Tensor) -> Tensor:
        """What the simulator executes for normalised actions (float64) [..., A]: float32 in [-1, 1]."""
        command = self._statistics.action.unnormalize(action)
        command[..., -1] = gripper_to_env(command[..., -1])
        return command.clip(-1, 1).float()

    def tokenize(self, command: Tensor) -> Tensor:
        """The tokens [..., A] that stand for commands [..., A] of the simulator: inverse of `act`, up to the bin."""
        return tokenize(self.normalised(command))

    def normalised(self, command: Tensor) -> Tensor:
        """Commands of the simulator [..., A] as the policy's actions: inverse of `command`."""
        command = command.cpu().clone()
        command[..., -1] = gripper_to_model(command[..., -1])
        return self._statistics.action.normalize(command)

    def fit_normalisation(self, name: str, command_TA: Tensor, proprio_TP: Tensor) -> None:
        """Normalise by the statistics of demonstrations, unless the checkpoint brought its own: its weights were
        trained with those. Without weights, the demonstrations also say how many numbers an action has.

        Raises:
            UserError: the demonstrations' actions have other dimensions than the policy's.
        """
        if self.statistics is None:
            opening = gripper_to_model(command_TA[:, -1:])
            entry = measure_statistics(torch.cat([command_TA[:, :-1], opening], dim=1), proprio_TP)
            self._normalise_by(Statistics.select({name: entry}, name, proprio_dims=self.model.config.proprio_dims))
        have, dims = command_TA.shape[1], self.model.config.action_dims
        if have != dims:
            raise UserError(f"the demonstrations' actions have {have} dimensions, the policy's {dims} (sft.demos=FILE)")

    def _normalise_by(self, statistics: Statistics) -> None:
        """Action tokens have no weights of their own: any number of them runs."""
        self.statistics = statistics
        self.model.config = replace(self.model.config, action_dims=statistics.action_dims)

    def take_normalisation(self, name: str, file: str) -> None:
        """Normalise by published statistics: those of data set `name` or `{name}_no_noops`, else the only ones.

        Raises:
            UserError: no such file, or no such statistics in it; or the checkpoint brought its own.
        """
        if self.statistics is not None:
            raise UserError(
                f"the checkpoint has statistics of its own ({self.statistics.key}), which its weights were trained "
                "with: sft.statistics=null"
            )
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"no file {file}: sft.statistics=FILE, a dataset_statistics.json, or null to measure them")
        content = read_json(path)
        key = next((key for key in (name, f"{name}_no_noops") if key in content), None)
        if key is None and len(content) != 1:
            raise UserError(
                f"{file} has statistics of {len(content)} data sets ({', '.join(content)}), none of {name!r}: "
                "sft.statistics=FILE with one data set"
            )
        self._normalise_by(Statistics.select(content, key, proprio_dims=self.model.config.proprio_dims, source=file))

    def check_can_act(self) -> None:
        if self.statistics is None:
            raise UserError(
                "a policy with random weights cannot act before it has learnt from demonstrations "
                "(python -m vla_rl.sft): policy.checkpoint=shipped:object_tiny"
            )

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write what training changed: the adapters where there are any, else the whole checkpoint.

        Args:
            state: the policy's state dict.
        """
        model_state = part(state, "model.")
        if hasattr(self.model, "peft_config"):
            from vla_rl.policy.lora import save_adapter  # here: peft takes seconds to import

            save_adapter(self.model, folder, model_state)
        else:
            save_checkpoint(folder, model_state, self.files, self.statistics)

    @property
    def _statistics(self) -> Statistics:
        self.check_can_act()
        return cast(Statistics, self.statistics)


def sample(logprob: Tensor, seed_N: Sequence[int]) -> Tensor:
    """One draw per token by inverting the cumulative distribution, in float64.

    Args:
        logprob: [N, ..., bins]; row n is drawn with a generator of its own, seeded by `seed_N[n]`.
    """
    shape = logprob.shape[1:-1]
    uniform = torch.from_numpy(np.stack([np.random.default_rng(seed).random(shape) for seed in seed_N]))
    cumulative = logprob.double().exp().cumsum(-1)
    threshold = uniform[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[..., 0].clip(max=logprob.shape[-1] - 1)


def summary(hidden_NKD: Tensor) -> Tensor:
    """Mean and standard deviation over the slots, float32 [N, 2 D] on the host."""
    hidden_NKD = hidden_NKD.float()
    return torch.cat([hidden_NKD.mean(1), hidden_NKD.std(1, correction=0)], dim=-1).cpu()


def state_of(hidden_NKD: Tensor) -> Tensor:
    """What a value head reads: the hidden state of the first slot, which has seen the prompt and no action, float32."""
    return hidden_NKD[:, 0].float()


def _computing_in(weight: Tensor) -> AbstractContextManager:
    """Products in the dtype of the frozen weights: adapters are kept in float32 whatever that is."""
    if weight.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(weight.device.type, dtype=weight.dtype)
