"""One simulator process, seen from both ends: `Worker` starts it and talks to it, `main` is what runs in it.

Requests and outcomes go through a pipe, frames through shared memory. The process is a fresh interpreter rather than
a `multiprocessing` one, which would import the main program again (the trainer, the policy) and would start without
the environment variables that must be set before anything heavy is imported.

Only light imports here: the simulator is imported by unpickling the first request, inside the process.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from vla_rl.errors import UserError

# Workers already fill the cores; threads inside them (BLAS, numba, software GL) would only fight for these.
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "LP_NUM_THREADS")
LOG_TAIL_BYTES = 4000
PARENT_CHECK_S = 1.0
STACK_DUMP_S = 0.2  # how long a hung worker gets to write its stack

MakeEnv = Callable[[int], Any]  # task -> gymnasium environment at decision level (see `vla_rl.sim.libero.env`)


@dataclass(slots=True)
class Start:
    """Begin an episode, then execute `commands`: none for a new episode, those so far for one that is replayed."""

    make_env: MakeEnv  # called when this worker has no environment of the task yet
    task: int
    init_state: int
    seed: int  # the episode's own
    commands: list[np.ndarray]  # float32 [h, 7] each


class Outcome(NamedTuple):
    """What a reset (executed = 0) or a command led to. Compares equal only if bitwise equal."""

    executed: int
    success: bool
    done: bool
    proprio: bytes  # float32 [P]
    instruction: str


@dataclass(slots=True)
class Failure:
    """The environment raised."""

    traceback: str
    user_error: str | None = None  # the message, where it raised a `UserError`


class Frames:
    """One uint8 [H, W, 3 x images] frame per slot, in memory that all processes see and that no file system names.

    The kernel frees it with its last user, however that one ends.
    """

    def __init__(self, slots: int, px: int, images: int) -> None:
        self.shape = (slots, px, px, 3 * images)
        self.fd = os.memfd_create("vla_rl_frames")
        os.ftruncate(self.fd, slots * px * px * 3 * images)

    def map(self) -> mmap.mmap:
        return mmap.mmap(self.fd, 0)

    def close(self) -> None:
        """Existing maps stay valid; no new ones."""
        os.close(self.fd)


# ------------------------------------------------------------------------------------------------- the main process


class Worker:
    """Handle of one simulator process. Starting it does not block.

    Every reset and every command is answered by an `Outcome`, in order, or by a `Failure` that ends the request.
    """

    def __init__(self, frames: Frames, slot: int) -> None:
        self.connection, theirs = Pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self._owner_pid = os.getpid()
        arguments = f"{theirs.fileno()}, {frames.fd}, {frames.shape}, {slot}, {self._owner_pid}"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from vla_rl.sim.worker import main; main({arguments})"],
            stdin=subprocess.PIPE,  # never written to: its end tells the worker that this process has died
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(), frames.fd),
            env=os.environ | dict.fromkeys(ONE_THREAD, "1") | {"PYTHONPATH": os.pathsep.join(sys.path)},
            process_group=0,  # a Ctrl-C in the terminal is for the main process alone
        )
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, request: Start | np.ndarray) -> None:
        with suppress(OSError):  # it has died: the closed pipe wakes whoever waits for the answer
            self.connection.send(request)

    def last_words(self, *, hung: bool) -> str:
        """The end of what it printed; a hung one is asked for its stack first."""
        if hung:
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(STACK_DUMP_S)
        size = os.fstat(self._log.fileno()).st_size
        tail = os.pread(self._log.fileno(), LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES))
        return tail.decode(errors="replace").strip() or "(it printed nothing)"

    def kill(self) -> int:
        """End the process, which has nothing to save, and return its exit status. May be called twice."""
        if os.getpid() == self._owner_pid:  # not in a fork of the main process
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None, "it was started with a pipe"
        self._process.stdin.close()
        self.connection.close()
        self._log.close()
        return self._process.returncode


# ---------------------------------------------------------------------------------------------- the worker's process


def main(connection_fd: int, frames_fd: int, frames_shape: tuple[int, int, int, int], slot: int, parent: int) -> None:
    """Serve requests until the main process (its id: `parent`) is gone."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    frame_HWC = np.frombuffer(mmap.mmap(frames_fd, 0), dtype=np.uint8).reshape(frames_shape)[slot]
    try:
        _serve(Connection(connection_fd), frame_HWC)
    except (EOFError, OSError):
        os._exit(0)  # the main process is gone; skips the interpreter's teardown, where EGL throws


def _exit_with_parent(parent: int) -> None:
    """End this process when the main process has died, even if the simulator is stuck.

    Its end of stdin closes with it, unless a fork of it holds that end too: so its id is looked at as well. (The
    kernel's own signal at a parent's death is of no use: it comes when the thread that started this process ends.)
    """
    while os.getppid() == parent:
        if select.select([sys.stdin], [], [], PARENT_CHECK_S)[0]:
            break
    os._exit(0)


def _serve(connection: Connection, frame_HWC: np.ndarray) -> None:
    simulator = _Simulator(frame_HWC)
    while True:
        data = connection.recv_bytes()
        try:
            request = pickle.loads(data)  # imports the simulator, the first time
            for outcome in simulator.outcomes(request):
                connection.send(outcome)
        except UserError as error:
            connection.send(Failure(traceback.format_exc(), str(error)))
        except Exception:
            connection.send(Failure(traceback.format_exc()))


class _Simulator:
    """The environments built so far, one per task, and the one whose episode is under way."""

    def __init__(self, frame_HWC: np.ndarray) -> None:
        self._frame_HWC = frame_HWC
        self._envs: dict[int, Any] = {}
        self._env: Any = None

    def outcomes(self, request: Start | np.ndarray) -> Iterator[Outcome]:
        """As they happen."""
        if isinstance(request, Start):
            yield self._reset(request)
        for command in request.commands if isinstance(request, Start) else [request]:
            yield self._step(command)

    def _reset(self, request: Start) -> Outcome:
        if request.task not in self._envs:
            self._envs[request.task] = request.make_env(request.task)
        self._env = self._envs[request.task]
        observation, info = self._env.reset(seed=request.seed, options={"init_state": request.init_state})
        return self._outcome(observation, info, done=False)

    def _step(self, command: np.ndarray) -> Outcome:
        observation, _, terminated, truncated, info = self._env.step(command)
        return self._outcome(observation, info, done=terminated or truncated)

    def _outcome(self, observation: dict[str, np.ndarray], info: dict[str, Any], *, done: bool) -> Outcome:
        self._frame_HWC[...] = observation["frame"]
        proprio = np.asarray(observation["proprio"], dtype=np.float32).tobytes()
        return Outcome(int(info["executed"]), bool(info["success"]), done, proprio, info["instruction"])
