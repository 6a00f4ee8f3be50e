"""Simulator processes: the same trajectories whatever happens to them, and nothing left behind.

The environment is `tests.helpers.fake_env.FakeEnv`; the same with LIBERO is in `libero/test_pool.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers import fake_env
from tests.helpers.fake_env import FakeEnv
from vla_rl.errors import UserError
from vla_rl.sim.pool import ProcessPool
from vla_rl.types import Episode

ROOT = Path(__file__).parents[3]
HUNG_S = 6.0  # a fake worker answers within ~2 s of its start even when the cores are many times overbooked
Steps = list[tuple[torch.Tensor, torch.Tensor, int, bool]]  # frame, proprio, executed, done of each event


def fake_pool(workers: int = 1, timeout_s: float = 60.0) -> ProcessPool:
    sizes = {"max_chunks": 5, "chunk_steps": 8, "camera_px": fake_env.PX}
    return ProcessPool(FakeEnv, tasks=[0, 1, 2], workers=workers, timeout_s=timeout_s, **sizes)


def signaller(pool: ProcessPool, number: signal.Signals, when: int) -> Callable[[int], None]:
    return lambda decision: os.kill(pool.pids[0], number) if decision == when and not pool.restarts else None


def episode(uid: int, task: int, init_state: int) -> Episode:
    return Episode(uid=uid, task=task, init_state=init_state, seed=uid)


def command(uid: int, decision: int, dims: int = 7) -> torch.Tensor:
    return torch.rand(8, dims, generator=torch.Generator().manual_seed(100 * uid + decision)) * 2 - 1


def play(
    pool: ProcessPool,
    episodes: list[Episode],
    meddle: Callable[[int], None] = lambda decision: None,
    dims: int = 7,
) -> list[Steps]:
    """Each episode to its end. `meddle(0)` is called while an episode starts, `meddle(n)` before its n-th command."""
    played: list[Steps] = [[] for _ in episodes]
    pending, busy, free = list(range(len(episodes))), {}, set(range(pool.slots))
    while pending or busy:
        while pending and free:
            index = pending.pop(0)
            slot = pool.preferred_slot(sorted(free), episodes[index])
            free.remove(slot)
            busy[slot] = index
            pool.start(slot, episodes[index])
            meddle(0)
        for event in pool.wait():
            steps = played[busy[event.slot]]
            steps.append((event.frame_HWC.clone(), event.proprio_P.clone(), event.executed, event.done))
            if event.done:
                free.add(event.slot)
                del busy[event.slot]
            else:
                meddle(len(steps))
                pool.step(event.slot, command(episodes[busy[event.slot]].uid, len(steps), dims))
    return played


def assert_same(left: list[Steps], right: list[Steps]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert [s[2:] for s in a] == [s[2:] for s in b]
        for (frame_a, proprio_a, *_), (frame_b, proprio_b, *_) in zip(a, b, strict=True):
            assert torch.equal(frame_a, frame_b)
            assert torch.equal(proprio_a, proprio_b)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_dead(pids: list[int], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not [pid for pid in pids if alive(pid)]


# ------------------------------------------------------------------------------------------------ faults (fake env)


def test_event_fields():
    with fake_pool() as pool:
        pool.start(0, episode(1, task=2, init_state=5))
        (event,) = pool.wait()
        assert (event.slot, event.executed, event.success, event.done) == (0, 0, False, False)
        assert event.instruction == "task 2"
        assert event.proprio_P.tolist() == [2, 5, 0, 0, 0, 0, 0, 0]
        assert event.frame_HWC.shape == (16, 16, 3)
        assert event.frame_HWC.dtype == torch.uint8
        pool.step(0, torch.zeros(3, 7))
        (event,) = pool.wait()
        assert event.executed == 3
        assert event.proprio_P[2] == 3


def test_workers_and_order_do_not_matter():
    episodes = [episode(uid, uid % 3, uid) for uid in range(9)]
    with fake_pool(1) as one, fake_pool(3) as three:
        forwards = play(one, episodes)
        backwards = play(three, episodes[::-1])[::-1]
    assert [len(steps) for steps in forwards] == [6] * 9  # 40 steps in chunks of 8, and the start
    assert_same(forwards, backwards)


def test_an_abandoned_episode_leaves_nothing_behind():
    with fake_pool() as pool:
        expected = play(pool, [episode(7, 1, 3)])
    with fake_pool() as pool:
        pool.start(0, episode(5, 1, 2))
        pool.wait()
        pool.step(0, command(5, 1))
        with pytest.raises(AssertionError, match="slot 0 does not wait for a command"):
            pool.abandon(0)
        pool.wait()
        pool.abandon(0)
        with pytest.raises(AssertionError, match="nothing was asked"):
            pool.wait()
        kill_at_the_third = signaller(pool, signal.SIGKILL, 3)  # what is replayed is this episode's alone
        assert_same(play(pool, [episode(7, 1, 3)], kill_at_the_third), expected)


@pytest.mark.parametrize("when", [0, 1, 3, 5])  # while it starts, before the first command, the third, the last
def test_a_killed_worker_is_invisible(when, caplog):
    with fake_pool() as pool:
        expected = play(pool, [episode(7, 1, 3)])
    with fake_pool() as pool:
        assert_same(play(pool, [episode(7, 1, 3)], signaller(pool, signal.SIGKILL, when)), expected)
        assert pool.restarts == 1
    assert f"worker 0 ended (exit status -9) in task 1, initial state 3, decision {when};" in caplog.text


def test_a_worker_killed_between_episodes_is_invisible():
    with fake_pool() as pool:
        expected = play(pool, [episode(7, 1, 3)])
        os.kill(pool.pids[0], signal.SIGKILL)
        assert_same(play(pool, [episode(7, 1, 3)]), expected)
        assert pool.restarts == 1


def test_workers_leave_a_ctrl_c_to_the_program():
    with fake_pool() as pool:
        play(pool, [episode(7, 1, 3)], signaller(pool, signal.SIGINT, 1))
        assert pool.restarts == 0


def test_a_hung_worker_is_invisible(caplog):
    with fake_pool() as pool:
        expected = play(pool, [episode(7, 1, 3)])
    with fake_pool(timeout_s=HUNG_S) as pool:
        assert_same(play(pool, [episode(7, 1, 3)], signaller(pool, signal.SIGSTOP, 2)), expected)
        assert pool.restarts == 1
    assert "worker 0 gave no answer for 6 s in task 1, initial state 3, decision 2;" in caplog.text


def test_an_exception_is_reported_at_once():
    with fake_pool() as pool:
        with pytest.raises(RuntimeError, match="(?s)task 0, initial state 101, decision 2.*in step.*a bug in the env"):
            play(pool, [episode(1, 0, fake_env.RAISES)])
        assert pool.restarts == 0
        assert len(play(pool, [episode(2, 0, 1)])[0]) == 6  # and the pool is still usable


def test_a_mistake_of_the_user_that_an_environment_finds_is_one_line():
    with fake_pool() as pool, pytest.raises(UserError, match="^no such initial state: take another$"):
        play(pool, [episode(1, 0, fake_env.REFUSES)])


def test_open_files_are_counted_before_a_worker_starts(monkeypatch):
    limits = []
    monkeypatch.setattr("vla_rl.sim.pool.resource.getrlimit", lambda kind: (40, 100))
    monkeypatch.setattr("vla_rl.sim.pool.resource.setrlimit", lambda kind, to: limits.append(to))
    with fake_pool(3):
        pass
    ((soft, hard),) = limits  # raised, since the system allows it
    assert 40 < soft <= 100
    assert hard == 100
    with pytest.raises(
        UserError, match=r"^60 simulators need \d+ open files, and the limit is 100: ulimit -n 1024, or"
    ):
        fake_pool(60)


def test_an_episode_that_always_kills_its_worker_is_reported():
    with fake_pool() as pool, pytest.raises(RuntimeError, match=r"\(exit status 7\), 4 times in task 0, .* decision 2"):
        play(pool, [episode(1, 0, fake_env.DIES)])


def test_a_hang_is_reported_with_its_stack(monkeypatch):
    monkeypatch.setattr("vla_rl.sim.pool.MAX_RESTARTS", 0)  # each would wait for the timeout
    with fake_pool(timeout_s=HUNG_S) as pool, pytest.raises(RuntimeError, match="(?s)for 6 s, 1 times.*in _misbehave"):
        play(pool, [episode(1, 0, fake_env.HANGS)])


def test_a_replay_that_goes_another_way_is_an_error():
    with fake_pool() as pool, pytest.raises(RuntimeError, match="not deterministic"):
        play(pool, [episode(1, 0, fake_env.NOT_DETERMINISTIC)], signaller(pool, signal.SIGKILL, 3))


def test_preferred_slot_has_the_task_or_the_fewest():
    with fake_pool(3) as pool:
        assert pool.pids == []  # nothing runs before the first episode
        play(pool, [episode(0, 0, 0), episode(1, 1, 0), episode(2, 2, 0)])
        assert [pool.preferred_slot([0, 1, 2], episode(3, task, 1)) for task in (0, 1, 2)] == [0, 1, 2]
        assert pool.preferred_slot([1, 2], episode(3, 0, 1)) == 1  # neither has it
        pool.start(1, episode(3, 0, 1))
        pool.wait()
        assert pool.preferred_slot([1, 2], episode(4, 0, 1)) == 1
        assert pool.preferred_slot([1, 2], episode(4, 5, 1)) == 2  # slot 1 has built two, slot 2 one


# ---------------------------------------------------------------------------------------------- nothing left behind


def test_close_is_quick_complete_and_repeatable():
    pool = fake_pool(2)
    for slot in range(2):
        pool.start(slot, episode(slot, 0, fake_env.HANGS))
    while any(event.executed == 0 for event in pool.wait()):
        break
    pids = pool.pids
    began = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - began < 2
    assert len(pids) == 2
    assert not any(map(alive, pids))


# A program that has two workers, one of them stuck in the simulator, says so, and sleeps.
def start_program(script: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(script)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_workers_end_with_the_program_though_a_fork_of_it_lives_on(tmp_path):
    """A fork holds the main process's end of every worker's stdin."""
    script = tmp_path / "program.py"
    script.write_text(
        PROGRAM.format(then="os.fork() or (time.sleep(20), os._exit(0)); print('forked', flush=True); time.sleep(60)")
    )
    program = start_program(script)
    pids = [int(pid) for pid in program.stdout.readline().split()]
    assert program.stdout.readline() == "forked\n"
    program.kill()
    program.wait()
    assert len(pids) == 2
    wait_until_dead(pids, timeout_s=10)


PROGRAM = """
import os, sys, time, torch
from tests.helpers import fake_env
from tests.integration.sim.test_pool import episode, fake_pool
if __name__ == "__main__":
    pool = fake_pool(2)
    pool.start(0, episode(0, 0, fake_env.HANGS)), pool.start(1, episode(1, 0, 1))
    started = 0
    while started < 2:
        started += len(pool.wait())
    pool.step(0, torch.zeros(8, 7)), pool.wait()
    pool.step(0, torch.zeros(8, 7))
    print(*pool.pids, flush=True)
    {then}
"""


@pytest.mark.parametrize(
    ("then", "sent"),
    [
        ("time.sleep(60)", signal.SIGKILL),
        ("time.sleep(60)", signal.SIGTERM),
        ("pool.wait()", signal.SIGINT),  # Ctrl-C
        ("pass", None),  # a program that forgets to close
        ("raise SystemExit(1)", None),
    ],
)
def test_workers_end_with_the_program(tmp_path, then, sent):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(then=then))
    program = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pids = [int(pid) for pid in program.stdout.readline().split()]
    if sent:
        program.send_signal(sent)
    _, errors = program.communicate(timeout=20)
    assert len(pids) == 2
    wait_until_dead(pids, timeout_s=2)
    assert "leaked" not in errors
    assert "Exception ignored" not in errors
    assert ("KeyboardInterrupt" in errors) == (sent == signal.SIGINT)
