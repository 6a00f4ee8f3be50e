"""Paths of version 0.1 that a stored config may name, and where they are now.

A run's `config.yaml` holds dotted paths (`callbacks.pcm.PCM`). `translate` turns the old ones into today's, so that
runs of version 0.1 resume and their configs still work. To be dropped with version 0.3.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

NAMES = {  # path of version 0.1 -> public name, or where the name went without the rest of its module
    "callbacks.activation_memory.ActivationMemory": "callbacks.ActivationMemory",
    "callbacks.augment.Augment": "callbacks.Augment",
    "callbacks.checkpoint.Checkpoint": "callbacks.Checkpoint",
    "callbacks.diagnostics.Diagnostics": "callbacks.Diagnostics",
    "callbacks.entropy_mask.EntropyMask": "callbacks.EntropyMask",
    "callbacks.full_padded.FullPadded": "callbacks.FullPadded",
    "callbacks.global_mask.GlobalPCM": "callbacks.GlobalPCM",
    "callbacks.global_mask.ScoreNorm": "callbacks.ScoreNorm",
    "callbacks.metrics_file.MetricsFile": "callbacks.MetricsFile",
    "callbacks.pcm.PCM": "callbacks.PCM",
    "callbacks.phase_plot.PhasePlot": "callbacks.PhasePlot",
    "callbacks.policytrim.PolicyTrim": "callbacks.PolicyTrim",
    "callbacks.progress.RolloutProgress": "callbacks.RolloutProgress",
    "callbacks.random_mask.RandomMask": "callbacks.RandomMask",
    "callbacks.random_padded.RandomPadded": "callbacks.RandomPadded",
    "callbacks.resources.Resources": "callbacks.Resources",
    "callbacks.run_plot.RunPlot": "callbacks.RunPlot",
    "callbacks.single_phase.SinglePhase": "callbacks.SinglePhase",
    "callbacks.timing.Timing": "callbacks.Timing",
    "callbacks.trace.Trace": "callbacks.Trace",
    "callbacks.trim_report.TrimReport": "callbacks.TrimReport",
    "callbacks.videos.Videos": "callbacks.Videos",
    "vla_rl.grpo.clipped_loss": "vla_rl.functional.losses.clipped_loss",
    "vla_rl.grpo.token_weight": "vla_rl.functional.losses.token_weight",
    "vla_rl.loggers.wandb": "vla_rl.wandb_logger",
    "vla_rl.policy.load.load_policy": "vla_rl.load_policy",
    "vla_rl.policy.load_policy": "vla_rl.load_policy",
    "vla_rl.selection.cumulative_share": "vla_rl.functional.divergence.cumulative_share",
    "vla_rl.selection.knee": "vla_rl.functional.divergence.knee",
    "vla_rl.sim.pool.LiberoPool": "vla_rl.LiberoPool",
    "vla_rl.strategies.FSDP2": "vla_rl.FSDP2",
}
MOVED = {  # module of version 0.1 -> module that has what else a config may name of it
    "callbacks.base": "callbacks.masks.base",
    "callbacks.budget": "callbacks.masks.budget",
    "callbacks.global_mask": "callbacks.masks.global_mask",
    "callbacks.step_baseline": "callbacks.policytrim.step_baseline",
    "callbacks.trace": "callbacks.monitors.trace",
    "vla_rl.chunk_scores": "vla_rl.functional.token_scores",
    "vla_rl.divergence": "vla_rl.functional.divergence",
    "vla_rl.groups": "vla_rl.functional.group_filters",
    "vla_rl.grpo": "vla_rl.functional.advantages",
    "vla_rl.loggers": "vla_rl.training.loggers",
    "vla_rl.phases": "vla_rl.functional.phases",
    "vla_rl.rewards": "vla_rl.functional.rewards",
    "vla_rl.selection": "vla_rl.functional.sampling",
    "vla_rl.strategies": "vla_rl.distributed.strategies",
    "vla_rl.policy.checkpoint": "vla_rl.policy.openvla_oft.checkpoint",
    "vla_rl.policy.l1_policy": "vla_rl.policy.openvla_oft.l1_policy",
    "vla_rl.policy.load": "vla_rl.policy.openvla_oft.load",
    "vla_rl.policy.policy": "vla_rl.policy.openvla_oft.policy",
    "vla_rl.policy.tiny": "vla_rl.policy.openvla_oft.tiny",
}
# keys of supervised training that are gone; what a run of reinforcement learning has stored of them never acted
GONE = ("sft.lr", "sft.weight_decay")
_warned = False


def current_path(path: str) -> str:
    """Where the class or function that version 0.1 had at a dotted path is now; other paths stay.

    Example:
        >>> current_path("callbacks.pcm.PCM"), current_path("vla_rl.grpo.rloo_advantage"), current_path("my_pkg.Mine")
        ('callbacks.PCM', 'vla_rl.functional.advantages.rloo_advantage', 'my_pkg.Mine')
    """
    module, _, name = path.rpartition(".")
    return NAMES.get(path) or f"{MOVED.get(module, module)}.{name}"


def translate(tree: Any) -> Any:
    """The tree of a config with today's paths in place of old ones; warns once in a process that there were some."""
    if isinstance(tree, dict):
        return {key: translate(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [translate(value) for value in tree]
    if not isinstance(tree, str) or not tree.startswith(("callbacks.", "vla_rl.")):
        return tree
    path = current_path(tree)
    if path != tree:
        _warn(tree, path)
    return path


def without_gone(tree: dict[str, Any], given: Collection[str] = ()) -> dict[str, Any]:
    """The tree of a config without the keys in `GONE`, where they did not act: it is not of supervised training.

    Args:
        given: keys of the command line, which stay.
    """
    sft = tree.get("sft") or {}
    if sft.get("demos") is not None:
        return tree
    return tree | {"sft": {key: value for key, value in sft.items() if (k := f"sft.{key}") not in GONE or k in given}}


def _warn(old: str, new: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"the config has paths of version 0.1, which version 0.3 will not know: {old} is now {new}",
            FutureWarning,
            stacklevel=2,
        )
