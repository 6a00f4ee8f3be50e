"""Linear layers that compute in the dtype of their input, whatever their weights are kept in.

A CPU without bfloat16 instructions takes 3 times as long for a product in bfloat16 as in float32, and 100 times as long
for its gradient. There `compute_in_float32` leaves a policy's matrices in bfloat16, for the memory's sake, and each
product casts its own matrix, forward and backward. No float32 copy is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b as `F.linear`; where the dtypes differ and autocast is off, in the dtype of x."""
    autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    if x.dtype == weight.dtype or autocast:
        return F.linear(x, weight, bias)
    product = _CastProduct.apply(x, weight)
    return product if bias is None else product + bias


class _CastProduct(torch.autograd.Function):
    """x W^T with the matrix cast to the dtype of x. Autograd keeps the matrix; `F.linear` would keep the cast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return F.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x = gradient @ weight.to(gradient.dtype) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (gradient.flatten(0, -2).mT @ x.flatten(0, -2)).to(weight.dtype)
        return of_x, of_weight


def slow_in_bfloat16() -> bool:
    """Whether policies compute on a CPU here, and one on which oneDNN has no products in bfloat16."""
    return not torch.cuda.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def compute_in_float32(module: nn.Module) -> None:
    """Keep the matrices of `module` in their dtype and everything else (biases, norms, scales) in float32, in place.

    Inputs are float32 then, and so is what is computed from them.
    """
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.data = parameter.data.float()
