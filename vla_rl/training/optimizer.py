"""AdamW (arXiv 1711.05101), with its two moments in 32 or, through bitsandbytes, in 8 bits (arXiv 2110.02861)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vla_rl.config.schema import OptimConfig
from vla_rl.errors import UserError


def build_optimizer(parameters: Iterable[nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of `parameters` that `optim` asks for.

    Raises:
        UserError: 8-bit moments without bitsandbytes.
    """
    options: dict[str, Any] = {"lr": optim.lr, "betas": tuple(optim.betas), "weight_decay": optim.weight_decay}
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options)
    try:
        from bitsandbytes.optim import AdamW8bit  # here: it takes seconds to import
    except ImportError as e:
        raise UserError(f"optim.optimizer=adamw8bit needs bitsandbytes ({e}): optim.optimizer=adamw") from e
    return AdamW8bit(parameters, **options)
