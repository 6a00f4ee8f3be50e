"""What must hold between the values of a config, which their types alone cannot say."""

from __future__ import annotations

from vla_rl.checks import check_count, check_number, check_range
from vla_rl.config.schema import Config, GRPOConfig, Node, RolloutConfig
from vla_rl.errors import UserError

LARGEST_SEED = 2**32 - 1  # that NumPy takes
# what a run does itself, which its Trainer is refused for -> what is meant
NOT_THE_TRAINERS = {
    "gradient_clip_val": "optim.grad_clip=1.0",
    "gradient_clip_algorithm": "optim.grad_clip=1.0",
    "accumulate_grad_batches": "grpo.minibatches=4",
    "limit_train_batches": "grpo.minibatches=4",
    "overfit_batches": "grpo.minibatches=4",
    "max_steps": "iterations=40",
    "min_steps": "iterations=40",
    "min_epochs": "iterations=40",
    "fast_dev_run": "iterations=1",
    "limit_val_batches": "evaluation.sampled_episodes=4",
    "limit_test_batches": "evaluation.sampled_episodes=4",
    "limit_predict_batches": "evaluation.sampled_episodes=4",
    "val_check_interval": "evaluation.every_iterations=4",
}
# in which Lightning leaves weights, forwards and gradients alone
PRECISIONS = ("32-true", "32", 32)


def validate(config: Config) -> None:
    """Raise UserError where values do not fit each other. Cheap: nothing is built."""
    _critic(config)
    _distillation(config)
    _rollout(config.rollout, config.critic, config.grpo.teacher)
    _grpo(config)
    _optim(config)
    _trainer(config.trainer)
    check_count("seed", config.seed, 1, least=0, most=LARGEST_SEED)
    check_count("iterations", config.iterations, 40, least=0)
    for name in ("sampled_episodes", "greedy_episodes", "every_iterations"):
        check_count(f"evaluation.{name}", getattr(config.evaluation, name), 0, least=0)
    for name, example in (("steps", 800), ("batch_rows", 16)):
        check_count(f"sft.{name}", getattr(config.sft, name), example)
    check_count("sft.workers", config.sft.workers, 2, least=0)
    if config.sft.per_task is not None:
        check_count("sft.per_task", config.sft.per_task, 1)


def _trainer(node: Node | None) -> None:
    for name, instead in NOT_THE_TRAINERS.items():
        if node is not None and node.get(name) is not None:
            raise UserError(f"trainer.{name} has no place here, the run does that itself: {instead}")
    precision = None if node is None else node.get("precision")
    if precision is not None and precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision={precision} has no place here: it would change the numbers of the update and not those "
            "of the rollouts; the type of the weights is policy.dtype: trainer.precision=32-true policy.dtype=bfloat16"
        )


def _critic(config: Config) -> None:
    gae = config.grpo.advantage == "gae"
    if gae and config.critic is None:
        raise UserError("grpo.advantage=gae takes the advantages of a critic, and there is none: critic=separate")
    if config.critic is not None and not gae:
        raise UserError(
            f"a critic gives the advantages itself, but grpo.advantage={config.grpo.advantage}: "
            "grpo.advantage=gae grpo.group_filter=keep, or critic=null"
        )
    if gae and config.grpo.group_filter in ("drop", "resample"):
        raise UserError(
            "with a critic, groups of equal rewards have advantages too, but grpo.group_filter="
            f"{config.grpo.group_filter} leaves them out: grpo.group_filter=keep"
        )


def _distillation(config: Config) -> None:
    grpo = config.grpo
    if grpo.advantage == "distill" and grpo.teacher is None:
        raise UserError(
            "grpo.advantage=distill takes the advantages of a teacher, and there is none: grpo.teacher=FOLDER"
        )
    if grpo.teacher is None:
        return
    if grpo.advantage != "distill":
        raise UserError(
            f"a teacher gives the advantages itself, but grpo.advantage={grpo.advantage}: grpo.advantage=distill "
            "grpo.group_filter=keep, or grpo.teacher=null"
        )
    if grpo.group_filter in ("drop", "resample"):
        raise UserError(
            "with a teacher, groups of equal rewards have advantages too, but grpo.group_filter="
            f"{grpo.group_filter} leaves them out: grpo.group_filter=keep"
        )
    if grpo.ratio == "chunk":
        raise UserError("a teacher gives each number its own advantage, but grpo.ratio=chunk has one of a chunk: "
                        "grpo.ratio=token")  # fmt: skip
    if config.reward is not None:
        raise UserError("a teacher's advantages use no reward, and one is given: reward=none")


def _rollout(rollout: RolloutConfig, critic: Node | None, teacher: str | None) -> None:
    check_count("rollout.groups", rollout.groups, 8)
    if rollout.group_size == 1 and critic is None and teacher is None:
        raise UserError("group size 1 has no spread to learn from: rollout.group_size=8, or a critic")
    check_count("rollout.group_size", rollout.group_size, 8)
    check_number("rollout.temperature", rollout.temperature, 1.6, above=0)
    if rollout.stop_below is not None:
        check_number("rollout.stop_below", rollout.stop_below, 0.05)
        if critic is None:
            raise UserError(
                f"rollout.stop_below={rollout.stop_below} needs the values of a critic, and there is none: "
                "critic=separate grpo.advantage=gae grpo.group_filter=keep, or rollout.stop_below=null"
            )
    check_count("rollout.stop_after", rollout.stop_after, 3)
    check_number("rollout.stop_run_on", rollout.stop_run_on, 0.1, least=0, most=1)
    for name in ("train_init_states", "heldout_init_states"):
        check_range(f"rollout.{name}", getattr(rollout, name), "[0,40]")
    train, heldout = rollout.train_init_states, rollout.heldout_init_states
    if max(train[0], heldout[0]) < min(train[1], heldout[1]):
        raise UserError(
            f"training and held-out initial states overlap, {list(train)} and {list(heldout)}: "
            f"rollout.heldout_init_states=[{train[1]},{train[1] + heldout[1] - heldout[0]}]"
        )


def _grpo(config: Config) -> None:
    grpo, trajectories = config.grpo, config.rollout.groups * config.rollout.group_size
    for name, example in (("minibatches", 4), ("epochs", 1), ("micro_rows", 12), ("resample_rounds", 2)):
        if getattr(grpo, name) is not None:
            check_count(f"grpo.{name}", getattr(grpo, name), example)
    size, kept = config.rollout.group_size, grpo.downsample
    if kept is not None and (kept < 2 or kept % 2 or kept > size):
        raise UserError(
            f"grpo.downsample must be even and from 2 to the group size {size}, got {kept}: "
            f"grpo.downsample={max(2, size // 4 * 2)}"
        )
    if grpo.minibatches > trajectories:
        raise UserError(
            f"{grpo.minibatches} minibatches cannot share {trajectories} trajectories "
            f"({config.rollout.groups} groups of {config.rollout.group_size}): grpo.minibatches={trajectories}"
        )
    check_number("grpo.clip_low", grpo.clip_low, 0.2, above=0, below=1)
    check_number("grpo.clip_high", grpo.clip_high, 0.4, above=0)
    if grpo.dual_clip is not None:
        check_number("grpo.dual_clip", grpo.dual_clip, 3.0, above=1)
    if grpo.loss_norm == "const" and grpo.normalise_by == "kept":
        raise UserError(
            "grpo.loss_norm=const divides by a constant, but grpo.normalise_by=kept by the trajectories that are left: "
            "grpo.normalise_by=planned"
        )
    if grpo.loss == "nft":
        _nft(grpo)
    check_number("grpo.advantage_eps", grpo.advantage_eps, 1e-6, above=0)
    check_number("grpo.entropy_coef", grpo.entropy_coef, 0.001, least=0)


def _nft(grpo: GRPOConfig) -> None:
    """It has no probability ratio, and no entropy."""
    for name, none in (("ratio", "token"), ("dual_clip", None), ("entropy_coef", 0.0)):
        if getattr(grpo, name) != none:
            fix = "null" if none is None else none
            raise UserError(
                f"grpo.loss=nft uses no log-probabilities, so that grpo.{name}={getattr(grpo, name)} would do nothing: "
                f"grpo.{name}={fix}, or grpo.loss=clipped"
            )
    if grpo.advantage == "distill":
        raise UserError(
            "grpo.loss=nft has no probability of single numbers, and grpo.advantage=distill gives each its own "
            "advantage: grpo.loss=clipped, or another advantage"
        )


def _optim(config: Config) -> None:
    check_number("optim.lr", config.optim.lr, 1e-5, above=0)
    check_number("optim.grad_clip", config.optim.grad_clip, 2.0, above=0)
    check_count("optim.max_skipped_steps", config.optim.max_skipped_steps, 3)
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        raise UserError(f"optim.betas must lie in [0, 1), got {list(config.optim.betas)}: optim.betas=[0.9,0.999]")
    check_number("optim.weight_decay", config.optim.weight_decay, 0, least=0)
