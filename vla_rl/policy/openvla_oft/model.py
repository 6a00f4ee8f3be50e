"""OpenVLA-OFT with discrete action tokens: two vision towers, a projector, a bidirectional Llama (arXiv 2502.19645).

The published order of the sequence is BOS | patches | (proprio) | prompt | 56 slots | `</s>` | pads, positions 0..S-1.
Slot k is read one row earlier, so the first action token is read at the last prompt token. Attention is bidirectional
and knows order through rotary positions alone, so rows may lie anywhere if each carries its published position. Here:

    BOS | patches | (proprio) | `</s>` | pads, prompt | slots

which puts the 56 rows that are read, of prompts of any length, at one place: the end.

Shape legend, beyond `vla_rl.types`: B rows, S sequence, T prompt tokens without BOS (padded on the left), D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_rl.policy.linear import Linear
from vla_rl.policy.openvla_oft.config import BOS_ID, STOP_ID, OpenVLAConfig
from vla_rl.policy.openvla_oft.llama import LlamaForActions
from vla_rl.policy.openvla_oft.vision import VisionBackbone, unused_shapes


class Projector(nn.Module):
    """Vision features to Llama's width, through 4 x the vision width."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(vision_width, 4 * vision_width)
        self.fc2 = Linear(4 * vision_width, width)
        self.fc3 = Linear(width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x_BSD)))))


class ProprioProjector(nn.Module):
    """Proprioception to one token."""

    def __init__(self, proprio_dims: int, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(proprio_dims, width)
        self.fc2 = Linear(width, width)

    def forward(self, proprio_BP: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(proprio_BP)))


class OpenVLAOFT(nn.Module):
    """One forward gives the 256 action logits of all tokens of a chunk, 56 of a published one: K in what follows."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.config = config
        width = config.llama.width
        self.vision_backbone = VisionBackbone(config.towers)
        self.projector = Projector(sum(t.embed_dim for t in config.towers), width)
        if config.proprio_dims:
            self.proprio_projector = ProprioProjector(config.proprio_dims, width)
        self.language_model = LlamaForActions(config.llama, config.first_action_id, config.action_bins)

    def unused_shapes(self) -> dict[str, torch.Size]:
        """Tensors of the published layout that are never run."""
        return unused_shapes(self.config.towers)

    def forward(
        self, prompt_BT: Tensor, prompt_mask_BT: Tensor, pixels_BCHW: Tensor, proprio_BP: Tensor | None = None
    ) -> Tensor:
        """Logits of the action bins, [B, K, bins] in the model's dtype.

        Args:
            prompt_BT: int64 token ids without BOS, padded on the left; the last token of every row is real.
            prompt_mask_BT: bool, False for padding.
            pixels_BCHW: [B, 6 * images, H, W], normalised.
            proprio_BP: normalised proprioception, for a model with a proprio token.
        """
        return self.read(prompt_BT, prompt_mask_BT, self.vision_backbone(pixels_BCHW), proprio_BP)

    def read(
        self, prompt_BT: Tensor, prompt_mask_BT: Tensor, features_BSD: Tensor, proprio_BP: Tensor | None = None
    ) -> Tensor:
        """As `forward`, from the vision backbone's features [B, patches, vision width]."""
        return self.language_model.lm_head(self.hidden(prompt_BT, prompt_mask_BT, features_BSD, proprio_BP))

    def hidden(
        self, prompt_BT: Tensor, prompt_mask_BT: Tensor, features_BSD: Tensor, proprio_BP: Tensor | None = None
    ) -> Tensor:
        """Llama's last hidden states where the slots are read, [B, K, D]."""
        patches = self.projector(features_BSD)
        x_BSD, position_BS = self._sequence(prompt_BT, prompt_mask_BT, patches, proprio_BP)
        hidden = self.language_model.model(
            x_BSD, position_BS, self._key_mask(prompt_mask_BT, x_BSD.shape[1]), self.config.slots + 1
        )
        return hidden[:, :-1]  # slot k is read one row before it

    def _sequence(
        self, prompt_BT: Tensor, prompt_mask_BT: Tensor, patches: Tensor, proprio_BP: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [B, S, D] in the order of the module's docstring and their published positions [B, S]."""
        b, device = len(prompt_BT), prompt_BT.device
        embed = self.language_model.model.embed_tokens
        bos, stop = embed(torch.tensor([BOS_ID, STOP_ID], device=device)).expand(b, -1, -1).split(1, dim=1)
        seen = [bos, patches]
        if proprio_BP is not None:
            seen.append(self.proprio_projector(proprio_BP)[:, None])
        slots = torch.zeros(b, self.config.slots, patches.shape[-1], device=device, dtype=patches.dtype)
        x_BSD = torch.cat([*seen, stop, embed(prompt_BT), slots], dim=1)

        prefix = sum(part.shape[1] for part in seen)
        prompt = prefix - 1 + prompt_mask_BT.cumsum(dim=1)  # pads get a meaningless position: no key sees them
        first_slot = prompt[:, -1:] + 1
        position_BS = torch.cat(
            [
                torch.arange(prefix, device=device).expand(b, -1),
                first_slot + self.config.slots,
                prompt,
                first_slot + torch.arange(self.config.slots, device=device),
            ],
            dim=1,
        )
        return x_BSD, position_BS

    def _key_mask(self, prompt_mask_BT: Tensor, rows: int) -> Tensor:
        """bool [B, 1, 1, S]: every row sees every key but the prompt's pads. There is no causal mask."""
        b, t = prompt_mask_BT.shape
        mask = prompt_mask_BT.new_ones(b, rows)
        prompt_end = rows - self.config.slots
        mask[:, prompt_end - t : prompt_end] = prompt_mask_BT
        return mask[:, None, None]
