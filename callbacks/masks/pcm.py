"""Probabilistic chunk masking (PCM, arXiv 2605.16154): keep chunks of the phases where outcomes diverge.

`callbacks.masks.phase_scores` measures how differently successes and failures act in each phase; here the scores become
weights, and the weights a draw of chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from callbacks.masks.base import check_own_advantages
from callbacks.masks.phase_scores import PhaseScores
from callbacks.masks.weighted import WeightedMask
from vla_rl.checks import check_fraction
from vla_rl.functional.divergence import cumulative_share, keep_probability, knee
from vla_rl.functional.phases import Labeller
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.plan import check_compared
from vla_rl.types import RolloutGroup, Trajectory

LOGGED = ("divergence", "divergence_no_gripper", "credit", "keep_prob")  # per phase


class PCM(WeightedMask):
    """Keeps `budget` chunks of each trajectory, drawn without replacement in proportion to their phase's weight.

    Logs, per phase: `pcm/divergence` and `pcm/divergence_no_gripper` (C_c of this iteration's rollouts; absent when no
    mixed group visits the phase with both outcomes), `pcm/credit` where that is the score, and `pcm/keep_prob`. Once
    there are scores, `pcm/knee_chunks` and `pcm/knee_fraction`: the budget that the knee of the cumulative C_c curve
    suggests.

    Args:
        budget: chunks kept of a trajectory, at most: a number, `{fraction: 0.19}`, or `{knee: true}` (Appendix D;
            everything until there are scores).
        floor: the least relative weight of a phase, in (0, 1].
        estimator: `paper` draws one after the other and counts what is kept once; `ht` and `hajek` draw with exact
            inclusion probabilities in proportion to the weights and divide by them (`vla_rl.functional.sampling`).
        refresh_every, labeller, vector, gripper, group_weight, debias, collapse, missing, score: see `PhaseScores`.

    Raises:
        ValueError, UserError: for a value outside its range, or a name that does not exist; before anything is written,
            where `score=credit` and no critic gives chunks values, and where groups of one episode have no divergence.
    """

    def __init__(
        self,
        budget: int | Mapping[str, Any] = 12,
        floor: float = 0.1,
        refresh_every: int = 5,
        labeller: str = "gripper",
        vector: str = "mean",
        gripper: bool = True,
        group_weight: str = "equal",
        debias: bool = False,
        collapse: str = "mean",
        missing: str = "carry",
        score: str = "divergence",
        estimator: str = "paper",
    ) -> None:
        super().__init__(budget, estimator, knee=True)
        check_fraction("mask.floor", floor, 0.1)
        self.floor = floor
        self.scores = PhaseScores(
            refresh_every,
            labeller,
            vector,
            gripper,
            group_weight,
            debias=debias,
            collapse=collapse,
            missing=missing,
            score=score,
        )
        self.keep_prob = [1.0] * len(self.scores.phases)  # uniform until there is a score
        self.history: list[dict[str, Any]] = []  # of every iteration, for plots

    @property
    def labeller(self) -> Labeller:
        return self.scores.label

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        super().check_run(data, callbacks)
        if self.scores.score == "credit":
            check_own_advantages(data, "mask.score=credit")
        else:
            check_compared(data.rollout, "the divergence of phases", "mask=random")

    def update(self, groups: Sequence[RolloutGroup], reduce: Callable[[Tensor], Tensor]) -> None:
        measured, refreshed = self.scores.update(groups, reduce)
        if refreshed:
            self.keep_prob = self.weights(torch.tensor(self.scores.last_score, dtype=torch.float64)).tolist()
        chunks_F = self.scores.count_chunks(groups, reduce)
        if self.budget.follows_knee and refreshed:
            self.budget.fraction = self._knee(chunks_F)[0]
        self.history.append(
            {name: value_F.tolist() for name, value_F in measured.items()}
            | {
                "keep_prob": list(self.keep_prob),
                "score": list(self.scores.last_score),
                "chunks": chunks_F.tolist(),
                "trajectories": float(reduce(torch.tensor(float(sum(len(g.trajectories) for g in groups))))),
            }
        )

    def weights(self, score_F: Tensor) -> Tensor:
        """Relative weights of the phases from their collapsed divergence."""
        return keep_probability(score_F, self.floor)

    def weight_of(self, trajectory: Trajectory) -> Tensor:
        return torch.tensor(self.keep_prob)[self.scores.label(trajectory)]

    def _knee(self, chunks_F: Tensor) -> tuple[float, float]:
        """Fraction of the chunks to keep, and the share of the total score that this captures."""
        fraction, share = cumulative_share(torch.tensor(self.scores.last_score), chunks_F)
        corner = knee(fraction, share)
        return float(fraction[corner]), float(share[corner])

    def metrics(self) -> dict[str, float]:
        row = self.history[-1]
        logged = {
            f"pcm/{name}/{phase}": value
            for name in LOGGED
            if name in row
            for phase, value in zip(self.scores.phases, row[name], strict=True)
            if not math.isnan(value)
        }
        if not all(math.isnan(value) for value in row["score"]):
            fraction, _ = self._knee(torch.tensor(row["chunks"]))
            logged["pcm/knee_fraction"] = fraction
            logged["pcm/knee_chunks"] = fraction * sum(row["chunks"]) / row["trajectories"]
        return logged

    def state_dict(self) -> dict[str, Any]:
        return {
            "scores": self.scores.state_dict(),
            "keep_prob": self.keep_prob,
            "history": self.history,
            "fraction": self.budget.fraction,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores.load_state_dict(state_dict["scores"])
        self.keep_prob, self.history = state_dict["keep_prob"], state_dict["history"]
        self.budget.fraction = state_dict["fraction"]
