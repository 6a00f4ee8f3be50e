"""pi0 (arXiv 2410.24164) and pi0.5 (arXiv 2504.16054): PaliGemma, and an action expert that reads its keys and values.

pi0 has a token for the state, and mixes the time into the actions. pi0.5 has the state in its prompt, and the time sets
the scale, shift and gate of every norm of the expert.

Shapes: see `vla_rl.policy.flow.model`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_rl.policy.flow.config import DecoderConfig, FlowConfig
from vla_rl.policy.flow.layers import AdaptiveNorm, Layer, Norm, Sight, SigLIP, gelu, nest, time_embedding
from vla_rl.policy.flow.model import FlowModel, Inputs, Prefix, in_float32


class Gemma(nn.Module):
    """Layers and a final norm. `adaptive`: every norm depends on the time."""

    def __init__(self, config: DecoderConfig, *, adaptive: bool) -> None:
        super().__init__()
        norm: Callable[[], nn.Module] = partial(AdaptiveNorm, config.width, config.eps)
        if not adaptive:
            norm = partial(Norm, config.width, config.eps, offset=1.0)
        self.layers = nn.ModuleList(Layer(config, norm, gelu) for _ in range(config.layers))
        self.norm = norm()


class LanguageModel(Gemma):
    """PaliGemma's, with the embeddings of words."""

    def __init__(self, config: DecoderConfig, vocabulary: int) -> None:
        super().__init__(config, adaptive=False)
        self.embed_tokens = nn.Embedding(vocabulary, config.width)


class Pi(FlowModel):
    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config)
        width, self.state_in_prompt = config.expert.width, config.type == "pi05"
        self.paligemma_with_expert = nest(
            paligemma=nest(
                model=nest(
                    vision_tower=nest(vision_model=SigLIP(config.vision)),
                    multi_modal_projector=nest(linear=nn.Linear(config.vision.width, config.text.width)),
                    language_model=LanguageModel(config.text, config.vocabulary),
                )
            ),
            gemma_expert=nest(model=Gemma(config.expert, adaptive=self.state_in_prompt)),
        )
        self.action_in_proj = nn.Linear(config.action_width, width)
        self.action_out_proj = nn.Linear(width, config.action_width)
        if self.state_in_prompt:
            self.time_mlp_in, self.time_mlp_out = nn.Linear(width, width), nn.Linear(width, width)
        else:
            self.state_proj = nn.Linear(config.state_width, width)
            self.action_time_mlp_in, self.action_time_mlp_out = nn.Linear(2 * width, width), nn.Linear(width, width)

    def prefix(self, inputs: Inputs) -> Prefix:
        x_NSD = torch.cat([*map(self._see, inputs.pixels), self._words(inputs.ids_NT)], dim=1)
        pictures_NS = inputs.picture_mask_NV.repeat_interleave(self.config.vision.tokens, dim=1)
        mask_NS = torch.cat([pictures_NS, inputs.mask_NT], dim=1)
        return self.cached(x_NSD, mask_NS, mask_NS[:, None])

    def _see(self, pixels_N3HW: Tensor) -> Tensor:
        tower, project = self._paligemma["vision_tower"]["vision_model"], self._paligemma["multi_modal_projector"]
        return project["linear"](tower(pixels_N3HW.to(project["linear"].weight.dtype)))

    def _words(self, ids_NT: Tensor) -> Tensor:
        return self.language.embed_tokens(ids_NT) * self.config.text.width**0.5

    def velocity(self, prefix: Prefix, x_NHW: Tensor, t_N: Tensor, state_ND: Tensor | None) -> tuple[Tensor, Tensor]:
        expert, dtype = self.paligemma_with_expert["gemma_expert"]["model"], self.action_in_proj.weight.dtype
        time_ND = time_embedding(t_N, self.config.expert.width, self.config.periods).to(dtype)
        x_NSD, condition_ND = self.action_in_proj(x_NHW.to(dtype)), None
        if self.state_in_prompt:
            condition_ND = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(time_ND))))
        else:
            x_NSD = torch.cat([x_NSD, time_ND[:, None].expand_as(x_NSD)], dim=-1)
            x_NSD = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(x_NSD)))
            assert state_ND is not None, "pi0 has a token for the state"
            x_NSD = torch.cat([self.state_proj(state_ND.to(dtype))[:, None], x_NSD], dim=1)
        tokens = x_NSD.shape[1]
        position_NS = prefix.tokens_N[:, None] + torch.arange(tokens, device=x_NSD.device)
        sees_SS = torch.ones(tokens, tokens, dtype=torch.bool, device=x_NSD.device)
        if not self.state_in_prompt:
            sees_SS[0, 1:] = False  # the state does not see the actions
        rows = len(x_NSD)
        mask_NQS = torch.cat([prefix.mask_NS[:, None].expand(-1, tokens, -1), sees_SS.expand(rows, -1, -1)], dim=2)
        sight = Sight.of(position_NS, mask_NQS, self.config.expert, x_NSD.dtype)
        for layer, cached in zip(expert.layers, prefix.cache, strict=True):
            x_NSD, _ = self.run(layer, x_NSD, sight, cached, condition_ND)
        hidden_NHD = expert.norm(x_NSD, condition_ND)[0][:, -self.config.chunk_steps :]
        return in_float32(self.action_out_proj, hidden_NHD), hidden_NHD

    @property
    def language(self) -> Any:
        return self._paligemma["language_model"]

    @property
    def expert_layers(self) -> Iterable[nn.Module]:
        return self.paligemma_with_expert["gemma_expert"]["model"].layers

    def expert_parameters(self) -> Iterator[nn.Parameter]:
        for name, parameter in self.named_parameters():
            if not name.startswith("paligemma_with_expert.paligemma."):
                yield parameter

    def unused_shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            "paligemma_with_expert.paligemma.lm_head.weight": (self.config.vocabulary, self.config.text.width),
            "paligemma_with_expert.gemma_expert.lm_head.weight": (self.config.vocabulary, self.config.expert.width),
        }

    @property
    def _paligemma(self) -> Any:
        return self.paligemma_with_expert["paligemma"]["model"]
