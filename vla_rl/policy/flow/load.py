"""`load_flow_policy`: the flow policy a config asks for, from a checkpoint or from random weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vla_rl.checks import check_choice, check_count, check_number
from vla_rl.errors import UserError
from vla_rl.policy import entries
from vla_rl.policy.adapter import check_lora_of_adapter
from vla_rl.policy.flow import learnt_noise
from vla_rl.policy.flow.checkpoint import build_model, check_weights, read_files, read_weights
from vla_rl.policy.flow.described import make_processors
from vla_rl.policy.flow.full_size import CONFIGS, full_size_files, random_model
from vla_rl.policy.flow.learnt_noise import LearntNoisePolicy
from vla_rl.policy.flow.model import FlowModel
from vla_rl.policy.flow.policy import FlowPolicy, Noise
from vla_rl.policy.flow.tiny import CHUNK_STEPS, random_policy
from vla_rl.policy.hub import resolve_checkpoint
from vla_rl.policy.openvla_oft.checkpoint import DTYPES
from vla_rl.policy.quantize import check_quantization, quantize

TRAINED = ("expert", "all")
NOISE: dict[str, type[FlowPolicy]] = {"sde": FlowPolicy, "learnt": LearntNoisePolicy}
NOISY_STEPS = ("one", "all")
LEVEL = 0.5  # of the noise, where it is a schedule
# Named layers of the language model and of the expert; those of the vision tower have the same names.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STEPS_ENTRIES = ("num_inference_steps", "num_steps")  # of config.json: pi0 and pi0.5, SmolVLA


def load_flow_policy(
    checkpoint: str | None,
    *,
    train: str = "expert",
    lora: dict[str, Any] | None = None,
    adapter: str | None = None,
    dtype: str = "float32",
    noise: str = "sde",
    noise_level: float | None = None,
    noisy_steps: str = "one",
    denoising_steps: int | None = None,
    chunk_steps: int | None = None,
    cameras: Sequence[str] | None = None,
    state_numbers: int | None = None,
    gradient_checkpointing: bool = False,
    quantization: str | None = None,
) -> FlowPolicy:
    """pi0, pi0.5 or SmolVLA to train or to run, on the CPU (`random:...`: on the GPU where there is one).

    Remote code is never executed.

    Args:
        checkpoint: a folder as lerobot or openpi's torch port writes it, `shipped:NAME`, or the name of a repository on
            the Hugging Face hub; None for a new small policy with random weights, which needs demonstrations before it
            can act; `random:pi0`, `random:pi05` or `random:smolvla` for random weights of the published sizes, to
            measure with.
        train: "expert" trains the action expert and its projections, and leaves the vision-language model as it is;
            "all" trains everything.
        lora: `{"r": 32, "alpha": 32}` trains adapters in place of weights (also: `targets`).
        adapter: folder of trained adapters to go on from; needs the `lora` they were made with.
        dtype: of the frozen vision-language model; what is trained is float32.
        noise: "sde", which follows a schedule (Flow-SDE), or "learnt" (Flow-Noise).
        noise_level: of noisy denoising steps, at temperature 1; below .2 training is reported to collapse. None: .5, or
            where the noise is learnt, what is learnt.
        noisy_steps: "one" of each decision, drawn for it, or "all": an update has a forward of the expert for each.
        denoising_steps: K; None: the checkpoint's.
        chunk_steps: control steps of a decision, the first of the model's chunk; None: all. Of a new policy with random
            weights they are the model's chunk.
        cameras: which of the checkpoint's cameras the simulator's pictures are: the agent's view, then the wrist's. The
            others count as missing. None: those that the checkpoint declares, at most two, in its order.
        state_numbers: how many numbers of the state are written into pi0.5's prompt; None: the real ones, 0: no state.
            Checkpoints of lerobot up to 0.4.4 want 32; openpi's have to be told.
        gradient_checkpointing: recompute the layers in the backward pass, to save memory.
        quantization: "nf4" (4 bits) or "int8" for the language model's frozen weights; needs `lora`.

    Raises:
        UserError: options that do not fit each other or the checkpoint; what is wrong and how to fix it.

    Example:
        >>> policy = load_flow_policy("lerobot/pi05_libero_finetuned", dtype="bfloat16", chunk_steps=5)
    """
    options: dict[str, Any] = dict(
        dtype=dtype,
        noise=noise,
        noise_level=noise_level,
        noisy_steps=noisy_steps,
        denoising_steps=denoising_steps,
        chunk_steps=chunk_steps,
        cameras=cameras,
        state_numbers=state_numbers,
    )
    check_options(train=train, lora=lora, adapter=adapter, quantization=quantization, **options)
    policy = build_policy(checkpoint, **options)
    policy.model.gradient_checkpointing = gradient_checkpointing
    if lora is None:
        return trained_part(policy, train, DTYPES[dtype])
    add_adapters(policy, lora, DTYPES[dtype], quantization)
    if adapter is not None:
        from vla_rl.policy.lora import load_adapter  # here: peft takes seconds to import

        load_adapter(policy.model, Path(adapter).expanduser())
        _load_noise(policy, Path(adapter).expanduser())
    return policy


def check_options(
    *,
    train: str = "expert",
    lora: dict[str, Any] | None = None,
    adapter: str | None = None,
    dtype: str = "float32",
    noise: str = "sde",
    noise_level: float | None = None,
    noisy_steps: str = "one",
    denoising_steps: int | None = None,
    chunk_steps: int | None = None,
    cameras: Sequence[str] | None = None,
    state_numbers: int | None = None,
    quantization: str | None = None,
    **_others: Any,
) -> None:
    """Validate the options of `load_flow_policy` without reading files.

    Raises:
        UserError: an option of a wrong type or value, or options that are inconsistent.
    """
    check_choice("policy.train", train, TRAINED)
    check_choice("policy.dtype", dtype, DTYPES)
    check_choice("policy.noisy_steps", noisy_steps, NOISY_STEPS)
    check_choice("policy.noise", noise, NOISE)
    if noise_level is not None:
        check_number("policy.noise_level", noise_level, LEVEL, above=0)
        if noise == "learnt":
            raise UserError(
                f"policy.noise=learnt learns the level too, so that policy.noise_level={noise_level} would do nothing: "
                "policy.noise_level=null, or policy.noise=sde"
            )
    for key, count, example, least in (
        ("denoising_steps", denoising_steps, 4, 1),
        ("chunk_steps", chunk_steps, 8, 1),
        ("state_numbers", state_numbers, 32, 0),
    ):
        if count is not None:
            check_count(f"policy.{key}", count, example, least=least)
    check_lora_of_adapter(adapter, lora)
    if lora is not None:
        from vla_rl.policy.lora import check_lora  # here: peft takes seconds to import

        check_lora(lora)
    if quantization is not None:
        check_quantization(quantization)
        if lora is None:
            raise UserError(
                f"policy.quantization={quantization}: quantised weights are frozen and not saved, so adapters have "
                "to learn, policy.lora={r: 32, alpha: 32}"
            )
    if dtype != "float32" and lora is None and train == "all":
        raise UserError(
            f"training all weights in {dtype} would round most steps away: policy.dtype=float32, or policy.train=expert"
        )
    listed = isinstance(cameras, list | tuple) and cameras and all(isinstance(name, str) for name in cameras)
    if cameras is not None and not listed:
        raise UserError(f"policy.cameras must be a list of names, got {cameras!r} (policy.cameras=[image,image2])")


def add_adapters(policy: FlowPolicy, lora: dict[str, Any], dtype: torch.dtype, quantization: str | None = None) -> None:
    """Freeze the model in `dtype`, its language model in fewer bits where asked, and put float32 adapters on the named
    layers, in place."""
    from vla_rl.policy.lora import add_lora  # here: peft takes seconds to import

    policy.model.to(dtype)
    if quantization is not None:
        quantize(policy.model.language.layers, quantization)
    add_lora(policy.model, **{"targets": LORA_TARGETS} | lora, autocast=False)
    freeze_idle(policy.model)


def trained_part(policy: FlowPolicy, train: str, dtype: torch.dtype) -> FlowPolicy:
    """Freeze what is not trained, in `dtype`; what is trained is float32. In place."""
    expert = {id(parameter) for parameter in policy.model.expert_parameters()}
    for parameter in policy.model.parameters():
        trained = train == "all" or id(parameter) in expert
        parameter.requires_grad_(trained)
        parameter.data = parameter.data.to(torch.float32 if trained else dtype)
    freeze_idle(policy.model)
    return policy


def freeze_idle(model: FlowModel) -> None:
    """What no velocity reads would get no gradient, for which ranks that exchange gradients would wait."""
    for parameter in model.idle_parameters():
        parameter.requires_grad_(False)


def build_policy(
    checkpoint: str | None,
    *,
    dtype: str = "float32",
    noise: str = "sde",
    noise_level: float | None = None,
    noisy_steps: str = "one",
    denoising_steps: int | None = None,
    chunk_steps: int | None = None,
    cameras: Sequence[str] | None = None,
    state_numbers: int | None = None,
    weights: bool = True,
    **_others: Any,
) -> FlowPolicy:
    """The policy of `load_flow_policy` before it is said what is trained.

    Args:
        weights: read or draw them; else those of a checkpoint stay on the meta device.
    """
    level = 1.0 if noise == "learnt" else noise_level or LEVEL
    kind, sampled = NOISE[noise], partial(Noise, level, joint=noisy_steps == "all")
    if checkpoint is None:
        return random_policy(sampled(denoising_steps or 4), chunk_steps=chunk_steps or CHUNK_STEPS, kind=kind)
    folder = None if checkpoint in CONFIGS else resolve_checkpoint(checkpoint)
    config, files = read_files(folder, state_numbers) if folder else full_size_files(checkpoint)
    if chunk_steps is not None and chunk_steps > config.chunk_steps:
        raise UserError(
            f"the checkpoint predicts {config.chunk_steps} control steps, policy.chunk_steps={chunk_steps} asks for "
            f"more: policy.chunk_steps={config.chunk_steps}"
        )
    stored = (entries.check_count(files.config[e], f"config.json: {e}") for e in STEPS_ENTRIES if e in files.config)
    steps = denoising_steps or next(stored, 10)
    processors = make_processors(config, files, cameras=cameras, state_numbers=state_numbers)
    if weights and folder is None:
        model = random_model(config, DTYPES[dtype])
    else:
        with torch.device("meta"):
            model = build_model(config)
        if weights and folder:
            read_weights(folder, model, files, DTYPES[dtype])
    policy = kind(model, processors, files, sampled(steps), chunk_steps)
    if folder:
        _load_noise(policy, folder)
    return policy


def _load_noise(policy: FlowPolicy, folder: Path) -> None:
    """What a policy learnt of noise, which one whose noise is a schedule leaves in its folder, with a line."""
    if isinstance(policy, LearntNoisePolicy):
        policy.load_noise(folder)
    elif (folder / learnt_noise.FILE).exists():
        warnings.warn(
            f"{folder} has learnt noise ({learnt_noise.FILE}), which policy.noise=sde leaves out, so that sampled "
            "decisions are others than in its training: policy.noise=learnt policy.noise_level=null",
            stacklevel=2,
        )


def inspect_flow_checkpoint(options: dict[str, Any]) -> tuple[str, list[str]]:
    """Raise what `load_flow_policy` would raise about the files of a checkpoint.

    Returns:
        What it is, and which features lack statistics.

    Raises:
        UserError: see `load_flow_policy`.
    """
    check_options(**options)
    policy = build_policy(**options, weights=False)
    tensors = check_weights(resolve_checkpoint(options["checkpoint"]), policy.model, policy.files)
    processors = policy.processors
    needed = {"action": processors.action, "observation.state": processors.state if processors.proprio_dims else None}
    without = [feature for feature, normaliser in needed.items() if normaliser and not normaliser.complete]
    cameras, steps = ", ".join(processors.cameras), policy.model.config.chunk_steps
    facts = f"{processors.kind}, chunks of {steps} steps, cameras {cameras}; {tensors} tensors fit, tokenizer read"
    return facts, without
