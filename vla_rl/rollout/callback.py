"""`RolloutCallback`: the hooks by which a callback takes part in rollouts, beside Lightning's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning as L

from vla_rl.errors import UserError, closest
from vla_rl.types import Episode, RolloutGroup

if TYPE_CHECKING:
    from vla_rl.rollout.datamodule import RolloutDataModule

HOOKS = ("check_run", "plan_rollouts", "score", "set_advantages", "forget_rewards")


class RolloutCallback(L.Callback):
    """A Lightning callback that takes part in planning and scoring rollouts, or reads them. Override what you need.

    Supervised training, which has no rollouts, refuses it.

    Order in an iteration: `plan_rollouts`, the episodes run, `score`, advantages are computed, `set_advantages`.

    Raises:
        TypeError: when a subclass is defined, for a method whose name is nearly that of a hook.
    """

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        for name in vars(cls):
            if name.startswith("_") or any(hasattr(base, name) for base in cls.__mro__[1:]):
                continue
            if hook := closest(name, HOOKS, cutoff=0.85):
                raise TypeError(f"{cls.__name__}.{name} would never be called: did you mean the hook '{hook}'?")

    @property
    def shapes_rewards(self) -> bool:
        """Whether it scores episodes, as a reward must."""
        return type(self).score is not RolloutCallback.score

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        """Refuse, with a `UserError`, what cannot work; nothing has been written yet.

        Args:
            callbacks: all of the trainer's.
        """

    def plan_rollouts(self, episodes: Sequence[Episode]) -> None:
        """Before a collection, on the episodes of this rank: may set each episode's `window` and `augment`."""

    def score(self, groups: Sequence[RolloutGroup]) -> None:
        """After a collection, before advantages: may shape each trajectory's `reward`."""

    def set_advantages(self, groups: Sequence[RolloutGroup]) -> None:
        """Once an iteration, on every rank, when all of its groups have their advantages from `grpo.advantage`: may
        replace `advantage_N` of each trajectory, and may run the policy (its forwards are collectives under fsdp2)."""

    def forget_rewards(self) -> None:
        """The reward has changed: what episodes have earned says nothing about what the coming ones will earn."""


def check_hooks(callbacks: Sequence[L.Callback]) -> None:
    """Raise UserError for a callback that has a hook's name but is no `RolloutCallback`: it would not be called."""
    for callback in callbacks:
        names = [name for name in HOOKS if hasattr(callback, name)]
        if names and not isinstance(callback, RolloutCallback):
            kind = type(callback).__name__
            raise UserError(
                f"{kind} has {', '.join(names)}, which only a RolloutCallback is asked for: derive {kind} from "
                "vla_rl.RolloutCallback instead of lightning.Callback"
            )


def may_change_windows(callback: L.Callback) -> bool:
    """Whether episodes may execute other windows than the whole chunk because of this callback."""
    return isinstance(callback, RolloutCallback) and type(callback).plan_rollouts is not RolloutCallback.plan_rollouts
