"""What verbs with options of their own make of their arguments, before anything that takes seconds is imported."""

from __future__ import annotations

from pathlib import Path

from vla_rl.config.compose import compose, only_options, own_options, with_conf
from vla_rl.config.schema import CompareConfig, Config, RecordConfig, SweepConfig
from vla_rl.errors import UserError


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


def record_arguments(argv: list[str]) -> tuple[RecordConfig, Config | None]:
    """The options, and where a policy plays the config that it comes from."""
    if any(argument.partition("=")[0] in ("conf", "checkpoint") for argument in argv):
        options, rest = own_options(RecordConfig, argv)
        return options, compose(with_conf(rest))
    return only_options(RecordConfig, argv), None
