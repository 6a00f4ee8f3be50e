"""The demonstrations that a policy is trained on, as `sft.*` asks for them, and the policy normalised by them."""

from __future__ import annotations

import torch

from vla_rl.config.schema import SFTConfig
from vla_rl.demos.demo import Demo
from vla_rl.demos.formats.layout import Layout
from vla_rl.demos.load import load_demos
from vla_rl.errors import UserError
from vla_rl.types import SupervisedPolicy


def prepare_demos(policy: SupervisedPolicy, sft: SFTConfig) -> list[Demo]:
    """Read the demonstrations, and give the policy their statistics or the published ones of `sft.statistics`.

    Raises:
        UserError: no demonstrations there, or they do not fit the policy.
    """
    assert sft.demos is not None
    layout = Layout(policy.images, sft.cameras, sft.state, sft.action, sft.turned)
    demos = load_demos(sft.demos, layout, per_task=sft.per_task, drop_noops=sft.drop_noops)
    check_dims(policy, demos[0])
    if sft.statistics is not None:
        policy.take_normalisation(demos[0].dataset, sft.statistics)
    policy.fit_normalisation(
        demos[0].dataset, torch.cat([d.action_TA for d in demos]), torch.cat([d.proprio_TP for d in demos])
    )
    return demos


def check_dims(policy: SupervisedPolicy, demo: Demo) -> None:
    """Raise UserError where the policy reads another count of proprioceptive numbers than the demonstrations have."""
    have = demo.proprio_TP.shape[1]
    if policy.proprio_dims not in (0, have):
        raise UserError(
            f"{demo.origin}: the state has {have} numbers, the policy reads {policy.proprio_dims}: sft.state=[KEY]"
        )
