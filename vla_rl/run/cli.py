"""What every verb shares: help, the resolved config, quiet libraries, and one line for users' mistakes and a Ctrl-C.

`console` is the script `vla-rl`: `vla-rl fit conf=...` is `python -m vla_rl.fit conf=...`.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
import os
import runpy
import select
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_rl.config.compose import compose, conf_names, group_names, to_yaml
from vla_rl.config.instantiate import check_early
from vla_rl.config.schema import GROUPS, Config
from vla_rl.config.sources import set_in
from vla_rl.errors import Preempted, RunError, UserError, did_you_mean
from vla_rl.run.launch import check_rank_variables
from vla_rl.run.parent import end_with_launcher

PRINT_CONFIG = "--print-config"
_PACKAGE = Path(__file__).parents[1]


def answer_early(about: str, parse: Callable[[list[str]], Any] | None = compose, *, confs: bool = True) -> None:
    """Answer what needs no imports of seconds, and exit: help, `--print-config`, and most mistakes in the arguments.

    A verb calls this between its light and its heavy imports. Where there is nothing to answer, it returns.

    Args:
        about: what the verb does, for `--help` (the module's docstring).
        parse: from the arguments to the config, or to the verb's own options; None where they are not checked here.
        confs: whether the verb takes `conf=` and the config's keys, so that `--help` names them.
    """
    _make_alone()
    by_lightning = end_with_launcher()
    argv = sys.argv[1:]
    with exit_codes(argv):
        check_rank_variables(by_lightning=by_lightning)
        _check_packages()
        if {"-h", "--help"} & set(argv):
            print(help_text(about) if confs else about.strip(), flush=True)
            sys.exit(0)
        if parse is None:
            return
        config = parse([argument for argument in argv if not (confs and argument == PRINT_CONFIG)])
        if not isinstance(config, Config):
            return
        check_early(config)
        if PRINT_CONFIG in argv:
            print(to_yaml(config), end="", flush=True)
            sys.exit(0)


def run_entry(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Run a verb with quiet libraries; `exit_codes` says what becomes of its exceptions.

    Args:
        argv: `key=value` arguments; None = the process's own.
    """
    # Lightning prints start-up lines and tips of its own, and trips over a torch deprecation of its own making
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it; it misses kernels nobody asked for
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="Total length of `HeldoutBatches` across ranks is zero")  # as asked for
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # what is logged is summed over ranks already
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket")  # of class tokens, in DDP
    # Lightning wraps the model for DDP in a stream of its own; the gradients are the same
    warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
    argv = sys.argv[1:] if argv is None else argv
    with exit_codes(argv):
        main(argv)


@contextmanager
def exit_codes(argv: Sequence[str] = ()) -> Iterator[None]:
    """A `UserError` becomes `error: <one line>` on stderr and exit code 2, a `RunError` the same and 1; a Ctrl-C
    `interrupted` and 130, a SIGTERM `terminated` and 143, and output that nobody reads any more (`... | head`) 141, as
    shells have it. Other exceptions keep their traceback.

    Args:
        argv: arguments that may name a conf file; a `UserError` about what that file sets names it.
    """
    try:
        yield
        sys.stdout.flush()  # here, where a reader that has gone is understood
    except UserError as e:
        line = " ".join(str(e).split())
        print("error:", line + set_in(line, argv), file=sys.stderr)
        sys.exit(2)
    except RunError as e:
        print("error:", " ".join(str(e).split()), file=sys.stderr)
        sys.exit(1)
    except Preempted as e:
        print(f"terminated; {e}", file=sys.stderr)
        sys.exit(143)
    except BrokenPipeError:
        if _output_is_read():
            raise
        sys.exit(141)
    except KeyboardInterrupt as e:
        print("; ".join(["interrupted", *map(str, e.args)]), file=sys.stderr)
        sys.exit(130)


def _output_is_read() -> bool:
    """Whether somebody still reads standard output; what is printed from now on is thrown away otherwise."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # errors are always reported
    if not output.poll(0):
        return True
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return False


def console() -> None:
    """The script `vla-rl`: its first argument names the verb, the others are the verb's own."""
    verb, argv = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    with exit_codes():
        if verb in ("-h", "--help"):
            lines = "\n".join(f"  {name:<9} {line}" for name, line in verbs().items())
            print(f"vla-rl VERB [key=value ...]; `vla-rl VERB --help` says more.\n\n{lines}")
            return
        if verb not in verbs():
            names = list(verbs())
            raise UserError(f"no verb named '{verb}'{did_you_mean(verb, names)} Verbs: {', '.join(names)}")
    sys.argv[1:] = argv
    sys.path.append(os.getcwd())  # where `python -m` looks for code of one's own (mask._target_=my_pkg.MyMask)
    runpy.run_module(f"vla_rl.{verb}", run_name="__main__", alter_sys=True)


def verbs() -> dict[str, str]:
    """Programs of the package, each with what it does: the first line of its docstring behind the command."""
    found = {}
    for path in sorted(_PACKAGE.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if '\nif __name__ == "__main__":' in source:
            found[path.stem] = str(ast.get_docstring(ast.parse(source))).splitlines()[0].partition("`: ")[2]
    return found


def help_text(about: str) -> str:
    """The text of `--help`: confs and groups with their choices."""
    groups = "\n".join(f"  {group + '=':<9}{', '.join(group_names(group))}" for group in GROUPS)
    return (
        f"{about.strip()}\n\n"
        "Arguments are key=value: conf=<name or .yaml>, a group by name (mask=random), any single value\n"
        "(mask.budget=8, trainer.devices=2, callbacks.extra._target_=my_pkg.MyCallback).\n"
        f"{PRINT_CONFIG} prints the whole config that they give, and runs nothing.\n\n"
        f"  conf=    {', '.join(conf_names())}\n{groups}"
    )


def _make_alone() -> None:
    """Keep out what the caller has left: a closed stdin, stdout or stderr, whose number the next file that is opened
    would get, and a way to show figures, as notebooks leave it to their children. Programs write figures to files."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    os.environ["MPLBACKEND"] = "agg"


def _check_packages() -> None:
    """Raise UserError where another `callbacks`, mostly one in the working directory, hides this project's."""
    found = importlib.util.find_spec("callbacks")
    ours = _PACKAGE.parent / "callbacks" / "__init__.py"
    if found is None or found.origin is None or not Path(found.origin).samefile(ours):
        origin = found.origin if found and found.origin else "nothing"
        verb = Path(sys.argv[0]).stem
        raise UserError(
            f"{origin} hides the package callbacks of vla_rl: rename it, or leave the working directory out of the "
            f"search for modules: python -P -m vla_rl.{verb} ..."
        )
