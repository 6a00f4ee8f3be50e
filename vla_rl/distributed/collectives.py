"""Sums over ranks, and random generators that do not depend on rank, order or resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

T = TypeVar("T")


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


def clip_grad_norm(parameters: Iterable[nn.Parameter], largest: float) -> float:
    """Scale the gradients down to the norm `largest`, over all shards where they are sharded; their norm before."""
    norm = nn.utils.clip_grad_norm_(parameters, largest)
    return float(whole(norm))


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, a collective; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
