"""PolicyTrim in the toy world: a run of real Lightning, and what it leaves."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.monitors.metrics_file import MetricsFile
from tests.helpers import results
from tests.helpers.results import MEASURED
from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.config.schema import EvaluationConfig, GRPOConfig, OptimConfig, RolloutConfig
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.training.grpo_module import GRPOModule

BOTH = {"ratios": [0.5, 1.0], "baseline_episodes": 4}  # windows of 1 and 2 of the toy's 2 steps


class Groups(L.Callback):
    """Keeps every iteration's groups, and the batches as the step saw them."""

    def __init__(self) -> None:
        self.groups, self.batches = [], []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.groups.append(trainer.train_dataloader.groups)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.batches.append(batch)

    @property
    def trajectories(self):
        return [t for groups in self.groups for group in groups for t in group.trajectories]


def fit(tmp_path, *callbacks, iterations=2, pool=None, resume=None, save=False, states=(0, 20), **grpo):
    tmp_path.mkdir(exist_ok=True)
    policy = ToyPolicy()
    rollout = RolloutConfig(groups=4, group_size=5, temperature=1.0, train_init_states=states)
    config = GRPOConfig(**({"minibatches": 2, "micro_rows": 5} | grpo))
    evaluation = EvaluationConfig(sampled_episodes=6, greedy_episodes=3)
    data = RolloutDataModule(pool or ToyPool(), policy, rollout=rollout, grpo=config, evaluation=evaluation, seed=3)
    module = GRPOModule(policy, config, OptimConfig(lr=1e-2, grad_clip=1e6), rollout.temperature)
    last = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    saving = [last] if save else []
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=iterations, logger=False, enable_checkpointing=save, inference_mode=False,
        enable_progress_bar=False, enable_model_summary=False, reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False, num_sanity_val_steps=0, check_val_every_n_epoch=iterations + 1,
        default_root_dir=tmp_path, callbacks=[*callbacks, MetricsFile(), *saving],
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    return module


def rows(folder) -> list[dict[str, float]]:
    """What each iteration logged, but what was measured."""
    return [{tag: value for tag, value in row.items() if not tag.startswith(MEASURED)} for row in results.rows(folder)]


def weights(module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.policy.parameters()])
