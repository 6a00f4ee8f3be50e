"""Where random weights of the published sizes are made: they serve to measure speed and memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def made_where_used(dtype: torch.dtype, seed: int = 0) -> Iterator[None]:
    """Modules that are built inside are of `dtype`, on the GPU where there is one; drawn by a generator of their own.

    In float32 on the CPU they would not fit a machine that has room for them as they are used.
    """
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(), torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(usual)
