"""`load_policy`: the policy a config asks for, from a checkpoint or from random weights, with or without adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.checks import check_choice, check_count
from vla_rl.errors import UserError
from vla_rl.machine import return_freed_memory
from vla_rl.policy.adapter import check_lora_of_adapter
from vla_rl.policy.cache import VisionCache
from vla_rl.policy.linear import compute_in_float32, slow_in_bfloat16
from vla_rl.policy.openvla_oft.checkpoint import ACTION_HEADS, DTYPES, load_pretrained
from vla_rl.policy.openvla_oft.l1_policy import L1Policy
from vla_rl.policy.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policy.openvla_oft.processor import PIPELINES
from vla_rl.policy.openvla_oft.tiny import random_policy, random_policy_7b
from vla_rl.policy.quantize import check_quantization, quantize

RANDOM_7B = "random:7b"
L1_LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LLAMA_TARGETS = (*L1_LLAMA_TARGETS, "lm_head")  # which an L1 head does not read


def load_policy(
    checkpoint: str | None,
    *,
    lora: dict[str, Any] | None = None,
    adapter: str | None = None,
    dtype: str = "float32",
    unnorm_key: str | None = None,
    gradient_checkpointing: bool = False,
    quantization: str | None = None,
    vision_cache_rows: int = 0,
    image_pipeline: str = "fast",
    action_head: str = "tokens",
    chunk_steps: int | None = None,
) -> OpenVLAOFTPolicy:
    """A policy to train or to run, on the CPU (`random:7b`: on the GPU where there is one).

    Args:
        checkpoint: see `load_pretrained`; None for a new small policy with random weights, which needs demonstrations
            before it can act; `random:7b` for random weights of the published sizes, to measure with.
        lora: None trains all weights; `{"r": 32, "alpha": 32}` freezes them and trains adapters (also: `targets`).
        adapter: folder of trained adapters in PEFT's format, to go on from; needs the `lora` they were made with.
        dtype, unnorm_key: see `load_pretrained`.
        gradient_checkpointing: recompute Llama's layers in the backward pass, to save memory.
        quantization: "nf4" (4 bits) or "int8" for Llama's frozen weights; needs `lora`.
        vision_cache_rows: frames whose vision features are kept from the rollout for the update; needs adapters that
            leave the towers alone. 0: none.
        image_pipeline: "fast", or "oft" for the published path with its JPEG round trip (`PublishedPixels`).
        action_head: see `load_pretrained`. With `lora`, an L1 head stays as it is and its Laplace scale learns.
        chunk_steps: control steps of a chunk, for supervised training of another length than the checkpoint's; None:
            the checkpoint's.

    Raises:
        UserError: options that do not fit each other or the checkpoint; what is wrong and how to fix it.
    """
    check_options(
        checkpoint,
        lora=lora,
        adapter=adapter,
        dtype=dtype,
        unnorm_key=unnorm_key,
        quantization=quantization,
        vision_cache_rows=vision_cache_rows,
        image_pipeline=image_pipeline,
        action_head=action_head,
        chunk_steps=chunk_steps,
    )
    if checkpoint is None:
        policy = random_policy().to(DTYPES[dtype])
    elif checkpoint == RANDOM_7B:
        policy = random_policy_7b(DTYPES[dtype])
    else:
        policy = load_pretrained(checkpoint, dtype=dtype, unnorm_key=unnorm_key, action_head=action_head)
    if slow_in_bfloat16():
        compute_in_float32(policy)
        if dtype == "bfloat16":
            return_freed_memory()  # it was asked for to save memory
    if chunk_steps is not None:
        policy.set_chunk_size(chunk_steps)
    if quantization is not None:
        quantize(policy.model.language_model.model.layers, quantization)
    if lora is not None:
        from vla_rl.policy.lora import L1_TARGETS, add_lora, load_adapter  # here: peft takes seconds to import

        if isinstance(policy, L1Policy):
            policy.freeze_head()
            lora = {"targets": L1_TARGETS} | lora
        add_lora(policy.model, **lora)
        if adapter is not None:
            folder = Path(adapter).expanduser()
            load_adapter(policy.model, folder)
            if isinstance(policy, L1Policy):
                policy.load_scale(folder)
    policy.pixels = PIPELINES[image_pipeline](policy.files.preprocessor, policy.model.config.towers[0].image_px)
    policy.model.language_model.model.gradient_checkpointing = gradient_checkpointing
    if vision_cache_rows:
        if any(p.requires_grad for p in policy.model.vision_backbone.parameters()):
            targets = L1_LLAMA_TARGETS if action_head == "l1" else LLAMA_TARGETS
            raise UserError(
                "features of towers that are trained cannot be kept: policy.vision_cache_rows=0, or adapters on Llama "
                f"alone, policy.lora.targets=[{','.join(targets)}]"
            )
        policy.vision_cache = VisionCache(vision_cache_rows)
    return policy


def check_options(
    checkpoint: str | None,
    *,
    lora: dict[str, Any] | None = None,
    adapter: str | None = None,
    dtype: str = "float32",
    unnorm_key: str | None = None,
    quantization: str | None = None,
    vision_cache_rows: int = 0,
    image_pipeline: str = "fast",
    action_head: str = "tokens",
    chunk_steps: int | None = None,
    **_others: Any,
) -> None:
    """Validate the options of `load_policy` without reading files.

    Raises:
        UserError: an option of a wrong type or value, or options that are inconsistent.
    """
    if checkpoint is not None and not isinstance(checkpoint, str):
        raise UserError(f"policy.checkpoint must be a folder or a hub name, got {checkpoint!r}")
    if adapter is not None and not isinstance(adapter, str):
        raise UserError(f"policy.adapter must be a folder, got {adapter!r}: policy.adapter=null for fresh adapters")
    if unnorm_key is not None and not isinstance(unnorm_key, str):
        raise UserError(f"policy.unnorm_key must be the name of a dataset, got {unnorm_key!r}: policy.unnorm_key=null")
    check_choice("policy.dtype", dtype, DTYPES)
    check_choice("policy.image_pipeline", image_pipeline, PIPELINES)
    check_choice("policy.action_head", action_head, ACTION_HEADS)
    if action_head == "l1" and checkpoint in (None, RANDOM_7B):
        raise UserError(
            "random weights have action tokens, and policy.action_head=l1 asks for an L1 head: "
            "policy.action_head=tokens, or policy.checkpoint=FOLDER"
        )
    if chunk_steps is not None:
        check_count("policy.chunk_steps", chunk_steps, 8)
    check_count("policy.vision_cache_rows", vision_cache_rows, 0, least=0)
    if lora is not None:
        from vla_rl.policy.lora import check_lora  # here: peft takes seconds to import

        check_lora(lora)
        read = [target for target in lora.get("targets", ()) if target.rpartition(".")[2] != "lm_head"]
        if action_head == "l1" and len(read) < len(lora.get("targets", ())):
            raise UserError(
                "an L1 head does not read the output head, so that an adapter on lm_head would learn nothing: "
                f"policy.lora.targets=[{','.join(read or L1_LLAMA_TARGETS)}]"
            )
    check_lora_of_adapter(adapter, lora)
    if quantization is not None:
        check_quantization(quantization)
        if lora is None:
            raise UserError("quantised weights are frozen, something else has to learn: policy.lora={r: 32, alpha: 32}")
