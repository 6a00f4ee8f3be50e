"""What every command shares: help, quiet libraries, and one line for users' mistakes and for a Ctrl-C."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

from vla_rl.config.compose import conf_names, group_names
from vla_rl.config.schema import GROUPS
from vla_rl.errors import Preempted, RunError, UserError


def run_entry(main: Callable[[list[str]], None], about: str, argv: list[str] | None = None) -> None:
    """Run a command. A `UserError` becomes `error: <one line>` on stderr and exit code 2, a `RunError` likewise and 1;
    a Ctrl-C `interrupted` and 130, a SIGTERM `terminated` and 143, as shells have it.

    Args:
        about: what the command does, for `--help` (the module's docstring).
        argv: `key=value` arguments; None = the process's own.
    """
    argv = sys.argv[1:] if argv is None else argv
    if _asks_for_help(argv):
        print(help_text(about))
        return
    # Lightning prints start-up lines and tips of its own, and trips over a torch deprecation of its own making
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it; it misses kernels nobody asked for
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="Total length of `HeldoutBatches` across ranks is zero")  # as asked for
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # what is logged is summed over ranks already
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket")  # of class tokens, in DDP
    try:
        main(argv)
    except UserError as e:
        print("error:", " ".join(str(e).split()), file=sys.stderr)
        sys.exit(2)
    except RunError as e:
        print("error:", " ".join(str(e).split()), file=sys.stderr)
        sys.exit(1)
    except Preempted as e:
        print(f"terminated; {e}", file=sys.stderr)
        sys.exit(143)
    except KeyboardInterrupt as e:
        print("; ".join(["interrupted", *map(str, e.args)]), file=sys.stderr)
        sys.exit(130)


def exit_on_help(about: str) -> None:
    """Print the help and exit, if the process was asked for it: for entries to call before imports of seconds."""
    if _asks_for_help(sys.argv[1:]):
        print(help_text(about))
        sys.exit(0)


def help_text(about: str) -> str:
    """The text of `--help`: confs and groups with their choices."""
    groups = "\n".join(f"  {group + '=':<9}{', '.join(group_names(group))}" for group in GROUPS)
    return (
        f"{about.strip()}\n\n"
        "Arguments are key=value: conf=<name or .yaml>, a group by name (mask=random), any single value\n"
        "(mask.budget=8, trainer.devices=2, callbacks.extra._target_=my_pkg.MyCallback).\n\n"
        f"  conf=    {', '.join(conf_names())}\n{groups}"
    )


def _asks_for_help(argv: list[str]) -> bool:
    return bool({"-h", "--help"} & set(argv))
