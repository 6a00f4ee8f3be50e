"""`python -m vla_rl.sft conf=sft_object_tiny [key=value ...]`: train a policy on demonstrations.

Starts from `policy.checkpoint` (null: random weights) and writes the policy to `policy/` in the run folder.
Then: `python -m vla_rl.evaluate conf=pcm_object_tiny policy.checkpoint=RUN_FOLDER/policy`.
"""

from __future__ import annotations

from vla_rl.entry import exit_on_help, run_entry

if __name__ == "__main__":
    exit_on_help(__doc__)  # before the imports below, which take seconds

import lightning as L
import torch

from vla_rl.build import build
from vla_rl.compose import compose
from vla_rl.demo_data import DemoDataModule
from vla_rl.demos import load_demos
from vla_rl.errors import UserError
from vla_rl.loggers import run_loggers
from vla_rl.memory_check import rows_that_fit
from vla_rl.policy import save_trained
from vla_rl.run import open_run_folder, run_folder
from vla_rl.sft_module import SFTModule
from vla_rl.strategies import FSDP2
from vla_rl.trainer import interruptible, make_trainer

GRAD_CLIP = 1.0  # largest norm of the gradient
HELDOUT_EVERY_STEPS = 100


def main(argv: list[str]) -> None:
    config = compose(argv)
    if config.sft.demos is None:
        raise UserError("no demonstrations given: sft.demos=FILE, an .npz file from tools/collect_demos.py")
    if config.resume is not None:
        raise UserError("supervised training has no resume; go on from a policy: policy.checkpoint=RUN_FOLDER/policy")
    L.seed_everything(config.seed, verbose=False)
    folder = run_folder(config.run_dir, config.conf)
    trainer = make_trainer(
        config,
        default_root_dir=folder,
        logger=run_loggers(config, folder),
        max_steps=config.sft.steps,
        gradient_clip_val=GRAD_CLIP,
        val_check_interval=HELDOUT_EVERY_STEPS,
        check_val_every_n_epoch=None,  # count steps, not passes over the demonstrations
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    if isinstance(trainer.strategy, FSDP2):
        raise UserError("supervised training does not run under fsdp2: trainer.strategy=ddp")
    rows_that_fit(
        config.policy,
        rows=config.sft.batch_rows,
        optimizer="adamw",
        device=trainer.strategy.root_device,
        key="sft.batch_rows",
    )
    policy = build(config.policy, "policy")
    demos = load_demos(config.sft.demos)
    policy.learn_statistics(
        f"libero_{demos[0].suite}", torch.cat([d.action_TA for d in demos]), torch.cat([d.proprio_TP for d in demos])
    )
    data = DemoDataModule(demos, chunk_steps=policy.chunk_steps, batch_rows=config.sft.batch_rows, seed=config.seed)
    with open_run_folder(folder, config), interruptible(trainer):
        trainer.fit(SFTModule(policy, config.sft), datamodule=data)
        trainer.validate(ckpt_path=None, model=trainer.lightning_module, datamodule=data)
        save_trained(policy, folder / "policy")
    print(f"policy {folder / 'policy'}")


if __name__ == "__main__":
    run_entry(main, __doc__)
