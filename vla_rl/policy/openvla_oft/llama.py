"""A bidirectional Llama-2 in plain torch, with the parameter names of the published layout.

Attention never has a causal mask: every row sees every key that is not padding. The last layer and the output head
compute only the rows that are read (`tail` rows at the end of the sequence), and only the logits of action tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vla_rl.policy.linear import Linear, linear
from vla_rl.policy.openvla_oft.config import LlamaConfig
from vla_rl.policy.rotary import rope_tables, rotate


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 whatever the dtype of x."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x_BSD.float(), self.weight.shape, eps=self.eps).to(x_BSD.dtype)


class RowsLinear(Linear):
    """A linear layer of which only the outputs `start..stop` are computed: the action rows of the output head."""

    def __init__(self, in_features: int, out_features: int, start: int, stop: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight[self.start : self.stop])


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.q_proj = Linear(width, width, bias=False)
        self.k_proj = Linear(width, width, bias=False)
        self.v_proj = Linear(width, width, bias=False)
        self.o_proj = Linear(width, width, bias=False)

    def forward(self, x_BSD: Tensor, cos: Tensor, sin: Tensor, key_mask: Tensor | None, tail: int) -> Tensor:
        b, s, d = x_BSD.shape
        q, k, v = (
            p(x).view(b, -1, self.heads, d // self.heads).transpose(1, 2)
            for p, x in ((self.q_proj, x_BSD[:, s - tail :]), (self.k_proj, x_BSD), (self.v_proj, x_BSD))
        )
        q, k = rotate(q, cos[:, :, s - tail :], sin[:, :, s - tail :]), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask, is_causal=False)
        return self.o_proj(mixed.transpose(1, 2).reshape(b, tail, d))


class Mlp(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.width, config.mlp_dim, bias=False)
        self.up_proj = Linear(config.width, config.mlp_dim, bias=False)
        self.down_proj = Linear(config.mlp_dim, config.width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = Mlp(config)
        self.input_layernorm = RMSNorm(config.width, config.rms_eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.rms_eps)

    def forward(self, x_BSD: Tensor, cos: Tensor, sin: Tensor, key_mask: Tensor | None, tail: int) -> Tensor:
        """The last `tail` rows of the sequence after this layer; keys and values come from all rows."""
        normed = self.input_layernorm(x_BSD)
        x_BSD = x_BSD[:, x_BSD.shape[1] - tail :] + self.self_attn(normed, cos, sin, key_mask, tail)
        return x_BSD + self.mlp(self.post_attention_layernorm(x_BSD))


class LlamaModel(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.rms_eps)

    def forward(self, x_BSD: Tensor, position_BS: Tensor, key_mask: Tensor | None, tail: int) -> Tensor:
        """Hidden states of the last `tail` rows of a sequence of embeddings.

        Args:
            x_BSD: embeddings.
            position_BS: int64, each row's rotary position: with bidirectional attention, it alone decides the order.
            key_mask: None, or bool [B, 1, 1, S], False for padding.
            tail: number of rows at the end that are read.
        """
        cos, sin = rope_tables(position_BS, self.config.width // self.config.heads, self.config.rope_theta)
        rows = x_BSD.shape[1]
        for i, layer in enumerate(self.layers):
            args = (x_BSD, cos, sin, key_mask, tail if i == len(self.layers) - 1 else rows)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_BSD = checkpoint(layer, *args, use_reentrant=False)
            else:
                x_BSD = layer(*args)
        return self.norm(x_BSD)


class LlamaForActions(nn.Module):
    """Llama with an output head of which only the action logits are computed."""

    def __init__(self, config: LlamaConfig, first_action_id: int, action_bins: int) -> None:
        super().__init__()
        self.model = LlamaModel(config)
        self.lm_head = RowsLinear(config.width, config.vocab, first_action_id, first_action_id + action_bins)


@torch.no_grad()
def check_bidirectional(llama: LlamaModel) -> None:
    """Change the last row of a short sequence and see whether the first one notices.

    A causal mask runs without an error, and costs an OpenVLA-OFT about half of its successes.

    Raises:
        RuntimeError: attention is causal.
    """
    weight, rows = llama.embed_tokens.weight, 4
    x_BSD = torch.arange(rows * llama.config.width, device=weight.device).sin().view(1, rows, -1).to(weight.dtype)
    changed_BSD = x_BSD.clone()
    changed_BSD[:, -1] *= -1
    position_BS = torch.arange(rows, device=weight.device)[None]
    key_mask = torch.ones(1, 1, 1, rows, dtype=torch.bool, device=weight.device)
    before, after = (llama(x, position_BS, key_mask, tail=rows) for x in (x_BSD, changed_BSD))
    if torch.equal(before[:, 0], after[:, 0]):  # under a causal mask the same numbers go through the same kernels
        raise RuntimeError(
            "attention is causal: the first token does not see the last. OpenVLA-OFT needs bidirectional attention; "
            f"look for what replaces torch.nn.functional.scaled_dot_product_attention (torch {torch.__version__})"
        )
