"""One row at a time on a CPU, so that what a policy does does not depend on who else was waiting for it.

CPU matrix products round differently for different batch sizes and thread counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from vla_rl.distributed.threads import one_thread
from vla_rl.types import Observation


def single_threaded(device: torch.device) -> AbstractContextManager[None]:
    """Use one thread on a CPU: a row is too small to split, and a second thread would take a simulator's core."""
    return one_thread() if device.type == "cpu" else nullcontext()


def row_by_row(
    answer: Callable[[Observation], tuple[Tensor, ...]], observation: Observation, device: torch.device
) -> tuple[Tensor, ...]:
    """`answer(observation)`; on a CPU by one forward per row."""
    if device.type != "cpu":
        return answer(observation)
    return tuple(torch.cat(parts) for parts in zip(*map(answer, rows_of(observation)), strict=True))


def rows_of(observation: Observation) -> Iterator[Observation]:
    """Each row of an observation as one of its own."""
    for n, instruction in enumerate(observation.instruction_N):
        # cloned: products also round differently for differently aligned memory
        frame_NHWC, proprio_NP = (x[n : n + 1].clone() for x in (observation.frame_NHWC, observation.proprio_NP))
        yield Observation(frame_NHWC, proprio_NP, [instruction])
