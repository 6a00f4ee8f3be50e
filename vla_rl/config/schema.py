"""The schema: every value a run can be given, with its type, unit and default, and what must hold between values.

Defaults are the hyper-parameters of the PCM paper (arXiv 2605.16154); `conf/*.yaml` change them (`compose`).
A node (policy, sim, mask, reward, trainer, each callback) is a plain dict with a `_target_` and the target's options,
or None; `vla_rl.config.instantiate` turns it into an object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vla_rl.checks import check_count, check_number
from vla_rl.errors import UserError

Node = dict[str, Any]
LARGEST_SEED = 2**32 - 1  # that NumPy takes
# what a run does itself, which its Trainer is refused for -> what is meant
NOT_THE_TRAINERS = {
    "gradient_clip_val": "optim.grad_clip=1.0",
    "accumulate_grad_batches": "grpo.minibatches=4",
    "limit_train_batches": "grpo.minibatches=4",
    "overfit_batches": "grpo.minibatches=4",
    "max_steps": "iterations=40",
    "min_steps": "iterations=40",
    "min_epochs": "iterations=40",
    "fast_dev_run": "iterations=1",
    "limit_val_batches": "evaluation.sampled_episodes=4",
    "limit_test_batches": "evaluation.sampled_episodes=4",
    "val_check_interval": "evaluation.every_iterations=4",
}
# in which Lightning leaves weights, forwards and gradients alone
PRECISIONS = ("32-true", "32", 32)
# nodes with ready-made files: conf/<group>/<name>.yaml
GROUPS = ("policy", "sim", "critic", "mask", "reward", "trainer", "logger")
# what supervised training uses; all but `sft` is of reinforcement learning, too
SUPERVISED = ("conf", "seed", "run_dir", "resume", "optim", "sft", "policy", "trainer", "logger", "callbacks")


@dataclass(slots=True)
class RolloutConfig:
    """Which episodes an iteration collects. Initial states are official indices, or seeds of drawn placements."""

    groups: int = 8  # per iteration, over all ranks
    group_size: int = 10  # G: trajectories of one task and initial state
    temperature: float = 1.6  # of sampling; log-probabilities are taken at the same one
    train_init_states: tuple[int, int] = (0, 40)  # half-open range that training draws from
    heldout_init_states: tuple[int, int] = (40, 50)  # half-open range that evaluation draws from
    stop_below: float | None = None  # end an episode whose value, by a critic, stays below this; null = never
    stop_after: int = 3  # decisions in a row with such a value
    stop_run_on: float = 0.1  # share of these episodes that run on, which tells how many would have succeeded
    asynchronous: bool = False  # collect an iteration's episodes while the one before is trained on


@dataclass(slots=True)
class GRPOConfig:
    """The loss, and how an iteration's trajectories become optimizer steps."""

    advantage: str = "grpo"  # grpo, grpo_unbiased, rloo, dr_grpo, ngrpo, raft, gae, distill, or my_pkg.my_function
    teacher: str | None = None  # of advantage=distill: a folder, an adapter's folder, shipped:NAME or a hub name
    advantage_eps: float = 1e-6  # added to the group's standard deviation
    group_filter: str = "drop"  # groups without a spread of rewards: drop, keep, resample, or my_pkg.my_function
    resample_rounds: int = 2  # group_filter=resample: how often at most their replacements are collected
    downsample: int | None = None  # PODS: trajectories trained on of each group, half the best, half the worst
    loss: Literal["clipped", "nft"] = "clipped"  # PPO's; nft, of flow policies, needs no likelihood and clips nothing
    clip_low: float = 0.2  # the probability ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float = 0.4
    ratio: Literal["token", "chunk"] = "token"  # what the clip limits: each number's probability ratio, or each chunk's
    dual_clip: float | None = None  # ratio at which the gradient of a negative advantage stops, e.g. 3.0; null = never
    entropy_coef: float = 1e-3  # weight of the entropy bonus
    minibatches: int = 40  # optimizer steps per pass over an iteration's trajectories
    epochs: int = 1  # passes over an iteration's trajectories
    micro_rows: int | None = 12  # chunks per forward and backward: memory and speed, not the result; null = what fits
    loss_norm: Literal["traj_mean", "token_mean", "const"] = "traj_mean"  # `vla_rl.functional.losses.token_weight`
    normalise_by: Literal["kept", "planned"] = "kept"  # the loss divides by what is left, or counts dropped groups as 0


@dataclass(slots=True)
class OptimConfig:
    """AdamW, of reinforcement learning and of supervised training."""

    lr: float = 1e-5  # in supervised training the peak, which decays along a cosine to 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    grad_clip: float = 2.0  # largest norm of the gradient
    max_skipped_steps: int = 3  # in a row, whose loss or gradient is no number; then reinforcement learning stops
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"  # 8 bits: its moments take a quarter of the memory


@dataclass(slots=True)
class EvaluationConfig:
    """Success on held-out initial states, before and after training."""

    sampled_episodes: int = 50  # actions sampled at the rollout temperature
    greedy_episodes: int = 50  # the most probable action
    every_iterations: int = 0  # evaluate during training as well; 0 = never


@dataclass(slots=True)
class SFTConfig:
    """Supervised training on demonstrations (`python -m vla_rl.sft`)."""

    demos: str | None = None  # file or folder of demonstrations, shipped:NAME, or a data set on the hub
    per_task: int | None = None  # the first n demonstrations of each instruction; null = all
    drop_noops: bool = False  # leave out control steps that do nothing
    cameras: list[str] | None = None  # keys of the pictures, in the order of the policy's; null = the format's usual
    state: list[str] | None = None  # keys of the proprioception, one after the other; null = the format's usual
    action: str | None = None  # key of the actions; null = the format's usual
    turned: bool | None = None  # pictures are turned by 180 degrees against the simulator's; null = the format's usual
    statistics: str | None = None  # dataset_statistics.json that normalises a policy of random weights; null = measured
    workers: int = 0  # processes that read batches ahead, of each rank
    steps: int = 800  # optimizer steps
    batch_rows: int = 16  # chunks per optimizer step, on each rank


@dataclass(slots=True)
class VideoConfig:
    """Which episodes become a video: any that one of the rules names, in the order they were planned."""

    first: int = 2  # the first n episodes
    failures: int = 2  # the first n that fail
    per_group: int = 0  # the first n of each group; in an evaluation, of each task


@dataclass(slots=True)
class EvaluateConfig:
    """What `python -m vla_rl.evaluate` takes beside a conf and its values."""

    checkpoint: list[str] | None = None  # one, or several to compare with the first; null = the conf's policy
    protocol: str = "heldout"  # heldout, oft, simplevla, rlinf, openpi, lerobot (`vla_rl.evaluation.protocols`)
    decoding: Literal["greedy", "sampled"] | None = None  # null = the protocol's
    init_states: tuple[int, int] | None = None  # half-open range of every task's initial states; null = the protocol's
    windows: list[int] | None = None  # control steps executed of each chunk, one or several; null = the protocol's
    names: list[str] | None = None  # of conf=published: rows of its list; null = all
    perturb: Literal["table"] | None = None  # the drop of success under each perturbation; null = the conf's alone
    videos: VideoConfig = field(default_factory=VideoConfig)


@dataclass(slots=True)
class ServeConfig:
    """What `python -m vla_rl.serve` takes beside a conf and its values."""

    checkpoint: str | None = None  # a folder, an adapter's folder, shipped:NAME or a hub name; null = the conf's policy
    host: str = "127.0.0.1"  # address that clients connect to; 0.0.0.0 = from other machines, too
    port: int = 8000  # 0 = any that is free
    decoding: Literal["greedy", "sampled"] = "greedy"  # sampled: at rollout.temperature
    window: int | None = None  # control steps of a chunk that are sent; null = all
    turned: bool = True  # pictures arrive turned by 180 degrees against what the simulator renders
    max_batch: int = 8  # requests of one forward
    max_message_mb: float = 16.0  # of a message; a client that sends more is disconnected
    requests_per_s: float = 100.0  # of one client
    max_clients: int = 64  # connected at once


@dataclass(slots=True)
class CompareConfig:
    """What `python -m vla_rl.compare` takes beside run folders."""

    out: str = "comparison"  # folder for the table and the figures
    against: str | None = None  # arm that the others are compared with; null = that of the first run
    table: Literal["text", "markdown"] = "text"  # how the tables are printed


@dataclass(slots=True)
class SweepConfig(CompareConfig):
    """What a sweep of `vla_rl.compare` takes beside a conf and lists of values."""

    out: str = ""  # folder of the runs, the tables and the figures


@dataclass(slots=True)
class ExportConfig:
    """What `python -m vla_rl.export` takes."""

    checkpoint: str | None = None  # a run's .ckpt; with an adapter its base: a folder, shipped:NAME or a hub name
    adapter: str | None = None  # folder of adapters to merge into the checkpoint
    out: str | None = None  # folder to write; with push null = a temporary one
    push: str | None = None  # name on the Hugging Face hub, OWNER/NAME, that the policy is uploaded to; null = nothing
    private: bool = True  # whether a new repository there is
    dry_run: bool = False  # only say what push would upload


@dataclass(slots=True)
class RecordConfig:
    """What `python -m vla_rl.record` takes."""

    out: str | None = None  # .npz file to write, or without a suffix the folder of a LeRobotDataset v3
    successes_only: bool = True  # false: a LeRobotDataset takes failures, too
    checkpoint: str | None = None  # policy that plays; null = the conf's, or without a conf the scripted demonstrator
    decoding: Literal["greedy", "sampled"] | None = None  # of a policy; null = sampled at rollout.temperature
    check: bool = False  # only measure success
    suite: str = "object"  # of LIBERO, where the script solves object, or of Meta-World: mt50, mt10, easy, ...
    tasks: list[int | str] | None = None  # indices, of Meta-World also names; null = all
    init_states: tuple[int, int] = (0, 50)  # half-open range of each task's
    episodes_per_task: int | None = None  # null = one of each initial state
    noise: float = 0.0  # standard deviation added to the executed xyz command
    hesitation: float = 0.0  # probability of a slow step
    placement_noise_m: float = 0.0  # radius of the disc that objects are placed in
    linger_steps: int = 6  # control steps recorded after success
    horizon: int | None = None  # control steps after which a demonstration has failed; null = the suite's
    assets: str = "standin"  # standin, hub, or a folder
    camera_px: int = 128  # of a frame
    seed: int = 1  # of noise and hesitation, or of a policy's sampling
    workers: int = 2  # processes


@dataclass(slots=True)
class Config:
    """Everything a run is given."""

    conf: str = ""  # name of the file in conf/ the run started from
    seed: int = 1  # of initial states, action sampling, masks and minibatches
    iterations: int = 200  # collect, then update
    run_dir: str | None = None  # folder of the run; null = runs/<conf>/<time>
    resume: str | None = None  # go on with a run: its folder, one of its checkpoints, or auto = the one in run_dir
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    policy: Node | None = None
    sim: Node | None = None
    critic: Node | None = None  # gives every chunk its own advantage (grpo.advantage=gae); null = none
    mask: Node | None = None  # which chunks are trained on; null = all
    reward: Node | None = None  # shapes rewards; null = 1 on success, else 0
    trainer: Node | None = None
    logger: Node | None = None  # where scalars go beside TensorBoard and metrics.jsonl
    callbacks: dict[str, Node | None] = field(default_factory=dict)  # named slots; null removes one


def validate(config: Config) -> None:
    """What types alone cannot say. Cheap: nothing is built."""
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
        low, high = getattr(rollout, name)
        if not 0 <= low < high:
            raise UserError(f"rollout.{name} must be a range with 0 <= first < end, got [{low}, {high}]: "
                            f"rollout.{name}=[0,40]")  # fmt: skip
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
