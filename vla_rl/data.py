"""`RolloutDataModule`: each iteration's training data are fresh rollout groups of the current policy.

Lightning asks for a dataloader every epoch (`reload_dataloaders_every_n_epochs=1`); one epoch is one iteration of
reinforcement learning. The dataloader is a `RolloutEpoch`: cheap to make, it collects on first use and only once,
because Lightning may iterate or rebuild it more often than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch

from vla_rl.choices import pick
from vla_rl.config import EvaluationConfig, GRPOConfig, RolloutConfig
from vla_rl.distributed import gather_lists, seeded_generator, stable_seed
from vla_rl.errors import UserError
from vla_rl.evaluation import heldout_episodes
from vla_rl.groups import GROUP_FILTERS, best_and_worst
from vla_rl.grpo import ADVANTAGES
from vla_rl.in_step import InStep
from vla_rl.rollouts import TimeSplit, collect
from vla_rl.strategies import is_sharded
from vla_rl.types import ChunkBatch, Episode, Policy, RolloutGroup, SimulatorPool, Trajectory

RESAMPLED = 10**9  # uids of a round of replacements start this much higher: unique, whatever else is collected


@dataclass(slots=True)
class Collected:
    """An iteration's rollouts on this rank."""

    groups: list[RolloutGroup]  # all of them, those nothing can be learnt from included
    trained: list[Trajectory]  # what the update may use: the group filter and the down-sampling have left it
    time: TimeSplit


class RolloutEpoch:
    """One iteration's data on this rank: a sized iterable of `ChunkBatch`, one per optimizer step.

    Its length is fixed by the config, never by what was collected: ranks with different numbers of batches would hang.
    A batch left without any useful trajectory holds one row of zero weight.
    """

    def __init__(
        self,
        iteration: int,
        minibatches: int,
        epochs: int,
        seed: int,
        collect: Callable[[], Collected],
        gather: Callable[[list[int]], list[int]] = list,
    ) -> None:
        self.iteration = iteration
        self.minibatches, self.epochs, self.seed = minibatches, epochs, seed
        self._collect, self._gather = collect, gather
        self._collected: Collected | None = None
        self._order: list[int] | None = None  # uids of the trajectories trained on, on any rank, shuffled

    @property
    def groups(self) -> list[RolloutGroup]:
        """All groups of this rank, those that are not trained on included; collected on first access."""
        return self._result().groups

    @property
    def trained(self) -> list[Trajectory]:
        return self._result().trained

    @property
    def time(self) -> TimeSplit:
        return self._result().time

    def _result(self) -> Collected:
        if self._collected is None:
            self._collected = self._collect()
        return self._collected

    def __len__(self) -> int:
        return self.minibatches * self.epochs

    def __iter__(self) -> Iterator[ChunkBatch]:
        if self._order is None:  # over all ranks: a minibatch holds the same trajectories, however they are shared out
            uids = sorted(self._gather([t.episode.uid for t in self.trained]))
            generator = seeded_generator(self.seed, "minibatches", self.iteration)
            self._order = [uids[i] for i in torch.randperm(len(uids), generator=generator).tolist()]
        own = {t.episode.uid: t for t in self.trained}
        for _ in range(self.epochs):
            for start in range(self.minibatches):
                yield self._batch([own[uid] for uid in self._order[start :: self.minibatches] if uid in own])

    def _batch(self, trajectories: list[Trajectory]) -> ChunkBatch:
        if trajectories:
            return ChunkBatch.from_trajectories(trajectories)
        batch = ChunkBatch.from_trajectories(self.groups[0].trajectories[:1])
        batch.select_(torch.tensor([0]))
        batch.token_mask_NLA.zero_()
        return batch


@dataclass(slots=True)
class HeldoutBatch:
    """Episodes of one evaluation and how to decode in it: `sampled` (at the rollouts' temperature) or `greedy`."""

    decoding: str
    episodes: list[Episode]


class HeldoutBatches(list[HeldoutBatch]):
    """One dataloader; Lightning would take a plain list for several of them."""


def check_policy(pool: SimulatorPool, policy: Policy) -> None:
    """What policy and simulators know of each other only when both are built; raises UserError."""
    if pool.chunk_steps != policy.chunk_steps:
        raise UserError(
            f"the policy decides {policy.chunk_steps} control steps at a time, the simulators expect "
            f"{pool.chunk_steps}: sim.chunk_steps={policy.chunk_steps}"
        )
    wanted, rendered = getattr(policy, "images", 1), getattr(pool, "images", 1)
    if wanted != rendered:
        raise UserError(
            f"the policy reads {wanted} images per decision, the simulators render {rendered}: "
            f"sim.wrist_camera={str(wanted > 1).lower()}"
        )


def check_init_states(pool: SimulatorPool, rollout: RolloutConfig) -> None:
    """Raise UserError where training or the held-out evaluation would go beyond what there is."""
    for name in ("train_init_states", "heldout_init_states"):
        low, high = getattr(rollout, name)
        if pool.init_states is not None and high > pool.init_states:
            raise UserError(
                f"rollout.{name}=[{low},{high}] goes beyond the {pool.init_states} initial states of a task: "
                "rollout.train_init_states=[0,40] rollout.heldout_init_states=[40,50], or draw them from seeds with "
                "sim.placement_noise_m=0.02"
            )


class RolloutDataModule(L.LightningDataModule):
    """Plans, collects and scores the rollout groups of each iteration.

    Callbacks of the trainer may take part: `check_run(data, callbacks)` before anything is written (it may raise a
    `UserError`), `plan_rollouts(episodes)` before a collection (it may set each episode's window and augmentation),
    `score(groups)` after it (it may shape each trajectory's reward), `set_advantages(groups)` once, on every rank, when
    advantages have been taken from the rewards of all the iteration's groups (it may replace them, and ask the policy).

    Args:
        pool: the simulators; the caller closes them.
        seed: of initial states, action sampling and chunk selection, each with a generator of its own.

    Raises:
        UserError: policy, simulators and initial states do not fit together.
    """

    def __init__(
        self,
        pool: SimulatorPool,
        policy: Policy,
        *,
        rollout: RolloutConfig,
        grpo: GRPOConfig,
        evaluation: EvaluationConfig,
        seed: int,
    ) -> None:
        super().__init__()
        check_policy(pool, policy)
        check_init_states(pool, rollout)
        self.pool, self.policy = pool, policy
        self._actor: InStep | None = None  # what rollouts ask in the place of the policy
        self.rollout, self.grpo, self.evaluation = rollout, grpo, evaluation
        self.seed = seed
        self._advantage = pick(grpo.advantage, ADVANTAGES, "grpo.advantage")
        self._filter = pick(grpo.group_filter, GROUP_FILTERS, "grpo.group_filter")
        self.on_done: Callable[[Trajectory], None] | None = None  # called with each episode that ends (progress)

    @property
    def max_chunks(self) -> int:
        """Decisions in the longest possible episode that executes whole chunks."""
        return self.pool.max_chunks

    def max_chunks_of(self, window: int | None) -> int:
        """The same for episodes that execute `window` control steps of each chunk; None = all."""
        return self.max_chunks if window is None else math.ceil(self.max_chunks * self.pool.chunk_steps / window)

    def check(self, callbacks: Sequence[L.Callback]) -> None:
        """Let the callbacks refuse what cannot work; nothing has been written yet."""
        for callback in callbacks:
            if hasattr(callback, "check_run"):
                callback.check_run(self, callbacks)

    def train_dataloader(self) -> RolloutEpoch:
        iteration = self.trainer.current_epoch
        return RolloutEpoch(
            iteration,
            self.grpo.minibatches,
            self.grpo.epochs,
            self.seed,
            lambda: self._collect_iteration(iteration),
            lambda uids: gather_lists(uids, self.trainer),
        )

    def val_dataloader(self) -> HeldoutBatches:
        """Held-out episodes, decoded both ways; both see the same initial states, and so does every policy."""
        tasks, states = self.pool.tasks, self.rollout.heldout_init_states
        wanted = {"sampled": self.evaluation.sampled_episodes, "greedy": self.evaluation.greedy_episodes}
        return HeldoutBatches(
            HeldoutBatch(decoding, heldout_episodes(tasks, states, episodes, self.seed))
            for decoding, episodes in wanted.items()
            if episodes
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Nothing moves yet: masks have not dropped their rows. The training step moves one micro-batch at a time."""
        return batch

    def run(self, batch: HeldoutBatch) -> tuple[list[Trajectory], TimeSplit]:
        """This rank's share of an evaluation."""
        with self._all_ranks_acting():
            return self._collect(batch.episodes[self.trainer.global_rank :: self.trainer.world_size], batch.decoding)

    def plan(self, iteration: int, attempt: int = 0) -> list[Episode]:
        """This iteration's episodes over all ranks. Depends on the seed and the iteration alone, so that runs with
        different masks see the same states. Tasks take turns; states are drawn uniformly.

        Args:
            attempt: 0, or the round of replacements: the same tasks from other states.
        """
        again = [attempt] if attempt else []
        generator = seeded_generator(self.seed, "initial states", iteration, *again)
        low, high = self.rollout.train_init_states
        groups, size = self.rollout.groups, self.rollout.group_size
        states = torch.randint(low, high, (groups,), generator=generator).tolist()
        tasks = [self.pool.tasks[(iteration * groups + g) % len(self.pool.tasks)] for g in range(groups)]
        first = iteration * groups * size + attempt * RESAMPLED
        return [
            Episode(
                uid=(uid := first + g * size + i),
                task=tasks[g],
                init_state=states[g],
                seed=stable_seed(self.seed, "actions", uid),
                group=g,
            )
            for g in range(groups)
            for i in range(size)
        ]

    def _collect_iteration(self, iteration: int) -> Collected:
        with self._all_ranks_acting():
            groups, time = self._collect_share(iteration)
        self._notify("set_advantages", groups)  # not before: where forwards are collectives, other ranks still act
        kept = [t for group in groups if self._filter(group) for t in self._teachers(group)]
        return Collected(groups, kept, time)

    def _collect_share(self, iteration: int) -> tuple[list[RolloutGroup], TimeSplit]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        wanted = {g for g in range(self.rollout.groups) if g % world == rank}
        groups, time = [], TimeSplit()
        for attempt in range(1 + (self.grpo.resample_rounds if self.grpo.group_filter == "resample" else 0)):
            episodes = [e for e in self.plan(iteration, attempt) if e.group in wanted]
            new, new_time = self._collect_groups(episodes)
            groups, time = groups + new, time + new_time
            wanted -= {group.trajectories[0].episode.group for group in new if self._filter(group)}
            if not wanted:
                break
        return groups, time

    def _collect_groups(self, episodes: list[Episode]) -> tuple[list[RolloutGroup], TimeSplit]:
        self._notify("plan_rollouts", episodes)
        trajectories, time = self._collect(episodes, "sampled")
        size = self.rollout.group_size
        groups = [RolloutGroup(trajectories[i : i + size]) for i in range(0, len(trajectories), size)]
        self._notify("score", groups)
        for group in groups:
            advantage_G = self._advantage(group.reward_G, self.grpo.advantage_eps)
            for trajectory, advantage in zip(group.trajectories, advantage_G.tolist(), strict=True):
                trajectory.advantage = advantage
        return groups, time

    def _teachers(self, group: RolloutGroup) -> list[Trajectory]:
        """The trajectories of a group that are trained on."""
        trajectories = group.trajectories
        if self.grpo.downsample is not None:
            trajectories = [trajectories[i] for i in best_and_worst(group.reward_G, self.grpo.downsample).tolist()]
        if not group.has_spread:  # kept on purpose
            return trajectories
        return [t for t in trajectories if t.advantage]  # the others cost a forward and a backward for nothing

    def _collect(self, episodes: list[Episode], decoding: str) -> tuple[list[Trajectory], TimeSplit]:
        temperature, greedy = self.rollout.temperature, decoding == "greedy"
        actor = self.policy if self._actor is None else self._actor
        return collect(self.pool, actor, episodes, temperature=temperature, greedy=greedy, on_done=self.on_done)

    @contextmanager
    def _all_ranks_acting(self) -> Iterator[None]:
        """Collections whose ranks ask the policy equally often, where it is sharded."""
        if not is_sharded(self.policy):
            yield
            return
        self._actor = InStep(self.policy, self.trainer.strategy)
        yield
        self._actor.finish()  # not after an exception: the other ranks end with this one
        self._actor = None

    def _notify(self, hook: str, value: list) -> None:
        for callback in self.trainer.callbacks:
            if hasattr(callback, hook):
                getattr(callback, hook)(value)
