"""`RolloutDataModule`: each iteration's training data are fresh rollout groups of the current policy.

Lightning asks for a dataloader every epoch (`reload_dataloaders_every_n_epochs=1`); one epoch is one iteration of
reinforcement learning. The dataloader is a `RolloutEpoch`, which asks for its episodes when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, SupportsFloat

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from vla_rl.config.instantiate import resolve
from vla_rl.config.schema import EvaluationConfig, GRPOConfig, Node, RolloutConfig
from vla_rl.distributed.collectives import gather_lists
from vla_rl.distributed.lockstep import in_lockstep
from vla_rl.errors import UserError
from vla_rl.functional.advantages import ADVANTAGES
from vla_rl.functional.group_filters import GROUP_FILTERS, best_and_worst
from vla_rl.rollout.asynchronous import AsyncRollouts
from vla_rl.rollout.callback import RolloutCallback, check_hooks
from vla_rl.rollout.collect import TimeSplit, collect
from vla_rl.rollout.epoch import Collected, HeldoutBatch, HeldoutBatches, RolloutEpoch
from vla_rl.rollout.plan import check_init_states, heldout_episodes, plan_iteration
from vla_rl.rollout.trainer_state import callbacks_of
from vla_rl.rollout.watch import Watch
from vla_rl.types import Actor, Episode, Policy, RolloutGroup, SimulatorPool, Trajectory


def check_policy(pool: SimulatorPool, policy: Policy) -> None:
    """What policy and simulators know of each other only when both are built, and that it can act; raises UserError."""
    policy.check_can_act()
    if pool.chunk_steps != policy.chunk_steps:
        raise UserError(
            f"the policy decides {policy.chunk_steps} control steps at a time, the simulators expect "
            f"{pool.chunk_steps}: sim.chunk_steps={policy.chunk_steps}"
        )
    wanted, rendered = policy.images, pool.images
    if wanted != rendered:
        raise UserError(
            f"the policy reads {wanted} images per decision, the simulators render {rendered}: "
            f"sim.wrist_camera={str(wanted > 1).lower()}"
        )


def check_rewards(trajectories: Sequence[Trajectory], callback: RolloutCallback) -> None:
    """Raise UserError for a reward that `callback` has set to something else than a finite number."""
    for t in trajectories:
        if not isinstance(t.reward, SupportsFloat) or not math.isfinite(t.reward):
            raise UserError(
                f"{type(callback).__name__}.score set the reward of an episode (task {t.episode.task}, initial state "
                f"{t.episode.init_state}) to {t.reward}, which is no finite number: give 0 where there is no reward"
            )


class RolloutDataModule(L.LightningDataModule):
    """Plans, collects and scores the rollout groups of each iteration.

    A `RolloutCallback` of the trainer takes part in planning and scoring (`vla_rl.rollout.callback`).

    Args:
        pool: the simulators; the caller closes them.
        sim: the node that they were built from, for callbacks that measure in another setting.
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
        sim: Node | None = None,
    ) -> None:
        super().__init__()
        check_policy(pool, policy)
        for name in ("train_init_states", "heldout_init_states"):
            low, high = getattr(rollout, name)
            check_init_states(
                pool,
                f"rollout.{name}=[{low},{high}]",
                high,
                "rollout.train_init_states=[0,40] rollout.heldout_init_states=[40,50], or draw them from seeds with "
                "sim.placement_noise_m=0.02",
            )
        self.pool, self.policy, self.sim = pool, policy, sim
        self._actor: Actor | None = None  # what rollouts ask in the place of the policy
        self._async = AsyncRollouts(pool, rollout.temperature)
        self._interrupted: dict[str, Any] = {}  # what the run that goes on was collecting ahead
        self.rollout, self.grpo, self.evaluation = rollout, grpo, evaluation
        self.seed = seed
        self._advantage = resolve(grpo.advantage, ADVANTAGES, "grpo.advantage")
        self._filter = resolve(grpo.group_filter, GROUP_FILTERS, "grpo.group_filter")
        self.on_done: Callable[[Trajectory], None] | None = None  # called with each episode that ends (progress)
        self.watch: Callable[[Episode], Watch | None] = lambda _: None  # of an episode of the rollouts (a critic's)
        self.evaluating: Callable[[], AbstractContextManager[None]] = nullcontext  # evaluations run in it (clocks)

    @property
    def max_chunks(self) -> int:
        """Decisions in the longest possible episode that executes whole chunks."""
        return self.pool.max_chunks

    def max_chunks_of(self, window: int | None) -> int:
        """The same for episodes that execute `window` control steps of each chunk; None = all."""
        return self.max_chunks if window is None else math.ceil(self.max_chunks * self.pool.chunk_steps / window)

    @property
    def planned_trajectories(self) -> int:
        """Trajectories of an iteration, over all ranks, that are trained on if none is dropped."""
        return self.rollout.groups * (self.grpo.downsample or self.rollout.group_size)

    def check(self, callbacks: Sequence[L.Callback]) -> None:
        """Let the callbacks refuse what cannot work, and say where greedy episodes are fewer than asked for.

        Nothing has been written yet.
        """
        wanted, run = self.evaluation.greedy_episodes, len(self.heldout("greedy").episodes)
        if run < wanted:
            rank_zero_only(print)(
                f"evaluation.greedy_episodes={wanted}: {run} are run, one for each held-out "
                "pair of task and initial state, as greedy episodes of one pair are all the same"
            )
        check_hooks(callbacks)
        if self.grpo.loss == "nft":
            self.request_extra("matching", "grpo.loss=nft")
        for callback in callbacks:
            if isinstance(callback, RolloutCallback):
                callback.check_run(self, callbacks)

    def request_extra(self, name: str, who: str) -> None:
        """Have the policy fill an extra of each `ActionChunk` from now on.

        Args:
            who: asks for it, as the user wrote it (`mask=score_norm`).

        Raises:
            UserError: the policy cannot.
        """
        if name not in self.policy.OFFERS:
            offers = ", ".join(sorted(self.policy.OFFERS)) or "none"
            raise UserError(
                f"{who} needs '{name}' of each action chunk, and {type(self.policy).__name__} does not offer it "
                f"(it offers: {offers}); choose another mask or critic"
            )
        self.policy.extras = self.policy.extras | {name}

    def train_dataloader(self) -> RolloutEpoch:
        iteration = self.attached_trainer.current_epoch
        return RolloutEpoch(
            iteration,
            self.grpo.minibatches,
            self.grpo.epochs,
            self.seed,
            lambda: self._collect_iteration(iteration),
            lambda uids: gather_lists(uids, self.attached_trainer),
        )

    def val_dataloader(self) -> HeldoutBatches:
        """Held-out episodes, decoded both ways; both see the same initial states, and so does every policy."""
        batches = [self.heldout("sampled"), self.heldout("greedy")]
        return HeldoutBatches(batch for batch in batches if batch.episodes)

    def heldout(self, decoding: str, episodes: int | None = None) -> HeldoutBatch:
        """Held-out episodes over all ranks. Greedy ones that would repeat another are left out.

        Args:
            decoding: `sampled` or `greedy`.
            episodes: how many; None = `evaluation.sampled_episodes` or `evaluation.greedy_episodes`.
        """
        wanted: int = getattr(self.evaluation, f"{decoding}_episodes") if episodes is None else episodes
        (low, high), tasks = self.rollout.heldout_init_states, self.pool.tasks
        if decoding == "greedy" and self.policy.greedy_repeats:
            wanted = min(wanted, len(tasks) * (high - low))
        return HeldoutBatch(decoding, heldout_episodes(tasks, (low, high), wanted, self.seed))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Nothing moves yet: masks have not dropped their rows. The training step moves one micro-batch at a time."""
        return batch

    def run(self, batch: HeldoutBatch, pool: SimulatorPool | None = None) -> tuple[list[Trajectory], TimeSplit]:
        """This rank's share of an evaluation.

        Args:
            pool: other simulators than those of the rollouts.
        """
        trainer = self.attached_trainer
        with self.evaluating(), self._in_lockstep():
            return self._collect(batch.episodes[trainer.global_rank :: trainer.world_size], batch.decoding, pool)

    def plan(self, iteration: int, attempt: int = 0) -> list[Episode]:
        """This iteration's episodes over all ranks; see `plan_iteration`."""
        return plan_iteration(self.rollout, self.pool.tasks, self.seed, iteration, attempt)

    def state_dict(self) -> dict[str, Any]:
        """State of the rollouts already running for the next iteration: weights of the acting policy and each episode's
        window. Call on all ranks."""
        if not self._async.episodes:
            return {}
        windows = gather_lists(
            [(episode.uid, episode.window) for episode in self._async.episodes], self.attached_trainer
        )
        return {"weights": self._async.weights(), "windows": dict(windows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._interrupted = state_dict

    def on_exception(self, exception: BaseException) -> None:
        """Cancel background rollouts before the caller closes the simulators."""
        self._async.cancel()

    def _collect_iteration(self, iteration: int) -> Collected:
        if self._interrupted:
            self._collect_ahead(iteration, **self._interrupted)
            self._interrupted = {}
        with self._in_lockstep():
            groups, time = self._collect_share(iteration)
        for callback in self._callbacks:  # not before: where forwards are collectives, other ranks still act
            callback.set_advantages(groups)
        kept = [t for group in groups if self._filter(group) for t in self._select_for_training(group)]
        if self.rollout.asynchronous and iteration + 1 < (self.attached_trainer.max_epochs or 0):
            self._collect_ahead(iteration + 1)
        return Collected(groups, kept, time)

    def _collect_share(self, iteration: int) -> tuple[list[RolloutGroup], TimeSplit]:
        wanted = self._own_groups()
        groups: list[RolloutGroup] = []
        time = TimeSplit()
        for attempt in range(1 + (self.grpo.resample_rounds if self.grpo.group_filter == "resample" else 0)):
            if self._async.episodes:
                trajectories, new_time = self._async.take(self.on_done)
            else:
                trajectories, new_time = self._collect(self._planned(iteration, wanted, attempt), "sampled")
            new = self._scored(trajectories)
            groups, time = groups + new, time + new_time
            wanted -= {group.trajectories[0].episode.group for group in new if self._filter(group)}
            if not wanted:
                break
        return groups, time

    def _collect_ahead(self, iteration: int, **interrupted: Any) -> None:
        """Begin with an iteration's episodes, as they were planned and by the weights of `state_dict` if given."""
        episodes = self._planned(iteration, self._own_groups())
        if interrupted:
            for episode in episodes:  # the reward may have gone on to another stage since they were planned
                episode.window = interrupted["windows"][episode.uid]
        self._async.start(self.policy, episodes, interrupted.get("weights"))

    def _own_groups(self) -> set[int]:
        rank, world = self.attached_trainer.global_rank, self.attached_trainer.world_size
        return {g for g in range(self.rollout.groups) if g % world == rank}

    def _planned(self, iteration: int, groups: set[int], attempt: int = 0) -> list[Episode]:
        episodes = [e for e in self.plan(iteration, attempt) if e.group in groups]
        for callback in self._callbacks:
            callback.plan_rollouts(episodes)
        for episode in episodes:
            episode.lost = self.watch(episode)
        return episodes

    def _scored(self, trajectories: list[Trajectory]) -> list[RolloutGroup]:
        size = self.rollout.group_size
        groups = [RolloutGroup(trajectories[i : i + size]) for i in range(0, len(trajectories), size)]
        for callback in self._callbacks:
            callback.score(groups)
            check_rewards(trajectories, callback)
        for group in groups:
            advantage_G = self._advantage(group.reward_G, self.grpo.advantage_eps)
            for trajectory, advantage in zip(group.trajectories, advantage_G.tolist(), strict=True):
                trajectory.set_advantage(advantage)
        return groups

    def _select_for_training(self, group: RolloutGroup) -> list[Trajectory]:
        """The trajectories of a group that are trained on: down-sampled, and without those of zero advantage."""
        trajectories = group.trajectories
        if self.grpo.downsample is not None:
            trajectories = [trajectories[i] for i in best_and_worst(group.reward_G, self.grpo.downsample).tolist()]
        if not group.has_spread:  # kept on purpose
            return trajectories
        return [t for t in trajectories if t.advantage_N.any()]  # the others cost a forward and a backward for nothing

    def _collect(
        self, episodes: list[Episode], decoding: str, pool: SimulatorPool | None = None
    ) -> tuple[list[Trajectory], TimeSplit]:
        self._async.wait()
        temperature = 0.0 if decoding == "greedy" else self.rollout.temperature
        actor = self.policy if self._actor is None else self._actor
        return collect(pool or self.pool, actor, episodes, temperature=temperature, on_done=self.on_done)

    @contextmanager
    def _in_lockstep(self) -> Iterator[None]:
        """Collections whose ranks ask the policy equally often, where it is sharded."""
        with in_lockstep(self.policy, self.attached_trainer) as self._actor:
            yield
        self._actor = None

    @property
    def attached_trainer(self) -> L.Trainer:
        """The trainer that runs the data module; Lightning sets `trainer` when it takes it."""
        assert self.trainer is not None, "no trainer has taken the data module yet"
        return self.trainer

    @property
    def _callbacks(self) -> list[RolloutCallback]:
        return [callback for callback in callbacks_of(self.attached_trainer) if isinstance(callback, RolloutCallback)]
