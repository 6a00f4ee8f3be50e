"""What an update computes of one row, on the meta device: no weights, no device, exact for any size."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vla_rl.policy.flow.model import FlowModel, Inputs
from vla_rl.policy.flow.policy import FlowPolicy


def on_meta(model: FlowModel) -> FlowModel:
    """A copy without weights, whose parameters are trained or frozen, and of the dtype, as the model's are."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def one_row(model: FlowModel, policy: FlowPolicy) -> Tensor:
    """The velocities of one row's noisy steps, of a prefix with all cameras and the longest prompt.

    Args:
        model: that of the policy, on the meta device.
    """
    config, processors = model.config, policy.processors
    views, slots = processors.images + processors.missing, processors.prompt.slots
    with torch.device("meta"):
        inputs = Inputs(
            pixels=[torch.zeros(1, 3, *processors.picture_px)] * views,
            picture_mask_NV=torch.ones(1, views, dtype=torch.bool),
            ids_NT=torch.zeros(1, slots, dtype=torch.int64),
            mask_NT=torch.ones(1, slots, dtype=torch.bool),
            state_ND=None if processors.prompt.with_state else torch.zeros(1, config.state_width),
        )
        prefix, x_NHW = model.prefix(inputs), torch.zeros(1, config.chunk_steps, config.action_width)
        noisy = range(policy.noise.scored)
        return torch.cat([model.velocity(prefix, x_NHW, torch.ones(1), inputs.state_ND)[0] for _ in noisy])
