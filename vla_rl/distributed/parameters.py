"""Parameters that may be shards: which are trained, whole tensors, the norm of their gradients."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from vla_rl.errors import UserError


def clip_grad_norm(parameters: Iterable[nn.Parameter], largest: float) -> float:
    """Scale the gradients down to the norm `largest`, over all shards where they are sharded; their norm before."""
    norm = nn.utils.clip_grad_norm_(parameters, largest)
    return float(full_tensor(norm))


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, a collective; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name: adapters where there are any."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def check_trained(stored: Container[str], module: nn.Module) -> None:
    """Raise UserError where a checkpoint with tensors of the names `stored` lacks one that is trained: it would be left
    as it was before training."""
    trained = trainable_parameters(module)
    if missing := [name for name in trained if name not in stored]:
        raise UserError(
            f"the checkpoint lacks {len(missing)} of {len(trained)} trained tensors ({missing[0]}): resume from "
            "another one of the run, or start again in a new run_dir"
        )


def is_sharded(module: nn.Module) -> bool:
    return any(isinstance(m, FSDPModule) for m in module.modules())


def full_state(module: nn.Module, *, trained_only: bool = False) -> dict[str, Any]:
    """The state dict with tensors whole, on the host of rank 0 where they were sharded; a collective then."""
    if not is_sharded(module):
        return module.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
    state = cast(dict[str, Tensor], get_model_state_dict(module, options=options))
    return {name: _without_padding(value) for name, value in state.items()}


def _without_padding(tensor: Tensor) -> Tensor:
    """Gathered from uneven shards, a tensor is a part of a longer storage, which safetensors refuses: then a copy."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
