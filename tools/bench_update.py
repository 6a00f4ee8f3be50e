"""The actor update on the same weights, three ways: padded, every real chunk, PCM's choice.

    python tools/bench_update.py policy=openvla_oft_tiny
    python tools/bench_update.py policy=openvla_oft_7b policy.checkpoint=random:7b sim.camera_px=256 trajectories=80
    python tools/bench_update.py policy=flow_tiny

Trajectories are made up: of every four, three succeed after 16 chunks and one fails after 64 (512 control steps), so
that PCM's 12 are 2.3 times fewer than all real chunks and 5.3 times fewer than the padded ones. Everything else is the
program's own: masks, micro-batches, loss, clipping, optimizer (with a learning rate of 0: the weights stay the same).

    full_padded   64 rows of every trajectory
    full          its real chunks
    pcm           12 of them

Arguments are key=value: `trajectories` (4), and all of `python -m vla_rl.fit`, among them grpo.micro_rows. The last
line is JSON: `speedup_vs_full_padded`, `speedup_vs_full`, and for each way `seconds`, `rows`, `rows_per_s`,
`model_tflop_per_s` (forward and backward, without what gradient checkpointing repeats) and `peak_memory_mb` (of the
GPU; without one, of the process). On a GPU seconds are wall time; without one they are the process's CPU time, which on
one thread (OMP_NUM_THREADS=1) equals wall time on an idle machine, and which other users of a busy one do not change.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from callbacks.masks.padded import FullPadded
from callbacks.masks.pcm import PCM
from vla_rl.config.compose import compose
from vla_rl.config.instantiate import build
from vla_rl.config.schema import RolloutConfig
from vla_rl.errors import UserError
from vla_rl.policy.flops import flops_of, update_flops
from vla_rl.policy.flow.one_row import on_meta, one_row
from vla_rl.policy.flow.policy import FlowPolicy
from vla_rl.policy.memory_check import rows_that_fit
from vla_rl.rollout.collect import TimeSplit
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.epoch import Collected, RolloutEpoch
from vla_rl.run.cli import answer_early, run_entry
from vla_rl.run.provenance import versions
from vla_rl.training.grpo_module import GRPOModule
from vla_rl.types import Episode, Observation, RolloutGroup, Trajectory

BUDGET, MAX_CHUNKS = 12, 64
LENGTHS = (16, 16, 16, 64)  # chunks of a trajectory; the last one fails
TRAJECTORIES_PER_STEP = 2  # of the optimizer, as in PCM's paper
WAYS = {"pcm": lambda: [PCM(BUDGET)], "full": list, "full_padded": lambda: [FullPadded()]}
PROPRIO_DIMS, ACTION_DIMS = 8, 7  # of LIBERO
INSTRUCTION = "pick up the alphabet soup and place it in the basket"


def make_trajectory(index: int, policy: Any, px: int, temperature: float) -> Trajectory:
    """One decision of the policy from a random frame, repeated; half of the repetitions close the gripper."""
    rows, steps = LENGTHS[index % len(LENGTHS)], policy.chunk_steps
    draw = torch.Generator().manual_seed(index)
    success = rows < MAX_CHUNKS
    frame_NHWC = torch.randint(0, 256, (1, px, px, 3 * policy.images), dtype=torch.uint8, generator=draw)
    proprio_NP = torch.randn(1, policy.proprio_dims or PROPRIO_DIMS, generator=draw)
    action_NLA = torch.rand(rows, steps, ACTION_DIMS, generator=draw) * 2 - 1
    decision = policy.act(Observation(frame_NHWC, proprio_NP, [INSTRUCTION]), [index], temperature)
    actions = decision.rows(torch.zeros(rows, dtype=torch.int64))  # whose probability ratio is 1, as in a run
    return Trajectory(
        episode=Episode(uid=index, task=0, init_state=0, seed=index),
        instruction=INSTRUCTION,
        frame_NHWC=frame_NHWC.repeat(rows, 1, 1, 1),
        proprio_NP=proprio_NP.repeat(rows, 1),
        actions=replace(actions, action_NLA=action_NLA, command_NLA=action_NLA),
        gripper_closed_NL=(torch.arange(rows) >= rows // 2)[:, None].expand(-1, steps),
        executed_N=torch.full((rows,), steps),
        success=success,
        reward=float(success),
        advantage_N=torch.full((rows,), 0.5 if success else -1.5),
    )


class MadeUpData(L.LightningDataModule):
    """Iteration 0 warms up with one optimizer step, iteration 1 is measured."""

    seed, max_chunks = 0, MAX_CHUNKS
    transfer_batch_to_device = RolloutDataModule.transfer_batch_to_device  # rows that a mask drops are not moved

    def __init__(self, count: int, px: int, rollout: RolloutConfig) -> None:
        super().__init__()
        self.count, self.px, self.rollout = count, px, rollout
        self.trajectories: list[Trajectory] = []

    def max_chunks_of(self, window: int | None) -> int:
        return self.max_chunks

    def train_dataloader(self) -> RolloutEpoch:
        iteration, module = self.trainer.current_epoch, self.trainer.lightning_module
        if not self.trajectories:  # not before: the policy is on its device now
            made = partial(make_trajectory, policy=module.policy, px=self.px, temperature=module.temperature)
            self.trajectories = [made(index) for index in range(self.count)]
        chosen = self.trajectories if iteration else self.trajectories[-1:]
        group = RolloutGroup(chosen)
        steps = max(1, len(chosen) // TRAJECTORIES_PER_STEP)
        return RolloutEpoch(iteration, steps, 1, self.seed, lambda: Collected([group], chosen, TimeSplit()))


class Stopwatch(L.Callback):
    """Seconds, rows and peak memory of the last epoch, the mask's own work included."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        reset_peak_memory()
        self.rows = 0
        synchronize()
        self.began = seconds()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rows += len(batch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        synchronize()
        self.seconds = seconds() - self.began
        self.peak_memory_mb = peak_memory_mb()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds() -> float:
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text(
            "5", encoding="utf-8"
        )  # Linux: sets the highest resident size back to the present one


def peak_memory_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def measure(way: str, policy: Any, count: int, config: Any, folder: str) -> dict[str, float]:
    watch = Stopwatch()
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        callbacks=[*WAYS[way](), watch],
        default_root_dir=folder,
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = GRPOModule(policy, config.grpo, replace(config.optim, lr=0.0), config.rollout.temperature)
    trainer.fit(module, datamodule=MadeUpData(count, config.sim["camera_px"], config.rollout))
    return {"seconds": watch.seconds, "rows": watch.rows, "peak_memory_mb": watch.peak_memory_mb}


def flops_of_row(policy: Any, lora: dict[str, Any] | None) -> tuple[int, int]:
    """Of the forward, and of forward and backward."""
    if isinstance(policy, FlowPolicy):
        model = on_meta(policy.model)
        return flops_of(lambda: one_row(model, policy))
    return update_flops(policy.model.config, policy.prompts([INSTRUCTION])[0].shape[1], lora)


def trajectory_count(argv: list[str]) -> tuple[int, list[str]]:
    """`trajectories=` of the arguments, and the other ones."""
    mine = [argument for argument in argv if argument.startswith("trajectories=")]
    count = mine[-1].partition("=")[2] if mine else str(len(LENGTHS))
    if not count.isdigit() or int(count) < len(LENGTHS):
        raise UserError(
            f"trajectories must be a whole number of at least {len(LENGTHS)}, got '{count}': trajectories=80"
        )
    return int(count), [argument for argument in argv if argument not in mine]


def main(argv: list[str]) -> None:
    count, argv = trajectory_count(argv)
    config = compose(["conf=pcm_object_tiny", "grpo.entropy_coef=0", *argv])  # which flow policies refuse
    warnings.filterwarnings("ignore", message="You defined a `validation_step`")  # nothing is validated here
    config.grpo.micro_rows = rows_that_fit(
        config.policy,
        rows=config.grpo.micro_rows,
        optimizer=config.optim.optimizer,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    policy = build(config.policy, "policy")
    policy.fit_normalisation("made up", torch.rand(100, ACTION_DIMS) * 2 - 1, torch.randn(100, PROPRIO_DIMS))
    forward, flops = flops_of_row(policy, config.policy.get("lora"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    print(f"{device}; {count} trajectories, {config.grpo.micro_rows} rows per micro-batch, "
          f"{forward / 1e12:.3g} TFLOP forward and {flops / 1e12:.3g} in all per row")  # fmt: skip
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            result = measure(way, policy, count, config, folder)
            result["rows_per_s"] = result["rows"] / result["seconds"]
            result["model_tflop_per_s"] = result["rows_per_s"] * flops / 1e12
            results[way] = result
            print(f"{way:<12}{result['rows']:>6} rows  {result['seconds']:8.2f} s  {result['rows_per_s']:8.2f} rows/s  "
                  f"{result['model_tflop_per_s']:8.3g} TFLOP/s  {result['peak_memory_mb']:8.0f} MB")  # fmt: skip
    pcm, full, padded = (results[way] for way in ("pcm", "full", "full_padded"))
    line = {
        "speedup_vs_full_padded": padded["seconds"] / pcm["seconds"],
        "speedup_vs_full": full["seconds"] / pcm["seconds"],
        "rows_vs_full_padded": padded["rows"] / pcm["rows"],  # what arithmetic promises
        "rows_vs_full": full["rows"] / pcm["rows"],
        **{key: {way: results[way][key] for way in WAYS} for key in pcm},
        "trajectories": count,
        "micro_rows": config.grpo.micro_rows,
        "device": device,
        "versions": versions(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    answer_early(__doc__, parse=None)
    run_entry(main)
