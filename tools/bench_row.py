"""One row of a policy on this machine: load it, act once, take one optimizer step; time and memory beside the plan.

    python tools/bench_row.py policy=openvla_oft_7b policy.checkpoint=FOLDER sim.camera_px=256

FOLDER is a checkpoint, or random weights with the same widths (tools/write_random_checkpoint.py). The row is a made-up
frame; loss, clipping and optimizer are the program's own.

Arguments are those of `python -m vla_rl.fit`. The last line is JSON: `parameters`, `plan_mb` (of the update),
`log_ratio_abs` (between the log-probabilities of acting and of the update, before its step), and for
each of `load`, `act` and `update` its `seconds` and the `peak_memory_mb` since the start, as tools/bench_update.py
measures them.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from tools.bench_update import INSTRUCTION, peak_memory_mb, seconds, synchronize
from vla_rl.config.compose import compose
from vla_rl.config.instantiate import build
from vla_rl.config.schema import Config
from vla_rl.policy.memory_check import PLANS, device_memory, rows_that_fit
from vla_rl.rollout.collect import TimeSplit
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.epoch import Collected, RolloutEpoch
from vla_rl.run.cli import answer_early, run_entry
from vla_rl.run.provenance import versions
from vla_rl.training.grpo_module import GRPOModule
from vla_rl.types import Episode, Observation, RolloutGroup, Trajectory


class OneRow(L.LightningDataModule):
    """One iteration of one optimizer step on one decision."""

    seed, max_chunks = 0, 1
    transfer_batch_to_device = RolloutDataModule.transfer_batch_to_device

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__()
        self.trajectory = trajectory

    def train_dataloader(self) -> RolloutEpoch:
        group = RolloutGroup([self.trajectory])
        return RolloutEpoch(0, 1, 1, 0, lambda: Collected([group], group.trajectories, TimeSplit()))


def act(policy: Any, temperature: float, px: int) -> Trajectory:
    """An episode of one decision, which failed."""
    draw = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (1, px, px, 3 * policy.images), dtype=torch.uint8, generator=draw)
    observation = Observation(frame, torch.zeros(1, 8), [INSTRUCTION])
    actions = policy.act(observation, [0], temperature)
    return Trajectory(
        episode=Episode(uid=0, task=0, init_state=0, seed=0),
        instruction=INSTRUCTION,
        frame_NHWC=frame,
        proprio_NP=observation.proprio_NP,
        actions=actions,
        gripper_closed_NL=torch.zeros(1, policy.chunk_steps, dtype=torch.bool),
        executed_N=torch.tensor([policy.chunk_steps]),
        success=False,
        reward=0.0,
        advantage_N=torch.tensor([-1.0]),
    )


def update(policy: Any, trajectory: Trajectory, config: Config) -> float:
    """Take the step; how far the log-probabilities before it were from those of the rollout."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="auto",
            devices=1,
            default_root_dir=folder,
            max_epochs=1,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = GRPOModule(policy, config.grpo, config.optim, config.rollout.temperature)
        trainer.fit(module, datamodule=OneRow(trajectory))
        return float(trainer.callback_metrics["train/first_log_ratio_abs"])


def main(argv: list[str]) -> None:
    config = compose(["conf=pcm_object_tiny", *argv])
    warnings.filterwarnings("ignore", message="You defined a `validation_step`")  # nothing is validated here
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = {"rows": 1, "optimizer": config.optim.optimizer}
    config.grpo.micro_rows = rows_that_fit(config.policy, device=device, **options)
    plan = PLANS[config.policy["_target_"]](config.policy, available=device_memory(device), **options)
    line: dict[str, Any] = {"plan_mb": plan.total / 2**20}

    def measured(name: str, work: Callable[[], Any]) -> Any:
        began = seconds()
        result = work()
        synchronize()
        line[name] = {"seconds": seconds() - began, "peak_memory_mb": peak_memory_mb()}
        print(f"{name:<8}{line[name]['seconds']:10.2f} s {line[name]['peak_memory_mb']:8.0f} MB", flush=True)
        return result

    policy = measured("load", lambda: build(config.policy, "policy").to(device))
    line["parameters"] = sum(parameter.numel() for parameter in policy.parameters())
    trajectory = measured("act", lambda: act(policy, config.rollout.temperature, config.sim["camera_px"]))
    line["log_ratio_abs"] = measured("update", lambda: update(policy, trajectory, config))
    print(json.dumps(line | {"device": str(device), "threads": torch.get_num_threads(), "versions": versions()}))


if __name__ == "__main__":
    answer_early(__doc__, parse=None)
    run_entry(main)
