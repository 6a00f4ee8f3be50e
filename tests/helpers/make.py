"""Trajectories written down chunk by chunk, and a training loop of real Lightning around them without a simulator."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import lightning as L
import torch

from vla_rl.config.schema import GRPOConfig, RolloutConfig
from vla_rl.functional.advantages import group_advantage
from vla_rl.functional.losses import token_weight
from vla_rl.types import ActionChunk, ChunkBatch, Episode, RolloutGroup, Trajectory

STEPS, DIMS = 8, 7  # control steps in a chunk, action dimensions


def make_trajectory(
    closing: Sequence[int],
    *,
    uid: int = 0,
    success: bool = True,
    action: Sequence[float] | float = 0.0,
    last_steps: int = STEPS,
    advantage: float = 0.0,
) -> Trajectory:
    """One row per entry of `closing`: how many of the chunk's steps close the gripper.

    Args:
        action: the value of all action dimensions but the gripper's, for all chunks or for each.
        last_steps: executed steps of the last chunk.
    """
    chunks = len(closing)
    action_N = torch.as_tensor(action, dtype=torch.float32).expand(chunks)
    gripper_closed_NL = torch.arange(STEPS) < torch.tensor(closing)[:, None]
    action_NLA = action_N[:, None, None].expand(-1, STEPS, DIMS).clone()
    action_NLA[..., -1] = gripper_closed_NL.float()
    row_N = 1000.0 * uid + torch.arange(chunks)  # tells every row of every trajectory apart
    return Trajectory(
        episode=Episode(uid=uid, task=0, init_state=0, seed=uid),
        instruction=f"task of {uid}",
        frame_NHWC=torch.full((chunks, 2, 2, 3), uid % 256, dtype=torch.uint8),
        proprio_NP=row_N[:, None].expand(-1, 8).clone(),
        actions=ActionChunk(
            drawn={"token": torch.full((chunks, STEPS, DIMS), uid % 256)},
            logprob_NLA=torch.full((chunks, STEPS, DIMS), -1.0),
            action_NLA=action_NLA,
            command_NLA=action_NLA,
            entropy_NLA=torch.ones(chunks, STEPS, DIMS),
            extras={"score_sq": torch.ones(chunks, STEPS, DIMS), "hidden": row_N[:, None].expand(-1, 4) / 1000},
        ),
        gripper_closed_NL=gripper_closed_NL,
        executed_N=torch.tensor([STEPS] * (chunks - 1) + [last_steps]),
        success=success,
        reward=float(success),
        advantage_N=torch.full((chunks,), advantage),
    )


def random_groups(iteration: int, *, groups: int = 2, size: int = 4) -> list[RolloutGroup]:
    """Mixed groups of grasping trajectories with 3 to 15 chunks, the same ones for the same iteration."""
    draw = torch.Generator().manual_seed(iteration)
    made = []
    for g in range(groups):
        trajectories = []
        for i in range(size):
            before, grip, after = torch.randint(1, 6, (3,), generator=draw).tolist()
            closing = [0] * before + [STEPS] * grip + [0] * after
            action = torch.rand(len(closing), generator=draw)
            uid = (iteration * groups + g) * size + i
            trajectories.append(make_trajectory(closing, uid=uid, success=i % 2 == 0, action=action))
        group = RolloutGroup(trajectories)
        for trajectory, advantage in zip(trajectories, group_advantage(group.reward_G, eps=1e-6), strict=True):
            trajectory.set_advantage(float(advantage))
        made.append(group)
    return made


class MadeEpoch:
    """What `RolloutEpoch` is to callbacks: groups, iteration, and two batches per pass."""

    def __init__(self, iteration: int, groups: list[RolloutGroup], passes: int) -> None:
        self.iteration, self.groups, self.passes = iteration, groups, passes

    @property
    def training_trajectories(self) -> list[Trajectory]:
        return [t for group in self.groups for t in group.trajectories]

    def __len__(self) -> int:
        return 2 * self.passes

    def __iter__(self):
        trajectories = self.training_trajectories
        for _ in range(self.passes):
            for start in range(2):
                yield ChunkBatch.from_trajectories(trajectories[start::2])


class MadeData(L.LightningDataModule):
    def __init__(self, groups_of=random_groups, *, seed: int = 0, max_chunks: int = 15, passes: int = 1) -> None:
        super().__init__()
        self.groups_of, self.seed, self.max_chunks, self.passes = groups_of, seed, max_chunks, passes
        self.grpo = GRPOConfig(advantage="gae", group_filter="keep")  # chunks may have advantages of their own
        self.rollout = RolloutConfig()
        self.policy = SimpleNamespace(learns_entropy=True)  # who may have acted

    def max_chunks_of(self, window: int | None) -> int:
        return self.max_chunks if window is None else -(-self.max_chunks * STEPS // window)

    def request_extra(self, name: str, who: str) -> None:
        """Made trajectories have the extras already."""
        assert name in make_trajectory([0]).actions.extras

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def train_dataloader(self) -> MadeEpoch:
        iteration = self.trainer.current_epoch
        return MadeEpoch(iteration, self.groups_of(iteration), self.passes)


class MadeModule(L.LightningModule):
    """Learns one number per token column; remembers the batches it was given and each step's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(DIMS))
        self.seen: list[ChunkBatch] = []
        self.gradients: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        weight_NLA = token_weight(
            batch.token_mask_NLA,
            batch.trajectory_N,
            trajectories=len(batch.trajectories),
            tokens=int(batch.token_mask_NLA.sum()),
            norm="traj_mean",
            weight_N=batch.weight_N,
            share_N=batch.share_N,
        )
        row_N = batch.advantage_N * (1 + batch.proprio_NP[:, 0])
        return (weight_NLA * row_N[:, None, None] * self.scale).sum()

    def on_after_backward(self):
        self.gradients.append(self.scale.grad.clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def rows_seen(self) -> list[list[int]]:
        """Per batch, the kept rows as `1000 * uid + chunk`."""
        return [[int(p) for p in batch.proprio_NP[:, 0]] for batch in self.seen]


def made_trainer(folder, callbacks, *, iterations: int = 1, **options) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": iterations,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "reload_dataloaders_every_n_epochs": 1,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
    }
    return L.Trainer(**defaults | {"callbacks": callbacks} | options)


def train(folder, *callbacks, data: MadeData | None = None, iterations: int = 1, **options) -> MadeModule:
    """Train from scratch, return the module that remembers."""
    module = MadeModule()
    made_trainer(folder, list(callbacks), iterations=iterations, **options).fit(module, datamodule=data or MadeData())
    return module
