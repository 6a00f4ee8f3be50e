"""What verbs with options of their own make of their arguments, before anything that takes seconds is imported."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from vla_rl.config.compose import compose, given_keys, is_inside, only_options, own_options, with_conf
from vla_rl.config.policy_node import policy_option
from vla_rl.config.schema import CompareConfig, Config, EvaluateConfig, RecordConfig, ServeConfig, SweepConfig
from vla_rl.errors import UserError

# what a policy that only acts uses of a config
ACTING = ("conf", "seed", "policy", "trainer", "rollout.temperature")
# and what else an evaluation does; `resume` is refused with a reason of its own
EVALUATING = (
    *("sim", "run_dir", "resume", "rollout.heldout_init_states"),
    *("evaluation.sampled_episodes", "evaluation.greedy_episodes"),
)
# options of these nodes that act in training alone
TRAINING = (
    *("policy.gradient_checkpointing", "policy.vision_cache_rows"),
    *("trainer.max_epochs", "trainer.max_time", "trainer.check_val_every_n_epoch", "trainer.num_sanity_val_steps"),
    *("trainer.log_every_n_steps", "trainer.reload_dataloaders_every_n_epochs", "trainer.detect_anomaly"),
)
# and where several processes do: a policy is served, and recorded, by one
TOGETHER = ("trainer.strategy", "trainer.num_nodes")
# options of sampling
SAMPLING = ("rollout.temperature", "policy.noise_level", "policy.noisy_steps")
# what the scripted demonstrator alone uses of a recording's options
EXPERTS = (
    *("check", "suite", "tasks", "noise", "hesitation", "placement_noise_m", "linger_steps", "horizon", "assets"),
    *("camera_px", "workers"),
)


def compare_arguments(argv: list[str]) -> tuple[list[str], CompareConfig]:
    """Run folders, or of a sweep the arguments of its runs; and the options."""
    if argv[:1] == ["sweep"]:
        sweep_options, of_runs = own_options(SweepConfig, argv[1:])
        if not sweep_options.out:
            raise UserError("a sweep needs a folder for its runs: out=runs/sweep")
        return of_runs, sweep_options
    folders = [argument for argument in argv if "=" not in argument or Path(argument).is_dir()]
    options = only_options(CompareConfig, [argument for argument in argv if argument not in folders])
    if not folders:
        raise UserError("no run folders given: python -m vla_rl.compare runs/one runs/other")
    return folders, options


def evaluate_arguments(argv: list[str]) -> tuple[EvaluateConfig, Config, list[str]]:
    """The options, the config, and the keys of it that were given."""
    options, rest = own_options(EvaluateConfig, argv)
    config, who = compose(rest), "an evaluation"
    given = _check_used(rest, who, *ACTING, *EVALUATING)
    _check_idle(given, who, TRAINING)
    _check_once(options.checkpoint or [], given)
    return options, config, given


def serve_arguments(argv: list[str]) -> tuple[ServeConfig, Config]:
    """The options, and the config that the policy comes from."""
    options, rest = own_options(ServeConfig, argv)
    config = compose(with_conf(rest))
    _check_acting_alone(rest, "a served policy", options, config, *ACTING)
    return options, config


def record_arguments(argv: list[str]) -> tuple[RecordConfig, Config | None]:
    """The options, and where a policy plays the config that it comes from."""
    names = [argument.partition("=")[0] for argument in argv]
    if not {"conf", "checkpoint"} & set(names):
        options = only_options(RecordConfig, argv)
        _check_expert(options, names)
        return options, None
    options, rest = own_options(RecordConfig, argv)
    config = compose(with_conf(rest))
    _check_acting_alone(rest, "a recording", options, config, *ACTING, "sim")
    for name in EXPERTS:
        if name in names:
            raise UserError(
                f"{name} is of the scripted demonstrator, and a policy plays: leave it out (its simulators are the "
                "conf's: sim.tasks=[0,5])"
            )
    if not options.out:
        raise UserError("missing out=: out=demos (to only measure success: python -m vla_rl.evaluate)")
    return options, config


def _check_expert(options: RecordConfig, given: Collection[str]) -> None:
    """Raise UserError for an option that the others leave without effect."""
    for name in ("camera_px", "linger_steps", "successes_only"):
        if options.check and name in given:
            raise UserError(f"check=true only measures success, so that {name} would do nothing: leave it out")


def _check_acting_alone(
    argv: list[str], who: str, options: ServeConfig | RecordConfig, config: Config, *used: str
) -> None:
    """Of a policy that one process runs, on one device."""
    given = _check_used(argv, who, *used)
    _check_idle(given, who, TRAINING + TOGETHER)
    devices = (config.trainer or {}).get("devices", 1)
    several = len(devices) > 1 if isinstance(devices, list) else type(devices) is int and devices > 1
    if several and "trainer.devices" in given:  # a conf may have them for its training
        raise UserError(f"{who} has one device, and trainer.devices={devices} is given: trainer.devices=1")
    _check_once([options.checkpoint] if options.checkpoint else [], given)
    if options.decoding == "greedy":
        for key in SAMPLING:
            if key in given:
                raise UserError(f"{key} is of sampling, and decoding=greedy: decoding=sampled, or leave it out")


def _check_used(argv: list[str], who: str, *used: str) -> list[str]:
    """The keys that are given; UserError for one that is neither among those used nor inside one of them. A conf has
    many more, as training uses them."""
    given = given_keys(argv)
    unused = [key for key in given if not any(is_inside(key, name) for name in used)]
    if unused:
        raise UserError(f"{who} does not use {', '.join(unused)}: leave it out. Of a conf it uses {', '.join(used)}")
    return given


def _check_idle(given: list[str], who: str, idle: Collection[str]) -> None:
    if unused := [key for key in given if key in idle]:
        raise UserError(f"{who} does not use {', '.join(unused)}: leave it out")


def _check_once(checkpoints: Collection[str], given: Collection[str]) -> None:
    """Raise UserError where a checkpoint takes the place of one that is given, too."""
    for name in checkpoints:
        if (key := f"policy.{policy_option(name)}") in given:
            raise UserError(f"checkpoint={name} takes the place of {key}, which is given as well: leave {key} out")
