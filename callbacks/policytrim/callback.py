"""PolicyTrim (arXiv 2606.22540): first longer chunks that can be relied on, then fewer steps. A reward, in two stages.

Stage 1 (`extend`): episodes of a group execute windows of different lengths, and success counts more with a longer one.
Stage 2 (`trim`): all execute the widest window; saved steps count, and leaving the group's pace costs.
The stage, S_base, the window counts and the reference are in the checkpoint: a run resumes in either stage.

`callbacks.policytrim.stages` has what the stages do, `vla_rl.functional.rewards` the maths.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import lightning as L
import torch

from callbacks.policytrim.metrics import iteration_metrics, window_counts
from callbacks.policytrim.options import check_ratios, windows_of
from callbacks.policytrim.reference import Reference
from callbacks.policytrim.stages import HORIZON_BASELINES, Extension, Reduction, Stage
from callbacks.policytrim.step_baseline import StepBaseline
from vla_rl.checks import check_choice, check_count, check_number
from vla_rl.distributed.collectives import all_reduce_sum
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.functional.rewards import ASSIGNMENTS, PRESETS, SIGMA_FLOORS, Preset, caught_up
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.plan import check_compared
from vla_rl.rollout.trainer_state import callbacks_of, data_of, epoch_of
from vla_rl.types import Episode, RolloutGroup

STATE = ("trimming", "extended", "counts", "history")


class PolicyTrim(RolloutCallback):
    """Plans windows, shapes rewards, and goes from stage 1 to stage 2.

    Logs, as `policytrim/<name>`: `stage`, and what `callbacks.policytrim.metrics` measures.

    Args:
        base_window: control steps of a chunk that the initial policy executes, the narrowest window; null: all.
        ratios: gamma of each window; null: three, evenly spaced from the base window to the whole chunk.
        extend_iterations: iterations of stage 1, at most; 0: stage 2 from the start.
        switch_margin: stage 1 also ends when the widest window succeeds as often as the base window, up to this; null:
            it does not.
        switch_iterations: iterations whose episodes are compared for that, the last ones.
        beta, horizon_baseline, assign: of stage 1 (`callbacks.policytrim.stages.Extension`).
        preset: published values of the next three, one of `vla_rl.functional.rewards.PRESETS`.
        step_coef: what saving all steps would add to a success's reward; null: the preset's.
        penalty: lambda, the most that leaving the group's pace costs; 0: none; null: the preset's.
        sigma_floor: `clamp` or `gate`; null: the preset's.
        sigma_floor_steps: the least spread of steps that the penalty measures in.
        kl_coef: weight of the divergence from the policy that stage 2 started from, in the advantage; 0: none.
        baseline_episodes: per task, run once by the initial policy to measure S_base.
        baseline_factor: S_base over the mean steps of their successes.

    Raises:
        ValueError: for a value outside its range.
        UserError: before anything is written, for windows that do not fit the policy, and for a divergence that groups
            of one have nothing to compare with.
    """

    data: RolloutDataModule
    extension: Extension
    reduction: Reduction

    def __init__(
        self,
        base_window: int | None = None,
        ratios: Sequence[float] | None = None,
        extend_iterations: int = 0,
        switch_margin: float | None = 0.01,
        switch_iterations: int = 5,
        beta: float = 1.0,
        horizon_baseline: str = "group",
        assign: str = "balanced",
        preset: str = "paper",
        step_coef: float | None = None,
        penalty: float | None = None,
        sigma_floor: str | None = None,
        sigma_floor_steps: float = 5.0,
        kl_coef: float = 0.0,
        baseline_episodes: int = 20,
        baseline_factor: float = 1.3,
    ) -> None:
        check_ratios(base_window, ratios)
        check_count("reward.extend_iterations", extend_iterations, 40, least=0)
        check_count("reward.switch_iterations", switch_iterations, 5)
        check_count("reward.baseline_episodes", baseline_episodes, 20)
        check_choice("reward.horizon_baseline", horizon_baseline, HORIZON_BASELINES)
        check_choice("reward.assign", assign, ASSIGNMENTS)
        check_choice("reward.preset", preset, PRESETS)
        published = PRESETS[preset]
        self.values = Preset(
            published.step_coef if step_coef is None else step_coef,
            published.penalty if penalty is None else penalty,
            published.sigma_floor if sigma_floor is None else sigma_floor,
        )
        check_choice("reward.sigma_floor", self.values.sigma_floor, SIGMA_FLOORS)
        for name, value, example in (
            ("switch_margin", 0.0 if switch_margin is None else switch_margin, 0.01),
            ("beta", beta, 1.0),
            ("step_coef", self.values.step_coef, 1.0),
            ("penalty", self.values.penalty, 0.15),
            ("kl_coef", kl_coef, 0.1),
        ):
            check_number(f"reward.{name}", value, example, least=0)
        check_number("reward.sigma_floor_steps", sigma_floor_steps, 5.0, above=0)
        check_number("reward.baseline_factor", baseline_factor, 1.3, above=0)

        self.base_window, self.ratios, self.extend_iterations = base_window, ratios, extend_iterations
        self.switch_margin, self.switch_iterations = switch_margin, switch_iterations
        self.beta, self.horizon_baseline, self.assign = beta, horizon_baseline, assign
        self.sigma_floor_steps, self.kl_coef = sigma_floor_steps, kl_coef
        self.baseline = StepBaseline(baseline_episodes, baseline_factor)
        self.reference = Reference()
        self.trimming = extend_iterations == 0
        self.extended = 0  # iterations of stage 1 so far
        self.counts: list[list[list[float]]] = []  # of the last ones: successes and episodes of each window
        self.history: list[dict[str, float]] = []  # of every iteration, for plots
        self._kl: list[float] = []  # of this iteration's trajectories

    @property
    def stage(self) -> Stage:
        return self.reduction if self.trimming else self.extension

    @property
    def windows(self) -> list[int]:
        """From the base window to the widest."""
        return list(self.extension.windows)

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        if self.kl_coef:
            check_compared(data.rollout, f"reward.kl_coef={self.kl_coef:g}", "reward.kl_coef=0")
        windows = windows_of(self.base_window, self.ratios, data.policy.chunk_steps, self.extend_iterations)
        self.data = data
        self.extension = Extension(windows, self.beta, self.horizon_baseline, self.assign)
        self.reduction = Reduction(max(windows), self.values, self.sigma_floor_steps, self.baseline)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.check_run(data_of(trainer), callbacks_of(trainer))  # again: not every program asks before it starts

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.baseline.known:
            self.baseline.measure(self.data, min(self.windows), trainer)
            self._snapshot()

    def plan_rollouts(self, episodes: Sequence[Episode]) -> None:
        for _, group in groupby(episodes, key=lambda episode: episode.group):
            members = list(group)
            self.stage.plan(members, seeded_generator(self.data.seed, "windows", members[0].uid))

    def score(self, groups: Sequence[RolloutGroup]) -> None:
        for group in groups:
            for trajectory, reward in zip(group.trajectories, self.stage.reward(group).tolist(), strict=True):
                trajectory.reward = reward

    def set_advantages(self, groups: Sequence[RolloutGroup]) -> None:
        for group in groups:
            advantage_G = self.stage.advantage(group)
            if advantage_G is not None:
                for trajectory, advantage in zip(group.trajectories, advantage_G.tolist(), strict=True):
                    trajectory.set_advantage(advantage)
        if self.trimming and self.kl_coef:
            self._hold_back(groups)

    def _hold_back(self, groups: Sequence[RolloutGroup]) -> None:
        """A -= kl_coef (KL - mean KL of the group), where there is anything to learn from: with a critic also in groups
        of equal rewards."""
        learnt_from = [group for group in groups if any(t.advantage_N.any() for t in group.trajectories)]
        trajectories = [t for group in learnt_from for t in group.trajectories]
        self._kl = self.reference.divergence(self.data, trajectories, filler=groups[0].trajectories[0])
        kl_BG = torch.tensor(self._kl, dtype=torch.float64).view(-1, self.data.rollout.group_size)
        above_mean_BG = kl_BG - kl_BG.mean(1, keepdim=True)
        for trajectory, above_mean in zip(trajectories, above_mean_BG.flatten().tolist(), strict=True):
            trajectory.advantage_N = (trajectory.advantage_N.double() - self.kl_coef * above_mean).float()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        groups = epoch_of(trainer).groups
        reduction = self.reduction if self.trimming else None
        found = iteration_metrics(groups, self.baseline, reduction, lambda tensor: all_reduce_sum(tensor, trainer))
        found["stage"] = 2.0 if self.trimming else 1.0
        successes_M, episodes_M = all_reduce_sum(window_counts(groups, self.windows), trainer)
        for window, successes, episodes in zip(self.windows, successes_M.tolist(), episodes_M.tolist(), strict=True):
            if episodes:
                found[f"success/{window}"] = successes / episodes
        if self.trimming and self.kl_coef:
            count = torch.tensor([sum(self._kl), len(self._kl)], dtype=torch.float64)
            kl, trajectories = all_reduce_sum(count, trainer).tolist()
            found["kl"] = kl / max(trajectories, 1)
        self.counts = [*self.counts, [successes_M.tolist(), episodes_M.tolist()]][-self.switch_iterations :]
        self.history.append(found)
        for name, value in found.items():
            pl_module.log(f"policytrim/{name}", value, on_step=False, on_epoch=True, batch_size=1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.trimming:
            return
        self.extended += 1
        if self.extended < self.extend_iterations and not self._caught_up():
            return
        self.trimming = True
        self._snapshot()
        for callback in callbacks_of(trainer):
            if isinstance(callback, RolloutCallback):
                callback.forget_rewards()
        if trainer.is_global_zero:
            print(
                f"stage 2 after {self.extended} iterations of stage 1: windows of {max(self.windows)} steps", flush=True
            )

    def _caught_up(self) -> bool:
        if self.switch_margin is None or len(self.counts) < self.switch_iterations:
            return False
        successes_M, episodes_M = torch.tensor(self.counts).sum(0)
        return caught_up(successes_M, episodes_M, self.switch_margin)

    def _snapshot(self) -> None:
        if self.trimming and self.kl_coef:
            self.reference.snapshot(self.data.policy)

    def state_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in STATE}
        return own | {"baseline": self.baseline.state_dict(), "reference": self.reference.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state_dict[name])
        self.baseline.load_state_dict(state_dict["baseline"])
        self.reference.weights = state_dict["reference"]
