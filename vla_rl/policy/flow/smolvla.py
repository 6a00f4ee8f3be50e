"""SmolVLA (arXiv 2506.01844): the first layers of SmolVLM, and a narrower action expert.

The expert's even layers attend to the cached prefix and to the actions before, the odd ones to the prefix alone.

Shapes: see `vla_rl.policy.flow.model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_rl.policy.flow.config import DecoderConfig, FlowConfig
from vla_rl.policy.flow.layers import Layer, Norm, Sight, SigLIP, nest, time_embedding
from vla_rl.policy.flow.model import FlowModel, Inputs, Prefix, in_float32


class Llama(nn.Module):
    """Layers and a final norm.

    Args:
        self_attention_every: of the layers; those between read the prefix alone.
    """

    def __init__(self, config: DecoderConfig, *, self_attention_every: int = 1) -> None:
        super().__init__()
        norm = partial(Norm, config.width, config.eps, offset=0.0)
        self.layers = nn.ModuleList(
            Layer(config, norm, F.silu, cross=bool(i % self_attention_every)) for i in range(config.layers)
        )
        self.norm = norm()


class TextModel(Llama):
    """SmolVLM's, with the embeddings of words."""

    def __init__(self, config: DecoderConfig, vocabulary: int) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(vocabulary, config.width)


class SmolVLA(FlowModel):
    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config)
        width, vision = config.expert.width, config.vision
        self.vlm_with_expert = nest(
            vlm=nest(
                model=nest(
                    vision_model=SigLIP(vision),
                    connector=nest(
                        modality_projection=nest(
                            proj=nn.Linear(vision.width * vision.scale_factor**2, config.text.width, bias=False)
                        )
                    ),
                    text_model=TextModel(config.text, config.vocabulary),
                )
            ),
            lm_expert=Llama(config.expert, self_attention_every=config.self_attention_every),
        )
        self.state_proj = nn.Linear(config.state_width, config.text.width)
        self.action_in_proj = nn.Linear(config.action_width, width)
        self.action_out_proj = nn.Linear(width, config.action_width)
        self.action_time_mlp_in, self.action_time_mlp_out = nn.Linear(2 * width, width), nn.Linear(width, width)

    def prefix(self, inputs: Inputs) -> Prefix:
        assert inputs.state_ND is not None, "SmolVLA has a token for the state"
        scale = self.config.text.width**0.5
        words_NTD = self.language.embed_tokens(inputs.ids_NT)
        state_N1D = self.state_proj(inputs.state_ND.to(self.state_proj.weight.dtype))[:, None].to(words_NTD.dtype)
        x_NSD = torch.cat(
            [*(self._see(picture) * scale for picture in inputs.pixels), words_NTD * scale, state_N1D], dim=1
        )
        pictures_NS = inputs.picture_mask_NV.repeat_interleave(self.config.vision.tokens, dim=1)
        mask_NS = F.pad(torch.cat([pictures_NS, inputs.mask_NT], dim=1), (0, 1), value=True)
        mask_NQS = mask_NS[:, None].repeat(1, mask_NS.shape[1], 1)
        mask_NQS[:, :-1, -1] = False  # pictures and words do not see the state
        return self.cached(x_NSD, mask_NS, mask_NQS)

    def _see(self, pixels_N3HW: Tensor) -> Tensor:
        project = self._vlm["connector"]["modality_projection"]["proj"]
        patches_NSD = self._vlm["vision_model"](pixels_N3HW.to(project.weight.dtype))
        return project(pixel_shuffle(patches_NSD, self.config.vision.scale_factor))

    def velocity(self, prefix: Prefix, x_NHW: Tensor, t_N: Tensor, state_ND: Tensor | None) -> tuple[Tensor, Tensor]:
        expert = self.vlm_with_expert["lm_expert"]
        x_NHD = self.action_in_proj(x_NHW.to(self.action_in_proj.weight.dtype))
        time_ND = time_embedding(t_N, self.config.expert.width, self.config.periods).to(x_NHD)
        x_NHD = torch.cat([x_NHD, time_ND[:, None].expand_as(x_NHD)], dim=-1)
        x_NHD = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(x_NHD))).to(expert.norm.weight.dtype)
        steps = x_NHD.shape[1]
        own_H = torch.arange(steps, device=x_NHD.device)
        prefix_NQS = prefix.mask_NS[:, None].expand(-1, steps, -1)
        before_NHH = (own_H <= own_H[:, None]).expand(len(x_NHD), -1, -1)
        both_NQS, position_NH = torch.cat([prefix_NQS, before_NHH], dim=2), prefix.tokens_N[:, None] + own_H
        of_prefix = Sight.of(own_H.expand(len(x_NHD), -1), prefix_NQS, self.config.expert, x_NHD.dtype)
        of_both = Sight.of(position_NH, both_NQS, self.config.expert, x_NHD.dtype)
        for layer, cached in zip(expert.layers, prefix.cache, strict=True):
            x_NHD, _ = self.run(layer, x_NHD, of_prefix if layer.cross else of_both, cached)
        hidden_NHD = expert.norm(x_NHD, None)[0]
        return in_float32(self.action_out_proj, hidden_NHD), hidden_NHD

    @property
    def language(self) -> Any:
        return self._vlm["text_model"]

    @property
    def expert_layers(self) -> Iterable[nn.Module]:
        return self.vlm_with_expert["lm_expert"].layers

    def expert_parameters(self) -> Iterator[nn.Parameter]:
        """Without `state_proj`: the state is a token of the prefix, and to train it would take a backward pass through
        the language model."""
        for name, parameter in self.named_parameters():
            if not name.startswith(("vlm_with_expert.vlm.", "state_proj.")):
                yield parameter

    def unused_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"vlm_with_expert.vlm.lm_head.weight": (self.config.vocabulary, self.config.text.width)}

    @property
    def _vlm(self) -> Any:
        return self.vlm_with_expert["vlm"]["model"]


def pixel_shuffle(x_NSD: Tensor, factor: int) -> Tensor:
    """Each block of `factor` x `factor` patches as one token, its patches' channels one after the other, row by row."""
    n, patches, d = x_NSD.shape
    side = int(patches**0.5)
    blocks = x_NSD.view(n, side // factor, factor, side // factor, factor, d).transpose(2, 3)
    return blocks.reshape(n, patches // factor**2, factor**2 * d)
