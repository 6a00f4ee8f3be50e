"""Features of frozen vision towers, kept from the rollout for the update: each frame is computed once."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class VisionCache:
    """The last `rows` frames' features, on the host. A frame is known by its bytes.

    Args:
        rows: features kept; those of the 7B take 1.1 MB each in bfloat16.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> VisionCache:
        return self  # a copy of the policy has the same frozen towers, and may compute in another thread

    @torch.no_grad()
    def features(self, frame_NHWC: Tensor, compute: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
        """Features [N, patches, width] of `frame_NHWC` (uint8) on `device`.

        Args:
            compute: features of the frames that are not known.
        """
        with self._lock:
            return self._features(frame_NHWC, compute).to(device)

    def _features(self, frame_NHWC: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        keys = [hashlib.blake2b(frame.cpu().numpy().tobytes(), digest_size=16).digest() for frame in frame_NHWC]
        new = [n for n, key in enumerate(keys) if key not in self._kept]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if new:
            computed = compute(frame_NHWC[new]).cpu()
            found |= {keys[n]: row.clone() for n, row in zip(new, computed, strict=True)}
        for key in keys:
            self._kept[key] = found[key]
            self._kept.move_to_end(key)
        while len(self._kept) > self.rows:
            self._kept.popitem(last=False)
        return torch.stack([found[key] for key in keys])
