"""`trainer.strategy=ddp` and `fsdp2`: how several processes share the work, with timeouts in hours.

Ranks wait for each other's simulators, so what is slow is not broken; a process that dies is noticed by the one that
started it. Only at the start they wait for minutes: a process that is not there by then was never started.

- `ddp`: every rank holds the whole model; gradients are averaged over ranks (arXiv 2006.15704).
- `fsdp2`: every rank holds a part of each block and gathers a block when it is its turn (arXiv 2304.11277). Every
  forward is a collective, so all ranks have to run equally many (`vla_rl.distributed.lockstep`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from vla_rl.distributed.parameters import check_trained, full_state, is_sharded
from vla_rl.errors import RunError, UserError, no_such_choice

TIMEOUT = timedelta(hours=12)  # of a collective
START_TIMEOUT = timedelta(minutes=10)  # for all processes to be there


class DDP(DDPStrategy):
    """Lightning's strategy, with the timeouts above."""

    def __init__(self) -> None:
        super().__init__(timeout=START_TIMEOUT)

    def setup_environment(self) -> None:
        with _timeouts(self.num_nodes * self.num_processes):
            super().setup_environment()


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy, with one full checkpoint file that holds trained tensors alone."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=START_TIMEOUT)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        with _timeouts(self._data_parallel_size):
            super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return full_state(self.model, trained_only=True)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = optimizer.state_dict()
        # torch would take a step to have a state that it can gather, and that step would count ever after
        return super().optimizer_state(optimizer) if state["state"] else state

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        stored = torch.load(checkpoint_path, map_location="meta", weights_only=True)
        assert self.lightning_module is not None
        check_trained(stored["state_dict"], self.lightning_module, checkpoint_path)
        optimizers = self.optimizers
        if not any(state["state"] for state in stored["optimizer_states"]):  # likewise
            self.optimizers = []
        try:
            return super().load_checkpoint(checkpoint_path, weights_only=True)
        finally:
            self.optimizers = optimizers


STRATEGIES: Mapping[str, Callable[[], Strategy]] = {
    "ddp": DDP,
    "fsdp2": FSDP2,
}


@contextmanager
def _timeouts(processes: int) -> Iterator[None]:
    """A start of the process groups; from then on their collectives may take `TIMEOUT`.

    Raises:
        RunError: not all processes have come.
    """
    try:
        yield
    except (dist.DistStoreError, dist.DistNetworkError) as e:
        minutes = START_TIMEOUT.total_seconds() / 60
        raise RunError(
            f"the {processes} processes of this run have not found each other within {minutes:g} minutes "
            f"({str(e).splitlines()[0]}): start all of them, with one MASTER_ADDR and MASTER_PORT, or fewer: "
            "trainer.devices=1 trainer.num_nodes=1"
        ) from e
    dist.distributed_c10d._get_default_store().set_timeout(TIMEOUT)
    for group in dist.distributed_c10d._world.pg_map:  # with those of the device mesh
        dist.distributed_c10d._set_pg_timeout(TIMEOUT, group)


def pick_strategy(name: str, devices: Any, num_nodes: int) -> Strategy | str:
    """The strategy of a name; `auto` is `ddp` where there is more than one process.

    Raises:
        UserError: no strategy of this name.
    """
    if name == "auto":
        return "auto" if devices in (1, "1") and num_nodes == 1 else STRATEGIES["ddp"]()
    if name not in STRATEGIES:
        raise UserError(no_such_choice(name, ["auto", *STRATEGIES], "trainer.strategy"))
    return STRATEGIES[name]()


def shard(policy: nn.Module, mesh: torch.distributed.DeviceMesh) -> None:
    """Split the parameters of every block of `policy`, and of what lies around the blocks, over the ranks of `mesh`.

    A block is an entry of an `nn.ModuleList`: a layer of Llama or of a vision tower. `log_prob`, `log_prob_and_state`,
    `matching_loss`, `act` and `imitation_loss` count as forwards of the whole. Calling it again changes nothing;
    without parameters nothing is split.

    Raises:
        UserError: quantised weights.
    """
    if is_sharded(policy) or next(policy.parameters(), None) is None:
        return
    if not all(p.is_floating_point() for p in policy.parameters()):
        raise UserError("quantised weights cannot be sharded: trainer.strategy=ddp, or policy.quantization=null")
    for blocks in [m for m in policy.modules() if isinstance(m, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh)
    # also after a forward: between rollouts and updates, optimizer and checkpoints have to find shards
    fully_shard(policy, mesh=mesh, reshard_after_forward=True)
    # the views are of the outputs of `log_prob`; nobody writes into them
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for method in ("log_prob", "log_prob_and_state", "matching_loss", "act", "imitation_loss"):
        if hasattr(policy, method):
            register_fsdp_forward_method(policy, method)


def shard_under_fsdp2(module: L.LightningModule, *parts: nn.Module) -> None:
    """The `configure_model` of a module whose `parts` are split over the ranks under `fsdp2`, and are whole elsewhere.

    Raises:
        UserError: quantised weights.
    """
    if isinstance(module.trainer.strategy, FSDP2):
        assert module.device_mesh is not None
        for part in parts:
            shard(part, module.device_mesh["data_parallel"])
