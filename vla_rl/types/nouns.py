"""The data nouns: what is planned, decided, happened, and trained on. Imports only torch and the standard library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor


@dataclass(slots=True)
class Episode:
    """One planned episode. All that is random about it is seeded here: neither workers nor timing matter."""

    uid: int  # unique within the run
    task: int  # index in the suite
    init_state: int  # official index, or the seed of a drawn placement
    seed: int  # seeds action sampling, together with the decision's index
    group: int = 0  # episodes of one group share task and init_state
    window: int | None = None  # control steps executed of each chunk; None = all
    augment: Callable[[Tensor], Tensor] | None = None  # frame_HWC -> what the policy sees instead, always the same
    lost: Callable[[Decision], bool] | None = None  # whether the episode ends before a decision, as a failure


@dataclass(slots=True)
class Observation:
    """What the policy sees at a decision, for N simulators that wait."""

    frame_NHWC: Tensor  # uint8
    proprio_NP: Tensor  # float32
    instruction_N: list[str]


@dataclass(slots=True)
class ActionChunk:
    """What the policy decided, N times. A new quantity of a decision is one more field here, or an extra: trajectories
    and batches carry all of it."""

    drawn: dict[str, Tensor]  # [N, ...] each: what was sampled, which only the policy itself reads (`log_prob`)
    logprob_NLA: Tensor  # float32, log-probability of each number at the sampling temperature
    action_NLA: Tensor  # float32: decoded, before un-normalisation; usually in [-1, 1]
    command_NLA: Tensor  # float32: what the simulator executes
    entropy_NLA: Tensor  # float32, entropy of each number's distribution (nats)
    extras: dict[str, Tensor] = field(default_factory=dict)  # [N, ...] each, where somebody asked (`Policy.extras`)

    def __len__(self) -> int:
        return len(self.logprob_NLA)

    def row(self, n: int) -> ActionChunk:
        """Decision n alone, without the leading dimension."""
        return self._map(lambda value_N: value_N[n])

    def rows(self, index: Tensor | slice) -> ActionChunk:
        """The decisions of `index`; a slice copies nothing."""
        return self._map(lambda value_N: value_N[index])

    @classmethod
    def stack(cls, rows: Sequence[ActionChunk]) -> ActionChunk:
        """N decisions from N single ones (`row`)."""
        return cls._join(torch.stack, rows)

    @classmethod
    def cat(cls, chunks: Sequence[ActionChunk]) -> ActionChunk:
        """The decisions of all `chunks`, one after the other."""
        return cls._join(torch.cat, chunks)

    def _map(self, change: Callable[[Tensor], Tensor]) -> ActionChunk:
        changed = {name: change(getattr(self, name)) for name in _tensors(ActionChunk)}
        drawn, extras = ({name: change(value) for name, value in named.items()} for named in (self.drawn, self.extras))
        return ActionChunk(drawn, **changed, extras=extras)

    @classmethod
    def _join(cls, join: Callable[[list[Tensor]], Tensor], chunks: Sequence[ActionChunk]) -> ActionChunk:
        joined = {name: join([getattr(chunk, name) for chunk in chunks]) for name in _tensors(ActionChunk)}
        drawn = {name: join([chunk.drawn[name] for chunk in chunks]) for name in chunks[0].drawn}
        extras = {name: join([chunk.extras[name] for chunk in chunks]) for name in chunks[0].extras}
        return cls(drawn, **joined, extras=extras)


def _tensors(noun: type) -> list[str]:
    """The fields of a noun that are tensors."""
    return [f.name for f in fields(noun) if f.type == "Tensor"]


def executed_mask(executed_N: Tensor, steps: int) -> Tensor:
    """Which control steps of each chunk were executed, bool [N, L]: the first `executed_N[n]` of row n.

    Args:
        steps: L, control steps of a chunk.

    Example: executed 3 and 1 of 4 steps -> 1110 and 1000.
    """
    return torch.arange(steps) < executed_N[:, None]


@dataclass(slots=True)
class Decision:
    """What is known of a decision when the policy has answered and nothing is executed yet."""

    index: int  # within the episode
    proprio_P: Tensor  # float32
    answer: ActionChunk  # of one row
    closing_before: float  # share of the control steps executed last whose command closes the gripper; at first 0
    window: int | None = None  # the episode's


@dataclass(slots=True)
class Trajectory:
    """One episode that happened. Tensors are on the host; rows are decisions."""

    episode: Episode
    instruction: str
    frame_NHWC: Tensor  # uint8
    proprio_NP: Tensor  # float32
    actions: ActionChunk
    gripper_closed_NL: Tensor  # bool: the executed gripper command closes (False where not executed)
    executed_N: Tensor  # int64: control steps executed of each chunk, 1..L
    success: bool
    reward: float  # 1.0 on success, else 0.0, until a callback's `score` shapes it
    advantage_N: Tensor = field(default_factory=lambda: torch.zeros(0))  # float32; zeros until rewards are compared
    last_frame_HWC: Tensor | None = None  # uint8: after the last step, where no decision was made any more
    last_proprio_P: Tensor | None = None  # float32: after the last step, too
    stopped: bool = False  # it was ended as lost (`Episode.lost`)
    turned: bool = False  # the frames are turned by 180 degrees; else they have the bottom row first, as MuJoCo renders

    def __post_init__(self) -> None:
        if not len(self.advantage_N):
            self.set_advantage(0.0)

    def __len__(self) -> int:
        return len(self.executed_N)

    def set_advantage(self, value: float) -> None:
        """Give every chunk the same advantage, that of the episode."""
        self.advantage_N = torch.full((len(self),), value)

    @property
    def advantage(self) -> float:
        """The mean over chunks: the episode's, where all chunks have the same."""
        return float(self.advantage_N.double().mean())

    @property
    def steps(self) -> int:
        """Control steps executed, T_i."""
        return int(self.executed_N.sum())

    @property
    def window(self) -> int:
        """Control steps that the episode executes of each chunk."""
        chunk_steps = self.actions.logprob_NLA.shape[1]
        return chunk_steps if self.episode.window is None else self.episode.window

    @property
    def executed_NL(self) -> Tensor:
        """bool [N, L]: which steps of each chunk were executed."""
        return executed_mask(self.executed_N, self.actions.logprob_NLA.shape[1])


@dataclass(slots=True)
class RolloutGroup:
    """G trajectories of one task from one initial state."""

    trajectories: list[Trajectory]

    @property
    def reward_G(self) -> Tensor:
        return torch.tensor([float(t.reward) for t in self.trajectories])

    @property
    def successes(self) -> int:
        return sum(t.success for t in self.trajectories)

    @property
    def has_spread(self) -> bool:
        """Rewards differ, so that advantages are not all zero."""
        return bool(self.reward_G.max() > self.reward_G.min())

    @property
    def mixed(self) -> bool:
        """Some succeed and some fail: the only groups that say which behaviour matters."""
        return 0 < self.successes < len(self.trajectories)


@dataclass(slots=True)
class ChunkBatch:
    """Flat rows of several trajectories. `trajectories[trajectory_N[n]]` is the episode row n belongs to.

    Not frozen: Lightning moves batches in place, and masks shrink them in place.
    """

    frame_NHWC: Tensor  # uint8
    proprio_NP: Tensor  # float32
    actions: ActionChunk  # of the policy that acted
    token_mask_NLA: Tensor  # bool: executed, real tokens
    advantage_N: Tensor  # float32
    trajectory_N: Tensor  # int64: index into `trajectories`
    chunk_N: Tensor  # int64: the decision's index within its trajectory
    weight_N: Tensor  # float32: importance weight of the row's tokens; 1 unless a mask corrects for its draw
    share_N: Tensor  # float32: the tokens' contribution to the loss normaliser; 1 unless a mask corrects for its draw
    trajectories: list[Trajectory] = field(default_factory=list)
    stand_in: bool = False  # no trajectory of this rank is in the step; its one row keeps the ranks in step

    @classmethod
    def from_trajectories(cls, trajectories: Sequence[Trajectory]) -> ChunkBatch:
        """All real chunks of the trajectories, in order. At least one trajectory is needed (shapes come from it)."""
        if not trajectories:
            raise ValueError("a ChunkBatch needs at least one trajectory")
        lengths = torch.tensor([len(t) for t in trajectories])
        dimensions = trajectories[0].actions.logprob_NLA.shape[-1]
        executed_NL = torch.cat([t.executed_NL for t in trajectories])
        return cls(
            frame_NHWC=torch.cat([t.frame_NHWC for t in trajectories]),
            proprio_NP=torch.cat([t.proprio_NP for t in trajectories]),
            actions=ActionChunk.cat([t.actions for t in trajectories]),
            token_mask_NLA=executed_NL[..., None].expand(-1, -1, dimensions).clone(),
            advantage_N=torch.cat([t.advantage_N for t in trajectories]),
            trajectory_N=torch.arange(len(trajectories)).repeat_interleave(lengths),
            chunk_N=torch.cat([torch.arange(n) for n in lengths.tolist()]),
            weight_N=torch.ones(int(lengths.sum())),
            share_N=torch.ones(int(lengths.sum())),
            trajectories=list(trajectories),
        )

    def __len__(self) -> int:
        return len(self.trajectory_N)

    @property
    def instruction_N(self) -> list[str]:
        return [self.trajectories[i].instruction for i in self.trajectory_N.tolist()]

    @property
    def finest_advantage(self) -> Tensor:
        """Of each chunk, [N]; of each control step, [N, L], where a critic says how they differ from their chunk's
        (`actions.extras["step_advantage"]`); of each number, [N, L, A], where a teacher gives them
        (`actions.extras["advantage"]`).

        A critic's are differences, so that what a later callback does to `advantage_N` reaches the steps too
        (`reward.kl_coef`); a teacher's are the whole, because nothing else gives advantages beside a teacher."""
        extras = self.actions.extras
        if "advantage" in extras:
            return extras["advantage"]
        if "step_advantage" in extras:
            return self.advantage_N[:, None] + extras["step_advantage"]
        return self.advantage_N

    @property
    def counts_N(self) -> Tensor:
        """Rows with a token that counts, bool; padding has none."""
        return self.token_mask_NLA.flatten(1).any(1)

    def chunks_of(self, index: int) -> Tensor:
        """Which chunks of `trajectories[index]` are here and count, int64 [K]: after a mask, those it kept."""
        return self.chunk_N[(self.trajectory_N == index) & self.counts_N]

    def select_(self, rows: Tensor) -> None:
        """Keep `rows` (int64 indices, in the order given; repeats allowed) and drop the others, in place."""
        for name in _tensors(ChunkBatch):
            setattr(self, name, getattr(self, name)[rows])
        self.actions = self.actions.rows(rows)

    def rows(self, start: int, stop: int) -> ChunkBatch:
        """A micro-batch: views of rows start..stop (nothing is copied)."""
        views = {name: getattr(self, name)[start:stop] for name in _tensors(ChunkBatch)}
        return ChunkBatch(
            actions=self.actions.rows(slice(start, stop)),
            **views,
            trajectories=self.trajectories,
            stand_in=self.stand_in,
        )
