"""`DemoDataModule`: rows of demonstrations for supervised training.

One row is a control step and the commands that follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vla_rl.demos import Demo
from vla_rl.types import Observation


@dataclass(slots=True)
class DemoBatch:
    """What one supervised step trains on."""

    observation: Observation
    command_NLA: Tensor  # float32 in [-1, 1], in the simulator's convention


class DemoRows(Dataset):
    """Every control step of some demonstrations.

    Past a demonstration's end the arm rests, and the gripper stays as it is.

    Args:
        chunk_steps: L, commands per row.
    """

    def __init__(self, demos: Sequence[Demo], chunk_steps: int) -> None:
        self.frame_THWC = torch.cat([d.frame_THWC for d in demos])
        self.proprio_TP = torch.cat([d.proprio_TP for d in demos])
        self.command_TLA = torch.cat([_chunks(d.action_TA, chunk_steps) for d in demos])
        self.instruction_T = [d.instruction for d in demos for _ in range(len(d))]

    def __len__(self) -> int:
        return len(self.instruction_T)

    def __getitems__(self, rows: list[int]) -> DemoBatch:
        """A whole batch at once: one gather instead of a stack of single rows."""
        observation = Observation(self.frame_THWC[rows], self.proprio_TP[rows], [self.instruction_T[t] for t in rows])
        return DemoBatch(observation, self.command_TLA[rows])


def _chunks(action_TA: Tensor, chunk_steps: int) -> Tensor:
    """[T, L, A]: row t holds actions t .. t+L-1."""
    rest = action_TA[-1:].clone()
    rest[:, :-1] = 0.0
    padded = torch.cat([action_TA, rest.expand(chunk_steps - 1, -1)])
    return padded.unfold(0, chunk_steps, 1).transpose(1, 2).contiguous()


class DemoDataModule(L.LightningDataModule):
    """Shuffled rows of all demonstrations but some held out, which give the validation loss.

    Args:
        heldout: demonstrations held out, the last of the list.
    """

    def __init__(
        self, demos: Sequence[Demo], *, chunk_steps: int, batch_rows: int, seed: int, heldout: int = 1
    ) -> None:
        super().__init__()
        if len(demos) <= heldout:
            raise ValueError(f"{len(demos)} demonstrations, of which {heldout} are held out: sft.demos=FILE with more")
        self.train = DemoRows(demos[:-heldout], chunk_steps)
        self.heldout = DemoRows(demos[-heldout:], chunk_steps)
        if batch_rows > len(self.train):
            raise ValueError(
                f"a batch of {batch_rows} rows is more than the demonstrations' {len(self.train)} control steps: "
                f"sft.batch_rows={len(self.train)}"
            )
        self.batch_rows, self.seed = batch_rows, seed

    def train_dataloader(self) -> DataLoader:
        shuffled = torch.Generator().manual_seed(self.seed)
        return self._loader(self.train, shuffle=True, drop_last=True, generator=shuffled)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.heldout)

    def _loader(self, rows: DemoRows, **options: object) -> DataLoader:
        return DataLoader(rows, self.batch_rows, collate_fn=lambda batch: batch, **options)
