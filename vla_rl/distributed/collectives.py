"""Sums over ranks, and random generators that do not depend on rank, order or resume."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

T = TypeVar("T")


def all_reduce_sum(tensor: Tensor, trainer: Trainer) -> Tensor:
    """The sum of `tensor` over all ranks, on its own device; `tensor` itself is left as it is."""
    if trainer.world_size == 1:
        return tensor
    strategy = trainer.strategy
    # copied: the collective writes in place. Moved: NCCL takes tensors on the GPU only.
    return strategy.reduce(tensor.clone().to(strategy.root_device), reduce_op="sum").to(tensor.device)


def all_reduce_max(number: int, trainer: Trainer) -> int:
    """The largest `number` of any rank; a collective."""
    largest = torch.tensor(number, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


def gather_lists(items: list[T], trainer: Trainer) -> list[T]:
    """The items of all ranks, one rank after the other; a collective."""
    if trainer.world_size == 1:
        return items
    lists: list[list[T]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(lists, items)
    return [item for rank in lists for item in rank]
