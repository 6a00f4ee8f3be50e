"""The global random generators of all ranks, in types that a checkpoint may hold (`weights_only=True`).

What this project draws comes from generators seeded by what is drawn (`collectives`); these are for libraries
and for callbacks of one's own.
"""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch

from vla_rl.distributed.collectives import gather_lists


def random_states(trainer: L.Trainer) -> list[dict[str, Any]]:
    """Of each rank; a collective."""
    return gather_lists([random_state()], trainer)


def random_state() -> dict[str, Any]:
    """Of Python, NumPy, torch, and the CUDA devices this process uses."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Inverse of `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([torch.tensor(device, dtype=torch.uint8) for device in state["cuda"]])
