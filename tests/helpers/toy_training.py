"""A few iterations of GRPO on the toy world, and callbacks that look on or set the rewards."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.config.schema import EvaluationConfig, GRPOConfig, OptimConfig, RolloutConfig
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.training.grpo_module import GRPOModule


class Recorder(Callback):
    """Gradients before each optimizer step and the metrics of each iteration."""

    def __init__(self):
        self.gradients, self.metrics = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.gradients.append(torch.cat([gradient.flatten().clone() for gradient in gradients]))

    def on_train_epoch_end(self, trainer, pl_module):
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def fit(tmp_path, *, iterations=2, micro_rows=5, callbacks=(), pool=None, **grpo):
    policy = ToyPolicy()
    rollout = RolloutConfig(groups=4, group_size=4, temperature=1.0, train_init_states=(0, 20))
    config = GRPOConfig(**({"minibatches": 2, "micro_rows": micro_rows} | grpo))
    evaluation = EvaluationConfig(sampled_episodes=6, greedy_episodes=3)
    data = RolloutDataModule(pool or ToyPool(), policy, rollout=rollout, grpo=config, evaluation=evaluation, seed=3)
    module = GRPOModule(policy, config, OptimConfig(lr=1e-2, grad_clip=1e6), rollout.temperature)
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=iterations, logger=False, enable_checkpointing=False, inference_mode=False,
        enable_progress_bar=False, enable_model_summary=False, reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False, num_sanity_val_steps=0, check_val_every_n_epoch=iterations + 1,
        default_root_dir=tmp_path, callbacks=[*callbacks, recorder],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return trainer, module, data, recorder


class Rewards(RolloutCallback):
    """The same rewards for every group."""

    def __init__(self, *rewards):
        self.rewards = rewards

    def score(self, groups):
        for group in groups:
            for trajectory, reward in zip(group.trajectories, self.rewards, strict=True):
                trajectory.reward = reward
