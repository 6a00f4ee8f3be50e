"""How a run ends from outside: by SIGTERM, as schedulers send it before they take a machine away.

At SIGTERM the run saves at the end of its iteration and stops. Lightning's own handler would stop in the middle of one,
and exchanges tensors with other ranks from inside the handler, where these may be doing something else.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import torch

from vla_rl.distributed.collectives import all_reduce_sum

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class StopRequest:
    """Whether this process was sent SIGTERM since `listen`. A second one ends it at once."""

    def __init__(self) -> None:
        self._received = False

    def listen(self) -> None:
        self._received = False
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_: object) -> None:
        self._received = True
        end_at_sigterm()

    def on_any_rank(self, trainer: Trainer) -> bool:
        """Whether any rank was sent it; a collective."""
        return bool(all_reduce_sum(torch.tensor([float(self._received)], dtype=torch.float64), trainer))


def end_at_sigterm() -> None:
    """From here on SIGTERM ends the process as it would end any other: there is nothing to save."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
