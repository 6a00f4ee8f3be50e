"""`SeparateCritic`: every chunk gets its own advantage, from a small critic that is fitted anew in each iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from callbacks.critic.base import Critic, Values
from callbacks.critic.value_nets import ValueNets, cross_fitted
from vla_rl.checks import check_count
from vla_rl.distributed.collectives import gather_lists
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.distributed.threads import one_thread
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.types import ActionChunk, Decision, Trajectory

Number = TypeVar("Number", float, Tensor)
WIDEST = 512  # features of the hidden states that the nets see, and that checkpoints hold of the earlier episodes


@dataclass(slots=True)
class Learnt:
    """What the nets learn from an episode. N: its decisions, D: features."""

    uid: int
    reward: float
    feature_ND: Tensor


@dataclass(slots=True)
class Span:
    """The rewards that the nets call 0 and 1; between them are shares. Shapes stay."""

    low: float
    high: float

    def share(self, reward: Tensor) -> Tensor:
        return (reward - self.low) / (self.high - self.low)

    def reward(self, share: Number) -> Number:
        return self.low + (self.high - self.low) * share


@dataclass(slots=True)
class Fitted:
    """The nets of all folds, and between which rewards their values lie."""

    nets: ValueNets
    span: Span

    def value(self, feature_1D: Tensor) -> float:
        """Of a decision that none of them has seen: their mean."""
        share = self.nets.values(feature_1D.to(self.nets.mean_D.device)).mean()
        return self.span.reward(float(share))


class SeparateCritic(Critic):
    """Fits small nets to the episodes of this and some earlier iterations.

    The nets see what the rollout's own forward already computed (mean and standard deviation over the slots of the last
    hidden states; more than 512 numbers are projected to 512 by a fixed random matrix), proprioception, the place in
    the episode, whether the last chunk closed the gripper and, with PolicyTrim, how much of its chunks the episode
    executes, and learn what the episode earned in the end. An episode's values come from nets that were fitted without
    it, so that they do not know its outcome. A time-out is a failure: nothing is added for what might have come after
    it.

    There is nothing to learn from where in some fold all episodes earned the same. Logs, beside what every `Critic`
    does, `critic/loss` (cross-entropy, of episodes that the nets were fitted without).

    Args:
        gamma, lam, normalise, clip: see `Critic`.
        iterations: earlier iterations whose episodes are learnt from as well.
        folds: parts of the iteration's episodes; each is rated by nets fitted to the others.
        nets: averaged in each fold.
        steps: optimizer steps of each net.

    Raises:
        UserError: for a value outside its range, or a name that does not exist.
    """

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
        super().__init__(gamma, lam, normalise, clip=clip)
        check_count("critic.iterations", iterations, 5, least=0)
        check_count("critic.folds", folds, 3, least=2)
        check_count("critic.nets", nets, 2)
        check_count("critic.steps", steps, 350)
        self.iterations, self.folds, self.nets, self.steps = iterations, folds, nets, steps
        self.earlier: list[list[Learnt]] = []  # episodes of the last iterations, of all ranks
        self._fitted: Fitted | None = None  # in the last iteration

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        super().check_run(data, callbacks)
        data.request_extra("hidden", "critic=separate")

    def values(self, trajectories: Sequence[Trajectory]) -> list[Values] | None:
        longest, seed = self.data.max_chunks, self.data.seed
        own = [Learnt(t.episode.uid, float(t.reward), features(t, longest, seed)) for t in trajectories]
        # every rank fits the same nets to the episodes of all
        present = sorted(gather_lists(own, self.trainer), key=lambda episode: episode.uid)
        value_R = self._fit(present)
        self.earlier = [*self.earlier, present][-self.iterations :] if self.iterations else []
        if value_R is None or self._fitted is None:
            return None
        lengths = [len(episode.feature_ND) for episode in present]
        reward_R = torch.tensor([e.reward for e in present]).repeat_interleave(torch.tensor(lengths))
        share = self._fitted.span.share
        value_share_R, share_R = (share(of).clamp(0, 1) for of in (value_R, reward_R))  # against rounding
        self._metrics["critic/loss"] = float(F.binary_cross_entropy(value_share_R, share_R))
        parts = zip(present, value_R.split(lengths), strict=True)
        value_of = {episode.uid: value_N.clone() for episode, value_N in parts}
        return [Values(value_of[t.episode.uid][:, None]) for t in trajectories]

    def judge(self) -> Callable[[Decision], float] | None:
        fitted, longest, seed = self._fitted, self.data.max_chunks, self.data.seed
        if fitted is None:
            return None
        return lambda decision: fitted.value(features_of_decision(decision, longest, seed))

    def forget_rewards(self) -> None:
        self.earlier, self._fitted = [], None

    def _fit(self, present: list[Learnt]) -> Tensor | None:
        """Values of all decisions; None where there is nothing to learn from."""
        iteration = self.trainer.current_epoch
        generator = seeded_generator(self.data.seed, "critic", iteration)
        fold_of = torch.arange(len(present))[torch.randperm(len(present), generator=generator)] % self.folds
        earlier = [episode for episodes in self.earlier for episode in episodes]
        self._fitted = None
        learnt = [*((e, -1) for e in earlier), *zip(present, fold_of.tolist(), strict=True)]
        for fold in range(self.folds):
            if len({episode.reward for episode, of in learnt if of != fold}) < 2:
                return None
        rewards = [episode.reward for episode, _ in learnt]
        span = Span(min(0.0, *rewards), max(1.0, *rewards))  # beyond 0 and 1 where rewards are shaped
        lengths = torch.tensor([len(episode.feature_ND) for episode, _ in learnt])
        device = self.trainer.strategy.root_device
        with torch.enable_grad(), one_thread():  # ranks must agree on every bit
            share_R, nets = cross_fitted(
                torch.cat([episode.feature_ND for episode, _ in learnt]).to(device),
                span.share(torch.tensor(rewards)).repeat_interleave(lengths).to(device),
                torch.tensor([fold for _, fold in learnt]).repeat_interleave(lengths),
                folds=self.folds,
                nets=self.nets,
                steps=self.steps,
                generator=generator,
            )
        self._fitted = Fitted(nets, span)
        return span.reward(share_R)

    def state_dict(self) -> dict[str, Any]:
        earlier = [[(e.uid, e.reward, e.feature_ND) for e in episodes] for episodes in self.earlier]
        state = super().state_dict() | {"earlier": earlier}
        if self.stops and self._fitted:
            nets, span = self._fitted.nets, self._fitted.span
            parameters = [p.detach().cpu() for p in nets.parameters]
            state["fitted"] = (nets.mean_D.cpu(), nets.std_D.cpu(), parameters, span.low, span.high)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.earlier = [[Learnt(*known) for known in episodes] for episodes in state_dict["earlier"]]
        if "fitted" in state_dict:
            *nets, low, high = state_dict["fitted"]
            self._fitted = Fitted(ValueNets(*nets), Span(low, high))


def features(trajectory: Trajectory, longest: int, seed: int) -> Tensor:
    """What the critic sees of each decision, float32 [N, D].

    Args:
        longest: decisions of the longest episode.
        seed: the run's, of the projection.
    """
    closing_N = trajectory.gripper_closed_NL.sum(1) / trajectory.executed_N
    before_N = torch.cat([torch.zeros(1), closing_N[:-1]])
    hidden_ND = projected(trajectory.actions.extras["hidden"], seed)
    index_N, window = torch.arange(len(trajectory)), _share(trajectory.episode.window, trajectory.actions)
    return _columns(hidden_ND, trajectory.proprio_NP, index_N, before_N, longest, window)


def features_of_decision(decision: Decision, longest: int, seed: int) -> Tensor:
    """The same of a decision that is not executed yet, float32 [1, D]."""
    hidden_1D = projected(decision.answer.extras["hidden"], seed)
    index_1, before_1 = torch.tensor([decision.index]), torch.tensor([decision.closing_before])
    window = _share(decision.window, decision.answer)
    return _columns(hidden_1D, decision.proprio_P[None], index_1, before_1, longest, window)


def _share(window: int | None, actions: ActionChunk) -> float | None:
    """Of a chunk that the episode executes; None where no reward plans it, and all do alike."""
    return None if window is None else window / actions.logprob_NLA.shape[1]


def _columns(
    hidden_ND: Tensor, proprio_NP: Tensor, index_N: Tensor, before_N: Tensor, longest: int, window: float | None
) -> Tensor:
    place_N = index_N / max(1, longest - 1)
    columns = [place_N, place_N.square(), before_N]
    if window is not None:  # what a success earns depends on it, and how many decisions are left
        columns.append(torch.full_like(place_N, window))
    return torch.cat([hidden_ND, proprio_NP, torch.stack(columns, dim=1)], dim=1).float()


def projected(hidden_ND: Tensor, seed: int) -> Tensor:
    """Hidden states as they are, or, where they are wider than `WIDEST`, by a fixed Gaussian matrix that keeps their
    distances (Johnson and Lindenstrauss, 1984): a checkpoint of the 7B model holds 12 MB of them, not 200."""
    width = hidden_ND.shape[1]
    if width <= WIDEST:
        return hidden_ND
    with one_thread():
        return hidden_ND.float() @ _projection(width, seed)


@cache
def _projection(width: int, seed: int) -> Tensor:
    return torch.randn(width, WIDEST, generator=seeded_generator(seed, "critic projection")) / WIDEST**0.5
