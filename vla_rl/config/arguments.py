"""What verbs with options of their own make of their arguments, before anything that takes seconds is imported."""

from __future__ import annotations

from pathlib import Path

from vla_rl.config.compose import compose, given_keys, only_options, own_options, with_conf
from vla_rl.config.schema import CompareConfig, Config, EvaluateConfig, RecordConfig, ServeConfig, SweepConfig
from vla_rl.errors import UserError

# what a policy that only acts uses of a config
ACTING = ("conf", "seed", "policy", "trainer", "rollout.temperature")
# and what else an evaluation does; `resume` is refused with a reason of its own
EVALUATING = (
    *("sim", "run_dir", "resume", "rollout.heldout_init_states"),
    *("evaluation.sampled_episodes", "evaluation.greedy_episodes"),
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
    config = compose(rest)
    return options, config, _check_used(rest, "an evaluation", *ACTING, *EVALUATING)


def serve_arguments(argv: list[str]) -> tuple[ServeConfig, Config]:
    """The options, and the config that the policy comes from."""
    options, rest = own_options(ServeConfig, argv)
    config = compose(with_conf(rest))
    _check_sampling(_check_used(rest, "a served policy", *ACTING), options.decoding)
    return options, config


def record_arguments(argv: list[str]) -> tuple[RecordConfig, Config | None]:
    """The options, and where a policy plays the config that it comes from."""
    if any(argument.partition("=")[0] in ("conf", "checkpoint") for argument in argv):
        options, rest = own_options(RecordConfig, argv)
        config = compose(with_conf(rest))
        _check_sampling(_check_used(rest, "a recording", *ACTING, "sim"), options.decoding)
        return options, config
    return only_options(RecordConfig, argv), None


def _check_used(argv: list[str], who: str, *used: str) -> list[str]:
    """The keys that are given; UserError for one that is neither among those used nor inside one of them. A conf has
    many more, as training uses them."""
    given = given_keys(argv)
    unused = [key for key in given if not any(f"{key}.".startswith(f"{name}.") for name in used)]
    if unused:
        raise UserError(f"{who} does not use {', '.join(unused)}: leave it out. Of a conf it uses {', '.join(used)}")
    return given


def _check_sampling(given: list[str], decoding: str | None) -> None:
    if "rollout.temperature" in given and decoding == "greedy":
        raise UserError("rollout.temperature is of sampling, and decoding=greedy: decoding=sampled, or leave it out")
