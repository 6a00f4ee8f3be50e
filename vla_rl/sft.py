"""`python -m vla_rl.sft conf=sft_object_tiny [key=value ...]`: train a policy on demonstrations.

Starts from `policy.checkpoint` (null: random weights) and keeps the policy in `policy/` of the run folder.
Then: `python -m vla_rl.evaluate conf=pcm_object_tiny policy.checkpoint=RUN_FOLDER/policy`.
The run is saved after every 100 optimizer steps, an iteration: stopped or killed, it goes on with `resume=RUN_FOLDER`.
"""

from __future__ import annotations

from typing import cast

from vla_rl.config.supervised import compose_supervised
from vla_rl.run.cli import answer_early, run_entry

if __name__ == "__main__":
    answer_early(__doc__, parse=compose_supervised)  # before the imports below, which take seconds

import math
import sys

import lightning as L

from vla_rl.config.instantiate import build, check
from vla_rl.config.schema import Config
from vla_rl.distributed.strategies import FSDP2
from vla_rl.errors import UserError
from vla_rl.figures.demonstrations import describe, draw_first_frames
from vla_rl.policy.memory_check import rows_that_fit
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.run.folder import open_run_folder, run_folder, write_json
from vla_rl.run.resume import checkpoint_to_resume, iterations_done, resume_folder, set_aside_newer
from vla_rl.training.checkpoint_io import AtomicCheckpointIO
from vla_rl.training.demo_datamodule import DemoDataModule
from vla_rl.training.demonstrations import prepare_demos
from vla_rl.training.loggers import run_loggers
from vla_rl.training.sft_module import SFTModule
from vla_rl.training.trainer import interruptible, make_trainer

ITERATION_STEPS = 100


def main(argv: list[str]) -> None:
    config = compose_supervised(argv)
    check(config)
    L.seed_everything(config.seed, verbose=False)
    resumed = resume_folder(config)
    folder = run_folder(config.run_dir, config.conf, resumed)
    checkpoint = checkpoint_to_resume(config, folder)
    done = iterations_done(checkpoint) if checkpoint else 0
    trainer = make_trainer(
        config,
        callbacks=[*build_slots(config), LossLines()],
        default_root_dir=folder,
        logger=run_loggers(config, folder, done * ITERATION_STEPS),
        max_epochs=math.ceil(config.sft.steps / ITERATION_STEPS),
        reload_dataloaders_every_n_epochs=1,  # each iteration's own batches
        use_distributed_sampler=False,  # which the data module shares out
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
    )
    rows_that_fit(
        config.policy,
        rows=config.sft.batch_rows,
        optimizer=config.optim.optimizer,
        device=trainer.strategy.root_device,
        shards=trainer.world_size if isinstance(trainer.strategy, FSDP2) else 1,
        key="sft.batch_rows",
    )
    policy = build(config.policy, "policy")
    demos = prepare_demos(policy, config.sft)
    data = DemoDataModule(
        demos,
        chunk_steps=policy.chunk_steps,
        batch_rows=config.sft.batch_rows,
        steps=config.sft.steps,
        iteration_steps=ITERATION_STEPS,
        seed=config.seed,
        workers=config.sft.workers,
    )
    module = SFTModule(policy, config.optim, config.sft.steps, config.seed)
    with open_run_folder(folder, config, resumed=resumed is not None), interruptible(trainer):
        set_aside_newer(folder, checkpoint)
        if trainer.is_global_zero:
            print(describe(demos))
            draw_first_frames(demos).savefig(folder / "demonstrations.png")
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        # a run that was killed when all was trained has no other occasion
        (measured,) = trainer.validate(module, datamodule=data, verbose=False)
        if trainer.is_global_zero:
            write_json(folder / "summary.json", {"steps": config.sft.steps, **measured})
            print(f"held-out loss {measured['sft/heldout_loss']:.3f}, policy {folder / 'policy'}")


def build_slots(config: Config) -> list[L.Callback]:
    """The callbacks of the config.

    Raises:
        UserError: one that needs rollouts.
    """
    slots = {name: build(node, f"callbacks.{name}") for name, node in config.callbacks.items() if node is not None}
    for name, callback in slots.items():
        if isinstance(callback, RolloutCallback):
            raise UserError(
                f"{type(callback).__name__} needs rollouts, and supervised training has none: callbacks.{name}=null"
            )
    return list(slots.values())


class LossLines(L.Callback):
    """A line per iteration where the output is no terminal (a log file), and Lightning's bar is off."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and not sys.stderr.isatty():
            loss, heldout = (float(trainer.callback_metrics[f"sft/{name}"]) for name in ("loss", "heldout_loss"))
            steps = f"step {trainer.global_step}/{cast(SFTModule, pl_module).steps}"
            print(f"{steps}  loss {loss:.3f}  held-out loss {heldout:.3f}", flush=True)


if __name__ == "__main__":
    run_entry(main)
