"""`PhaseScores`: the statistics of PCM, and when they are refreshed. The maths is in `vla_rl.functional.divergence`.

An iteration appends each phase's success-failure divergence C_c to a buffer (or, as this project's extension, the
phase's mean credit by a critic: `vla_rl.functional.credit`). From the first iteration that has one, and
then every `refresh_every` iterations, the buffers are collapsed to one score per phase.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vla_rl.checks import check_choice, check_count, check_flag
from vla_rl.config.instantiate import resolve
from vla_rl.errors import UserError
from vla_rl.functional.credit import mean_credit
from vla_rl.functional.divergence import COLLAPSES, GROUP_WEIGHTS, VECTORS, collapse, mean_divergence
from vla_rl.functional.phases import LABELLERS, Labeller
from vla_rl.types import RolloutGroup

STATE = ("buffers", "last_score", "iterations_to_refresh")  # what a resume needs
MISSING = ("carry", "floor")
DIVERGENCES = ("divergence", "divergence_no_gripper")
SCORES = ("divergence", "credit")


class PhaseScores:
    """One score per phase, kept up to date.

    Args:
        refresh_every: iterations between two refreshes.
        labeller: what splits trajectories into phases: a name of `phases.LABELLERS`, or my_pkg.my_labeller.
        vector: what stands for a chunk's actions: `mean` over the executed steps, or `flat`.
        gripper: whether scores look at the gripper's dimension; both divergences are measured anyway.
        group_weight: of a group in the average over groups: `equal`, or `harmonic` in its successes and failures.
        debias: take away the divergence that noise alone would give.
        collapse: of a buffer to a score: `mean`, or `sum`.
        missing: score of a phase whose buffer is empty: `carry` the last one, or none (`floor`).
        score: what is buffered of a phase: its `divergence`, or its chunks' mean `credit`, which needs a critic.

    Raises:
        ValueError: for a value outside its range.
        UserError: for a name that does not exist, or a labeller that does not name its phases.
    """

    def __init__(
        self,
        refresh_every: int,
        labeller: str = "gripper",
        vector: str = "mean",
        gripper: bool = True,
        group_weight: str = "equal",
        debias: bool = False,
        collapse: str = "mean",
        missing: str = "carry",
        score: str = "divergence",
    ) -> None:
        check_count("mask.refresh_every", refresh_every, 5)
        for name, value in (("gripper", gripper), ("debias", debias)):
            check_flag(f"mask.{name}", value)
        check_choice("mask.missing", missing, MISSING)
        check_choice("mask.score", score, SCORES)
        self.label: Labeller = resolve(labeller, LABELLERS, "mask.labeller")
        if not getattr(self.label, "phases", None):
            raise UserError(
                f"the labeller {labeller} does not name its phases: mark it with @labels('early', 'late') of "
                "vla_rl.functional.phases (mask.labeller=gripper)"
            )
        self.refresh_every, self.gripper, self.missing, self.score = refresh_every, gripper, missing, score
        self._collapse = resolve(collapse, COLLAPSES, "mask.collapse")
        self._options = {
            "label": self.label,
            "vector": resolve(vector, VECTORS, "mask.vector"),
            "group_weight": resolve(group_weight, GROUP_WEIGHTS, "mask.group_weight"),
            "debias": debias,
        }
        self.buffers: list[list[float]] = [[] for _ in self.phases]
        self.last_score = [math.nan] * len(self.phases)  # at the last refresh; NaN: never seen
        self.iterations_to_refresh = 0  # 0 and no score yet: wait for the first one

    @property
    def phases(self) -> tuple[str, ...]:
        return self.label.phases

    def update(
        self, groups: Sequence[RolloutGroup], reduce: Callable[[Tensor], Tensor]
    ) -> tuple[dict[str, Tensor], bool]:
        """Take in an iteration's groups on this rank.

        Returns:
            What was measured of each phase, by name, float64 [F] with NaN where nothing can be said: `divergence`
            (C_c), `divergence_no_gripper`, and `credit` where it is the score; whether `last_score` is new.
        """
        measured = dict(zip(DIVERGENCES, mean_divergence(groups, reduce, **self._options), strict=True))
        if self.score == "credit":
            measured["credit"] = mean_credit(groups, reduce, self.label)
        score_F = measured["credit" if self.score == "credit" else DIVERGENCES[0 if self.gripper else 1]]
        for buffer, value in zip(self.buffers, score_F.tolist(), strict=True):
            if not math.isnan(value):
                buffer.append(value)
        return measured, self._refresh()

    def _refresh(self) -> bool:
        if self.iterations_to_refresh > 0:
            self.iterations_to_refresh -= 1
        if self.iterations_to_refresh > 0:
            return False
        scored = any(value > 0 for buffer in self.buffers for value in buffer)
        if scored:
            last = self.last_score if self.missing == "carry" else [math.nan] * len(self.phases)
            self.last_score = collapse(self.buffers, last, self._collapse)
        if not all(math.isnan(value) for value in self.last_score):  # one counter runs from the first score on
            self.iterations_to_refresh = self.refresh_every
            self.buffers = [[] for _ in self.phases]
        return scored

    def count_chunks(self, groups: Sequence[RolloutGroup], reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """Chunks per phase of all groups and ranks, float64 [F]."""
        label_N = [self.label(t) for group in groups for t in group.trajectories]
        count_F = torch.cat([torch.zeros(0, dtype=torch.int64), *label_N]).bincount(minlength=len(self.phases))
        return reduce(count_F.double())

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state_dict[name])
