"""`load_policy`: the policy a config asks for, from a checkpoint or from random weights, with or without adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.policy.checkpoint import DTYPES, load_pretrained
from vla_rl.policy.policy import OpenVLAOFTPolicy
from vla_rl.policy.tiny import random_policy, random_policy_7b

RANDOM_7B = "random:7b"


def load_policy(
    checkpoint: str | None,
    *,
    lora: dict[str, Any] | None = None,
    adapter: str | None = None,
    dtype: str = "float32",
    unnorm_key: str | None = None,
    gradient_checkpointing: bool = False,
) -> OpenVLAOFTPolicy:
    """A policy to train or to run, on the CPU (`random:7b`: on the GPU where there is one).

    Args:
        checkpoint: see `load_pretrained`; None for a new small policy with random weights, which needs demonstrations
            before it can act; `random:7b` for random weights of the published sizes, to measure with.
        lora: None trains all weights; `{"r": 32, "alpha": 32}` freezes them and trains adapters (also: `targets`).
        adapter: folder of trained adapters in PEFT's format, to go on from; needs `lora`.
        dtype, unnorm_key: see `load_pretrained`.
        gradient_checkpointing: recompute Llama's layers in the backward pass, to save memory.

    Raises:
        ValueError: options that do not fit each other or the checkpoint; what is wrong and how to fix it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}: policy.dtype=bfloat16")
    if adapter is not None and lora is None:
        raise ValueError("an adapter needs the LoRA settings it was made with: policy.lora={r: 32, alpha: 32}")
    if lora is not None:
        from vla_rl.policy.lora import add_lora, check_lora, load_adapter  # here: peft takes seconds to import

        check_lora(lora)
    if checkpoint is None:
        policy = random_policy().to(DTYPES[dtype])
    elif checkpoint == RANDOM_7B:
        policy = random_policy_7b(DTYPES[dtype])
    else:
        policy = load_pretrained(checkpoint, dtype=dtype, unnorm_key=unnorm_key)
    if lora is not None:
        add_lora(policy.model, **lora)
        if adapter is not None:
            load_adapter(policy.model, Path(adapter))
    policy.model.language_model.model.gradient_checkpointing = gradient_checkpointing
    return policy
