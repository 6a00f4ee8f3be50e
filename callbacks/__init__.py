"""Masks, PolicyTrim, and what watches a run: each a Lightning callback that a slot of the config names.

The names below are the public ones: they keep their place when modules move (`mask._target_=callbacks.PCM`). Each is
imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_rl.lazy import lazy_names

if TYPE_CHECKING:
    from callbacks.augment import Augment as Augment
    from callbacks.checkpoint import Checkpoint as Checkpoint
    from callbacks.critic.base import Critic as Critic
    from callbacks.critic.head import HeadCritic as HeadCritic
    from callbacks.critic.separate import SeparateCritic as SeparateCritic
    from callbacks.distillation import Distillation as Distillation
    from callbacks.masks.advantage_mask import AdvantageMask as AdvantageMask
    from callbacks.masks.advantage_mask import GlobalAdvantage as GlobalAdvantage
    from callbacks.masks.base import ChunkMask as ChunkMask
    from callbacks.masks.budget import Budget as Budget
    from callbacks.masks.critic_choice import CriticChoice as CriticChoice
    from callbacks.masks.entropy_mask import EntropyMask as EntropyMask
    from callbacks.masks.global_mask import GlobalMask as GlobalMask
    from callbacks.masks.global_mask import GlobalPCM as GlobalPCM
    from callbacks.masks.global_mask import ScoreNorm as ScoreNorm
    from callbacks.masks.padded import FullPadded as FullPadded
    from callbacks.masks.padded import RandomPadded as RandomPadded
    from callbacks.masks.pcm import PCM as PCM
    from callbacks.masks.random_mask import RandomMask as RandomMask
    from callbacks.masks.single_phase import SinglePhase as SinglePhase
    from callbacks.masks.weighted import WeightedMask as WeightedMask
    from callbacks.monitors.before_after import BeforeAfter as BeforeAfter
    from callbacks.monitors.credit_kept import CreditKept as CreditKept
    from callbacks.monitors.diagnostics import Diagnostics as Diagnostics
    from callbacks.monitors.elsewhere import SuccessElsewhere as SuccessElsewhere
    from callbacks.monitors.memory import ActivationMemory as ActivationMemory
    from callbacks.monitors.memory import Resources as Resources
    from callbacks.monitors.metrics_file import MetricsFile as MetricsFile
    from callbacks.monitors.phase_plot import PhasePlot as PhasePlot
    from callbacks.monitors.progress import RolloutProgress as RolloutProgress
    from callbacks.monitors.run_plot import RunPlot as RunPlot
    from callbacks.monitors.timing import Timing as Timing
    from callbacks.monitors.trace import Trace as Trace
    from callbacks.monitors.videos import Videos as Videos
    from callbacks.policytrim.callback import PolicyTrim as PolicyTrim
    from callbacks.policytrim.report import TrimReport as TrimReport
    from callbacks.policytrim.step_baseline import StepBaseline as StepBaseline

MODULES = {  # public name -> where it is defined
    "Augment": "callbacks.augment",
    "Checkpoint": "callbacks.checkpoint",
    "Critic": "callbacks.critic.base",
    "HeadCritic": "callbacks.critic.head",
    "SeparateCritic": "callbacks.critic.separate",
    "Distillation": "callbacks.distillation",
    "AdvantageMask": "callbacks.masks.advantage_mask",
    "GlobalAdvantage": "callbacks.masks.advantage_mask",
    "ChunkMask": "callbacks.masks.base",
    "Budget": "callbacks.masks.budget",
    "CriticChoice": "callbacks.masks.critic_choice",
    "EntropyMask": "callbacks.masks.entropy_mask",
    "GlobalMask": "callbacks.masks.global_mask",
    "GlobalPCM": "callbacks.masks.global_mask",
    "ScoreNorm": "callbacks.masks.global_mask",
    "FullPadded": "callbacks.masks.padded",
    "RandomPadded": "callbacks.masks.padded",
    "PCM": "callbacks.masks.pcm",
    "RandomMask": "callbacks.masks.random_mask",
    "SinglePhase": "callbacks.masks.single_phase",
    "WeightedMask": "callbacks.masks.weighted",
    "BeforeAfter": "callbacks.monitors.before_after",
    "CreditKept": "callbacks.monitors.credit_kept",
    "Diagnostics": "callbacks.monitors.diagnostics",
    "SuccessElsewhere": "callbacks.monitors.elsewhere",
    "ActivationMemory": "callbacks.monitors.memory",
    "Resources": "callbacks.monitors.memory",
    "MetricsFile": "callbacks.monitors.metrics_file",
    "PhasePlot": "callbacks.monitors.phase_plot",
    "RolloutProgress": "callbacks.monitors.progress",
    "RunPlot": "callbacks.monitors.run_plot",
    "Timing": "callbacks.monitors.timing",
    "Trace": "callbacks.monitors.trace",
    "Videos": "callbacks.monitors.videos",
    "PolicyTrim": "callbacks.policytrim.callback",
    "TrimReport": "callbacks.policytrim.report",
    "StepBaseline": "callbacks.policytrim.step_baseline",
}

__all__ = [*MODULES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, MODULES)
