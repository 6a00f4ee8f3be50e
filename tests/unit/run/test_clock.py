"""Seconds of a run."""

from vla_rl.run import clock
from vla_rl.run.clock import RunClock


def test_a_resumed_run_goes_on_counting(monkeypatch):
    now = 100.0
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now)
    first = RunClock()
    now = 110.0
    assert first.seconds == 10
    state = first.state_dict()
    now = 500.0
    second = RunClock()
    second.load_state_dict(state)
    now = 503.0
    assert second.seconds == 13
