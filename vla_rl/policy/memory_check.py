"""Before anything is loaded: print what an update will take of the device's memory, and stop if it is not there."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from vla_rl.config.schema import Node
from vla_rl.errors import UserError
from vla_rl.machine import memory_bytes
from vla_rl.policy.flow.memory import plan_flow_memory
from vla_rl.policy.linear import slow_in_bfloat16
from vla_rl.policy.memory import MemoryPlan, plan_memory

POLICY, FLOW_POLICY = "vla_rl.load_policy", "vla_rl.load_flow_policy"
PRESETS = {24: "openvla_oft_7b_24gb", 48: "openvla_oft_7b_48gb", 80: "openvla_oft_7b_80gb"}  # GB of a GPU
WORTH_A_LINE = 10**9  # bytes


def _plan_here(options: dict[str, Any], **how: Any) -> MemoryPlan:
    """`plan_memory` as this machine computes."""
    return plan_memory(options, **how, in_float32=slow_in_bfloat16())


PLANS = {POLICY: _plan_here, FLOW_POLICY: plan_flow_memory}


def rows_that_fit(
    node: Node | None,
    *,
    rows: int | None,
    optimizer: str,
    device: torch.device,
    shards: int = 1,
    key: str = "grpo.micro_rows",
) -> int | None:
    """Rows per micro-batch: `rows`, or where it is None as many as the plan has room for.

    Args:
        node: the policy's; for a policy of one's own there is no plan.
        device: of this rank.
        shards: ranks that the weights are spread over.
        key: of `rows` in the config, for messages.

    Raises:
        UserError: the plan is larger than the device's memory, its options are inconsistent, or `rows` is None and
            there is no plan.
    """
    make = PLANS.get((node or {}).get("_target_", ""))
    if node is None or make is None:
        if rows is None:
            raise UserError(f"micro-batches are found automatically for policies of vla_rl only: {key}=12")
        return rows
    available = device_memory(device)
    plan = make(node, rows=rows, optimizer=optimizer, available=available, shards=shards)
    if plan.total >= WORTH_A_LINE + plan.reserve:
        rank_zero_only(print)(f"{plan} of {available / 1e9:.2f} on {device.type}", flush=True)
    if plan.total > available:
        raise UserError(f"{plan}, but {device.type} has {available / 1e9:.2f}: {advice(node, plan, available, key)}")
    return plan.rows


def device_memory(device: torch.device) -> int:
    """Bytes: of a GPU all its memory, of a CPU the machine's, or its container's limit."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory_bytes()


def advice(node: Node, plan: MemoryPlan, available: int, key: str) -> str:
    """The override that makes it fit."""
    room = (available - plan.fixed) // plan.per_row
    if room >= 1:
        return f"{key}={room}"
    if node["_target_"] == FLOW_POLICY:
        return "policy.train=expert policy.dtype=bfloat16 policy.gradient_checkpointing=true, or a smaller checkpoint"
    fitting = [name for size, name in PRESETS.items() if size * 1e9 <= available]
    if fitting:
        return f"policy={fitting[-1]}"
    return f"the smallest preset is for a GPU of 24 GB, policy={PRESETS[24]}; to try without one: conf=pcm_object_tiny"
