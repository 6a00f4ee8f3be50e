"""The global random generators of all ranks, in types that a checkpoint may hold (`weights_only=True`).

What this project draws comes from generators seeded by what is drawn (`vla_rl.distributed`); these are for libraries
and for callbacks of one's own.
"""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch


def random_states(trainer: L.Trainer) -> list[dict[str, Any]]:
    """Of each rank; a collective."""
    own = random_state()
    if trainer.world_size == 1:
        return [own]
    states: list[dict[str, Any]] = [{} for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(states, own)
    return states


def random_state() -> dict[str, Any]:
    """Of Python, NumPy, torch, and the CUDA devices this process uses."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.copy()), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Inverse of `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy(), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
