"""`SavedBytes`: how much memory autograd keeps for the backward pass, on any device (`meta` included)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SavedBytes:
    """Counts the bytes that autograd holds inside `hooks()`, their peak, and which part's forward saved them.

    Parameters are not counted; a storage that several operations keep is counted once.

    Attributes:
        peak: the most that was held at a time.
        of_part: bytes by the module of `parts` whose forward saved them first; None: outside of all.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.peak = self._now = 0
        self.of_part: Counter[nn.Module | None] = Counter()
        self._inside: list[nn.Module | None] = [None]
        self._parameters = {_identity(p) for p in parameters}
        self._holders: Counter[int] = Counter()  # storage -> how often it is kept

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept.tensor)

    @contextmanager
    def parts(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Count separately what the forwards of `modules` save."""
        hooks = []
        for module in modules:
            hooks.append(module.register_forward_pre_hook(lambda module, _: self._inside.append(module)))
            hooks.append(module.register_forward_hook(lambda *_: self._inside.pop() and None))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor, self)
        if kept.storage not in self._parameters:
            self._holders[kept.storage] += 1
            if self._holders[kept.storage] == 1:
                self._now += kept.bytes
                self.peak = max(self.peak, self._now)
                self.of_part[self._inside[-1]] += kept.bytes
        return kept

    def release(self, kept: _Kept) -> None:
        if kept.storage not in self._parameters:
            self._holders[kept.storage] -= 1
            if self._holders[kept.storage] == 0:
                self._now -= kept.bytes


class _Kept:
    """A tensor kept for the backward pass; says so when autograd lets go of it."""

    def __init__(self, tensor: Tensor, meter: SavedBytes) -> None:
        self.tensor, self.storage, self._meter = tensor, _identity(tensor), meter
        self.bytes = tensor.untyped_storage().nbytes()

    def __del__(self) -> None:
        self._meter.release(self)


def _identity(tensor: Tensor) -> int:
    """The storage's own number: addresses are all zero on `meta`."""
    return tensor.untyped_storage()._cdata
