"""`FlowModel`: what the networks of a flow policy offer. A prefix is computed once per decision and kept as a cache;
the velocity of each denoising step reads it.

Shapes: see `vla_rl.policy.flow.policy`, and
    V, T  cameras, and tokens of the prompt
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vla_rl.policy.flow.config import FlowConfig
from vla_rl.policy.flow.layers import KeysValues, Layer, Sight


@dataclass(slots=True)
class Inputs:
    """What N decisions are made from.

    Attributes:
        pixels: of each camera, [N, 3, px, px] in [-1, 1].
        picture_mask_NV: False where there is no such camera; its pixels do not matter then.
        ids_NT, mask_NT: tokens of the prompt, and which are real.
        state_ND: normalised and padded; None for a model whose prompt has the state.
    """

    pixels: list[Tensor]
    picture_mask_NV: Tensor
    ids_NT: Tensor
    mask_NT: Tensor
    state_ND: Tensor | None


@dataclass(slots=True)
class Prefix:
    """What a decision's pictures, words and state have become.

    Attributes:
        cache: keys and values of each layer.
        mask_NS: True for real tokens, False for padding and missing cameras.
        hidden_NSD: behind the last layer and its norm.
    """

    cache: list[KeysValues]
    mask_NS: Tensor
    hidden_NSD: Tensor

    @property
    def tokens_N(self) -> Tensor:
        """Real tokens: the position of the first token behind the prefix."""
        return self.mask_NS.sum(1)


class FlowModel(nn.Module):
    """Pictures, words and state to a velocity.

    Attributes:
        gradient_checkpointing: layers are computed again in the backward pass, to save memory.
    """

    gradient_checkpointing = False

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config

    def prefix(self, inputs: Inputs) -> Prefix:
        """The prefix of N decisions."""
        raise NotImplementedError

    def cached(self, x_NSD: Tensor, mask_NS: Tensor, mask_NQS: Tensor) -> Prefix:
        """The language model's keys and values of its tokens.

        Args:
            mask_NS: real tokens. mask_NQS: True where a token may see another one; [N, 1, S] for all alike.
        """
        cache, sight = [], Sight.of(positions(mask_NS), mask_NQS, self.config.text, x_NSD.dtype)
        for layer in self.language.layers:
            x_NSD, own = self.run(layer, x_NSD, sight)
            cache.append(own)
        return Prefix(cache, mask_NS, self.language.norm(x_NSD, None)[0])

    def velocity(self, prefix: Prefix, x_NHW: Tensor, t_N: Tensor, state_ND: Tensor | None) -> tuple[Tensor, Tensor]:
        """v(x, t), float32 [N, H, W], and the hidden states that it is read from, [N, H, D of the expert]."""
        raise NotImplementedError

    def expert_parameters(self) -> Iterator[nn.Parameter]:
        """The action expert and its projections: what `policy.train=expert` trains."""
        raise NotImplementedError

    @property
    def language(self) -> Any:
        """The language model: `layers` and a final `norm`."""
        raise NotImplementedError

    @property
    def expert_layers(self) -> Iterable[nn.Module]:
        """The layers of the action expert."""
        raise NotImplementedError

    def idle_parameters(self) -> Iterator[nn.Parameter]:
        """What no velocity reads: of the language model's last layer all but what makes its keys and values, and the
        final norm. Their output is the policy's state for a critic."""
        last = self.language.layers[-1]
        attention = last.self_attn
        for module in (attention.q_proj, attention.o_proj, last.post_attention_layernorm, last.mlp, self.language.norm):
            yield from module.parameters()

    def unused_shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensors of the published layout that are never run: kept for export, and not built."""
        raise NotImplementedError

    def run(self, layer: Layer, *inputs: Any) -> tuple[Tensor, KeysValues]:
        """`layer(*inputs)`, checkpointed if asked for."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


def positions(mask_NS: Tensor) -> Tensor:
    """cumsum(mask) - 1: padding takes no position."""
    return mask_NS.long().cumsum(1) - 1


def in_float32(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)` in float32, whatever the layer's dtype."""
    bias = None if layer.bias is None else layer.bias.float()
    return nn.functional.linear(x.float(), layer.weight.float(), bias)
