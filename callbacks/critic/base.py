"""`Critic`: what all critics share. A critic says what each decision of an episode was worth; here that becomes
advantages of single chunks, metrics and a figure.

Shapes: see `vla_rl.types`, and
    S  values of a decision: 1, or L, one for each of its control steps
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from callbacks.monitors.save_figures import save_figures
from callbacks.policytrim.callback import PolicyTrim
from vla_rl.checks import check_choice, check_number
from vla_rl.config.instantiate import resolve
from vla_rl.distributed.collectives import all_reduce_sum, gather_lists
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.errors import UserError
from vla_rl.figures.values import draw_values
from vla_rl.functional.gae import BOOTSTRAPS, Bootstrap, bootstrapped, centred, explained_variance, gae, scaled
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.trainer_state import callbacks_of, data_of, epoch_of
from vla_rl.rollout.watch import Watch
from vla_rl.types import Decision, Episode, RolloutGroup, Trajectory, executed_mask

NORMALISE = {"scale": scaled, "centre": centred}
DECISIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # whose explained variance is logged
LEAST_OF_EACH = 4  # successes, and failures, that have a decision, for its explained variance to be logged
LEAST_SPREAD = 1e-6  # of advantages, below which they are said to be the same
DRAW_EVERY = 5  # iterations


@dataclass(slots=True)
class Values:
    """What a critic expects of an episode's reward. N: its decisions."""

    value_NS: Tensor  # float32
    final: float = 0.0  # after the last decision; counts where `bootstrap` adds it


@dataclass(slots=True)
class Valued:
    """An episode that was valued."""

    uid: int
    reward: float
    success: bool
    value_NS: Tensor
    counts_NS: Tensor  # bool, what was executed
    advantage_NS: Tensor  # float64, until they are normalised; 0 where nothing was executed

    @property
    def value_N(self) -> Tensor:
        """Before each decision."""
        return self.value_NS[:, 0]


class Critic(RolloutCallback):
    """Gives every chunk a GAE advantage. A subclass has the values (`values`).

    Where there is nothing to learn from, each chunk of an episode gets its reward minus the mean reward of the
    iteration, with a warning. Advantages that are all the same give a warning as well. Where each control step has a
    value, it has an advantage too, and the mean of these is the chunk's.

    With `rollout.stop_below`, ends episodes whose value stays below it, by the values of the iteration before.

    Writes `advantage_N` and `actions.extras["value"]` of every trajectory, and `actions.extras["step_advantage"]` where
    control steps have their own. Logs `critic/explained_variance`, over all decisions and by decision (where at least 4
    episodes of each outcome have it), and `critic/advantage_std` (before the advantages are normalised); with
    `rollout.stop_below` also `rollout/stopped`, the share of the episodes that were ended, and
    `rollout/stopped_wrongly`, the share of successes among those that ran on, since the run began. Draws
    `figures/values.png`.

    Args:
        gamma, lam: of GAE, per chunk, or per control step where each has a value.
        normalise: over all values of the iteration: `scale` divides by the root mean square, `centre` is
            (A - mean) / (std + 1e-5).
        clip: largest advantage after that; null: any.
        bootstrap: where the value of the last observation is added to the reward: `none`, `truncated` (episodes that
            ran out of time), `always`.

    Raises:
        UserError: for a value outside its range, or a name that does not exist.
    """

    data: RolloutDataModule
    trainer: L.Trainer

    def __init__(
        self, gamma: float, lam: float, normalise: str, *, clip: float | None = None, bootstrap: Bootstrap = "none"
    ) -> None:
        check_number("critic.gamma", gamma, 1.0, least=0, most=1)
        check_number("critic.lam", lam, 0.5, least=0, most=1)
        if clip is not None:
            check_number("critic.clip", clip, 3.0, above=0)
        check_choice("critic.bootstrap", bootstrap, BOOTSTRAPS)
        self.gamma, self.lam, self.clip, self.bootstrap = gamma, lam, clip, bootstrap
        self.normalise = resolve(normalise, NORMALISE, "critic.normalise")
        self._present: list[Valued] = []  # this iteration's episodes, of all ranks
        self._metrics: dict[str, float] = {}
        self._watches: dict[int, Watch] = {}  # of the episodes under way, by uid
        self._ran_on = self._wrong = 0.0  # since the run began: lost episodes that ran on, and those that succeeded

    def values(self, trajectories: Sequence[Trajectory]) -> list[Values] | None:
        """Of this rank's trajectories; None, on all ranks, where there is nothing to learn from. Called once an
        iteration on every rank."""
        raise NotImplementedError

    def judge(self) -> Callable[[Decision], float] | None:
        """What values the decisions of the rollouts that are planned now: what `values` had last, and does not change
        any more; None: it had nothing yet. Asked with `rollout.stop_below`."""
        raise NotImplementedError

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        if any(isinstance(c, PolicyTrim) and c.horizon_baseline == "factorised" for c in callbacks):
            raise UserError(
                "reward.horizon_baseline=factorised would replace the critic's advantages: "
                "reward.horizon_baseline=group"
            )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.trainer, self.data = trainer, data_of(trainer)
        self.check_run(self.data, callbacks_of(trainer))  # again: not every program asks before it starts the trainer
        if self.stops:
            self.data.watch = self._watch

    @property
    def stops(self) -> bool:
        """Whether lost episodes are ended."""
        return self.data.rollout.stop_below is not None

    def _watch(self, episode: Episode) -> Watch | None:
        rollout, judge = self.data.rollout, self.judge()
        if judge is None or rollout.stop_below is None:
            return None
        draw = torch.rand((), generator=seeded_generator(self.data.seed, "runs on", episode.uid))
        watch = Watch(judge, rollout.stop_below, rollout.stop_after, runs_on=float(draw) < rollout.stop_run_on)
        self._watches[episode.uid] = watch
        return watch

    def set_advantages(self, groups: Sequence[RolloutGroup]) -> None:
        trajectories = [t for group in groups for t in group.trajectories]
        self._metrics = self._lost(trajectories) if self.stops else {}
        values = self.values(trajectories)
        if values is None:
            valued = self._rewards_minus_their_mean(trajectories)
        else:
            valued = [self._valued(t, of) for t, of in zip(trajectories, values, strict=True)]
        for trajectory, episode in zip(trajectories, valued, strict=True):
            trajectory.actions.extras.update(self.extras(episode))
        self._present = sorted(gather_lists(valued, self.trainer), key=lambda episode: episode.uid)
        if values is not None:
            self._metrics |= quality(self._present)
        self._normalise()
        of_uid = {episode.uid: episode for episode in self._present}
        for trajectory in trajectories:
            _set_advantages(trajectory, of_uid[trajectory.episode.uid])

    def extras(self, episode: Valued) -> dict[str, Tensor]:
        """Of each decision, for masks and for what learns; before the advantages are normalised."""
        return {"value": episode.value_N}

    def _valued(self, trajectory: Trajectory, values: Values) -> Valued:
        """The reward comes after the last decision, or its last control step."""
        value_NS = values.value_NS
        counts_NS = executed_mask(trajectory.executed_N, value_NS.shape[1])
        value_T = value_NS[counts_NS]
        last_T = torch.arange(len(value_T)) == len(value_T) - 1
        reward_T = bootstrapped(
            trajectory.reward * last_T.float(),
            last_T,
            last_T & (not trajectory.success and not trajectory.stopped),
            values.final * last_T.float(),
            gamma=self.gamma,
            how=self.bootstrap,
        )
        advantage_NS = torch.zeros(value_NS.shape, dtype=torch.float64)
        advantage_NS[counts_NS] = gae(reward_T, value_T, last_T, 0.0, gamma=self.gamma, lam=self.lam)
        return _episode(trajectory, value_NS, counts_NS, advantage_NS)

    def _lost(self, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        """Count what was ended, and how many of the lost episodes that ran on have succeeded; a collective."""
        watched = [(t, self._watches.pop(t.episode.uid)) for t in trajectories if t.episode.uid in self._watches]
        ran_on = [t for t, watch in watched if watch.lost_at is not None and not t.stopped]
        counts = [len(trajectories), sum(t.stopped for t in trajectories), len(ran_on), sum(t.success for t in ran_on)]
        sums = all_reduce_sum(torch.tensor(counts, dtype=torch.float64), self.trainer).tolist()
        self._ran_on, self._wrong = self._ran_on + sums[2], self._wrong + sums[3]
        metrics = {"rollout/stopped": sums[1] / sums[0]}
        return metrics | ({"rollout/stopped_wrongly": self._wrong / self._ran_on} if self._ran_on else {})

    def _rewards_minus_their_mean(self, trajectories: Sequence[Trajectory]) -> list[Valued]:
        rewards = gather_lists([(t.episode.uid, float(t.reward)) for t in trajectories], self.trainer)
        mean = sum(reward for _, reward in sorted(rewards)) / len(rewards)
        rank_zero_warn(
            f"iteration {self.trainer.current_epoch + 1}: the critic has nothing to learn from (episodes that earned "
            f"the same); advantages are rewards minus their mean {mean:.3g}"
        )
        constants = [torch.full((len(t), 1), mean) for t in trajectories]
        return [
            _episode(t, v_N1, torch.ones_like(v_N1, dtype=torch.bool), (t.reward - v_N1).double())
            for t, v_N1 in zip(trajectories, constants, strict=True)
        ]

    def _normalise(self) -> None:
        """Advantages of all ranks' episodes, over all of their chunks or control steps."""
        advantage_R = torch.cat([episode.advantage_NS[episode.counts_NS] for episode in self._present])
        self._metrics["critic/advantage_std"] = spread = float(advantage_R.std(correction=0))
        if spread < LEAST_SPREAD:
            rank_zero_warn(f"iteration {self.trainer.current_epoch + 1}: all chunks have the same advantage")
        advantage_R = self.normalise(advantage_R)
        if self.clip is not None:
            advantage_R = advantage_R.clamp(-self.clip, self.clip)
        lengths = [int(episode.counts_NS.sum()) for episode in self._present]
        for episode, advantage_T in zip(self._present, advantage_R.float().split(lengths), strict=True):
            episode.advantage_NS = torch.zeros(episode.counts_NS.shape)
            episode.advantage_NS[episode.counts_NS] = advantage_T

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _ = epoch_of(trainer).groups  # collected by now
        for name, value in self._metrics.items():
            pl_module.log(name, value, on_step=False, on_epoch=True, batch_size=1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done = trainer.current_epoch + 1
        if trainer.is_global_zero and (done % DRAW_EVERY == 0 or done == trainer.max_epochs):
            values = [(episode.value_N, episode.reward) for episode in self._present]
            save_figures(lambda: {"values": draw_values(values, iteration=done)}, trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"ran_on": self._ran_on, "wrong": self._wrong}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._ran_on, self._wrong = state_dict.get("ran_on", 0.0), state_dict.get("wrong", 0.0)


def _episode(trajectory: Trajectory, value_NS: Tensor, counts_NS: Tensor, advantage_NS: Tensor) -> Valued:
    uid, reward = trajectory.episode.uid, float(trajectory.reward)
    return Valued(uid, reward, trajectory.success, value_NS, counts_NS, advantage_NS)


def _set_advantages(trajectory: Trajectory, episode: Valued) -> None:
    advantage_N = episode.advantage_NS.sum(1) / episode.counts_NS.sum(1)
    trajectory.advantage_N = advantage_N
    if episode.advantage_NS.shape[1] > 1:
        differs_NL = (episode.advantage_NS - advantage_N[:, None]) * episode.counts_NS
        trajectory.actions.extras["step_advantage"] = differs_NL


def quality(episodes: Sequence[Valued]) -> dict[str, float]:
    """How much of the rewards' variance the values explain, over all decisions and by decision; what cannot be said is
    left out. Few successes last as long as failures do, and a variance made by one of them says nothing."""
    metrics = {"": _explained(episodes, slice(None))}
    for n in DECISIONS:
        having = [episode for episode in episodes if len(episode.value_N) >= n]
        successes = sum(episode.success for episode in having)
        if min(successes, len(having) - successes) >= LEAST_OF_EACH:
            metrics[f"/decision_{n}"] = _explained(having, slice(n - 1, n))
    return {f"critic/explained_variance{name}": share for name, share in metrics.items() if share is not None}


def _explained(episodes: Sequence[Valued], decisions: slice) -> float | None:
    values = [episode.value_N[decisions] for episode in episodes]
    reward_R = torch.tensor([episode.reward for episode in episodes])
    lengths = torch.tensor([len(value_N) for value_N in values])
    return explained_variance(torch.cat(values), reward_R.repeat_interleave(lengths))
