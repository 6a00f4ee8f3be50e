"""Random generators that do not depend on rank, order or resume."""

from __future__ import annotations

import hashlib
import json

import torch


def stable_seed(*parts: int | str) -> int:
    """A seed for what `parts` name, the same in every process and Python version (unlike `hash`).

    Example:
        >>> stable_seed(0, "actions", 17) == stable_seed(0, "actions", 17) != stable_seed(0, "actions", 18)
        True
    """
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits: fits a signed int64


def seeded_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `stable_seed(*parts)`: name the run's seed, the purpose, the iteration, the episode."""
    return torch.Generator().manual_seed(stable_seed(*parts))
