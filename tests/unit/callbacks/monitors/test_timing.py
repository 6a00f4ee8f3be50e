"""Where an iteration's seconds go, with a clock that moves only when simulators, policy or callbacks say so."""

from __future__ import annotations

import json
import time

import lightning as L
import pytest
from torch import nn

from callbacks.monitors.metrics_file import MetricsFile
from callbacks.monitors.timing import PARTS, Timing
from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.config.compose import compose
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.epoch import HeldoutBatch
from vla_rl.training.grpo_module import GRPOModule
from vla_rl.training.trainer import build_trainer

WAIT, ACT, PIXELS, SCORE, FIGURE = 3.0, 10.0, 1.0, 7.0, 5.0  # seconds


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Pixels(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, proprio):
        self.clock.now += PIXELS
        return proprio


class SlowPool(ToyPool):
    """Counts its waits, those of evaluations apart."""

    def __init__(self, clock: Clock, counts: list[dict[str, int]]) -> None:
        super().__init__()
        self.clock, self.counts = clock, counts

    def wait(self):
        self.clock.now += WAIT
        self.counts[-1]["waits"] += 1
        return super().wait()


class SlowPolicy(ToyPolicy):
    def __init__(self, clock: Clock, counts: list[dict[str, int]], *, preprocesses: bool) -> None:
        super().__init__()
        self.clock, self.counts = clock, counts
        self.pixels = Pixels(clock) if preprocesses else None

    def act(self, observation, seed_N, temperature):
        self.clock.now += ACT
        self.counts[-1]["acts"] += 1
        if self.pixels:
            self.pixels(observation.proprio_NP)
        return super().act(observation, seed_N, temperature)

    def log_prob(self, batch, temperature):
        self.clock.now += SCORE
        self.counts[-1]["scores"] += 1
        if self.pixels:
            self.pixels(batch.proprio_NP)
        return super().log_prob(batch, temperature)


class Slow(L.Callback):
    """Takes its time at the end of an iteration, and evaluates; counts begin anew in every iteration and every
    evaluation."""

    def __init__(self, clock: Clock, counts: list[dict[str, int]]) -> None:
        self.clock, self.counts = clock, counts

    def on_train_epoch_end(self, trainer, pl_module):
        self.clock.now += FIGURE
        trainer.datamodule.run(HeldoutBatch("sampled", trainer.datamodule.plan(iteration=9)))
        self.counts.append(dict.fromkeys(("waits", "acts", "scores"), 0))

    on_validation_start = on_train_start = lambda self, *_: self.counts.append(
        dict.fromkeys(("waits", "acts", "scores"), 0)
    )


def run(folder, monkeypatch, *, preprocesses: bool) -> tuple[list[dict[str, float]], list[dict[str, int]]]:
    """Rows of metrics and counts of two iterations, each followed by an evaluation."""
    clock, counts = Clock(), []
    config = compose([
        "conf=pcm_object_tiny", "iterations=2", "rollout.groups=2", "rollout.group_size=4", "grpo.minibatches=2",
        "evaluation.sampled_episodes=2", "evaluation.greedy_episodes=0", "evaluation.every_iterations=1",
        "grpo.group_filter=keep",
    ])  # fmt: skip
    policy = SlowPolicy(clock, counts, preprocesses=preprocesses)
    data = RolloutDataModule(
        SlowPool(clock, counts), policy, rollout=config.rollout, grpo=config.grpo, evaluation=config.evaluation, seed=1
    )
    trainer = build_trainer(config, folder, [Timing(), MetricsFile(), Slow(clock, counts)])
    monkeypatch.setattr(time, "perf_counter", clock)
    trainer.fit(GRPOModule(policy, config.grpo, config.optim, temperature=1.0), datamodule=data)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first, evaluation, second, *_ = counts[0], counts[1], counts[2]
    assert min(first.values()) > 0
    assert evaluation["acts"] > 0
    assert evaluation["scores"] == 0
    return rows, [first, second]


@pytest.mark.parametrize("preprocesses", [True, False])
def test_every_second_is_in_one_part(tmp_path, monkeypatch, preprocesses):
    rows, counts = run(tmp_path, monkeypatch, preprocesses=preprocesses)
    for iteration, (row, count) in enumerate(zip(rows, counts, strict=True)):
        expected = {
            "simulate": WAIT * count["waits"],
            "infer": ACT * count["acts"],
            "preprocess": PIXELS * (count["acts"] + count["scores"]) * preprocesses,
            "update": SCORE * count["scores"],
            "idle": FIGURE * iteration,  # left over by the iteration before
        }
        assert {part: row[f"split/{part}_s"] for part in PARTS} == pytest.approx(expected)
        assert row["time/iteration_s"] == pytest.approx(sum(expected.values()))
