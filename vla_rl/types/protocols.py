"""The protocols: what rollouts and training ask of a policy and of simulators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vla_rl.types.nouns import ActionChunk, ChunkBatch, Episode, Observation


class Actor(Protocol):
    """What decides in rollouts: a policy, a copy of one, or a policy in lockstep with other ranks."""

    def act(self, observation: Observation, seed_N: Sequence[int], temperature: float) -> ActionChunk:
        """Sample one chunk per row with its own seed. Temperature 0 decodes greedily: the most probable tokens, the
        mean, or what a flow makes of its seeded noise."""
        ...


class Policy(nn.Module):
    """A stochastic chunk policy. `act` samples and `log_prob` scores by the same forward, so that they agree. One whose
    loader reads more than its tensors also has `save(folder, state)`, which writes that (`vla_rl.policy.save_trained`).

    Attributes:
        OFFERS: names of the extras that `act` can fill (`ActionChunk.extras`).
        extras: those that it fills now, because a mask or a critic asked (`RolloutDataModule.request_extra`).
        learns_entropy: training can change the entropy of its distributions.
        greedy_repeats: at temperature 0 it decides the same whatever the seed.
    """

    OFFERS: frozenset[str] = frozenset()
    extras: frozenset[str] = frozenset()
    learns_entropy: bool = True
    greedy_repeats: bool = True

    @property
    def chunk_steps(self) -> int:
        """L, control steps of a chunk."""
        raise NotImplementedError

    @property
    def images(self) -> int:
        """Camera images per observation, stacked on the frame's channels."""
        return 1

    @property
    def proprio_dims(self) -> int:
        """P, numbers of proprioception that it reads; 0 = none, and those of an observation are ignored."""
        return 0

    @property
    def action_code(self) -> object | None:
        """What the numbers that it draws stand for: policies of equal codes can score each other's draws. None: they
        cannot."""
        return None

    def check_can_act(self) -> None:
        """Raise UserError where it has to learn first: random weights, or no statistics to normalise by."""

    def act(self, observation: Observation, seed_N: Sequence[int], temperature: float) -> ActionChunk:
        """See `Actor`."""
        raise NotImplementedError

    def log_prob(self, batch: ChunkBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability of every number of `batch.actions.drawn` and entropy of its distribution, both float32
        [N, L, A], differentiable."""
        raise NotImplementedError

    @property
    def state_dims(self) -> int:
        """D, numbers of the state in which it decides. Only of a policy that offers "state"."""
        raise NotImplementedError

    def log_prob_and_state(self, batch: ChunkBatch, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """`log_prob`, and by the same forward the state of each decision, float32 [N, D], for a value head: the extra
        "state" of `act`, differentiable unless values should not move the policy. Only of a policy that offers it."""
        raise NotImplementedError

    def matching_loss(self, batch: ChunkBatch, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """DiffusionNFT's loss of each number (`vla_rl.functional.flow.negative_aware_loss`), differentiable, and how
        far its velocity is from the acting policy's, float32 [N, L, A] each. Only of a policy that offers "matching".

        Args:
            advantage: of each chunk [N], or of each control step [N, L].
        """
        raise NotImplementedError


class SupervisedPolicy(Policy):
    """A policy that also learns from demonstrations."""

    def imitation_loss(self, observation: Observation, command_NLA: Tensor, generator: torch.Generator) -> Tensor:
        """A scalar, differentiable: how far the policy is from the demonstrated commands (mean over rows, steps,
        dimensions). Cross-entropy, L1 or flow matching.

        Args:
            generator: on the host, of what the loss draws, if it draws anything.
        """
        raise NotImplementedError

    def fit_normalisation(self, name: str, command_TA: Tensor, proprio_TP: Tensor) -> None:
        """Take the statistics of demonstrations, unless the checkpoint brought its own."""
        raise NotImplementedError

    def take_normalisation(self, name: str, file: str) -> None:
        """Take the statistics of data set `name` from a file; a policy that has some already refuses."""
        raise NotImplementedError


@dataclass(slots=True)
class SlotEvent:
    """A simulator slot waits: for the next command, or (done) for the next episode."""

    slot: int
    executed: int  # control steps executed of the last command (0 right after a start)
    success: bool
    done: bool
    frame_HWC: Tensor  # uint8; valid until the slot's next start/step
    proprio_P: Tensor  # float32
    instruction: str


class SimulatorPool(Protocol):
    """Simulators behind slots. Only `wait` blocks.

    One with `turned = True` gives frames that are turned by 180 degrees, and not with the bottom row first alone.
    """

    slots: int  # episodes that can be under way at once
    tasks: list[int]
    max_chunks: int  # decisions in the longest possible episode
    chunk_steps: int  # control steps it expects per decision
    init_states: int | None  # how many there are of a task; None = any number, drawn from seeds
    images: int  # camera images per frame, stacked on its channels

    def start(self, slot: int, episode: Episode) -> None: ...

    def step(self, slot: int, command_LA: Tensor) -> None:
        """Execute the rows of `command_LA` until success or the horizon, then render once."""
        ...

    def wait(self) -> list[SlotEvent]:
        """All slots that have become ready since the last call; blocks until there is one."""
        ...

    def abandon(self, slot: int) -> None:
        """End the episode of a slot that waits for a command."""
        ...

    def preferred_slot(self, free: Sequence[int], episode: Episode) -> int:
        """The free slot that can start this episode soonest (it has the task built already)."""
        ...

    def close(self) -> None: ...
