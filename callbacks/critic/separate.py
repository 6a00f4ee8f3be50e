"""`SeparateCritic`: every chunk gets its own advantage, from a small critic that is fitted anew in each iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from callbacks.critic.value_nets import cross_fitted
from callbacks.monitors.save_figures import save_figures
from callbacks.policytrim.callback import PolicyTrim
from vla_rl.checks import check_count, check_number
from vla_rl.config.instantiate import resolve
from vla_rl.distributed.collectives import gather_lists
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.distributed.threads import one_thread
from vla_rl.errors import UserError
from vla_rl.figures.values import draw_values
from vla_rl.functional.gae import centred, explained_variance, gae, scaled
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.trainer_state import callbacks_of, data_of, epoch_of
from vla_rl.types import RolloutGroup, Trajectory

NORMALISE = {"scale": scaled, "centre": centred}
DECISIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # whose explained variance is logged
LEAST_EPISODES = 8  # at a decision, for its explained variance to be logged
DRAW_EVERY = 5  # iterations


@dataclass(slots=True)
class Rated:
    """What the critic knows of an episode. N: its decisions, D: features."""

    uid: int
    reward: float
    feature_ND: Tensor
    value_N: Tensor = field(default_factory=lambda: torch.zeros(0))  # empty until it is rated
    advantage_N: Tensor = field(default_factory=lambda: torch.zeros(0))


class SeparateCritic(RolloutCallback):
    """Fits small nets to the episodes of this and some earlier iterations, and gives every chunk a GAE advantage.

    The nets see what the rollout's own forward already computed (mean and standard deviation over the slots of the last
    hidden states), proprioception, the place in the episode and whether the last chunk closed the gripper, and learn
    what the episode earned in the end. An episode's values come from nets that were fitted without it, so that they do
    not know its outcome. A time-out is a failure: nothing is added for what might have come after it.

    Where there is nothing to learn from (in some fold all episodes earned the same), each chunk of an episode gets its
    reward minus the mean reward of the iteration, with a warning.

    Writes `advantage_N` and `actions.extras["value"]` of every trajectory. Logs `critic/explained_variance`, over all
    decisions and by decision, `critic/loss` (cross-entropy, of episodes that the nets were fitted without) and
    `critic/advantage_std` (before the advantages are normalised). Draws `figures/values.png`.

    Args:
        gamma, lam: of GAE, per chunk.
        normalise: over all chunks of the iteration: `scale` divides by the root mean square, `centre` is
            (A - mean) / (std + 1e-5).
        clip: largest advantage after that.
        iterations: earlier iterations whose episodes are learnt from as well.
        folds: parts of the iteration's episodes; each is rated by nets fitted to the others.
        nets: averaged in each fold.
        steps: optimizer steps of each net.

    Raises:
        UserError: for a value outside its range, or a name that does not exist.
    """

    data: RolloutDataModule
    trainer: L.Trainer

    def __init__(
        self,
        gamma: float = 1.0,
        lam: float = 0.5,
        normalise: str = "scale",
        clip: float = 3.0,
        iterations: int = 5,
        folds: int = 3,
        nets: int = 2,
        steps: int = 350,
    ) -> None:
        check_number("critic.gamma", gamma, 1.0, least=0, most=1)
        check_number("critic.lam", lam, 0.5, least=0, most=1)
        check_number("critic.clip", clip, 3.0, above=0)
        check_count("critic.iterations", iterations, 5, least=0)
        check_count("critic.folds", folds, 3, least=2)
        check_count("critic.nets", nets, 2)
        check_count("critic.steps", steps, 350)
        self.gamma, self.lam, self.clip = gamma, lam, clip
        self.normalise = resolve(normalise, NORMALISE, "critic.normalise")
        self.iterations, self.folds, self.nets, self.steps = iterations, folds, nets, steps
        self.earlier: list[list[Rated]] = []  # episodes of the last iterations, of all ranks
        self._present: list[Rated] = []
        self._metrics: dict[str, float] = {}

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        data.request_extra("hidden", "critic=separate")
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
        longest = self.data.max_chunks
        own = [Rated(t.episode.uid, float(t.reward), features(t, longest)) for t in trajectories]
        # every rank fits the same nets to the episodes of all
        rated = sorted(gather_lists(own, self.trainer), key=lambda episode: episode.uid)
        self._rate(rated)
        of_uid = {episode.uid: episode for episode in rated}
        for trajectory in trajectories:
            episode = of_uid[trajectory.episode.uid]
            trajectory.advantage_N = episode.advantage_N
            trajectory.actions.extras["value"] = episode.value_N
        self._present = rated
        self.earlier = [*self.earlier, rated][-self.iterations :] if self.iterations else []

    def _rate(self, rated: list[Rated]) -> None:
        """Fill in values and advantages of an iteration's episodes."""
        lengths = [len(episode.feature_ND) for episode in rated]
        reward_R = torch.tensor([episode.reward for episode in rated]).repeat_interleave(torch.tensor(lengths))
        value_R = self._values(rated)
        if value_R is None:
            mean = sum(episode.reward for episode in rated) / len(rated)
            rank_zero_warn(
                f"iteration {self.trainer.current_epoch + 1}: the critic has nothing to learn from (episodes "
                f"that earned the same); advantages are rewards minus their mean {mean:.3g}"
            )
            value_R = torch.full_like(reward_R, mean)
            advantage_R = (reward_R - value_R).double()
            self._metrics = {}
        else:
            parts = zip(rated, value_R.split(lengths), strict=True)
            advantage_R = torch.cat([self._advantage(episode.reward, value_N) for episode, value_N in parts])
            self._metrics = quality(value_R, reward_R, lengths)
        self._metrics["critic/advantage_std"] = float(advantage_R.std(correction=0))
        advantage_R = self.normalise(advantage_R).clamp(-self.clip, self.clip).float()
        for episode, value_N, advantage_N in zip(
            rated, value_R.split(lengths), advantage_R.split(lengths), strict=True
        ):
            episode.value_N, episode.advantage_N = value_N.clone(), advantage_N.clone()

    def _advantage(self, reward: float, value_N: Tensor) -> Tensor:
        """The reward comes after the last decision, and the value after it is nothing."""
        last_N = torch.arange(len(value_N)) == len(value_N) - 1
        return gae(reward * last_N, value_N, last_N, 0.0, gamma=self.gamma, lam=self.lam)

    def _values(self, rated: list[Rated]) -> Tensor | None:
        """Of all decisions; None where there is nothing to learn from."""
        iteration = self.trainer.current_epoch
        generator = seeded_generator(self.data.seed, "critic", iteration)
        fold_of = torch.arange(len(rated))[torch.randperm(len(rated), generator=generator)] % self.folds
        earlier = [episode for episodes in self.earlier for episode in episodes]
        learnt = [*((e, -1) for e in earlier), *zip(rated, fold_of.tolist(), strict=True)]
        for fold in range(self.folds):
            if len({episode.reward for episode, of in learnt if of != fold}) < 2:
                return None
        rewards = [episode.reward for episode, _ in learnt]
        low, high = min(0.0, *rewards), max(1.0, *rewards)  # beyond 0 and 1 where rewards are shaped
        lengths = torch.tensor([len(episode.feature_ND) for episode, _ in learnt])
        device = self.trainer.strategy.root_device
        with torch.enable_grad(), one_thread():  # ranks must agree on every bit
            share_R = cross_fitted(
                torch.cat([episode.feature_ND for episode, _ in learnt]).to(device),
                ((torch.tensor(rewards) - low) / (high - low)).repeat_interleave(lengths).to(device),
                torch.tensor([fold for _, fold in learnt]).repeat_interleave(lengths),
                folds=self.folds,
                nets=self.nets,
                steps=self.steps,
                generator=generator,
            )
        return low + (high - low) * share_R

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
        return {"earlier": [[(e.uid, e.reward, e.feature_ND) for e in episodes] for episodes in self.earlier]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.earlier = [[Rated(*known) for known in episodes] for episodes in state_dict["earlier"]]


def features(trajectory: Trajectory, longest: int) -> Tensor:
    """What the critic sees of each decision, float32 [N, D].

    Args:
        longest: decisions of the longest episode.
    """
    place_N = torch.arange(len(trajectory)) / max(1, longest - 1)
    closing_N = trajectory.gripper_closed_NL.sum(1) / trajectory.executed_N
    before_N = torch.cat([torch.zeros(1), closing_N[:-1]])
    columns_N3 = torch.stack([place_N, place_N.square(), before_N], dim=1)
    return torch.cat([trajectory.actions.extras["hidden"], trajectory.proprio_NP, columns_N3], dim=1).float()


def quality(value_R: Tensor, reward_R: Tensor, lengths: list[int]) -> dict[str, float]:
    """Metrics of cross-fitted values; what cannot be said is left out."""
    chunk_R = torch.cat([torch.arange(n) for n in lengths])
    rows = {"": torch.ones_like(chunk_R, dtype=torch.bool)}
    rows |= {f"/decision_{n}": chunk_R == n - 1 for n in DECISIONS if (chunk_R == n - 1).sum() >= LEAST_EPISODES}
    explained = {name: explained_variance(value_R[of], reward_R[of]) for name, of in rows.items()}
    metrics = {f"critic/explained_variance{name}": value for name, value in explained.items() if value is not None}
    loss = F.binary_cross_entropy(value_R.clamp(0, 1), reward_R.clamp(0, 1))
    return metrics | {"critic/loss": float(loss)}
