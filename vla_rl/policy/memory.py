"""What an update takes of a device's memory, worked out on the meta device before anything is loaded.

    weights + trainable + gradients + optimizer + rows x activations of a row + reserve

Weights and optimizer are counted exactly. Activations are what autograd keeps for the backward of one row, counted
tensor by tensor with torch's plain attention (fused kernels keep less), and a tenth more for what is alive in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vla_rl.errors import UserError
from vla_rl.policy.activations import SavedBytes
from vla_rl.policy.hub import resolve_checkpoint
from vla_rl.policy.linear import compute_in_float32
from vla_rl.policy.openvla_oft.action_head import L1Head
from vla_rl.policy.openvla_oft.checkpoint import DTYPES, read_config
from vla_rl.policy.openvla_oft.config import PUBLISHED_7B, OpenVLAConfig, parse_config
from vla_rl.policy.openvla_oft.load import RANDOM_7B, check_options
from vla_rl.policy.openvla_oft.model import OpenVLAOFT
from vla_rl.policy.openvla_oft.tiny import tiny_config
from vla_rl.policy.quantize import saved_bytes

TRANSIENT = 1.1
LONGEST_PROMPT = 40  # tokens, of LIBERO's instructions in Llama's tokenizer
MAX_ROWS = 64  # more than this is no faster
BYTES_PER_8BIT_MOMENT = 1 + 4 / 256  # with a float32 scale for 256 of them


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of everything an update keeps in memory."""

    weights: int  # frozen
    trainable: int
    gradients: int
    optimizer: int
    per_row: int  # activations
    rows: int  # per micro-batch
    reserve: int = 1_500_000_000  # CUDA's context, workspaces, fragmentation

    @property
    def fixed(self) -> int:
        return self.weights + self.trainable + self.gradients + self.optimizer + self.reserve

    @property
    def total(self) -> int:
        return self.fixed + self.rows * self.per_row

    def __str__(self) -> str:
        names = ("weights", "trainable", "gradients", "optimizer")
        parts = [f"{name} {getattr(self, name) / 1e9:.2f}" for name in names]
        parts += [f"{self.rows} rows of {self.per_row / 1e9:.3f}", f"reserve {self.reserve / 1e9:.2f}"]
        return f"memory plan in GB: {' + '.join(parts)} = {self.total / 1e9:.2f}"


def plan_memory(
    options: dict[str, Any],
    *,
    rows: int | None,
    optimizer: str,
    available: int,
    shards: int = 1,
    in_float32: bool = False,
) -> MemoryPlan:
    """The plan of one rank.

    Args:
        options: of `load_policy`.
        rows: per micro-batch; None for as many as fit into `available` bytes, at least 1.
        optimizer: "adamw" or "adamw8bit".
        shards: ranks that everything but activations is spread over, block by block (`vla_rl.distributed.strategies`).
        in_float32: whether the matrices are cast product by product (`vla_rl.policy.linear`).

    Raises:
        UserError: inconsistent options, or trainable weights that small steps would not move.
    """
    check_options(**{"checkpoint": None} | options)
    config, lora, kind = _config(options), options.get("lora"), options.get("quantization")
    check_steps_move(options.get("dtype", "float32"), lora)
    config = replace(config, chunk_steps=options.get("chunk_steps") or config.chunk_steps)
    dtype = DTYPES[options.get("dtype", "float32")]
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = OpenVLAOFT(config).to(dtype)
        if in_float32:
            compute_in_float32(model)
        saved = saved_bytes(model.language_model.model.layers, kind) if kind else 0
        if lora is not None:
            from vla_rl.policy.lora import add_lora  # here: peft takes seconds to import

            add_lora(model, **lora)
        trained = [p for p in model.parameters() if p.requires_grad]
        weights = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
        trainable = sum(p.numel() * p.element_size() for p in trained)
        for parameter in trained:  # adapters compute in the dtype of the base
            parameter.data = parameter.data.to(torch.float32 if in_float32 else dtype)
        per_row = _activations(model, checkpointing=options.get("gradient_checkpointing", False))
    if options.get("action_head") == "l1":
        with torch.device("meta"):
            head = L1Head(config.llama.width, config.action_dims)
            weights += sum(p.numel() * dtype.itemsize for p in head.parameters())
    return make_plan(
        frozen=weights - saved,
        trainable=trainable,
        trained_numbers=sum(p.numel() for p in trained),
        gathered=gathered_numbers(model) * dtype.itemsize,
        per_row=per_row,
        rows=rows,
        optimizer=optimizer,
        available=available,
        shards=shards,
    )


def make_plan(
    *,
    frozen: int,
    trainable: int,
    trained_numbers: int,
    gathered: int,
    per_row: int,
    rows: int | None,
    optimizer: str,
    available: int,
    shards: int,
) -> MemoryPlan:
    """The plan of what was counted.

    Args:
        frozen, trainable: bytes of the weights.
        gathered: bytes that are whole at a time where blocks are sharded.
        per_row: bytes that autograd keeps of a row.
        rows, optimizer, available, shards: see `plan_memory`.
    """
    # torch keeps moments in the dtype of the parameters
    moments = 2 * trainable if optimizer == "adamw" else int(2 * BYTES_PER_8BIT_MOMENT * trained_numbers)
    plan = MemoryPlan(
        weights=frozen // shards + (gathered if shards > 1 else 0),
        trainable=trainable // shards,
        gradients=trainable // shards,
        optimizer=moments // shards,
        per_row=int(per_row * TRANSIENT),
        rows=rows or 0,
    )
    if rows is None:
        return replace(plan, rows=min(MAX_ROWS, max(1, (available - plan.fixed) // plan.per_row)))
    return plan


def check_steps_move(dtype: str, lora: dict[str, Any] | None) -> None:
    """Raise UserError where all weights would be trained in bfloat16: it keeps 8 bits, so that a step below 1/256 of a
    weight is rounded away (at a learning rate of 1e-5 most are). Adapters are float32 whatever the dtype is."""
    if lora is None and dtype != "float32":
        raise UserError(
            f"training all weights in {dtype} would round most steps away: policy.dtype=float32, or train float32 "
            "adapters beside them, policy.lora={r: 32, alpha: 32}"
        )


def _config(options: dict[str, Any]) -> OpenVLAConfig:
    checkpoint = options.get("checkpoint")
    if checkpoint is None:
        return parse_config(tiny_config())
    if checkpoint == RANDOM_7B:
        return parse_config(PUBLISHED_7B)
    config, _ = read_config(resolve_checkpoint(checkpoint), l1_head=options.get("action_head") == "l1")
    return config


def gathered_numbers(model: nn.Module) -> int:
    """Parameters that are whole at a time where blocks are sharded: those around the blocks, a block and the next."""
    size = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    blocks = [size(block) for m in model.modules() if isinstance(m, nn.ModuleList) for block in m]
    return size(model) - sum(blocks) + 2 * max(blocks)


def _activations(model: OpenVLAOFT, *, checkpointing: bool) -> int:
    """Bytes that autograd keeps for the backward of one row.

    With checkpointing: each Llama layer's input, and one layer at a time in full.
    """
    config, layers = model.config, model.language_model.model.layers
    image_px, width = config.towers[0].image_px, config.llama.width
    prompt = torch.zeros(1, config.prompt_tokens or LONGEST_PROMPT, dtype=torch.int64)
    weight = model.projector.fc1.bias
    pixels = torch.zeros(1, 6 * config.images, image_px, image_px, dtype=weight.dtype)
    proprio = torch.zeros(1, config.proprio_dims, dtype=weight.dtype) if config.proprio_dims else None
    meter = SavedBytes(model.parameters())
    with meter.parts(layers), meter.hooks():
        model(prompt, torch.ones_like(prompt, dtype=torch.bool), pixels, proprio).sum()
    outside, inside = meter.of_part[None], [meter.of_part[layer] for layer in layers]
    if not checkpointing:
        return outside + sum(inside)
    sequence = config.images * config.towers[0].patches + 58 + bool(config.proprio_dims) + prompt.shape[1]
    return outside + len(layers) * sequence * width * weight.element_size() + max(inside)
