"""`Critic`: what all critics share. A critic says what each decision of an episode was worth; here that becomes
advantages of single chunks, metrics and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from callbacks.monitors.save_figures import save_figures
from callbacks.policytrim.callback import PolicyTrim
from vla_rl.checks import check_choice, check_number
from vla_rl.config.instantiate import resolve
from vla_rl.distributed.collectives import gather_lists
from vla_rl.errors import UserError
from vla_rl.figures.values import draw_values
from vla_rl.functional.gae import BOOTSTRAPS, Bootstrap, bootstrapped, centred, explained_variance, gae, returns, scaled
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.trainer_state import callbacks_of, data_of, epoch_of
from vla_rl.types import RolloutGroup, Trajectory

NORMALISE = {"scale": scaled, "centre": centred}
DECISIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # whose explained variance is logged
LEAST_OF_EACH = 4  # successes, and failures, that have a decision, for its explained variance to be logged
LEAST_SPREAD = 1e-6  # of advantages, below which they are said to be the same
DRAW_EVERY = 5  # iterations


@dataclass(slots=True)
class Values:
    """What a critic expects of an episode's reward. N: its decisions."""

    value_N: Tensor  # float32
    final: float = 0.0  # after the last decision; counts where `bootstrap` adds it


@dataclass(slots=True)
class Valued:
    """An episode that was valued."""

    uid: int
    reward: float
    success: bool
    value_N: Tensor
    advantage_N: Tensor  # float64, not normalised yet


class Critic(RolloutCallback):
    """Gives every chunk a GAE advantage. A subclass has the values (`values`).

    Where there is nothing to learn from, each chunk of an episode gets its reward minus the mean reward of the
    iteration, with a warning. Advantages that are all the same give a warning as well.

    Writes `advantage_N`, `actions.extras["value"]` and `actions.extras["return"]` of every trajectory. Logs
    `critic/explained_variance`, over all decisions and by decision (where at least 4 episodes of each outcome have
    it), and `critic/advantage_std` (before the advantages are normalised). Draws `figures/values.png`.

    Args:
        gamma, lam: of GAE, per chunk.
        normalise: over all chunks of the iteration: `scale` divides by the root mean square, `centre` is
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

    def values(self, trajectories: Sequence[Trajectory]) -> list[Values] | None:
        """Of this rank's trajectories; None, on all ranks, where there is nothing to learn from. Called once an
        iteration on every rank."""
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

    def set_advantages(self, groups: Sequence[RolloutGroup]) -> None:
        trajectories = [t for group in groups for t in group.trajectories]
        self._metrics = {}
        values = self.values(trajectories)
        if values is None:
            valued = self._rewards_minus_their_mean(trajectories)
        else:
            valued = [self._valued(t, of) for t, of in zip(trajectories, values, strict=True)]
        for trajectory, episode in zip(trajectories, valued, strict=True):
            extras = {"value": episode.value_N, "return": returns(episode.advantage_N, episode.value_N).float()}
            trajectory.actions.extras.update(extras)
        self._present = sorted(gather_lists(valued, self.trainer), key=lambda episode: episode.uid)
        if values is not None:
            self._metrics |= quality(self._present)
        self._normalise()
        of_uid = {episode.uid: episode for episode in self._present}
        for trajectory in trajectories:
            trajectory.advantage_N = of_uid[trajectory.episode.uid].advantage_N.clone()

    def _valued(self, trajectory: Trajectory, values: Values) -> Valued:
        """The reward comes after the last decision."""
        last_N = torch.arange(len(trajectory)) == len(trajectory) - 1
        reward_N = bootstrapped(
            trajectory.reward * last_N.float(),
            last_N,
            last_N & (not trajectory.success),
            values.final * last_N.float(),
            gamma=self.gamma,
            how=self.bootstrap,
        )
        advantage_N = gae(reward_N, values.value_N, last_N, 0.0, gamma=self.gamma, lam=self.lam)
        return _episode(trajectory, values.value_N, advantage_N)

    def _rewards_minus_their_mean(self, trajectories: Sequence[Trajectory]) -> list[Valued]:
        rewards = gather_lists([(t.episode.uid, float(t.reward)) for t in trajectories], self.trainer)
        mean = sum(reward for _, reward in sorted(rewards)) / len(rewards)
        rank_zero_warn(
            f"iteration {self.trainer.current_epoch + 1}: the critic has nothing to learn from (episodes that earned "
            f"the same); advantages are rewards minus their mean {mean:.3g}"
        )
        constants = [torch.full((len(t),), mean) for t in trajectories]
        return [_episode(t, v_N, (t.reward - v_N).double()) for t, v_N in zip(trajectories, constants, strict=True)]

    def _normalise(self) -> None:
        """Advantages of all ranks' episodes, over all of their chunks."""
        advantage_R = torch.cat([episode.advantage_N for episode in self._present])
        self._metrics["critic/advantage_std"] = spread = float(advantage_R.std(correction=0))
        if spread < LEAST_SPREAD:
            rank_zero_warn(f"iteration {self.trainer.current_epoch + 1}: all chunks have the same advantage")
        advantage_R = self.normalise(advantage_R)
        if self.clip is not None:
            advantage_R = advantage_R.clamp(-self.clip, self.clip)
        lengths = [len(episode.value_N) for episode in self._present]
        for episode, advantage_N in zip(self._present, advantage_R.float().split(lengths), strict=True):
            episode.advantage_N = advantage_N

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _ = epoch_of(trainer).groups  # collected by now
        for name, value in self._metrics.items():
            pl_module.log(name, value, on_step=False, on_epoch=True, batch_size=1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done = trainer.current_epoch + 1
        if trainer.is_global_zero and (done % DRAW_EVERY == 0 or done == trainer.max_epochs):
            values = [(episode.value_N, episode.reward) for episode in self._present]
            save_figures(lambda: {"values": draw_values(values, iteration=done)}, trainer)


def _episode(trajectory: Trajectory, value_N: Tensor, advantage_N: Tensor) -> Valued:
    return Valued(trajectory.episode.uid, float(trajectory.reward), trajectory.success, value_N, advantage_N)


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
