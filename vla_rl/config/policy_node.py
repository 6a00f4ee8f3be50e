"""A checkpoint in the place of the one that a conf's policy has."""

from __future__ import annotations

from pathlib import Path

from vla_rl.config.schema import Node


def policy_node(node: Node, checkpoint: str | None) -> Node:
    """The policy's node with `checkpoint` in it; a folder of adapters goes on top of the node's own. None: as it is."""
    return node if checkpoint is None else node | {policy_option(checkpoint): checkpoint}


def policy_option(checkpoint: str) -> str:
    """Which option of the policy it is: `adapter` of a folder of adapters, else `checkpoint`."""
    return "adapter" if (Path(checkpoint) / "adapter_config.json").is_file() else "checkpoint"
