"""`DemoDataModule`: rows of demonstrations for supervised training.

One row is a control step and the commands that follow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from vla_rl.demos.demo import Demo
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.errors import UserError
from vla_rl.types import Observation


@dataclass(slots=True)
class DemoBatch:
    """What one supervised step trains on."""

    observation: Observation
    command_NLA: Tensor  # float32 in [-1, 1], in the simulator's convention


class DemoRows(Dataset):
    """Every control step of some demonstrations. Frames are taken from the demonstrations when a batch asks for them.

    Past a demonstration's end the arm rests, and the gripper stays as it is.

    Args:
        chunk_steps: L, commands per row.
    """

    def __init__(self, demos: Sequence[Demo], chunk_steps: int) -> None:
        self.demos = list(demos)
        self.end_D = torch.tensor([len(d) for d in demos]).cumsum(0)  # rows up to the end of each demonstration
        self.proprio_TP = torch.cat([d.proprio_TP for d in demos])
        self.command_TLA = torch.cat([_chunks(d.action_TA, chunk_steps) for d in demos])
        self.instruction_T = [d.instruction for d in demos for _ in range(len(d))]

    def __len__(self) -> int:
        return len(self.instruction_T)

    def __getitems__(self, rows: list[int]) -> DemoBatch:
        """A whole batch at once.

        Raises:
            UserError: a file of pictures is damaged, or pictures differ in size.
        """
        observation = Observation(
            self._frames(torch.tensor(rows)), self.proprio_TP[rows], [self.instruction_T[t] for t in rows]
        )
        return DemoBatch(observation, self.command_TLA[rows])

    def _frames(self, row_N: Tensor) -> Tensor:
        """uint8 [N, H, W, C]. Each demonstration is asked once, for all of its rows."""
        demo_N = torch.bucketize(row_N, self.end_D, right=True)
        frames: dict[int, Tensor] = {}  # by place in the batch
        for d in demo_N.unique().tolist():
            demo, places = self.demos[d], (demo_N == d).nonzero()[:, 0]
            steps = row_N[places] - (self.end_D[d] - len(demo))
            frames |= zip(places.tolist(), demo.frame_THWC[steps.tolist()], strict=True)
            shape, first = frames[int(places[0])].shape, next(iter(frames.values())).shape
            if shape != first:
                raise UserError(
                    f"{demo.origin}: pictures of {list(shape)}, those of other demonstrations are {list(first)}: leave "
                    "one of the files out of sft.demos"
                )
        return torch.stack([frames[place] for place in range(len(row_N))])


class _ErrorsAsBatches(Dataset):
    """`rows`, with an error about a file in place of the batch: one that is raised in a loader's process arrives
    wrapped in a traceback."""

    def __init__(self, rows: DemoRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: list[int]) -> DemoBatch | UserError:
        try:
            return self.rows.__getitems__(rows)
        except UserError as e:
            return e


def _chunks(action_TA: Tensor, chunk_steps: int) -> Tensor:
    """[T, L, A]: row t holds actions t .. t+L-1."""
    rest = action_TA[-1:].clone()
    rest[:, :-1] = 0.0
    padded = torch.cat([action_TA, rest.expand(chunk_steps - 1, -1)])
    return padded.unfold(0, chunk_steps, 1).transpose(1, 2).contiguous()


class DemoDataModule(L.LightningDataModule):
    """Shuffled rows of all demonstrations but some held out, which give the validation loss.

    A Lightning epoch is `iteration_steps` optimizer steps, not a pass over the demonstrations. Which rows a step reads
    depends on the seed and the number of the step alone: a run that goes on reads what it would have read.

    Args:
        batch_rows: of a step on each rank.
        steps: of the whole run.
        heldout: demonstrations held out, the last of the list.
        workers: processes of each rank that read batches ahead; 0 reads them in the rank's own.
    """

    def __init__(
        self,
        demos: Sequence[Demo],
        *,
        chunk_steps: int,
        batch_rows: int,
        steps: int,
        iteration_steps: int,
        seed: int,
        heldout: int = 1,
        workers: int = 0,
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
        self.batch_rows, self.steps, self.iteration_steps, self.seed = batch_rows, steps, iteration_steps, seed
        self.workers = workers

    def train_dataloader(self) -> DataLoader:
        """This rank's batches of the iteration under way."""
        assert self.trainer is not None
        rank, ranks, done = self.trainer.global_rank, self.trainer.world_size, self.trainer.current_epoch
        steps = range(done * self.iteration_steps, min((done + 1) * self.iteration_steps, self.steps))
        return self._loader(self.train, [self.rows_of(s * ranks + rank) for s in steps])

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.heldout, BatchSampler(range(len(self.heldout)), self.batch_rows, drop_last=False))

    def rows_of(self, batch: int) -> list[int]:
        """The rows of one batch, of all ranks' batches in the order of steps. Each pass over the demonstrations has an
        order of its own; the rows left at its end, too few for a batch, are dropped."""
        passes, place = divmod(batch, len(self.train) // self.batch_rows)
        order = torch.randperm(len(self.train), generator=seeded_generator(self.seed, "demonstrations", passes))
        return order[place * self.batch_rows : (place + 1) * self.batch_rows].tolist()

    def on_before_batch_transfer(self, batch: DemoBatch | UserError, dataloader_idx: int) -> DemoBatch:
        if isinstance(batch, UserError):
            raise batch
        return batch

    def _loader(self, rows: DemoRows, batches: Iterable[list[int]]) -> DataLoader:
        """`rows` gives whole batches. A loader draws a seed for its processes: here not from the global generator,
        from which a run that goes on would have drawn less often."""
        return DataLoader(
            _ErrorsAsBatches(rows),
            batch_sampler=batches,
            collate_fn=_as_it_is,
            generator=torch.Generator(),
            num_workers=self.workers,
        )


def _as_it_is(batch: Any) -> Any:
    return batch
