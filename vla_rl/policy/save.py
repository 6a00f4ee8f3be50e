"""What a run leaves of its policy: a folder that the policy's loader reads back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from vla_rl.policy.weights import SINGLE, save_tensors


def save_trained(policy: nn.Module, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write what training changed: what the policy's method `save(folder, state)` writes, or without one its tensors.

    Args:
        state: the policy's state dict, where its own tensors are shards.
    """
    folder, state = Path(folder), policy.state_dict() if state is None else state
    if hasattr(policy, "save"):
        cast(Any, policy).save(folder, state)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(state, folder / SINGLE)
