"""The gradient of the real module, at values that act, equals autograd of the formula written out here.

Temperature 1.6, an entropy bonus, chunks drawn with unequal probabilities, a clip that stops tokens on both sides and
a dual clip, a policy that has moved since it acted, and a gradient clip.
"""

import lightning as L
import pytest
import torch

from callbacks.masks.pcm import PCM
from tests.helpers.toy import BINS, A, ToyPolicy, ToyPool
from tests.helpers.toy import L as STEPS
from vla_rl.config.schema import EvaluationConfig, GRPOConfig, OptimConfig, RolloutConfig
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.training.grpo_module import GRPOModule

TEMPERATURE, ENTROPY_COEF = 1.6, 0.01
CLIP_LOW, CLIP_HIGH, DUAL_CLIP = 0.02, 0.04, 1.03
GRAD_CLIP = {"traj_mean": 0.05, "token_mean": 0.05, "const": 0.01}
PLANNED = 10  # trajectories of a step, if no group is dropped
LONGEST_TOKENS = 6 * STEPS * A  # of the toy: 12 control steps are 6 chunks


class Steps(L.Callback):
    """Of each optimizer step: the policy before it, the rows that the mask left, and the gradient before and after
    the clip. Stands after the mask."""

    def __init__(self):
        self.policies, self.batches, self.gradients, self.clipped, self.groups = [], [], [], [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.groups.append(trainer.train_dataloader.groups)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        policy = ToyPolicy()
        policy.load_state_dict(pl_module.policy.state_dict())
        self.policies.append(policy)
        self.batches.append(batch)

    def on_after_backward(self, trainer, pl_module):  # after each micro-batch; the last one counts
        self._sum = gradient_of(pl_module.policy)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append(self._sum)
        self.clipped.append(gradient_of(pl_module.policy))


def gradient_of(policy):
    return torch.cat([p.grad.flatten().clone() for p in policy.parameters()])


def fit(folder, *callbacks, iterations=1, loss_norm="traj_mean", ratio="token"):
    policy, seen = ToyPolicy(), Steps()
    rollout = RolloutConfig(groups=4, group_size=5, temperature=TEMPERATURE, train_init_states=(0, 20))
    grpo = GRPOConfig(
        minibatches=2, epochs=2, micro_rows=5, loss_norm=loss_norm, entropy_coef=ENTROPY_COEF,
        normalise_by="planned" if loss_norm == "const" else "kept",
        clip_low=CLIP_LOW, clip_high=CLIP_HIGH, dual_clip=DUAL_CLIP, ratio=ratio,
    )  # fmt: skip
    data = RolloutDataModule(ToyPool(), policy, rollout=rollout, grpo=grpo, evaluation=EvaluationConfig(), seed=3)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=iterations, logger=False, enable_checkpointing=False, inference_mode=False,
        enable_progress_bar=False, enable_model_summary=False, reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False, num_sanity_val_steps=0, limit_val_batches=0, default_root_dir=folder,
        callbacks=[*callbacks, seen],
    )  # fmt: skip
    trainer.fit(
        GRPOModule(policy, grpo, OptimConfig(lr=0.03, grad_clip=GRAD_CLIP[loss_norm]), TEMPERATURE), datamodule=data
    )
    return seen


def log_softmax(policy, proprio_NP):
    return (policy.head(proprio_NP).view(-1, STEPS, A, BINS) / TEMPERATURE).log_softmax(-1)


def loss_by_formula(policy, batch, inclusion, estimator, loss_norm, ratio_of="token"):
    """sum_i sum_k u_k sum_t [- g - c H] / d, over the kept chunks k of trajectories i.

    g = min(rho A, clip(rho) A), and max(g, dual_clip A) where A < 0; rho of a token, or of all of a chunk's.

    u_k = 1 (`paper`) or 1 / pi_k (`ht`, `hajek`). A trajectory's d_i is its kept tokens (`paper`), all of its tokens
    (`ht`), or sum_k tokens_k / pi_k (`hajek`). d is, for `traj_mean` d_i times the trajectories, for `token_mean` the
    sum of all d_i, for `const` the longest episode's tokens times the trajectories that were planned.
    """
    sums, sizes, stopped = [], [], dict.fromkeys(("above", "below", "dual"), 0)
    for i, trajectory in enumerate(batch.trajectories):
        kept = batch.chunk_N[batch.trajectory_N == i]
        executed = trajectory.executed_NL[..., None].expand(-1, -1, A)
        logp = log_softmax(policy, trajectory.proprio_NP[kept])
        chosen = logp.gather(-1, trajectory.actions.drawn["token"][kept][..., None])[..., 0]
        log_ratio = chosen - trajectory.actions.logprob_NLA[kept]
        if ratio_of == "chunk":
            log_ratio = (log_ratio * executed[kept]).sum((1, 2), keepdim=True).expand_as(log_ratio)
        ratio = log_ratio.exp()
        advantage = trajectory.advantage_N[kept][:, None, None]
        gain = torch.min(ratio * advantage, ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantage)
        gain = torch.where(advantage < 0, gain.maximum(DUAL_CLIP * advantage), gain)
        entropy = -(logp.exp() * logp).sum(-1)
        loss_K = ((-gain - ENTROPY_COEF * entropy) * executed[kept]).sum((1, 2))
        stopped["above"] += int(((ratio > 1 + CLIP_HIGH) & (advantage > 0) & executed[kept]).sum())
        stopped["below"] += int(((ratio < 1 - CLIP_LOW) & (advantage < 0) & executed[kept]).sum())
        stopped["dual"] += int(((ratio > DUAL_CLIP) & (advantage < 0) & executed[kept]).sum())
        pi_K = torch.ones(len(kept)) if estimator == "paper" else inclusion(trajectory)[kept]
        tokens_K = executed[kept].sum((1, 2))
        sums.append((loss_K / pi_K).sum())
        sizes.append(executed.sum() if estimator == "ht" else (tokens_K / pi_K).sum())
    sums, sizes = torch.stack(sums), torch.stack(sizes)
    loss = {
        "traj_mean": (sums / sizes).mean(),
        "token_mean": sums.sum() / sizes.sum(),
        "const": sums.sum() / PLANNED / LONGEST_TOKENS,
    }[loss_norm]
    return loss, stopped


@pytest.mark.parametrize(
    ("loss_norm", "estimator", "ratio"),
    [(norm, estimator, "token") for norm in GRAD_CLIP for estimator in ("paper", "ht", "hajek")]
    + [("traj_mean", "hajek", "chunk")],
)
def test_the_gradient_is_that_of_the_formula(tmp_path, loss_norm, estimator, ratio):
    mask = PCM(budget=2, estimator=estimator)
    seen = fit(tmp_path, mask, loss_norm=loss_norm, ratio=ratio)
    assert len(seen.gradients) == 4
    inclusion = torch.cat([mask.inclusion(t) for batch in seen.batches for t in batch.trajectories])
    assert inclusion.unique().numel() > 2, "chunks are drawn with unequal probabilities"
    acted = dict.fromkeys(("above", "below", "dual", "shortened"), 0)
    for policy, batch, found, clipped in zip(seen.policies, seen.batches, seen.gradients, seen.clipped, strict=True):
        loss, stopped = loss_by_formula(policy, batch, mask.inclusion, estimator, loss_norm, ratio)
        loss.backward()
        expected = gradient_of(policy)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)  # order of float32 sums
        shorter = min(1.0, GRAD_CLIP[loss_norm] / float(expected.norm()))
        torch.testing.assert_close(clipped, shorter * expected, atol=1e-6, rtol=1e-4)
        for name, count in (stopped | {"shortened": shorter < 1}).items():
            acted[name] += count
    assert all(acted.values()), acted
