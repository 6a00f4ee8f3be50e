"""`GRPOModule`: one optimizer step of masked GRPO on a `ChunkBatch`.

Rows were chosen before the step (a mask callback shrinks the batch in place); the step only pays for what is left:
fewer rows, fewer micro-batches. Manual optimisation, because one step runs over several micro-batches whose losses are
normalised by global counts, which is exact with unequal rows per micro-batch and per rank.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from vla_rl.config.schema import GRPOConfig, OptimConfig
from vla_rl.distributed.collectives import all_reduce_sum
from vla_rl.distributed.lockstep import forwards_to_add
from vla_rl.distributed.parameters import clip_grad_norm, trainable_parameters
from vla_rl.distributed.strategies import shard_under_fsdp2
from vla_rl.errors import RunError, UserError
from vla_rl.functional.losses import clipped_loss, one_ratio_per_chunk, planned_counts, token_weight
from vla_rl.functional.statistics import SuccessRate
from vla_rl.policy.value_head import NoValueHead, ValueHead
from vla_rl.rollout.epoch import HeldoutBatch
from vla_rl.rollout.trainer_state import data_of, epoch_of
from vla_rl.training.checkpoint_io import complete_checkpoint, keep_trained
from vla_rl.training.optimizer import build_optimizer
from vla_rl.training.rollout_metrics import HeldoutSuccess, RolloutStatistics
from vla_rl.types import ChunkBatch, Policy, Trajectory

MEASURES = ("clip_fraction", "log_ratio_abs", "velocity_change_abs", "entropy")  # means over tokens
FROM_ACTING = ("log_ratio_abs", "velocity_change_abs")  # how far the policy is from the one that acted


class GRPOModule(L.LightningModule):
    """The policy and its loss.

    Args:
        policy: an `nn.Module` that fulfils `vla_rl.types.Policy`; its parameters with `requires_grad` are trained.
        temperature: of the rollouts; log-probabilities are computed at the same one.
    """

    def __init__(self, policy: Policy, grpo: GRPOConfig, optim: OptimConfig, temperature: float) -> None:
        super().__init__()
        if grpo.entropy_coef and not policy.learns_entropy:
            raise UserError(
                f"the entropy of this policy is set by its noise and not learnt, so that grpo.entropy_coef="
                f"{grpo.entropy_coef} would do nothing: grpo.entropy_coef=0"
            )
        if grpo.loss == "nft" and "matching" not in policy.OFFERS:
            raise UserError(
                "grpo.loss=nft is of flow policies whose noise is a schedule, and this policy is another: "
                "grpo.loss=clipped"
            )
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold trainable tensors only
        self.policy = policy
        self.value_head: NoValueHead | ValueHead = NoValueHead()  # a critic that learns with the policy brings its own
        self.grpo, self.optim, self.temperature = grpo, optim, temperature
        self._loss = {"clipped": self._clipped, "nft": self._negative_aware}[grpo.loss]
        self.rollout_statistics, self.heldout_success = RolloutStatistics(), HeldoutSuccess()
        self.heldout: dict[str, SuccessRate] = {}  # of the last validation, by decoding: sampled, greedy
        self._skipped = 0  # optimizer steps in a row
        self._steps_of_trajectory = 0.0  # control steps, mean over this iteration's

    def configure_model(self) -> None:
        shard_under_fsdp2(self, self.policy, self.value_head)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = build_optimizer(trainable_parameters(self.policy).values(), self.optim)
        for group in self.value_head.parameter_groups():
            optimizer.add_param_group(group)
        return optimizer

    @property
    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer), "one optimizer, as `configure_optimizers` returns"
        return optimizer

    def on_train_epoch_start(self) -> None:
        epoch = epoch_of(self.trainer)
        self.rollout_statistics.reset()
        self.rollout_statistics.update(epoch)
        statistics = self.rollout_statistics.compute()
        if not statistics.pop("trained"):
            rank_zero_warn(f"iteration {epoch.iteration + 1} skipped: every group has equal rewards (zero advantage)")
        for tag, value in statistics.items():
            self._log(tag, value)
        self._steps_of_trajectory = statistics["rollout/steps"]
        self._log("time/rollout_s", epoch.time.total_s)

    def training_step(self, batch: ChunkBatch, batch_idx: int) -> None:
        began = time.perf_counter()
        self._log_rows(batch)
        for count in ("train/optimizer_steps", "train/skipped_steps"):
            self._log(count, 0.0, reduce_fx="sum")
        self._log("time/update_s", 0.0, reduce_fx="sum")  # also where the whole iteration has nothing to learn from
        totals = self.compute_gradient(batch)
        if not totals:  # every group of this step succeeded throughout or failed throughout
            return
        totals["grad_norm"] = clip_grad_norm(trainable_parameters(self).values(), self.optim.grad_clip)
        if not math.isfinite(totals["loss"] + totals["grad_norm"]):
            self._skip_step(totals)
            return
        self._skipped = 0
        self._optimizer.step()
        self._log("train/optimizer_steps", 1.0, reduce_fx="sum")
        if batch_idx == 0:  # nothing was updated since these chunks were sampled: rollout and update must agree
            for name in totals.keys() & FROM_ACTING:
                self._log(f"train/first_{name}", totals[name])
        for name, value in totals.items():
            self._log(f"train/{name}", value)
        self._log("time/update_s", time.perf_counter() - began, reduce_fx="sum")

    def compute_gradient(self, batch: ChunkBatch) -> dict[str, float]:
        """Leave the gradient of the batch's loss, over all ranks, in the parameters.

        Returns:
            The loss and its statistics over all ranks; nothing, and no gradient, where no rank has a token that counts.
        """
        shares = (batch.token_mask_NLA.flatten(1).sum(1) * batch.share_N).sum()  # the tokens, unless a mask says more
        steps = 0 if batch.stand_in else sum(trajectory.steps for trajectory in batch.trajectories)
        present = torch.tensor(
            [len(batch.trajectory_N[batch.counts_N].unique()), float(shares), steps], dtype=torch.float64
        )
        present_trajectories, tokens, steps = all_reduce_sum(present, self.trainer).tolist()
        if not tokens:
            return {}
        trajectories = present_trajectories
        if self.grpo.normalise_by == "planned":
            trajectories, tokens = planned_counts(
                tokens,
                steps,
                planned_trajectories=data_of(self.trainer).planned_trajectories / self.grpo.minibatches,
                steps_of_trajectory=self._steps_of_trajectory,
            )
        weight_NLA = token_weight(
            batch.token_mask_NLA,
            batch.trajectory_N,
            trajectories=trajectories,
            tokens=tokens,
            norm=self.grpo.loss_norm,
            longest=data_of(self.trainer).max_chunks * batch.token_mask_NLA[0].numel(),
            weight_N=batch.weight_N,
            share_N=batch.share_N,
        )
        self._optimizer.zero_grad()
        totals = self._backward(batch, weight_NLA) | {"weight": float(weight_NLA.sum())}
        sums = all_reduce_sum(torch.tensor(list(totals.values()), dtype=torch.float64), self.trainer)
        totals = dict(zip(totals, sums.tolist(), strict=True))
        weight = totals.pop("weight")
        if self.grpo.normalise_by == "planned":  # what is dropped has no tokens to measure
            totals |= {name: totals[name] / weight for name in MEASURES if name in totals}
        return totals | {"trajectories_per_step": present_trajectories}

    def _backward(self, batch: ChunkBatch, weight_NLA: Tensor) -> dict[str, float]:
        """Accumulate the gradient over micro-batches; gradients are exchanged with other ranks once, at the last."""
        totals: dict[str, float] = {}
        micro_batches = self._micro_batches(batch, weight_NLA)
        for index, (micro, weight_NLA) in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last else self.no_grad_sync():
                whole, stats = self._loss(micro, weight_NLA)
                # data-parallel strategies average gradients over ranks; the weights already divide by global counts
                self.manual_backward(whole * self.trainer.world_size)
            for name, value in stats.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return totals

    def _clipped(self, batch: ChunkBatch, weight_NLA: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's loss with its further terms, and detached sums to log."""
        logprob_NLA, entropy_NLA, terms = self.value_head.score(self.policy, batch, self.temperature, weight_NLA)
        device = logprob_NLA.device
        weight = weight_NLA.to(device)
        scored = logprob_NLA, batch.actions.logprob_NLA.to(device), weight
        logprob, old_logprob, weight_of_ratio = one_ratio_per_chunk(*scored) if self.grpo.ratio == "chunk" else scored
        loss, stats = clipped_loss(
            logprob,
            old_logprob,
            batch.finest_advantage.to(device),
            weight_of_ratio,
            clip_low=self.grpo.clip_low,
            clip_high=self.grpo.clip_high,
            dual_clip=self.grpo.dual_clip,
        )
        entropy = (weight * entropy_NLA).sum()
        stats |= {"loss": loss.detach(), "entropy": entropy.detach()}
        stats |= {name: term.detach() for name, term in terms.items()}
        return loss - self.grpo.entropy_coef * entropy + sum(terms.values()), stats

    def _negative_aware(self, batch: ChunkBatch, weight_NLA: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """DiffusionNFT's loss, and detached sums to log."""
        device = next(self.policy.parameters()).device
        loss_NLA, change_NLA = self.policy.matching_loss(batch, batch.finest_advantage.to(device))
        weight_NLA = weight_NLA.to(device)
        loss = (weight_NLA * loss_NLA).sum()
        return loss, {"velocity_change_abs": (weight_NLA * change_NLA).sum(), "loss": loss.detach()}

    def _micro_batches(self, batch: ChunkBatch, weight_NLA: Tensor) -> list[tuple[ChunkBatch, Tensor]]:
        """Rows and their weights, `micro_rows` at a time. Where each forward is a collective, all ranks have as many:
        those that have fewer go on with a row of no weight."""
        size = self.grpo.micro_rows or len(batch)  # None: all at once
        parts = [(batch.rows(i, i + size), weight_NLA[i : i + size]) for i in range(0, len(batch), size)]
        nothing = batch.rows(0, 1), torch.zeros_like(weight_NLA[:1])
        return parts + [nothing] * forwards_to_add(len(parts), self.policy, self.trainer)

    def no_grad_sync(self) -> Any:
        """A context in which gradients stay on their rank; under FSDP2 they are always exchanged."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if hasattr(strategy, "block_backward_sync") else nullcontext()

    def validation_step(self, batch: HeldoutBatch, batch_idx: int) -> dict[str, list[Trajectory]]:
        """Success on initial states never trained on; the episodes are shared out over ranks."""
        trajectories, _ = data_of(self.trainer).run(batch)
        self.heldout_success.reset()
        self.heldout_success.update(trajectories, batch.episodes)
        rate = self.heldout[batch.decoding] = SuccessRate.of_clusters(self.heldout_success.compute())
        self.log(f"heldout/{batch.decoding}_success", rate.rate, batch_size=1)
        return {"trajectories": trajectories}  # of this rank, for callbacks

    def _skip_step(self, totals: dict[str, float]) -> None:
        """Leave the policy as it is.

        Raises:
            RunError: it has happened too often in a row.
        """
        self._optimizer.zero_grad()
        self._skipped += 1
        self._log("train/skipped_steps", 1.0, reduce_fx="sum")
        what = f"loss {totals['loss']}, gradient norm {totals['grad_norm']}"
        where = f"iteration {self.trainer.current_epoch + 1}"
        if self._skipped >= self.optim.max_skipped_steps:
            raise RunError(
                f"loss or gradient was NaN or infinite in {self._skipped} optimizer steps in a row ({what} in "
                f"{where}); the policy was not changed by them: optim.lr={self.optim.lr / 2:g} in a new run_dir"
            )
        rank_zero_warn(f"optimizer step of {where} is skipped: {what}")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        complete_checkpoint(checkpoint, self)
        self._skipped = checkpoint.get("skipped_steps", 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped_steps"] = self._skipped
        keep_trained(checkpoint, self)

    def _log_rows(self, batch: ChunkBatch) -> None:
        """Rows this step pays for, and the real chunks they were chosen from, summed over the iteration and ranks."""
        kept = len(batch) if batch.token_mask_NLA.any() else 0  # else a row that is there to have one
        real = 0 if batch.stand_in else sum(len(trajectory) for trajectory in batch.trajectories)
        counts = all_reduce_sum(torch.tensor([kept, real], dtype=torch.float64), self.trainer)
        for name, value in zip(("chunks/kept", "chunks/real"), counts.tolist(), strict=True):
            self._log(name, value, reduce_fx="sum")

    def _log(self, name: str, value: float, reduce_fx: str = "mean") -> None:
        self.log(name, value, on_step=False, on_epoch=True, batch_size=1, reduce_fx=reduce_fx)
