"""Parameters that may be shards: which are trained, whole tensors, the norm of their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def check_trained(stored: Mapping[str, Tensor], module: nn.Module, path: object) -> None:
    """Raise UserError where the checkpoint at `path` lacks a tensor that is trained, or has it in another shape: it
    would be left as it was before training."""
    trained, fix = trainable_parameters(module), "resume from another one of the run, or start again in a new run_dir"
    if missing := [name for name in trained if name not in stored]:
        raise UserError(
            f"checkpoint {path} lacks {len(missing)} of {len(trained)} trained tensors ({missing[0]}): {fix}"
        )
    for name, parameter in trained.items():
        if not isinstance(stored[name], Tensor) or stored[name].shape != parameter.shape:
            raise UserError(f"checkpoint {path}: {name} is no tensor of shape {list(parameter.shape)}: {fix}")


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
