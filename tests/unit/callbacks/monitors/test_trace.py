"""`trace.json`: what it shows of one iteration, and that it changes nothing."""

from __future__ import annotations

import json
from itertools import pairwise

import torch

from callbacks.monitors.trace import Trace
from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.config.compose import compose
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.training.grpo_module import GRPOModule
from vla_rl.training.trainer import build_trainer

GROUPS, SIZE, MINIBATCHES = 2, 4, 2


class CountingPool(ToyPool):
    """Remembers the requests of each iteration: the episodes are planned in order."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []  # uid of the episode of each

    def step(self, slot, command_LA):
        self.steps.append(self._state[slot][0].uid)
        super().step(slot, command_LA)


def run(folder, callbacks) -> tuple[CountingPool, ToyPolicy]:
    """Three iterations."""
    config = compose([
        "conf=pcm_object_tiny", "iterations=3", f"rollout.groups={GROUPS}", f"rollout.group_size={SIZE}",
        f"grpo.minibatches={MINIBATCHES}", "grpo.group_filter=keep",
    ])  # fmt: skip
    pool, policy = CountingPool(), ToyPolicy()
    data = RolloutDataModule(
        pool, policy, rollout=config.rollout, grpo=config.grpo, evaluation=config.evaluation, seed=1
    )
    trainer = build_trainer(config, folder, callbacks)
    trainer.fit(GRPOModule(policy, config.grpo, config.optim, temperature=1.0), datamodule=data)
    assert data.pool is pool
    assert data.policy is policy
    return pool, policy


def test_one_iteration_is_written_row_by_row(tmp_path):
    pool, _ = run(tmp_path, [Trace(iteration=2)])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    rows = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert sorted(rows.values()) == ["policy", "simulator 0", "simulator 1"]
    spans = [e | {"row": rows[e["tid"]]} for e in events if e["ph"] == "X"]

    names = [s["name"] for s in spans if s["row"] == "policy"]
    assert set(names) == {"wait", "infer", "update"}
    assert names[-MINIBATCHES:] == ["update"] * MINIBATCHES
    assert names.count("update") == MINIBATCHES
    simulated = [s["name"] for s in spans if s["row"] != "policy"]
    of_second = [uid for uid in pool.steps if GROUPS * SIZE <= uid < 2 * GROUPS * SIZE]
    assert simulated.count("reset") == GROUPS * SIZE
    assert simulated.count("simulate") == len(of_second) > 0

    for row in rows.values():  # nobody does two things at once
        own = sorted((s for s in spans if s["row"] == row), key=lambda s: s["ts"])
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-3 for a, b in pairwise(own))  # microseconds, rounded
    assert all(s["dur"] >= 0 for s in spans)


def test_a_traced_run_is_the_same_run(tmp_path):
    _, traced = run(tmp_path / "a", [Trace(iteration=1)])
    _, plain = run(tmp_path / "b", [])
    for name, value in plain.state_dict().items():
        assert torch.equal(value, traced.state_dict()[name])


def test_an_iteration_that_never_comes_is_never_written(tmp_path):
    run(tmp_path, [Trace(iteration=4)])
    assert not (tmp_path / "trace.json").exists()
