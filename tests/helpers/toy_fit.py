"""The real program on the toy world, in a fork of this process: a run that takes a second and can be killed."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import psutil
import torch
from lightning.pytorch.utilities import rank_zero_only

import vla_rl.figures.video  # noqa: F401  # once, as it loads fonts and av, and not in each fork
from tests.helpers.tiny_fit import ROOT
from vla_rl import fit
from vla_rl.distributed.parameters import full_tensor, trainable_parameters
from vla_rl.run.cli import run_entry

ARGUMENTS = [
    "conf=pcm_object_tiny",
    "iterations=6",
    "rollout.groups=4",
    "rollout.group_size=4",
    "rollout.train_init_states=[0,20]",
    "grpo.minibatches=2",
    "optim.lr=0.01",
    "evaluation.sampled_episodes=4",
    "evaluation.greedy_episodes=4",
    "evaluation.every_iterations=2",
    "mask.budget=3",
    "mask.refresh_every=2",
    "policy._target_=tests.helpers.toy.ToyPolicy",
    "sim._target_=tests.helpers.toy.ToyPool",
    "callbacks.phase_plot=null",  # drawing takes longer than all the rest
    "callbacks.run_plot=null",
    "callbacks.draws._target_=tests.helpers.toy_fit.GlobalDraws",
]


def _print_warning(message, category, filename, lineno, file=None, line=None) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


class GlobalDraws(L.Callback):
    """A callback of one's own that draws from the global generators and keeps what it drew."""

    def __init__(self) -> None:
        self.drawn: list[list[float]] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.drawn.append([random.random(), np.random.rand(), float(torch.rand(()))])

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state_dict) -> None:
        self.drawn = state_dict["drawn"]


class RecordGradients(L.Callback):
    """`rank<n>.pt` in the run folder: of each optimizer step the whole gradient, and the rows of this rank in it."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []
        self.rows: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.rows.append(len(batch) if batch.token_mask_NLA.any() else 0)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        gradients = [full_tensor(p.grad) for p in trainable_parameters(pl_module).values()]
        self.gradients.append(torch.cat([gradient.flatten().clone() for gradient in gradients]))

    def on_train_end(self, trainer, pl_module) -> None:
        path = Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt"
        torch.save({"gradients": self.gradients, "rows": self.rows}, path)


class Fork:
    """`work()` in a fork of this process, its output in `folder`/<name>.out and .err."""

    def __init__(self, work: Callable[[], None], folder: Path, name: str = "program") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        self._out.touch(), self._err.touch()
        self.pid = os.fork()
        if self.pid == 0:
            self._be(work)

    def _be(self, work: Callable[[], None]) -> None:
        code = 1
        sys.settrace(None)  # coverage of a fork is lost, and measuring it nearly doubles the fork's time
        try:
            os.setpgid(0, 0)
            for path, number in ((self._out, 1), (self._err, 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            warnings.showwarning = _print_warning  # as in a process of its own, whatever pytest does with them
            warnings.resetwarnings()
            for unseen in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", unseen)
            torch.set_num_threads(1)
            work()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)

    def wait(self, timeout_s: float = 300) -> int:
        """Its exit status; negative: the signal that ended it."""
        until = time.monotonic() + timeout_s
        while not (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > until:
                self.kill()
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"still running after {timeout_s:g} s: {self.printed}{self.errors}")
            time.sleep(0.005)
        return os.waitstatus_to_exitcode(ended[1])

    def kill(self, signum: int = signal.SIGKILL) -> None:
        os.kill(self.pid, signum)

    @property
    def printed(self) -> str:
        return self._out.read_text()

    @property
    def errors(self) -> str:
        return self._err.read_text()

    def wait_until_printed(self, text: str, timeout_s: float = 120) -> None:
        until = time.monotonic() + timeout_s
        while text not in self.printed:
            assert time.monotonic() < until and psutil.pid_exists(self.pid), self.errors
            time.sleep(0.002)


def start(folder: Path, *overrides: str) -> Fork:
    """The program with `run_dir=folder`, not waited for."""
    os.chdir(ROOT)
    argv = [*ARGUMENTS, f"run_dir={folder}", *overrides]
    return Fork(lambda: run_entry(fit.main, argv), folder.parent / f"{folder.name}.log")


def start_ranks(
    folder: Path,
    ranks: int,
    *overrides: str,
    arguments: list[str] = ARGUMENTS,
    main: Callable = fit.main,
    start: int | None = None,
) -> list[Fork]:
    """A program as `ranks` processes, started as Lightning starts them, or only the first `start` of them."""
    os.chdir(ROOT)
    argv = [*arguments, f"run_dir={folder}", f"trainer.devices={ranks}", *overrides]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        rank_zero_only.rank = rank  # Lightning reads the environment when it is imported
        run_entry(main, argv)

    logs = folder.parent / f"{folder.name}.log"
    return [Fork(lambda rank=rank: work(rank), logs, f"rank{rank}") for rank in range(start or ranks)]


def run(folder: Path, *overrides: str) -> Fork:
    """The program to its end, which must be a good one."""
    program = start(folder, *overrides)
    assert program.wait() == 0, program.errors
    return program
