"""The schema: every value a run can be given, with its type, unit and default; `validate` checks them together.

Defaults are the hyper-parameters of the PCM paper (arXiv 2605.16154); `conf/*.yaml` change them (`compose`).
A node (policy, sim, mask, reward, trainer, each callback) is a plain dict with a `_target_` and the target's options,
or None; `vla_rl.config.instantiate` turns it into an object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Node = dict[str, Any]
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
    max_skipped_steps: int = 3  # in a row, whose loss or gradient is NaN or infinite; then reinforcement learning stops
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"  # 8 bits: its moments take a quarter of the memory


@dataclass(slots=True)
class EvaluationConfig:
    """Success on held-out initial states, before and after training."""

    sampled_episodes: int = 50  # actions sampled at the rollout temperature
    greedy_episodes: int = 50  # the most probable action; a flow's from its seeded first noise
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
