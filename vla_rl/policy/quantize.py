"""A language model's frozen weights in 4 or 8 bits, through bitsandbytes.

Only the projections inside its layers are quantised, 86% of the 7B's weights; towers, projector, embeddings, output
head and action expert stay as they are. A weight on a GPU is quantised at once, one on the CPU when it is moved to a
GPU.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import nn

from vla_rl.checks import check_choice
from vla_rl.errors import UserError

# Bytes per weight, scales included. NF4 (QLoRA, arXiv 2305.14314, section 3): a scale per 64 weights, itself in 8 bits
# with one float32 per 256. int8 (arXiv 2208.07339): a float32 per row, counted as for Llama's 4096 columns.
BYTES_PER_WEIGHT = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1 + 4 / 4096}


def check_quantization(kind: str) -> None:
    """Raise UserError unless `kind` is known and its library works here."""
    check_choice("policy.quantization", kind, BYTES_PER_WEIGHT)
    bnb = _bitsandbytes(kind)
    if torch.cuda.is_available() and not getattr(bnb.cextension.lib, "compiled_with_cuda", False):
        raise UserError(
            f"policy.quantization={kind} needs a bitsandbytes with CUDA {torch.version.cuda}, "
            f"{bnb.__version__} has none: pip install -U bitsandbytes, or policy.quantization=null"
        )


def quantize(layers: Iterable[Any], kind: str) -> None:
    """Replace the linear layers of a language model's layers, in place; they are frozen from then on.

    Args:
        layers: each with `self_attn` and `mlp`.
        kind: "nf4" or "int8".
    """
    convert = {"nf4": _nf4, "int8": _int8}[kind]
    bnb = _bitsandbytes(kind)
    for layer in layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                setattr(parent, name, _placed(convert, bnb, child))


def saved_bytes(layers: nn.Module, kind: str) -> int:
    """What `quantize` takes from the memory of these layers."""
    weights = [module.weight for module in layers.modules() if isinstance(module, nn.Linear)]
    return int(sum(weight.numel() * (weight.element_size() - BYTES_PER_WEIGHT[kind]) for weight in weights))


def _placed(convert: Callable[[ModuleType, nn.Linear], nn.Linear], bnb: ModuleType, linear: nn.Linear) -> nn.Linear:
    device = linear.weight.device
    with torch.device("meta"):
        quantised = convert(bnb, linear)
    # `to` is what quantises; a weight that is going to a GPU waits for that move, which is thousands of times faster
    return quantised if device.type == "cpu" and torch.cuda.is_available() else quantised.to(device)


def _nf4(bnb: ModuleType, linear: nn.Linear) -> nn.Linear:
    made = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=linear.weight.dtype, quant_type="nf4"
    )
    made.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=made)
    # in eval mode some CPUs would repack the weight for good, in a form without gradients and for rows of whole blocks
    made.support_avx512bf16_for_cpu = False
    return made


def _int8(bnb: ModuleType, linear: nn.Linear) -> nn.Linear:
    # it computes in float16 whatever it is given, and says so at every layer
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    made = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False)
    made.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    return made


def _bitsandbytes(kind: str) -> ModuleType:
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as e:
        raise UserError(
            f"policy.quantization={kind} needs bitsandbytes ({e}): pip install bitsandbytes, "
            "or policy.quantization=null"
        ) from e
