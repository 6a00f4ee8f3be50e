"""`trace.json`: one iteration drawn over time, for ui.perfetto.dev or chrome://tracing.

A row for the process that trains (waiting for simulators, inferring, updating) and a row for every simulator, so that
it shows who waits for whom.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
from torch import Tensor

from vla_rl.checks import check_count
from vla_rl.errors import UserError
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.trainer_state import data_of
from vla_rl.run.extras import extra
from vla_rl.types import ActionChunk, Episode, Observation, Policy, SimulatorPool, SlotEvent

MAIN = "policy"  # the row of the process that trains


class Spans:
    """Named stretches of time in rows, in the Trace Event Format."""

    def __init__(self) -> None:
        self._rows: list[str] = []
        self._spans: list[dict[str, Any]] = []

    def add(self, row: str, name: str, began: float, ended: float, **details: Any) -> None:
        """`began`, `ended`: of time.perf_counter()."""
        if row not in self._rows:
            self._rows.append(row)
        self._spans.append(
            {"name": name, "ph": "X", "pid": 0, "tid": self._rows.index(row), "ts": began * 1e6,
             "dur": (ended - began) * 1e6, "args": details}
        )  # fmt: skip

    @contextmanager
    def span(self, row: str, name: str, **details: Any) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.add(row, name, began, time.perf_counter(), **details)

    def write(self, path: Path) -> None:
        names = [
            {"name": "thread_name", "ph": "M", "pid": 0, "tid": tid, "args": {"name": row}}
            for tid, row in enumerate(self._rows)
        ]
        path.write_text(json.dumps({"traceEvents": names + self._spans}), encoding="utf-8")


class TracedPolicy:
    """A policy whose `act` leaves a span."""

    def __init__(self, policy: Policy, spans: Spans) -> None:
        self._policy, self._spans = policy, spans

    def act(self, observation: Observation, seed_N: Sequence[int], temperature: float) -> ActionChunk:
        with self._spans.span(MAIN, "infer", rows=len(observation.instruction_N)):
            return self._policy.act(observation, seed_N, temperature)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)


class TracedPool:
    """Simulators that leave a span for every reset and every chunk, until its outcome is read."""

    def __init__(self, pool: SimulatorPool, spans: Spans) -> None:
        self._pool, self._spans = pool, spans
        self._asked: dict[int, tuple[str, float]] = {}  # slot -> what it does, since when

    def start(self, slot: int, episode: Episode) -> None:
        self._asked[slot] = "reset", time.perf_counter()
        self._pool.start(slot, episode)

    def step(self, slot: int, command_LA: Tensor) -> None:
        self._asked[slot] = "simulate", time.perf_counter()
        self._pool.step(slot, command_LA)

    def wait(self) -> list[SlotEvent]:
        with self._spans.span(MAIN, "wait"):
            events = self._pool.wait()
        for event in events:
            name, began = self._asked.pop(event.slot)
            self._spans.add(f"simulator {event.slot}", name, began, time.perf_counter(), steps=event.executed)
        return events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


class Trace(RolloutCallback):
    """Writes `trace.json` of one iteration of the first rank. Results do not change.

    Args:
        iteration: which one, from 1. The first also builds every simulator.
    """

    def __init__(self, iteration: int = 2) -> None:
        check_count("callbacks.trace.iteration", iteration, 2)
        self.iteration = iteration
        self._spans: Spans | None = None
        self._step_began = 0.0

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        if data.rollout.asynchronous:
            raise UserError(
                "a trace shows rollouts that the training waits for: rollout.asynchronous=false, "
                "or callbacks.trace=null"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin_before(trainer, trainer.current_epoch + 1)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._spans is not None:
            self._spans.add(MAIN, "update", self._step_began, time.perf_counter(), rows=len(batch))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._spans is not None:
            with extra("writing the trace"):
                self._spans.write(Path(trainer.default_root_dir) / "trace.json")
            self._end(trainer)
        self._begin_before(trainer, trainer.current_epoch + 2)

    def _begin_before(self, trainer: L.Trainer, iteration: int) -> None:
        if iteration != self.iteration or iteration > (trainer.max_epochs or 0) or not trainer.is_global_zero:
            return
        self._spans, data = Spans(), data_of(trainer)
        self._untraced = data.pool, data.policy
        data.pool = TracedPool(data.pool, self._spans)
        data.policy = cast(Policy, TracedPolicy(data.policy, self._spans))

    def _end(self, trainer: L.Trainer) -> None:
        data_of(trainer).pool, data_of(trainer).policy = self._untraced
        self._spans = None
