"""What an update of a flow policy takes of a device's memory (`vla_rl.policy.memory`), before its weights are read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from vla_rl.policy.activations import SavedBytes
from vla_rl.policy.flow.load import DTYPES, add_adapters, build_policy, check_options, trained_part
from vla_rl.policy.flow.model import FlowModel
from vla_rl.policy.flow.one_row import on_meta, one_row
from vla_rl.policy.flow.policy import FlowPolicy
from vla_rl.policy.memory import MemoryPlan, gathered_numbers, make_plan
from vla_rl.policy.quantize import saved_bytes


def plan_flow_memory(
    options: dict[str, Any], *, rows: int | None, optimizer: str, available: int, shards: int = 1
) -> MemoryPlan:
    """The plan of one rank, as `plan_memory`'s.

    Args:
        options: of `load_flow_policy`.

    Raises:
        UserError: options that do not fit each other or the checkpoint.
    """
    check_options(**options)
    dtype, lora = DTYPES[options.get("dtype", "float32")], options.get("lora")
    policy = build_policy(**{"checkpoint": None} | options, weights=False)
    policy.model = on_meta(policy.model)
    kind = options.get("quantization")
    saved = saved_bytes(policy.model.language.layers.to(dtype), kind) if kind else 0
    if lora is None:
        trained_part(policy, options.get("train", "expert"), dtype)
    else:
        with torch.device("meta"):
            add_adapters(policy, lora, dtype)
    trained = [p for p in policy.parameters() if p.requires_grad]
    return make_plan(
        frozen=sum(p.numel() * p.element_size() for p in policy.parameters() if not p.requires_grad) - saved,
        trainable=sum(p.numel() * p.element_size() for p in trained),
        trained_numbers=sum(p.numel() for p in trained),
        gathered=gathered_numbers(policy) * torch.float32.itemsize,  # at most
        per_row=_activations(policy, checkpointing=options.get("gradient_checkpointing", False)),
        rows=rows,
        optimizer=optimizer,
        available=available,
        shards=shards,
    )


def _activations(policy: FlowPolicy, *, checkpointing: bool) -> int:
    """Bytes that autograd keeps for the backward of one row.

    With checkpointing: the input of each layer that learns, or that a gradient passes, and one such layer in full.
    """
    model = policy.model
    meter, layers = SavedBytes(model.parameters()), _checkpointed(model)
    inputs: Counter[nn.Module] = Counter()
    runs: Counter[nn.Module] = Counter()

    def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
        tokens: Tensor = given[0]
        inputs[layer] += tokens.numel() * tokens.element_size()
        runs[layer] += 1

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    with meter.parts(layers), meter.hooks():
        one_row(model, policy).sum()
    for hook in hooks:
        hook.remove()
    kept = [layer for layer in layers if meter.of_part[layer]]
    if not checkpointing or not kept:
        return meter.of_part[None] + sum(meter.of_part[layer] for layer in layers)
    whole = max(meter.of_part[layer] // runs[layer] for layer in kept)
    return meter.of_part[None] + sum(inputs[layer] for layer in kept) + whole


def _checkpointed(model: FlowModel) -> list[nn.Module]:
    """The layers that `FlowModel.run` computes again: those of the language model and of the expert."""
    return [*model.language.layers, *model.expert_layers]
