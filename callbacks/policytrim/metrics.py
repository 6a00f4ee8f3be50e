"""What one iteration of PolicyTrim looked like, from counts and sums that add up over ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from callbacks.policytrim.stages import Reduction, steps_of, success_of
from callbacks.policytrim.step_baseline import StepBaseline
from vla_rl.functional.rewards import step_drift
from vla_rl.types import RolloutGroup


def window_counts(groups: Sequence[RolloutGroup], windows: Sequence[int]) -> Tensor:
    """Successes and episodes of each window, float64 [2, M]."""
    count = torch.zeros(2, len(windows), dtype=torch.float64)
    for t in (t for group in groups for t in group.trajectories):
        count[:, list(windows).index(t.window)] += torch.tensor([float(t.success), 1.0])
    return count


def iteration_metrics(
    groups: Sequence[RolloutGroup],
    baseline: StepBaseline,
    reduction: Reduction | None,
    reduce: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Means over the iteration's groups of all ranks; what nothing can be said of is left out.

    Args:
        groups: scored, with their advantages.
        reduction: the second stage, if it is on.
        reduce: sums a tensor over ranks.
    """
    names = ("groups", "all_success", "drift", "drift_groups", "episodes", "window", "reward",
             "successes", "calls", "baseline_calls", "step_reward", "penalty")  # fmt: skip
    total = dict.fromkeys(names, 0.0)
    for group in groups:
        trajectories, success_G = group.trajectories, success_of(group)
        drift = step_drift(torch.tensor([t.advantage for t in trajectories]), steps_of(group), success_G)
        step_reward_G, penalty_G = reduction.terms(group) if reduction else torch.zeros(2, len(trajectories))
        successes = [t for t in trajectories if t.success]
        for name, value in {
            "groups": 1,
            "all_success": len(successes) == len(trajectories),
            "drift": 0.0 if math.isnan(drift) else drift,
            "drift_groups": not math.isnan(drift),
            "episodes": len(trajectories),
            "window": sum(t.window for t in trajectories),
            "reward": sum(t.reward for t in trajectories),
            "successes": len(successes),
            "calls": sum(len(t) for t in successes),
            "baseline_calls": sum(baseline.calls[t.episode.task] for t in successes),
            "step_reward": float((success_G * step_reward_G).sum()),
            "penalty": float(penalty_G.sum()),
        }.items():
            total[name] += value
    summed = reduce(torch.tensor(list(total.values()), dtype=torch.float64)).tolist()
    total = dict(zip(total, summed, strict=True))
    found = {
        "window": total["window"] / total["episodes"],
        "reward": total["reward"] / total["episodes"],
        "all_success_groups": total["all_success"] / total["groups"],
    }
    if total["drift_groups"]:
        found["step_drift"] = total["drift"] / total["drift_groups"]
    if total["successes"]:
        found["calls"] = total["calls"] / total["successes"]
        found["call_speedup"] = total["baseline_calls"] / total["calls"]
    if reduction:
        found["reward_without_penalty"] = found["reward"] + total["penalty"] / total["episodes"]
    if reduction and total["successes"]:
        found["step_reward"] = total["step_reward"] / total["successes"]
        found["penalty"] = total["penalty"] / total["successes"]
    return found
