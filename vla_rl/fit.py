"""`python -m vla_rl.fit conf=pcm_object_tiny [key=value ...]`: train a policy by reinforcement learning.

Measures the policy on held-out initial states, trains it, measures it again, and writes `summary.json`.
The main path from here: `rollout/datamodule.py` (each iteration's rollouts) -> `callbacks/masks/` (which chunks are
trained on) -> `training/grpo_module.py` (the training step).
"""

from __future__ import annotations

from vla_rl.config.supervised import compose_reinforcement
from vla_rl.run.cli import answer_early, run_entry

if __name__ == "__main__":
    answer_early(__doc__, parse=compose_reinforcement)  # before the imports below, which take seconds

from contextlib import closing

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from vla_rl.config.instantiate import build, build_callbacks, check
from vla_rl.config.policy_node import policy_node
from vla_rl.config.schema import Config
from vla_rl.distributed.strategies import FSDP2
from vla_rl.functional.statistics import SuccessRate
from vla_rl.policy.memory_check import rows_that_fit
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.trainer_state import callbacks_of
from vla_rl.run.clock import RunClock
from vla_rl.run.folder import open_run_folder, run_folder, success_before, write_success_before, write_summary
from vla_rl.run.resume import checkpoint_to_resume, iterations_done, resume_folder, set_aside_newer
from vla_rl.run.summary import run_report
from vla_rl.training.grpo_module import GRPOModule
from vla_rl.training.trainer import build_trainer, check_ranks, interruptible


def main(argv: list[str]) -> None:
    clock = RunClock()
    config = compose_reinforcement(argv)
    check(config)
    L.seed_everything(config.seed, verbose=False)
    resumed = resume_folder(config)
    folder = run_folder(config.run_dir, config.conf, resumed)
    checkpoint = checkpoint_to_resume(config, folder)
    done = iterations_done(checkpoint) if checkpoint else 0
    trainer = build_trainer(config, folder, [*build_callbacks(config), *teacher(config), clock], done)
    check_ranks(config, trainer)
    # building the simulators checks suite, tasks, assets and GL; it starts none yet
    with interruptible(trainer), closing(build(config.sim, "sim")) as pool:
        config.grpo.micro_rows = rows_that_fit(
            config.policy,
            rows=config.grpo.micro_rows,
            optimizer=config.optim.optimizer,
            device=trainer.strategy.root_device,
            shards=trainer.world_size if isinstance(trainer.strategy, FSDP2) else 1,
        )
        policy = build(config.policy, "policy")
        data = RolloutDataModule(
            pool,
            policy,
            rollout=config.rollout,
            grpo=config.grpo,
            evaluation=config.evaluation,
            seed=config.seed,
            sim=config.sim,
        )
        module = GRPOModule(policy, config.grpo, config.optim, config.rollout.temperature)
        data.check(callbacks_of(trainer))

        with open_run_folder(folder, config, resumed=resumed is not None):
            set_aside_newer(folder, checkpoint)
            before = success_before(folder)
            if before is None:
                before = measure("before training", trainer, module, data)
                write_success_before(folder, before)
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            after = measure("after training", trainer, module, data)
            path = write_summary(
                folder, conf=config.conf, seed=config.seed, before=before, after=after, seconds=clock.seconds
            )
            if trainer.is_global_zero:  # the others may be here before the summary is written
                print(run_report(folder))
                print(f"summary {path}")


def teacher(config: Config) -> list[L.Callback]:
    """The callback that asks `grpo.teacher`, which is loaded as the policy is, with adapters and a chunk of its own."""
    if config.grpo.teacher is None:
        return []
    options = {key: value for key, value in (config.policy or {}).items() if key not in ("adapter", "chunk_steps")}
    node = policy_node(options, config.grpo.teacher)
    return [build({"_target_": "callbacks.Distillation", "teacher": node}, "grpo.teacher")]


def measure(when: str, trainer: L.Trainer, module: GRPOModule, data: RolloutDataModule) -> dict[str, SuccessRate]:
    """Success on the held-out initial states, by decoding."""
    trainer.validate(module, datamodule=data, verbose=False)
    for decoding, rate in module.heldout.items():
        rank_zero_only(print)(f"{when}: held-out success, {decoding}: {rate}", flush=True)
    return dict(module.heldout)


if __name__ == "__main__":
    run_entry(main)
