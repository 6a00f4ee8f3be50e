"""The Lightning Trainer of a run: what reinforcement learning needs fixed, and the callbacks the config names."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vla_rl.config.instantiate import build
from vla_rl.config.schema import Config
from vla_rl.distributed.strategies import FSDP2, pick_strategy
from vla_rl.errors import RunError, UserError
from vla_rl.run.launch import check_world
from vla_rl.run.parent import announce_launcher, end_with_parent
from vla_rl.training.checkpoint_io import AtomicCheckpointIO
from vla_rl.training.loggers import run_loggers

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def build_trainer(config: Config, folder: Path, callbacks: list[L.Callback], iterations: int = 0) -> L.Trainer:
    """A Trainer whose epochs are iterations. `config.trainer` chooses devices, strategy and precision.

    Args:
        iterations: done by the run that goes on.

    Raises:
        UserError: the devices or the strategy asked for are not available on this machine.
    """
    every = config.evaluation.every_iterations
    options = dict(
        callbacks=callbacks,
        default_root_dir=folder,
        logger=run_loggers(config, folder, iterations * config.grpo.minibatches * config.grpo.epochs),
        max_epochs=config.iterations,
        reload_dataloaders_every_n_epochs=1,  # fresh rollouts every iteration
        use_distributed_sampler=False,  # a rank trains on what it collected
        check_val_every_n_epoch=every or config.iterations + 1,
        num_sanity_val_steps=0,  # fit.py measures the start in full
        inference_mode=False,  # tensors made while evaluating may meet a backward later
        log_every_n_steps=1,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),  # no default one beside the slot's
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),  # nor a default one of these
        plugins=[AtomicCheckpointIO()],
        enable_model_summary=False,
    )
    return make_trainer(config, **options)


def make_trainer(config: Config, **options: Any) -> L.Trainer:
    """`config.trainer` with what the program supplies.

    Raises:
        UserError: the devices or the strategy asked for are not available on this machine, or a launcher has started
            another number of processes.
    """
    node = config.trainer
    if node is not None and isinstance(name := node.get("strategy", "auto"), str):
        options["strategy"] = pick_strategy(name, node.get("devices", "auto"), node.get("num_nodes", 1))
        node = {key: value for key, value in node.items() if key != "strategy"}
    try:
        trainer = build(node, "trainer", **options)
    except UserError:
        raise
    except (MisconfigurationException, TypeError, ValueError) as e:  # Lightning's, of its own options
        raise UserError(f"{e} (trainer.devices=1, trainer=cpu; without a GPU: conf=pcm_object_tiny)") from e
    check_world(trainer.num_devices, trainer.num_nodes)
    if trainer.local_rank:
        end_with_parent()  # under torchrun; ranks that Lightning started have done so in their first lines
    else:
        announce_launcher()
    return trainer


def check_ranks(config: Config, trainer: L.Trainer) -> None:
    """Raise UserError where a rank would never have anything to do, or could not do what it is asked."""
    groups, ranks = config.rollout.groups, trainer.world_size
    if ranks > groups:
        raise UserError(
            f"{ranks} processes cannot share {groups} groups, a group stays whole: rollout.groups={ranks}, "
            f"or trainer.devices={groups}"
        )
    if config.rollout.asynchronous and isinstance(trainer.strategy, FSDP2):
        raise UserError(
            "rollout.asynchronous=true needs the whole policy on every rank, and strategy fsdp2 shards it: "
            "trainer.strategy=ddp, or rollout.asynchronous=false"
        )


@contextmanager
def interruptible(trainer: L.Trainer) -> Iterator[None]:
    """A Ctrl-C stays a KeyboardInterrupt that says what is left of the run; Lightning's own exit says nothing. An error
    caused by the end of another rank names that rank, and a full disk is one line wherever it is met."""
    try:
        yield
    except OSError as e:
        if e.errno not in NO_ROOM:
            raise
        raise RunError(
            f"there is no room to write {e.filename or 'a file'} ({e.strerror}); what was saved is whole: when there "
            f"is room again, resume={trainer.default_root_dir}"
        ) from e
    except Exception as e:
        if (ended := _ended_rank(trainer)) is None:
            raise
        raise RunError(f"{ended}; see its output above; go on with resume={trainer.default_root_dir}") from e
    except SystemExit as e:
        if not trainer.interrupted:
            raise
        policy = Path(trainer.default_root_dir) / "policy"
        left = []
        if policy.exists():
            left = [f"the policy of the last finished iteration is in {policy}", f"go on with resume={policy.parent}"]
        raise KeyboardInterrupt(*left) from e


def _ended_rank(trainer: L.Trainer) -> str | None:
    """Which of the processes that this one has started has failed, and how."""
    for rank, process in enumerate(getattr(trainer.strategy.launcher, "procs", []), start=1):
        try:
            code = process.wait(timeout=0.5)  # its connections close a moment before it has ended
        except subprocess.TimeoutExpired:
            continue
        if code:
            return f"rank {rank} (process {process.pid}) exited with status {code}"
    return None
